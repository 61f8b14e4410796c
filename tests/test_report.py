"""The report: it says what the run found, markup in a text is shown and not run, and nothing is fetched."""
import math
import random
import re
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
from data.report import READING
from experiments import plots, report
from model import GPT, GPTConfig

pytest.importorskip("matplotlib")
TOP = list(READING)[:3]
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;'
TASKS = ("nli", EVIL)


def asked(paragraph):
    return [item for record in paragraph for item in record["questions"]]


def results_of_a_run():
    """Results as train.py leaves them, every figure another one; None where nothing was measured."""
    rng = random.Random(1)

    def student():
        reading = {place: {name: {"value": rng.random(), "se": rng.random() / 9} for name in READING}
                   for place in ("single", "paragraph")}
        reading["paragraph"]["raised.right"] = {"value": None, "se": None}
        looks = [{"tokens": 1000 * i, **{name: rng.random() for name in TOP}} for i in range(1, 8)]
        blind = {task: {"accuracy": rng.random(), "se": 0.02, "n": 400, "chance": 0.5} for task in TASKS}
        return {"tokens_seen": rng.randrange(10**6), "loss_curve": [7.0] * 30, "reading_curve": looks,
                "reading": reading, "plain_bits_per_byte": rng.random(), "blind": blind}
    students = {name: student() for name in ("plain", "brd")}
    return {"students": students, "config": vars(train.Config(seed=3)), "tokenizer": "none"}


def results_of_own_text():
    plain = {"tokens_seen": 10, "loss_curve": [7.0, 6.5], "sample": f"{EVIL}\x1b[31m", "bits_per_byte": 2.3}
    return {**results_of_a_run(), "students": {"plain": plain}}


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def rows_of(html):
    """The cells of all tables, as text."""
    rows = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in html.split("<tr>")[1:]]
    return [[Page(cell).text for cell in row] for row in rows]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """-> the page of some results, as HTML; students read by script."""
    monkeypatch.setattr(report, "load_student", lambda folder: (None, None))
    monkeypatch.setattr(brd, "free_reading", lambda model, tokenizer, texts, behaviour: [
        [f" {EVIL}: person, x\n" for _ in paragraph] for paragraph in texts])
    monkeypatch.setattr(brd, "free_answers", lambda model, tokenizer, paragraphs, rng: [
        [(item, EVIL) for item in asked(paragraph)] for paragraph in paragraphs])

    def make(results):
        write_json(tmp_path / "results.json", results)
        return report.write_page(tmp_path).read_text(encoding="utf-8")
    return make


def test_the_table_is_that_of_the_results(made):
    html, everyone = made(results := results_of_a_run()), results["students"].values()
    page, head, rows = Page(html), rows_of(html)[0], {row[0].strip(): row[1:] for row in rows_of(html)[:19]}
    found = [s["reading"]["paragraph"]["entity_f1"] for s in everyone]
    assert rows["entity F1"] == [f"{entry['value']:.3f} ±{entry['se']:.3f}" for entry in found]
    assert head == ["", "plain", "brd"] and rows["own questions, right"] == ["-", "-"]
    assert rows[f"{EVIL} (400, 0.50)"] == [f"{s['blind'][EVIL]['accuracy']:.3f} ±0.020" for s in everyone]
    assert rows["tokens seen"] == [f"{s['tokens_seen']:,}" for s in everyone]
    assert "python train.py --corpus=world" in page.text


@pytest.mark.parametrize("run", [results_of_a_run, results_of_own_text])
def test_the_page_fetches_and_runs_nothing(made, run):
    page = Page(html := made(run()))
    assert page.text.count(EVIL) >= (1 if run is results_of_own_text else 40)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data", "action"), (tag, name)
            assert not name.endswith("href") or value.startswith("#"), (tag, value)
    assert not re.search(r"https?://|@import|url\((?!#)", html) and "\x1b" not in html
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_entities_and_answers_are_judged_to_the_letter(made, tmp_path, monkeypatch):
    told = ("Ben", "person"), ("Oslo", "place"), ("Oslo", "day")
    ben, oslo, day = ({"text": text, "type": type_} for text, type_ in told)
    html = report.sentence_cell({"text": "Ben is in Oslo.", "entities": [ben, oslo]}, [ben, day])
    assert Page(html).text == "[Ben|person] is in [Oslo|day].✗ wrong: Oslo, daymissed: Oslo, place"
    paragraphs = held_out_records(2, "page")
    monkeypatch.setattr(brd, "free_answers", lambda model, tokenizer, paragraphs, rng: [
        [(item, item["answer"].replace("Yes", "yes")) for item in asked(p)] for p in paragraphs])
    rows = [row for row in rows_of(report.read_text(tmp_path, ["a"], paragraphs)) if row[0]]
    pairs = [(item["question"], item["answer"]) for paragraph in paragraphs for item in asked(paragraph)]
    assert rows == [[f"{asks} {a}", "✗ yes" if a == "Yes" else f"✓ {a}"] for asks, a in pairs]


