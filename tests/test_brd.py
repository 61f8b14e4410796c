"""Basic Reading Distillation: the blind score, figures with errors, reading in free running, the commands."""
import io
import json
import random
import sys

import pytest
import torch

import brd
from data import figures
from data.annotations import TYPES, question_texts
from data.documents import encode_documents, render
from data.tokenizer import train_bpe
from model import GPT, GPTConfig
from test_annotations import ANNA, ASIDE, OTHER, PARAGRAPH


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([record["text"] for record in PARAGRAPH] * 20 + ["Q: Where did Anna go? A: Oslo\n"] * 20, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_vocab=tokenizer.n_vocab, n_layer=2, n_head=2, n_embd=16, block_size=96))
    for parameter in model.parameters():          # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model


# --- the blind score ---------------------------------------------------------------------------------------------------

def plain_score(model, tokenizer, prompt, candidates):
    """One candidate at a time, without a cache: the definition, as literally as it can be written."""
    own, joined = tokenizer.encode(prompt), [tokenizer.encode(f"{prompt} {candidate}") for candidate in candidates]
    shared = 0
    while shared < len(own) and all(len(ids) > shared and ids[shared] == own[shared] for ids in joined):
        shared += 1
    scores = []
    for ids in joined:
        ids, start = (ids, shared) if shared else ([tokenizer.end] + ids, 1)
        log_probs = torch.log_softmax(model.logits(model.hidden(torch.tensor([ids]))), -1)[0]
        scores.append(sum(float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids))) / (len(ids) - start))
    return scores


ITEMS = [("Anna took a train to Oslo. Q: Where did Anna go? A:", ["Oslo", "Rome", "a house by the sea", "to Oslo"]),
         ("So", ["it goes.", "it"]), ("Where did Anna go?", ["Oslo"]),
         ("Anna took a train to Oslo. Q: Where did Anna stay? A:", ["No", "Yes"])] + [("Q: Who", ["is Anna", "goes"])] * 3


@pytest.mark.parametrize("batch_tokens", [1, 150, 16384])
def test_blind_scores_equal_the_plain_loop(model, tokenizer, batch_tokens):
    with torch.no_grad():
        wanted = [plain_score(model, tokenizer, *item) for item in ITEMS]
    given = brd.blind_scores(model, tokenizer, ITEMS, batch_tokens=batch_tokens)
    assert [len(row) for row in given] == [len(row) for row in wanted]
    for a, b in zip(given, wanted):
        assert a == pytest.approx(b, abs=1e-5)
    assert max(max(row) - min(row) for row in wanted) > 0.1                  # the comparison compares something


def test_the_token_of_id_0_is_scored_like_any_other(model):
    """It is no padding, at the end of a candidate that is shorter than its neighbour or before it."""
    batch = [([5, 6], [[0], [7, 0, 0], [0, 8]], False), ([9], [[3, 0]], False)]
    for (context, tails, _), scores in zip(batch, brd.score_batch(model, batch)):
        for tail, score in zip(tails, scores):
            with torch.no_grad():
                log_probs = torch.log_softmax(model.logits(model.hidden(torch.tensor([context + tail]))), -1)[0]
            wanted = [float(log_probs[len(context) - 1 + i, token]) for i, token in enumerate(tail)]
            assert score == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


