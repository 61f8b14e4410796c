"""Basic Reading Distillation: the blind score, figures with errors, reading in free running, the commands."""
import io
import json
import math
import random
import time
import sys

import numpy as np
import pytest
import torch

import brd
from adapters import read
from data import figures, world
from data.annotations import NOT_LISTED, TYPES, question_texts
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.documents import ROLES, encode_documents, render
from data.tokenizer import train_bpe
from model import GPT, GPTConfig
from test_annotations import ANNA, ASIDE, OTHER, PARAGRAPH


@pytest.fixture(scope="module")
def tokenizer():
    question = "Q: Where did Anna go? A: Oslo\n"
    return train_bpe([record["text"] for record in PARAGRAPH] * 20 + [question] * 20, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_vocab=tokenizer.n_vocab, n_layer=2, n_head=2, n_embd=16, block_size=96))
    for parameter in model.parameters():          # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def log_probs_of(model, ids):
    """(T, V) for one list of ids, without a cache."""
    return torch.log_softmax(model(torch.tensor([ids]))[0], -1)


# --- the blind score --------------------------------------------------------------------------------------


def plain_score(model, tokenizer, prompt, candidates):
    """One candidate at a time, without a cache: the definition, as literally as it can be written."""
    joined = [tokenizer.encode(f"{prompt} {candidate}") for candidate in candidates]
    own, shared, scores = tokenizer.encode(prompt), 0, []
    while shared < len(own) and all(len(ids) > shared and ids[shared] == own[shared] for ids in joined):
        shared += 1
    for ids in joined:
        ids, start = (ids, shared) if shared else ([tokenizer.end] + ids, 1)
        log_probs = log_probs_of(model, ids)
        tail = [float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids))]
        scores.append(sum(tail) / len(tail))
    return scores


ITEMS = [("Anna took a train to Oslo. Q: Where did Anna go? A:", ["Oslo", "Rome", "a house by the sea"]),
         ("So", ["it goes.", "it"]), ("Where did Anna go?", ["Oslo"]),
         ("Anna took a train to Oslo. Q: Where did Anna stay? A:", ["No", "Yes"])]
ITEMS += [("Q: Who", ["is Anna", "goes"])] * 3


@pytest.mark.parametrize("batch_tokens", [1, 150, 16384])
def test_blind_scores_equal_the_plain_loop(model, tokenizer, batch_tokens):
    wanted = [plain_score(model, tokenizer, *item) for item in ITEMS]
    given, cut = brd.blind_scores(model, tokenizer, ITEMS, batch_tokens=batch_tokens)
    assert [len(row) for row in given] == [len(row) for row in wanted] and cut == 0
    for a, b in zip(given, wanted):
        assert a == pytest.approx(b, abs=1e-5)
    assert max(max(row) - min(row) for row in wanted) > 0.1             # the comparison compares something


def test_an_item_of_many_candidates_is_scored_in_parts(model, tokenizer, monkeypatch):
    """No batch has more rows x length than it may, and the time of a score grows with the candidates."""
    words, rows, real = [f"{i} trains to Oslo" for i in range(60)], [], brd.score_batch

    def score(model, batch):
        rows.append(sum(len(tails) for _, tails, _ in batch))
        return real(model, batch)
    (whole,), _ = brd.blind_scores(model, tokenizer, [(ITEMS[0][0], words)])
    monkeypatch.setattr(brd, "score_batch", score)
    (parts,), _ = brd.blind_scores(model, tokenizer, [(ITEMS[0][0], words)], batch_tokens=400)
    assert parts == pytest.approx(whole, abs=1e-5) and len(rows) > 3 and sum(rows) == 60
    begin = time.process_time()
    assert brd.tie_accuracy([0.0] * 30_000 + [1.0], {30_000}) == 1 and time.process_time() - begin < 1


def test_the_token_of_id_0_is_scored_like_any_other(model):
    """It is no padding, at the end of a candidate that is shorter than its neighbour or before it."""
    batch = [([5, 6], [[0], [7, 0, 0], [0, 8]], False), ([9], [[3, 0]], False)]
    for (context, tails, _), scores in zip(batch, brd.score_batch(model, batch)):
        for tail, score in zip(tails, scores):
            log_probs = log_probs_of(model, context + tail)
            wanted = [float(log_probs[len(context) - 1 + i, token]) for i, token in enumerate(tail)]
            assert score == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


