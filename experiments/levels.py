"""Natural English, level by level: what students read of paragraphs of the primer that they have not seen.

    python -m experiments.levels                                            # half an hour on two cores
    python -m experiments.levels --show experiments/results/levels.jsonl    # the table of a run kept here

Three students a seed, of equal tokens: `world` reads the open world alone; `primer` the training part of the
primer alone; `both` the open world first, then the two together. The primer is read easy levels first, then
again in any order. Students are tested in free running on every third paragraph of each level, which none of
them reads. Two baselines: the most frequent answer of the test and, for wh questions, an entity of its
sentence at random; `both` minus the better one is told in errors of `both`. A stopped run goes on.
"""

import json
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

import brd
from data import documents, world
from data.annotated import PRIMER, annotated_text
from data.batches import DataMix
from data.cli import Options as Base, parse_options, printable, progress, run_command
from data.figures import answer_figures
from data.files import folder_lock, hash_of, open_run, read_json, write_json, write_text
from data.machine import MEMORY, worker_pool
from experiments.tables import BOUNDS, Value, joint_error, read_rows
from train import Config, finished_model, new_model, train_model

ARMS = ("world", "primer", "both")
PRIMER_FROM = 0.45          # start_at of the primer in `both`: after .6 * .45 of all tokens, of the world
PRIMER_SHARE = 0.4          # its part of the tokens of `both`
PRIMER_NER = 0.2            # part of its own tokens that lists entities; the rest is questions
REPEATS, PARTS = 4, 24      # surface forms of a paragraph, which are shuffled within a part of the primer
LAYOUTS = (world.Level(0.3, forms=4, join_prob=0.3), world.Level(join_prob=0.3, varied=0.3))
FIGURES = {"wh, exact": "answer.wh", "yes/no, exact": "answer.yes_no", "entity F1": "entity_f1",
           "structure, exact": "answer.structure", "attitude, exact": "answer.attitude"}


