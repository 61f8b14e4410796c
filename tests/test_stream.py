"""A large text in blocks: the same tokens as read whole, in memory that does not grow, and taken up again."""
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from data import corpus, prepare, runs, stream

ROOT = Path(__file__).resolve().parent.parent
WORDS = "the old lamp stands by a window and Anna, who came from Oslo; waits: 1905 é – \t quietly!".split(" ")


def write_text(path, size, seed=0, blank="\n\n"):
    """About so many bytes of random words."""
    rng, parts, length = random.Random(seed), [], 0
    while length < size:
        parts.append(" ".join(rng.choices(WORDS, k=rng.randrange(1, 60))))
        length += len(parts[-1]) + 2
    path.write_text(blank.join(parts), encoding="utf-8")
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in dict(LARGE=20_000, BLOCK=1500, SAMPLE=10 ** 9, HELD_OUT=10 ** 9).items():
        monkeypatch.setattr(stream, name, value)


def options(path, out, *more):
    return train.parse_options([f"--corpus={path}", f"--out_dir={out}", "--n_vocab=300", "--block_size=64", *more])


def whole(path):
    return "\n\n".join(prepare.paragraphs(prepare.read_text(path)))


@pytest.mark.parametrize("blank", ["\n\n", "\n \n\n\n", "\n", " "], ids=repr)
@pytest.mark.parametrize("size", [100, 1500, 10 ** 6])
def test_blocks_joined_are_the_text(tmp_path, blank, size):
    for i in range(3):
        write_text(tmp_path / f"{i}.txt", 9000, i, blank)
    (tmp_path / "3.md").write_bytes("\ufeffLast.\r\n\r\nEnd\r.".encode())
    blocks = list(prepare.blocks(tmp_path, size))
    assert "".join(blocks) == prepare.read_text(tmp_path)
    assert max(map(len, blocks)) <= 5 * size + 200
    if blank != "\n" and blank != " ":
        assert [p for block in blocks for p in prepare.paragraphs(block)] == prepare.paragraphs(prepare.read_text(tmp_path))


@pytest.mark.parametrize("data, message", [(b"One.\n\n" * 500 + b"\xff", "byte 0xff at offset 3000"), (b"Two. " * 900 + b"\0", "NUL byte")])
def test_errors_of_blocks_are_those_of_the_whole(tmp_path, data, message):
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(prepare.blocks(tmp_path, 700))


def test_streamed_is_what_is_read_whole(tmp_path, small_blocks):
    config = options(write_text(tmp_path / "my.txt", 40_000), tmp_path / "out")
    assert stream.is_large(config.corpus)
    (one, expected), (other, streamed) = corpus.own_text(config), stream.streamed_text(config, tmp_path / "out")
    assert one.hash == other.hash
    for name in expected:
        (rows, text), (found, found_text) = expected[name], streamed[name]
        assert np.array_equal(rows.lengths, found.lengths) and np.array_equal(rows.tokens, found.tokens)
        assert found_text == (text if name == "validation" else runs.digest(*prepare.text_files(config.corpus)))
    some = [3, 0, len(rows) - 1]
    weights = np.ones(6, np.float32)
    assert all((a == b).all() for a, b in zip(rows.batch(some, weights), found.batch(some, weights)))


def test_what_is_held_out_is_bounded_and_the_sample_too(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(stream, "HELD_OUT", 2000)
    monkeypatch.setattr(stream, "SAMPLE", 10_000)
    config = options(write_text(tmp_path / "my.txt", 60_000), tmp_path / "out")
    by_paragraph, cut, sample = stream.survey(config.corpus)
    assert by_paragraph and 5_000 < sum(map(len, sample)) < 15_000
    text = stream.streamed_text(config, tmp_path / "out")[1]["validation"][1]
    assert 1500 < len(text) <= 2000 and whole(config.corpus).endswith(text)
    assert not any(text[:200] in part for part in sample)


def test_a_text_without_blank_lines_is_cut_between_sentences(tmp_path, small_blocks):
    config = options(write_text(tmp_path / "my.txt", 30_000, blank=". "), tmp_path / "out")
    tokenizer, parts = stream.streamed_text(config, tmp_path / "out")
    ids = np.concatenate([parts["training"][0].tokens[:1]] + [parts["training"][0].document(d)[0][1:]
                                                              for d in range(len(parts["training"][0]))])
    assert tokenizer.decode(ids) + parts["validation"][1] == prepare.read_text(config.corpus)


def test_it_is_made_once_and_again_for_another_text(tmp_path, small_blocks, monkeypatch):
    config = options(write_text(tmp_path / "my.txt", 30_000), tmp_path / "out")
    stream.streamed_text(config, tmp_path / "out")
    kept = (tmp_path / "out" / "text" / "tokens.bin").stat().st_mtime_ns
    stream.streamed_text(config, tmp_path / "out")
    assert (tmp_path / "out" / "text" / "tokens.bin").stat().st_mtime_ns == kept
    write_text(tmp_path / "my.txt", 30_000, seed=1)
    assert stream.streamed_text(config, tmp_path / "out")[1]["validation"][1] in whole(config.corpus)
    (tmp_path / "out" / "text" / "tokens.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match="2 bytes, but its header says"):
        stream.streamed_text(config, tmp_path / "out")


PROGRAM = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import train
from data import stream
stream.BLOCK, stream.SAMPLE, stream.HELD_OUT = 1 << 18, 300_000, 5_000
for size in (1, int(sys.argv[2])):
    folder = Path(sys.argv[1])
    with open(folder / "my.txt", "wb") as file:
        for _ in range(size):
            file.write((folder / "part.txt").read_bytes())
    config = train.parse_options([f"--corpus={folder / 'my.txt'}", "--n_vocab=300", "--n_layer=1", "--n_embd=32", "--device=cpu"])
    tokenizer, parts = stream.streamed_text(config, folder / "out")
    model, rows = train.new_model(1, 32, tokenizer, config), parts["training"][0]
    train.fit("plain", model, [rows], [1.0], 3000, config, 0.5)
    held_out, text = parts["validation"]
    print(rows.tokens.nbytes, train.bits_per_byte(model, held_out, len(text)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_text(tmp_path):
    """.6 MB and then 10 MB are prepared, trained on and scored; read whole, the second takes 250 MB more.

    LARGE_MB=200 python -m pytest tests/test_stream.py -k memory       # more than 10 MB; two minutes"""
    times = int(float(os.environ.get("LARGE_MB", 10)) / 0.6)
    write_text(tmp_path / "part.txt", 600_000)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(times)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (_, _, before), (size, bits, after) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert size > 250_000 * times and bits > 0
    assert after - before < 40e6, (before, after)
