"""Blind tests of a student on task files, and the paper's two other settings (Zhou et al., ACL 2025).

    python brd.py test out/brd FILE ...                                              # blind: nothing is seen
    python brd.py test out/brd FILE --setting=relaxed --labels=200 --teacher=out_teacher/teacher
    python brd.py test out/brd FILE --setting=supervised --labels=16

relaxed: the student learns from `labels` items of a task, answered by a teacher; supervised: from their gold
labels. It is tested on the others (bAbI: on those of other stories), and starts every task from the same
weights. Where the items have no candidates, an answer is generated and must match word for word. Files: see
adapters/task_files.py. Columns: chance is the accuracy of guessing, majority that of the answer which is
right most often in the test, centred the accuracy where each candidate's mean over the unlabelled test items
is subtracted from its scores.
"""

import argparse
import copy
import importlib
import math
import random
from collections import Counter
from itertools import chain
from pathlib import Path

import brd
import train
from data.batches import DataMix, Rows
from data.cli import Parser, check_range, printable, run_command
from data.documents import ROLES
from data.figures import mean_se
from data.files import write_json
from data.machine import pick_device
from data.tokenizer import Tokenizer
from model import GPT

LABELS = 16                             # items of a task that are learnt from
PASSES, BATCH, RATE = 20, 8, 0.005      # how often an item is read, items of a batch, learning rate
SPARE_TOKENS = 8                        # an answer may be spelt in more tokens than the tokenizer would take


def adapter(model, tokenizer, options):
    """None in the blind setting, else a function: task -> (a student that has learnt, the task without the
    items that it learnt from).

    options: setting, labels, teacher (a folder or None), seed, device. ValueError for options that do not fit
    together, and in use for a task with too few items."""
    blind = options.setting == "blind"
    if (options.setting == "relaxed") != bool(options.teacher) or blind and options.labels:
        raise ValueError(f"--setting={options.setting} --labels={options.labels} --teacher={options.teacher};"
                         " expected a teacher for relaxed alone, and no labels for blind")
    if blind:
        return None
    teacher = GPT.load(options.teacher, pick_device(options.device)[0]).eval() if options.teacher else None
    if teacher and teacher.config.n_vocab != model.config.n_vocab:
        raise ValueError(f"{options.teacher}: {teacher.config.n_vocab} tokens, the student has "
                         f"{model.config.n_vocab}; expected one tokenizer")

    def learn(task):
        """A student that has learnt `labels` items of a task, and the task without them."""
        shown, rest = split_items(task, options.labels or LABELS, options.seed)
        answers = teacher_answers(teacher, tokenizer, task["name"], shown) if teacher else gold_answers(shown)
        return teach(model, tokenizer, shown, answers, options), {**task, "items": rest}
    return learn


def split_items(task, n, seed):
    """n items of a task to learn from, drawn by seed, and those to test on -> two lists of items. Where items
    share text in "stories", whole stories are drawn, and the rest of the last one is in neither list.
    ValueError if no item is left to test on."""
    items, members = task["items"], {}
    stories = task.get("stories", range(len(items)))
    for i, story in enumerate(stories):
        members.setdefault(story, []).append(i)
    drawn = random.Random(f"{task['name']} {seed}").sample(list(members), len(members))
    most = len(items) - len(members[drawn[-1]])                 # one story is left to test on
    if n > most:
        found = f"{len(items)} items" + (f" of {len(members)} stories" if "stories" in task else "")
        remedy = f"try --labels={min(most, len(items) // 2)}" if most else "expected others to test on"
        raise ValueError(f"{task['name']}: {found}, of which {n} are to be learnt from; {remedy}")
    shown = sorted([i for story in drawn for i in members[story]][:n])
    seen = {stories[i] for i in shown}
    return [items[i] for i in shown], [item for item, story in zip(items, stories) if story not in seen]


def gold_answers(items):
    """The first right answer of every item, str."""
    return [candidates[min(right)] if candidates else min(right) for _, candidates, right in items]


def teacher_answers(teacher, tokenizer, name, items):
    """The teacher's blind answers: the candidates of its highest mean log-probability a token."""
    if not all(candidates for _, candidates, _ in items):
        raise ValueError(f"{name}: answers are generated, so a teacher has no candidates to choose from; "
                         "try --setting=supervised")
    scores, _ = brd.blind_scores(teacher, tokenizer, [item[:2] for item in items])
    return [candidates[row.index(max(row))] for (_, candidates, _), row in zip(items, scores)]


def teach(model, tokenizer, items, answers, options, passes=PASSES):
    """A copy of the student that has learnt these answers, by next-token training on their tokens."""
    text, answer, documents = ROLES.index("text"), ROLES.index("answer"), []
    for (prompt, *_), wanted in zip(items, answers):
        context, (tail,), _ = brd.split_tokens(tokenizer, prompt, [wanted], model.config.block_size)
        documents.append((context + tail, [text] * len(context) + [answer] * len(tail)))
    rows = Rows.pack(documents, tokenizer.n_vocab)
    config = train.Config(
        seed=options.seed, device=options.device, learning_rate=RATE, warmup=5, cooldown=0.5, text_weight=0.0,
        answer_weight=1.0, step_tokens=BATCH * int(rows.lengths.max()))
    student, tokens = copy.deepcopy(model), passes * int((rows.lengths - 1).sum())
    train.fit("learning a task", student, DataMix([rows], [1.0]), tokens, config)
    return student