def test_where_prompt_and_candidate_part(tokenizer):
    context, tails, cut = brd.split_tokens(tokenizer, "did Anna go? A:", ["Oslo", "No way"], 96)
    assert tokenizer.decode(context) == "did Anna go? A:" and not cut
    assert [tokenizer.decode(tail) for tail in tails] == [" Oslo", " No way"]
    assert brd.split_tokens(tokenizer, "did Anna go? A: ", ["Oslo", "No way"], 96) == (context, tails, cut)   # space moves
    context, tails, _ = brd.split_tokens(tokenizer, "did Anna go?\n", ["Oslo"], 96)
    assert tokenizer.decode(context) == "did Anna go?\n" and tokenizer.decode(tails[0]) == "Oslo"
    context, tails, _ = brd.split_tokens(tokenizer, "", ["Oslo", "Rome"], 96)
    assert context == [tokenizer.end] and tokenizer.decode(tails[1]) == "Rome"
    whole, tails, _ = brd.split_tokens(tokenizer, "did Anna go? A:", ["Oslo", "No way"], 96)
    fits = len(whole) + max(map(len, tails)) - 1                # the last token is predicted, and never read
    assert brd.split_tokens(tokenizer, "did Anna go? A:", ["Oslo", "No way"], fits) == (whole, tails, False)
    assert brd.split_tokens(tokenizer, "did Anna go? A:", ["Oslo", "No way"], fits - 1) == (whole[1:], tails, True)
    least = max(map(len, tails))
    assert brd.split_tokens(tokenizer, "did Anna go? A:", ["Oslo", "No way"], least) == (whole[-1:], tails, True)
    with pytest.raises(ValueError, match=f"a candidate of {least} tokens, but block_size is {least - 1}"):
        brd.split_tokens(tokenizer, "did Anna go? A:", ["Oslo", "No way"], least - 1)
    with pytest.raises(ValueError, match="empty candidate"):
        brd.split_tokens(tokenizer, "Who?", ["Anna", " "], 96)
    with pytest.raises(ValueError, match="block_size is 96"):
        brd.split_tokens(tokenizer, "Who?", ["x " * 200], 96)


def test_a_candidate_that_melts_with_the_prompt_takes_the_whole_item_back():
    class Letters:                                # "a" + "b" is one token, every other letter is its own
        end = 0

        def encode_batch(self, texts):
            return [[ord(c) for c in text.replace("ab", "X")] for text in texts]
    context, tails, _ = brd.split_tokens(Letters(), "c\ta", ["c"], 9)
    assert (context, tails) == ([99, 9, 97], [[32, 99]])
    context, tails, _ = brd.split_tokens(Letters(), "\n", ["a"], 9)
    assert (context, tails) == ([10], [[97]])
    Letters.encode_batch = lambda self, texts: [[ord(c) for c in text.replace(" b", "X").replace("aX", "Y")] for text in texts]
    context, tails, _ = brd.split_tokens(Letters(), "ca", ["b", "c"], 9)
    assert (context, tails) == ([99], [[ord("Y")], [97, 32, 99]])            # both are scored from the a on


