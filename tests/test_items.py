"""Items of the claims: balanced, right by a second reader, not to be told without the text; wrappers."""
import hashlib
import json
import math
import random
import re
from collections import Counter, defaultdict

import pytest
from test_tasks import (ASKED, TYPE_OF, moods, occurrences, read, read_clause, text_in_training, wh_answer,
                        words)

from data import world
from experiments import claim_items as items

FILES = [items.WRAPPERS / f"{name}.json" for name in ("dev", "final")]
NAMES = list(items.TASKS)
# SHA-256 of final.json, written by somebody who had seen no result on it: the file may not change afterwards.
FINAL = "dd5396730818ad2bf1784db1c999b8a7cb0737c7866f1ced8a2afcd90c30c1f7"
PEOPLE = world.WORDS["person"]

HOPS = {}                                       # question -> (kind, value, second kind)
for name_, kind_ in world.KINDS.items():
    for value_ in world.WORDS[kind_.type]:
        HOPS |= {f.format(n=says.format(s="the person who", a=value_)): (name_, value_, two)
                 for says in kind_.says for two in world.KINDS for f in world.KINDS[two].what}


def solve(name, slots, candidates):
    """What the second reader takes for right: an index into the candidates or labels."""
    told = read(slots["p"]) if "p" in slots and not name.startswith("entity") else []
    if name in ("yes_no", "swapped"):
        return 0 if (*ASKED[slots["q"]], False) in told else 1
    if name == "nli":
        kind, person, value, denied = read_clause(slots["c"])
        return [(kind, person, value, d) in told for d in (denied, not denied)].index(True) if any(
            fact[:3] == (kind, person, value) for fact in told) else 2
    if name == "paraphrase":
        return 0 if read_clause(slots["b"][:-1]) in read(slots["a"]) else 1
    if name == "counting":
        return len({p for p in PEOPLE if re.search(rf"\b{p}\b", slots["p"])}) - 1
    if name.startswith("entity"):
        return candidates.index(TYPE_OF[slots["w"]])
    if name.startswith("sentiment"):
        ((mood, _),) = moods(slots["p"])
        return ("good", "bad").index(mood)
    if name == "two_hop":
        one, value, two = HOPS[slots["q"]]
        (person,) = {p for k, p, v, _ in told if (k, v) == (one, value)}
        return candidates.index(next(v for k, p, v, _ in told if (k, p) == (two, person)))
    return candidates.index(wh_answer(slots["p"], slots["q"]))


def raw(name, n, seed):
    rng, (_, make, _) = random.Random(f"{name} {seed}"), items.TASKS[name]
    return [make(rng, turn) for turn in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_a_second_reader_finds_the_right_answers(name):
    for slots, candidates, right in raw(name, 90, 1):
        assert solve(name, slots, candidates) == right, slots


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("entity")])
def test_nothing_but_the_text_tells_the_answer(name):
    """Log-odds of every word, label and pair of them, learnt from 480 items, stay at chance on 480 others."""
    def features(slots, candidates, i):
        own = candidates[i] if candidates else i
        texts = [text for slot, text in slots.items() if slot in ("q", "c", "b")]
        return [own] + [(own, word) for word in re.findall(r"\w+", " ".join(texts))]
    seen, hits, answers = defaultdict(lambda: [1, 1]), 0, items.TASKS[name][2]
    for slots, candidates, right in raw(name, 480, 2):
        for i in range(answers):
            for feature in features(slots, candidates, i):
                seen[feature][i == right] += 1
    shuffle = random.Random(name)
    for slots, candidates, right in raw(name, 480, 3):
        scores = [sum(math.log(seen[f][1] / seen[f][0]) if f in seen else -math.log(answers - 1)
                      for f in features(slots, candidates, i)) for i in range(answers)]
        scores = [score + 1e-9 * shuffle.random() for score in scores]
        hits += scores.index(max(scores)) == right
    chance = 1 / answers
    assert abs(hits / 480 - chance) < 4 * math.sqrt(chance * (1 - chance) / 480), hits / 480


@pytest.mark.parametrize("name, together", [("swapped", True), ("yes_no", False)])
def test_swapped_claims_are_of_words_that_the_text_holds(name, together):
    for slots, _, right in raw(name, 60, 4):
        if right == 1:
            assert (ASKED[slots["q"]][2] in {v for _, _, v, _ in read(slots["p"])}) == together


@pytest.mark.parametrize("name", ["who", "who_three", "what_three", "when", "negation"])
def test_pairs_of_a_scene_are_all_held_out(name):
    for slots, _, _ in raw(name, 30, 5):
        told = read(slots["p"])
        assert all(world.held_out(p, v) for _, p, *_ in told for _, _, v, _ in told if v in world.INDEX)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def drawn(request):
    return items.read_wrappers(request.param), items.load_tasks(request.param, 1, 90)


