"""Damages files of every kind, one after the other, and asks what the command that reads them makes of it.

    python tests/mutate_files.py                       # 10,000 files, some minutes
    python tests/mutate_files.py --files=300 --seed=3 --kind=checkpoint --kind=cache

A file is cut off, emptied, zeroed in places, has bits turned, blocks doubled or overwritten, is exchanged for its like from
another folder or for one of another kind; and where it is JSON a value is replaced by one of another type, by NaN, by a number
of five thousand digits, by a hundred thousand brackets. Then it is loaded as a user's command would load it, and the outcome is

    refused      one line of at most 300 characters, folders aside, that names the file (ValueError or OSError)
    same         taken, and what it says is what it said before: the damage changed nothing that is read
    redone       taken, less some lines, whose work is done again
    valid        taken, and it says something else: allowed to text and to files that users write or fetch, which have no checksum,
                 and to JSON that was sealed again (as whoever made it on purpose would)
    WRONG        taken, and it says something else, though it has a checksum
    TRACEBACK    an exception of another type, a message of more lines, a longer one, or one that names no file
    HANG         more than 10 seconds

Exit code 1 where there is one of the last three.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from course import compare, pair, report  # noqa: E402
from data import annotations, download, endpoint, gpt2, instructions, runs, task_files, world  # noqa: E402
from data.cache import ARRAYS, Cache, CacheWriter  # noqa: E402
from data.documents import own_text  # noqa: E402
from data.files import read_json, sealed  # noqa: E402
from data.tokenizer import Tokenizer, train_bpe  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

SECONDS, LONGEST, MEMORY = 10, 300, 4 << 30        # a file may take; characters of a message; bytes beyond those at the start
TEXT = "Anna took a train to Oslo. It was late, and she was tired.\n\nBen stayed. He said: \"Why? I like it here.\"\n\n"
JSON_VALUES = ["null", "true", "-1", "0", "1", "1.5", "1e999", "NaN", "-Infinity", '""', '"x"', '"../../x"', r'"\u001b[31m"', r'"\ud800"',
               "[]", "{}", "[[]]", '{"a": 1}', "1" + "0" * 30, "9" * 5000, "[" * 100_000, "[" * 900 + "]" * 900]


# ---------------------------------------------------------------------------------------------------------------------
# Every kind: how its files are made (in a folder, by a seed), and what a user's command reads out of them


def tiny(seed, n_vocab=300, **fields):
    torch.manual_seed(seed)
    return GPT(GPTConfig(n_vocab=n_vocab, block_size=32, n_layer=1, n_head=2, n_embd=16, **fields))


def tokenizer_of(seed):
    return train_bpe([TEXT, "abc" * 20 * seed], 300)


def make_checkpoint(folder, seed):
    tokenizer = tokenizer_of(seed)
    tokenizer.save(folder)
    tiny(seed, tokenizer.n_vocab).save(folder, {"tokens_seen": 5 + seed, "losses": [3.5, 2.25]})


def load_checkpoint(folder):
    model, tokenizer = GPT.load(folder), Tokenizer.load(folder)
    return (dataclasses.asdict(model.config), model.extra, model.state_dict(), tokenizer.hash, tokenizer.name, tokenizer.end, tokenizer.sep)


def make_training(folder, seed):
    model = tiny(seed)
    optims = train.optimizers(model, train.Config())
    model.logits(model.hidden(torch.arange(10)[None])).sum().backward()
    for optimizer in optims:
        optimizer.step()
    runs.save_training(folder / "training.pt", model, optims, [3.0, 2.0 + seed], f"mark of {seed}", [{"tokens": 5}])


def load_training(folder):
    model, notes = tiny(9), []
    optims = train.optimizers(model, train.Config())
    with torch.random.fork_rng():
        losses = runs.load_training(folder / "training.pt", model, optims, "mark of 1", notes)
        return losses, notes, model.state_dict(), [o.state_dict() for o in optims], torch.get_rng_state()


def documents(seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        n = int(rng.integers(1, 9))
        sets = [None if rng.random() < 0.3 else (rng.choice(300, 3, replace=False), np.log([0.5, 0.25, 0.125])) for _ in range(n)]
        yield rng.integers(0, 300, n).tolist(), rng.integers(0, 4, n).tolist(), sets


def open_writer(folder):
    return CacheWriter(folder, n_vocab=300, tokenizer_hash="abc", p=0.9, k_cap=8, temperature=1.0, teacher={"hash": "t", "params": 7},
                       made_by="a command", roles=["text", "sep", "answer", "end"])


def make_cache(folder, seed):
    writer = open_writer(folder)
    for document in documents(seed):
        writer.add(*document)
    writer.close()


def load_cache(folder):
    cache = Cache(folder, n_vocab=300, tokenizer_hash="abc")
    return cache.header, {name: np.asarray(cache.arrays[name]).tobytes() for name in ARRAYS}


def make_part(folder, seed):
    """A cache in the making, killed behind its eighth document."""
    writer = open_writer(folder)
    for number, document in enumerate(documents(seed), 1):
        writer.add(*document)
        if number == 8:
            writer.checkpoint(number)
    for file in writer.files.values():
        file.close()


def load_part(folder):
    """The same command goes on, or begins anew; the cache must be that of a run which nobody killed."""
    writer = open_writer(folder)
    for document in list(documents(1))[writer.done:]:
        writer.add(*document)
    writer.close()
    return load_cache(folder)


def make_annotations(folder, seed):
    rng = random.Random(seed)
    annotations.write_annotations(folder / "annotations.jsonl", [
        world.annotate(rng, world.draw_paragraph(rng, world.FULL), i, world.FULL) for i in range(5)])


def make_replies(folder, seed):
    for i in range(6):
        reply = {"key": f"{seed}{i}" * 8, "model": "m", "job": ["ner", "Anna left."], "reply": '{"entities": []} Ω', "finish": "stop", "tokens": [6, 8]}
        with open(folder / "annotations.replies.jsonl", "ab", buffering=0) as file:
            endpoint.keep(file, reply, "")


def make_comparison(folder, seed):
    with open(folder / "results.jsonl", "w", encoding="utf-8") as file:
        for i in range(6):
            file.write(json.dumps(sealed({**dict.fromkeys(compare.KEY, 0), "row": "SFT", "seed": 10 * seed + i, "T=1": 0.5 + seed / 9})) + "\n")


def make_tasks(folder, seed):
    few = [{"input": f"What is {i} and {seed}?", "target": str(i + seed)} for i in range(4)]
    choice = [{"input": f"Is {i} red?", "target_scores": {"Yes": i % 2, "No": 1 - i % 2}} for i in range(4)]
    labelled = [{"premise": f"Anna has {i}.", "hypothesis": "Anna has one.", "label": label}
                for i, label in enumerate(("entailment", "neutral", "contradiction"))]
    (folder / "free.json").write_text(json.dumps({"name": "sums", "examples": few}), encoding="utf-8")
    (folder / "choice.json").write_text(json.dumps({"name": "red", "task_prefix": "Say:", "examples": choice}), encoding="utf-8")
    (folder / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    (folder / "sst.tsv").write_text("sentence\tlabel\n" + "".join(f"it was {i}\t{i % 2}\n" for i in range(4)), encoding="utf-8")


def make_run(folder, seed):
    figure, config = {"value": 0.5, "se": 0.01, "n": 100 + seed}, train.Config(seed=seed)
    reading = {place: dict.fromkeys(report.SHOWN, figure) for place in ("single", "paragraph")}
    test = {"tokens_seen": 5, "losses": [3.0], "loss_curve": [3.0, 2.0], "reading": reading, "plain_bits_per_byte": 1.5,
            "blind": {"red": {"name": "red", "n": 4, "chance": 0.5, "accuracy": 0.75, "se": 0.1, "centred": None, "cut": 0, "skipped": 0}}}
    runs.made(folder / "results.json", {"stage": "results"})
    runs.write_json(folder / "results.json", {"students": {"plain": test}, "config": runs.noted(config), "seed": seed, "threads": 1,
                                              "tokenizer": "abc", "versions": {"torch": "2"}})
    runs.note(folder / "results.json", {"stage": "results"})
    runs.write_json(folder / "options.json", {"options": runs.options_of(train.Config(seed=seed)), "plan": 1000 + seed})
    runs.made(folder / "test.json", {"stage": "test"})
    runs.write_json(folder / "test.json", test)
    runs.note(folder / "test.json", {"stage": "test"})


def load_run(folder):
    plan = runs.open_out(train.Config(out_dir=str(folder)))[1]
    runs.verify(folder)
    notes = [runs.made(folder / f"{stage}.json", {"stage": stage}) for stage in ("test", "results")]
    results = report.read_results(folder / "results.json")
    return plan, notes, results, report.report(results), read_json(folder / "test.json", "again")


def make_gpt2(folder, seed, packed=False):
    tokenizer = tokenizer_of(seed)
    shutil.rmtree(folder)
    gpt2.export(tiny(seed, tokenizer.n_vocab, layout="gpt2"), tokenizer, folder)
    if packed:      # the other file in which weights are published, with vocab.json and merges.txt
        weights = gpt2.load_tensors(str(folder / "model.safetensors"))
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def load_gpt2(folder):
    model, tokenizer = pair.open_model(str(folder), train.Config(device="cpu"))
    return dataclasses.asdict(model.config), model.state_dict(), tokenizer.hash, tokenizer.encode(TEXT)


def make_instructions(folder, seed):
    rows = [{"instruction": f"Say {i}.", "context": "Say it " * seed, "response": f"{i}", "category": "qa"} for i in range(5)]
    (folder / "dolly.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_corpus(folder, seed):
    (folder / "my.txt").write_bytes((TEXT * 20 + "Zoë! " * seed).encode())


def load_corpus(folder):
    config = train.Config(corpus=str(folder / "my.txt"), n_vocab=280, block_size=16)
    tokenizer, parts = own_text(config)
    return tokenizer.hash, [(rows.tokens.tobytes(), rows.starts.tobytes(), text) for rows, text in parts.values()]


def make_download(folder, seed):
    (folder / "tinyshakespeare").mkdir()
    path = folder / "tinyshakespeare" / download.SETS["tinyshakespeare"]["url"].rpartition("/")[2]
    path.write_bytes((TEXT * 30 + "!" * seed).encode())


def load_download(folder):
    """With size and checksum of the small file in place of the real one's, which is not here."""
    with published():
        return download.download("tinyshakespeare", str(folder)).read_bytes()


