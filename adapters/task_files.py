r"""Task files as they are published -> items that a model can be tested on.

    python brd.py test out/brd bbh/snarks.json boolq/dev.jsonl SST-2/dev.tsv logical_deduction --fewshot=2

    load_tasks("bbh/snarks.json")[0]["items"][0]    # ("Q: Which is sarcastic?\n...\nA:", ["(A)", "(B)"], {1})

An item is (prompt, candidates, indices of the right ones). If the answer is free it is (prompt, [], {"24"}):
the texts any of which must be generated, word for word.

    .json    BIG-bench: "examples" with "target_scores" (the highest score is right); with "target" alone, or
             "preferred_score": "exact_str_match", the answer is generated. A folder: its task.json, or those
             of the folders in it.
    .json    BIG-bench-Hard: nothing but "examples" of "input" and "target". Candidates are the options in the
             input, (A) (B) ... or - Yes - No, or the targets of the file where they are few; else the answer
             is generated. An example whose target is not among several options is skipped.
    .jsonl   one object a line (or an array), and .tsv, one row a line below a line of names: FORMATS. A row
             without label ("-", -1) is skipped. Several languages in one file are several tasks.
"""
import random
import re
from collections import Counter
from pathlib import Path

from brd import join
from data.own_text import json_rows, load_json, named, text_bytes

# What BIG-bench does where a file is silent. In a file without layout and canary, the inputs are the prompts.
BIG_BENCH = {"task_prefix": "", "example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: ",
             "choice_prefix": "\n  choice: ", "append_choices_to_input": True,
             "few_shot_example_separator": "\n"}
PLAIN = {**dict.fromkeys(BIG_BENCH, ""), "append_choices_to_input": False,
         "few_shot_example_separator": "\n\n"}

PAIR = (("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"),
        ("sentence1", "sentence2", "label"))
PASSAGE = (("passage", "question", "answer"), ("passage", "question", "label"))
NLI, RTE = "{0}\nQuestion: {1} Yes, no or maybe?\nAnswer:", "{0}\nQuestion: {1} Yes or no?\nAnswer:"
SAME = "{0}\n{1}\nQuestion: Do both sentences say the same?\nAnswer:"
FORMATS = (     # of JSON lines and TSV: the fields with the label last; the template; label -> candidate
    (PAIR, NLI, {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}),      # SNLI, MNLI, XNLI, CB
    # The same with numbers. CB's 1 and 2 are swapped, which nothing in the file tells: give it words.
    (PAIR, NLI, {"0": "Yes", "1": "Maybe", "2": "No"}),
    (PAIR, RTE, {"entailment": "Yes", "not_entailment": "No"}),
    # PAWS-X. Its id tells it from RTE and WNLI with numbers, which are refused: their 0 and 1 differ.
    ((("sentence1", "sentence2", "id", "label"),), SAME, {"1": "Yes", "0": "No"}),
    (PASSAGE, "{0}\nQuestion: {1}?\nAnswer:", {"True": "Yes", "False": "No"}),          # BoolQ
    ((("sentence", "label"),), "Review: {0}\nSentiment:", {"1": "positive", "0": "negative"}),      # SST-2
)
UNLABELLED = "-", "-1"      # the annotators did not agree; a test set without its answers
MAX_CLOSED, CLOSED_SHARE = 10, 0.5      # targets are candidates if there are so few, and so few an example


def with_shots(examples, fewshot, seed, prefix="", gap="\n\n"):
    """Examples (text, candidates, right) -> items whose prompts are the prefix, `fewshot` other examples
    with a right answer, drawn by seed and position from those with another text, and the text."""
    texts, items = Counter(text for text, *_ in examples), []
    for i, (text, candidates, right) in enumerate(examples):
        rng, drawn, others = random.Random(f"{seed} {i}"), {}, len(examples) - texts[text]
        if fewshot > others:
            raise ValueError(f"--fewshot={fewshot}, but only {others} other examples to draw from")
        while len(drawn) < fewshot:
            j = rng.randrange(len(examples))
            other, words, answers = examples[j]
            if j not in drawn and other != text:
                drawn[j] = join(other, words[min(answers)] if words else min(answers))
        items.append((prefix + gap.join([*drawn.values(), text]), candidates, right))
    return items


