"""Items of the claims: balanced, right by another reader, not to be told without the text; wrappers that training never held."""
import json
import math
import random
import re
from collections import Counter, defaultdict

import pytest
from test_tasks import ASKED, MOOD_OF, TYPE_OF, read, read_clause, text_in_training, words

from data import world
from data.tasks import items

FILES = sorted((items.HERE / "wrappers").glob("*.json"))
NAMES = list(items.TASKS)
# SHA-256 of final.json, written by somebody who had seen no result on it: the file may not change afterwards.
FINAL = "dd5396730818ad2bf1784db1c999b8a7cb0737c7866f1ced8a2afcd90c30c1f7"
PEOPLE = [p for p in world.WORDS["person"]]


# --- a second reader ----------------------------------------------------------------------------------------------------

def days(text):
    """{(person, value): day} of a paragraph without pronouns."""
    found = {}
    for sentence in re.split(r"(?<=[.!]) ", text):
        day = next((d for d in world.WORDS["day"] if re.search(rf"\b[Oo]n {d}\b", sentence)), None)
        for _, person, value, _ in read(sentence) if day else ():
            found[person, value] = day
    return found


WH = {}            # question -> (kind, what is asked, person or value)
for name_, kind_ in world.KINDS.items():
    for person_ in world.WORDS["person"]:
        WH.update({f.format(n=person_): (name_, "what", person_) for f in kind_.what})
    for value_ in world.WORDS[kind_.type]:
        WH.update({f.format(a=value_): (name_, "who", value_) for f in kind_.who})
        WH.update({f.format(n=p, a=value_): (name_, "dated", p) for f in kind_.dated for p in world.WORDS["person"]})
HOPS = {f.format(n=says.format(s="the person who", a=value)): (one, value, two) for one in world.KINDS for two in world.KINDS
        for says in world.KINDS[one].says for value in world.WORDS[world.KINDS[one].type] for f in world.KINDS[two].what}


def mood(text):
    (found,) = [MOOD_OF[s] for s in re.split(r"(?<=[.!]) ", text) if s in MOOD_OF] + [
        "good" if (v in world.GOOD) != d else "bad" for s in [text] for k, _, v, d in read(s) if k == "feel"]
    return ("good", "bad").index(found)


def solve(name, slots, candidates):
    """What the second reader takes for right: an index into the candidates or labels."""
    if name in ("yes_no", "swapped"):
        return 0 if (*ASKED[slots["q"]], False) in read(slots["p"]) else 1
    if name == "nli":
        told, (kind, person, value, denied) = read(slots["p"]), read_clause(slots["c"])
        return 0 if (kind, person, value, denied) in told else 1 if (kind, person, value, not denied) in told else 2
    if name == "paraphrase":
        return 0 if read_clause(slots["b"][:-1]) in read(slots["a"]) else 1
    if name == "counting":
        return len({p for p in PEOPLE if re.search(rf"\b{p}\b", slots["p"])}) - 1
    if name.startswith("entity"):
        return candidates.index(TYPE_OF[slots["w"]])
    if name.startswith("sentiment"):
        return mood(slots["p"])
    told = read(slots["p"])
    if name == "two_hop":
        one, value, two = HOPS[slots["q"]]
        (person,) = {p for k, p, v, d in told if (k, v) == (one, value)}
        return candidates.index(next(v for k, p, v, d in told if (k, p) == (two, person)))
    kind, asked, given = WH[slots["q"]]
    if asked == "dated":
        return candidates.index(next(day for (p, v), day in days(slots["p"]).items() if p == given and (kind, p, v, False) in told))
    if asked == "who":
        return candidates.index(next(p for k, p, v, d in told if (k, v, d) == (kind, given, False)))
    return candidates.index(next(v for k, p, v, d in told if (k, p) == (kind, given)))


