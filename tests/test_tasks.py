"""The blind tasks: made anew byte for byte, right by a second reader, with nothing that is trained on."""
import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from data import documents, stories, world
from data.task_files import load_task
from experiments import blind_tasks
from experiments.blind_tasks import FOLDER, TASKS

NAMES = sorted(TASKS)
CLAIMED = ("yes_no", "nli", "paraphrase")
ALIKE = [name for name, *_ in blind_tasks.ALIKE]        # in wrappers of their own, of everyday words
TYPE_OF = {word: type_ for words in (world.WORDS, world.RESERVED) for type_ in words for word in words[type_]}

# A second reader, which knows the sentences of the world but not how they were drawn.
TOLD, ASKED = {}, {}   # "went to Oslo" -> (k, "Oslo", denied); "Did Ben go to Oslo?" -> (k, "Ben", "Oslo")
for name_, kind_ in world.KINDS.items():
    for value_ in world.WORDS[kind_.type] + world.RESERVED.get(kind_.type, []):
        for denied_, forms_ in ((False, kind_.says), (True, kind_.denies)):
            TOLD.update({f.format(s="", a=value_).strip(): (name_, value_, denied_) for f in forms_})
        ASKED.update({f.format(n=p, a=value_): (name_, p, value_)
                      for f in kind_.whether for p in world.WORDS["person"]})
WH = {}                # question -> (kind, what is asked, the person or value that it names)
for name_, kind_ in world.KINDS.items():
    WH |= {f.format(n=p): (name_, "what", p) for f in kind_.what for p in world.WORDS["person"]}
    for value_ in world.WORDS[kind_.type]:
        WH |= {f.format(a=value_): (name_, "who", value_) for f in kind_.who}
        WH |= {f.format(n=p, a=value_): (name_, "dated", p)
               for f in kind_.dated for p in world.WORDS["person"]}
MOOD_OF = {frame.format(m=word): mood for mood in world.MOODS for word in world.MOODS[mood]
           for frame in world.MOOD_FRAMES}


def read_clause(clause):
    """"Anna never went to Oslo" -> ("go", "Anna", "Oslo", True)"""
    person, rest = clause.split(" ", 1)
    kind, value, denied = TOLD[rest]
    return kind, person, value, denied


def read(text):
    """A paragraph -> [(kind, person, value, denied)] of its facts; "She" is the woman named so far."""
    facts = []
    for sentence in re.split(r"(?<=[.!]) ", text):
        if sentence in MOOD_OF or sentence in world.SAYINGS:
            continue
        kind, person, value, denied = read_clause(re.sub(r"^On \w+day, | on \w+day(?=\.)|\.$", "", sentence))
        if person.lower() in ("she", "he"):
            (person,) = {p for _, p, *_ in facts if world.is_she(p) == (person.lower() == "she")}
        facts.append((kind, person, value, denied))
    return facts


def moods(text):
    """[(mood, what tells it)] of a paragraph."""
    found = [(MOOD_OF[s], "mood") for s in re.split(r"(?<=[.!]) ", text) if s in MOOD_OF]
    return found + [("good" if (value in world.GOOD) != denied else "bad", "feel")
                    for kind, _, value, denied in read(text) if kind == "feel"]


def day_of(text, person):
    """The day of the sentence about a person, in a paragraph without pronouns."""
    dated = [(s, re.search(r"\b[Oo]n (\w+day)\b", s)) for s in re.split(r"(?<=[.!]) ", text)]
    return next(day[1] for sentence, day in dated if day and person in sentence)


def wh_answer(text, question):
    """The answer to a wh question about a paragraph without pronouns."""
    kind, asked, given = WH[question]
    if asked == "dated":
        return day_of(text, given)
    told = [(person, value) for k, person, value, denied in read(text) if k == kind and not denied]
    (answer,) = {value if asked == "what" else person for person, value in told if given in (person, value)}
    return answer


SLOTS = {"p": r".+[.!]", "a": r"[^.!?]+\.", "b": r"[^.!?]+\.", "q": r"[^.!?]+\?", "c": r"[^.!?]+",
         "w": r"[\w ]+", "good": r"\w+", "bad": r"\w+"}


def slots(wrapper, prompt):
    """{"p": paragraph, ...}: what stands in the slots of the wrapper; a slot may stand twice."""
    pattern = re.escape(wrapper)
    for slot, form in SLOTS.items():
        pattern = pattern.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{form})", 1)
        pattern = pattern.replace(rf"\{{{slot}\}}", f"(?P={slot})")
    return re.fullmatch(pattern, prompt).groupdict()