@dataclass
class Options(Base):
    tokens: int = 3_000_000         # of a student
    seeds: int = 3                  # students of each arm
    workers: int = 2                # processes side by side, one thread each
    out_dir: str = "out/levels"     # folder of all that this makes
    show: str = ""                  # print the table of a file of results, and train nothing
    BOUNDS = {**BOUNDS, "tokens": (0, MEMORY // 100, "memory")}


def primer_rows(behaviour, tokenizer, config):
    """The training part of the primer, the easiest level first, as Rows of D_NER or D_QRA."""
    rng, (training, _), pieces = np.random.default_rng(config.seed), annotated_text("primer"), []
    for part in np.array_split(np.arange(len(training)), PARTS):
        for i in rng.permutation(np.repeat(part, REPEATS)):
            paragraph = training[i]
            pieces += [paragraph[k:k + documents.PIECE] for k in range(0, len(paragraph), documents.PIECE)]
    return documents.reading_rows(pieces, behaviour, tokenizer, config.seed, config.block_size, LAYOUTS)


def mix_of(arm, config, tokenizer):
    """The DataMix that a student of ARMS reads."""
    told = documents.data_mix("brd", config, tokenizer, None) if arm != "primer" else DataMix([], [], [])
    if arm == "world":
        return told
    part, begin = (PRIMER_SHARE, PRIMER_FROM) if arm == "both" else (1.0, 0.0)
    sources = told.sources + [primer_rows(behaviour, tokenizer, config) for behaviour in ("ner", "qra")]
    shares = [(1 - part) * share for share in told.shares] + [part * PRIMER_NER, part * (1 - PRIMER_NER)]
    return DataMix(sources, shares, told.start_at + [begin, begin])


def random_entity(paragraphs):
    """The share of wh questions that an entity of their sentence, drawn at random, answers; NaN for none."""
    return float(np.mean([np.mean([e["text"] == q["answer"] for e in record["entities"]] or [0.0])
                          for records in paragraphs for record in records for q in record["questions"]
                          if "answer.wh" in answer_figures(q)]))


def student(arm, config):
    """Trains and tests one student -> its lines of results, kept in out_dir/ARM-SEED/levels.json."""
    torch.set_num_threads(1)
    name = f"{arm}-{config.seed}"
    path = Path(config.out_dir) / name / "levels.json"
    if path.exists():
        return read_json(path, "remove it, and it is made again", "levels")["levels"]
    tokenizer, model = documents.course_tokenizer("open", config.n_vocab), finished_model(name, config)
    if model is None:
        model = new_model(config.n_layer, config.n_embd, tokenizer, config)
        train_model(name, model, mix_of(arm, config, tokenizer), config.student_tokens, config, tokenizer)
    rows = []
    for level, file in enumerate(PRIMER, 1):
        held_out = annotated_text(file)[1]
        found = brd.eval_reading(model.eval(), tokenizer, held_out, own_questions=False)
        figures = {label: {part: found[key][part] for part in ("value", "se", "n", "majority")}
                   for label, key in FIGURES.items()}
        figures["wh, exact"]["entity"] = random_entity(held_out)
        rows.append({"arm": arm, "seed": config.seed, "level": level, **figures})
    write_json(path, {"levels": rows})
    return rows


def read(path):
    """The lines of a file of results; ValueError for another file, for damaged and for missing lines."""
    def is_test(row):
        return all({"value", "se", "n", "majority"} <= set(row.get(label, ())) for label in FIGURES)
    key = "arm", "seed", "level"
    rows = read_rows(path, key, "no test of experiments.levels; make the file again", is_test)
    seeds, levels = ({key[i] for key in rows} for i in (1, 2))
    if not rows or set(rows) != set(product(ARMS, seeds, levels)):
        raise ValueError(f"{path}: expected a test of each arm, seed and level; make the file again")
    return list(rows.values())


def value_of(figures):
    """Value of a figure of several seeds, all tested on the same paragraphs. Its error over paragraphs is the
    mean of the seeds' own errors, which the error of their mean cannot exceed (triangle inequality)."""
    values, errors = (np.array([figure[key] for figure in figures], float) for key in ("value", "se"))
    return Value(float(values.mean()), joint_error(errors.mean(), values))


def show(rows):
    """Lines of Markdown: a row a level and figure, a column an arm: mean over seeds ± error."""
    yield f"| level | figure | n | majority | an entity | {' | '.join(ARMS)} | both - best baseline, in SE |"
    yield "|---" * (len(ARMS) + 6) + "|"
    for level, label in product(sorted({row["level"] for row in rows}), FIGURES):
        some = [row for row in rows if row["level"] == level]
        values = [value_of([row[label] for row in some if row["arm"] == arm]) for arm in ARMS]
        baselines = [some[0][label].get(name) for name in ("majority", "entity")]
        gain = values[-1]._replace(mean=values[-1].mean - max(base for base in baselines if base is not None))
        cells = ["" if base is None else f"{base:.3f}" for base in baselines]
        cells += [f"{value.mean:.3f} ± {value.error:.3f}" for value in values]
        yield f"| {level} | {label} | {some[0][label]['n']} | {' | '.join(cells)} | {gain.times:+.1f} |"


def run(options, out):
    """Makes all students that are not there yet, then the file of results -> its path."""
    config = Config(corpus="open", n_vocab=2048, shared_heads=3, student_tokens=options.tokens,
                    out_dir=options.out_dir)
    jobs = [(arm, replace(config, seed=seed)) for seed in range(1, options.seeds + 1) for arm in ARMS]
    with worker_pool(options.workers) as pool:
        futures = [pool.submit(student, *job) for job in jobs]
        for future in progress(as_completed(futures), "students", total=len(futures)):
            future.result()
    rows = (row for future in futures for row in future.result())
    write_text(out / "levels.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return out / "levels.jsonl"


def main(arguments=None):
    """The students and their table; ValueError or OSError for what the user can mend."""
    options = parse_options(Options, arguments, __doc__)
    path = options.show
    if not path:
        out = Path(options.out_dir)
        with folder_lock(out):
            identity = {"tokens": options.tokens, "primer": hash_of(*PRIMER)}
            open_run(out, identity, {"stages": "a note for each finished student"})
            path = run(options, out)
    print("\n".join(map(printable, show(read(path)))))


if __name__ == "__main__":
    run_command(main)
