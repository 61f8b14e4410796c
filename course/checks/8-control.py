"""Checks of assignment 8: standard errors of ratios and of paired differences, what two students read, and
the report of a run. The docstring of a check is its hint.

The figures of the report are computed again from course/8-results.json; the run itself is not repeated.
"""
import contextlib
import functools
import io
import json
import math
import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from data import annotated, documents, figures, stories, world
from data.documents import QUESTIONS_FIRST, ROLES, data_mix
from data.figures import paired_se, ratio_se
from data.files import digest
from data.tokenizer import train_bpe

FOLDER = Path(figures.__file__).resolve().parent.parent / "course"
RNG = random.Random(f"assignment 8, {SEED}")
NOTHING = {"value": None, "se": None, "n": 0}


# --- standard errors ----------------------------------------------------------------------------------------


def units(rng, m, skills=None, empty=0.0):
    """m units (a, b, n): a of b answers are right, more where the skill of a unit (0..1) is high. empty: the
    part of the units that has b = 0, some of which have been asked for n things all the same."""
    groups = []
    for skill in skills or [rng.random() for _ in range(m)]:
        n = 0 if rng.random() < empty else rng.randint(1, 9)
        extra = rng.choice((0, 0.5)) if n else 0                        # entity F1 has halves
        groups.append((sum(rng.random() < skill for _ in range(n)), n + extra, n or rng.choice((0, 2))))
    return groups


def ratio(groups):
    return math.fsum(a for a, _, _ in groups) / math.fsum(b for _, b, _ in groups)


def residuals(groups):
    """What every unit adds to the error of the ratio: (a - value b) / (sum of b)."""
    value, total = ratio(groups), math.fsum(b for _, b, _ in groups)
    return [(a - value * b) / total for a, b, _ in groups]


def error_of(parts):
    return statistics.stdev(parts) * math.sqrt(len(parts))


def wanted_ratio(groups):
    groups = [group for group in groups if group[1] != 0]
    if not groups:
        return NOTHING
    se = error_of(residuals(groups)) if len(groups) > 1 else None
    return {"value": ratio(groups), "se": se, "n": sum(n for _, _, n in groups)}


def wanted_pair(groups, others):
    parts = [x - y for x, y in zip(residuals(groups), residuals(others))]
    return {"value": ratio(groups) - ratio(others), "se": error_of(parts) if len(parts) > 1 else None,
            "n": len(parts)}


def compare(found, wanted, what):
    """AssertionError unless a figure {"value", "se", "n"} is the one that was expected."""
    assert isinstance(found, dict) and set(found) >= set(wanted), f"{what}: returned {found!r:.80}"
    for name, want in wanted.items():
        got = found[name]
        same = got is None if want is None else got is not None and math.isclose(
            got, want, rel_tol=1e-6, abs_tol=1e-9)
        assert same, f"{what}: {name} is {got}, expected {want}"
    json.dumps(found)                                                   # a run writes it into results.json


def check_the_error_of_a_ratio(points=3):
    """ratio_se: sum of a / sum of b, and its error by the delta method over units.

    The residual of a unit is a - value b, with the one value of all units. Its square counts for the whole
    unit, because answers about one paragraph depend on each other. m - 1 stands in the denominator.

    For (1, 2, 2) and (3, 4, 4) the value is 4/6, the residuals are -1/3 and +1/3, and se^2 is
    2/1 * (1/9 + 1/9) / 36."""
    compare(ratio_se([(1, 2, 2), (3, 4, 4)]), {"value": 2 / 3, "se": 1 / 9, "n": 6}, "two units")
    ones = [(1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 1, 1)]
    compare(ratio_se(ones), {"value": 0.75, "se": 0.25, "n": 4}, "items 1, 0, 1, 1")
    for _ in range(60):
        groups = units(RNG, RNG.randint(2, 40))
        compare(ratio_se(groups), wanted_ratio(groups), f"{len(groups)} random units")
    for mean in (4, -4):                                                            # nats, for example
        real = [(RNG.gauss(mean, 1), RNG.uniform(0.5, 3), 1) for _ in range(50)]
        compare(ratio_se(real), wanted_ratio(real), "real numbers, above 1 or below 0")


