"""The report: what it says is what the run found, whatever a text holds is shown and not run, and nothing is fetched."""
import copy
import json
import math
import random
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import brd
import train
from course import pages, plots, report
from data import world
from data.cache import TeacherCache, CacheWriter
from data.documents import course_tokenizer, plain_rows
from data.files import sealed
from model import GPT, GPTConfig

EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;'
READING = ("entity_f1", "answer.wh", "answer.yes_no", "answer.attitude", "raised.right")


def results_of_a_run():
    """Results as train.py leaves them, every figure another one; None where nothing was measured."""
    rng = random.Random(1)

    def entry():
        return {"value": rng.random(), "se": rng.random() / 9, "n": 7}

    def student():
        reading = {place: {name: entry() for name in READING} for place in ("single", "paragraph")}
        reading["paragraph"]["raised.right"] = {"value": None, "se": None, "n": 0}
        reading["single"]["answer.wh"]["se"] = None
        looks = [{"tokens": 1000 * i, **{name: rng.random() for name in READING[:3]}} for i in range(1, 8)]
        return {"tokens_seen": rng.randrange(10**6), "losses": [7.0] * 10, "loss_curve": [7 - rng.random() for _ in range(30)],
                "reading_curve": looks, "reading": reading, "plain_bits_per_byte": rng.random(),
                "blind": {task: {"name": task, "accuracy": rng.random(), "se": 0.02, "n": 400, "chance": 0.5} for task in ("nli", EVIL)}}

    config = vars(train.Config(seed=3, corpus="world", student_tokens=5000))
    return {"students": {name: student() for name in train.STUDENTS}, "config": config, "seed": 3, "threads": 2, "tokenizer": "none",
            "versions": {"python": "3", "torch": EVIL}}


def results_of_own_text():
    run = results_of_a_run()
    run["students"] = {"plain": {"tokens_seen": 10, "losses": [7.0], "loss_curve": [7.0, 6.5], "sample": f"Once {EVIL}\x1b[31m",
                                 "bits_per_byte": 2.345}}
    run["config"]["corpus"] = f"/tmp/{EVIL}.txt"
    return run


class Page(HTMLParser):
    """The tags of a page, and its text; SVG inside HTML is parsed alike."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.rows = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1] and self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data


def made(folder, results):
    (folder / "results.json").write_text(json.dumps(sealed(results)), encoding="utf-8")
    return report.write_page(folder).read_text(encoding="utf-8")


def readings_of_markup():
    """What three students might have read on the page of held-out text, markup among it."""
    paragraphs = report.held_out(report.PRINTED, "page")
    found = [[f" {EVIL}: person, traveller\n" for _ in paragraph] for paragraph in paragraphs]
    answers = [[(item, EVIL) for record in paragraph for item in record["questions"]] for paragraph in paragraphs]
    return {name: (found, answers) for name in train.STUDENTS}


@pytest.fixture
def no_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)


# --- what the page says ------------------------------------------------------------------------------------------------

def test_every_figure_of_the_tables_is_that_of_the_results(tmp_path, no_matplotlib):
    results = results_of_a_run()
    page = Page(made(tmp_path, results))
    rows = [(row[0], [cell.strip() for cell in row[1:]]) for row in page.rows]
    assert rows[0] == ("", list(train.STUDENTS))
    for place, start in (("single", 2), ("paragraph", 8)):
        for i, name in enumerate(READING):
            label, cells = rows[start + i]
            assert label == report.SHOWN[name] and len(cells) == 3
            for student, cell in zip(results["students"].values(), cells):
                entry = student["reading"][place][name]
                assert cell == ("-" if entry["value"] is None else f"{entry['value']:.3f} ±{entry['se'] or 0:.3f}")
    for task, (label, cells) in zip(("nli", EVIL), rows[14:]):
        assert label == f"{task} (400, 0.50)"
        assert cells == [f"{s['blind'][task]['accuracy']:.3f} ±0.020" for s in results["students"].values()]
    assert rows[17][1] == [f"{s['plain_bits_per_byte']:.3f}" for s in results["students"].values()]
    assert rows[18][1] == [f"{s['tokens_seen']:,}" for s in results["students"].values()]
    text = report.report(results)                                  # the same cells on the terminal
    assert all(cell in text for _, cells in rows[1:] for cell in cells)
    assert f"python train.py --out_dir={tmp_path} --seed=3 --student_tokens=5000" in page.text


def test_without_matplotlib_one_line_says_so_and_the_rest_stands(tmp_path, no_matplotlib):
    page = Page(made(tmp_path, results_of_a_run()))
    assert not [tag for tag, _ in page.tags if tag in ("svg", "img", "figure")]
    assert page.text.count("matplotlib is missing") == 1 and 'pip install -e ".[plot]"' in page.text
    assert "The students" in page.text and "entity F1" in page.text
    with pytest.raises(ImportError):
        report.write_page(tmp_path, tmp_path / "png")


def test_what_cannot_be_shown_is_told_once_at_the_top(tmp_path, no_matplotlib):
    page = Page(made(tmp_path, results_of_a_run()))                # no checkpoint lies there, and the tokenizer is another
    told = re.findall(r"No page of read text: .*?no config.json here|No cache statistics: .*?tokenizer", page.text)
    assert len(told) == 2 and "Paragraph 1" not in page.text


@pytest.mark.parametrize("run", [results_of_a_run, results_of_own_text])
def test_the_page_is_one_file_that_fetches_and_runs_nothing(tmp_path, run):
    html = made(tmp_path, run())
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data", "action"), (tag, name)
            assert not name.endswith("href") or value.startswith("#"), (tag, value)
            assert not re.search(r"url\((?!#)", value or ""), (tag, value)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_markup_in_a_text_is_shown_and_not_run(tmp_path):
    """In a sample, a task's name, the options and a version; then on the page of read text, in its entities and answers."""
    own, run = Page(made(tmp_path, results_of_own_text())), Page(made(tmp_path, results_of_a_run()))
    assert own.text.count(EVIL) >= 3 and run.text.count(EVIL) >= 2
    paragraphs, readings = report.held_out(report.PRINTED, "page"), readings_of_markup()
    read = Page(pages.read_page(paragraphs, readings))
    questions = sum(len(record["questions"]) for paragraph in paragraphs for record in paragraph)
    assert read.text.count(EVIL) == 3 * (questions + sum(map(len, paragraphs)))
    sentence = Page(pages.coloured(f"{EVIL} went to Oslo.", [{"text": EVIL, "type": EVIL}], []))
    assert sentence.text.startswith(f"{EVIL} went to Oslo.") or sentence.text.startswith(f"{EVIL}{EVIL}")
    for page in (own, run, read, sentence):
        assert not [tag for tag, _ in page.tags if tag in ("script", "img")]


