"""The blind test files: made anew byte for byte, right answers found by another reader, wrappers and facts never trained on."""
import json
import re
from collections import Counter

import pytest
import torch

import brd
from data import corpus, world
from data.tasks import make
from data.tokenizer import train_bpe
from model import GPT, GPTConfig

NAMES = sorted(make.TASKS)
CLAIMED = ("yes_no", "nli", "paraphrase")
TYPE_OF = {word: type_ for words in (world.WORDS, world.RESERVED) for type_ in words for word in words[type_]}


# --- a second reader, which knows the sentences of the world but not how they were drawn ----------------------------------

TOLD, ASKED = {}, {}           # "went to Oslo" -> (kind, "Oslo", denied); "Did Anna go to Oslo?" -> (kind, "Anna", "Oslo")
for name_, kind_ in world.KINDS.items():
    for value_ in world.WORDS[kind_.type] + world.RESERVED.get(kind_.type, []):
        TOLD.update({f.format(s="", a=value_).strip(): (name_, value_, False) for f in kind_.says})
        TOLD.update({f.format(s="", a=value_).strip(): (name_, value_, True) for f in kind_.denies})
        ASKED.update({f.format(n=p, a=value_): (name_, p, value_) for f in kind_.whether for p in world.WORDS["person"]})
MOOD_OF = {frame.format(m=word): mood for mood in world.MOODS for word in world.MOODS[mood] for frame in world.MOOD_FRAMES}


def read_clause(clause):
    """"Anna never went to Oslo" -> ("go", "Anna", "Oslo", True)"""
    person, rest = clause.split(" ", 1)
    kind, value, denied = TOLD[rest]
    return kind, person, value, denied


def read(text):
    """A paragraph -> [(kind, person, value, denied)] of its facts, in order; "She" is the woman named so far."""
    facts = []
    for sentence in re.split(r"(?<=[.!]) ", text):
        if sentence in MOOD_OF or sentence in world.SAYINGS:
            continue
        clause = re.sub(r"^On \w+day, | on \w+day(?=\.)|\.$", "", sentence)
        kind, person, value, denied = read_clause(clause)
        if person.lower() in ("she", "he"):
            (person,) = {p for _, p, *_ in facts if (p in world.FEMALE) == (person.lower() == "she")}
        facts.append((kind, person, value, denied))
    return facts


SLOTS = {"p": r".+[.!]", "a": r"[^.!?]+\.", "b": r"[^.!?]+\.", "q": r"[^.!?]+\?", "c": r"[^.!?]+", "w": r"[\w ]+",
         "good": r"\w+", "bad": r"\w+"}


def slots(wrapper, prompt):
    """{"p": paragraph, ...}: what stands in the slots of the wrapper."""
    parts, seen = [], set()
    for part in re.split(r"(\{\w+\})", wrapper):
        slot = part[1:-1]
        is_slot = part.startswith("{")
        parts.append(re.escape(part) if not is_slot else f"(?P={slot})" if slot in seen else f"(?P<{slot}>{SLOTS[slot]})")
        seen |= {slot} if is_slot else set()
    return re.fullmatch("".join(parts), prompt).groupdict()


def items(name):
    """(slots, candidates, the right one, number of the wrapper) of the shipped file, in order."""
    wrappers = make.TASKS[name][0]
    for i, (prompt, candidates, right) in enumerate(brd.load_task(make.HERE / f"{name}.json")["items"]):
        (best,) = right
        yield slots(wrappers[i % len(wrappers)], prompt), candidates, candidates[best], i % len(wrappers)


def claim_of(found):
    """(kind, person, value, denied) of what an item claims or asks."""
    if "q" in found:
        return *ASKED[found["q"]], False
    return read_clause(found["c"] if "c" in found else found["b"][:-1])


def paragraph_of(found):
    return found["p"] if "p" in found else found["a"]