def check_units_without_anything(points=2):
    """ratio_se: a unit with b = 0 is left out; where no unit is left, value and se are None; se is None for
    one unit.

    Such a unit says nothing about the ratio: it must not count in m either. An error of 0 would say that the
    figure is exact.

    First make the list without these units, then take m, the sums and n from that list."""
    compare(ratio_se([]), NOTHING, "no unit")
    compare(ratio_se([(0, 0, 0)] * 3), NOTHING, "three units with b = 0")
    compare(ratio_se([(0, 0, 4)] * 3), NOTHING, "three units with b = 0, n = 4")
    compare(ratio_se([(2, 4, 4)]), {"value": 0.5, "se": None, "n": 4}, "one unit")
    compare(ratio_se([(0, 0, 0), (0, 3, 3)]), {"value": 0.0, "se": None, "n": 3}, "one of two with b = 0")
    compare(ratio_se([(0, 3, 3), (0, 2, 2)]), {"value": 0.0, "se": 0.0, "n": 5}, "two units, nothing right")
    for _ in range(30):
        groups = units(RNG, RNG.randint(3, 30), empty=0.3)
        if sum(b > 0 for _, b, _ in groups) > 1:
            compare(ratio_se(groups), wanted_ratio(groups), "some units with b = 0")


def check_a_paired_difference(points=4):
    """paired_se: `groups` minus `others`, and the error of that difference over the same units.

    A unit that is hard for both moves both values in the same direction, and the difference hardly at all. So
    subtract within a unit first, then square.

    For every unit: its residual / sum of b on the one side, minus the same of the other side with the value
    and the sum of that side. se^2 is m/(m-1) times the sum of the squares."""
    one, other = [(1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 1, 1)], [(1, 1, 1), (0, 1, 1), (0, 1, 1), (1, 1, 1)]
    compare(paired_se(one, other), {"value": 0.25, "se": 0.25, "n": 4}, "items 1, 0, 1, 1 and 1, 0, 0, 1")
    compare(paired_se(other, one), {"value": -0.25, "se": 0.25, "n": 4}, "the same two the other way round")
    compare(paired_se(one, one), {"value": 0.0, "se": 0.0, "n": 4}, "a student and itself")
    for trial in range(60):
        skills = [RNG.random() for _ in range(RNG.randint(2, 40))]
        turned = [1 - skill for skill in skills] if trial % 2 else skills   # right where the first is wrong
        one, other = units(RNG, 0, skills), units(RNG, 0, turned)
        compare(paired_se(one, other), wanted_pair(one, other), f"{len(one)} random units")


def check_pairs_without_anything(points=2):
    """paired_se: all units stay in place; None where a side has nothing; ValueError for different numbers of
    units.

    A unit left out of one list moves all later units of that list, and then strangers are paired. zip hides
    the difference of two lengths.

    A unit with b = 0 has the residual 0, so it needs no special case: m and n are the length of the list. A
    side is empty where its sum of b is 0."""
    compare(paired_se([], []), NOTHING, "no unit")
    compare(paired_se([(1, 2, 2)] * 3, [(0, 0, 0)] * 3), NOTHING, "nothing on the other side")
    compare(paired_se([(0, 0, 0)] * 3, [(1, 2, 2)] * 3), NOTHING, "nothing on the first side")
    compare(paired_se([(1, 2, 2)], [(1, 4, 4)]), {"value": 0.25, "se": None, "n": 1}, "one unit")
    for _ in range(40):
        skills = [RNG.random() for _ in range(RNG.randint(4, 30))]
        one, other = (units(RNG, 0, skills, empty) for empty in RNG.choice(((0.3, 0), (0, 0.3), (0.4, 0.4))))
        if any(b for _, b, _ in one) and any(b for _, b, _ in other):
            compare(paired_se(one, other), wanted_pair(one, other), "some units with b = 0")
    for lengths in ((3, 2), (2, 3), (4, 1), (0, 2)):
        one, other = ([(1, 2, 2)] * n for n in lengths)
        try:
            found = paired_se(one, other)
        except ValueError:
            continue
        raise AssertionError(f"{lengths[0]} and {lengths[1]} units: returned {found}, expected a ValueError")


