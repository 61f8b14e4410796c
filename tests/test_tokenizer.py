"""The tokenizer against a slow, literal byte pair encoding: training, encoding, round trips, files."""
import os
import random
import re
import time
from collections import Counter
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import example, given, settings, strategies as st

from adapters.tokenizers import get_tokenizer
from data.tokenizer import END, MIN_COUNT, PATTERN, SEP, Tokenizer, learn_merges, train_bpe
from model import GPT, GPTConfig
from tests.test_gpt2 import GPT2_PATTERN

CORPUS = ["Anna took a train to Oslo.\nShe took a bus back, and another train.", "To Oslo: 1905, 1906!",
          "MILO:\r\nIs that a train?\n\tIt is, a train to Bergen; 日本語 and Ærø. naïve café, naïve café"] * 3
few_letters = st.text(alphabet="ab c\n", max_size=40)           # many repeated pairs, many ties
overlapping = st.lists(st.sampled_from("abc bcd cab ab bca dab abcab dd".split()), min_size=9).map(" ".join)
awkward = st.text(alphabet="aaab \t\r\n.,é—日🙂1_'\x00", max_size=40) | st.text(max_size=40)


@pytest.fixture(scope="module")
def tok():
    return train_bpe(CORPUS, 320)


def merge(ids, pair, new):
    """Replace every occurrence of a pair, from left to right: merge([1, 1, 1, 2], (1, 1), 9) -> [9, 1, 2]."""
    out, i = [], 0
    while i < len(ids):
        here = tuple(ids[i:i + 2]) == pair
        out.append(new if here else ids[i])
        i += 1 + here
    return out


def literal_training(texts, n_merges):
    """Count all pairs, merge the best, count again -> (merges, ids of all words at the end)."""
    words = [list(word.encode("utf-8")) for text in texts for word in re.findall(PATTERN, text)]
    merges = []
    while len(merges) < n_merges:
        counts = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts.values(), default=0)
        if best < MIN_COUNT:
            break
        pair = min(p for p, count in counts.items() if count == best)
        words = [merge(word, pair, 256 + len(merges)) for word in words]
        merges.append(pair)
    return merges, [i for word in words for i in word]


def literal_encoding(ranks, text):
    """In each word, merge the neighbours whose joined bytes have the lowest rank, the leftmost first."""
    out = []
    for word in re.findall(PATTERN, text):
        parts = [bytes([b]) for b in word.encode("utf-8")]
        while joined := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            i = min(joined)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        out += [ranks[part] for part in parts]
    return out


# --- training and encoding ----------------------------------------------------------------------------------

def test_worked_example():
    """a+b occurs 3 times -> 256; then " "+ab twice -> 257; ab+c only once, below MIN_COUNT."""
    tok = train_bpe(["ab ab abc"], 300)
    assert tok.n_vocab == 260 and (tok.end, tok.sep) == (258, 259)
    assert tok.ranks[b"ab"] == 256 and tok.ranks[b" ab"] == 257
    assert tok.encode("ab abc\n") == [256, 257, 99, 10]
    assert tok.encode_batch(["ab", "", "c ab"]) == [[256], [], [99, 257]]


@settings(max_examples=150, deadline=None)
@given(st.lists(overlapping | few_letters | awkward, max_size=6), st.integers(0, 25))
@example(CORPUS, 300)
def test_training_equals_the_literal_one(texts, n_merges):
    """With overlapping words most merges take occurrences from the next pairs, which the heap must notice."""
    merges, final = literal_training(texts, n_merges)
    tok = train_bpe(texts, 258 + n_merges)
    tokens = {i: token for token, i in tok.ranks.items()}
    assert [tokens[256 + k] for k in range(len(merges))] == [tokens[a] + tokens[b] for a, b in merges]
    assert tok.n_vocab == 258 + len(merges)
    assert [i for ids in tok.encode_batch(texts) for i in ids] == final     # encoded as training left them
    assert train_bpe(texts[::-1], 258 + n_merges).hash == tok.hash          # in any order


def test_merges_are_pairs_of_ids_with_frequencies():
    """(3, 4) counts 5, (1, 2) only 2 + 2; overlaps merge from the left."""
    words = [[1, 2, 1, 2], [3, 4], [7, 7, 7]]
    assert learn_merges(words, [2, 5, 1], 2) == [(3, 4), (1, 2)]
    assert words == [[257, 257], [256], [7, 7, 7]]
    words = [[7, 7, 7, 7, 7], [7, 7], [], [7]]
    assert learn_merges(words, [3, 3, 1, 9], 1) == [(7, 7)] and words == [[256, 256, 7], [256], [], [7]]