def test_entities_are_named_right_wrong_missed_or_not_there():
    person, place = {"text": "Ben", "type": "person"}, {"text": "Oslo", "type": "place"}
    html = pages.coloured("Ben met Benny in Oslo.", [person, {"text": "Oslo", "type": "day"}, {"text": "Lima", "type": "place"}],
                          [person, place, {"text": "Benny", "type": "person"}])
    page = Page(html)
    assert page.text == "Benperson met Benny in Osloday ✗.not in the text: Limaplace ✗missed: Benny, person; Oslo, place"
    marks = [(a["data-type"], "class" in a) for tag, a in page.tags if tag == "mark"]
    assert marks == [("person", False), ("day", True), ("place", True)]


def test_answers_stand_under_their_question_and_are_judged_to_the_letter():
    question = {"kind": "content", "question": "Where?", "answer": "Oslo"}
    other = {"kind": "content", "question": "Who?", "answer": "Ben"}
    paragraph = [{"text": "One.", "entities": [], "questions": [question]}, {"text": "Two.", "entities": [], "questions": [other, question]}]
    told = {"a": ([["", ""]], [[(question, "Oslo"), (other, "Anna"), (question, "")]]),
            "b": ([["", ""]], [[(question, "oslo"), (other, "Ben"), (question, "Oslo")]])}
    page = Page(pages.read_page([paragraph], told))
    order = "Where\\? Oslo.*✓ Oslo.*✗ oslo.*Who\\? Ben.*✗ Anna.*✓ Ben.*Where\\? Oslo.*✗ \\(nothing\\).*✓ Oslo"
    assert re.search(order, page.text, re.S)
    assert [a["aria-label"] for _, a in page.tags if "aria-label" in a] == ["right", "wrong", "wrong", "right", "wrong", "right"]


# --- pictures ----------------------------------------------------------------------------------------------------------

def test_every_picture_has_words_for_it(tmp_path):
    pytest.importorskip("matplotlib")
    results = results_of_a_run()
    html = made(tmp_path, results)
    shown = [attributes for tag, attributes in Page(html).tags if tag == "svg"]
    assert len(shown) == 3 == html.count("<figcaption") and len(html) < 2_000_000
    for attributes in shown:
        assert attributes["role"] == "img" and len(attributes["aria-label"]) > 40
    f1 = results["students"]["brd"]["reading"]["paragraph"]["entity_f1"]
    assert f"brd {f1['value']:.3f} ±{f1['se']:.3f}" in shown[0]["aria-label"] and EVIL in shown[1]["aria-label"]
    assert "currentColor" in html and plots.INK not in re.sub(r"<style>:root.*?</style>|<style>\n:root.*?</style>", "", html, flags=re.S)