def check_the_counts_stay_as_they_are(points=1):
    """Both functions leave their lists as they are, and take units of any sequence type: JSON has lists.

    The same counts are used for many comparisons of one run.

    Make a new list in place of remove, pop, sort or clear."""
    one, other = ([list(unit) for unit in units(RNG, 12, empty=0.3)] + [[1, 2, 2]] * 2 for _ in range(2))
    before = json.dumps([one, other])
    found = ratio_se(one), paired_se(one, other)
    assert json.dumps([one, other]) == before, "the counts were changed"
    compare(found[0], wanted_ratio(one), "units that are lists")
    compare(found[1], wanted_pair(one, other), "units that are lists")


# --- the run and its report ---------------------------------------------------------------------------------


def read_file(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def credits_of(results, name):
    """{task: units (credit, 1, 1)} of a student, and "all": those of all tasks in a row."""
    tasks = results["students"][name]["blind"]
    found = {task: [(credit, 1, 1) for credit in entry["credits"]] for task, entry in tasks.items()}
    return {**found, "all": [unit for groups in found.values() for unit in groups]}


def check_the_run(points=3):
    """8-results.json: one run of train.py, equal tokens, the same items for both, figures that agree with
    their items.

    A difference has one cause only where all else is equal. Figures are sums over items, so they can be
    computed again.

    Copy out/8/results.json with the command of the page, and change nothing in it."""
    results = read_file("8-results.json")
    plain, brd = (results["students"][name] for name in ("plain", "brd"))
    seen = [student["tokens_seen"] for student in (plain, brd)]
    assert abs(seen[0] - seen[1]) < 0.005 * seen[0], f"plain has seen {seen[0]:,} tokens, brd {seen[1]:,}"
    planned = results["config"]["start_tokens"] + results["config"]["student_tokens"]
    assert abs(seen[0] - planned) < 0.005 * planned, f"options: {planned:,} tokens, plain saw {seen[0]:,}"
    assert planned >= 900_000, f"{planned:,} tokens a student: it answers hardly any question"
    assert list(plain["blind"]) == list(brd["blind"]), "the students were tested on other tasks"
    assert len(plain["blind"]) >= 5, f"{len(plain['blind'])} blind tasks"
    for task in plain["blind"]:
        pair = [student["blind"][task] for student in (plain, brd)]
        lengths = [len(entry["credits"]) for entry in pair]
        assert lengths[0] == lengths[1] >= 100, f"{task}: {lengths} items of plain and of brd"
        for entry in pair:
            mean = statistics.fmean(entry["credits"])
            assert abs(mean - entry["accuracy"]) < 1e-6, f"{task}: {entry['accuracy']:.4f}, items {mean:.4f}"
    for figure in ("entity_f1", "answer.wh", "answer.yes_no"):
        pair = [student["reading"]["paragraph"][figure] for student in (plain, brd)]
        asked = [[n for _, _, n in entry["groups"]] for entry in pair]
        assert asked[0] == asked[1], f"{figure}: the students read other paragraphs"
        for entry in pair:
            value = ratio([group for group in entry["groups"] if group[1]])
            assert abs(value - entry["value"]) < 1e-6, f"{figure}: {entry['value']:.4f}, of units {value:.4f}"
    apart = sum(x != y for x, y in zip(*(credits_of(results, name)["all"] for name in ("plain", "brd"))))
    assert apart > 100, f"the two students differ in {apart} items: were the figures of one copied?"
    rest = {name: value for name, value in results.items() if name != "sha256"}
    assert digest(rest) == results.get("sha256"), "the checksum does not fit: a figure is not that of the run"


def check_the_differences(points=4):
    """8-report.json, tasks: for every blind task, and for all items together ("all"), brd minus plain, its
    paired error, and the unpaired one.

    Items are the units: a credit is (credit, 1, 1). The unpaired error is that of two independent groups: the
    root of the sum of both squared errors.

    data.report.counts gives the units of all tasks together. Round to four digits at the end only."""
    report, results = read_file("8-report.json"), read_file("8-results.json")
    plain, brd = (credits_of(results, name) for name in ("plain", "brd"))
    missing = set(plain) ^ set(report["tasks"])
    assert not missing, f"the report and the run differ in the tasks {sorted(missing)}"
    assert report["seed"] == results["seed"], f"seed {report['seed']}, but the run had {results['seed']}"
    for task, said in report["tasks"].items():
        pair = wanted_pair(brd[task], plain[task])
        apart = math.hypot(*(wanted_ratio(groups[task])["se"] for groups in (plain, brd)))
        wanted = {"difference": pair["value"], "standard_error": pair["se"], "unpaired": apart}
        for name, value in wanted.items():
            text = f"{task}: {name} is {said[name]}, the run gives {value:.4f}"
            assert abs(said[name] - value) < 1e-4, text


def check_the_verdicts(points=2):
    """verdict: "higher" or "lower" where the difference is more than two paired standard errors from 0,
    otherwise "open".

    The unpaired error is that of another experiment: two students and two sets of items. A difference of two
    errors exactly, or below, is "open".

    "higher" where difference > 2 standard_error, "lower" where difference < -2 standard_error."""
    report, results = read_file("8-report.json"), read_file("8-results.json")
    plain, brd = (credits_of(results, name) for name in ("plain", "brd"))
    for task, said in report["tasks"].items():
        pair = wanted_pair(brd[task], plain[task])
        times = pair["value"] / pair["se"] if pair["se"] else 0.0
        want = "open" if abs(times) <= 2 else "higher" if times > 0 else "lower"
        assert said["verdict"] == want, f"{task}: {said['verdict']!r}, the difference is {times:+.2f} errors"


def check_the_gain(points=2):
    """The run reproduces a gain: over all blind items, brd is more than two paired standard errors above
    plain.

    Neither student has seen the form of a blind task, so this comparison is fair. All items together are
    the main figure, named before your run: one comparison, not one for each task.

    With the command of the page the gain is three to nine errors. A data_mix that gives the control annotations,
    or brd too few questions, makes it small."""
    results = read_file("8-results.json")
    pair = wanted_pair(*(credits_of(results, name)["all"] for name in ("brd", "plain")))
    assert pair["value"] > 2 * pair["se"], f"brd minus plain is {pair['value']:+.3f} ± {pair['se']:.3f}"


def check_the_text(points=2):
    """result, unfair, doubt: texts of 80 to 2000 letters. result names the difference of "all" and its error
    with three digits; unfair names the entity F1 of brd with three digits.

    A difference without its error cannot be judged. unfair says why the tables of reading are no evidence for
    reading: what has `plain` never seen? doubt names what one seed, or so few tasks, do not say.

    "+0.099 ± 0.011", for example, and the F1 of paragraphs of two people, as the run printed it."""
    report, results = read_file("8-report.json"), read_file("8-results.json")
    for name in ("result", "unfair", "doubt"):
        length = len(report[name].strip())
        assert 80 <= length <= 2000, f"{name} has {length} letters, expected 80 to 2000"
    assert len({report[name] for name in ("result", "unfair", "doubt")}) == 3, "one text stands twice"
    pair = wanted_pair(*(credits_of(results, name)["all"] for name in ("brd", "plain")))
    f1 = results["students"]["brd"]["reading"]["paragraph"]["entity_f1"]["value"]
    for name, value in (("result", f"{abs(pair['value']):.3f}"), ("result", f"{pair['se']:.3f}"),
                        ("unfair", f"{f1:.3f}")):
        assert value in report[name], f"{name} does not name {value}"


# --- what the two students read -----------------------------------------------------------------------------


@dataclass
class Config:
    """Those options of train.Config that tell what is read."""
    corpus: str = "world"
    corpus_share: float = 0.2
    seed: int = 1
    start_tokens: int = 300
    student_tokens: int = 1000
    block_size: int = 384
    n_vocab: int = 600
    plain_share: float = 0.1
    ner_share: float = 0.12


@functools.cache
def small_tokenizer():
    return train_bpe([" ".join(sentences) for sentences in world.plain(120, "assignment 8")], 600)


def small_run(**options):
    """(options of a short run, its annotated paragraphs), with random sizes."""
    options = {"block_size": RNG.choice((128, 256)), "seed": RNG.randrange(1, 99999),
               "student_tokens": RNG.randrange(900, 1300), "plain_share": RNG.choice((0.05, 0.2, 0.3)),
               "ner_share": RNG.choice((0.15, 0.25, 0.4)), **options}
    paragraphs = list(world.annotated(RNG.randint(9, 14), f"assignment 8, {SEED}"))
    return Config(**options), paragraphs


def own_corpus(folder, listed):
    """Writes six annotated paragraphs into a file -> its path; listed: the first so many with entities."""
    short = world.annotated(6, f"own {SEED}", world.LEVELS[3:4])
    records = [record for paragraph in short for record in paragraph]
    for record in records:
        if record["paragraph"] >= listed:
            del record["entities"]
    path = Path(folder) / "own.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def same_text(rows, wanted, what):
    """AssertionError unless two Rows hold the same documents."""
    assert len(rows) == len(wanted), f"{what}: {len(rows)} documents, expected {len(wanted)}"
    for d in range(len(wanted)):
        if not all(map(np.array_equal, rows.document(d), wanted.document(d))):
            ids, expected = (small_tokenizer().decode(r.document(d)[0].tolist()) for r in (rows, wanted))
            raise AssertionError(f"{what}: document {d} is {ids!r:.60}, expected {expected!r:.60}")


def fresh_plain(rows, seed, tokens, what, levels=world.LEVELS):
    """AssertionError unless Rows are plain text by a seed of world.plain, with at least so many tokens."""
    same_text(rows, documents.plain_rows(list(world.plain(len(rows), seed, levels)), small_tokenizer()), what)
    held = int((rows.lengths - 1).sum())
    assert held >= tokens, f"{what}: {held} tokens for {tokens:.0f} that are read: some would be read twice"


def close(found, wanted, what):
    found = [round(float(x), 9) for x in found]
    assert len(found) == len(wanted) and np.allclose(found, wanted), f"{what} {found}, expected {wanted}"


def check_what_the_control_reads(points=4):
    """data_mix, "plain": one source, plain text of its own seed, enough for all tokens of the run.

    The control must differ in ONE thing: it reads no annotations. Text that is repeated, that the start has
    read already, that is shorter, or of another world, would be a second difference. Count tokens, not
    paragraphs.

    plain_text(how many tokens, f"... plain" with the seed of the run, tokenizer, config.corpus); the only
    share is 1."""
    for corpus, levels in (("world", world.LEVELS), ("open", stories.OPEN)):
        config, paragraphs = small_run(corpus=corpus)
        mix = data_mix("plain", config, small_tokenizer(), RNG.choice((None, paragraphs)))
        assert len(mix.sources) == len(mix.shares) == 1, f"{len(mix.sources)} sources, expected plain text"
        close(mix.shares, [1.0], "shares of plain:")
        what = f"corpus {corpus}, plain"
        fresh_plain(mix.sources[0], f"{config.seed} plain", config.student_tokens, what, levels)
        assert not any(mix.start_at or []), f"plain begins at {mix.start_at}, expected 0"


def check_what_brd_reads(points=4):
    """data_mix, "brd": plain text, entities and questions in the shares of the options, of the paragraphs
    that are given; questions begin first.

    `paragraphs` are written to a file as what this student read, so they must be what it reads. The shares
    decide how many of the equal tokens are annotations.

    reading_mix returns sources and shares in the order D_ORI, D_NER, D_QRA; start_at has one place for each:
    0 for D_QRA, QUESTIONS_FIRST for the others."""
    config, paragraphs = small_run()
    before = json.dumps(paragraphs)
    mix = data_mix("brd", config, small_tokenizer(), paragraphs)
    assert json.dumps(paragraphs) == before, "data_mix changes the paragraphs"
    assert len(mix.sources) == 3, f"{len(mix.sources)} sources of brd, expected D_ORI, D_NER, D_QRA"
    p, n = config.plain_share, config.ner_share
    close(mix.shares, [p, n, 1 - p - n], "shares of brd:")
    fresh_plain(mix.sources[0], f"{config.seed} D_ORI", p * config.student_tokens / 2, "D_ORI of brd")
    for behaviour, rows in zip(("ner", "qra"), mix.sources[1:]):
        wanted = documents.reading_rows(paragraphs, behaviour, small_tokenizer(), config.seed,
                                        config.block_size)
        same_text(rows, wanted, f"{behaviour} of brd")
    assert mix.start_at is not None, "all sources of brd begin at once"
    close(mix.start_at, [QUESTIONS_FIRST, QUESTIONS_FIRST, 0], "brd begins at")


def check_an_annotated_corpus(points=3):
    """data_mix with an annotated corpus: it takes corpus_share of the tokens of both students, and the
    control reads its text only.

    Both students must meet this text, otherwise they differ in more than annotations; and a control that
    reads its questions is no control.

    The shares of the world times 1 - corpus_share, then those of the corpus times corpus_share. A source
    without documents has the share 0: its part goes to the questions. All three begin at QUESTIONS_FIRST."""
    for listed, block_size in ((RNG.choice((3, 6)), RNG.choice((104, 112))), (0, 384)):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            share = RNG.choice((0.15, 0.35, 0.6))
            config, paragraphs = small_run(corpus=own_corpus(folder, listed), block_size=block_size,
                                           corpus_share=share)
            own = list(documents.text_sources(config.corpus, small_tokenizer(), block_size, config.seed))
            plain, brd = (data_mix(name, config, small_tokenizer(), given)
                          for name, given in (("plain", None), ("brd", paragraphs)))
        p, n = config.plain_share, config.ner_share
        assert len(plain.sources) == 2, f"plain has {len(plain.sources)} sources, expected its text and D_ORI"
        assert set(np.unique(plain.sources[1].roles)) <= {ROLES.index("text"), ROLES.index("end")}, \
            "plain reads annotations of the corpus"
        same_text(plain.sources[1], own[0], "the text of the corpus, plain")
        close(plain.shares, [1 - share, share], f"corpus_share {share}: shares of plain:")
        fresh_plain(plain.sources[0], f"{config.seed} plain", (1 - share) * config.student_tokens, "plain")
        assert len(brd.sources) == 6, f"brd has {len(brd.sources)} sources, expected three and three"
        for rows, wanted, name in zip(brd.sources[3:], own, ("D_ORI", "D_NER", "D_QRA")):
            same_text(rows, wanted, f"{name} of the corpus")
        of_own = [p, n, 1 - p - n] if len(own[1]) else [p, 0, 1 - p]
        wanted = [(1 - share) * x for x in (p, n, 1 - p - n)] + [share * x for x in of_own]
        close(brd.shares, wanted, f"corpus_share {share}, entities of {listed} paragraphs: brd:")
        assert not any(plain.start_at or []), f"plain begins at {plain.start_at}, expected 0"
        close(brd.start_at, [QUESTIONS_FIRST, QUESTIONS_FIRST, 0, *[QUESTIONS_FIRST] * 3], "brd begins at")


def check_a_corpus_by_name(points=1):
    """data_mix: "primer" is an annotated corpus, too.

    The ending of a file name does not tell: the built-in corpus has none.

    is_annotated(config.corpus) knows both."""
    with tempfile.TemporaryDirectory() as folder:
        annotated.annotated_text.cache_clear()
        with mock.patch.object(annotated, "PRIMER", [own_corpus(folder, 6)]):
            config, _ = small_run(corpus="primer", block_size=384, corpus_share=0.25)
            mix = data_mix("plain", config, small_tokenizer(), None)
        annotated.annotated_text.cache_clear()
    close(mix.shares, [0.75, 0.25], "corpus primer, shares of plain:")
