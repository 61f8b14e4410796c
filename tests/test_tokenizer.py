"""The tokenizer against a slow, literal byte pair encoding, and its promises: round trips, special tokens, files."""
import json
import os
import re

import pytest
import tiktoken
from hypothesis import example, given, settings, strategies as st

from data import tokenizer as module
from data.files import sealed
from data.tokenizer import END, MIN_COUNT, PATTERN, SEP, Tokenizer, get_tokenizer, learn_merges, merge, train_bpe

CORPUS = ["Anna took a train to Oslo.\nShe took a bus back, and another train.", "The train to Oslo: 1905, 1906!",
          "MILO:\r\nIs that a train?\n\tIt is, a train to Bergen; 日本語 and Ærø. naïve café, naïve café"] * 3

few_letters = st.text(alphabet="ab c\n", max_size=40)           # many repeated pairs, many ties
awkward = st.text(alphabet="aaab \t\r\n.,é—日🙂1_'\x00", max_size=40) | st.text(max_size=40)


@pytest.fixture(scope="module")
def tok():
    """A small tokenizer that all tests share."""
    return train_bpe(CORPUS, 320)


def literal_training(texts, n_merges):
    """BPE as the textbook says it: count all pairs, merge the best, count again. Also returns the words as they end."""
    words = [list(word.encode("utf-8")) for text in texts for word in re.findall(PATTERN, text)]
    merges = []
    while len(merges) < n_merges:
        counts = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts or max(counts.values()) < MIN_COUNT:
            break
        best = max(counts.values())
        pair = min(p for p, count in counts.items() if count == best)
        words = [merge(word, pair, 256 + len(merges)) for word in words]
        merges.append(pair)
    return merges, [i for word in words for i in word]


def literal_encoding(ranks, text):
    """In each word, merge the neighbours whose joined bytes have the lowest rank, the leftmost first, until none has one."""
    out = []
    for word in re.findall(PATTERN, text):
        parts = [bytes([b]) for b in word.encode("utf-8")]
        while True:
            joined = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
            if not joined:
                break
            _, i = min(joined)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        out += [ranks[part] for part in parts]
    return out


# ---------------------------------------------------------------------------------------------------------------------
# training and encoding

def test_worked_example():
    """By hand: a+b is met 3 times -> 256; then " "+ab twice -> 257; ab+c only once, below MIN_COUNT, so that is all."""
    tok = train_bpe(["ab ab abc"], 300)
    assert tok.n_vocab == 260 and (tok.end, tok.sep) == (258, 259)
    assert tok.ranks[b"ab"] == 256 and tok.ranks[b" ab"] == 257
    assert tok.encode("ab abc\n") == [256, 257, 99, 10]
    assert tok.encode_batch(["ab", "", "c ab"]) == [[256], [], [99, 257]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc bcd cab ab bca dab abcab dd ddd".split()), min_size=10, max_size=60).map(" ".join),
       st.integers(0, 20))
@example(" ".join(CORPUS), 300)
def test_training_equals_the_literal_one_on_words(text, n_merges):
    """Overlapping words: most merges take occurrences from the pairs that come next, which the heap must notice."""
    check_training([text], n_merges)


@settings(max_examples=60, deadline=None)
@given(st.lists(few_letters | awkward, max_size=6), st.integers(0, 25))
def test_training_equals_the_literal_one_on_any_text(texts, n_merges):
    check_training(texts, n_merges)


def check_training(texts, n_merges):
    merges, final = literal_training(texts, n_merges)
    tok = train_bpe(texts, 258 + n_merges)
    tokens = {i: token for token, i in tok.ranks.items()}
    assert [tokens[256 + k] for k in range(len(merges))] == [tokens[a] + tokens[b] for a, b in merges]
    assert tok.n_vocab == 258 + len(merges)
    assert [i for ids in tok.encode_batch(texts) for i in ids] == final     # the corpus is encoded as training left it


def test_merges_are_pairs_of_ids_with_frequencies():
    """Word frequencies weigh the pairs: (3, 4) is met 5 times, (1, 2) only 2 + 2 times; overlaps merge from the left."""
    words = [[1, 2, 1, 2], [3, 4], [7, 7, 7]]
    assert learn_merges(words, [2, 5, 1], 2) == [(3, 4), (1, 2)]
    assert words == [[257, 257], [256], [7, 7, 7]]
    assert merge([7, 7, 7, 7, 7], (7, 7), 9) == [9, 9, 7]


@settings(max_examples=40, deadline=None)
@given(st.permutations(CORPUS[:3] + ["b a", "a b", "to be", "be to"]))
def test_the_order_of_the_texts_does_not_matter(texts):
    assert train_bpe(texts, 300).hash == train_bpe(sorted(texts), 300).hash


@settings(max_examples=100, deadline=None)
@given(awkward | st.lists(st.sampled_from(["Anna ", "train", " to", "Oslo", "naïve", "19051906"]), max_size=8).map("".join))
def test_encoding_equals_literal_greedy_merging(tok, text):
    assert tok.encode(text) == literal_encoding(tok.ranks, text)