def test_bars_and_curves_are_as_long_as_the_figures():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    results = results_of_a_run()
    drawn, fig = report.drawings(results, None, None), Figure()
    _, draw, _, parts = drawn["students"]
    draw(fig, parts)
    widths = [round(bar.get_width(), 6) for axes in fig.axes for bar in axes.patches if bar.get_width()]
    wanted = [entry["value"] for rows in parts.values() for _, _, entries in rows for entry in entries.values() if entry["value"] is not None]
    assert widths == [round(value, 6) for value in wanted] and len(wanted) == 3 * 4 + 3 * 2
    fig = Figure()
    plots.draw_reading(fig, results["students"])
    lines = {tuple(np.round(line.get_ydata(), 6)) for axes in fig.axes for line in axes.lines if len(line.get_ydata()) == 8}
    for s in results["students"].values():
        for name in READING[:3]:
            ends = s["reading"]["paragraph"][name]["value"]
            assert tuple(np.round([look[name] for look in s["reading_curve"]] + [ends], 6)) in lines


def test_the_readme_pictures_are_small_files_of_fixed_names(tmp_path):
    pytest.importorskip("matplotlib")
    made(tmp_path, results_of_a_run())
    report.main([str(tmp_path), f"--pictures={tmp_path / 'png'}"])
    files = {path.name: path.stat().st_size for path in (tmp_path / "png").iterdir()}
    assert set(files) == {"reading.png", "students.png"} and max(files.values()) < 150_000    # top_p.png needs a checkpoint


# --- a teacher's answer ------------------------------------------------------------------------------------------------

def test_an_answer_is_unrolled_as_the_definitions_say(tmp_path):
    """V_p and the residual of every drawn token, from the student's own softmax in float64."""
    rng, roles = np.random.default_rng(5), [brd.ROLES.index(role) for role in ("text", "sep", "question", "answer", "sep", "end")]
    tokenizer = course_tokenizer("world", 1024)
    writer = CacheWriter(tmp_path, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, roles=brd.ROLES, p=0.95, k_cap=8,
                         temperature=1.0, teacher={}, made_by="")
    sets = [(rng.permutation(900)[:k], np.sort(np.log(rng.dirichlet(np.ones(k + 1)))[:k])[::-1]) for k in (4, 1, 3)]
    taken = [int(sets[0][0][0]), int(sets[1][0][0]), tokenizer.sep]          # the last one lies outside its set
    for extra in (5, 0, 2):                                                  # the middling one is looked at
        given = [(rng.permutation(900)[:1 + extra], np.full(1 + extra, -3.0))]
        writer.add([7, tokenizer.sep, *taken, tokenizer.end], roles, [None, None, *(given + sets[1:] if extra else sets), None])
    writer.close()
    cache = Cache(tmp_path)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert report.choose_document(cache) == 1                                # 10, 8 and 7 tokens kept
    text, steps = report.unrolled(cache, 1, model, tokenizer, 0.95, 0.9)
    assert text == tokenizer.decode([7, tokenizer.sep]) and len(steps) == 3
    log_s = model.logits(model.hidden(torch.tensor([[7, tokenizer.sep, *taken]])))[0].detach().double().log_softmax(-1)[1:]   # (4, V)
    values = []
    for t, ((ids, log_t), step) in enumerate(zip(sets, steps)):
        probs = np.exp(np.float16(log_t).astype(float))
        kept = [k for k in range(len(ids)) if probs[:k].sum() < 0.95 - 1e-6]
        values.append(math.log(sum(math.exp(log_s[t, ids[k]]) for k in kept)))
        assert [kind[1] for kind in step["kept"]] == [int(ids[k]) == taken[t] for k in kept]
        assert [kind[2] for kind in step["kept"]] == pytest.approx([probs[k] for k in kept], rel=2e-3)
        assert [kind[3] for kind in step["kept"]] == pytest.approx([math.exp(log_s[t, ids[k]]) for k in kept], rel=1e-4)
        assert step["value"] == pytest.approx(values[-1], rel=1e-4)
    assert [steps[t]["residual"] for t in (0, 1)] == pytest.approx([float(log_s[t, taken[t]]) - 0.9 * values[t + 1] for t in (0, 1)], rel=1e-4)
    assert steps[2]["residual"] is None and report.visible(" a\n\x1b") == "␣a↵\\x1b"


