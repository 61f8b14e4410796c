"""Annotation records, their file, and the forms of their lines with the parsers that undo them."""
import json
import re
import time
from itertools import product

import pytest

from data import annotated, annotations
from data.cli import printable

ANNA = {"paragraph": 3, "sentence": 0, "text": "Anna took a train to Oslo.",
        "entities": [{"text": "Anna", "type": "person", "about": "traveller"},
                     {"text": "Oslo", "type": "place", "about": "goal, far away"}],
        "questions": [{"kind": "content", "question": "Where did Anna go?", "answer": "Oslo"},
                      {"kind": "content", "question": "Did Anna stay?", "answer": "No"}]}
SHE = {"paragraph": 3, "sentence": 1, "text": "She was happy at Opel, in Paris, France.",
       "entities": [{"text": "Opel", "type": "organisation", "about": "employer"},
                    {"text": "Paris, France", "type": "place", "about": "a (large) town: home"}],
       "questions": [{"kind": "structure", "question": "Who is she?", "answer": "Anna"},
                     {"kind": "attitude", "question": "Is this good or bad?", "answer": "good"}]}
ASIDE = {"paragraph": 3, "sentence": 2, "text": "So it goes.", "entities": [], "questions": []}
PARAGRAPH = [ANNA, SHE, ASIDE]
OTHER = [{**ANNA, "paragraph": 4, "text": "Anna took a train to Oslo!"}]


# --- records and their file ---------------------------------------------------------------------------------

def test_annotations_survive_a_round_trip(tmp_path):
    annotations.write_annotations(tmp_path / "a.jsonl", [PARAGRAPH, OTHER])
    assert annotated.read_annotations(tmp_path / "a.jsonl") == [PARAGRAPH, OTHER]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]          # nothing is left beside it


def altered(record, path, value):
    record = json.loads(json.dumps(record))
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