@contextlib.contextmanager
def published():
    real, content = dict(download.SETS["tinyshakespeare"]), (TEXT * 30 + "!").encode()
    download.SETS["tinyshakespeare"] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        yield
    finally:
        download.SETS["tinyshakespeare"] |= real


def tasks_of(folder):
    return [task_files.load_tasks(path, fewshot=1) for path in sorted(folder.iterdir())]


KINDS = {   # name: make, load, files without a checksum by their nature, whether lines may be lost and redone
    "checkpoint": (make_checkpoint, load_checkpoint, (), False),
    "training.pt": (make_training, load_training, (), False),
    "cache": (make_cache, load_cache, (), False),
    "cache, half made": (make_part, load_part, (), False),
    "annotations.jsonl": (make_annotations, lambda f: annotations.read_annotations(f / "annotations.jsonl"), True, False),
    "replies": (make_replies, lambda f: endpoint.read_replies(f / "annotations.replies.jsonl"), (), True),
    "tasks": (make_tasks, tasks_of, True, False),
    "results and options": (make_run, load_run, (), False),
    "comparison": (make_comparison, lambda f: compare.finished(f / "results.jsonl"), (), True),
    "GPT-2, safetensors": (make_gpt2, load_gpt2, True, False),
    "GPT-2, bin": (lambda f, s: make_gpt2(f, s, packed=True), load_gpt2, True, False),
    "prompts": (make_instructions, lambda f: instructions.read_instructions(f / "dolly.jsonl"), True, False),
    "corpus": (make_corpus, load_corpus, True, False),
    "download": (make_download, load_download, (), False),
}
if not importlib.util.find_spec("safetensors"):                        # pip install -e ".[hf]"
    KINDS = {name: kind for name, kind in KINDS.items() if not name.startswith("GPT-2")}


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def truncated(rng, data, like, foreign):
    return data[:rng.randrange(len(data) or 1)]