def test_a_cache_without_a_short_answer_is_told():
    class Empty:
        folder, header, starts = "here", {"roles": list(brd.ROLES)}, np.array([0, 2])
        arrays = {"roles": np.zeros(2), "counts": np.ones(2)}
    with pytest.raises(ValueError, match="here holds no reading"):
        report.choose_document(Empty)


# --- what a run notes on its way ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    tokenizer = course_tokenizer("world", 1024)
    return GPT(GPTConfig(tokenizer.n_vocab, 384, 1, 2, 16)), tokenizer


def test_a_glance_is_the_reading_test_on_fewer_paragraphs(student, monkeypatch):
    """A student that reads by script: what the reader says, with one in four lines and answers spoilt."""
    rng = random.Random(2)
    spoilt = lambda text: "Zoe" if rng.random() < 0.25 else text
    paragraphs = report.held_out(5, "glance")
    found = [["".join(f" {spoilt(e['text'])}: {e['type']}, {e['about']}\n" for e in record["entities"]) for record in p] for p in paragraphs]
    answers = [[(item, spoilt(item["answer"])) for record in p for item in record["questions"]] for p in paragraphs]
    monkeypatch.setattr(brd, "free_reading", lambda model, tokenizer, texts, copy: found if copy == "ner" else [[""] * len(p) for p in texts])
    monkeypatch.setattr(brd, "free_answers", lambda *_: answers)
    whole, look = brd.eval_reading(*student, paragraphs), report.glance(*student, n=5)
    assert set(look) >= {"entity_f1", "answer.wh", "answer.yes_no"} and 0.3 < look["entity_f1"] < 1 > look["answer.wh"] > 0.3
    for name, value in look.items():
        assert value == pytest.approx(whole[name]["value"], abs=1e-4), name
    held = {(fact["text"], e["text"]) for p in paragraphs for fact in p for e in fact["entities"]}
    assert held and all(world.held_out(e["text"], f["text"]) for p in paragraphs for record in p
                        for e in record["entities"] if e["type"] == "person" for f in record["entities"] if f["type"] not in ("person", "day"))


def test_training_goes_on_as_if_nobody_had_looked(student, monkeypatch):
    """The same weights to the last bit, and looks at seven places of the run."""
    start, tokenizer = student
    rows = plain_rows(list(world.plain(400, 1)), tokenizer)
    config, looks, ends = train.Config(device="cpu", step_tokens=64), [], []
    monkeypatch.setattr(brd, "MAX_READING", 8)                     # an untrained student does not know when to stop
    monkeypatch.setattr(brd, "MAX_ANSWER", 2)
    for look in (None, lambda seen: looks.append((seen, report.glance(model, tokenizer, 1)))):
        model = copy.deepcopy(start)
        ends.append((train.fit("", model, [rows], [1.0], 1500, config, 0.5, glance=look), model.state_dict()))
    ((losses, seen), before), ((again, _), after) = ends
    assert losses == again and len(losses) > 15
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(before["transformer.wte.weight"], start.transformer.wte.weight)
    assert [round(8 * tokens / seen) for tokens, _ in looks] == [1, 2, 3, 4, 5, 6, 7] and all("entity_f1" in look for _, look in looks)


def test_losses_are_thinned_to_means_of_neighbours():
    assert report.thinned([1.0, 3.0, 5.0, 8.0], 2) == [2.0, 6.5] and report.thinned([4.0]) == [4.0]
    assert len(report.thinned(list(range(1234)))) == 200


# --- the command -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content, words", [(None, "no results.json"), ("{", "not JSON"), ("[]", "not as it was"), ('{"students": 1}', "--redo"),
                                            (json.dumps(sealed({"students": 1})), "not the results")])
def test_a_folder_without_results_is_told_in_one_line(tmp_path, capsys, content, words):
    if content:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        report.main([str(tmp_path)])
    told = capsys.readouterr().err
    assert end.value.code == 2 and words in told and told.startswith("error: ") and told.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_run_never_fails_at_its_report(tmp_path, monkeypatch):
    assert report.page_line(tmp_path).startswith("no report.html: ValueError: ")
    (tmp_path / "results.json").write_text(json.dumps(sealed(results_of_own_text())), encoding="utf-8")
    assert report.page_line(tmp_path) == f"{tmp_path / 'report.html'} shows them in pictures"
    monkeypatch.setattr(report, "page", lambda *_: 1 / 0)
    assert report.page_line(tmp_path) == "no report.html: ZeroDivisionError: division by zero"
