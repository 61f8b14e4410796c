"""The claims of experiments/claims.py, and their arms: what each student reads."""

import functools
import random
import re
from pathlib import Path
from typing import NamedTuple

import train
from data import world
from data.batches import DataMix
from data.documents import (PLAIN_TOKENS, QRA_TOKENS, QUESTIONS_FIRST, course_tokenizer, plain_rows,
                            reading_rows)
from experiments import claim_items, retelling

RATE = train.Config.learning_rate   # of starts
NER_TOKENS = 40                     # tokens of an average paragraph in D_NER, rounded down
LENGTHS = {"brd": QRA_TOKENS, "sentences": 86, "short": 58}        # the same in D_QRA, by Arm.read
# Levels that begin with single sentences, and leave out the binding curriculum of world.LEVELS.
SHORT = (world.Level(0.25, (1, 1), 1, denied=0.0, swapped=0.0, claims=0.0, forms=1, raised=0.1),
         world.Level(0.35, (1, 1), 1, swapped=0.0, claims=0.3, forms=4, raised=0.1),
         world.Level(0.55, (1, 2), alike=0.7, join_prob=0.3, forms=8, raised=0.1),
         world.Level(0.75, (1, 3), join_prob=0.3, forms=16, raised=0.1),
         world.Level(1.00, (1, 4), swapped=0.4, join_prob=0.4, varied=0.4, raised=0.1))


class Arm(NamedTuple):
    """One way to train a student."""
    what: str                       # how it differs from the default student
    read: str = "brd"               # "plain", or annotated text: "brd", "sentences", "short"
    shares: tuple = (0.1, 0.12)     # of D_ORI and D_NER; the rest is D_QRA
    tokens: float = 1.0             # what it reads after its start, in tokens of a default student
    start: str = "start"            # the arm that it starts from; "": new weights
    answer_weight: float = train.Config.answer_weight


ARMS = {
    "start": Arm("the common start, of Size.start tokens", "plain", start=""),
    "plain": Arm("plain text alone", "plain"),
    "brd": Arm("D_ORI .1, D_NER .12, D_QRA .78"),
    "uniform": Arm("every token weighs 1 in the loss", answer_weight=1.0),
    "pretrained": Arm("the longer start itself", "plain", tokens=0.25, start=""),
    "further": Arm("plain text after the longer start", "plain", start="pretrained"),
    "further_brd": Arm("BRD after the longer start", start="pretrained"),
    "no_ner": Arm("no D_NER, D_QRA in its place", shares=(0.1, 0.0)),
    "no_qra": Arm("no D_QRA, D_NER in its place", shares=(0.1, 0.9)),
    "ner_more": Arm("as brd, with four times the D_NER", shares=(0.1 / 1.36, 0.48 / 1.36), tokens=1.36),
    "uniform_no_ner": Arm("every token weighs 1, no D_NER", shares=(0.1, 0.0), answer_weight=1.0),
    "sentence": Arm("sentence by sentence, no questions that need another one", "sentences"),
    "brd_eighth": Arm("an eighth of the tokens", tokens=0.125), "brd_quarter": Arm("a quarter", tokens=0.25),
    "brd_half": Arm("half of the tokens", tokens=0.5), "brd_double": Arm("twice the tokens", tokens=2.0),
    "short": Arm("easy sentences first, without the binding curriculum", "short"),
}
CONTROL = ("plain", "brd")          # arms also tested without paragraphs, and compared with the teacher
AFTER = tuple(f"{first}+{method}" for first in CONTROL for method in retelling.METHODS)


class Comparison(NamedTuple):
    """What the paper has of two students."""
    arms: str                       # ours: "first > second" (above), "<" (below), "=" (no difference)
    paper: str                      # its figures, second -> first
    row: str = ""                   # one task; "": the mean of tasks
    run: bool = True                # False: there are no such arms here


class Claim(NamedTuple):
    title: str
    comparisons: tuple = ()         # all that the paper makes: the verdict is about them
    also: tuple = ()                # other differences, "first - second", shown in the table alone

    @property
    def differences(self):
        """"first - second" of all comparisons that are run, and `also`."""
        run = (re.sub(" [<>=] ", " - ", one.arms) for one in self.comparisons if one.run)
        return tuple(dict.fromkeys((*run, *self.also)))

    @property
    def arms(self):
        """The arms that the differences name."""
        return tuple(dict.fromkeys(arm for name in self.differences for arm in name.split(" - ")))


