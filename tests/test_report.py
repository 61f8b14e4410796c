"""The report: it says what the run found, markup in a text is shown and not run, and nothing is fetched."""
import random
import re
from html.parser import HTMLParser

import pytest

import brd
import train
from data.documents import held_out_records
from data.files import write_json
from data.figures import mean_se
from data.report import PLACES, READING, layout, report as data_report, table
from experiments import report

pytest.importorskip("matplotlib")
TOP = list(READING)[:3]
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;'
TASKS, NAMES = ("nli", EVIL), ("plain", "brd", "brd+gold", "brd+seqkd", "brd+td")


def asked(paragraph):
    return [item for record in paragraph for item in record["questions"]]


def results_of_a_run():
    """Results as train.py leaves them, every figure another one; None where nothing was measured."""
    rng = random.Random(1)

    def student():
        reading = {place: {name: {"value": rng.random(), "se": rng.random() / 9} for name in READING}
                   for place in ("single", "paragraph", "alike")}
        del reading["alike"]["raised.right"]                        # and more, as brd.eval_fresh_text has it
        for place, name in (("paragraph", "raised.right"), ("alike", "answer.structure")):
            reading[place][name] = {"value": None, "se": None}
        looks = [{"tokens": 1000 * i, **{name: rng.random() for name in TOP}} for i in range(1, 8)]
        blind = {task: {"accuracy": rng.random(), "se": 0.02, "n": 400, "chance": 0.5} for task in TASKS}
        reading["paragraph"]["entity_f1"]["majority"], blind["nli"]["majority"] = 0.4367, 0.5125
        return {"tokens_seen": rng.randrange(10**6), "loss_curve": [7.0] * 30, "reading_curve": looks,
                "reading": reading, "plain_bits_per_byte": rng.random(), "blind": blind}

    def units(n=40):
        return [(rng.random(), 1, 1) for _ in range(n)]
    students = {name: student() for name in NAMES}
    for name, s in students.items():
        for figure in brd.PAIRED:
            s["reading"]["paragraph"][figure]["groups"] = units()
        for task in s["blind"].values():
            task["credits"] = [rng.choice([0, 0.5, 1]) for _ in range(30)]
        figures = ("right", "distinct", "nats", "outside", "residual")
        s["beside_teacher"] = {} if name == "plain" else {figure: units() for figure in figures}
        s["reading_curve"] = [] if "+" in name else s["reading_curve"]
    return {"students": students, "config": vars(train.Config(seed=3))}


def results_of_own_text():
    plain = {"tokens_seen": 10, "loss_curve": [7.0, 6.5], "sample": f"{EVIL}\x1b[31m", "bits_per_byte": 2.3,
             "passes": 1.5}
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
    html, everyone = made(results := results_of_a_run()), list(results["students"].values())[:2]
    page, head, *listed = Page(html), *rows_of(html)
    labels = [row[0].strip() for row in listed]
    listed, rows = listed[:labels.index("tokens seen") + 1], dict(zip(labels, (row[1:] for row in listed)))
    for place, title in PLACES.items():
        begin = labels.index(f"reading {title}, free-running") + 1 if place != "corpus" else 0
        for name, label in READING.items() if begin else ():
            found = [s["reading"][place].get(name) for s in everyone]
            if any(entry and entry["value"] is not None for entry in found):    # else there is no such line
                first = "0.437" if (place, name) == ("paragraph", "entity_f1") else "-"
                cells = [f"{entry['value']:.3f} ±{entry['se']:.3f}" for entry in found]
                assert listed[begin] == [f"  {label}", first, *cells]
                begin += 1
    assert head == ["", "majority", "plain", "brd"] and labels.count("own questions, right") == 1
    assert rows[f"{EVIL} (400, 0.50)"][1:] == [f"{s['blind'][EVIL]['accuracy']:.3f} ±0.020" for s in everyone]
    assert rows[f"{EVIL} (400, 0.50)"][0] == "-" and rows["nli (400, 0.50)"][0] == "0.512"
    assert rows["tokens seen"] == ["", *(f"{s['tokens_seen']:,}" for s in everyone)]
    assert "python train.py --corpus=world" in page.text


