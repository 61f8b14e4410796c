"""The command line that all programs share: options from a dataclass, one line for a mistake, exit codes.

    config = parse_options(Config, ["--minutes=30"], __doc__)      # every field is an option, its comment the help
    run_command(main)                                              # 0; 2 after a mistake of the user; 130 after Ctrl-C
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import math
import re
import signal
import sys

# Line breaks, control codes and half characters: they may move the cursor of a terminal or colour its screen.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text):
    """Text (str) for a terminal: control characters are shown as \\x1b."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def brief(error, limit=120):
    """What an exception says, as one line of at most `limit` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def parse_options(config_class, arguments, doc):
    """--name=value arguments (list of str) -> an instance of a dataclass; a wrong one raises ValueError with a remedy.

    The help text is made of `doc` and of the comment behind each field in the source of the class.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(config_class), re.M))
    layout = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=26, width=110)
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout, allow_abbrev=False, usage="%(prog)s [--name=value ...]")
    for name, field in fields.items():
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": field.type.__name__}
        text = f"{comments[name]} [{field.default}]".replace("%", "%%")
        parser.add_argument(f"--{name}", default=field.default, help=text, **kind)
    for argument in arguments:
        name = argument.split("=")[0].lstrip("-")
        if argument.startswith("--") and name not in [*fields, "help"]:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean --{near[0]}?" if near else "--help lists them all"
            raise ValueError(f"unknown option --{name}; {hint}")

    def refuse(message):
        raise ValueError(f"{message}; --help explains every option")
    parser.error = refuse
    return config_class(**vars(parser.parse_args(arguments)))


def check_range(name, value, *, above=None, least=0, most=math.inf):
    """Raises ValueError unless least <= value <= most and, where `above` is given, value > above; NaN never fits."""
    low = value > above if above is not None else value >= least
    if not (low and value <= most and math.isfinite(value)):
        limit = f"more than {above}" if above is not None else f"at least {least}"
        raise ValueError(f"--{name}={value}, but expected {limit}" + (f" and at most {most}" if most < math.inf else ""))


def stop(number, frame):
    """SIGTERM ends a program as Ctrl-C does."""
    raise KeyboardInterrupt


def run_command(main):
    """Runs main() as a program and exits: 2 and one line for what the user can mend, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        print(f"{str(stopped) or 'stopped'}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        print(f"error: {printable(str(error))}; this command needs the whole repository, or an extra: see README.md", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