def emptied(rng, data, like, foreign):
    return b""


def bits_turned(rng, data, like, foreign):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def block(rng, data):
    a = rng.randrange(len(data))
    return a, min(len(data), a + rng.choice((1, 7, 64, 512)))


def zeroed(rng, data, like, foreign):
    a, b = block(rng, data)
    return data[:a] + bytes(b - a) + data[b:]


def doubled(rng, data, like, foreign):
    a, b = block(rng, data)
    return data[:b] + data[a:]


def overwritten(rng, data, like, foreign):
    a, b = block(rng, data)
    return data[:a] + rng.randbytes(b - a) + data[b:]


def noise(rng, data, like, foreign):
    return rng.randbytes(rng.choice((1, 100, len(data))))


def swapped(rng, data, like, foreign):
    return like


def spliced(rng, data, like, foreign):
    """The first part of one, the rest of its like."""
    a = rng.randrange(len(data))
    return data[:a] + like[a:]


def of_another_kind(rng, data, like, foreign):
    return foreign


def places(value, path=()):
    """The paths of all values inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def value_replaced(rng, data, like, foreign, seal=False):
    """A value inside JSON, or inside a line of it, by one of JSON_VALUES, or gone; noise where it is none."""
    lines = data.split(b"\n") if data.count(b"\n{") > 1 or data.startswith(b"{") and data.count(b"\n") < 2 else [data]
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
        path = rng.choice(list(places(value)))
    except (ValueError, RecursionError):
        return noise(rng, data, like, foreign)
    raw, place = rng.choice(JSON_VALUES), value
    if seal and not isinstance(value, dict):
        return noise(rng, data, like, foreign)
    for key in path[:-1]:
        place = place[key]
    if path and rng.random() < 0.2:
        del place[path[-1]]
    elif path:
        place[path[-1]] = "\0here"
    else:
        value = "\0here"
    if seal and isinstance(value, dict):
        value.pop("sha256", None)
        with contextlib.suppress(ValueError, RecursionError):       # what cannot be sealed is left as it is
            value = sealed(json.loads(json.dumps(value).replace(r'"\u0000here"', raw)))
    lines[number] = json.dumps(value).replace(r'"\u0000here"', raw).encode()
    return b"\n".join(lines)


def sealed_again(rng, data, like, foreign):
    return value_replaced(rng, data, like, foreign, seal=True)


DAMAGE = (truncated, emptied, bits_turned, bits_turned, zeroed, doubled, overwritten, noise, swapped, spliced, of_another_kind)
JSON_DAMAGE = (value_replaced, value_replaced, value_replaced, value_replaced, sealed_again, sealed_again)


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of it


class Hang(BaseException):
    """SECONDS are over."""


def alarm(number, frame):
    raise Hang


def flat(value):
    """Anything that a loader returns, as something that can be compared: NaN is NaN, a tensor its bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return [(repr(key), flat(inner)) for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return [flat(inner) for inner in value]
    return value if isinstance(value, bytes) else repr(value)


def outcome(kind, folder, before, damage):
    """(class of the outcome, what was said or None) of loading `folder`; before: `flat` of what it says undamaged."""
    _, load, free, lines = KINDS[kind]
    names = {name for path in folder.rglob("*") for name in (path.name, str(path))} | {str(folder)}
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                after = load(folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Hang:
        return "HANG", ""
    except (ValueError, OSError) as error:
        text = str(error)
        short = text.replace(str(folder), folder.name)                  # how deep it lies is no matter
        fair = "\n" not in text and len(short) <= LONGEST and any(name in text for name in names)
        return "refused" if fair else "TRACEBACK", f"{type(error).__name__}: {text}"
    except BaseException as error:                              # noqa: B036: a panic of tiktoken is one
        if isinstance(error, KeyboardInterrupt):
            raise
        return "TRACEBACK", f"{type(error).__name__}: {error}"
    sys.setrecursionlimit(10_000)                               # JSON may be as deep as its reader can go
    after = flat(after)
    sys.setrecursionlimit(1000)
    if after == before:
        return "same", None
    known = dict(before) if lines else {}        # a line of another run is not asked for, and does no harm
    if lines and damage is not sealed_again and all(known.get(key, value) == value for key, value in after):
        return "redone", None
    return ("valid" if free or damage is sealed_again else "WRONG"), None


def mutate(files, seed, kinds, folder):
    """Damages `files` files -> ({kind: Counter of outcomes}, list of what went wrong)."""
    rng, found, wrong, whole, before = random.Random(seed), {kind: Counter() for kind in kinds}, [], {}, {}
    for kind in KINDS:
        for number, which in enumerate(("a", "b"), 1):
            at = folder / kind.replace(" ", "-").replace(",", "") / which
            at.mkdir(parents=True)
            KINDS[kind][0](at, number)
            whole[kind, which] = {path.relative_to(at).as_posix(): path.read_bytes() for path in at.rglob("*") if path.is_file()}
    for kind in kinds:
        before[kind] = flat(KINDS[kind][1](place(folder, kind)))
        restore(place(folder, kind), whole[kind, "a"])
    signal.signal(signal.SIGALRM, alarm)
    foreign = [content for (kind, which), some in whole.items() for content in some.values() if which == "b"]
    for i in tqdm(range(files), "files", disable=None, leave=False):
        kind = kinds[i % len(kinds)]
        at, some = place(folder, kind), whole[kind, "a"]
        name = rng.choice(sorted(some))
        is_json = name.endswith((".json", ".jsonl"))
        damage = rng.choice(DAMAGE + JSON_DAMAGE * is_json) if some[name] else of_another_kind
        content = damage(rng, some[name], whole[kind, "b"].get(name, b""), rng.choice(foreign))
        (at / name).write_bytes(content)
        what, said = outcome(kind, at, before[kind], damage)
        found[kind][what] += 1
        if what.isupper():
            wrong.append(f"{kind}: {name}: {damage.__name__}: {what}: {str(said).replace(str(folder), '')}")
        restore(at, some)
    return found, wrong


def place(folder, kind):
    return folder / kind.replace(" ", "-").replace(",", "") / "a"


def restore(folder, files):
    """Puts the undamaged files back, and nothing else."""
    for path in list(folder.rglob("*")):
        if path.is_file() and (path.relative_to(folder).as_posix() not in files):
            path.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def main():
    """Prints the table by kind; exit code 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one (may be given again)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with open("/proc/self/statm", encoding="utf-8") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        found, wrong = mutate(options.files, options.seed, options.kind or list(KINDS), Path(folder))
    columns = ("refused", "same", "redone", "valid", "WRONG", "TRACEBACK", "HANG")
    print(f"{'':22}{'files':>8}" + "".join(f"{column:>11}" for column in columns))
    for kind, counts in [*found.items(), ("all", sum(found.values(), Counter()))]:
        print(f"{kind:22}{counts.total():8,}" + "".join(f"{counts[column]:11,}" for column in columns))
    for line in wrong[:40]:
        print(ascii(line)[:400])
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