def test_the_arms_are_compared_with_brd_and_unit_by_unit(made):
    """In the columns brd and its arms; below them the differences of the pairs that are there."""
    html, students = made(results := results_of_a_run()), results["students"]
    rows = rows_of(html)
    labels = [row[0] for row in rows]
    first = labels.index("  entity F1", labels.index("tokens seen"))
    second = labels.index("  entity F1", first + 1)
    assert rows[first - 1][1:] == ["brd", "+gold", "+seqkd", "+td"]
    assert rows[second - 1][1:] == ["seqkd - gold"]
    gold, seqkd, td = (students[name] for name in NAMES[2:])
    more = td["tokens_seen"] - students["brd"]["tokens_seen"]
    text = Page(html).text
    assert f"brd, and {more:,} tokens more" in text and "differences, paired" in text
    for i, (label, part, figure) in enumerate([
            ("entity F1", "reading", "entity_f1"), ("wh questions, exact", "reading", "answer.wh"),
            ("yes/no questions, exact", "reading", "answer.yes_no"), ("blind tasks, mean", "blind", ""),
            ("own questions at T=1, right", "beside_teacher", "right"),
            ("  different right ones per sentence", "beside_teacher", "distinct"),
            ("teacher's nats per token of them", "beside_teacher", "nats"),
            ("probability outside A_p", "beside_teacher", "outside"),
            ("TD residual^2, best linear v(s)", "beside_teacher", "residual")]):
        def values(s):
            if part == "blind":
                return [credit for task in s["blind"].values() for credit in task["credits"]]
            found = s[part][figure] if part != "reading" else s[part]["paragraph"][figure]["groups"]
            return [a for a, _, _ in found]
        wanted = [mean_se(values(students[name])) for name in NAMES[1:]]
        assert rows[first + i] == [f"  {label}", *(f"{x['value']:.3f} ±{x['se']:.3f}" for x in wanted)]
        wanted = mean_se([a - b for a, b in zip(values(seqkd), values(gold))])
        assert rows[second + i] == [f"  {label}", f"{wanted['value']:+.3f} ±{wanted['se']:.3f}"]
    shown, two = data_report(results), {name: students[name] for name in NAMES[:2]}
    assert all(f"{cell:>14}" in shown for row in rows[first - 1:first + 9] for cell in row[1:])
    assert "tokens more" not in data_report({"students": two})
    assert "differences" not in data_report({"students": two | {"brd+td": td}})


def test_a_cache_without_its_teachers_weights_still_has_a_table():
    results = results_of_a_run()
    for name, s in results["students"].items():
        for figure in ("right", "distinct", "nats") if "+" in name or name == "brd" else ():
            del s["beside_teacher"][figure]
    shown = data_report(results)
    assert "own questions: not tested, the cache has no folder `model`" in shown
    assert shown.count("probability outside A_p") == 2 and "own questions at T=1" not in shown
    assert "not tested" not in data_report(results_of_a_run())


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
    cell = report.sentence_cell({"text": "Ben is in Oslo.", "entities": [ben, oslo]}, [ben, day])
    assert cell == ("[Ben|person] is in [Oslo|day].", "✗ wrong: Oslo, day", "missed: Oslo, place")
    paragraphs = held_out_records(2, "page")
    monkeypatch.setattr(brd, "free_answers", lambda model, tokenizer, paragraphs, rng: [
        [(item, item["answer"].replace("Yes", "yes")) for item in asked(p)] for p in paragraphs])
    rows = [row for row in rows_of(report.read_text(tmp_path, ["a"], paragraphs)) if row[0]]
    pairs = [(item["question"], item["answer"]) for paragraph in paragraphs for item in asked(paragraph)]
    assert rows == [[f"{asks}{a}", "✗ yes" if a == "Yes" else f"✓ {a}"] for asks, a in pairs]


def test_the_picture_has_words_and_shows_the_figures(made, tmp_path):
    html, students = made(results := results_of_a_run()), results["students"]
    (shown,) = [attributes for tag, attributes in Page(html).tags if tag == "svg"]
    assert shown["role"] == "img" and len(shown["aria-label"]) > 20
    assert "currentColor" in html and report.INK not in html and len(html) < 1_000_000
    report.main([str(tmp_path), f"--png={tmp_path / 'reading.png'}"])
    assert (tmp_path / "reading.png").read_bytes().startswith(b"\x89PNG")
    lines = [list(line.get_ydata()) for axes in report.draw_reading(students).axes for line in axes.lines]
    for student, s in students.items():
        ends = [s["reading"]["paragraph"][name]["value"] for name in TOP]
        curves = [[look[name] for look in s["reading_curve"]] for name in TOP]
        own = [sum(a for a, *_ in s["beside_teacher"].get("right", [])) / 40]
        assert student == "plain" or any(y[:2] == ends[:2] and y[2:] == pytest.approx(own) for y in lines)
        assert "+" in student or all(curve + [end] in lines for curve, end in zip(curves, ends))
    assert len(report.LOOKS) >= len(train.STUDENTS) + len(train.ARMS)
    two = {name: students[name] for name in NAMES[:2]}
    assert len(report.draw_reading(two).axes) == 2 < len(report.draw_reading(students).axes)