def raw(name, n, seed):
    rng, (_, make, _) = random.Random(f"{name} {seed}"), items.TASKS[name]
    return [make(rng, turn) for turn in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_another_reader_finds_the_right_answers(name):
    for slots, candidates, right in raw(name, 120, 1):
        assert solve(name, slots, candidates) == right, slots


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("entity")])      # a word has its type in any text
def test_nothing_but_the_text_tells_the_answer(name):
    """Log-odds of every word, label and pair of them, learnt from 480 items, stay at chance on 480 others without the text."""
    def features(slots, candidates, i):
        own = candidates[i] if candidates else i
        rest = re.findall(r"\w+", " ".join(text for slot, text in slots.items() if slot not in "pa"))
        return [own] + [(own, word) for word in rest]
    seen, hits, answers = defaultdict(lambda: [1, 1]), 0, items.TASKS[name][2]
    for slots, candidates, right in raw(name, 480, 2):
        for i in range(answers):
            for feature in features(slots, candidates, i):
                seen[feature][i == right] += 1
    shuffle = random.Random(name)
    for slots, candidates, right in raw(name, 480, 3):
        scores = [sum(math.log(seen[f][1] / seen[f][0]) if f in seen else -math.log(answers - 1) for f in features(slots, candidates, i))
                  + 1e-9 * shuffle.random() for i in range(answers)]
        hits += scores.index(max(scores)) == right
    chance = 1 / answers
    assert abs(hits / 480 - chance) < 4 * math.sqrt(chance * (1 - chance) / 480), hits / 480


def test_swapped_claims_are_of_words_that_the_text_holds():
    for name, together in (("swapped", True), ("yes_no", False)):
        for slots, _, right in raw(name, 60, 4):
            _, person, value = ASKED[slots["q"]]
            if right == 1:
                assert (value in {v for _, _, v, _ in read(slots["p"])}) == together


@pytest.mark.parametrize("name", ["who", "who_three", "what_three", "when", "negation"])
def test_pairs_of_a_scene_are_all_held_out(name):
    for slots, _, _ in raw(name, 30, 5):
        told = read(slots["p"])
        assert all(world.held_out(p, v) for _, p, *_ in told for _, _, v, _ in told if v in world.INDEX)


# --- in wrappers -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def drawn(request):
    return items.read_wrappers(request.param), items.load_tasks(request.param, 1, 90)


def test_right_answers_are_balanced_in_every_wrapper(drawn):
    wrappers, tasks = drawn
    for name, (set_, _, answers) in items.TASKS.items():
        task, counts, n = tasks[name], Counter(), len(wrappers[set_])
        assert len(task["items"]) == len({prompt for prompt, *_ in task["items"]}) == 90 == len(task["blank"]) == len(task["texts"])
        for i, (prompt, candidates, right) in enumerate(task["items"]):
            (best,) = right
            assert len(candidates) == answers == len(set(candidates))
            assert task["texts"][i].split(". ")[0] in prompt and task["texts"][i] not in task["blank"][i][0]
            counts[i % n, candidates[best]] += 1
            counts["first"] += best == 0
        assert 90 / answers - 35 < counts.pop("first") < 90 / answers + 35
        if not task["items"][0][1][0] in PEOPLE and wrappers[set_][0].get("labels"):
            assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == n * answers


def test_labels_do_not_stand_in_the_text_of_a_mood(drawn):
    for name in ("sentiment", "sentiment_words"):
        for text, (_, candidates, _) in zip(drawn[1][name]["texts"], drawn[1][name]["items"]):
            assert not set(candidates) & set(re.findall(r"\w+", text))


def test_the_right_labels_are_right(drawn):
    wrappers, tasks = drawn
    for i, (_, candidates, (best,)) in enumerate((p, c, tuple(r)) for p, c, r in tasks["counting"]["items"]):
        labels = wrappers["counting"][i % len(wrappers["counting"])]["labels"]
        assert candidates[best] == labels[solve("counting", {"p": tasks["counting"]["texts"][i]}, None)]
    for i, (_, candidates, (best,)) in enumerate((p, c, tuple(r)) for p, c, r in tasks["sentiment_words"]["items"]):
        labels = wrappers["sentiment_words"][i % len(wrappers["sentiment_words"])]["labels"]
        assert candidates[best] == labels[mood(tasks["sentiment_words"]["texts"][i])]


def test_seeds_and_files_have_items_of_their_own():
    one, two = (items.draw_task("who", items.read_wrappers(FILES[0]), seed, 60) for seed in ("dev 1", "dev 2"))
    assert not set(one["texts"]) & set(two["texts"])
    assert one == items.draw_task("who", items.read_wrappers(FILES[0]), "dev 1", 60)


