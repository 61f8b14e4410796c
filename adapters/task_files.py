r"""
Task files as they are published -> items that a model can be tested on.

    python brd.py test out/brd bbh/snarks.json boolq/dev.jsonl SST-2/dev.tsv logical_deduction --fewshot=2

    from adapters.task_files import load_task
    load_task("bbh/snarks.json")["items"][0]    # ("Q: Which statement is sarcastic?\n...\nA:", ["(A)", "(B)"], {1})

An item is (prompt, candidates, right): the candidates to choose from, and the indices of those that are right. Where the
answer is free it is (prompt, [], {"24"}): the texts any of which must be generated, word for word.

What is read, by what stands in the file:
    .json    BIG-bench: "examples" with "target_scores" (the candidates of the highest score are right); with "target"
             alone, or where "preferred_score" is "exact_str_match", the answer is generated. A folder without task.json
             is a task of subtasks: the folders in it that have one.
    .json    BIG-bench-Hard: nothing but "examples" of "input" and "target". Candidates are the options in the input,
             (A) (B) ... or - Yes - No; without options the targets of the file, where they are few; else it is generated.
             An example whose target is none of its options, or which has only one, is skipped and counted: four of the
             6,511 published ones are such, by mistakes in their making.
    .jsonl   one object a line, and .tsv, one row a line below a line of names: the formats in the table FORMATS.
             A line without a label ("-", -1) is skipped and counted. Several languages in one file are several tasks
             (the templates stay English).
"""
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

from data.files import brief

# ---------------------------------------------------------------------------------------------------------------------
# the templates: what stands in a prompt, and the candidate for each label

# What BIG-bench does where a file is silent. A file that says nothing of its layout at all, and has not BIG-bench's
# canary, is a plain one: its inputs are its prompts.
BIG_BENCH = {"task_prefix": "", "example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: ",
             "choice_prefix": "\n  choice: ", "append_choices_to_input": True, "few_shot_example_separator": "\n"}
PLAIN = {**dict.fromkeys(BIG_BENCH, ""), "append_choices_to_input": False, "few_shot_example_separator": "\n\n"}
BIG_BENCH_TEMPLATE = "{example_input_prefix}{input}{choices}{example_output_prefix}"
HARD_TEMPLATE = "Q: {input}\nA:"

PAIR = (("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"), ("sentence1", "sentence2", "label"))
PASSAGE = (("passage", "question", "answer"), ("passage", "question", "label"))
NLI = "{0}\nQuestion: {1} Yes, no or maybe?\nAnswer:"
FORMATS = (  # of JSON lines and TSV: name; fields, the label last, as files call them; template; label -> candidate
    ("SNLI, MNLI, XNLI, CB", PAIR, NLI, {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}),
    # CB's 1 and 2 are the other way round, which nothing in the file tells: with numbers it is misread, give it words.
    ("SNLI, MNLI, XNLI, numbered", PAIR, NLI, {"0": "Yes", "1": "Maybe", "2": "No"}),
    ("RTE", PAIR, "{0}\nQuestion: {1} Yes or no?\nAnswer:", {"entailment": "Yes", "not_entailment": "No"}),
    # An id tells it from RTE and WNLI with numbers, whose 0 and 1 mean something else (they are refused).
    ("PAWS-X", (("sentence1", "sentence2", "id", "label"),),
     "{0}\n{1}\nQuestion: Do both sentences say the same?\nAnswer:", {"1": "Yes", "0": "No"}),
    ("BoolQ", PASSAGE, "{0}\nQuestion: {1}?\nAnswer:", {"True": "Yes", "False": "No"}),
    ("SST-2", (("sentence", "label"),), "Review: {0}\nSentiment:", {"1": "positive", "0": "negative"}),
)
UNLABELLED = "-", "-1"      # the annotators did not agree; a test set without its answers
SHOT_GAP = "\n\n"           # between examples with their answers, where the file does not say
MAX_CLOSED = 10             # targets without options are candidates where there are this many at most,
CLOSED_SHARE = 0.5          # and this many for each example, or one could not learn them from the file


def join(prompt, answer):
    """Prompt and answer as running text: joined by one space, or by the white space that the prompt ends with."""
    kept = prompt.rstrip(" ")
    return kept + (prompt[len(kept):] or " " * bool(kept[-1:].strip())) + answer.lstrip(" ")


def with_shots(examples, fewshot, seed, prefix="", gap=SHOT_GAP):
    """Examples (text, candidates, right) -> items, in the same order: each prompt is the prefix, `fewshot` other examples
    each with a right answer, and the text.

    The shots are drawn anew for each example, by seed and position, never the example itself nor one with the same text.
    ValueError: there are too few."""
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


# ---------------------------------------------------------------------------------------------------------------------
# one format after the other: each gives (items, number skipped)