def test_where_prompt_and_candidate_part(tokenizer):
    def split(prompt, candidates=("Oslo", "No way"), block_size=96):
        return brd.split_tokens(tokenizer, prompt, candidates, block_size)
    whole, tails, cut = split("did Anna go? A:")
    assert tokenizer.decode(whole) == "did Anna go? A:" and not cut
    assert [tokenizer.decode(tail) for tail in tails] == [" Oslo", " No way"]
    assert split("did Anna go? A: ") == (whole, tails, cut)             # the space moves to the candidate
    context, after, _ = split("did Anna go?\n", ["Oslo"])
    assert tokenizer.decode(context) == "did Anna go?\n" and tokenizer.decode(after[0]) == "Oslo"
    context, after, _ = split("", ["Oslo", "Rome"])
    assert context == [tokenizer.end] and tokenizer.decode(after[1]) == "Rome"
    least = max(map(len, tails))
    fits = len(whole) + least - 1                                       # the last token is never read
    assert split("did Anna go? A:", block_size=fits) == (whole, tails, False)
    assert split("did Anna go? A:", block_size=fits - 1) == (whole[1:], tails, True)
    assert split("did Anna go? A:", block_size=least) == (whole[-1:], tails, True)
    with pytest.raises(ValueError, match=f"a candidate of {least} tokens, but block_size is {least - 1}"):
        split("did Anna go? A:", block_size=least - 1)
    with pytest.raises(ValueError, match="empty candidate"):
        split("Who?", ["Anna", " "])


def test_a_candidate_that_melts_with_the_prompt_takes_the_whole_item_back():
    class Letters:                                # "a" + "b" is one token, every other letter is its own
        end = 0

        def encode_batch(self, texts):
            return [[ord(c) for c in text.replace(" b", "X").replace("aX", "Y")] for text in texts]
    context, tails, _ = brd.split_tokens(Letters(), "ca", ["b", "c"], 9)
    assert (context, tails) == ([99], [[ord("Y")], [97, 32, 99]])       # both are scored from the a on


def test_long_prompts_are_cut_on_the_left_and_counted(model, tokenizer):
    prompt = "So it goes. " * 60 + "Where did Anna go?"
    scores, cut = brd.blind_scores(model, tokenizer, [(prompt, ["Oslo", "No way"]), ITEMS[0]])
    context, tails, _ = brd.split_tokens(tokenizer, prompt, ["Oslo", "No way"], model.config.block_size)
    assert cut == 1 and len(context) + max(map(len, tails)) == model.config.block_size + 1
    assert context == tokenizer.encode(prompt)[-len(context):]
    log_probs = log_probs_of(model, (context + tails[0])[:-1])
    wanted = log_probs[len(context) - 1:].gather(1, torch.tensor(tails[0])[:, None]).mean()
    assert scores[0][0] == pytest.approx(float(wanted), abs=1e-5)


def test_a_tie_is_no_win_for_the_first():
    assert brd.tie_accuracy([-1.0, -2.0], {0}) == 1 and brd.tie_accuracy([-1.0, -2.0], {1}) == 0
    assert brd.tie_accuracy([-1.0, -1.0, -2.0, -1.0], {0}) == pytest.approx(1 / 3)
    assert brd.tie_accuracy([-1.0, -1.0, -2.0, -1.0], {0, 3}) == pytest.approx(2 / 3)
    assert brd.tie_accuracy([-1.0, -1.0, -2.0], {2}) == 0


def test_accuracy_chance_and_centred_by_hand(monkeypatch):
    """Yes scores higher everywhere, but relatively higher where it is right: raw .5, centred 1."""
    items = [(f"{i}", ["Yes", "No"], {i % 2}) for i in range(10)]
    rows = [[-1.0 - (i % 2), -3.0] for i in range(10)]
    monkeypatch.setattr(brd, "blind_scores", lambda model, tokenizer, given: (rows[:len(given)], 2))
    assert brd.eval_task(None, None, {"name": "t", "items": items}) == {
        "name": "t", "accuracy": 0.5, "se": pytest.approx((0.25 / 9) ** 0.5), "n": 10, "chance": 0.5,
        "majority": 0.5, "centred": 1.0, "cut": 2, "skipped": 0, "credits": [1.0, 0.0] * 5}
    different = [(prompt, [f"a{i}", f"b{i}"], right) for i, (prompt, _, right) in enumerate(items)]
    for some, centred in ((items[:4], None), (items[:5], 1.0), (different, None)):    # at least five each
        assert brd.eval_task(None, None, {"name": "t", "items": some})["centred"] == centred


