"""Task files: small samples of every format, prompts as they must stand, and bad files named in one line."""
import json
import re
from collections import Counter

import pytest

from adapters.task_files import FORMATS, join, load_task, load_tasks, options_of


def write(path, *rows, **task):
    """A file of text, or of JSON lines where rows are dicts, or one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows] or [json.dumps(task)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


# --- BIG-bench ----------------------------------------------------------------------------------------------------------

TOWNS = [{"input": "Where?", "target_scores": {"Oslo": 1, "Rome": 0}},
         {"input": "Who?", "target_scores": {"Anna": 0.5, "Bob": 0.1, "Carl": 0.5}}]


def test_a_plain_file_is_read_as_it_stands(tmp_path):
    path = write(tmp_path / "t.json", name="towns", description="d", preferred_score="multiple_choice_grade", examples=TOWNS)
    assert load_task(path) == {"name": "towns", "skipped": 0, "items": [
        ("Where?", ["Oslo", "Rome"], {0}), ("Who?", ["Anna", "Bob", "Carl"], {0, 2})]}


def test_a_file_with_a_layout_gets_what_big_bench_does_where_it_is_silent(tmp_path):
    path = write(tmp_path / "towns.json", canary="c", examples=TOWNS, append_choices_to_input=False)
    assert [prompt for prompt, *_ in load_task(path)["items"]] == ["\nQ: Where?\nA: ", "\nQ: Who?\nA: "]
    path = write(tmp_path / "towns.json", task_prefix="{Answer.} ", example_input_prefix="", example_output_prefix=" =",
                 append_choices_to_input=False, examples=TOWNS)
    task = load_task(path)
    assert task["name"] == "towns" and [prompt for prompt, *_ in task["items"]] == ["{Answer.} Where? =", "{Answer.} Who? ="]


def test_listed_choices_are_shuffled_by_the_seed(tmp_path):
    words = {word: int(word == "a") for word in "abcdef"}
    path = write(tmp_path / "t.json", canary="c", examples=[{"input": "x", "target_scores": words}] * 200)
    prompts = [prompt for prompt, *_ in load_task(path)["items"]]
    listed = [re.findall(r"\n  choice: (.)", prompt) for prompt in prompts]
    assert prompts == ["\nQ: x" + "".join(f"\n  choice: {word}" for word in row) + "\nA: " for row in listed]
    assert all(sorted(row) == list("abcdef") for row in listed)
    firsts = Counter(row[0] for row in listed)
    assert set(firsts) == set("abcdef") and min(firsts.values()) > 15                   # 33 on average: no place tells
    assert [p for p, *_ in load_task(path)["items"]] == prompts != [p for p, *_ in load_task(path, seed=1)["items"]]
    path = write(tmp_path / "t.json", choice_prefix=" / ", example_input_prefix="", examples=TOWNS[:1])
    assert load_task(path)["items"][0][0] in ("Where? / Oslo / Rome\nA: ", "Where? / Rome / Oslo\nA: ")


def test_targets_without_scores_are_generated(tmp_path):
    free = [{"input": "2 + 2", "target": "4"}, {"input": "A town", "target": ["Oslo", " Rome "]}]
    path = write(tmp_path / "t.json", name="t", metrics=["exact_str_match"], examples=free)
    assert load_task(path)["items"] == [("2 + 2", [], {"4"}), ("A town", [], {"Oslo", "Rome"})]
    both = [{"input": "2 + 2", "target": "4", "target_scores": {"3": 0, "4": 1}}]
    assert load_task(write(tmp_path / "b.json", name="b", examples=both))["items"] == [("2 + 2", ["3", "4"], {1})]
    path = write(tmp_path / "b.json", preferred_score="exact_str_match", examples=both)
    assert load_task(path)["items"] == [("2 + 2", [], {"4"})]


def test_a_folder_is_a_task_of_subtasks(tmp_path):
    for name in ("two", "one"):
        write(tmp_path / "towns" / name / "task.json", name="examples of " + name, examples=TOWNS)
    write(tmp_path / "towns" / "results" / "other.json", examples=[])
    assert [task["name"] for task in load_tasks(tmp_path / "towns")] == ["towns/one", "towns/two"]
    assert load_task(tmp_path / "towns" / "one")["name"] == load_task(tmp_path / "towns" / "one" / "task.json")["name"] == "one"
    with pytest.raises(ValueError, match="towns: 2 tasks, towns/one and so on; expected one"):
        load_task(tmp_path / "towns")
    with pytest.raises(ValueError, match="results: no task.json in this folder, nor in the folders in it"):
        load_tasks(tmp_path / "towns" / "results")


# --- BIG-bench-Hard -----------------------------------------------------------------------------------------------------

LETTERS = "Which is red?\nOptions:\n(A) the lamp\n(B) the chair (C) \n(C) - none"
DASHES = "Does it follow?\nOptions:\n- valid \n- invalid"


def hard(path, *pairs):
    return write(path, canary="c", examples=[{"input": text, "target": target} for text, target in pairs])


def test_options_are_those_of_the_text():
    assert options_of(LETTERS) == ["(A)", "(B)", "(C)"] and options_of(DASHES) == ["valid", "invalid"]
    assert options_of("(A) or - no\n- yes") == options_of("Options are few\n- yes") == []
    assert options_of("Options:\n- a\nOptions:\n(A) b\n(B) c") == ["(A)", "(B)"]        # the last list counts


def test_options_in_the_input_are_the_candidates(tmp_path):
    task = load_task(hard(tmp_path / "red.json", (LETTERS, "(C)"), (LETTERS, "(A)")))
    assert task["name"] == "red" and task["items"] == [(f"Q: {LETTERS}\nA:", ["(A)", "(B)", "(C)"], {i}) for i in (2, 0)]
    assert load_task(hard(tmp_path / "f.json", (DASHES, "valid")))["items"] == [(f"Q: {DASHES}\nA:", ["valid", "invalid"], {0})]


def test_examples_that_cannot_be_answered_or_cannot_be_missed_are_skipped_and_counted(tmp_path):
    path = hard(tmp_path / "t.json", (LETTERS, "the lamp, red"), (LETTERS, "(B)"), ("Which?\nOptions:\n(A) It", "(A)"))
    task = load_task(path)
    assert task["skipped"] == 2 and [right for *_, right in task["items"]] == [{1}]


def test_few_targets_are_candidates_many_are_generated(tmp_path):
    few = [("not True is", "False"), ("not False is", "True"), ("True is", "True"), ("False is", "False")]
    assert load_task(hard(tmp_path / "t.json", *few))["items"][:2] == [
        ("Q: not True is\nA:", ["False", "True"], {0}), ("Q: not False is\nA:", ["False", "True"], {1})]
    free = [[("x", "1"), ("y", "2")], [("x", "1")] * 9, [(f"{i}", str(i % 11)) for i in range(44)]]   # too short, one, eleven
    for pairs in free:
        items = load_task(hard(tmp_path / "t.json", *pairs))["items"]
        assert items == [(f"Q: {text}\nA:", [], {target}) for text, target in pairs]
    ten = load_task(hard(tmp_path / "t.json", *((f"{i}", str(i % 10)) for i in range(20))))["items"]
    assert ten[3] == ("Q: 3\nA:", list("0123456789"), {3})


# --- lines and tables ---------------------------------------------------------------------------------------------------

def test_natural_language_inference(tmp_path):
    snli = [{"sentence1": "Anna ran. ", "sentence2": "Anna moved.", "gold_label": label, "pairID": 7}
            for label in ("entailment", "-", "neutral", "contradiction", "-")]
    task = load_task(write(tmp_path / "snli.dev.jsonl", *snli))
    prompt = "Anna ran.\nQuestion: Anna moved. Yes, no or maybe?\nAnswer:"
    assert task == {"name": "snli.dev", "skipped": 2,
                    "items": [(prompt, ["Yes", "Maybe", "No"], {i}) for i in (0, 1, 2)]}
    rows = [{"premise": "Anna ran. ", "hypothesis": "Anna moved.", "label": label} for label in (2, -1, 0, 1)]
    numbered = load_task(write(tmp_path / "n.jsonl", *rows))
    assert numbered["items"] == [task["items"][i] for i in (2, 0, 1)] and numbered["skipped"] == 1
    rte = [{"premise": "Anna ran.", "hypothesis": "Anna moved.", "label": label} for label in ("not_entailment", "entailment")]
    assert load_task(write(tmp_path / "rte.jsonl", *rte))["items"] == [
        ("Anna ran.\nQuestion: Anna moved. Yes or no?\nAnswer:", ["Yes", "No"], {i}) for i in (1, 0)]


def test_a_part_of_the_words_is_enough_a_part_of_the_numbers_is_not(tmp_path):
    rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in ("neutral", "contradiction")]
    assert [right for *_, right in load_task(write(tmp_path / "w.jsonl", *rows))["items"]] == [{1}, {2}]
    rows = [{**row, "label": i} for i, row in enumerate(rows)]                # the labels of RTE, or a part of MNLI's?
    with pytest.raises(ValueError, match="the labels 0, 1; expected labels of one kind, and all of them where they are numbers"):
        load_task(write(tmp_path / "n.jsonl", *rows))


def test_several_languages_are_several_tasks(tmp_path):
    rows = [{"language": language, "sentence1": "a", "sentence2": "b", "gold_label": label}
            for label in ("neutral", "entailment") for language in ("fr", "de")]
    tasks = load_tasks(write(tmp_path / "xnli.dev.jsonl", *rows))
    assert [(task["name"], len(task["items"])) for task in tasks] == [("xnli.dev/fr", 2), ("xnli.dev/de", 2)]
    assert [task["name"] for task in load_tasks(write(tmp_path / "fr.jsonl", *rows[::2]))] == ["fr"]


def test_boolq(tmp_path):
    rows = [{"question": "is oslo a town", "title": "Oslo", "passage": "Oslo is a town.\n", "answer": truth}
            for truth in (True, False)]
    wanted = [("Oslo is a town.\nQuestion: is oslo a town?\nAnswer:", ["Yes", "No"], {i}) for i in (0, 1)]
    assert load_task(write(tmp_path / "dev.jsonl", *rows))["items"] == wanted
    rows = [{"question": row["question"], "passage": row["passage"], "idx": 1, "label": row["answer"]} for row in rows]
    assert load_task(write(tmp_path / "val.jsonl", *rows))["items"] == wanted


def test_tables(tmp_path):
    path = write(tmp_path / "dev.tsv", "sentence\tlabel", 'a " fine\rfilm \t1', "", "dull\t0\r")
    assert load_task(path)["items"] == [('Review: a " fine\rfilm\nSentiment:', ["positive", "negative"], {0}),
                                        ("Review: dull\nSentiment:", ["positive", "negative"], {1})]
    path = write(tmp_path / "rte.tsv", "index\tsentence1\tsentence2\tlabel", "1\tp\th\tnot_entailment")
    assert load_task(path)["items"] == [("p\nQuestion: h Yes or no?\nAnswer:", ["Yes", "No"], {1})]


def test_only_an_id_makes_numbers_a_paraphrase(tmp_path):
    """RTE and WNLI have the same other columns, and their 0 and 1 mean something else."""
    rows = "1\tA to B\tB to A\t0", "2\tA to B\tto B, A\t1"
    items = load_task(write(tmp_path / "paws.tsv", "id\tsentence1\tsentence2\tlabel", *rows))["items"]
    assert items[1] == ("A to B\nto B, A\nQuestion: Do both sentences say the same?\nAnswer:", ["Yes", "No"], {0})
    rows_ = [{"id": i, "sentence1": "A to B", "sentence2": text, "label": i} for i, text in enumerate(("B to A", "to B, A"))]
    assert load_task(write(tmp_path / "paws.jsonl", *rows_))["items"] == items
    with pytest.raises(ValueError, match="the labels 0, 1; expected labels of one kind"):
        load_task(write(tmp_path / "wnli.tsv", "index\tsentence1\tsentence2\tlabel", *rows))
    words = [{**row, "label": label} for row, label in zip(rows_, ("neutral", "entailment"))]
    assert "Yes, no or maybe?" in load_task(write(tmp_path / "nli.jsonl", *words))["items"][0][0]


def test_every_format_can_be_read(tmp_path):
    """Each row of the table, under each of its spellings, with one line a label."""
    for _, spellings, template, words in FORMATS:
        for fields in spellings:
            rows = [{**{name: f"<{name}>" for name in fields[:-1]}, fields[-1]: label} for label in words]
            items = load_task(write(tmp_path / "t.jsonl", *rows))["items"]
            assert items == [(template.format(*(f"<{name}>" for name in fields[:-1])), list(words.values()), {i})
                             for i in range(len(words))]


# --- examples that stand before ---------------------------------------------------------------------------------------------

def test_prompt_and_answer_are_joined_as_running_text():
    assert join("A:", "Oslo") == join("A: ", " Oslo") == "A: Oslo" and join("A:  ", "Oslo") == "A:  Oslo"
    assert join("A:\n", "Oslo") == "A:\nOslo" and join("", "Oslo") == "Oslo" and join("A:\n ", "Oslo") == "A:\n Oslo"


def test_shots_are_other_examples_with_their_right_answers(tmp_path):
    answers = {f"{i} + {i}": str(2 * i % 7) for i in range(14)}
    path = hard(tmp_path / "t.json", *answers.items())
    blind, shots, again, other = (load_task(path, k, seed)["items"] for k, seed in ((0, 0), (3, 0), (3, 0), (3, 1)))
    assert shots == again != other
    firsts = set()
    for (prompt, *_), (long, candidates, right) in zip(blind, shots):
        *before, last = long.split("\n\n")
        assert last == prompt and candidates[min(right)] == answers[prompt[3:-3]]
        asked = [re.fullmatch(r"Q: (.+)\nA: (\d)", shot).groups() for shot in before]
        assert len(set(asked)) == 3 and prompt[3:-3] not in dict(asked) and all(answers[q] == a for q, a in asked)
        firsts.add(asked[0])
    assert len(firsts) > 5                                                    # drawn anew for every example


def test_an_example_with_the_same_text_is_no_shot(tmp_path):
    pairs = [("same", "Yes"), ("same", "No"), ("other", "No"), ("same", "Yes")]
    items = load_task(hard(tmp_path / "t.json", *pairs), fewshot=1)["items"]
    assert [items[i][0] for i in (0, 1, 3)] == ["Q: other\nA: No\n\nQ: same\nA:"] * 3
    with pytest.raises(ValueError, match="t.json: --fewshot=2, but only 1 other examples to draw from"):
        load_task(tmp_path / "t.json", fewshot=2)


def test_shots_follow_the_layout_of_the_file(tmp_path):
    path = write(tmp_path / "t.json", task_prefix="Towns.", append_choices_to_input=False, examples=[
        {"input": "Q1", "target_scores": {"Oslo": 0, "Rome": 1}}, {"input": "Q2", "target_scores": {"Oslo": 1, "Rome": 1}}])
    assert [prompt for prompt, *_ in load_task(path, fewshot=1)["items"]] == [
        "Towns.\nQ: Q2\nA: Oslo\n\nQ: Q1\nA: ", "Towns.\nQ: Q1\nA: Rome\n\nQ: Q2\nA: "]
    task = json.loads(path.read_text(encoding="utf-8"))
    write(path, **task, few_shot_example_separator=" ##")
    assert load_task(path, fewshot=1)["items"][0][0] == "Towns.\nQ: Q2\nA: Oslo ##\nQ: Q1\nA: "
    path = write(tmp_path / "f.json", name="f", examples=[{"input": "a", "target": "b"}, {"input": "c", "target": "d"}])
    assert load_task(path, fewshot=1)["items"] == [("c d\n\na", [], {"b"}), ("a b\n\nc", [], {"d"})]


def test_skipped_lines_are_no_shots(tmp_path):
    rows = [{"premise": text, "hypothesis": "h", "label": label}
            for text, label in (("one", "neutral"), ("two", "-"), ("three", "entailment"))]
    first, second = load_task(write(tmp_path / "t.jsonl", *rows), fewshot=1)["items"]
    assert first[0].startswith("three\nQuestion: h Yes, no or maybe?\nAnswer: Yes\n\none\n") and second[0].startswith("one")


# --- what is refused --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("example", [
    7, {"input": "x"}, {"target_scores": {"a": 1, "b": 0}}, {"input": "x", "target_scores": {"a": 1}},
    {"input": "x", "target_scores": {"a": 1, "": 0}}, {"input": "x", "target_scores": {"a": 1, "b": "0"}},
    {"input": ["x"], "target_scores": {"a": 1, "b": 0}}, {"input": "x", "target": "a"}])
def test_a_bad_example_is_named(tmp_path, example):
    good = {"input": "x", "target_scores": {"a": 1, "b": 0}}
    path = write(tmp_path / "t.json", name="t", examples=[good, example])
    with pytest.raises(ValueError) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}: example 1: ") and "target_scores" in str(caught.value)


@pytest.mark.parametrize("examples, message", [
    ([{"input": "x", "target": "a"}, {"input": "y", "target": []}], "example 1: expected a string 'input', and under 'target'"),
    ([{"input": "x", "target": "a"}, {"input": 3, "target": "a"}], "example 1: expected a string 'input', and under 'target'")])
def test_a_bad_target_is_named(tmp_path, examples, message):
    with pytest.raises(ValueError, match=message):
        load_task(write(tmp_path / "t.json", name="t", examples=examples))


@pytest.mark.parametrize("examples, message", [
    ([{"input": "x", "target": "a"}, {"input": "y"}], "example 1: expected strings 'input' and 'target', not empty"),
    ([{"input": "x", "target": "a"}, 7], "example 1: expected strings"),
    ([{"input": "x", "target": " "}], "example 0: expected strings"),
    ([{"input": LETTERS, "target": "(A)"}, {"input": "y", "target": "(A)"}], "example 1: no options in the input, though others"),
    ([{"input": LETTERS, "target": "lamp"}], "no example has a label")])
def test_bad_examples_of_the_hard_kind_are_named(tmp_path, examples, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_task(write(tmp_path / "t.json", canary="c", examples=examples))
    assert str(caught.value).startswith(f"{tmp_path / 't.json'}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"examples": []}', '{"examples": {}}', '{"name": 3, "examples": [1]}',
                                  '{"task_prefix": 1, "examples": [1]}', '{"a": 1}\n{"b": 2}', "\udcff"])
def test_a_file_that_is_no_task_is_named(tmp_path, text):
    (tmp_path / "t.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as caught:
        load_task(tmp_path / "t.json")
    assert str(caught.value).startswith(f"{tmp_path / 't.json'}: ") and "\n" not in str(caught.value)


def test_a_layout_of_the_wrong_kind_tells_the_right_one(tmp_path):
    for key, value, expected in (("task_prefix", True, "a string"), ("append_choices_to_input", "yes", "true or false")):
        with pytest.raises(ValueError, match=f"'{key}' is {value!r}, expected {expected}"):
            load_task(write(tmp_path / "t.json", examples=TOWNS, **{key: value}))


@pytest.mark.parametrize("name, lines, message", [
    ("t.jsonl", ["{}"], "line 1 has the fields ; expected those of a task: sentence1,sentence2,gold_label | premise"),
    ("t.jsonl", [""], "no lines; expected those of a task"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": "neutral"}, "{"], "line 2: not JSON"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": "neutral"}, "[]"], "line 2: expected an object with fields"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": "neutral"}, "", {"premise": "p", "hypothesis": "", "label": 1}],
     "line 3: expected the fields premise, hypothesis, label, the texts not empty"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": "neutral"}, {"premise": "p", "hypothesis": "h"}],
     "line 2: expected the fields premise, hypothesis, label"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": label} for label in ("neutral", "unsure", "no", "unsure")],
     "line 2: label 'unsure'; expected labels of one kind"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": label} for label in ("neutral", "not_entailment")],
     "the labels neutral, not_entailment; expected labels of one kind"),
    ("t.jsonl", [{"premise": "p", "hypothesis": "h", "label": "-"}], "no example has a label"),
    ("t.tsv", ["sentence\tlabel", "fine\t1", "dull"], "line 3: 1 columns, expected 2: sentence, label"),
    ("t.tsv", ["index\tsentence", "1\tfine"], "line 2 has the fields index, sentence; expected those of a task"),
    ("t.tsv", ["sentence\tlabel", "fine\t1"], "the labels 1; expected labels of one kind, and all of them where they are num")])
def test_a_bad_line_is_named(tmp_path, name, lines, message):
    with pytest.raises(ValueError) as caught:
        load_tasks(write(tmp_path / name, *lines))
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}") and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(ValueError, match="t.tsv: byte 0xe9 is not UTF-8"):
        load_tasks(tmp_path / "t.tsv")
