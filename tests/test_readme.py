"""The README's commands, as they stand there: each names files that exist and options that are known, and the quick ones run."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from model import GPT, GPTConfig

ROOT = Path(train.__file__).resolve().parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
COMMANDS = [re.sub(r"^torchrun --nproc_per_node=\d", "python", line.split("  #")[0].strip())
            for block in BLOCKS for line in block.splitlines() if line.strip()]
QUICK = ("read out", "test out", "inspect")       # of these the whole command is run


def test_the_two_commands_for_a_fresh_machine_stand_first():
    assert COMMANDS[:2] == ["pip install -e . && python train.py", 'pip install -e ".[test]" && python -m pytest']
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", [c for c in COMMANDS[2:] if c.startswith("python train.py")])
def test_options_of_train_are_known(command):
    train.parse_options(shlex.split(command)[2:])


@pytest.mark.parametrize("command", [c for c in COMMANDS[2:] if not c.startswith("python train.py")])
def test_other_commands_know_their_options(command, tmp_path):
    """Asked for --help behind all its arguments, a parser still refuses what it does not know."""
    _, file, *arguments = shlex.split(command)
    assert (ROOT / file).is_file()
    name = [arguments[0]] if file in ("brd.py", "td_distill.py", "model.py") else []
    told = subprocess.run([sys.executable, ROOT / file, *name, "--help"], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) <= 60      # a screen
    for option in [a.split("=")[0] for a in arguments if a.startswith("--")]:
        assert option in told.stdout, option


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the README's relative paths lead somewhere, and out/distilled is a student that has learnt nothing."""
    place = tmp_path_factory.mktemp("readme")
    tokenizer = train.course_tokenizer("world", 1024)
    torch.manual_seed(0)
    GPT(GPTConfig(tokenizer.n_vocab, 384, 1, 2, 16)).save(place / "out" / "distilled")
    tokenizer.save(place / "out" / "distilled")
    (place / "data").symlink_to(ROOT / "data")
    return place


@pytest.mark.parametrize("command", [c for c in COMMANDS[2:] if any(word in c for word in QUICK)])
def test_quick_commands_run_as_they_stand(command, place):
    _, file, rest = command.split(" ", 2)
    done = subprocess.run(f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / file))} {rest}", shell=True, cwd=place, input="Anna left.\n",
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