def test_the_majority_of_a_task_is_the_candidate_that_is_right_most_often(monkeypatch):
    """Of those offered; where all are as often right it is chance, where each item has its own it is None."""
    def majority(items):
        rows = [[-1.0] * len(words) for _, words, _ in items]
        monkeypatch.setattr(brd, "blind_scores", lambda *_: (rows, 0))
        return brd.eval_task(None, None, {"name": "t", "items": items})["majority"]
    uneven = [("", ["Yes", "No"][::1 - 2 * (i % 2)], {i % 2 if i < 7 else 1 - i % 2}) for i in range(10)]
    assert majority(uneven) == 0.7
    offered = [("", ["a", "b"], {0})] * 6 + [("", ["b", "c"], {0})] * 5 + [("", ["b", "c"], {1})] * 4
    assert majority(offered) == pytest.approx(11 / 15)             # a, and b where there is no a
    assert majority([("", ["a", "b"], {i % 2}) for i in range(10)]) == 0.5
    assert majority([("", [f"a{i}", f"b{i}"], {0}) for i in range(10)]) is None


# --- figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, reference, score", [
    ("the red lamp", "a red old lamp", 4 / 7), ("Oslo", "oslo.", 1), ("Rome", "Oslo", 0), ("", "Oslo", 0),
    ("b a", "a b", 0.5), ("a b c d e", "b x d e y z w", 2 * 3 / 12), ("!", "!", 1), ("?", "!", 0),
    ("the lamp", "look the lamp", 4 / 5), ("a b a b", "b a", 4 / 6)])
def test_rouge_l_by_hand(text, reference, score):
    assert figures.rouge_l(text, reference) == pytest.approx(score)


def test_rouge_l_by_its_table_and_of_a_long_line():
    """Against the longest common subsequence by its definition; 100 kB take no minutes."""
    rng = random.Random(0)
    for n in range(300):
        a, b = ([rng.choice("abcd"[:1 + n % 4]) for _ in range(rng.randrange(1, 80))] for _ in "ab")
        longest = {(i, -1): 0 for i in range(-1, len(a))} | {(-1, j): 0 for j in range(len(b))}
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                apart = max(longest[i - 1, j], longest[i, j - 1])
                longest[i, j] = longest[i - 1, j - 1] + 1 if x == y else apart
        wanted = 2 * longest[len(a) - 1, len(b) - 1] / (len(a) + len(b))
        assert figures.rouge_l(" ".join(a), " ".join(b)) == wanted
    assert figures.rouge_l("w x y z " * 12_500, "x z " * 12_500) == 2 * 25_000 / 75_000


def test_the_error_of_a_ratio_agrees_with_the_bootstrap():
    mean_se, ratio_se = figures.mean_se, figures.ratio_se
    assert mean_se([1, 0, 0, 1]) == {"value": 0.5, "se": pytest.approx((1 / 3 / 4) ** 0.5), "n": 4}
    assert mean_se([]) == {"value": None, "se": None, "n": 0}
    assert mean_se([3]) == {"value": 3, "se": None, "n": 1}
    assert ratio_se([(1, 2, 2), (3, 4, 4), (0, 0, 0)]) == ratio_se([(1, 2, 2), (3, 4, 4)])
    rng, groups = random.Random(0), []
    for _ in range(200):
        n, skill = rng.randint(1, 9), rng.random()                      # answers in a paragraph hang together
        groups.append((sum(rng.random() < skill for _ in range(n)), n, n))
    draws = torch.tensor([ratio_se(rng.choices(groups, k=200))["value"] for _ in range(1000)])
    se = ratio_se(groups)["se"]
    assert se == pytest.approx(float(draws.std()), rel=0.1)
    apart = mean_se([1] * sum(a for a, _, _ in groups) + [0] * sum(b - a for a, b, _ in groups))["se"]
    assert se > 1.3 * apart           # what ignoring the paragraphs would hide


def test_a_paired_difference_is_a_literal_formula():
    """m / (m - 1) times the sum over units of the squared difference of their parts in the two errors."""
    rng, one, other = random.Random(0), [], []
    for _ in range(40):
        n, skill = rng.randint(0, 9), rng.random()                      # of a paragraph, for both students
        for groups in (one, other):
            right = sum(rng.random() < skill for _ in range(n))
            groups.append((right, n + rng.randint(0, 1), n))
    (x, y), (A, B) = ([sum(a for a, _, _ in g) / sum(b for _, b, _ in g) for g in (one, other)],
                      [sum(b for _, b, _ in g) for g in (one, other)])
    parts = [(a - x * b) / A - (c - y * d) / B for (a, b, _), (c, d, _) in zip(one, other)]
    wanted = math.sqrt(40 / 39 * sum(part ** 2 for part in parts))
    found = figures.paired_se(one, other)
    assert found == {"value": pytest.approx(x - y), "se": pytest.approx(wanted), "n": 40}
    apart = math.hypot(*(figures.ratio_se(groups)["se"] for groups in (one, other)))
    assert found["se"] < 0.9 * apart                                    # pairing is worth something
    ones, others = ([(rng.random(), 1, 1) for _ in range(7)] for _ in range(2))
    means = figures.mean_se([a - b for (a, _, _), (b, _, _) in zip(ones, others)])
    assert figures.paired_se(ones, others) == pytest.approx(means)
    assert figures.paired_se([(1, 2, 2)], [(1, 4, 4)]) == {"value": 0.25, "se": None, "n": 1}
    nothing = {"value": None, "se": None, "n": 0}
    assert figures.paired_se(one, [(0, 0, 0)] * 40) == figures.paired_se([], []) == nothing


