"""The command line that all programs share: options from a dataclass, one line for a mistake, exit codes."""

import argparse
import dataclasses
import importlib
import inspect
import math
import re
import signal
import sys
from types import SimpleNamespace

from tqdm import tqdm

EVERY = 30               # seconds between two lines of progress where there is no terminal
# Line breaks, control codes and half characters: they may move the cursor of a terminal or colour its screen.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text):
    """Text (str) for a terminal: control characters are shown as \\x1b."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def brief(error, limit=120):
    """What an exception says, as one line of at most `limit` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def parse_options(config_class, arguments, doc):
    """--name=value arguments (list of str) -> an instance of a dataclass; a wrong one raises ValueError.
    The help is `doc` and the comment behind each field in the source of the class and its base classes."""
    def refuse(message):
        raise ValueError(f"{message}; --help explains every option")
    source = "".join(inspect.getsource(kind) for kind in config_class.__mro__[-2::-1])      # object has none
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", source, re.M))
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--name=value ...]", description=doc, allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=110))
    parser.error = refuse
    for field in dataclasses.fields(config_class):
        kind = {"type": field.type, "metavar": field.type.__name__}
        if field.type is bool:
            kind = {"action": "store_true"}
        text = f"{comments[field.name]} [{field.default}]".replace("%", "%%")
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **kind)
    return config_class(**vars(parser.parse_args(arguments)))


def check_range(name, value, above=None, most=math.inf):
    """Raises ValueError unless 0 <= value <= most, or above < value <= most; NaN and infinity never fit."""
    if not (value >= 0 if above is None else value > above) or value > most or math.isinf(value):
        limit = "at least 0" if above is None else f"more than {above}"
        limit += f" and at most {most}" if most < math.inf else ""
        raise ValueError(f"--{name}={value}, but expected {limit}")


def progress(steps, name, **options):
    """A tqdm bar, with more options of tqdm; where stderr is no terminal a line every EVERY seconds."""
    if not sys.stderr.isatty():
        def write(text):
            sys.stderr.write(text.strip() and text.strip() + "\n")
        options |= {"file": SimpleNamespace(write=write, flush=sys.stderr.flush), "position": 0, "ncols": 110,
                    "delay": EVERY, "mininterval": EVERY, "maxinterval": 2 * EVERY}
    return tqdm(steps, name, leave=False, **options)


def run_named(commands, arguments, doc):
    """Runs the first of `arguments` with the rest of them; commands: {name: the module whose main it is}."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in commands:
        importlib.import_module(commands[name]).main(rest)
    elif name in ("-h", "--help"):
        print(doc)
    else:
        raise ValueError(f"{name}: expected one of {', '.join(commands)}; --help shows how")


def run_command(main):
    """Runs main() and exits: 2 and one line for a mistake of the user, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)       # raises KeyboardInterrupt
    try:
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        print(f"{str(stopped) or 'stopped'}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (ModuleNotFoundError, NotImplementedError, ValueError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        hint = ": an extra, or a folder of the repository, see README.md" if missing else ""
        print(f"error: {printable(str(error))}{hint}", file=sys.stderr)
        sys.exit(2)