def against_plain(arm):
    """The paper's comparisons of BRD with plain text in the blind test, for an arm that reads."""
    return (Comparison(f"{arm} > plain", "48.0 -> 54.2"),
            Comparison(f"{arm} > plain", "SST-2 63.9 -> 78.1", "sentiment"),
            Comparison(f"{arm} > plain", "BoolQ 51.2 -> 61.0", "yes_no"),
            Comparison(f"{arm} > plain", "PAWS-X 51.3 -> 56.7", "paraphrase"),
            Comparison(f"{arm} = plain", "XNLI 35.5 -> 36.2, hardly moves", "nli"))


# The paper's 48.0, 54.2, 62.0 and 67.1 are means of its seven columns, 55.6, 57.5, 65.5 and 70.9 of the six
# without BIG-bench; of the others we do not know.
CLAIMS = {
    "1": Claim("blind, BRD against plain text, by the paper's loss: every token weighs 1",
               against_plain("uniform")),
    "weighted": Claim("the same where answers weigh 20, not the paper's loss; so in all but uniform arms",
                      against_plain("brd")),
    "2": Claim("further training on plain text", (
        Comparison("further = pretrained", "48.0 -> 47.1, brings nothing"),
        Comparison("further_brd > further", "47.1 -> 54.2"),
        Comparison("further_brd > pretrained", "48.0 -> 54.2"))),
    "3": Claim("without entities, without questions (in the paper relaxed, here blind)", (
        Comparison("brd > no_ner", "68.4 -> 70.9"), Comparison("brd > no_qra", "67.8 -> 70.9"),
        Comparison("no_ner > no_qra", "67.8 -> 68.4"),
        Comparison("uniform > uniform_no_ner", "68.4 -> 70.9, its loss")), ("ner_more - brd",)),
    "4": Claim("paragraphs against sentences", (Comparison("brd > sentence", "55.6 -> 57.5"),)),
    "5": Claim("before another distillation, against it alone and against BRD alone", (
        Comparison("brd+SeqKD > plain+SeqKD", "51.0 -> 58.9"), Comparison("brd+SeqKD > brd", "57.5 -> 58.9"),
        Comparison("brd+MiniLLM > plain+MiniLLM", "52.6 -> 57.8", run=False),
        Comparison("brd+MiniLLM > brd", "57.5 -> 57.8", run=False),
        Comparison("brd:relaxed > plain:relaxed", "task distillation 65.5 -> 68.2"),
        Comparison("brd:relaxed > brd", "57.5 -> 68.2")),
        tuple(f"brd+{method} - {other}" for method in retelling.METHODS if method != "SeqKD"
              for other in (f"plain+{method}", "brd"))),
    "6": Claim("cross-entropy with the teacher at the answer's first token (no task is like PIQA)", tuple(
        Comparison("brd < plain", "falls on all but PIQA", task) for task in claim_items.TASKS)),
    "7": Claim("how much BRD text", (
        Comparison("brd_quarter > brd_eighth", "rises"), Comparison("brd_half > brd_quarter", "rises"),
        Comparison("brd > brd_half", "rises"), Comparison("brd_double = brd", "saturates"))),
    "8": Claim("blind and relaxed", (
        Comparison("brd > plain", "48.0 -> 54.2"), Comparison("brd:relaxed > plain:relaxed", "62.0 -> 67.1"),
        Comparison("brd:relaxed > brd", "54.2 -> 67.1"), Comparison("plain:relaxed > plain", "48.0 -> 62.0"),
        Comparison("plain:relaxed > brd", "54.2 -> 62.0"), Comparison("brd:relaxed > plain", "48.0 -> 67.1")),
        ("brd:supervised - plain:supervised", "brd:supervised - brd")),
    "binding": Claim("what the binding curriculum teaches", also=("brd - short",)),
}


class Size(NamedTuple):
    """What all students of a folder share."""
    tokens: int = 1_800_000         # of a default student, after its start
    start: int = 100_000            # of the common start
    teacher: int = 3_000_000        # of the teacher
    retelling: int = 150_000        # of one method of claim 5
    items: int = claim_items.N      # a task
    n_layer: int = 3                # blocks and channels of a student
    n_embd: int = 128
    teacher_layer: int = 4          # ... and of the teacher
    teacher_embd: int = 192