def test_entity_f1_by_hand():
    sums = {}

    def add(found):
        for name, *amounts in found:
            sums[name] = [x + y for x, y in zip(sums.get(name, (0, 0, 0)), amounts)]
    text = " Anna: person, who cares\n Oslo: thing, goal\n Oslo: place, goal\n Oslo: place, goal\n nonsense\n"
    add(figures.count_entities(ANNA, text))       # of 2 wanted and 4 given, 2 agree: F1 = 2 * 2 / (2 + 4)
    assert sums["entity_f1"] == [2, 3, 2]
    assert sums["entity_f1.place"] == [1, 1.5, 1] and sums["entity_f1.thing"] == [0, 0.5, 0]
    assert sums["entity_lines"] == [4, 5, 5]
    add(figures.count_entities(ASIDE, " none\n"))
    assert sums["entity_f1"] == [2, 3, 2] and sums["entity_lines"] == [5, 6, 6]
    add(figures.count_entities({**ASIDE, "entities": NOT_LISTED}, " Anna: person, who cares\n"))
    assert sums["entity_f1"] == [2, 3, 2] and sums["entity_lines"] == [6, 7, 7]


# --- reading in free running ------------------------------------------------------------------------------


class Perfect:
    """Looks up what comes next in the reference documents, as a perfect reader would; `spoil` alters it."""

    def __init__(self, tokenizer, paragraphs, spoil=lambda text: text):
        self.tokenizer, self.spoil, self.calls, rng = tokenizer, spoil, [], random.Random(0)
        self.config = GPTConfig(n_vocab=tokenizer.n_vocab, block_size=4096)
        rendered = [render(p, behaviour, rng, forms=1) for p in paragraphs for behaviour in ("ner", "qra")]
        self.documents = [ids for ids, _ in encode_documents(rendered, tokenizer)]

    def prefill(self, prompts):
        """Hidden states are the prompts' numbers; the logits are even, so the behaviour asked for decides."""
        self.prompts = prompts
        return torch.arange(len(prompts))[:, None], None

    def logits(self, rows):
        out = torch.zeros(len(rows), self.tokenizer.n_vocab)
        for i, row in enumerate(rows):
            for d in self.documents:
                if d[:len(self.prompts[row])] == self.prompts[row]:
                    out[i, d[len(self.prompts[row])]] = 5.0
        return out

    def generate(self, prompts, max_new_tokens, temperature, stop):
        assert temperature == 0
        self.calls.append(len(prompts))
        news = []
        for prompt in prompts:
            found = [d[len(prompt):] for d in self.documents if d[:len(prompt)] == prompt]
            new = found[0][:max_new_tokens] if found else [self.tokenizer.end]
            end = next((i for i, t in enumerate(new) if t in stop), len(new) - 1) + 1
            said = self.spoil(self.tokenizer.decode(new[:end - 1]))
            news.append(self.tokenizer.encode(said) + new[end - 1:end])
        return news


@pytest.fixture
def plain_questions(monkeypatch):
    """Questions in the one form that the perfect reader knows."""
    monkeypatch.setattr(brd, "question_texts", lambda question, forms, rng: question_texts(question, 1, rng))