def big_bench(task, fewshot, seed):
    """A BIG-bench JSON task (a dict with "examples"); choices that are listed in the prompt are shuffled by seed."""
    says_something = "canary" in task or any(key in task for key in BIG_BENCH)
    layout = {**(BIG_BENCH if says_something else PLAIN), **{key: task[key] for key in BIG_BENCH if key in task}}
    for key, value in layout.items():
        if type(value) is not type(BIG_BENCH[key]):
            expected = "a string" if isinstance(PLAIN[key], str) else "true or false"
            raise ValueError(f"'{key}' is {value!r:.60}, expected {expected}")
    have = [all(isinstance(e, dict) and key in e for e in task["examples"]) for key in ("target_scores", "target")]
    free = have[1] and (not have[0] or task.get("preferred_score") == "exact_str_match")
    examples = []
    for i, example in enumerate(task["examples"]):
        example = example if isinstance(example, dict) else {}
        text, scores, target = map(example.get, ("input", "target_scores", "target"))
        if free:
            words, targets = [], target if isinstance(target, list) else [target]
            right = {word.strip() for word in targets if isinstance(word, str) and word.strip()}
            well = len(right) > 0
        else:
            well = (isinstance(scores, dict) and len(scores) > 1
                    and all(word.strip() and type(score) in (int, float) and abs(score) < math.inf for word, score in scores.items()))
            words = list(scores) if well else []
            right = {j for j, word in enumerate(words) if scores[word] == max(scores.values())}
        if not isinstance(text, str) or not well:
            raise ValueError(f"example {i}: expected a string 'input', and " + (
                "under 'target' a string or a list of strings, not empty" if free else
                "under 'target_scores' two or more candidates, none empty, each with a number"))
        listed = random.Random(f"{seed} {i}").sample(words, len(words)) if layout["append_choices_to_input"] else []
        choices = "".join(layout["choice_prefix"] + word for word in listed)
        examples.append((BIG_BENCH_TEMPLATE.format(**layout, input=text, choices=choices), words, right))
    return with_shots(examples, fewshot, seed, layout["task_prefix"], layout["few_shot_example_separator"]), 0


def options_of(text):
    """The candidates that a BIG-bench-Hard input lists: ["(A)", "(B)"] or ["Yes", "No"]; [] where it lists none.

    >>> options_of("Which is red?\nOptions:\n(A) the lamp\n(B) the chair")
    ['(A)', '(B)']
    """
    _, listed, tail = text.rpartition("Options:\n")
    found = re.findall(r"^(?:(\([A-Z]\)) |- (.*\S))", tail, re.MULTILINE) if listed else []
    return [letter or word for letter, word in found]


def big_bench_hard(task, fewshot, seed):
    """A BIG-bench-Hard JSON task (Suzgun et al. 2022): see the top of this file."""
    for i, example in enumerate(task["examples"]):
        if not (isinstance(example, dict) and all(isinstance(example.get(key), str) and example[key].strip()
                                                  for key in ("input", "target"))):
            raise ValueError(f"example {i}: expected strings 'input' and 'target', not empty")
    pairs = [(example["input"], example["target"].strip()) for example in task["examples"]]
    options = [options_of(text) for text, _ in pairs]
    if any(options) and not all(options):
        raise ValueError(f"example {options.index([])}: no options in the input, though others have them; expected them "
                         "in all or in none")
    closed = sorted({target for _, target in pairs})
    if not any(options) and 2 <= len(closed) <= min(MAX_CLOSED, CLOSED_SHARE * len(pairs)):
        options = [closed] * len(pairs)
    kept = [(HARD_TEMPLATE.format(input=text), words, {words.index(target)} if words else {target})
            for (text, target), words in zip(pairs, options) if not words or (target in words and len(words) > 1)]
    return with_shots(kept, fewshot, seed), len(pairs) - len(kept)


def rows_of(path):
    """Yields (line number, row as a dict) of a .jsonl or .tsv file in UTF-8; empty lines are passed over."""
    names = None
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if path.suffix == ".tsv":                       # no quoting: a " in these files is a quotation mark
                cells = line.rstrip("\r\n").split("\t")
                names, header = names or cells, names is None
                if len(cells) != len(names):
                    raise ValueError(f"line {number}: {len(cells)} columns, expected {len(names)}: {', '.join(names)}")
                if header:
                    continue
                row = dict(zip(names, cells))
            else:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: not JSON ({brief(error)})") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number}: expected an object with fields, found {line.strip()[:40]}")
            yield number, row


