"""The report: what it says is what the run found, what a text holds is shown and not run, nothing is fetched."""
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
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.documents import ROLES, course_tokenizer, held_out_records
from data.files import write_json
from data.report import READING, report as as_text
from experiments import plots, report
from model import GPT, GPTConfig

STUDENTS = ("plain", "brd", "distilled")
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;'


def results_of_a_run(names=STUDENTS[:2]):
    """Results as train.py leaves them, every figure another one; None where nothing was measured."""
    rng = random.Random(1)

    def student():
        reading = {place: {name: {"value": rng.random(), "se": rng.random() / 9, "n": 7} for name in READING}
                   for place in ("single", "paragraph")}
        reading["paragraph"]["raised.right"] = {"value": None, "se": None, "n": 0}
        reading["single"]["answer.wh"]["se"] = None
        looks = [{"tokens": 1000 * i, **{name: rng.random() for name in list(READING)[:3]}} for i in range(1, 8)]
        blind = {task: {"name": task, "accuracy": rng.random(), "se": 0.02, "n": 400, "chance": 0.5} for task in ("nli", EVIL)}
        return {"tokens_seen": rng.randrange(10**6), "loss_curve": [7 - rng.random() for _ in range(30)],
                "reading_curve": looks, "reading": reading, "plain_bits_per_byte": rng.random(), "blind": blind}
    config = {name: value for name, value in vars(train.Config(seed=3)).items() if name not in ("out_dir", "redo")}
    return {"students": {name: student() for name in names}, "config": config, "tokenizer": "none"}


def results_of_own_text():
    plain = {"tokens_seen": 10, "loss_curve": [7.0, 6.5], "sample": f"Once {EVIL}\x1b[31m", "bits_per_byte": 2.345}
    return {**results_of_a_run(), "students": {"plain": plain}}


class Page(HTMLParser):
    """The tags of a page, its text, and the cells of its tables."""

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
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture
def made(tmp_path, monkeypatch):
    """-> the page of some results, as HTML; students read by script."""
    monkeypatch.setattr(report, "load_student", lambda folder: (None, None))
    monkeypatch.setattr(brd, "free_reading", lambda m, t, texts, copy: [[f" {EVIL}: person, x\n" for _ in p] for p in texts])
    monkeypatch.setattr(brd, "free_answers", lambda m, t, paragraphs, rng: [
        [(item, EVIL) for record in p for item in record["questions"]] for p in paragraphs])

    def make(results):
        write_json(tmp_path / "results.json", results)
        return report.write_page(tmp_path).read_text(encoding="utf-8")
    return make


@pytest.fixture
def no_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)


def test_every_figure_of_the_table_is_that_of_the_results_and_of_the_terminal(made, no_matplotlib):
    results = results_of_a_run()
    page, text = Page(made(results)), as_text(results)
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in page.rows[:19]}
    assert rows[""] == [] and page.rows[0] == ["", "plain", "brd"]
    everyone = results["students"].values()
    assert rows["entity F1"] == [f"{s['reading']['paragraph']['entity_f1']['value']:.3f} "
                                 f"±{s['reading']['paragraph']['entity_f1']['se']:.3f}" for s in everyone]
    assert rows["own questions, right"] == ["-", "-"]
    assert rows[f"{EVIL} (400, 0.50)"] == [f"{s['blind'][EVIL]['accuracy']:.3f} ±0.020" for s in everyone]
    assert rows["tokens seen"] == [f"{s['tokens_seen']:,}" for s in everyone]
    assert all(cell in text for cells in rows.values() for cell in cells)
    assert "python train.py --corpus=world" in page.text and "--seed=3" in page.text


def test_without_matplotlib_the_page_says_how_to_get_pictures(made, tmp_path, no_matplotlib):
    page = Page(made(results_of_a_run()))
    assert not [tag for tag, _ in page.tags if tag in ("svg", "img")]
    assert 'pictures need matplotlib: pip install -e ".[plot]"' in page.text and "entity F1" in page.text
    with pytest.raises(ModuleNotFoundError, match="plot"):
        report.write_page(tmp_path, tmp_path / "png")


@pytest.mark.parametrize("run", [results_of_a_run, results_of_own_text])
def test_the_page_fetches_and_runs_nothing(made, run):
    html = made(run())
    page = Page(html)
    assert page.text.count(EVIL) >= (1 if run is results_of_own_text else 40)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data", "action"), (tag, name)
            assert not name.endswith("href") or value.startswith("#"), (tag, value)
    assert not re.search(r"https?://|@import|url\((?!#)", html) and "\x1b" not in html
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_entities_are_wrong_or_missed_and_answers_are_judged_to_the_letter(made):
    entities = [{"text": "Ben", "type": "person"}, {"text": "Oslo", "type": "day"}]
    record = {"text": "Ben is in Oslo.", "entities": [entities[0], {"text": "Oslo", "type": "place"}]}
    text = Page(report.sentence_cell(record, entities)).text
    assert text == "[Ben|person] is in [Oslo|day].✗ wrong: Oslo, daymissed: Oslo, place"
    paragraphs = held_out_records(2, "page")
    brd.free_answers = lambda m, t, paragraphs, rng: [
        [(item, item["answer"].replace("Yes", "yes")) for record in p for item in record["questions"]] for p in paragraphs]
    rows = [row for row in Page(report.read_text(None, ["a"], paragraphs)).rows if row[0]]
    asked = [item for p in paragraphs for record in p for item in record["questions"]]
    assert [row[0] for row in rows] == [f"{item['question']} {item['answer']}" for item in asked]
    assert [row[1] for row in rows] == ["✗ yes" if item["answer"] == "Yes" else f"✓ {item['answer']}" for item in asked]