SCRIPTS = {"DNA": "ACGT", "Chinese": [chr(0x4e00 + i) for i in range(300)], "one letter": "a"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_without_spaces(script):
    """Words of 48 letters: the literal merges, and 700 of them cost less than 100 counts of all pairs."""
    text = "".join(random.Random(1).choices(SCRIPTS[script], k=120_000))
    merges, _ = literal_training([text[:3000]], 120)
    words = [list(word.encode("utf-8")) for word in re.findall(PATTERN, text[:3000])]
    assert learn_merges(words, [1] * len(words), 120) == merges
    words, begin = [list(word.encode("utf-8")) for word in re.findall(PATTERN, text)], time.process_time()
    Counter(pair for word in words for pair in pairwise(word))
    recount, begin = time.process_time() - begin, time.process_time()
    learn_merges(words, [1] * len(words), 700)
    assert time.process_time() - begin < 100 * recount


def cut_alike(text):
    """If every word that `re` finds is a token, tiktoken gives one id a word only if it cuts alike."""
    words = re.findall(PATTERN, text)
    ranks = {bytes([b]): b for b in range(256)}
    for word in words:
        ranks.setdefault(word.encode("utf-8"), len(ranks))
    encoding = tiktoken.Encoding("cuts", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    ids = [ranks[word.encode("utf-8")] for word in words]
    return "".join(words) == text and encoding.encode_ordinary(text) == ids


@settings(max_examples=150, deadline=None)
@given(awkward | st.lists(st.sampled_from(["Anna ", "train", " to", "naïve", "19051906"])).map("".join))
def test_encoding_equals_literal_greedy_merging_and_text_survives(tok, text):
    ids = tok.encode(text)
    assert ids == literal_encoding(tok.ranks, text) == tok.encode_batch([text])[0] and cut_alike(text)
    assert tok.decode(ids) == text


def test_both_engines_know_the_same_letters():
    """Every character of the basic plane, and every 64th of the others, between a letter and a digit."""
    codes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 64)]
    assert cut_alike("".join(f"a{chr(c)}1" for c in codes))


def test_words(tok):
    text = "Anna's 12345 trains\r\n\n   left (at 3.14)?! Ærø—日本。"
    assert "|".join(re.findall(PATTERN, text)) == (
        "Anna|'|s| 123|45| trains|\r|\n|\n|   |left| (|at| 3|.|14|)?!| Ærø|—|日本|。")
    assert max(map(len, re.findall(PATTERN, "a" * 500 + "." * 500 + " " * 500))) == 48
    many = train_bpe(["a\n\n\nb\n\n\n" * 50], 300)                     # a newline is always one token
    assert many.encode("\n\n\n.\n") == [10, 10, 10, 46, 10]


@settings(max_examples=100, deadline=None)
@given(awkward, awkward)
def test_pieces_that_begin_with_a_space_encode_as_the_running_text(tok, first, second):
    """Annotated documents are encoded piece by piece; the tokens must be those of the joined text."""
    first, second = first.rstrip(" \t\r\v\f"), " " + second
    assert tok.encode(first) + tok.encode(second) == tok.encode(first + second)


def test_limits_of_training():
    for n_vocab in (257, -1):
        with pytest.raises(ValueError, match=f"n_vocab is {n_vocab}.* at least 258$"):
            train_bpe(["text"], n_vocab)
    with pytest.raises(ValueError, match="list of texts"):
        train_bpe("text", 300)
    assert train_bpe(CORPUS, 258).n_vocab == train_bpe([], 1000).n_vocab == 258
    assert train_bpe([], 1000).encode("é\n") == [0xC3, 0xA9, 10]


# --- special tokens, decoding, files ------------------------------------------------------------------------

@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([END, SEP, "<|", "|>", "end", " ", "\n", "<|endoftext|>"])).map("".join))
@example((END + SEP) * 100)
def test_special_tokens_cannot_be_written_in_text(tok, text):
    for one in (tok, train_bpe([text], 1000)):                          # nor can they be learnt from it
        ids = one.encode(text)
        assert max(ids, default=0) < min(one.end, one.sep) and one.decode(ids) == text


