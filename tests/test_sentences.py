"""The sentence splitter: nothing is lost, and sentences end where a reader would end them."""

import pytest
from hypothesis import example, given, settings, strategies as st

from adapters.sentences import MAX_SENTENCE, sentences

FRAGMENTS = ["Anna", "took", "the", "The", "A", "Mr.", "J.", "U.S.", "No.", "3.14", "1.", "ROMEO:\n", ".",
             "!", "...", "…", "?!", "\"", "'", "(", ")", " ", "  ", "\n", "\t", "\u2028", "\x1c", "。", "」",
             "日本", "é", "ROMEO.\n"]

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
First Citizen:\nBefore we proceed any further, hear me speak.
1. Take a train. |2. Take a bus. |(3.) Walk.
He bought apples, pears, etc. and left. |The approx. value rose.
Martin King Jr. spoke at Acme Inc. headquarters. |He won.
It was Smith (e.g. the elder). |The man's. |MAN's. |Next.
吾輩は猫である。|名前はまだ無い。|「行く。」|どこで？！|知らない。
Что это? |Это стол. |Das ist z.B. ein Tisch. |Ja.
She is a rep. |Anna is not. |'Mr. Smith left.' |It was cold (cf. Anna) and “Dr. No” left. |Yes.
It is a river.[1] |The flood came.[1][12] |He left.[note 2] |She “stayed.”[a] |See [to the man] and [sic.] more.
The end.[citation needed] |Rain fell.[^3] |Was it?(2) |So.{4} |Yes.¹² |No.† |(He left.)[5] |It ended.12 |Then “late.”3 |We
Pi is 3.14 The. |See Fig.3 The U.S.[4] Senate, version 2.1 Next, [He left. |She stayed.] |They (see [1]) went etc.[7] on.
Dr. [He] left.[1] she said. |Mt.[2] Blanc.[3] |No.[4] 5 ends. |A long [very, very long] way.[5] |B.
猫である。[1]|名前は無い。²|「行く。」[注 3]|知らない。
word without any stop
""".strip().split("\n")


@pytest.mark.parametrize("case", CASES)
def test_sentences_of(case):
    case = case.replace("\\n", "\n")
    assert sentences(case.replace("|", "")) == case.split("|")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join) | st.text(max_size=80))
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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2 * MAX_SENTENCE) | st.integers(1, 12), min_size=1, max_size=60),
       st.sampled_from([" ", "\n", "  \t"]))
def test_long_sentences_are_cut_between_words(lengths, space):
    text = space.join("x" * n for n in lengths) + space
    cut = sentences(text)
    assert "".join(cut) == text and all(0 < len(s.strip()) <= MAX_SENTENCE for s in cut)
    if max(lengths) <= MAX_SENTENCE:
        assert [len(word) for s in cut for word in s.split()] == lengths        # no word was cut
        for s, after in zip(cut, cut[1:]):                                      # and no piece is too short
            assert len(s + after.split()[0]) > MAX_SENTENCE


def test_a_word_longer_than_the_maximum_is_cut_inside():
    cut = sentences("ab " + "x" * (2 * MAX_SENTENCE + 7))
    assert [len(s) for s in cut] == [3, MAX_SENTENCE, MAX_SENTENCE, 7]
    exact = "y" * (MAX_SENTENCE - 2) + " z"
    assert sentences(exact) == [exact] and sentences(exact + "z") == [exact[:-1], "zz"]


@pytest.mark.parametrize("unit", ["word ", ".", ". ", "A. ", ".)", ' "', "。", "ROMEO.\n", "He left. ", "x",
                                  "[1]", "[1]x", "[a b ", "a.[", "He left.[1] "])
def test_a_long_line_of_anything_comes_back_whole(unit):
    """200 kB a case: with a quadratic time it would take minutes."""
    text = unit * (200_000 // len(unit)) + "end"
    cut = sentences(text)
    assert "".join(cut) == text and max(len(s.strip()) for s in cut) <= MAX_SENTENCE