@settings(max_examples=100, deadline=None)
@given(awkward)
def test_both_engines_cut_the_same_words(text):
    """Where every word that `re` finds is a token, tiktoken gives one id a word only if it cuts at the same places."""
    assert_cut_alike(text)


def test_both_engines_know_the_same_letters():
    """Every character of the basic plane, and every 64th beyond, between a letter and a digit."""
    codes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 64)]
    assert_cut_alike("".join(f"a{chr(c)}1" for c in codes))


def assert_cut_alike(text):
    words = re.findall(PATTERN, text)
    assert "".join(words) == text
    ranks = {bytes([b]): b for b in range(256)}
    for word in words:
        ranks.setdefault(word.encode("utf-8"), len(ranks))
    encoding = tiktoken.Encoding("cuts", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert encoding.encode_ordinary(text) == [ranks[word.encode("utf-8")] for word in words]


def test_words():
    text = "Anna's 12345 trains\r\n\n   left (at 3.14)?! Ærø—日本。"
    assert re.findall(PATTERN, text) == ["Anna", "'", "s", " 123", "45", " trains", "\r", "\n", "\n", "   ", "left", " (",
                                         "at", " 3", ".", "14", ")?!", " Ærø", "—", "日本", "。"]
    assert max(map(len, re.findall(PATTERN, "a" * 500 + "." * 500 + " " * 500))) == 48


def test_a_newline_is_always_one_token(tok):
    many = train_bpe(["a\n\n\nb\n\n\n" * 50], 300)
    assert many.encode("\n\n\n.\n") == [10, 10, 10, 46, 10]
    assert tok.encode("Oslo\r\n") == tok.encode("Oslo") + [13, 10]


@settings(max_examples=100, deadline=None)
@given(awkward, awkward)
def test_pieces_that_begin_with_a_space_encode_as_the_running_text(tok, first, second):
    """Annotated documents are encoded piece by piece; the tokens must be those of the joined text."""
    first, second = first.rstrip(" \t\r\v\f"), " " + second
    assert tok.encode(first) + tok.encode(second) == tok.encode(first + second)


@pytest.mark.parametrize("n_vocab", [257, 0, -1])
def test_too_small_a_vocabulary_is_refused(n_vocab):
    with pytest.raises(ValueError, match=f"n_vocab is {n_vocab}.* at least 258$"):
        train_bpe(["text"], n_vocab)


def test_smallest_vocabulary_and_empty_corpus():
    assert train_bpe(CORPUS, 258).n_vocab == train_bpe([], 1000).n_vocab == 258
    assert train_bpe([], 1000).encode("é\n") == [0xC3, 0xA9, 10]


def test_one_string_in_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match="list of texts"):
        train_bpe("text", 300)


# ---------------------------------------------------------------------------------------------------------------------
# round trips and special tokens

@settings(max_examples=200, deadline=None)
@given(awkward)
def test_text_survives(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text and tok.decode_bytes(ids) == text.encode("utf-8")
    assert tok.encode_batch([text, text]) == [ids, ids]
    assert tok.encode_bytes(text.encode("utf-8")) == ids


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60)
       | st.lists(st.sampled_from([b"train", "é".encode(), b"\xc3", b"\xed\xb2\x80", b"\xff\xfe", b" a"])).map(b"".join))
def test_any_bytes_survive(tok, data):
    ids = tok.encode_bytes(data)
    assert tok.decode_bytes(ids) == data and max(ids, default=0) < tok.end


def test_half_a_character_decodes_to_a_replacement(tok):
    assert tok.decode([0xC3]) == "\ufffd" and tok.decode([65, 0xFF, 66]) == "A\ufffdB"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([END, SEP, "<|", "|>", "end", "sep", " ", "\n", "<|endoftext|>"]), max_size=8).map("".join))
def test_special_tokens_cannot_be_forged_by_text(tok, text):
    ids = tok.encode(text)
    assert ids == tok.encode_batch([text])[0] == tok.encode_bytes(text.encode())
    assert max(ids, default=0) < min(tok.end, tok.sep) and tok.decode(ids) == text


def test_special_tokens_cannot_be_learned_from_text():
    """Not even a corpus full of them makes ordinary text give the special ids."""
    tok = train_bpe([(END + SEP) * 100], 1000)
    assert max(tok.encode(END + SEP)) < tok.end == tok.n_vocab - 2 and tok.sep == tok.n_vocab - 1


def test_special_ids_are_shown_by_name(tok):
    assert tok.decode([*tok.encode("Oslo"), tok.sep, *tok.encode(" yes"), tok.end]) == "Oslo<|sep|> yes<|end|>"


@pytest.mark.parametrize("bad", [-1, 320, 2 ** 40])
def test_an_id_outside_the_vocabulary_is_named(tok, bad):
    assert tok.n_vocab == 320
    with pytest.raises(ValueError, match=f"token id {bad} .*0 to 319"):
        tok.decode([65, bad])


# ---------------------------------------------------------------------------------------------------------------------
# files