def format_of(rows):
    """(fields, template, {label: candidate}) of the first of FORMATS that knows the fields and all labels of these rows,
    which are (line number, dict)."""
    names = set(rows[0][1]) if rows else set()
    fitting = [(fields, *rest) for _, spellings, *rest in FORMATS for fields in spellings if set(fields) <= names]
    if not fitting:
        known = dict.fromkeys(",".join(fields) for _, spellings, *_ in FORMATS for fields in spellings)
        found = f"line {rows[0][0]} has the fields {', '.join(rows[0][1]):.40}" if rows else "no lines"
        raise ValueError(f"{found}; expected those of a task: {' | '.join(known)}")
    for number, row in rows:
        for *texts, label in [fields for fields, *_ in fitting]:
            if label not in row or any(type(row.get(x)) not in (str, int) or not str(row[x]).strip() for x in texts):
                raise ValueError(f"line {number}: expected the fields {', '.join(texts)}, {label}, the texts not empty")
    for fields, template, words in fitting:
        first = {str(row[fields[-1]]): number for number, row in reversed(rows)}         # label -> its first line
        labels = set(first) - set(UNLABELLED)
        # Numbers mean something only together: 0 and 1 alone are entailment and neutral in one file, and not in another.
        if labels == set(words) or (labels < set(words) and not any(map(str.isdigit, labels))):
            return fields, template, words
    unknown = sorted(labels - {label for *_, words in fitting for label in words}, key=first.get)
    found = f"line {first[unknown[0]]}: label {unknown[0]!r:.60}" if unknown else f"the labels {', '.join(sorted(labels)):.80}"
    raise ValueError(f"{found}; expected labels of one kind, and all of them where they are numbers: "
                     f"{' | '.join(', '.join(words) for *_, words in fitting)}")


def labelled_rows(path, fewshot, seed):
    """A file of one of FORMATS -> {language, "" where there is none: (items, number skipped)}."""
    rows = list(rows_of(path))
    (*texts, label), template, words = format_of(rows)
    languages = {}
    for _, row in rows:
        examples, skipped = languages.setdefault(row.get("language", ""), ([], []))
        if str(row[label]) in UNLABELLED:
            skipped.append(row)
        else:
            text = template.format(*(str(row[name]).strip() for name in texts))
            examples.append((text, list(words.values()), {list(words).index(str(row[label]))}))
    return {language: (with_shots(examples, fewshot, seed), len(skipped))
            for language, (examples, skipped) in languages.items()}


# ---------------------------------------------------------------------------------------------------------------------
# files and folders

def load_tasks(path, fewshot=0, seed=0):
    """A task file, or a folder of subtasks -> list of {"name", "items", "skipped"}; see the top of this file.

    fewshot: how many other examples of the file stand with their answers before each. ValueError of one line names the
    file, and line or example; OSError where it cannot be opened."""
    path = Path(path)
    if path.is_dir():
        files = [path / "task.json"] if (path / "task.json").is_file() else sorted(path.glob("*/task.json"))
        if not files:
            raise ValueError(f"{path}: no task.json in this folder, nor in the folders in it")
        return [{**task, "name": file.parent.resolve().relative_to(path.resolve().parent).as_posix()}
                for file in files for task in load_tasks(file, fewshot, seed)]
    name = path.parent.resolve().name if path.name == "task.json" else path.stem
    try:
        if path.suffix in (".jsonl", ".tsv"):
            tasks = labelled_rows(path, fewshot, seed)
        else:
            with open(path, encoding="utf-8-sig") as file:
                task = json.load(file)
            if not isinstance(task, dict) or not isinstance(task.get("examples"), list) or not task["examples"]:
                raise ValueError("expected an object with a list 'examples' that is not empty (a BIG-bench JSON task), "
                                 "or a name that ends in .jsonl or .tsv")
            if not isinstance(task.get("name", ""), str):
                raise ValueError(f"'name' is {task['name']!r:.60}, expected a string")
            name = task.get("name") if path.name != "task.json" and task.get("name") else name
            plain = set(task) <= {"examples", "canary"} and not any(
                isinstance(example, dict) and "target_scores" in example for example in task["examples"])
            tasks = {"": (big_bench_hard if plain else big_bench)(task, fewshot, seed)}
        if not any(items for items, _ in tasks.values()):
            raise ValueError("no example has a label")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); if it is one object a line, its name must end in .jsonl") from None
    except RecursionError:
        raise ValueError(f"{path}: not a task, but brackets in brackets, too many to be read") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8 ({error.reason})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return [{"name": f"{name}/{language}" if len(tasks) > 1 else name, "items": items, "skipped": skipped}
            for language, (items, skipped) in tasks.items() if items]


def load_task(path, fewshot=0, seed=0):
    """The task of a file that holds one; see load_tasks. ValueError where it holds several."""
    task, *more = load_tasks(path, fewshot, seed)
    if more:
        raise ValueError(f"{path}: {1 + len(more)} tasks, {task['name']} and so on; expected one")
    return task