def test_pictures_have_words_and_the_length_of_the_figures(made, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    results = results_of_a_run()
    html, students = made(results), results["students"]
    shown = [attributes for tag, attributes in Page(html).tags if tag == "svg"]
    assert len(shown) == 2 and all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in shown)
    assert "currentColor" in html and plots.INK not in html and len(html) < 1_000_000
    report.main([str(tmp_path), f"--pictures={tmp_path / 'png'}"])
    assert {path.name for path in (tmp_path / "png").iterdir()} == {"reading.png", "students.png"}
    fig = Figure()
    plots.draw_students(fig, students)
    widths = [bar.get_width() for axes in fig.axes for bar in axes.patches if bar.get_width()]
    wanted = [s["reading"]["paragraph"][name]["value"] for name in list(READING)[:4] for s in students.values()]
    assert widths == pytest.approx(wanted + [s["blind"][task]["accuracy"] for task in ("nli", EVIL) for s in students.values()])
    fig = Figure()
    plots.draw_reading(fig, students)
    lines = [tuple(line.get_ydata()) for axes in fig.axes for line in axes.lines if len(line.get_ydata()) == 8]
    assert len(lines) == 6
    for s in students.values():
        for name in list(READING)[:3]:
            assert (*(look[name] for look in s["reading_curve"]), s["reading"]["paragraph"][name]["value"]) in lines


def test_an_answer_is_unrolled_as_the_definitions_say(tmp_path):
    """V_p and the residual of every drawn token, from the student's own softmax in float64."""
    rng = np.random.default_rng(5)
    roles = [ROLES.index(role) for role in ("text", "sep", "question", "answer", "sep", "end")]
    tokenizer = course_tokenizer("world", 1024)
    writer = CacheWriter(tmp_path, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, roles=ROLES, p=0.95,
                         k_cap=8, temperature=1.0, teacher={}, made_by="")
    sets = [(rng.permutation(900)[:k], np.sort(np.log(rng.dirichlet(np.ones(k + 1)))[:k])[::-1]) for k in (4, 1, 3)]
    taken = [int(sets[0][0][0]), int(sets[1][0][0]), tokenizer.sep]          # the last one lies outside its set
    small = [(ids[:1], log_probs[:1]) for ids, log_probs in sets]            # smaller than average: not chosen
    for kept in (small, sets):
        writer.add([7, tokenizer.sep, *taken, tokenizer.end], roles, [None, None, *kept, None])
    writer.close()
    cache = TeacherCache(tmp_path)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert report.choose_document(cache) == 1
    text, steps = report.unrolled(cache, 1, model, tokenizer, {"p": 0.95, "gamma": 0.9})
    assert text == tokenizer.decode([7, tokenizer.sep]) and len(steps) == 3
    log_s = model(torch.tensor([[7, tokenizer.sep, *taken]]))[0].detach().double().log_softmax(-1)[1:]     # (4, V)
    values = []
    for t, ((ids, log_t), step) in enumerate(zip(sets, steps)):
        probs = np.exp(np.float16(log_t).astype(float))
        kept = [k for k in range(len(ids)) if probs[:k].sum() < 0.95 - 1e-6]
        values.append(math.log(sum(math.exp(log_s[t, ids[k]]) for k in kept)))
        assert [kind[1] for kind in step["kept"]] == [int(ids[k]) == taken[t] for k in kept]
        assert [kind[2] for kind in step["kept"]] == pytest.approx([probs[k] for k in kept], rel=2e-3)
        assert [kind[3] for kind in step["kept"]] == pytest.approx([math.exp(log_s[t, ids[k]]) for k in kept], rel=1e-4)
        assert step["value"] == pytest.approx(values[-1], rel=1e-4)
    assert [steps[t]["residual"] for t in (0, 1)] == pytest.approx(
        [float(log_s[t, taken[t]]) - 0.9 * values[t + 1] for t in (0, 1)], rel=1e-4)
    assert steps[2]["residual"] is None and len(report.steps_table(steps)) > 100


@pytest.mark.parametrize("content, message", [(None, "results.json"), ("{", "not JSON"), ("[]", "changed since"),
                                              ({"students": {}}, "not the results of train.py")])
def test_a_folder_without_results_is_refused(tmp_path, content, message):
    if isinstance(content, dict):
        write_json(tmp_path / "results.json", content)
    elif content:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        report.main([str(tmp_path)])
    assert not (tmp_path / "report.html").exists()
