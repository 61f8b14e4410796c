"""Published tokenizers of tiktoken, with the project's separator token.

    tokenizer = get_tokenizer("gpt2")       # tiktoken downloads the merges once and keeps them
"""
import tiktoken

from data.tokenizer import SEP, Tokenizer


def get_tokenizer(name):
    """A published encoding, such as "gpt2" or "cl100k_base", as a Tokenizer with its own end and `<|sep|>`.
    ValueError for a name that tiktoken does not know, and where the download fails."""
    known = sorted(tiktoken.list_encoding_names())
    if name not in known:
        raise ValueError(f"unknown tokenizer {name!r}; known: {', '.join(known)}")
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:      # ValueError: the download has the wrong hash
        raise ValueError(f"tokenizer {name!r} could not be downloaded ({type(error).__name__}); connect "
                         "once, set TIKTOKEN_CACHE_DIR to a folder that has it, or use train_bpe") from None
    ranks = encoding._mergeable_ranks
    specials = add_separator(encoding._special_tokens, ranks, encoding.max_token_value + 1)
    return Tokenizer(name, ranks, encoding._pat_str, specials, "<|endoftext|>", SEP)


def add_separator(specials, ranks, n_ids):
    """The special tokens {str: id} with names for those of n_ids ids that have none, so that every id
    decodes, and with `<|sep|>` behind them, if it is not there."""
    used = {*ranks.values(), *specials.values()}
    return {SEP: n_ids, **{f"<|unused {i}|>": i for i in range(n_ids) if i not in used}, **specials}