class Job(NamedTuple):
    """One student with its test."""
    arm: str                        # of ARMS or AFTER, or one of CONTROL with ":relaxed" or ":supervised"
    seed: int
    rate: float                     # learning rate of the student of ARMS
    out: str
    wrappers: str
    size: Size

    @property
    def name(self):
        """The student's stage and folder in `out`."""
        return re.sub("[+: ]", "-", f"{self.arm}-{self.seed}-{self.rate:g}")

    @property
    def test(self):
        """The file of what is measured in this student."""
        return Path(self.out) / self.name / f"test-{Path(self.wrappers).stem}.json"

    @property
    def start(self):
        """The job of the student that this one starts from, None for new weights."""
        first, _, method = self.arm.partition("+")
        arm = first if method else ARMS[first].start
        return self._replace(arm=arm, rate=self.rate if ARMS[arm].start else RATE) if arm else None


def config_of(job):
    """The Config of a student of ARMS or AFTER: the default one but for size, seed, rate and its arm."""
    (first, _, method), size = job.arm.partition("+"), job.size
    arm, tokens = ARMS[first], size.start if first == "start" else round(size.tokens * ARMS[first].tokens)
    config = train.Config(seed=job.seed, learning_rate=job.rate, student_tokens=tokens, n_layer=size.n_layer,
                          n_embd=size.n_embd, answer_weight=arm.answer_weight, out_dir=job.out,
                          cooldown=train.Config.cooldown if arm.start else 0.0)
    return retelling.config_of(config, size.retelling) if method else config


def family(arm):
    """Whose learning rate an arm has: that of plain text or of reading."""
    return "plain" if ARMS[re.split("[+:]", arm)[0]].read == "plain" else "brd"


def alone(rng, fact, at):
    """The record of a sentence as a teacher would write it who sees this sentence alone: where it does not
    name its person, only its attitude."""
    (record,) = world.annotate(rng, world.Paragraph([fact], [fact.person]), 0, at)
    asked = [q for q in record["questions"] if q["kind"] == "attitude" or not fact.pronoun]
    return {**record, "questions": asked}


def annotated(read, n, seed, levels):
    """n annotated paragraphs of these levels; "sentences" makes each of their sentences a paragraph."""
    if read != "sentences":
        return list(world.annotated(n, seed, levels))
    rng, found = random.Random(f"annotated {seed}"), []
    for i in range(n):
        at = world.level(i / n, levels)
        found += [[alone(rng, fact, at)] for fact in world.draw_paragraph(rng, at).facts]
    return found


@functools.lru_cache(maxsize=1)      # used twice: to learn from, and to look for near-duplicates
def mix_of(job):
    """The DataMix that a student of ARMS or AFTER reads."""
    config, tokenizer = config_of(job), course_tokenizer("world", 1024)
    if job.arm in AFTER:
        return DataMix([retelling.source(job.arm.split("+")[1], tokenizer, config)], [1.0])
    arm, tokens = ARMS[job.arm], config.student_tokens

    def plain(tokens, name):
        n = int(tokens / PLAIN_TOKENS) + 1
        return plain_rows(claim_items.plain(n, f"{job.seed} {name}"), tokenizer)
    if arm.read == "plain":
        return DataMix([plain(tokens, "plain" if arm.start else job.arm)], [1.0])
    ori, ner = arm.shares
    qra = round(1 - ori - ner, 6)
    begin, levels = (0.1, SHORT) if arm.read == "short" else (QUESTIONS_FIRST, world.LEVELS)
    n = qra * tokens / LENGTHS[arm.read]
    paragraphs = annotated(arm.read, int(max(n, ner * tokens / NER_TOKENS)) + 1, job.seed, levels)
    rows = [reading_rows(paragraphs, behaviour, tokenizer, job.seed, config.block_size, levels)
            for behaviour in ("ner", "qra")]
    # Questions come first and alone, until the student can tell which person a fact belongs to.
    start_at = [begin, begin, 0.0] if qra else [0.0, 0.0, 0.0]
    return DataMix([plain(tokens * ori, "D_ORI"), *rows], [ori, ner, qra], start_at)
