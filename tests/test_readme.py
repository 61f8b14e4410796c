"""The commands of the pages, as they stand there: each names a program that exists and options it knows."""
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "adapters/README.md", "experiments/README.md", "course/README.md", "course/teacher/README.md",
         "tests/README.md", *(f"course/teacher/slides/{n}.md" for n in (1, 2, 3)))
README, *_ = TEXTS = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
COMMAND = r"(?:python|torchrun --\S+) +((?:-m )?[\w/.]+)([^#`\n&]*)"
COMMANDS = sorted({(program, arguments.strip()) for text in TEXTS
                   for program, arguments in re.findall(COMMAND, text)})


def test_the_two_commands_for_a_fresh_machine_stand_first_on_one_page():
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    first = "pip install -e . && python train.py\n", 'pip install -e ".[test]" && python -m pytest\n'
    assert tuple(blocks[:2]) == first
    assert len(README.splitlines()) <= 150 and len(COMMANDS) > 25


@pytest.mark.parametrize("program, arguments", COMMANDS)
def test_a_command_names_a_program_and_options_that_it_knows(program, arguments, capsys):
    """Asked for --help behind all its arguments, a parser still refuses what it does not know."""
    if program in ("-m data.world", "-m pytest"):
        return
    arguments = shlex.split(arguments)
    wings = {"brd.py": ("read", "test", "annotate"), "td_distill.py": ("inspect", "theory", "compare"),
             "model.py": ("export", "sample")}.get(program)
    assert not wings or arguments[0] in wings
    name = program.removeprefix("-m ").removesuffix(".py")
    if program == "model.py":
        command, *arguments = arguments
        name = {"export": "adapters.gpt2", "sample": "adapters.sample"}[command]
    main = importlib.import_module(name).main
    if arguments[:1] in (["theory"], ["inspect"]) or name in ("tests.torture", "tests.damage"):
        assert not [argument for argument in arguments if argument.startswith("-")]
        return
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code in (None, 0) and "usage" in shown
    for option in [argument.split("=")[0] for argument in arguments if argument.startswith("--")]:
        assert option in shown, option


def test_links_lead_somewhere():
    for page, text in zip(PAGES, TEXTS):
        for target in re.findall(r'(?:\]\(|src=")([^)#"]+)', text):
            assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), (page, target)