# --- the files --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_shipped_file_is_what_the_seed_makes(name):
    same = (make.HERE / f"{name}.json").read_bytes() == make.task_file(name).encode("utf-8")
    assert same, f"{name}.json is out of date; run python data/tasks/make.py"     # no diff: the wrappers stay sealed


def test_folder_holds_these_tasks_and_no_others():
    assert sorted(path.stem for path in make.HERE.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_is_a_big_bench_task(name):
    with open(make.HERE / f"{name}.json", encoding="utf-8") as file:
        task = json.load(file)
    assert set(task) == {"name", "description", "keywords", "metrics", "preferred_score", "examples"}
    assert task["name"] == name and task["metrics"] == ["multiple_choice_grade"] == [task["preferred_score"]]
    assert all(sorted(e["target_scores"].values()) == [0] * (len(e["target_scores"]) - 1) + [1] for e in task["examples"])
    assert len({e["input"] for e in task["examples"]}) == 400
    loaded = brd.load_task(make.HERE / f"{name}.json")
    chances = {len(right) / len(candidates) for _, candidates, right in loaded["items"]}
    assert loaded["name"] == name and chances == ({0.2} if name.startswith("entity") else {0.5})


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_balanced_in_every_wrapper(name):
    """Position among the pair for labels that differ from wrapper to wrapper: good first, then bad."""
    counts, firsts = Counter(), 0
    for found, candidates, right, w in items(name):
        counts[w, {found.get("good"): "good", found.get("bad"): "bad"}.get(right, right)] += 1
        firsts += candidates[0] == right
    wrappers, answers = {w for w, _ in counts}, 5 if name.startswith("entity") else 2
    assert len(wrappers) >= 6 and len(set(make.TASKS[name][0])) == len(wrappers)
    if name != "sentiment_words":        # a wrapper without label slots does not tell which label is which
        assert len(counts) == len(wrappers) * answers
    assert set(counts.values()) == {400 // len(wrappers) // answers}
    assert abs(firsts - 400 / answers) < 50             # a right answer does not stand first more often than chance


# --- right answers ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CLAIMED)
def test_claims_are_judged_by_what_the_text_tells(name):
    for found, candidates, right, _ in items(name):
        claim, told = claim_of(found), read(paragraph_of(found))
        kind, person, value, denied = claim
        if name == "paraphrase":
            assert len(told) == 1 and " on " not in found["a"]
        follows = claim in told
        assert right == ("Yes" if follows else "No") and sorted(candidates) == ["No", "Yes"], found
        assert any(k == kind for k, *_ in told)         # what is asked about is told of somebody
        if "q" not in found:                            # the claim is worded in another way than the text
            predicate = (found["c"] if "c" in found else found["b"][:-1]).split(" ", 1)[1]
            own = [s for s in re.split(r"(?<=[.!]) ", paragraph_of(found)) if value in s and person in s]
            assert not any(f"{person} {predicate}" in s for s in own)


def test_false_answers_are_half_swapped_and_half_absent():
    sorts = Counter()
    for found, _, right, _ in items("yes_no"):
        told = read(found["p"])
        _, person, value, _ = claim_of(found)
        assert len({p for _, p, *_ in told}) == 2
        sorts[right, value in {v for _, _, v, _ in told}] += 1
    assert sorts == {("Yes", True): 200, ("No", True): 100, ("No", False): 100}


def test_questions_are_about_any_fact_of_the_paragraph():
    places = Counter()
    for found, _, right, _ in items("yes_no"):
        if right == "Yes":
            told = read(found["p"])
            places[told.index(claim_of(found)) == len(told) - 1] += 1
    assert places[False] > 80 and places[True] > 40


@pytest.mark.parametrize("name", ["nli", "paraphrase"])
def test_denials_tell_nothing(name):
    """The word not stands in as many true as false claims, and before as many of them."""
    claims, texts = Counter(), Counter()
    for found, _, right, _ in items(name):
        kind, person, value, denied = claim_of(found)
        claims[right, denied] += 1
        texts[right, any(d and v == value for _, _, v, d in read(paragraph_of(found)))] += 1
    assert claims["Yes", True] == claims["No", True] == texts["Yes", True] == texts["No", True] == 40


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
    for found, candidates, right, _ in items(name):
        moods = [(MOOD_OF[s], "mood") for s in re.split(r"(?<=[.!]) ", found["p"]) if s in MOOD_OF]
        moods += [("good" if (value in world.GOOD) != denied else "bad", "feel")
                  for kind, _, value, denied in read(found["p"]) if kind == "feel"]
        labels = {word: mood for mood, words in world.MOODS.items() for word in words} | {"good": "good", "bad": "bad"}
        ((mood, carrier),) = moods
        assert labels[right] == mood and sorted(labels[word] for word in candidates) == ["bad", "good"]
        assert not set(candidates) & set(re.findall(r"\w+", found["p"]))           # the label cannot be copied
        carriers[carrier, mood] += 1
    assert set(carriers.values()) == {100}


# --- nothing of it was trained on ---------------------------------------------------------------------------------------

def words(text):
    """Lower case, without punctuation: a wrapper that differs from training text in a comma alone would not be new."""
    return " ".join(re.findall(r"\w+|[|]", text.lower()))


def text_in_training(annotated, plain):
    """Documents as they are met in training, as text: n `annotated` paragraphs in both copies, then `plain` ones (lists of sentences)."""
    documents = [pieces for copy in ("ner", "qra")
                 for pieces in corpus.reading_documents(list(world.annotated(annotated, seed=11)), copy, seed=0)]
    return ["".join(text or " | " for text, _ in pieces) for pieces in documents] + [" ".join(sentences) for sentences in plain]


@pytest.fixture(scope="module")
def training():
    return text_in_training(6000, world.plain(3000, seed=11))


@pytest.mark.parametrize("name", NAMES)
def test_wrappers_never_occur_in_training_text(name, training):
    text = " " + " | ".join(map(words, training)) + " "
    for w, wrapper in enumerate(make.TASKS[name][0]):
        stretches = [words(part) for part in re.split(r"\{\w+\}", wrapper)]
        fixed = [part for part in stretches if len(part.split()) >= 2] + [" ".join(part for part in stretches if part)]
        parts, known = len(fixed), sum(f" {part} " in text for part in fixed)
        assert parts >= 2 and known == 0, f"wrapper {w}"               # numbers only: a report shows what it compares, and they are sealed


def test_words_of_the_wrappers_are_known(training):
    """No student is starved of words: nearly all are in the training text, in the same case."""
    known = set(re.findall(r"\w+", "\n".join(training)))
    fixed = [word for wrappers, *_ in make.TASKS.values() for wrapper in wrappers
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
    reserved = re.compile(r"\b(" + "|".join(word for words in world.RESERVED.values() for word in words) + r")\b")
    moods = {word for words in world.MOODS.values() for word in words}
    for record in (record for paragraph in world.annotated(3000, seed=12) for record in paragraph):
        assert not reserved.search(json.dumps(record))
        assert not moods & {item["answer"] for item in record["questions"]}


# --- a model can take the test --------------------------------------------------------------------------------------------

def test_a_model_of_random_weights_takes_every_test_unharmed():
    """Prompts fit into a row of 256 tokens, and what a blind score needs is there."""
    torch.manual_seed(0)
    tokenizer = train_bpe([" ".join(sentences) for sentences in world.plain(500, seed=1)], 512)
    model = GPT(GPTConfig(n_vocab=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=16, block_size=256)).eval()
    for name in NAMES:
        task = brd.load_task(make.HERE / f"{name}.json")
        result = brd.eval_task(model, tokenizer, {**task, "items": task["items"][:48]})
        assert result["n"] == 48 and 0 <= result["accuracy"] <= 1 and result["cut"] == 0
