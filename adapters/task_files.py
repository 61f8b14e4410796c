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
    .txt     or any name: bAbI (Weston et al. 2015), whose first line is "1 Mary moved to the bathroom." A
             question stands after the sentences of its story; the candidates are the answers of the file.
"""
import random
import re
from collections import defaultdict
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
BABI = rb"(\xef\xbb\xbf)?\s*1 [^\t\r\n]+([\r\n]|$)"   # the first line: "1 Mary moved to the bathroom."
MAX_CLOSED, CLOSED_SHARE = 10, 0.5      # targets are candidates if there are so few, and so few an example


def with_shots(examples, fewshot, seed, prefix="", gap="\n\n", stories=None):
    """Examples (text, candidates, right) -> items whose prompts are the prefix, `fewshot` other examples
    with a right answer, drawn by seed and position from those with another text, and the text. stories: the
    number of each example's story, if they share text in stories; then those are of another story too."""
    if not fewshot:
        return [(prefix + text, candidates, right) for text, candidates, right in examples]
    stories, alike, places, items = stories or [text for text, *_ in examples], defaultdict(set), {}, []
    for i, ((text, *_), story) in enumerate(zip(examples, stories)):
        alike[text].add(i)
        alike[story].add(i)
    every = range(len(examples))
    for i, (text, candidates, right) in enumerate(examples):
        rng, drawn, tries, place = random.Random(f"{seed} {i}"), {}, 0, (text, stories[i])
        if place not in places:                             # many examples may share it
            barred = alike[text] | alike[stories[i]]
            free = [j for j in every if j not in barred] if 2 * len(barred) > len(every) else every
            places[place] = barred, free
        barred, free = places[place]
        if fewshot > (n := len(every) - len(barred)):
            raise ValueError(f"--fewshot={fewshot}, but only {n} other examples to draw from")
        while len(drawn) < fewshot:
            tries += 1
            pool = every if tries < 100 else free
            j = pool[rng.randrange(len(pool))]
            if j not in drawn and j not in barred:
                other, words, answers = examples[j]
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


def lines_of(path):
    """A text file -> list of ("line 3", its fields between tabs), without blank lines."""
    text = text_bytes(path).decode("utf-8-sig")
    lines = text.split("\n" if "\n" in text else "\r")          # a field may hold a \r
    return [(f"line {n}", line.rstrip("\r").split("\t")) for n, line in enumerate(lines, 1) if line.strip()]


def rows_of(path):
    """A .jsonl or .tsv file -> list of (place, row as a dict), place: "line 3", without empty lines."""
    if path.suffix == ".jsonl":
        return json_rows(path)
    lines = lines_of(path)
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


def babi_questions(path):
    """A bAbI file -> list of (number of the story, its sentences so far and the question, answer)."""
    asked, facts, story, last = [], {}, 0, 0
    for place, fields in lines_of(path):
        with named(place):
            first, *rest = (field.strip() for field in fields)      # rest: answer, supporting facts
            number, _, text = first.partition(" ")
            if not (number.isdecimal() and text) or "" in rest[:1] or len(rest) > 2:
                raise ValueError(f"{first:.40}; expected 'n sentence' or 'n question<tab>answer<tab>numbers' "
                                 "(bAbI), or a name in .json, .jsonl or .tsv")
            if int(number) not in (1, last + 1):
                other = ", or 1 for a new story" if last else ""
                raise ValueError(f"the number {number:.9}; expected {last + 1}{other}")
            last = int(number)
            if last == 1:
                facts, story = {}, story + 1
            if not rest:
                facts[number] = text.strip()
                continue
            unknown = [fact for fact in " ".join(rest[1:]).split() if fact not in facts]
            if not facts:
                raise ValueError(f"{text.strip():.40}; expected a sentence of the story before its questions")
            if unknown:
                raise ValueError(f"supporting fact {unknown[0]:.9}; expected numbers of sentences before it")
            asked.append((story, " ".join([*facts.values(), text.strip()]), rest[0]))
    return asked


def babi(path, fewshot, seed):
    """A bAbI file -> (items, the number of each item's story). The candidates are the answers of the file."""
    asked = babi_questions(path)
    words = sorted({answer for *_, answer in asked})
    if len(words) < 2:
        found = f"no answer but {words[0]:.40}" if words else "no question"
        raise ValueError(f"{found}; expected questions with different answers")
    stories = [story for story, *_ in asked]
    examples = [(text, words, {words.index(answer)}) for _, text, answer in asked]
    return with_shots(examples, fewshot, seed, stories=stories), stories


def load_tasks(path, fewshot=0, seed=0):
    """A task file, or a folder of subtasks -> list of {"name", "items", "skipped"}; see the top of this file.
    bAbI has "stories" too, the number of each item's story, because the items of one share its sentences.
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
        if path.suffix not in (".json", ".jsonl", ".tsv") or re.match(BABI, text_bytes(path, 999)):
            items, stories = babi(path, fewshot, seed)
            return [{"name": name, "items": items, "skipped": 0, "stories": stories}]
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