def test_long_prompts_are_cut_on_the_left_and_counted(model, tokenizer):
    prompt, counts = "So it goes. " * 60 + "Where did Anna go?", {}
    scores = brd.blind_scores(model, tokenizer, [(prompt, ["Oslo", "No way"]), ITEMS[0]], counts=counts)
    assert counts == {"cut": 1}
    context, tails, _ = brd.split_tokens(tokenizer, prompt, ["Oslo", "No way"], model.config.block_size)
    assert len(context) + max(map(len, tails)) == model.config.block_size + 1
    assert context == tokenizer.encode(prompt)[-len(context):]
    ids = torch.tensor([context + tails[0]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model.logits(model.hidden(ids[:, :-1])), -1)[0]
    wanted = log_probs[len(context) - 1:].gather(1, torch.tensor(tails[0])[:, None]).mean()
    assert scores[0][0] == pytest.approx(float(wanted), abs=1e-5)


def test_a_tie_is_no_win_for_the_first():
    assert brd.credit([-1.0, -2.0], {0}) == 1 and brd.credit([-1.0, -2.0], {1}) == 0
    assert brd.credit([-1.0, -1.0, -2.0, -1.0], {0}) == pytest.approx(1 / 3)
    assert brd.credit([-1.0, -1.0, -2.0, -1.0], {0, 3}) == pytest.approx(2 / 3)
    assert brd.credit([-1.0, -1.0, -2.0], {2}) == 0


def test_accuracy_chance_and_centred_by_hand(monkeypatch):
    """Yes scores higher everywhere, but relatively higher where it is right: raw .5, centred 1."""
    items = [(f"{i}", ["Yes", "No"], {i % 2}) for i in range(10)]
    rows = [[-1.0 - (i % 2), -3.0] for i in range(10)]
    monkeypatch.setattr(brd, "blind_scores", lambda *a, counts, **k: counts.update(cut=2) or rows)
    result = brd.test_task(None, None, {"name": "t", "items": items})
    assert result == {"name": "t", "accuracy": 0.5, "se": pytest.approx((0.25 * 10 / 9 / 10) ** 0.5), "n": 10,
                      "chance": 0.5, "centred": 1.0, "cut": 2, "skipped": 0}
    few = lambda n: brd.test_task(None, None, {"name": "t", "items": items[:n]})["centred"]             # noqa: E731
    monkeypatch.setattr(brd, "blind_scores", lambda model, tokenizer, given, counts: counts.update(cut=0) or rows[:len(given)])
    assert few(4) is None and few(5) == 1.0                     # each candidate is seen five times, or its mean says nothing
    different = [(prompt, [f"a{i}", f"b{i}"], right) for i, (prompt, _, right) in enumerate(items)]
    assert brd.test_task(None, None, {"name": "t", "items": different})["centred"] is None


# --- reading in free running -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, reference, score", [
    ("the red lamp", "a red old lamp", 4 / 7), ("Oslo", "oslo.", 1), ("Rome", "Oslo", 0), ("", "Oslo", 0), ("b a", "a b", 0.5),
    ("a b c d e", "b x d e y z w", 2 * 3 / 12), ("!", "!", 1), ("?", "!", 0),
    ("the lamp over there", "the lamp", 2 * 2 / 6), ("the lamp", "look the lamp", 4 / 5), ("a b a b", "b a", 4 / 6)])
def test_rouge_l_by_hand(text, reference, score):
    assert brd.rouge_l(text, reference) == pytest.approx(score)


def test_means_and_their_errors():
    assert brd.mean_se([1, 0, 0, 1]) == {"value": 0.5, "se": pytest.approx((1 / 3 / 4) ** 0.5), "n": 4}
    assert brd.mean_se([]) == {"value": None, "se": None, "n": 0} and brd.mean_se([3]) == {"value": 3, "se": None, "n": 1}
    assert brd.ratio_se([(1, 2, 2), (3, 4, 4), (0, 0, 0)]) == brd.ratio_se([(1, 2, 2), (3, 4, 4)])


def test_the_error_of_a_ratio_agrees_with_the_bootstrap():
    rng = random.Random(0)
    groups = []
    for _ in range(200):
        n, skill = rng.randint(1, 9), rng.random()                            # answers in a paragraph hang together
        groups.append((sum(rng.random() < skill for _ in range(n)), n, n))
    draws = torch.tensor([brd.ratio_se(rng.choices(groups, k=200))["value"] for _ in range(2000)])
    se = brd.ratio_se(groups)["se"]
    assert se == pytest.approx(float(draws.std()), rel=0.1)
    apart = brd.mean_se([1] * sum(a for a, _, _ in groups) + [0] * sum(b - a for a, b, _ in groups))["se"]
    assert se > 1.3 * apart                                                   # what ignoring the paragraphs would hide


def test_entity_f1_by_hand():
    sums = {}

    def add(figures):
        for name, *amounts in figures:
            sums[name] = [x + y for x, y in zip(sums.get(name, (0, 0, 0)), amounts)]
    text = " Anna: person, who cares\n Oslo: thing, goal\n Oslo: place, goal\n Oslo: place, goal\n nonsense\n"
    add(brd.count_entities(ANNA, text))                # of 2 wanted and 4 given, 2 agree: F1 = 2 * 2 / (2 + 4)
    assert sums["entity_f1"] == [2, 3, 2]
    assert sums["entity_f1.place"] == [1, 1.5, 1] and sums["entity_f1.thing"] == [0, 0.5, 0]
    assert sums["entity_lines"] == [4, 5, 5]
    add(brd.count_entities(ASIDE, " none\n"))
    assert sums["entity_f1"] == [2, 3, 2] and sums["entity_lines"] == [5, 6, 6]


