"""Slides and pictures of the course: their form, and that what they show of the source stands in it."""
import re
import textwrap
from pathlib import Path

import pytest

from course import figures
from course.assignments import ASSIGNMENTS, REPOSITORY, find_function

SLIDES = sorted((REPOSITORY / "course" / "teacher" / "slides").glob("*.md"))
PICTURES = REPOSITORY / "course" / "pictures"
ASSIGNED = [(file, function) for one in ASSIGNMENTS.values() for part in (one.write, one.hide)
            for file in part if file.endswith(".py") for function in part[file] if function]


def read_slides(path):
    """(front matter, list of slides): what marp, and pandoc -t revealjs, make of the file."""
    empty, front, *slides = re.split(r"^---$", path.read_text(encoding="utf-8"), flags=re.M)
    assert not empty
    return front, slides


@pytest.mark.parametrize("path", SLIDES, ids=lambda path: path.name)
def test_slides_have_the_form_of_marp_and_ask_the_class(path):
    front, slides = read_slides(path)
    assert "marp: true\n" in front and "math: mathjax\n" in front and 15 <= len(slides) <= 22
    assert all(re.search(r"^##? \S", slide, re.M) for slide in slides)
    asked = [i for i, slide in enumerate(slides) if "**Question to the class.**" in slide]
    assert max(b - a for a, b in zip(asked, asked[1:])) <= 4
    for slide in slides:                                        # what is not balanced would swallow the rest
        assert slide.count("```") % 2 == 0 and slide.count("$$") % 2 == 0
        assert slide.count("<!--") == slide.count("-->")
        assert len(slide.split("<!--")[0].strip().splitlines()) <= 24


@pytest.mark.parametrize("path", SLIDES, ids=lambda path: path.name)
def test_code_on_slides_is_that_of_the_source_and_no_solution(path):
    blocks = re.findall(r"^```python\n# (\S+)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == path.read_text(encoding="utf-8").count("```python") > 2
    for file, code in blocks:
        source = (REPOSITORY / file).read_text(encoding="utf-8")
        assert code in source, (file, code)
        for other, function in ASSIGNED:
            if other == file:
                node, lines = find_function(source, function), source.splitlines(keepends=True)
                first = node.body[1 if len(node.body) > 1 else 0]           # behind the docstring
                body = "".join(lines[first.lineno - 1:node.end_lineno])
                assert textwrap.dedent(code) not in textwrap.dedent(body), (file, function)


def test_every_assignment_has_a_picture_with_text_and_without_a_date():
    assert list(figures.DRAW) == list(range(1, 10))
    for number, draw in figures.DRAW.items():
        name = draw.__name__[5:].replace("_", "-")
        assert number not in ASSIGNMENTS or ASSIGNMENTS[number].name == name
        text = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", text)]
        assert len(text) < 80_000 and "<dc:date>" not in text
        assert len(sizes) > 10 and min(sizes) >= 9 and "fill: #ffffff" in text


def test_a_picture_is_drawn_with_the_same_bytes_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    first, second = (figures.write(1, Path(tmp_path) / name).read_bytes() for name in "ab")
    assert first == second and b"hug" in first