def items(name):
    """(slots, candidates, the right one, number of the wrapper) of the shipped file, in order."""
    wrappers = TASKS[name][0]
    for i, (prompt, candidates, (best,)) in enumerate(load_task(FOLDER / f"{name}.json")["items"]):
        yield slots(wrappers[i % len(wrappers)], prompt), candidates, candidates[best], i % len(wrappers)


def claim_of(found):
    """(kind, person, value, denied) of what an item claims or asks."""
    return (*ASKED[found["q"]], False) if "q" in found else read_clause(found.get("c") or found["b"][:-1])


def paragraph_of(found):
    return found.get("p") or found["a"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_file_is_what_the_seed_makes(name):
    same = (FOLDER / f"{name}.json").read_bytes() == blind_tasks.task_file(name).encode("utf-8")
    assert same, f"{name}.json is out of date; run python -m experiments.blind_tasks"     # no diff
    task = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert set(task) == {"name", "description", "keywords", "metrics", "preferred_score", "examples"}
    assert task["name"] == name and len({example["input"] for example in task["examples"]}) == 400
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_balanced_in_every_wrapper(name):
    """Position among the pair for labels that differ from wrapper to wrapper: good first, then bad; of two
    people who did alike, the one told first and the other."""
    counts, firsts, answers = Counter(), 0, 5 if name.startswith("entity") else 2
    n = len(TASKS[name][0])
    for found, candidates, right, w in items(name):
        assert len(candidates) == answers
        label = {found.get("good"): "good", found.get("bad"): "bad"}.get(right, right)
        if name in ALIKE:
            label = found["p"].index(right) == min(map(found["p"].index, candidates))
        counts[w, label] += 1
        firsts += candidates[0] == right
    assert {w for w, _ in counts} == set(range(n)) and len(set(TASKS[name][0])) == n
    if name != "sentiment_words":        # a wrapper without label slots does not tell which label is which
        assert len(counts) == n * answers
    assert set(counts.values()) == ({16, 17} if name in ALIKE else {50 // answers})
    assert abs(firsts - 400 / answers) < 50             # right answers stand first as often as by chance


@pytest.mark.parametrize("name", CLAIMED)
def test_claims_are_judged_by_what_the_text_tells(name):
    denials, places, sorts = Counter(), Counter(), Counter()
    for found, candidates, right, _ in items(name):
        claim, told = claim_of(found), read(paragraph_of(found))
        kind, person, value, denied = claim
        assert right == ("Yes" if claim in told else "No") and sorted(candidates) == ["No", "Yes"], found
        assert any(k == kind for k, *_ in told)         # what is asked about is told of somebody
        if name == "yes_no":
            places[right == "Yes" and told.index(claim) < len(told) - 1] += 1
            sorts[right, value in {v for _, _, v, _ in told}] += 1
            assert len({p for _, p, *_ in told}) == 2
        else:                                           # the claim is worded in another way than the text
            predicate = (found.get("c") or found["b"][:-1]).split(" ", 1)[1]
            own = [s for s in re.split(r"(?<=[.!]) ", paragraph_of(found)) if value in s and person in s]
            assert not any(f"{person} {predicate}" in s for s in own)
            denials["claim", right] += denied
            denials["text", right] += any(d and v == value for _, _, v, d in told)
    if name == "yes_no":                # any fact is asked about; half of the false answers are swapped
        assert places[True] > 80 and sorts == {("Yes", True): 200, ("No", True): 100, ("No", False): 100}
    else:                               # denials stand in as many true as false claims, and in their texts
        assert set(denials.values()) == {40} and len(denials) == 4


@pytest.mark.parametrize("name", ALIKE)
def test_a_second_reader_answers_about_two_people_who_did_alike(name):
    """All kinds of facts are asked about, in all forms; both candidates stand in the text."""
    kinds = dict(zip(ALIKE, (kinds for _, kinds, _ in blind_tasks.ALIKE)))[name]
    asked, forms = Counter(), Counter()
    for found, candidates, right, _ in items(name):
        kind, what, _ = WH[found["q"]]
        assert wh_answer(found["p"], found["q"]) == right and len(set(candidates)) == 2
        assert all(candidate in found["p"] for candidate in candidates)
        told = read(found["p"])
        assert len(told) == 2 and {k for k, *_ in told} == {kind} and told[0][1] != told[1][1]
        asked[kind] += 1
        forms[kind, re.sub(r"|".join([*world.INDEX]), "_", found["q"])] += 1
        assert what == {"who": "who", "when": "dated"}.get(name, "what")
    assert set(asked) == set(kinds) and min(asked.values()) > 60 and min(forms.values()) > 20


@pytest.mark.parametrize("name", ["entity_type", "entity_type_reserved"])
def test_types_are_those_of_the_word_lists(name):
    reserved = {word for words in world.RESERVED.values() for word in words}
    for found, candidates, right, _ in items(name):
        assert sorted(candidates) == ["job", "organisation", "person", "place", "thing"]
        assert TYPE_OF[found["w"]] == right and re.search(rf"\b{found['w']}\b", found["p"])
        assert (found["w"] in reserved) == name.endswith("reserved")


@pytest.mark.parametrize("name", ["sentiment", "sentiment_words"])
def test_one_sentence_carries_the_mood(name):
    carriers = Counter()
    labels = {word: mood for mood, words in world.MOODS.items() for word in (mood, *words)}
    for found, candidates, right, _ in items(name):
        ((mood, carrier),) = moods(found["p"])
        assert labels[right] == mood and sorted(labels[word] for word in candidates) == ["bad", "good"]
        assert not set(candidates) & set(re.findall(r"\w+", found["p"]))          # no label can be copied
        carriers[carrier, mood] += 1
    assert set(carriers.values()) == {100}


def words(text):
    """Lower case, without punctuation: a wrapper that differs from training text in a comma is not new. The
    end of a question stays: "Where is Anna now? Answer:" is not "Now answer:"."""
    return " ".join(re.findall(r"\w+|[|?]", text.lower()))


def text_in_training(annotated, plain, levels=world.LEVELS):
    """Documents as text: `annotated` paragraphs in both copies, then `plain` ones (lists of sentences). All
    have the layout with separators: others hold random words, and by chance two that stand in a wrapper."""
    levels = [replace(level, varied=0.0) for level in levels]
    records = list(world.annotated(annotated, 11, levels))
    rendered = [pieces for copy in ("ner", "qra")
                for pieces in documents.reading_documents(records, copy, 0, levels)]
    return ["".join(text or " | " for text, _ in pieces) for pieces in rendered] + list(map(" ".join, plain))


def occurrences(wrapper, text):
    """How often the stretches of a wrapper between its slots, and all of it, occur in `text` (of words())."""
    stretches = [words(part).strip("? ") for part in re.split(r"\{\w+\}", wrapper)]
    parts = [part for part in stretches if len(part.split()) >= 2] + [" ".join(filter(None, stretches))]
    return sum(f" {part} " in text for part in parts)


@pytest.fixture(scope="module")
def training():
    return text_in_training(4000, world.plain(3000, seed=11))


@pytest.fixture(scope="module")
def open_training():
    return text_in_training(3000, world.plain(2000, 11, stories.OPEN), stories.OPEN)


def test_wrappers_never_occur_in_training_text(training, open_training):
    for texts in (training, open_training):
        text = " " + " | ".join(map(words, texts)) + " "
        for name in NAMES:
            found = [occurrences(wrapper, text) for wrapper in TASKS[name][0]]
            assert set(found) == {0}, name                                             # numbers, no wrappers


def test_words_of_the_wrappers_are_known(training):
    """Nearly all of them are in the training text, in the same case; not those of ALIKE."""
    known = set(re.findall(r"\w+", "\n".join(training)))
    fixed = [word for name in NAMES if name not in ALIKE for wrapper in TASKS[name][0]
             for word in re.findall(r"\w+", re.sub(r"\{\w+\}", "", wrapper))]
    assert sum(word in known for word in fixed) >= 0.97 * len(fixed)


@pytest.mark.parametrize("name", NAMES)
def test_facts_and_claims_are_held_out_pairs(name, training):
    reserved = {word for words in world.RESERVED.values() for word in words}
    seen = {sentence for line in training for sentence in re.split(r"(?<=[.!]) ", line)}
    for found, *_ in items(name):
        facts = read(paragraph_of(found)) + ([claim_of(found)] if name in CLAIMED else [])
        new = [world.held_out(person, value) for _, person, value, _ in facts if person not in reserved]
        assert new and all(new), found
        assert any(s not in seen for s in re.split(r"(?<=[.!]) ", paragraph_of(found))), found


def test_annotations_never_speak_of_reserved_words_nor_answer_with_the_labels():
    reserved = re.compile(rf"\b({'|'.join(word for words in world.RESERVED.values() for word in words)})\b")
    labels = {word for words in world.MOODS.values() for word in words}
    for record in (record for paragraph in world.annotated(2000, seed=12) for record in paragraph):
        assert not reserved.search(json.dumps(record))
        assert not labels & {item["answer"] for item in record["questions"]}