def test_the_first_token_decides_the_behaviour(model, tokenizer):
    """ner: a word of the sentence, a type or none; qra: anything else but the document end."""
    texts = ["Anna took a train to Oslo.", "She was happy at Opel."]
    prompts = [tokenizer.encode(text) + [tokenizer.sep] for text in texts]
    starts = [{tokenizer.encode(" " + word)[0] for word in [*text.split(), *TYPES, "none"]} for text in texts]
    log_probs = [log_probs_of(model, prompt)[-1] for prompt in prompts]
    for behaviour in ("ner", "qra"):
        drawing = {"temperature": 1.0, "top_p": 0.9, "generator": torch.Generator().manual_seed(0)}
        drawn = [brd.first_tokens(model, tokenizer, prompts, texts, behaviour, **drawing) for _ in range(100)]
        likeliest = brd.first_tokens(model, tokenizer, prompts, texts, behaviour, temperature=0)
        for row, allowed in enumerate(starts):
            others = set(range(tokenizer.n_vocab)) - allowed - {tokenizer.end}
            ids = allowed if behaviour == "ner" else others
            assert likeliest[row] == max(ids, key=lambda i: float(log_probs[row][i]))
            assert {tokens[row] for tokens in drawn} <= ids and len({tokens[row] for tokens in drawn}) > 1


def test_quotes_and_brackets_are_no_part_of_a_first_word(model, tokenizer, monkeypatch):
    """In ("Oslo) the entity is Oslo, and a quotation mark that stands alone is itself."""
    asked, prompts, texts = [], [[7, tokenizer.sep]], ['("Oslo) \'[{tall ( "']
    monkeypatch.setattr(tokenizer, "encode_batch", lambda texts: asked.append(texts) or [[5]] * len(texts))
    assert brd.first_tokens(model, tokenizer, prompts, texts, "ner", temperature=0) == [5]
    assert asked == [[" none", *(f" {name}" for name in TYPES), " Oslo)", " tall", " (", ' "']]


def test_a_perfect_reader_has_a_perfect_score(tokenizer, plain_questions):
    paragraphs = [PARAGRAPH, OTHER]
    reader = Perfect(tokenizer, paragraphs)
    oracle = {q["question"]: q["answer"] for record in PARAGRAPH for q in record["questions"]}
    result = brd.eval_reading(reader, tokenizer, paragraphs, oracle=lambda p, k: oracle)
    assert {name: figure["value"] for name, figure in result.items() if figure["value"] != 1.0} == {
        f"entity_f1.{name}": None for name in ("thing", "day", "job", "feeling")}
    assert {name: figure["n"] for name, figure in result.items() if figure["n"]} == {
        "entity_f1": 6, "entity_f1.person": 2, "entity_f1.place": 3, "entity_f1.organisation": 1,
        "entity_lines": 7, "answer.all": 6, "answer.wh": 2, "answer.yes_no": 2, "answer.no": 2,
        "answer.attitude": 1, "answer.structure": 1, "rouge_l": 6, "raised": 6, "raised.known": 6,
        "raised.right": 6}
    assert all(figure["se"] in (None, 0.0) for figure in result.values())
    assert {name: figure["groups"] for name, figure in result.items() if "groups" in figure} == {
        "entity_f1": [[4, 4, 4], [2, 2, 2]], "answer.wh": [[1, 1, 1], [1, 1, 1]],
        "answer.yes_no": [[1, 1, 1], [1, 1, 1]]}
    assert {name: figure["majority"] for name, figure in result.items() if "majority" in figure} == {
        "entity_f1": 3 / 6, "answer.all": 2 / 6, "answer.wh": 1.0, "answer.yes_no": 1.0, "answer.no": 1.0,
        "answer.structure": 1.0, "answer.attitude": 1.0}
    # one call a sentence for ner and raised questions, one a question index for answers
    assert reader.calls == [2, 1, 1] * 2 + [2, 2, 1, 1]
    assert brd.glance(reader, tokenizer, paragraphs) == dict.fromkeys(
        ("entity_f1", "answer.wh", "answer.yes_no", "answer.attitude"), 1.0)
    assert brd.free_reading(reader, tokenizer, [], "ner") == []


@pytest.mark.parametrize("kind, answer, wanted", [
    ("content", "Oslo", ["all", "wh"]), ("content", "Yes", ["all", "yes_no"]),
    ("content", "No", ["all", "yes_no", "no"]), ("structure", "Anna", ["all", "structure"]),
    ("attitude", "neutral", ["all", "attitude"]), ("structure", "No", ["all", "structure"])])
def test_an_answer_counts_for_the_figures_of_its_kind(kind, answer, wanted):
    """wh, yes_no and no are of content alone."""
    item = {"kind": kind, "question": "Who?", "answer": answer}
    assert figures.answer_figures(item) == [f"answer.{name}" for name in wanted]
    counted = list(figures.count_answer(item, "Oslo"))
    assert [name for name, *_ in counted] == [f"answer.{name}" for name in wanted] + ["rouge_l"]
    assert {right for _, right, _, n in counted} == {answer == "Oslo"}
    records = [{"entities": (), "questions": [item, item, {**item, "answer": f"not {answer}"}]}]
    share = figures.majorities(records)["answer.all"]["majority"]
    assert share == pytest.approx(2 / 3)


