"""Text at the command line: a model goes on with what it is given, token by token.

    python model.py sample out/plain "Once" --tokens 100 --temperature 0.8
"""

from data.cli import Parser, check_range, printable
from data.tokenizer import Tokenizer
from model import GPT


def sample(model, tokenizer, text, tokens, seed=1, **drawing):
    """The text with up to `tokens` new tokens, fewer where the document ends -> str. Half a row is drawn at
    once, after the last half row of what there is; drawing: options of model.sample."""
    ids, half = tokenizer.encode(text), model.config.block_size // 2
    for at in range(0, tokens, half):
        new = model.generate([ids[-half:] or [tokenizer.end]], min(half, tokens - at), stop=tokenizer.end,
                             seed=seed + at, **drawing)[0]
        ids += [i for i in new if i != tokenizer.end]
        if tokenizer.end in new:
            break
    return tokenizer.decode(ids)


def main(arguments=None):
    """The command model.py sample; ValueError for a folder without a model, for numbers that cannot be."""
    parser = Parser(prog="model.py sample", description="A model goes on with a text.")
    parser.add_argument("folder", help="a trained model, for example out/plain")
    parser.add_argument("text", nargs="?", default="", help="in quotes; none: a document begins")
    parser.add_argument("--tokens", type=int, default=100, help="new ones, at most [%(default)s]")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: greedy [%(default)s]")
    parser.add_argument("--top_k", type=int, help="draw from so many tokens, the most probable ones")
    parser.add_argument("--top_p", type=float, help="draw from the smallest set with this probability")
    parser.add_argument("--seed", type=int, default=1, help="another one draws another text")
    options = vars(parser.parse_args(arguments))
    for name in ("tokens", "seed"):
        check_range(name, options[name], most=2 ** 31)
    model, tokenizer = (kind.load(options["folder"]) for kind in (GPT, Tokenizer))
    del options["folder"]
    for line in sample(model.eval(), tokenizer, **options).split("\n"):
        print(printable(line))