class Perfect:
    """Looks up what comes next in the reference documents, as a perfect reader would; `spoil` alters what it says."""

    def __init__(self, tokenizer, paragraphs, spoil=lambda text: text):
        self.tokenizer, self.spoil, self.calls = tokenizer, spoil, []
        self.config = GPTConfig(n_vocab=tokenizer.n_vocab, block_size=4096)
        rng = random.Random(0)
        self.documents = [self.shape(brd.render(p, copy, rng, forms=1)) for p in paragraphs for copy in ("ner", "qra")]

    def shape(self, pieces):
        return brd.encode_documents([pieces], self.tokenizer)[0][0]

    def next(self, prompt):
        found = [d[len(prompt):] for d in self.documents if d[:len(prompt)] == prompt]
        return found[0] if found else [self.tokenizer.end]

    def start(self, prompts):
        """Hidden states are the prompts' numbers; the logits are even, so the copy asked for decides."""
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
            new = self.next(prompt)[:max_new_tokens]
            end = next((i for i, t in enumerate(new) if t in stop), len(new) - 1) + 1
            news.append(self.tokenizer.encode(self.spoil(self.tokenizer.decode(new[:end - 1]))) + new[end - 1:end])
        return news


def test_the_first_token_decides_the_copy(model, tokenizer):
    """ner: a word of the sentence, a type or none; qra: anything else but the document end. Drawn, or the likeliest."""
    texts = ["Anna took a train to Oslo.", "She was happy at Opel."]
    prompts = [tokenizer.encode(text) + [tokenizer.sep] for text in texts]
    starts = [{tokenizer.encode(" " + word)[0] for word in text.split() + list(TYPES) + ["none"]} for text in texts]
    with torch.no_grad():
        logits = [model.logits(model.hidden(torch.tensor([prompt])))[0, -1] for prompt in prompts]
    for copy in ("ner", "qra"):
        generator, drawn = torch.Generator().manual_seed(0), []
        for _ in range(200):
            drawn.append(brd.first_tokens(model, tokenizer, prompts, texts, copy, 1.0, 0.9, generator))
        likeliest = brd.first_tokens(model, tokenizer, prompts, texts, copy)
        for row, allowed in enumerate(starts):
            ids = allowed if copy == "ner" else set(range(tokenizer.n_vocab)) - allowed - {tokenizer.end}
            assert likeliest[row] == max(ids, key=lambda i: float(logits[row][i]))
            assert {tokens[row] for tokens in drawn} <= ids and len({tokens[row] for tokens in drawn}) > 1


def test_quotes_and_brackets_are_no_part_of_a_first_word(model, tokenizer, monkeypatch):
    """In ("Oslo) the entity is Oslo, and a quotation mark that stands alone is itself."""
    asked = []
    monkeypatch.setattr(tokenizer, "encode_batch", lambda texts: asked.append(texts) or [[5]] * len(texts))
    assert brd.first_tokens(model, tokenizer, [[7, tokenizer.sep]], ['("Oslo) \'[{tall ( "'], "ner") == [5]
    assert asked == [[" none", *(f" {name}" for name in TYPES), " Oslo)", " tall", " (", ' "']]


def test_nothing_to_read_gives_nothing(model, tokenizer):
    assert brd.free_reading(model, tokenizer, [], "ner") == brd.free_answers(model, tokenizer, [], random.Random(0), 1) == []