def test_fresh_text_is_read_in_three_places(tokenizer, monkeypatch):
    """The oracle knows what is asked; of two people who did alike a student raises no questions."""
    given = []

    def eval_reading(model, tokenizer, records, oracle, own_questions):
        answers = [oracle(p, len(some) - 1) for p, some in enumerate(records)]
        assert all(known[item["question"]] == item["answer"] for known, some in zip(answers, records)
                   for item in some[-1]["questions"])
        given.append((len(records), {len(some) for some in records}, own_questions))
        return len(given)
    monkeypatch.setattr(brd, "eval_reading", eval_reading)
    assert brd.eval_fresh_text("student", tokenizer, 30) == {"single": 1, "paragraph": 2, "alike": 3}
    assert given == [(30, {1}, True), (30, {2, 3, 4}, True), (30, {2}, False)]


def test_its_own_mistakes_stay_in_the_context(tokenizer, plain_questions):
    """A reader that says Rome for Oslo is lost afterwards: the prompt is no longer one that it knows."""
    reader = Perfect(tokenizer, [PARAGRAPH], spoil=lambda text: text.replace("Oslo", "Rome"))
    answers, = brd.free_answers(reader, tokenizer, [PARAGRAPH], random.Random(0))
    assert [answer for _, answer in answers] == ["Rome", "", "", ""]
    known = {"Where did Anna go?": "Oslo"}
    result = brd.eval_reading(reader, tokenizer, [PARAGRAPH, OTHER], lambda p, k: known)
    value = {name: figure["value"] for name, figure in result.items()}
    assert value["answer.all"] == value["raised.right"] == value["entity_f1.place"] == 0
    assert value["raised.known"] > 0 and value["entity_f1.person"] > 0


def test_a_random_student_is_read_without_fail(model, tokenizer):
    """Whatever it says, also in rows longer than the block, gives figures from 0 to 1, the same twice."""
    paragraphs = [PARAGRAPH * 2, OTHER, PARAGRAPH[1:]]
    once, twice = (brd.eval_reading(model, tokenizer, paragraphs, lambda p, k: {}) for _ in range(2))
    assert once == twice and once["answer.all"]["n"] == 8 + 2 + 2 and once["entity_f1"]["n"] == 8 + 2 + 2
    assert all(figure["value"] is None or 0 <= figure["value"] <= 1 for figure in once.values())


# --- a student beside its teacher -------------------------------------------------------------------------


def test_temperature_reaches_every_draw(model, tokenizer, monkeypatch):
    """Of the first token and of the rest: at 1 the readings differ from draw to draw."""
    sentences, given, first = [["Anna took a train.", "So it goes."]], [], brd.first_tokens

    def first_tokens(*arguments, **drawing):
        given.append(drawing["temperature"])
        return first(*arguments, **drawing)

    def generate(prompts, max_new, temperature, stop):
        given.append(temperature)
        return GPT.generate(model, prompts, max_new, temperature=temperature, stop=stop)
    monkeypatch.setattr(brd, "first_tokens", first_tokens)
    monkeypatch.setattr(model, "generate", generate, raising=False)
    greedy = [brd.free_reading(model, tokenizer, sentences, "qra") for _ in range(2)]
    assert greedy[0] == greedy[1] and given == [0] * 6
    drawn = [brd.free_reading(model, tokenizer, sentences, "qra", temperature=1) for _ in range(2)]
    assert drawn[0] != drawn[1] and given[6:] == [1] * 6


def drawn_paragraphs(n):
    rng = random.Random("own questions")
    return [world.draw_paragraph(rng, split="test") for _ in range(n)]


