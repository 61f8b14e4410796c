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
    # Gaps between ids get names, so that every id decodes.
    ranks, specials = encoding._mergeable_ranks, dict(encoding._special_tokens)
    used = {*ranks.values(), *specials.values()}
    specials |= {f"<|unused {i}|>": i for i in range(encoding.max_token_value + 1) if i not in used}
    specials[SEP] = encoding.max_token_value + 1
    return Tokenizer(name, ranks, encoding._pat_str, specials, "<|endoftext|>", SEP)
