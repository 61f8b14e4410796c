"""Text preparation: nothing is lost, sentences end where a reader would end them, bad files are named in one line."""
import re

import pytest
from hypothesis import example, given, settings, strategies as st

from adapters.sentences import MAX_SENTENCE, main, paragraphs, read_text, sentences, split

fragments = st.sampled_from(["Anna", "took", "the", "The", "A", "Mr.", "J.", "U.S.", "No.", "3.14", "1.", "ROMEO:\n", "ROMEO.\n",
                             ".", "!", "...", "…", "?!", "\"", "'", "(", ")", " ", "  ", "\n", "\t", "\u2028", "\x1c",
                             "。", "」", "日本", "é"])
prose = st.lists(fragments, max_size=40).map("".join) | st.text(max_size=80)


# ---------------------------------------------------------------------------------------------------------------------
# sentences

# Every line is a paragraph with a bar wherever it is to be cut; \n in it is a line break.
CASES = r"""
Anna took a train. |It was late.
Mr. Smith met Dr. J. A. Tolkien and Mrs. Jones on Mt. Blanc. |He left.
MR. SMITH went home. |St. Petersburg is far. |He lives in Main St. |The house is red.
See e.g. Oslo, i.e. the town, cf. Fig. 3 and p. 12, vs. Bergen etc. |Anna left on Jan. 5.
No. 5 is alive. |She said no. |Five left. |No. |Really no.
The U.S. Senate met at 5 p.m. Monday in Washington D.C. |The vote was late. |She has a Ph.D. |In law.
We chose plan B. |Then came World War II. |It ended.
Pi is 3.14 and not 3.15. |It costs $2.50. |20 people paid.
Well... maybe. |Well... |Maybe not… |He left. . . and came back. |So.
"Where?" he asked. |"Here!" she cried. |He said, "Stop." |Then he left.
(He left.) |[She stayed.] |“Why?” |‘Because.’ |*Good.* |«Oui.»
What?! |You did what!? |Never!!! |"Really?!" |Yes.
ROMEO:\nBut soft! |What light?\n|It is the east,\nand Juliet is the sun.
ROMEO.\nHe jests at scars. |FIRST LORD.\nI know. |THE END.
First Citizen:\nBefore we proceed any further, hear me speak.
1. Take a train. |2. Take a bus. |(3.) Walk.
He bought apples, pears, etc. and left. |The approx. value rose.
Martin King Jr. spoke at Acme Inc. headquarters. |He won.
It was Smith (e.g. the elder). |The man's. |MAN's. |Next.
吾輩は猫である。|名前はまだ無い。|「行く。」|どこで？！|知らない。
Что это? |Это стол. |Das ist z.B. ein Tisch. |Ja.
She is a rep. |Anna is not. |'Mr. Smith left.' |It was cold (cf. Anna) and “Dr. No” left. |Yes.
word without any stop
""".strip().split("\n")


@pytest.mark.parametrize("case", CASES)
def test_sentences_of(case):
    case = case.replace("\\n", "\n")
    assert sentences(case.replace("|", "")) == case.split("|")


@settings(max_examples=400, deadline=None)
@given(prose)
@example("")
@example(" \n ")
@example(" . ")
def test_joined_sentences_are_the_paragraph(paragraph):
    cut = sentences(paragraph)
    assert "".join(cut) == paragraph
    if paragraph.strip():
        assert all(s.strip() for s in cut)
        assert all(s[0].strip() for s in cut[1:])           # white space belongs to the sentence before it
        assert sentences(cut[0])[0] == cut[0]               # a first sentence is one sentence
        assert all(s[-1].isspace() or s.rstrip("\"'”’»)]}*_」』")[-1] in "。！？" for s in cut[:-1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 2 * MAX_SENTENCE) | st.integers(1, 12), min_size=1, max_size=60),
       st.sampled_from([" ", "\n", "  \t"]))
def test_long_sentences_are_cut_at_a_word_border(lengths, space):
    text = space.join("x" * n for n in lengths) + space
    cut = sentences(text)
    assert "".join(cut) == text and all(0 < len(s.strip()) <= MAX_SENTENCE for s in cut)
    if max(lengths) <= MAX_SENTENCE:
        assert [len(word) for s in cut for word in s.split()] == lengths        # no word was cut
        for s, after in zip(cut, cut[1:]):                                      # and none was cut off too early
            assert len(s + after.split()[0]) > MAX_SENTENCE


def test_a_word_longer_than_the_maximum_is_cut_inside():
    assert [len(s) for s in sentences("ab " + "x" * (2 * MAX_SENTENCE + 7))] == [3, MAX_SENTENCE, MAX_SENTENCE, 7]
    exact = "y" * (MAX_SENTENCE - 2) + " z"
    assert sentences(exact) == [exact] and sentences(exact + "z") == [exact[:-1], "zz"]


