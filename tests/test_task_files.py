"""Task files: small samples of every format, prompts as they must stand, and bad files named in one line."""

import gzip
import json
import re
import time
from collections import Counter

import pytest

from adapters.task_files import FORMATS, load_tasks, options_of, with_shots


def write(path, *rows, **task):
    """A file of text, or of JSON lines where rows are dicts, or one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows] or [json.dumps(task)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


def load(path, *arguments, **options):
    """The one task of a file."""
    task, = load_tasks(path, *arguments, **options)
    return task


TOWNS = [{"input": "Where?", "target_scores": {"Oslo": 1, "Rome": 0}},
         {"input": "Who?", "target_scores": {"Anna": 0.5, "Bob": 0.1, "Carl": 0.5}}]


def test_a_file_gets_the_layout_of_big_bench_where_it_is_silent_unless_it_is_plain(tmp_path):
    path = write(tmp_path / "t.json", name="towns", preferred_score="multiple_choice_grade", examples=TOWNS)
    assert load(path) == {"name": "towns", "skipped": 0, "items": [
        ("Where?", ["Oslo", "Rome"], {0}), ("Who?", ["Anna", "Bob", "Carl"], {0, 2})]}
    path = write(tmp_path / "towns.json", canary="c", examples=TOWNS, append_choices_to_input=False)
    assert [prompt for prompt, *_ in load(path)["items"]] == ["\nQ: Where?\nA: ", "\nQ: Who?\nA: "]
    path = write(tmp_path / "towns.json", task_prefix="{Answer.} ", example_input_prefix="",
                 example_output_prefix=" =", append_choices_to_input=False, examples=TOWNS)
    assert [prompt for prompt, *_ in load(path)["items"]] == ["{Answer.} Where? =", "{Answer.} Who? ="]


def test_listed_choices_are_shuffled_by_the_seed(tmp_path):
    words = {word: int(word == "a") for word in "abcdef"}
    path = write(tmp_path / "t.json", canary="c", examples=[{"input": "x", "target_scores": words}] * 200)
    prompts = [prompt for prompt, *_ in load(path)["items"]]
    listed = [re.findall(r"\n  choice: (.)", prompt) for prompt in prompts]
    assert prompts == ["\nQ: x" + "".join(f"\n  choice: {word}" for word in row) + "\nA: " for row in listed]
    assert all(sorted(row) == list("abcdef") for row in listed)
    firsts = Counter(row[0] for row in listed)
    assert set(firsts) == set("abcdef") and min(firsts.values()) > 15       # 33 on average: no place tells
    again, other = ([prompt for prompt, *_ in load(path, seed=seed)["items"]] for seed in (0, 1))
    assert again == prompts != other


def test_targets_without_scores_are_generated(tmp_path):
    free = [{"input": "2 + 2", "target": "4"}, {"input": "A town", "target": ["Oslo", " Rome "]}]
    path = write(tmp_path / "t.json", name="t", metrics=["exact_str_match"], examples=free)
    assert load(path)["items"] == [("2 + 2", [], {"4"}), ("A town", [], {"Oslo", "Rome"})]
    both = [{"input": "2 + 2", "target": "4", "target_scores": {"3": 0, "4": 1}}]
    assert load(write(tmp_path / "b.json", name="b", examples=both))["items"] == [("2 + 2", ["3", "4"], {1})]
    path = write(tmp_path / "b.json", preferred_score="exact_str_match", examples=both)
    assert load(path)["items"] == [("2 + 2", [], {"4"})]


def test_a_folder_is_a_task_of_subtasks(tmp_path):
    for name in ("two", "one"):
        write(tmp_path / "towns" / name / "task.json", name="examples of " + name, examples=TOWNS)
    write(tmp_path / "towns" / "results" / "other.json", examples=[])
    assert [task["name"] for task in load_tasks(tmp_path / "towns")] == ["towns/one", "towns/two"]
    assert load(tmp_path / "towns/one")["name"] == load(tmp_path / "towns/one/task.json")["name"] == "one"
    with pytest.raises(ValueError, match="results: no task.json in this folder, nor in the folders in it"):
        load_tasks(tmp_path / "towns" / "results")


NLI = {"premise": "p", "hypothesis": "h", "label": "neutral"}
LETTERS = "Which is red?\nOptions:\n(A) the lamp\n(B) the chair (C) \n(C) - none"
DASHES = "Does it follow?\nOptions:\n- valid \n- invalid"


def hard(path, *pairs):
    return write(path, canary="c", examples=[{"input": text, "target": target} for text, target in pairs])


def test_options_in_the_input_are_the_candidates(tmp_path):
    assert options_of("(A) or - no\n- yes") == options_of("Options are few\n- yes") == []
    assert options_of("Options:\n- a\nOptions:\n(A) b\n(B) c") == ["(A)", "(B)"]        # the last list counts
    one, letters = "Which?\nOptions:\n(A) It", ["(A)", "(B)", "(C)"]
    pairs = [(LETTERS, "(C)"), (LETTERS, "the lamp, red"), (LETTERS, "(A)"), (one, "(A)")]
    items = [(f"Q: {LETTERS}\nA:", letters, {i}) for i in (2, 0)]      # the other two are skipped
    assert load(hard(tmp_path / "red.json", *pairs)) == {"name": "red", "skipped": 2, "items": items}
    dashes = load(hard(tmp_path / "f.json", (DASHES, "valid")))
    assert dashes["items"] == [(f"Q: {DASHES}\nA:", ["valid", "invalid"], {0})]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\v", "\x85", "\u2028"], ids=repr)
def test_line_ends_in_a_string_make_no_other_task(tmp_path, end):
    """A byte order mark and the line ends of the file itself do not either."""
    path, pairs, towns = tmp_path / "t.json", [(LETTERS, "(C)"), (LETTERS, "(A)")], {"a\nb": 1, "c": 0}
    rows = [{**NLI, "premise": "p\n\nq"}, {**NLI, "label": "neutral"}]
    writers = [lambda old, new: write(path, canary="c", examples=[
                   {"input": text.replace(old, new), "target": target} for text, target in pairs]),
               lambda old, new: write(path, name="t", task_prefix="x\n".replace(old, new), examples=[
                   {"input": "p\nq".replace(old, new),
                    "target_scores": {word.replace(old, new): score for word, score in towns.items()}}]),
               lambda old, new: write(path.with_suffix(".jsonl"), *({
                   name: text.replace(old, new) for name, text in row.items()} for row in rows))]
    for writer in writers:
        plain, same = (load(writer("\n", new)) for new in ("\n", end))
        assert plain == same and "\n" in plain["items"][0][0]
        if end in ("\r\n", "\r"):
            changed = writer("\n", "\n")
            changed.write_bytes(b"\xef\xbb\xbf" + changed.read_bytes().replace(b"\n", end.encode()))
            assert load(changed) == plain
    table = write(tmp_path / "t.tsv", "sentence\tlabel", "fine\t1", "", "dull\t0")
    plain = load(table)
    for end in ("\r\n", "\r"):
        table.write_bytes(("\ufeff" + end.join(["sentence\tlabel", "fine\t1", "", "dull\t0"])).encode())
        assert load(table) == plain


def test_few_targets_are_candidates_many_are_generated(tmp_path):
    few = [("not True is", "False"), ("not False is", "True"), ("True is", "True"), ("False is", "False")]
    assert load(hard(tmp_path / "t.json", *few))["items"][:2] == [
        ("Q: not True is\nA:", ["False", "True"], {0}), ("Q: not False is\nA:", ["False", "True"], {1})]
    for pairs in [("x", "1"), ("y", "2")], [("x", "1")] * 9, [(f"{i}", str(i % 11)) for i in range(44)]:
        items = load(hard(tmp_path / "t.json", *pairs))["items"]
        assert items == [(f"Q: {text}\nA:", [], {target}) for text, target in pairs]
    ten = load(hard(tmp_path / "t.json", *((f"{i}", str(i % 10)) for i in range(20))))["items"]
    assert ten[3] == ("Q: 3\nA:", list("0123456789"), {3})


def test_every_format_can_be_read(tmp_path):
    for spellings, template, words in FORMATS:
        for fields in spellings:
            rows = [{**{name: f"<{name}>" for name in fields[:-1]}, fields[-1]: label} for label in words]
            prompt = template.format(*(f"<{name}>" for name in fields[:-1]))
            items = load(write(tmp_path / "t.jsonl", *rows))["items"]
            assert items == [(prompt, list(words.values()), {i}) for i in range(len(words))]


def test_natural_language_inference(tmp_path):
    snli = [{"sentence1": "Anna ran. ", "sentence2": "Anna moved.", "gold_label": label, "pairID": 7}
            for label in ("entailment", "-", "neutral", "contradiction", "-")]
    task = load(write(tmp_path / "snli.dev.jsonl", *snli))
    prompt = "Anna ran.\nQuestion: Anna moved. Yes, no or maybe?\nAnswer:"
    items = [(prompt, ["Yes", "Maybe", "No"], {i}) for i in (0, 1, 2)]
    assert task == {"name": "snli.dev", "skipped": 2, "items": items}
    rows = [{"premise": "Anna ran. ", "hypothesis": "Anna moved.", "label": label} for label in (2, -1, 0, 1)]
    numbered = load(write(tmp_path / "n.jsonl", *rows))
    assert numbered["items"] == [items[i] for i in (2, 0, 1)] and numbered["skipped"] == 1
    words = [{**row, "label": label} for row, label in zip(rows, ("neutral", "contradiction"))]
    assert [right for *_, right in load(write(tmp_path / "w.jsonl", *words))["items"]] == [{1}, {2}]
    with pytest.raises(ValueError, match="the labels 0, 1; expected, with all labels"):
        load(write(tmp_path / "n.jsonl", *rows[2:]))        # those of RTE, or a part of MNLI's?


def test_several_languages_are_several_tasks(tmp_path):
    rows = [{"language": language, "sentence1": "a", "sentence2": "b", "gold_label": label}
            for label in ("neutral", "entailment") for language in ("fr", "de")]
    tasks = load_tasks(write(tmp_path / "xnli.dev.jsonl", *rows))
    assert [(task["name"], len(task["items"])) for task in tasks] == [("xnli.dev/fr", 2), ("xnli.dev/de", 2)]
    assert load(write(tmp_path / "fr.jsonl", *rows[::2]))["name"] == "fr"


def test_truth_values_and_tables(tmp_path):
    rows = [{"question": "is oslo a town", "title": "Oslo", "passage": "Oslo is a town.\n", "answer": truth}
            for truth in (True, False)]
    wanted = [("Oslo is a town.\nQuestion: is oslo a town?\nAnswer:", ["Yes", "No"], {i}) for i in (0, 1)]
    assert load(write(tmp_path / "dev.jsonl", *rows))["items"] == wanted
    path = write(tmp_path / "dev.tsv", "sentence\tlabel", 'a " fine\rfilm \t1', "", "dull\t0\r")
    assert load(path)["items"] == [('Review: a " fine\rfilm\nSentiment:', ["positive", "negative"], {0}),
                                   ("Review: dull\nSentiment:", ["positive", "negative"], {1})]


def test_only_an_id_makes_numbers_a_paraphrase(tmp_path):
    """RTE and WNLI have the same other columns, and their 0 and 1 mean something else."""
    rows = "1\tA to B\tB to A\t0", "2\tA to B\tto B, A\t1"
    items = load(write(tmp_path / "paws.tsv", "id\tsentence1\tsentence2\tlabel", *rows))["items"]
    prompt = "A to B\nto B, A\nQuestion: Do both sentences say the same?\nAnswer:"
    assert items[1] == (prompt, ["Yes", "No"], {0})
    with pytest.raises(ValueError, match="the labels 0, 1; expected, with all labels"):
        load(write(tmp_path / "wnli.tsv", "index\tsentence1\tsentence2\tlabel", *rows))
    named = {"id": 1, "sentence1": "A", "sentence2": "B", "label": "neutral"}
    assert "Yes, no or maybe?" in load(write(tmp_path / "nli.jsonl", named))["items"][0][0]


def test_shots_are_other_examples_with_their_right_answers(tmp_path):
    answers = {f"{i} + {i}": str(2 * i % 7) for i in range(14)}
    path = hard(tmp_path / "t.json", *answers.items())
    blind, shots, other = (load(path, k, seed)["items"] for k, seed in ((0, 0), (3, 0), (3, 1)))
    assert shots == load(path, 3, 0)["items"] != other
    firsts = set()
    for (prompt, *_), (long, candidates, right) in zip(blind, shots):
        *before, last = long.split("\n\n")
        assert last == prompt and candidates[min(right)] == answers[prompt[3:-3]]
        asked = [re.fullmatch(r"Q: (.+)\nA: (\d)", shot).groups() for shot in before]
        assert len(set(asked)) == 3 and prompt[3:-3] not in dict(asked)
        assert all(answers[question] == answer for question, answer in asked)
        firsts.add(asked[0])
    assert len(firsts) > 5                                                  # drawn anew for every example


def test_an_example_with_the_same_text_and_a_skipped_line_are_no_shots(tmp_path):
    pairs = [("same", "Yes"), ("same", "No"), ("other", "No"), ("same", "Yes")]
    items = load(hard(tmp_path / "t.json", *pairs), fewshot=1)["items"]
    assert [items[i][0] for i in (0, 1, 3)] == ["Q: other\nA: No\n\nQ: same\nA:"] * 3
    begin = time.process_time()
    alike = with_shots([("same", ["a", "b"], {0})] * 4000 + [("other", ["a", "b"], {1})], 1, 0)
    assert {prompt for prompt, *_ in alike[:-1]} == {"other b\n\nsame"} and time.process_time() - begin < 2
    with pytest.raises(ValueError, match="t.json: --fewshot=2, but only 1 other examples to draw from"):
        load(tmp_path / "t.json", fewshot=2)
    rows = [{**NLI, "label": label} for label in ("neutral", "-")] + [{**NLI, "premise": "q"}]
    first, second = load(write(tmp_path / "t.jsonl", *rows), fewshot=1)["items"]
    assert first[0].startswith("q\nQuestion: h Yes, no or maybe?\nAnswer: Maybe\n\np\n")
    assert second[0].startswith("p")


def test_shots_follow_the_layout_of_the_file(tmp_path):
    examples = [{"input": "Q1", "target_scores": {"Oslo": 0, "Rome": 1}},
                {"input": "Q2", "target_scores": {"Oslo": 1, "Rome": 1}}]
    task = {"task_prefix": "Towns.", "append_choices_to_input": False, "examples": examples}
    path = write(tmp_path / "t.json", **task)
    assert [prompt for prompt, *_ in load(path, fewshot=1)["items"]] == [
        "Towns.\nQ: Q2\nA: Oslo\n\nQ: Q1\nA: ", "Towns.\nQ: Q1\nA: Rome\n\nQ: Q2\nA: "]
    write(path, **task, few_shot_example_separator=" ##")
    assert load(path, fewshot=1)["items"][0][0] == "Towns.\nQ: Q2\nA: Oslo ##\nQ: Q1\nA: "
    path = write(tmp_path / "f.json", name="f", examples=[{"input": x, "target": y} for x, y in ("ab", "cd")])
    assert load(path, fewshot=1)["items"] == [("c d\n\na", [], {"b"}), ("a b\n\nc", [], {"d"})]


TWO_STORIES = ["1 Mia walked to the attic.", "2 Where is Mia? \tattic\t1", "3 Leo took the cup there.",
               "4 What does Leo hold?\tcup\t3", "1 Leo has a cup.", "2 Leo has a hat.",
               "3 What does Leo hold?\tcup,hat\t1 2"]


def test_a_question_of_babi_stands_after_its_story(tmp_path):
    words = ["attic", "cup", "cup,hat"]
    wanted = {"name": "qa1_train", "skipped": 0, "stories": [1, 1, 2], "items": [
        ("Mia walked to the attic. Where is Mia?", words, {0}),
        ("Mia walked to the attic. Leo took the cup there. What does Leo hold?", words, {1}),
        ("Leo has a cup. Leo has a hat. What does Leo hold?", words, {2})]}
    path = write(tmp_path / "qa1_train.txt", *TWO_STORIES)
    assert load(path) == wanted
    for end in ("\r\n", "\r"):                           # with a byte order mark, blank lines and blanks
        path.write_bytes(("\ufeff" + end + f"  {end} ".join(TWO_STORIES)).encode())
        assert load(path) == wanted
    write(path, *(re.sub(r"\t[\d ]+$", "", line) for line in TWO_STORIES))      # without supporting facts
    assert load(path) == wanted
    for name in ("qa1_train", "qa1_train.json", "qa1_train.jsonl", "qa1_train.tsv"):      # the content counts
        assert load(write(tmp_path / "other" / name, *TWO_STORIES)) == wanted


def test_words_of_babi_may_be_of_any_language(tmp_path):
    """Its variants: Hindi in Latin letters; English whose letters are shuffled; and what is not ASCII."""
    lines = ["1 Mia gusalkhane mein gayi.", "2 Mia kahan hai?\tgusalkhana\t1", "1 Xjb nbkf.", "2 Lol?\tnb\t1",
             "1 Zoë est à Nîmes\u2028.", "2 Où est Zoë ?\tNîmes\t1"]
    items = load(write(tmp_path / "hn.txt", *lines))["items"]
    assert [prompt for prompt, *_ in items] == ["Mia gusalkhane mein gayi. Mia kahan hai?", "Xjb nbkf. Lol?",
                                                "Zoë est à Nîmes\u2028. Où est Zoë ?"]
    assert items[2][1:] == (["Nîmes", "gusalkhana", "nb"], {0})


def test_shots_of_babi_are_of_other_stories(tmp_path):
    lines = [f"{n} {text}" for i in range(9) for n, text in enumerate((
        f"Mia has {i // 2} cups.", f"Cups?\t{i // 2}\t1", "Leo is old.", "Who is old?\tLeo\t3"), 1)]
    task = load(write(tmp_path / "t.txt", *lines), fewshot=5)
    for (prompt, *_), story in zip(task["items"], task["stories"]):
        *shots, own = prompt.split("\n\n")
        assert len(shots) == 5 and own.startswith(f"Mia has {(story - 1) // 2} cups.")
        assert all(not shot.startswith(f"{own} ") for shot in shots)       # the same story may be told twice
        assert all(re.search("Cups[?] [0-4]$|Who is old[?] Leo$", shot) for shot in shots)
    alone = load(write(tmp_path / "t.txt", *lines[:4], *lines[16:20]), fewshot=2)["items"]
    assert all("has 2 cups" in shot for shot in alone[0][0].split("\n\n")[:2])
    with pytest.raises(ValueError, match="t.txt: --fewshot=3, but only 2 other examples to draw from"):
        load(tmp_path / "t.txt", fewshot=3)


GOOD, FREE = {"input": "x", "target_scores": {"a": 1, "b": 0}}, {"input": "x", "target": "a"}
BOTH = "example 1: expected a string 'input', and 'target_scores'"


@pytest.mark.parametrize("message, task", [
    *[(BOTH, {"name": "t", "examples": [GOOD, bad]}) for bad in (
        {"input": "x"}, {"target_scores": {"a": 1, "b": 0}}, {"input": "x", "target_scores": {"a": 1}},
        {"input": ["x"], "target_scores": {"a": 1, "b": 0}}, FREE)],
    *[(BOTH, {"name": "t", "examples": [FREE, bad]}) for bad in ({**FREE, "target": []}, {"target": "a"})],
    *[(message, {"canary": "c", "examples": examples}) for message, examples in (
        ("example 1: expected strings 'input' and 'target', not empty", [FREE, {"input": "y"}]),
        ("example 0: expected s", [{**FREE, "target": " "}]),
        ("example 1: no options in the input, though others", [{"input": LETTERS, "target": "(A)"}, FREE]),
        ("no example has a label", [{"input": LETTERS, "target": "lamp"}]))],
    *[("", {"examples": examples, "task_prefix": prefix}) for examples, prefix in (
        (TOWNS, True), ([{"input": "x", "target_scores": {"a": 1, "b": "0"}}], ""))],
    *[("expected 'examples', a list", {"examples": bad}) for bad in (None, [], {}, [GOOD, 7])]])
def test_a_bad_example_is_named(tmp_path, message, task):
    with pytest.raises(ValueError) as caught:
        load_tasks(write(tmp_path / "t.json", **task))
    assert str(caught.value).startswith(f"{tmp_path / 't.json'}: {message}") and "\n" not in str(caught.value)


FOUND = "the fields premise, hypothesis, label with the labels"


@pytest.mark.parametrize("name, message, lines", [
    ("t.jsonl", "the fields  with the labels ; expected, with all labels", ["{}"]),
    ("t.jsonl", "the fields  with the labels ; expected", [""]),
    ("t.jsonl", "line 2: expected a JSON object, found {", [NLI, "{"]),
    ("t.jsonl", "line 2: expected a JSON object, found []", [NLI, "[]"]),
    ("t.jsonl", "line 3: expected premise, hypothesis, none", [NLI, "", {**NLI, "premise": ""}]),
    ("t.jsonl", f"{FOUND} None, neutral;", [NLI, {"premise": "p", "hypothesis": "h"}]),
    ("t.jsonl", f"{FOUND} neutral, unsure;", [NLI, {**NLI, "label": "unsure"}]),
    ("t.jsonl", f"{FOUND} neutral, not_entailment;", [NLI, {**NLI, "label": "not_entailment"}]),
    ("t.jsonl", "no example has a label", [{**NLI, "label": "-"}]),
    ("t.tsv", "line 3: expected the columns sentence, label", ["sentence\tlabel", "fine\t1", "dull"]),
    ("t.tsv", "the fields index, sentence with the labels ;", ["index\tsentence", "1\tfine"]),
    ("t.tsv", "the fields sentence, label with the labels 1;", ["sentence\tlabel", "fine\t1"]),
    ("t.txt", "line 1: Once upon a time; expected 'n sentence' or 'n question<tab>", ["Once upon a time"]),
    ("t.csv", "line 1: sentence,label; expected 'n sentence' or", ["sentence,label", "fine,1"]),
    ("t.txt", "line 1: the number 2; expected 1", ["2 A."]), ("t.txt", "line 1: the number 0;", ["0 A."]),
    ("t.txt", "line 4: the number 3; expected 2, or 1 for a new story", ["1 A.", "2 B?\tb", "1 A.", "3 C."]),
    ("t.txt", "line 3: the number 2; expected 3", ["1 A.", "2 B.", "2 C."]),
    ("t.txt", "line 1: B?; expected a sentence of the story before its questions", ["1 B?\tb\t1"]),
    ("t.txt", "line 3: C?; expected a sentence of", ["1 A.", "2 B?\tb", "1 C?\tc"]),
    ("t.txt", "line 2: supporting fact 2; expected numbers of", ["1 A.", "2 B?\tb\t1 2"]),
    ("t.txt", "line 3: supporting fact 2; expected numbers of", ["1 A.", "2 B?\tb\t1", "3 C?\tc\t2"]),
    ("t.txt", "line 4: supporting fact 2; expected numbers of", ["1 A.", "2 B.", "1 C.", "2 D?\td\t2"]),
    *[("t.txt", f"line 2: {line[:4]}; expected 'n", ["1 A.", line]) for line in (
        "2 B?\t\t1", "2 B.\t", "2 B?\tb\t1\tc", "2 B.\t\t1")],
    *[("t.txt", f"line 2: {line}; expected 'n sentence'", ["1 A.", line]) for line in ("2", "B.", "2. B")],
    ("t.txt", "no question; expected questions", ["1 A.", "2 B."]), ("t.txt", "no question", [""]),
    ("t.txt", "no answer but b; expected questions with different", ["1 A.", "2 B?\tb", "3 C?\tb"]),
    ("t.tsv", "the fields 1 A., x with the labels ;", ["1 A.\tx", "2 B.\ty"]),      # a table, as before
    ("t.json", "Extra data: line 2 column 1", ['{"a": 1}', '{"b": 2}']),
    ("t.json", "maximum recursion depth", ["[" * 200000]), ("t.json", "expected", ["[]"])])
def test_a_bad_line_is_named(tmp_path, name, message, lines):
    with pytest.raises(ValueError) as caught:
        load_tasks(write(tmp_path / name, *lines))
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}") and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(ValueError, match="t.tsv: 'utf-8' codec can't decode byte 0xe9"):
        load(tmp_path / "t.tsv")
    for name in ("t.tsv", "t.jsonl", "t.json", "t.txt"):
        (tmp_path / name).write_bytes(gzip.compress(b"{}"))
        with pytest.raises(ValueError, match=f"^{tmp_path / name}: not UTF-8 text but an archive"):
            load_tasks(tmp_path / name)