@pytest.mark.parametrize("path, value, field", [
    (["paragraph"], "3", "paragraph"), (["paragraph"], True, "paragraph"), (["sentence"], -1, "sentence"),
    (["text"], None, "text"), (["text"], "Anna left\nto Oslo.", "text"), (["text"], " Anna to Oslo", "text"),
    (["text"], "Anna \ud800 Oslo", "text"), (["entities"], {}, "entities"), (["entities", 0], 7, "entities"),
    (["entities", 0, "text"], "Bob", "entities[0].text"), (["entities", 1, "type"], "x", "entities[1].type"),
    (["entities", 1, "about"], "", "entities[1].about"), (["questions"], None, "questions"),
    (["questions", 1, "kind"], "x", "questions[1].kind"),
    (["questions", 0, "answer"], 7, "questions[0].answer"),
    (["questions", 0, "question"], "Where?!", "questions[0].question"),
    (["questions", 0, "question"], "Who? Where?", "questions[0].question"),
    (["questions", 0, "question"], "?", "questions[0].question"),
    (["questions", 0, "question"], "Q: Who?", "questions[0].question"),
    (["questions", 0, "answer"], "Well, Oslo", "questions[0].question"),
    (["sentence"], 1, "sentence"), (["paragraph"], 3, "sentence"),
])
def test_a_bad_line_is_named_with_its_field(tmp_path, path, value, field):
    lines = [json.dumps(record) for record in PARAGRAPH + [altered(OTHER[0], path, value)]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        annotated.read_annotations(tmp_path / "a.jsonl")
    assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'}: line 4: field '{field}' is ")
    assert "\n" not in str(caught.value)


def test_an_entity_that_no_form_can_show_is_refused():
    strange = {"text": "Anna: person, x", "type": "thing", "about": "label"}
    with pytest.raises(ValueError, match="cannot be told"):
        annotated.check_record({**ANNA, "text": "A label says Anna: person, x", "entities": [strange]})


@pytest.mark.parametrize("torn", [b'{"paragraph": 4, "sent', '{"text": "é'.encode()[:-1]])
def test_a_torn_line_is_named_wherever_it_stands(tmp_path, torn):
    path, good = tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in PARAGRAPH).encode()
    for content, line in ((good + torn, 4), (good + torn + b"\n", 4), (torn + b"\n" + good, 1)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.jsonl: line {line}: expected a JSON object, found {{.* \("):
            annotated.read_annotations(path)
    path.write_bytes(good + b'{"paragraph": 4}')              # whole JSON without a line break is a line
    with pytest.raises(ValueError, match=r"a\.jsonl: line 4: field 'sentence' is None"):
        annotated.read_annotations(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"], ids=repr)
def test_line_ends_a_mark_and_an_array_make_no_difference(tmp_path, end):
    """A mark stands where files were joined, too."""
    path, lines = tmp_path / "a.jsonl", [json.dumps(record, ensure_ascii=False) for record in PARAGRAPH]
    for text in (end.join(lines), end.join(f"\ufeff{line}" for line in lines) + end,
                 f"\ufeff[{end}{f',{end}'.join(lines)}{end}]{end}", f"[{','.join(lines)}]"):
        path.write_bytes(text.encode())
        assert annotated.read_annotations(path) == [PARAGRAPH]
    path.write_bytes(f"[{end}{lines[0]},{end}7]".encode())
    with pytest.raises(ValueError, match=r"a\.jsonl: row 2: expected a JSON object, found 7"):
        annotated.read_annotations(path)


def test_questions_of_ones_own_need_no_more_than_a_text(tmp_path):
    """The lines of the page, among others. Nobody listed their entities, which is not to have none."""
    page = (annotated.PRIMER[0].parents[2] / "adapters" / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r'^\{"text": .*', page, re.M)
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(ANNA), *lines]), encoding="utf-8")
    first, *own = annotated.read_annotations(tmp_path / "a.jsonl")
    assert first == [ANNA] and len(own) == len(lines) > 2 and {len(paragraph) for paragraph in own} == {1}
    assert [record["paragraph"] for record, in own] == list(range(4, 4 + len(lines)))
    for (record,), line in zip(own, map(json.loads, lines)):
        asked = [{"kind": "content", **item} for item in line["questions"]]
        assert record["entities"] == annotations.NOT_LISTED != [] and record["questions"] == asked != []
    (tmp_path / "a.jsonl").write_text('{"text": "Fry the onions."}', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: field 'questions' is None, expected a list of objects"):
        annotated.read_annotations(tmp_path / "a.jsonl")


# --- lines --------------------------------------------------------------------------------------------------

def test_every_entity_form_is_parsed_back():
    # "day" and "thing" are types too, and "Paris, France" holds the comma that parts the fields
    tricky = [{"text": t, "type": k, "about": a} for t, k, a in product(
        ("Anna", "Paris, France", "day", "thing", "Mr. (A) = b: c", "is a thing"), annotations.TYPES,
        ("x", "thing, x", "a (b), c: d"))]
    entities = ANNA["entities"] + SHE["entities"] + tricky
    for entity, form in product(entities, range(len(annotations.ENTITY_FORMS))):
        line = annotations.entity_line(entity["text"], entity["type"], entity["about"], form)
        assert annotations.parse_entity(line) == entity, line
    line = annotations.entity_line
    assert line("Opel", "organisation", "employer", 1) == "Opel is an organisation, employer"
    assert line("Paris, France", "place", "home", 2) == "Paris, France: place, home"        # else "Paris"


def test_every_opener_and_bridge_is_parsed_back():
    for opener, bridge in product(annotations.OPENERS, annotations.BRIDGES):
        line = " ".join(part for part in (opener, "Where did Ann go?", bridge, "Oslo, why?") if part)
        assert annotations.parse_question(line) == {"question": "Where did Ann go?", "answer": "Oslo, why?"}


def test_malformed_output_is_dropped_not_raised():
    assert annotations.parse_entities(" Anna: person, x\n Anna, person\n\n Oslo: city, y\n none\n :") == [
        {"text": "Anna", "type": "person", "about": "x"}]
    assert [annotations.parse_question(line) for line in ("Who? Anna", "Who Anna", "Q: Who?", "? Anna",
                                                          "Who? A: Oslo")] == [
        {"question": "Who?", "answer": "Anna"}, None, None, None, {"question": "Who?", "answer": "Oslo"}]


# --- for the eye --------------------------------------------------------------------------------------------

def test_entities_are_marked_longest_first():
    entities = [{"text": text, "type": type} for text, type in (
        ("Paris", "person"), ("Paris, France", "place"), ("on", "thing"), ("Bob", "person"))]
    marked = annotated.marked("Paris, France on Monday", entities)
    assert marked == "[Paris, France|place] [on|thing] Monday"
    assert annotated.marked("Nobody.", entities) == "Nobody."
    assert annotated.marked("on (on) and Bobby on.", entities) == "[on|thing] ([on|thing]) and Bobby [on|thing]."


def test_a_line_of_100_kb_takes_no_longer_than_its_length():
    """With a quadratic time each would take ten seconds and more."""
    for part in ("Anna (person, x ", "Anna: person, ", "a is a person, ", "person: a, "):
        line, begin = part * (100_000 // len(part)), time.process_time()
        found = [annotations.parse_entity(text) for text in (line, line + "\n x", line + "x)")]
        assert found[1] is None and (found[0] is None) == ("(" in part) and found[2]
        assert time.process_time() - begin < 1, part
    begin, words = time.process_time(), [f"w{i}" for i in range(15_000)]
    marked = annotated.marked(" ".join(words), [{"text": word, "type": "thing"} for word in words])
    assert marked == " ".join(f"[{word}|thing]" for word in words)
    text = "a " * 50_000 + "b"
    assert annotated.marked(text, [{"text": text[50_000:], "type": "x"}]) == f"{text[:50_000]}[{text[50_000:]}|x]"
    assert time.process_time() - begin < 2


def test_control_characters_are_shown_not_obeyed():
    assert printable("a\x1b[31m\nÄ\u2028") == r"a\x1b[31m\nÄ\u2028"


@pytest.mark.parametrize("line, found", [("[]", r"\[\]"), ('"Ann left."', '"Ann left."'), ("null", "null")])
def test_a_line_that_is_no_object_is_named(tmp_path, line, found):
    (tmp_path / "a.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"a\.jsonl: line 1: expected a JSON object, found {found}"):
        annotated.read_annotations(tmp_path / "a.jsonl")