def test_own_questions_are_a_literal_loop(tokenizer, monkeypatch):
    """Right, right twice, wrong, unknown and nothing at all; text that a short teacher sees the end of."""
    rng, texts, asked = random.Random(0), [], []
    for paragraph in drawn_paragraphs(9):
        texts.append([])
        for k in range(len(paragraph.sentences)):
            known = rng.sample(sorted(world.all_answers(paragraph, k).items()), 3)
            lines = [f" {question} {answer}\n" for question, answer in known]
            lines += [lines[0], f" {known[1][0]} wrong\n", " Who is it? Nobody\n", " no question\n"]
            texts[-1].append("".join(rng.sample(lines, rng.randint(0, 5))))

    def free_reading(model, tokenizer, sentences, behaviour, temperature):
        asked.append((model, sentences, behaviour, temperature))
        return texts
    monkeypatch.setattr(brd, "free_reading", free_reading)
    torch.manual_seed(0)
    teacher = GPT(GPTConfig(n_vocab=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=16, block_size=448))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    wanted, lengths = {"right": [], "distinct": [], "nats": []}, []
    for paragraph, readings in zip(drawn_paragraphs(9), texts):
        ids, own, n_lines, right, different = [], set(), 0, 0, 0
        for k, (sentence, text) in enumerate(zip(paragraph.sentences, readings)):
            good, known = [], world.all_answers(paragraph, k)
            for line in text.splitlines():
                question, _, answer = line.strip().partition("?")
                n_lines += 1
                if known.get(question + "?") == answer.strip():
                    good.append(question)
            right, different = right + len(good), different + len(set(good))
            ids += tokenizer.encode(sentence if k == 0 else " " + sentence) + [tokenizer.sep]
            start = len(ids)
            ids += tokenizer.encode(text) + [tokenizer.sep]
            own |= set(range(start, len(ids)))
        cut = max(0, len(ids) - 449)
        log_probs = log_probs_of(teacher, ids[cut:-1])
        nats = [-float(log_probs[t - cut - 1, ids[t]]) for t in sorted(own) if t > cut]
        wanted["right"].append((right, n_lines, n_lines))
        wanted["distinct"].append((different, len(readings), len(readings)))
        wanted["nats"].append((sum(nats), len(nats), len(nats)))
        lengths.append(len(ids))
    found = brd.eval_own_questions("student", tokenizer, teacher, 9)
    assert list(found) == list(wanted) and min(lengths) < 449 < max(lengths)
    for name, groups in wanted.items():
        assert [list(group) for group in found[name]] == [pytest.approx(group, rel=1e-4) for group in groups]
    sums = {name: [sum(column) for column in zip(*groups)] for name, groups in wanted.items()}
    assert 0 < sums["distinct"][0] < sums["right"][0] < sums["right"][1]
    assert asked == [("student", [p.sentences for p in drawn_paragraphs(9)], "qra", 1)]


def test_own_questions_of_a_random_student(model, tokenizer):
    """In rows that are cut, the same twice, of tokens that it draws itself."""
    once, twice = (brd.eval_own_questions(model, tokenizer, model, 3) for _ in range(2))
    assert once == twice and all(n > 0 for _, _, n in once["nats"]) and len(once["right"]) == 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """40 documents, two batches of eval_sets; two of three tokens have a set, nine of ten are in it."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(3)
    writer = CacheWriter(folder, n_vocab=50, tokenizer_hash="", p=0.95, k_cap=8, temperature=1.0,
                         teacher={}, made_by="", roles=ROLES)
    for n in rng.integers(2, 12, 40):
        tokens, roles, sets = rng.integers(0, 50, n).tolist(), rng.integers(0, 5, n).tolist(), [None] * n
        for t in range(1, n):
            if rng.random() < 0.67:
                probs = np.sort(rng.dirichlet(np.ones(9)))[::-1][:rng.integers(1, 9)]
                ids = rng.permutation(50)[:len(probs)]
                tokens[t], sets[t] = int(ids[0]) if rng.random() < 0.9 else tokens[t], (ids, np.log(probs))
        writer.add(tokens, roles, sets)
    writer.close()
    return TeacherCache(folder)


@pytest.mark.parametrize("p, gamma, begin", [(0.95, 0.99, 0), (0.5, 0.6, 0), (0.95, 0.99, 3)])
def test_sets_are_a_dense_softmax_and_least_squares(cache, p, gamma, begin):
    """Position by position where the residual is known, v(s) fitted by numpy to all of them at once."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_vocab=50, n_layer=1, n_head=2, n_embd=16, block_size=16))
    cache = cache.part(begin, 40)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    units, outside, residual, change = [], [], [], []
    for d in range(len(cache)):
        tokens, roles, counts, ids, log_probs = cache.document(d)
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([tokens.tolist()]))[0]
            pi, states = model.logits(hidden).double().softmax(-1).numpy(), hidden.double().numpy()
        ends, sets = np.cumsum(counts), []
        for t in range(len(tokens)):                # the nucleus of p, inside the one that was cached
            kept = {}
            for k in range(ends[t] - counts[t], ends[t]):
                if sum(kept.values()) < p - 1e-6:
                    kept[int(ids[k])] = math.exp(float(log_probs[k]))
            sets.append(kept)
        for t in range(1, len(tokens)):
            is_end, follows = ROLES[roles[t]] in ("sep", "end"), t + 1 < len(tokens) and sets[t + 1]
            if tokens[t] in sets[t] and (is_end or follows):
                inside = sum(pi[t - 1][i] for i in sets[t])
                then = 0.0 if is_end else math.log(sum(pi[t][i] for i in sets[t + 1]))
                later = np.zeros(17) if is_end else np.append(states[t], 1.0)
                units.append(d)
                outside.append(1 - inside)
                residual.append(math.log(pi[t - 1][tokens[t]]) - gamma * then)
                change.append(np.append(states[t - 1], 1.0) - gamma * later)
    v, *_ = np.linalg.lstsq(np.array(change), -np.array(residual), rcond=1e-5)
    square = (np.array(residual) + np.array(change) @ v) ** 2
    found = brd.eval_sets(model, cache, p, gamma)
    assert list(found) == ["outside", "residual"] and len(units) > 80
    assert square.mean() < 0.9 * np.square(residual).mean() and len(set(units)) < len(cache)
    for name, values in (("outside", outside), ("residual", square)):
        of = [[value for unit, value in zip(units, values) if unit == d] for d in range(len(cache))]
        wanted = [pytest.approx((sum(some), len(some), len(some)), rel=1e-3, abs=1e-4) for some in of]
        assert [tuple(group) for group in found[name]] == wanted


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    model.save(folder)
    tokenizer.save(folder)
    return str(folder)


