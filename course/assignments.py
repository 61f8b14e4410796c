"""The nine assignments: which functions a student writes, and how source text is removed and replaced.

Wrong answers (course/mutants) and the recipes of course/teacher/README.md are changes. A change is a block:

    @ td_distill.py restrict_to_p       the file, and the function that holds the text (none: the whole file)
    = the rounding slack is missing     what the change does, in words
    - p - SLACK                         the text to replace, one or more lines; it must occur exactly once
    + p                                 the text in its place; without such a line the old text is deleted

Without a line of old text the new text takes the place of the whole body of the function, behind its
docstring.
"""

import ast
import re
from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class Assignment(NamedTuple):
    """One assignment; file names are relative to the repository."""
    name: str           # of its page course/NAME.md, course/checks/NAME.py and course/mutants/NAME.txt
    write: dict         # file -> functions that the student writes; ("",): the whole file
    hide: dict = {}     # file -> functions that reveal the solution: removed as well, but not graded
    needs: dict = {}    # file -> functions of later assignments that its checks and its number need


ASSIGNMENTS = {
    1: Assignment("1-bpe", {"data/tokenizer.py": ("learn_merges", "train_bpe")},
                  needs={"data/documents.py": ("render", "render_reading")}),
    2: Assignment("2-attention",
                  {"model.py": ("attend", "Attention.forward", "KVCache.advance", "KVCache.append")},
                  {"adapters/gpt2.py": ("GPT2Attention.forward",)}),
    3: Assignment("3-reading", {"data/documents.py": ("render_reading", "render", "encode_documents")}),
    4: Assignment("4-blind", {"brd.py": ("split_tokens", "score_batch", "tie_accuracy")},
                  needs={"data/figures.py": ("ratio_se",)}),
    5: Assignment("5-cache",
                  {"data/sets.py": ("top_p_sets", "restrict_to_p"),
                   "data/cache_tools.py": ("round_down_to_half",),
                   "data/cache.py": ("TeacherCache.document", "TeacherCache.batch")},
                  {"course/theory.py": ("top_p",)}),
    6: Assignment("6-kd",
                  {"td_distill.py": ("student_terms", "weighted_mean", "sum_terms", "sft_loss",
                                     "mask_terms", "log_outside", "topp_forward_kl")},
                  {"td_distill.py": ("reverse_kl", "td_terms")}),
    7: Assignment("7-td",
                  {"td_distill.py": ("TDHeads.forward", "successor_values", "bellman_weights", "td_terms",
                                     "bellman_distill", "soft_returns")},
                  {"td_distill.py": ("ls_iq",)}),
    8: Assignment("8-control",
                  {"data/figures.py": ("ratio_se", "paired_se"), "data/documents.py": ("data_mix",),
                   "course/8-report.json": ("",), "course/8-results.json": ("",)}),
    9: Assignment("9-prize", {"experiments/objectives.py": ("prize",), "course/9-report.json": ("",),
                              "course/9-results.jsonl": ("",), "course/9-routes.jsonl": ("",)}),
}


def emptied(number):
    """What a student's copy for an assignment has empty, its own functions and those of all later ones:
    {(file, function): number of the last assignment that asks for it}."""
    needs = ASSIGNMENTS[number].needs
    return {(file, name): n for n, one in ASSIGNMENTS.items() if n >= number for part in (one.write, one.hide)
            for file in part for name in part[file] if name and name not in needs.get(file, ())}


def find_function(source, name):
    """The syntax node of a function ("merge") or a method ("KVCache.append"); ValueError for none."""
    node = ast.parse(source)
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == part), None)
        if node is None:
            raise ValueError(f"no function {name} in the source; update course/assignments.py")
    return node


def with_body(source, name, body):
    """The source with another body of a function; its signature and its docstring stay. Lines of the body
    begin where the function itself would begin: they are moved by the indent of its body."""
    node = find_function(source, name)
    lines, indent = source.split("\n"), " " * (node.col_offset + 4)
    first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
    lines[first:node.end_lineno] = [indent + line if line else line for line in body.split("\n")]
    return "\n".join(lines)


Change = namedtuple("Change", "file function what old new", defaults=[""] * 4)


def read_changes(text):
    """Text in the form above -> list of Change. Lines that begin otherwise are comments."""
    changes, fields = [], {"=": "what", "-": "old", "+": "new"}
    for line in text.split("\n"):
        mark, rest = line[:1], line[2:]
        if mark == "@":
            changes.append(Change(*rest.split(" ")))
        elif changes and mark in fields:
            before = getattr(changes[-1], fields[mark])
            changes[-1] = changes[-1]._replace(**{fields[mark]: f"{before}\n{rest}" if before else rest})
    return changes


def changed(source, change):
    """The source with one Change made: a part of its text, or the whole body of its function. White space in
    the old text matches any other, so lines may be wrapped anew. ValueError where it does not occur exactly
    once."""
    if not change.old and change.function:
        return with_body(source, change.function, change.new)
    start, end = 0, len(source)
    if change.function:
        node, lines = find_function(source, change.function), source.split("\n")
        start, end = (len("\n".join(lines[:n])) for n in (node.lineno - 1, node.end_lineno))
    old = r"\s+".join(map(re.escape, change.old.split()))
    new, count = re.subn(old, lambda match: change.new, source[start:end])
    if count != 1 or not old:
        raise ValueError(f"{change.file} {change.function}: {change.old!r} occurs {count} times, expected "
                         f"once; update the change '{change.what}'")
    return source[:start] + new + source[end:]