@pytest.mark.parametrize("unit", ["word ", ".", ". ", "A. ", ".)", ' "', "。", "ROMEO.\n", "Mr. ", "He left. ", "\n", "x"])
def test_a_long_line_of_anything_comes_back_whole(unit):
    """200 kB a case: an implementation whose time grows with the square of the length would not come back in minutes."""
    text = unit * (200_000 // len(unit)) + "end"
    cut = sentences(text)
    assert "".join(cut) == text and max(len(s.strip()) for s in cut) <= MAX_SENTENCE


# ---------------------------------------------------------------------------------------------------------------------
# paragraphs and the split

def test_paragraphs():
    assert paragraphs("\n\n One.\nTwo. \n \t\n\n\nThree.\n") == ["One.\nTwo.", "Three."]
    assert paragraphs("") == paragraphs(" \n\n \n") == []


@settings(max_examples=200, deadline=None)
@given(prose)
def test_paragraphs_keep_every_word(text):
    cut = paragraphs(text)
    assert [word for p in cut for word in p.split()] == text.split()
    assert all(p == p.strip() != "" and not re.search(r"\n\s*\n", p) for p in cut)
    assert paragraphs("\n\n".join(cut)) == cut


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 300), st.sampled_from([0, 0.01, 0.1, 0.25, 0.5]))
def test_split_takes_the_tail(n, held_out):
    items = [str(i) for i in range(n)]
    train, val = split(items, held_out)
    assert train + val == items and train
    assert len(val) == (max(1, round(held_out * n)) if held_out else 0)


def test_split_of_a_hundred():
    train, val = split(list(range(100)))
    assert (len(train), val) == (90, list(range(90, 100)))


@pytest.mark.parametrize("items, held_out, message", [
    ([1], 0.1, "1 paragraphs, 1 of them"), ([], 0, "0 paragraphs"), ([1, 2], 0.9, "leave none"),
    ([1, 2], 1.0, "held_out is 1.0"), ([1, 2], -0.1, "held_out is -0.1")])
def test_split_refuses(items, held_out, message):
    with pytest.raises(ValueError, match=message):
        split(items, held_out)


# ---------------------------------------------------------------------------------------------------------------------
# files

def test_byte_order_mark_and_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\rThree \xc3\xa9.\n\r\n\rFour.")
    assert read_text(tmp_path / "a.txt") == read_text(str(tmp_path / "a.txt")) == "One.\nTwo.\nThree é.\n\n\nFour."


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    files = {"b.txt": "B", "a/z.MD": "\ufeffZ", "a/empty.txt": "", "a.txt": "A", "c.py": "no", ".git/x.txt": "no", "a/.x.md": "no"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert paragraphs(read_text(tmp_path)) == ["A", "Z", "B"]       # a.txt, a/empty.txt, a/z.MD, b.txt


@pytest.mark.parametrize("data, message", [
    (b"", "empty"),
    (b"\xef\xbb\xbf \r\n", "empty"),
    (b"text\0more", "NUL byte at offset 4"),
    ("text".encode("utf-16"), "NUL byte at offset 3.*iconv -f UTF-16"),
    (b"one\ntwo caf\xe9 three", r"byte 0xe9 at offset 11 \(line 2\) is not UTF-8.*iconv -f LATIN1 -t UTF-8 bad.txt"),
    (b"\xef\xbb\xbfcut \xc3", "byte 0xc3 at offset 7"),             # the mark counts: the offset is that of the file
])
def test_bad_files_are_named(tmp_path, data, message, capsys):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_text(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert main([str(path)]) == 2
    assert capsys.readouterr() == ("", f"error: {error.value}\n")


def test_a_bad_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("Fine.", encoding="utf-8")
    (tmp_path / "other.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="other.md: byte 0xff at offset 0"):
        read_text(tmp_path)


def test_missing_path_and_folder_without_text(tmp_path):
    with pytest.raises(ValueError, match="none.txt: no such file or folder"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="no .txt or .md file"):
        read_text(tmp_path)


def test_main_prints_counts_and_first_sentences(tmp_path, capsys):
    path = tmp_path / "book.txt"
    path.write_text("Anna took\na train. It was late.\n\nMilo é.", encoding="utf-8")
    assert main([str(path), "--show=2"]) == 0
    first, *shown = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: 41 bytes, 2 paragraphs, 3 sentences;") and "longest 18" in first
    assert shown == ["  0: Anna took a train.", "  0: It was late."]