def test_right_answers_are_balanced_in_every_wrapper(drawn):
    wrappers, tasks = drawn
    for name, (set_, _, answers) in items.TASKS.items():
        task, counts, firsts, n = tasks[name], Counter(), 0, len(wrappers[set_])
        assert len(task["items"]) == len({prompt for prompt, *_ in task["items"]}) == 90
        for i, (prompt, candidates, (best,)) in enumerate(task["items"]):
            text = task["texts"][i]
            assert len(candidates) == answers == len(set(candidates))
            assert text.split(". ")[0] in prompt and text not in task["blank"][i][0]
            counts[i % n, candidates[best]] += 1
            firsts += best == 0
            labels = wrappers[set_][i % n].get("labels")
            if name.startswith("sentiment"):                       # the label must not stand in the text
                assert not set(candidates) & set(re.findall(r"\w+", text))
            if name == "counting" or name.startswith("sentiment"):
                assert candidates[best] == labels[solve(name, {"p": text}, None)]
        assert 90 / answers - 35 < firsts < 90 / answers + 35
        if labels:
            assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == n * answers


def test_seeds_and_files_have_items_of_their_own():
    wrappers = items.read_wrappers(FILES[0])
    one, two, again = (items.draw_task("who", wrappers, seed, 60) for seed in ("dev 1", "dev 2", "dev 1"))
    assert not set(one["texts"]) & set(two["texts"]) and one == again


@pytest.fixture(scope="module")
def training():
    return text_in_training(3000, items.plain(4000, seed=11))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_wrappers_never_occur_in_training_text_but_their_words_do(path, training):
    text, fixed = " " + " | ".join(map(words, training)) + " ", []
    known = set(re.findall(r"\w+", "\n".join(training)))
    for name, wrappers in items.read_wrappers(path).items():
        for w, wrapper in enumerate(wrappers):
            count = occurrences(wrapper["text"], text)
            assert count == 0, f"{name}, wrapper {w}"                          # a number, no wrapper
            fixed += re.findall(r"\w+", re.sub(r"\{\w+\}", "", wrapper["text"]))
            fixed += " ".join(wrapper.get("labels", ())).split()
    unknown = sum(word not in known for word in fixed)
    assert unknown <= 0.03 * len(fixed)


def test_final_wrappers_have_not_changed():
    assert hashlib.sha256(FILES[1].read_bytes()).hexdigest() == FINAL


def test_extra_plain_text_counts_the_people_it_names():
    right = wrong = 0
    for sentences in items.plain(3000, 1):
        numbered = re.fullmatch(r"(.*) (?:is one person|are two people|are three people)\.", sentences[-1])
        if numbered:
            listed = set(re.findall(r"[A-Z]\w+", numbered[1]))
            assert len(listed) == {"one": 1, "two": 2, "three": 3}[sentences[-1].split()[-2]]
            same = listed == {p for p in PEOPLE if re.search(rf"\b{p}\b", " ".join(sentences[:-1]))}
            right, wrong = right + same, wrong + (not same)
    assert right > 2 * wrong > 0


@pytest.mark.parametrize("change, message", [
    (lambda sets: sets.pop("nli"), "expected JSON with wrappers for yes_no, nli"),
    (lambda sets: sets["nli"].pop() and sets["nli"].pop(), "nli: expected two or three"),
    (lambda sets: sets["question"][0].update(text="{p} and"), "question: expected two or three"),
    (lambda sets: sets["question"][0].update(text="{p} {q} {w}"), "in each the slots p q once"),
    (lambda sets: sets["yes_no"][1].update(labels=["Yes"]), "yes_no: expected")])
def test_a_bad_file_of_wrappers_is_refused(tmp_path, change, message):
    sets = json.loads(FILES[0].read_text(encoding="utf-8"))
    change(sets)
    (tmp_path / "w.json").write_text(json.dumps(sets), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        items.read_wrappers(tmp_path / "w.json")


def test_near_duplicates_by_hand(monkeypatch):
    monkeypatch.setattr(items, "GRAM", 3)
    tasks = {"t": {"texts": ["a b c d e f", "a b c x y z", "q b c d e", "a b"]}}
    # runs of three: abc bcd cde def | abc bcx cxy xyz | qbc bcd cde | ab
    assert items.near_duplicates(tasks, ["A, b c. D e!", "u v"]) == {"t": [0, 2]}         # 3/4, 1/4, 2/3, 0
    assert items.near_duplicates(tasks, ["b c x y", "a b"]) == {"t": [1, 3]}              # 0, 2/4, 0, 1
    assert items.near_duplicates(tasks, []) == {"t": []}