def big_bench(task, fewshot, seed):
    """A BIG-bench JSON task (a dict with "examples"); listed choices are shuffled by seed -> (items, 0)."""
    default = BIG_BENCH if "canary" in task or any(key in task for key in BIG_BENCH) else PLAIN
    layout = {key: task.get(key, default[key]) for key in BIG_BENCH}
    scored, targeted = (all(key in x for x in task["examples"]) for key in ("target_scores", "target"))
    free = targeted and (not scored or task.get("preferred_score") == "exact_str_match")
    examples = []
    for i, example in enumerate(task["examples"]):
        text, scores, target = map(example.get, ("input", "target_scores", "target"))
        words, right = [], set()
        if free:
            targets = target if isinstance(target, list) else [target]
            right = {word.strip() for word in targets if isinstance(word, str) and word.strip()}
        elif isinstance(scores, dict) and len(scores) > 1:
            words, best = list(scores), max(scores.values())
            right = {j for j, word in enumerate(words) if scores[word] == best}
        if not isinstance(text, str) or not right:
            raise ValueError(f"example {i}: expected a string 'input', and 'target_scores' (of two or more "
                             "candidates) or 'target' (a string or strings)")
        if layout["append_choices_to_input"]:
            listed = random.Random(f"{seed} {i}").sample(words, len(words))
            text += "".join(layout["choice_prefix"] + word for word in listed)
        prompt = layout["example_input_prefix"] + text + layout["example_output_prefix"]
        examples.append((prompt, words, right))
    return with_shots(examples, fewshot, seed, layout["task_prefix"], layout["few_shot_example_separator"]), 0


def options_of(text):
    """The candidates that a BIG-bench-Hard input lists, ["(A)", "(B)"] or ["Yes", "No"]; [] without any."""
    _, listed, tail = text.rpartition("Options:\n")
    found = re.findall(r"^(?:(\([A-Z]\)) |- (.*\S))", tail, re.MULTILINE) if listed else []
    return [letter or word for letter, word in found]


def big_bench_hard(task, fewshot, seed):
    """A BIG-bench-Hard JSON task (Suzgun et al. 2022) -> (items, number of skipped examples)."""
    pairs = []
    for i, example in enumerate(task["examples"]):
        text, target = example.get("input"), example.get("target")
        if not (isinstance(text, str) and isinstance(target, str) and target.strip()):
            raise ValueError(f"example {i}: expected strings 'input' and 'target', not empty")
        pairs.append((text, target.strip()))
    options = [options_of(text) for text, _ in pairs]
    if any(options) and not all(options):
        raise ValueError(f"example {options.index([])}: no options in the input, though others have them")
    closed = sorted({target for _, target in pairs})
    if not any(options) and 2 <= len(closed) <= min(MAX_CLOSED, CLOSED_SHARE * len(pairs)):
        options = [closed] * len(pairs)
    kept = []
    for (text, target), words in zip(pairs, options):
        if not words:
            kept.append((f"Q: {text}\nA:", [], {target}))
        elif target in words and len(words) > 1:
            kept.append((f"Q: {text}\nA:", words, {words.index(target)}))
    return with_shots(kept, fewshot, seed), len(pairs) - len(kept)


def rows_of(path):
    """A .jsonl or .tsv file -> list of (place, row as a dict), place: "line 3", without empty lines."""
    if path.suffix == ".jsonl":
        return json_rows(path)
    text = text_bytes(path).decode("utf-8-sig")
    lines = text.split("\n" if "\n" in text else "\r")          # a field may hold a \r
    lines = [(f"line {n}", line.rstrip("\r").split("\t")) for n, line in enumerate(lines, 1) if line.strip()]
    names = lines.pop(0)[1] if lines else []                    # no quoting: a " is a quotation mark
    for place, fields in lines:
        if len(fields) != len(names):
            found = "\t".join(fields).strip()
            raise ValueError(f"{place}: expected the columns {', '.join(names)}, found {found:.40}")
    return [(place, dict(zip(names, fields))) for place, fields in lines]