@pytest.fixture(scope="module")
def training():
    return text_in_training(3000, items.plain(4000, seed=11))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_wrappers_never_occur_in_training_text_but_their_words_do(path, training):
    text, known, fixed = " " + " | ".join(map(words, training)) + " ", set(re.findall(r"\w+", "\n".join(training))), []
    for name, wrappers in items.read_wrappers(path).items():
        for w, wrapper in enumerate(wrappers):
            stretches = [words(part) for part in re.split(r"\{\w+\}", wrapper["text"])]
            parts = [part for part in stretches if len(part.split()) >= 2] + [" ".join(part for part in stretches if part)]
            count = sum(f" {part} " in text for part in parts)
            assert count == 0, f"{name}, wrapper {w}"                  # numbers only: final wrappers stay sealed
            fixed += re.findall(r"\w+", re.sub(r"\{\w+\}", "", wrapper["text"])) + " ".join(wrapper.get("labels", ())).split()
    unknown = sum(word not in known for word in fixed)
    assert unknown <= 0.03 * len(fixed)


def test_final_wrappers_are_those_that_were_sealed():
    import hashlib
    path = items.HERE / "wrappers" / "final.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FINAL


def test_extra_plain_text_counts_the_people_it_names():
    right = wrong = 0
    for sentences in items.plain(3000, 1):
        numbered = re.fullmatch(r"(.*) (?:is one person|are two people|are three people)\.", sentences[-1])
        if numbered:
            listed = set(re.findall(r"[A-Z]\w+", numbered[1]))
            n = {"on": 1, "tw": 2, "th": 3}[re.search(r" (on|tw|th)\w+ p", sentences[-1])[1]]
            assert len(listed) == n
            named = {p for p in PEOPLE if re.search(rf"\b{p}\b", " ".join(sentences[:-1]))}
            right, wrong = right + (listed == named), wrong + (listed != named)
    assert right > 2 * wrong > 0


@pytest.mark.parametrize("change, message", [
    (lambda sets: sets.pop("nli"), "expected one object with the sets yes_no, nli"),
    (lambda sets: sets["nli"].pop() and sets["nli"].pop(), "nli: expected a list of two or three"),
    (lambda sets: sets["question"][0].update(text="{p} and"), "question, wrapper 0: expected a text with each of {p} {q} once"),
    (lambda sets: sets["question"][0].update(text="{p} {q} {w}"), "question, wrapper 0: expected a text"),
    (lambda sets: sets["question"][0].update(text="{p} {q} "), "no space at its end"),
    (lambda sets: sets["yes_no"][1].update(labels=["Yes"]), "yes_no, wrapper 1: labels ['Yes'], expected 2 different words"),
    (lambda sets: sets["sentiment_words"][0].update(labels=["happy", "sad"]), "labels happy, sad; expected good, bad, or words of"),
    (lambda sets: sets["counting"][0].update(text=sets["counting"][1]["text"]), "counting: two wrappers have the same text")])
def test_a_bad_file_of_wrappers_is_told(tmp_path, change, message):
    sets = json.loads(FILES[0].read_text(encoding="utf-8"))
    change(sets)
    (tmp_path / "w.json").write_text(json.dumps(sets), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        items.read_wrappers(tmp_path / "w.json")


# --- near-duplicates ---------------------------------------------------------------------------------------------------------

def test_near_duplicates_by_hand(monkeypatch):
    monkeypatch.setattr(items, "GRAM", 3)
    tasks = {"t": {"texts": ["a b c d e f", "a b c x y z", "q b c d e", "a b"]}}
    # runs of three: abc bcd cde def | abc bcx cxy xyz | qbc bcd cde | ab
    assert items.near_duplicates(tasks, ["A, b c. D e!", "u v"]) == {"t": [0, 2]}             # 3/4, 1/4, 2/3, 0
    assert items.near_duplicates(tasks, ["b c x y", "a b"]) == {"t": [1, 3]}                  # 0, 2/4, 0, 1
    assert items.near_duplicates(tasks, []) == {"t": []}