def test_read_marks_entities_and_shows_questions(folder, monkeypatch, capsys):
    said = {"ner": [[" Anna: person, traveller\n nonsense\n", " none\n"]],
            "qra": [[" Q: Who left? A: Anna\n", " Is it \x1b[31mred? No\n Did"]]}
    monkeypatch.setattr(brd, "free_reading", lambda model, tokenizer, paragraphs, behaviour: said[behaviour])
    brd.main(["read", folder, "Anna left.  So it\ngoes."])
    assert capsys.readouterr().out.splitlines() == [
        "[Anna|person] left.", "    Who left? Anna", "So it goes.", r"    Is it \x1b[31mred? No"]


def test_read_takes_lines_of_a_pipe_and_gives_json(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Anna left.\n\nBen went to Oslo.\n"))
    brd.main(["read", folder, "--json"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in records] == ["Anna left.", "Ben went to Oslo."]
    assert set(records[0]) == {"text", "entities", "questions"}


def test_a_question_is_answered_after_the_last_sentence(tokenizer):
    records = [{**record, "questions": []} for record in PARAGRAPH[:1]]
    reader = Perfect(tokenizer, [PARAGRAPH])
    assert read.answer(reader, tokenizer, records, "Where did Anna go?") == "Oslo"


def test_at_the_prompt_a_question_is_about_the_text_above(folder, capsys, monkeypatch):
    """Piped in, it is a text as any other."""
    def answered(model, tokenizer, records, question):
        return f"{records[-1]['text']} / {question.strip()}"
    monkeypatch.setattr(read, "answer", answered)
    for at_prompt, answers in ((True, 2), (False, 0)):
        lines = io.StringIO("Who?\nAnna left. So did Ben.\nWho left?\n\nWhen? \n")
        lines.isatty = lambda: at_prompt
        monkeypatch.setattr(sys, "stdin", lines)
        brd.main(["read", folder])
        shown = capsys.readouterr().out.splitlines()
        assert ("So did Ben. / Who left?" in shown) + ("So did Ben. / When?" in shown) == answers


def test_a_question_needs_no_mark(tokenizer):
    records = [{**record, "questions": []} for record in PARAGRAPH[:1]]
    assert read.answer(Perfect(tokenizer, [PARAGRAPH]), tokenizer, records, " Where did Anna go\n") == "Oslo"


def test_a_reading_that_is_worth_nothing_is_told(tokenizer):
    read_well = [{"text": "Anna left.", "entities": [1], "questions": []}]
    text, strange = "Anna took a train to Oslo.", "Xylophones zigzag quizzically."
    assert read.doubts(tokenizer, text, read_well) == ""
    nothing = [{"text": text, "entities": [], "questions": []}]
    assert read.doubts(tokenizer, text, nothing).startswith("no entity or question found; a student")
    assert read.doubts(tokenizer, strange, read_well).startswith("few of these words were learnt")


@pytest.mark.parametrize("arguments, message", [
    (["read", "FOLDER", "  "], "no text to read"), (["read", "nowhere", "Anna left."], "nowhere"),
    (["test", "FOLDER", "nowhere.json"], "nowhere.json"),
    (["taste"], "expected one of read, test, annotate")])
def test_what_cannot_be_read_is_told(folder, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        brd.main([folder if argument == "FOLDER" else argument for argument in arguments])