def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "sub" / "tok")
    assert sorted(os.listdir(tmp_path / "sub" / "tok")) == ["tokenizer.json", "tokenizer.tiktoken"]
    back = Tokenizer.load(tmp_path / "sub" / "tok")
    for field in ("name", "n_vocab", "end", "sep", "hash", "ranks", "specials", "pattern"):
        assert getattr(back, field) == getattr(tok, field)
    assert back.encode("a train to Ærø\n") == tok.encode("a train to Ærø\n")
    first = (tmp_path / "sub" / "tok" / "tokenizer.tiktoken").read_text(encoding="utf-8").split("\n")[65]
    assert first == "QQ== 65"                                   # base64 of "A", its id


def test_the_hash_tells_tokenizers_apart(tok):
    others = [train_bpe(CORPUS, 319), train_bpe(CORPUS[:1] * 9, 320),
              Tokenizer("bpe", tok.ranks, PATTERN + "|x", tok.specials, END, SEP),
              Tokenizer("bpe", tok.ranks, PATTERN, {END: tok.sep, SEP: tok.end}, END, SEP)]
    assert len({tok.hash, *(other.hash for other in others)}) == 5
    assert re.fullmatch("[0-9a-f]{16}", tok.hash) and train_bpe(CORPUS, 320).hash == tok.hash


def test_a_damaged_file_is_detected(tok, tmp_path):
    """One changed byte anywhere in either file: an error that names the file, or a tokenizer with the very same content."""
    tok.save(tmp_path)
    for file in ("tokenizer.tiktoken", "tokenizer.json"):
        path, whole = tmp_path / file, (tmp_path / file).read_bytes()
        caught = 0
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 5]) + whole[at + 1:])
            try:
                assert Tokenizer.load(tmp_path).hash == tok.hash
            except ValueError as error:
                assert "tokenizer." in str(error) and "\n" not in str(error)
                caught += 1
        path.write_bytes(whole)
        assert caught > 0.7 * len(range(0, len(whole), 7))       # the rest: white space, the name in the card
    assert Tokenizer.load(tmp_path).hash == tok.hash


def resealed(text, **changes):
    """A card that was changed by someone who knows how to seal."""
    return json.dumps(sealed({name: value for name, value in json.loads(text).items() if name != "sha256"} | changes))


@pytest.mark.parametrize("file, change, message", [
    ("tokenizer.tiktoken", lambda s: s.replace("QQ== 65\n", ""), "hash"),
    ("tokenizer.tiktoken", lambda s: s.replace("QQ== 65\n", "QQ== 66\n").replace("Qg== 66\n", "Qg== 65\n"), "hash"),
    ("tokenizer.tiktoken", lambda s: s + "\x00 binary", "base64"),
    ("tokenizer.json", lambda s: json.dumps({**json.loads(s), "pattern": "."}), "not as it was written"),
    ("tokenizer.json", lambda s: json.dumps({**json.loads(s), "end": "<|sep|>"}), "not as it was written"),
    ("tokenizer.json", lambda s: resealed(s, hash="0" * 16), "hash"),
    ("tokenizer.json", lambda s: resealed(s, specials=[]), "not the file"),
    ("tokenizer.json", lambda s: resealed(s, end="<|start|>"), "not the file"),
    ("tokenizer.json", lambda s: "[]", "not the file"),
    ("tokenizer.json", lambda s: "{}", "not the file"),
    ("tokenizer.json", lambda s: s[:50], "not the file"),
])
def test_what_is_wrong_is_said(tok, tmp_path, file, change, message):
    tok.save(tmp_path)
    path = tmp_path / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert file in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.tiktoken: no such file"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# published tokenizers (a small stand-in, so that the tests need no network)

def test_a_published_encoding_gets_a_separator(tok, tmp_path, monkeypatch):
    """Its own end stays, the gap in its ids gets a name, the separator comes last; saved, it loads without a network."""
    n = len(tok.ranks)
    published = tiktoken.Encoding("gpt2", pat_str=tok.pattern, mergeable_ranks=tok.ranks,
                                  special_tokens={"<|endoftext|>": n, "<|fim|>": n + 2})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: published)
    gpt2 = get_tokenizer("gpt2")
    assert (gpt2.name, gpt2.end, gpt2.sep, gpt2.n_vocab) == ("gpt2", n, n + 3, n + 4)
    assert gpt2.encode("train<|endoftext|>") == published.encode_ordinary("train<|endoftext|>")
    assert gpt2.decode(range(n, n + 4)) == f"<|endoftext|><|unused {n + 1}|><|fim|><|sep|>"
    gpt2.save(tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    back = Tokenizer.load(tmp_path)
    assert (back.name, back.hash, back.end, back.sep) == (gpt2.name, gpt2.hash, gpt2.end, gpt2.sep)


def offline(name):
    raise ConnectionError("no route\nto host")


def test_no_network_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(module.tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match="'gpt2' could not be downloaded") as error:
        get_tokenizer("gpt2")
    assert "\n" not in str(error.value) and "train_bpe" in str(error.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown tokenizer 'gpt-2'; known: .*gpt2"):
        get_tokenizer("gpt-2")