def test_decoding_any_id(tok):
    assert tok.decode([*tok.encode("Oslo"), tok.sep, *tok.encode(" so"), tok.end]) == "Oslo<|sep|> so<|end|>"
    assert tok.decode([0xC3]) == "\ufffd" and tok.decode([65, 0xFF, 66]) == "A\ufffdB"
    for bad in (-1, 320, 2 ** 40):
        with pytest.raises(ValueError, match=f"token id {bad} .*0 to 319"):
            tok.decode([65, bad])


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "tok")
    assert sorted(os.listdir(tmp_path / "tok")) == ["tokenizer.json", "tokenizer.tiktoken"]
    back = Tokenizer.load(tmp_path / "tok")
    for field in ("name", "n_vocab", "end", "sep", "hash", "ranks", "specials", "pattern"):
        assert getattr(back, field) == getattr(tok, field)
    assert back.encode("a train to Ærø\n") == tok.encode("a train to Ærø\n")
    lines = (tmp_path / "tok" / "tokenizer.tiktoken").read_text(encoding="utf-8").split("\n")
    assert lines[65] == "QQ== 65"                                       # base64 of "A", its id
    with pytest.raises(OSError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_the_hash_tells_tokenizers_apart(tok):
    others = [train_bpe(CORPUS, 319), train_bpe(CORPUS[:1] * 9, 320),
              Tokenizer("bpe", tok.ranks, PATTERN + "|x", tok.specials, END, SEP),
              Tokenizer("bpe", tok.ranks, PATTERN, {END: tok.sep, SEP: tok.end}, END, SEP),
              Tokenizer("bpe", tok.ranks, PATTERN, tok.specials, SEP, END),
              *(Tokenizer("bpe", tok.ranks, PATTERN, tok.specials | {"[PAD]": 320}, end, sep)
                for end, sep in [(END, SEP), ("[PAD]", SEP), (END, "[PAD]"), (SEP, "[PAD]")])]
    assert len({tok.hash, *(other.hash for other in others)}) == 10
    assert re.fullmatch("[0-9a-f]{16}", tok.hash)


@pytest.mark.parametrize("file", ["tokenizer.tiktoken", "tokenizer.json"])
def test_a_damaged_file_is_detected(tok, tmp_path, file):
    """A changed byte: an error of one line that names the file, or a tokenizer of equal content."""
    tok.save(tmp_path)
    path, caught = tmp_path / file, 0
    whole = path.read_bytes()
    places = range(0, len(whole), 17)
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 5]) + whole[at + 1:])
        try:
            assert Tokenizer.load(tmp_path).hash == tok.hash
        except ValueError as error:
            assert file in str(error) and "\n" not in str(error)
            caught += 1
    assert caught > 0.7 * len(places)                                   # the rest is white space


@pytest.mark.parametrize("pattern, repeated", [
    (GPT2_PATTERN, " "), (GPT2_PATTERN, "\n"), (r"\s+(?!\S)|\s+|\w+(?!\w)|.", "\u2003"), (r"\w+(?!\w)|.", "é")])
def test_a_million_of_one_character(tok, pattern, repeated):
    """tiktoken panics where an expression steps back a million times; ordinary text keeps its tokens."""
    one, text = Tokenizer("other", tok.ranks, pattern, tok.specials, END, SEP), repeated * 1_000_001 + "?"
    ids = one.encode(text)
    assert one.decode(ids) == text
    text = " ".join(CORPUS) * 600
    assert one.encode(text) == one._encoding.encode_ordinary(text) and len(text) > 150_000


def test_what_cannot_encode_every_text_is_refused(tok):
    ranks = {token: i - 1 for token, i in tok.ranks.items() if token != b"\x00"}
    with pytest.raises(ValueError, match="^1 of 256 bytes have no token, 0x00 is the first"):
        Tokenizer("bpe", ranks, PATTERN, {END: len(ranks), SEP: len(ranks) + 1}, END, SEP)
    with pytest.raises(ValueError, match="expected two tokens"):
        Tokenizer("bpe", tok.ranks, PATTERN, tok.specials, END, END)


# --- published tokenizers (a small stand-in, so that the tests need no network) -----------------------------

def test_a_published_encoding_gets_a_separator(tok, tmp_path, monkeypatch):
    """Its own end stays, the gap in its ids gets a name, the separator comes last."""
    n = len(tok.ranks)
    published = tiktoken.Encoding("gpt2", pat_str=tok.pattern, mergeable_ranks=tok.ranks,
                                  special_tokens={"<|endoftext|>": n, "<|fim|>": n + 2})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: published)
    gpt2 = get_tokenizer("gpt2")
    assert (gpt2.name, gpt2.end, gpt2.sep, gpt2.n_vocab) == ("gpt2", n, n + 3, n + 4)
    assert gpt2.encode("train<|endoftext|>") == published.encode_ordinary("train<|endoftext|>")
    assert gpt2.decode(range(n, n + 4)) == f"<|endoftext|><|unused {n + 1}|><|fim|><|sep|>"
    gpt2.save(tmp_path)
    back = Tokenizer.load(tmp_path)
    assert (back.name, back.hash, back.end, back.sep) == (gpt2.name, gpt2.hash, gpt2.end, gpt2.sep)


def test_no_network_and_an_unknown_name_are_one_clear_line(monkeypatch):
    def offline(name):
        raise ConnectionError("no route\nto host")
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match="^tokenizer 'gpt2' could not be downloaded.*train_bpe$"):
        get_tokenizer("gpt2")
    with pytest.raises(ValueError, match="unknown tokenizer 'gpt-2'; known: .*gpt2"):
        get_tokenizer("gpt-2")


def test_the_tokenizer_of_another_student_is_refused(tmp_path):
    one, other = (train_bpe([text * 50], 270) for text in ("hello world ", "another text "))
    for folder, tokenizer in (("a", one), ("b", other)):
        tokenizer.save(tmp_path / folder)
        GPT(GPTConfig(270, 16, 1, 2, 8)).save(tmp_path / folder, {"tokenizer": tokenizer.hash})
    assert Tokenizer.load(tmp_path / "a").hash == one.hash
    other.save(tmp_path / "a")
    with pytest.raises(ValueError, match="not the tokenizer with which this student has learnt"):
        Tokenizer.load(tmp_path / "a")
