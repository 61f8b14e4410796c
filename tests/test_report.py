"""The report: it says what the run found, markup in a text is shown and not run, and nothing is fetched."""
import random
import re
from html.parser import HTMLParser

import pytest

import brd
import train
from data.documents import held_out_records
from data.files import write_json
from data.report import READING
from experiments import report

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
    return {"students": students, "config": vars(train.Config(seed=3))}


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


def test_the_picture_has_words_and_shows_the_figures(made, tmp_path):
    html, students = made(results := results_of_a_run()), results["students"]
    (shown,) = [attributes for tag, attributes in Page(html).tags if tag == "svg"]
    assert shown["role"] == "img" and len(shown["aria-label"]) > 20
    assert "currentColor" in html and report.INK not in html and len(html) < 1_000_000
    report.main([str(tmp_path), f"--png={tmp_path / 'reading.png'}"])
    assert (tmp_path / "reading.png").read_bytes().startswith(b"\x89PNG")
    lines = [list(line.get_ydata()) for axes in report.draw_reading(students).axes for line in axes.lines]
    for s, name in ((s, name) for s in students.values() for name in TOP):
        curve = [look[name] for look in s["reading_curve"]]
        assert curve + [s["reading"]["paragraph"][name]["value"]] in lines


@pytest.mark.parametrize("content, message", [
    (None, "results.json"), ("{", "not JSON"), ({"students": {}}, "not the results of train.py")])
def test_a_folder_without_results_is_refused(tmp_path, content, message):
    if isinstance(content, dict):
        write_json(tmp_path / "results.json", content)
    elif content:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        report.main([str(tmp_path)])