def test_a_perfect_reader_has_a_perfect_score(tokenizer):
    paragraphs = [PARAGRAPH, OTHER]
    reader = Perfect(tokenizer, paragraphs)
    oracle = {q["question"]: q["answer"] for record in PARAGRAPH for q in record["questions"]}
    result = brd.test_reading(reader, tokenizer, paragraphs, forms=1, oracle=lambda p, k: oracle)
    assert {name: figure["value"] for name, figure in result.items() if figure["value"] != 1.0} == {
        f"entity_f1.{name}": None for name in ("thing", "day", "job", "feeling")}
    counts = {name: figure["n"] for name, figure in result.items() if figure["n"]}
    assert counts == {"entity_f1": 6, "entity_f1.person": 2, "entity_f1.place": 3, "entity_f1.organisation": 1, "entity_lines": 7,
                      "answer.all": 6, "answer.wh": 3, "answer.yes_no": 2, "answer.attitude": 1, "answer.structure": 1,
                      "rouge_l": 6, "raised": 6, "raised.known": 6, "raised.right": 6}
    assert all(figure["se"] in (None, 0.0) for figure in result.values())
    # one call a sentence for ner and raised questions, one a question index for answers
    assert reader.calls == [2, 1, 1] * 2 + [2, 2, 1, 1]


def test_its_own_mistakes_stay_in_the_context(tokenizer):
    """A reader that says Rome for Oslo is lost afterwards: the prompt is no longer one that it knows."""
    reader = Perfect(tokenizer, [PARAGRAPH], spoil=lambda text: text.replace("Oslo", "Rome"))
    answers, = brd.free_answers(reader, tokenizer, [PARAGRAPH], random.Random(0), forms=1)
    assert [answer for _, answer in answers] == ["Rome", "", "", ""]
    result = brd.test_reading(reader, tokenizer, [PARAGRAPH, OTHER], forms=1, oracle=lambda p, k: {"Where did Anna go?": "Oslo"})
    assert result["answer.all"]["value"] == 0 and result["raised.known"]["value"] > 0 == result["raised.right"]["value"]
    assert 0 < result["entity_f1.person"]["value"] and result["entity_f1.place"]["value"] == 0


def test_a_random_student_is_read_without_fail(model, tokenizer):
    """Whatever it says, rows longer than the block included, gives figures between 0 and 1, and the same twice."""
    paragraphs = [PARAGRAPH * 2, OTHER, PARAGRAPH[1:]]
    once, twice = (brd.test_reading(model, tokenizer, paragraphs, seed=3, oracle=lambda p, k: {}) for _ in range(2))
    assert once == twice and once["answer.all"]["n"] == 8 + 2 + 2 and once["entity_f1"]["n"] == 8 + 2 + 2
    assert all(figure["value"] is None or 0 <= figure["value"] <= 1 for figure in once.values())


# --- the command line --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    model.save(folder)
    tokenizer.save(folder)
    return str(folder)


def test_the_read_command_marks_entities_and_shows_questions(folder, monkeypatch, capsys):
    said = {"ner": [[" Anna: person, traveller\n nonsense\n", " none\n"]],
            "qra": [[" Q: Who left? A: Anna\n", " Is it \x1b[31mred? No\n Did"]]}
    monkeypatch.setattr(brd, "free_reading", lambda model, tokenizer, paragraphs, copy: said[copy])
    brd.main(["read", folder, "Anna left.  So it\ngoes."])
    assert capsys.readouterr().out.splitlines() == [
        "[Anna|person] left.", "    Who left? Anna", "So it goes.", r"    Is it \x1b[31mred? No"]


def test_nothing_to_read_is_told(folder, capsys):
    with pytest.raises(SystemExit):
        brd.main(["read", folder, "  "])
    assert capsys.readouterr().err.startswith("error: no text to read")


@pytest.mark.parametrize("arguments", [["read", "nowhere", "Anna left."], ["test", "FOLDER", "nowhere.json"]])
def test_a_bad_path_is_one_line_and_exit_code_2(folder, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        brd.main([folder if argument == "FOLDER" else argument for argument in arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nowhere" in error and error.count("\n") == 1