def test_pictures_have_words_and_the_length_of_the_figures(made, tmp_path):
    from matplotlib.figure import Figure
    html, students = made(results := results_of_a_run()), results["students"]
    shown = [attributes for tag, attributes in Page(html).tags if tag == "svg"]
    assert len(shown) == 2 and all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in shown)
    assert "currentColor" in html and plots.INK not in html and len(html) < 1_000_000
    report.main([str(tmp_path), f"--pictures={tmp_path / 'png'}"])
    assert {path.name for path in (tmp_path / "png").iterdir()} == {"reading.png", "students.png"}
    plots.draw_students(fig := Figure(), students)
    widths = [bar.get_width() for axes in fig.axes for bar in axes.patches if bar.get_width()]
    both = students.values()
    wanted = [s["reading"]["paragraph"][name]["value"] for name in list(READING)[:4] for s in both]
    wanted += [s["blind"][task]["accuracy"] for task in TASKS for s in both]
    assert widths == pytest.approx(wanted)
    plots.draw_reading(fig := Figure(), students)
    lines = [list(line.get_ydata()) for axes in fig.axes for line in axes.lines]
    for s, name in ((s, name) for s in both for name in TOP):
        curve = [look[name] for look in s["reading_curve"]]
        assert curve + [s["reading"]["paragraph"][name]["value"]] in lines


def test_an_answer_is_unrolled_as_the_definitions_say(made, tmp_path, monkeypatch):
    """V_p and the residual of every drawn token, from the student's own softmax in float64."""
    rng = np.random.default_rng(5)
    roles = [ROLES.index(role) for role in ("text", "sep", "question", "answer", "sep", "end")]
    tokenizer = course_tokenizer("world", 1024)
    writer = CacheWriter(tmp_path, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, roles=ROLES,
                         p=0.95, k_cap=8, temperature=1.0, teacher={}, made_by="")
    drawn = [(rng.permutation(900)[:k], np.log(rng.dirichlet(np.ones(k + 1)))[:k]) for k in (4, 1, 3)]
    sets = [(ids, np.sort(log_probs)[::-1]) for ids, log_probs in drawn]
    taken = [int(sets[0][0][0]), int(sets[1][0][0]), tokenizer.sep]         # the last: outside its set
    small = [(ids[:1], log_probs[:1]) for ids, log_probs in sets]           # smaller than average: not chosen
    for kept in (small, sets):
        writer.add([7, tokenizer.sep, *taken, tokenizer.end], roles, [None, None, *kept, None])
    writer.close()
    torch.manual_seed(0)
    cache, model = TeacherCache(tmp_path), GPT(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 16))
    [torch.nn.init.normal_(parameter, std=0.3) for parameter in model.parameters()]
    assert report.choose_document(cache) == 1
    text, steps = report.unrolled(cache, 1, model, tokenizer, {"p": 0.95, "gamma": 0.9})
    assert text == tokenizer.decode([7, tokenizer.sep]) and len(steps) == 3 and steps[2]["residual"] is None
    log_s = model(torch.tensor([[7, tokenizer.sep, *taken]]))[0, 1:].detach().double().log_softmax(-1)
    values = []
    for t, ((ids, log_t), step) in enumerate(zip(sets, steps)):
        probs = np.exp(np.float16(log_t).astype(float))
        kept = [k for k in range(len(ids)) if probs[:k].sum() < 0.95 - 1e-6]
        values.append(math.log(sum(math.exp(log_s[t, ids[k]]) for k in kept)))
        _, drawn, of_teacher, of_student = map(list, zip(*step["kept"]))
        assert drawn == [int(ids[k]) == taken[t] for k in kept]
        assert of_teacher == pytest.approx([probs[k] for k in kept], rel=2e-3)
        assert of_student == pytest.approx([math.exp(log_s[t, ids[k]]) for k in kept], rel=1e-4)
        assert step["value"] == pytest.approx(values[-1], rel=1e-4)
    assert [steps[t]["residual"] for t in (0, 1)] == pytest.approx(
        [float(log_s[t, taken[t]]) - 0.9 * values[t + 1] for t in (0, 1)], rel=1e-4)
    monkeypatch.setattr(report, "load_student", lambda folder: (model, tokenizer))
    results = results_of_a_run()
    results["students"]["distilled"] = results["students"]["brd"]
    results |= {"config": {"cache": str(tmp_path), "p": 0.95, "gamma": 0.9}, "tokenizer": tokenizer.hash}
    text = Page(made(results)).text
    assert "A teacher's answer" in text


@pytest.mark.parametrize("content, message", [
    (None, "results.json"), ("{", "not JSON"), ({"students": {}}, "not the results of train.py")])
def test_a_folder_without_results_is_refused(tmp_path, content, message):
    if isinstance(content, dict):
        write_json(tmp_path / "results.json", content)
    elif content:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        report.main([str(tmp_path)])
