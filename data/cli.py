"""The command line that all programs share: options from a dataclass, one line for a mistake, exit codes."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import os
import re
import signal
import sys
import threading
from types import SimpleNamespace

from tqdm import tqdm

EVERY = 30               # seconds between two lines of progress where there is no terminal
# Line breaks, control codes, marks of direction, half characters: they may move the cursor of a terminal.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HIDDEN = re.compile(f"[\u061c\u200e\u200f]|{CONTROL.pattern}")     # these three may stand in a text
# What other programs call an option.
ELSEWHERE = {"lr": "learning_rate", "batch_size": "step_tokens", "epochs": "student_tokens", "data": "corpus",
             "max_steps": "student_tokens", "students": "arms", "hidden_size": "n_embd",
             "num_layers": "n_layer", "num_heads": "n_head", "vocab_size": "n_vocab", "output": "out_dir",
             "overwrite": "redo"}
EXTRAS = {"matplotlib": "plot", "transformers": "hf", "tokenizers": "hf", "safetensors": "hf",
          "huggingface_hub": "hf", "rouge_score": "rouge", "pytest": "test", "hypothesis": "test"}
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
tqdm.set_lock(threading.RLock())    # a process has a lock of its own, not a semaphore that all share


def printable(text):
    """Text (str) for a terminal: control characters are shown as \\x1b."""
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def brief(error, limit=120):
    """What an exception says, as one line of at most `limit` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """Raises ValueError: a wrong option is one line, as every mistake of the user is."""
        raise ValueError(f"{message}; --help explains every option")


class Options:
    """The base of a dataclass of options; ValueError for a number or a name that cannot be meant."""
    BOUNDS = {}                     # {option: (above, most, why) of check_range}
    CHOICES = {}                    # {option: known names}; several, with commas between, where "" is one
    LEFT_OUT = ()                   # options of the base class that have no effect
    PLACE = "out_dir", "redo", "device", "threads", "workers"       # where and how fast, not what is made

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, (int, float)):
                check_range(name, value, *self.BOUNDS.get(name, ()))
            elif value not in (known := self.CHOICES.get(name, [value])):
                given, names = value.split(","), [name for name in known if name]
                if "" not in known or not set(given) <= set(names) or len(set(given)) < len(given):
                    how = "some, each once," if "" in known else "one"
                    raise ValueError(f"--{name}={value}, but expected {how} of {', '.join(names)}")
        others = (name for name in vars(self) if name not in ("show", "png"))
        self.refuse(getattr(self, "show", ""), "beside --show", " ".join(others))

    def decisive(self):
        """{option: value} of those that decide what is made."""
        return {name: value for name, value in vars(self).items() if name not in self.PLACE}

    def refuse(self, idle, why, names):
        """ValueError where idle is true and an option of `names`, a str, has not its default value."""
        given = [name for name in names.split() if getattr(self, name) != getattr(type(self), name)]
        if idle and given:
            raise ValueError(f"--{given[0]}={getattr(self, given[0])} has no effect {why}; leave it out")


def parse_options(config_class, arguments, doc):
    """--name=value arguments (list of str; None: the program's) -> an instance of a dataclass; a wrong one
    raises ValueError. The help is `doc` and the comment behind each field in the source of the class."""
    source = "".join(inspect.getsource(kind) for kind in config_class.__mro__[-2::-1])      # object has none
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", source, re.M))
    parser = Parser(
        usage="%(prog)s [--name=value ...]", description=doc, allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=110))
    for field in dataclasses.fields(config_class):
        kind = {"type": field.type, "metavar": field.type.__name__}
        if field.type is bool:
            kind = {"action": "store_true"}
        text = f"{comments[field.name]} [{field.default}]".replace("%", "%%")
        if field.name not in config_class.LEFT_OUT:
            parser.add_argument(f"--{field.name}", default=field.default, help=text, **kind)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].strip("-").split("=")[0].replace("-", "_")
        near = difflib.get_close_matches(ELSEWHERE.get(name, name), vars(options), 1, 0.7)
        known = f"did you mean --{near[0]}? " if near else ""
        raise ValueError(f"unrecognized arguments: {' '.join(unknown)}; {known}--help explains every option")
    return config_class(**vars(options))


def check_range(name, value, above=None, most=None, why=""):
    """Raises ValueError unless above < value (None: 0 <= value) and value <= most; NaN, infinity never fit.
    most None: what an int64 holds, or a float32 beside other numbers; why: the reason for most."""
    if most is None:
        most, why = (2 ** 63 - 1, "64 bits") if isinstance(value, int) else (10 ** 6, "float32")
    if not (value >= 0 if above is None else value > above) or not value <= most:
        limit = "at least 0" if above is None else f"more than {above}"
        raise ValueError(f"--{name}={value}, but expected {limit} and at most {most}{why and f' ({why})'}")


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


def stop(*_):
    """A handler of STOPS: the first one raises KeyboardInterrupt, those that follow are ignored."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_command(main):
    """Runs main() and exits: 2 and one line for a mistake of the user or too little memory, 130 after Ctrl-C,
    SIGTERM, SIGHUP. What a terminal cannot show is printed escaped; a closed one hears nothing."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                          # not one of a notebook
            stream.reconfigure(errors="backslashreplace")
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:              # nohup
            signal.signal(number, stop)
    try:
        if run_command.__doc__ is None:
            raise ValueError("python -OO leaves out the texts that --help and the options need; try -O")
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        told, code = str(stopped) or "stopped", 130
    except (ModuleNotFoundError, ValueError, OSError, MemoryError, RuntimeError) as error:
        told, code = f"error: {printable(explain(error))}", 2
    with contextlib.suppress(OSError):                              # the terminal was closed
        print(told, file=sys.stderr, flush=True)
    sys.exit(code)


def explain(error):
    """What to tell of an error of the user's, or of too little memory -> str; raises any other again."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get(error.name.partition(".")[0])
        found = f'pip install -e ".[{extra}]" brings it' if extra else "it comes with the repository"
        return f"{error}; {found}"
    if isinstance(error, (NotImplementedError, ValueError, OSError)):
        return str(error)
    if isinstance(error, MemoryError) or re.search("out of memory|allocate", str(error)):
        return f"not enough memory ({brief(error, 200)}); try smaller sizes or a shorter text"
    if "by peer" in str(error):                                     # of torch.distributed
        return "another process of this training has ended; start them again, and it goes on"
    raise error
