"""
Tokenizers in the files of the Hugging Face format, read and written: the same ids for every text, there and here.

    tok = read_tokenizer("my/folder")      # tokenizer.json, or vocab.json and merges.txt -> Tokenizer, `<|sep|>` added
    files = tokenizer_files(tok, 1024)     # what AutoTokenizer.from_pretrained opens, {file name: content}

What is written encodes as ours does, also where a text spells a special token: "<|end|>" comes out as ordinary signs
(`split_special_tokens`). The token itself is had by its id, tok.convert_tokens_to_ids("<|end|>"). One thing differs:
half a surrogate pair, which is no text, becomes U+FFFD here and a TypeError there.
"""
import json
import math
import os
import re

from data.files import brief
from data.tokenizer import SEP, Tokenizer

# How GPT-2 cuts words, as tiktoken writes it since 0.8 (the hash of a tokenizer depends on the pattern).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Byte-level vocabularies spell every byte as one visible character: a byte that is visible in Latin-1 as itself, the
# others in their order as the characters from U+0100 on, a space as "Ġ" for instance.
VISIBLE = [b for b in range(256) if 33 <= b <= 126 or b >= 161 and b != 173]
HIDDEN = [b for b in range(256) if b not in VISIBLE]
SPELLING = {b: chr(b) for b in VISIBLE} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}
BYTES = {char: b for b, char in SPELLING.items()}


def read_json(path):
    """The JSON object of a file as a dict; ValueError of one line where there is none."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file; expected a folder in Hugging Face's format")
    try:
        with open(path, encoding="utf-8") as f:
            return dict(json.load(f))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON object ({brief(error)})") from None


# ---------------------------------------------------------------------------------------------------------------------
# in

def read_tokenizer(folder):
    """
    The Tokenizer of a local folder, from tokenizer.json, or else from vocab.json and merges.txt.

    `<|sep|>` comes behind the last id where there is none, as in get_tokenizer: from GPT-2's files the hash is that of
    get_tokenizer("gpt2"), from an exported student it is the student's. ValueError of one line for anything but a
    byte-level BPE, and where the merges do not stand in the order of their ids, which is the only one in tiktoken.
    """
    path, settings = (os.path.join(folder, name) for name in ("tokenizer.json", "tokenizer_config.json"))
    end = read_json(settings).get("eos_token") if os.path.isfile(settings) else None
    end = end.get("content") if isinstance(end, dict) else end or "<|endoftext|>"
    card = read_json(path) if os.path.isfile(path) else None
    path = path if card else os.path.join(folder, "vocab.json")
    words = None if card else read_json(path)
    try:
        if card:
            vocab, merges, pattern = card["model"]["vocab"], card["model"]["merges"], pattern_of(card)
            specials = {token["content"]: token["id"] for token in card["added_tokens"]}
        else:
            vocab, pattern = words, GPT2_PATTERN
            with open(os.path.join(folder, "merges.txt"), encoding="utf-8") as f:
                merges = [line for line in f.read().split("\n") if line and not line.startswith("#version")]
            specials = {end: vocab[end]}
        ranks = {bytes(BYTES[char] for char in token): i for token, i in vocab.items() if token not in specials}
        specials.setdefault(SEP, len(ranks) + len(specials))
        if sorted([*ranks.values(), *specials.values()]) != list(range(len(ranks) + len(specials))):
            raise ValueError("its ids are not 0, 1, 2 and so on")
        if [merge if isinstance(merge, str) else " ".join(merge) for merge in merges] != merges_of(ranks):
            raise ValueError("its merges are not in the order of its ids")
        return Tokenizer("gpt2" if pattern == GPT2_PATTERN else "bpe", ranks, pattern, specials, end, SEP)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a byte-level BPE that tiktoken can apply ({brief(error)})") from None


def pattern_of(card):
    """The pattern by which a tokenizer.json (a dict) cuts words; ValueError where it does anything else to a text."""
    *before, last = card["pre_tokenizer"].get("pretokenizers", [card["pre_tokenizer"]])
    if card["model"]["type"] == "BPE" and not card.get("normalizer") and last["type"] == "ByteLevel" \
            and not last.get("add_prefix_space"):
        if not before and last.get("use_regex", True):
            return GPT2_PATTERN
        if len(before) == 1 and not last.get("use_regex", True) \
                and (before[0]["type"], before[0]["behavior"], before[0]["invert"]) == ("Split", "Isolated", False):
            return before[0]["pattern"]["Regex"]
    raise ValueError("it cuts or changes texts as GPT-2 does not")


# ---------------------------------------------------------------------------------------------------------------------
# out

def merges_of(ranks):
    """
    {bytes: id} -> the merges as merges.txt has them, list of "left right", in the order in which they apply.

    tiktoken joins the neighbours whose joined bytes have the lowest id, Hugging Face's tokenizers have a list of pairs.
    Both give the same ids where each token is given the one pair that the tokens of lower ids leave of it. Where they
    leave more than two it has no merge: it is then met as a whole word only, and taken as it is (`ignore_merges`).

    >>> merges_of({b"a": 0, b"b": 1, b"ab": 2, b"aab": 3})
    ['a b', 'a ab']
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            lowest, i = min((ranks.get(parts[i] + parts[i + 1], math.inf), i) for i in range(len(parts) - 1))
            if lowest >= rank:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(" ".join(map(spell, parts)))
    return merges


def spell(token):
    """bytes -> str in visible characters: b" to" is "Ġto"."""
    return "".join(SPELLING[b] for b in token)


def tokenizer_files(tokenizer, block_size):
    """{file name: content, any JSON or str} that make transformers' AutoTokenizer encode and decode as this Tokenizer.

    vocab.json and merges.txt only where words are cut as GPT-2 does: the two hold no pattern, and software that reads
    nothing else cuts as GPT-2 does, so from a tokenizer trained here it would make other ids without a word."""
    names = {i: name for name, i in sorted(tokenizer.specials.items(), key=lambda item: item[1])}
    vocab = {spell(token): i for token, i in tokenizer.ranks.items()} | tokenizer.specials
    vocab, merges = dict(sorted(vocab.items(), key=lambda item: item[1])), merges_of(tokenizer.ranks)
    added = [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, name in names.items()]
    # "{1,3}+" never gives back in tiktoken's regular expressions, but means "once or more often" in those of Hugging
    # Face. cl100k_base has it where nothing follows, so nothing could be given back either.
    pattern = re.sub(r"(\{\d+,?\d*\})\+", r"\1", tokenizer.pattern)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, level]
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
           "fuse_unk": False, "byte_fallback": False, "ignore_merges": True, "vocab": vocab, "merges": merges}
    files = {"tokenizer.json": {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                                "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
                                "post_processor": None, "decoder": level, "model": bpe},
             "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
                                       "bos_token": names[tokenizer.end], "eos_token": names[tokenizer.end],
                                       "split_special_tokens": True, "clean_up_tokenization_spaces": False,
                                       # by default also token_type_ids, and GPT-2 would add embeddings for these
                                       "model_input_names": ["input_ids", "attention_mask"]}}
    if tokenizer.pattern == GPT2_PATTERN:
        files |= {"vocab.json": vocab, "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}
    return files