def format_of(rows):
    """(fields, template, {label: candidate}) of the first of FORMATS that fits the rows of rows_of."""
    names, labels = list(rows[0][1]) if rows else [], set()
    known = [(fields, *rest) for spellings, *rest in FORMATS for fields in spellings]
    for fields, template, words in known:
        if set(fields) <= set(names):
            labels = {str(row.get(fields[-1])) for _, row in rows} - set(UNLABELLED)
            # Numbers mean something only together: 0 and 1 alone are entailment and neutral in one file only.
            if labels == set(words) or (labels < set(words) and not any(map(str.isdigit, labels))):
                return fields, template, words
    found = f"the fields {', '.join(names):.60} with the labels {', '.join(sorted(labels)):.60}"
    expected = " | ".join(f"{','.join(fields)} ({','.join(words)})" for fields, _, words in known)
    raise ValueError(f"{found}; expected, with all labels where they are numbers: {expected}")


def labelled_rows(path, fewshot, seed):
    """A file of one of FORMATS -> {language, "" if there is none: (items, number skipped)}."""
    rows = rows_of(path)
    (*names, label), template, words = format_of(rows)
    languages = {}
    for place, row in rows:
        examples, skipped = languages.setdefault(str(row.get("language", "")), ([], []))
        texts = [str(row.get(name, "")).strip() for name in names]
        if not all(texts):
            raise ValueError(f"{place}: expected {', '.join(names)}, none of them empty")
        if str(row[label]) in UNLABELLED:
            skipped.append(row)
        else:
            right = {list(words).index(str(row[label]))}
            examples.append((template.format(*texts), list(words.values()), right))
    return {language: (with_shots(examples, fewshot, seed), len(skipped))
            for language, (examples, skipped) in languages.items()}


def load_tasks(path, fewshot=0, seed=0):
    """A task file, or a folder of subtasks -> list of {"name", "items", "skipped"}; see the top of this file.
    fewshot: how many other examples stand with their answers before each. ValueError names the bad line."""
    path = Path(path)
    if path.is_dir():
        files = [*path.glob("task.json")] or sorted(path.glob("*/task.json"))
        if not files:
            raise ValueError(f"{path}: no task.json in this folder, nor in the folders in it")
        return [{**task, "name": file.parent.resolve().relative_to(path.resolve().parent).as_posix()}
                for file in files for task in load_tasks(file, fewshot, seed)]
    name = path.parent.resolve().name if path.name == "task.json" else path.stem
    with named(path):
        if path.suffix not in (".json", ".jsonl", ".tsv"):
            raise ValueError("expected a name in .json, .jsonl or .tsv")
        if path.suffix != ".json":
            tasks = labelled_rows(path, fewshot, seed)
        else:
            task = load_json(text_bytes(path))
            examples = task.get("examples") if isinstance(task, dict) else None
            if not (isinstance(examples, list) and examples and all(isinstance(x, dict) for x in examples)):
                raise ValueError("expected 'examples', a list of objects, or a name in .jsonl or .tsv")
            if path.name != "task.json":
                name = str(task.get("name") or name)
            plain = set(task) <= {"examples", "canary"} and not any("target_scores" in x for x in examples)
            tasks = {"": (big_bench_hard if plain else big_bench)(task, fewshot, seed)}
        if not any(items for items, _ in tasks.values()):
            raise ValueError("no example has a label")
    return [{"name": f"{name}/{language}" if len(tasks) > 1 else name, "items": items, "skipped": skipped}
            for language, (items, skipped) in tasks.items() if items]