def exact_matches(model, tokenizer, prompts, answers):
    """(credits, cut): 1.0 for every prompt whose greedy continuation, up to the end of the line, is one of
    its answers (a set of str) word for word, else 0.0; and the number of prompts that were cut."""
    longest = max(map(len, tokenizer.encode_batch([f" {answer}" for answer in chain(*answers)])))
    max_new = min(longest + SPARE_TOKENS, model.config.block_size // 2)
    ids = tokenizer.encode_batch([prompt.rstrip(" ") for prompt in prompts])
    ends, cut = {tokenizer.sep, tokenizer.end}, sum(len(p) + max_new > model.config.block_size for p in ids)
    news = brd.continued(model, [p or [tokenizer.end] for p in ids], max_new, ends | brd.line_ends(tokenizer))
    texts = [tokenizer.decode([t for t in new if t not in ends]).partition("\n")[0].strip() for new in news]
    return [float(text in right) for text, right in zip(texts, answers)], cut


def eval_task(model, tokenizer, task):
    """A result as of brd.eval_task, also for a task whose answers are generated: their chance is 0."""
    prompts, candidates, rights = zip(*task["items"])
    if candidates[0]:
        return brd.eval_task(model, tokenizer, task)
    credits, cut = exact_matches(model, tokenizer, prompts, rights)
    found = mean_se(credits)
    often = Counter(chain.from_iterable(rights))
    return {"name": task["name"], "accuracy": found["value"], "se": found["se"], "n": found["n"],
            "chance": 0.0, "majority": max(often.values()) / found["n"], "centred": None, "cut": cut,
            "skipped": task.get("skipped", 0)}


def mean_of(results):
    """The mean over tasks, each counts alike -> a result as of eval_task; its se is that of the items."""
    n, errors, keys = len(results), [result["se"] for result in results], ["accuracy", "chance", "majority"]
    mean = {key: sum(values) / n for key in keys if None not in (values := [r.get(key) for r in results])}
    sums = {key: sum(result[key] for result in results) for key in ("n", "cut", "skipped")}
    return {**mean, **sums, "se": None if None in errors else math.hypot(*errors) / n}


def print_line(name, result):
    """One line of the table."""
    shown = [result.get(key) for key in ("majority", "se", "centred")]
    majority, se, centred = ("-" if value is None else f"{value:.3f}" for value in shown)
    what = {"cut": "prompts cut on the left", "skipped": "skipped"}
    notes = ", ".join(f"{result[key]} {text}" for key, text in what.items() if result[key])
    line = f"{name:40} {result['n']:6} {result['chance']:7.3f} {majority:>8} {result['accuracy']:8.3f}"
    print(printable(f"{line} {se:>6} {centred:>8}   {notes}".rstrip()), flush=True)


def main(arguments=None):
    """The command `brd.py test`; ValueError or OSError for what the user can mend."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="brd.py test", description=__doc__, formatter_class=layout)
    parser.add_argument("folder", help="a trained student, for example out/brd")
    parser.add_argument("files", nargs="+", help="task files, or folders of BIG-bench subtasks")
    parser.add_argument("--fewshot", type=int, default=0, help="solved examples before each question [0]")
    parser.add_argument("--setting", choices=("blind", "relaxed", "supervised"), default="blind",
                        help="what is seen of a task [blind]")
    parser.add_argument("--labels", type=int, help=f"items to learn from, where not blind [{LABELS}]")
    parser.add_argument("--teacher", metavar="FOLDER", help="the model that answers in the relaxed setting")
    parser.add_argument("--seed", type=int, default=0, help="of the examples and items that are drawn [0]")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON too")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"), help="[cpu]")
    options = parser.parse_args(arguments)
    check_range("fewshot", options.fewshot)
    check_range("seed", options.seed)
    check_range("labels", LABELS if options.labels is None else options.labels, above=0)
    model = GPT.load(options.folder, pick_device(options.device)[0]).eval()
    tokenizer, task_files = Tokenizer.load(options.folder), importlib.import_module("adapters.task_files")
    learn = adapter(model, tokenizer, options)
    loaded = [(path, task_files.load_tasks(path, options.fewshot, options.seed)) for path in options.files]
    print(f"{'task':40} {'n':>6} {'chance':>7} {'majority':>8} {'accuracy':>8} {'+-':>6} {'centred':>8}")
    tested, means = [], []
    for path, tasks in loaded:
        results = []
        for task in tasks:
            student, rest = learn(task) if learn else (model, task)
            results.append({"file": path, **eval_task(student, tokenizer, rest)})
            name = task["name"]
            if [one["name"] for _, others in loaded for one in others].count(name) > 1:
                name = path                                         # dev of boolq/dev.jsonl and SST-2/dev.tsv
            print_line(name, results[-1])
        tested, means = tested + results, means + [mean_of(results)]
        if len(results) > 1:
            print_line(f"{Path(path).resolve().name}, mean of {len(results)}", means[-1])
    if len(means) > 1:
        print_line(f"mean of {len(means)} tasks", mean_of(means))
    if options.json:
        given = {name: getattr(options, name) for name in ("setting", "labels", "fewshot", "seed")}
        mean = {"of": len(means), **mean_of(means)}
        write_json(options.json, {"student": options.folder, **given, "tasks": tested, "mean": mean})


if __name__ == "__main__":
    run_command(main)