def test_results_of_another_version_or_with_text_for_figures_are_one_line(made, tmp_path):
    """A student's name is escaped like all that is shown."""
    results = results_of_a_run()
    results["students"]["brd+<i>"] = results["students"]["brd+td"]
    assert "<i>" not in made(results) and "brd+&lt;i&gt;" in made(results)
    for name in ("tokens_seen", "reading", "loss_curve", "blind"):
        for value in (EVIL, None):
            spoilt = results_of_a_run()
            spoilt["students"]["brd"][name] = value
            write_json(tmp_path / "results.json", spoilt)
            with pytest.raises(ValueError) as error:
                report.main([str(tmp_path)])
            assert "\n" not in str(error.value), name
    del (spoilt := results_of_a_run())["students"]["plain"]["plain_bits_per_byte"]
    write_json(tmp_path / "results.json", spoilt)
    with pytest.raises(ValueError, match="not as this train.py writes it .KeyError: 'plain_bits_per_byte'"):
        report.main([str(tmp_path)])


@pytest.mark.parametrize("content, message", [
    (None, "results.json"), ("{", "damaged, edited"), ({"students": {}}, "not the results of train.py")])
def test_a_folder_without_results_is_refused(tmp_path, content, message):
    if isinstance(content, dict):
        write_json(tmp_path / "results.json", content)
    elif content:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        report.main([str(tmp_path)])


def test_two_runs_stand_side_by_side(tmp_path, capsys):
    """No page is written; a text of one's own has bits per byte alone."""
    world, own, folders = results_of_a_run(), results_of_own_text(), [tmp_path / name for name in "abc"]
    del world["students"]["brd+td"]["blind"]["nli"]
    for s in world["students"].values():                # a test of other texts
        s["reading"]["paragraph"]["entity_f1"]["majority"] = 0.25
    for folder, results in zip(folders, (world, results_of_a_run(), own)):
        write_json(folder / "results.json", results)
    report.main(list(map(str, folders[:2])))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["majority"] + [f"{folder}/{name}" for folder in folders[:2] for name in NAMES]
    found = [s["reading"]["single"]["entity_f1"] for s in world["students"].values()] * 2
    cells = [f"{entry['value']:.3f} ±{entry['se']:.3f}" for entry in found]
    assert all(cell in lines[3] for cell in cells) and "-" in next(line for line in lines if "nli" in line)
    assert [line.split()[2] for line in lines if line.startswith("  entity F1")][:2] == ["-", "0.250/0.437"]
    at = [lines.index(str(folder)) for folder in folders[:2]]
    assert [line.startswith("brd, and") for line in lines[at[0]:]].count(True) == 2 and at[0] < at[1]
    for s in world["students"].values():        # as a run of an earlier version left them
        del s["reading"]["paragraph"]["entity_f1"]["majority"]
    assert data_report(world).count("0.437") == 0 and "-/0.437" in layout(list(table({
        "old": world["students"]["brd"], "new": results_of_a_run()["students"]["brd"]})))
    report.main(list(map(str, folders[1:])))
    shown = capsys.readouterr().out
    assert "2.300" in shown and "reading" not in shown
    assert not [path for path in tmp_path.rglob("report.html")]
    with pytest.raises(ValueError, match="--png draws one run"):
        report.main([*map(str, folders[:2]), "--png=x.png"])


def test_losses_stand_beside_the_tokens_that_were_read():
    students = {"brd": {"tokens_seen": 1500, "loss_curve": [float(i) for i in range(20)]},
                "brd+kd": {"tokens_seen": 3500, "loss_curve": [2.0] * 4}}
    results = {"students": students, "config": {"student_tokens": 1000}}
    assert report.loss_cells("brd", results)[::9] == [("0.500", "1"), ("18.500", "2")]
    assert report.loss_cells("brd+kd", results) == [("2.000", n) for n in "2234"]
