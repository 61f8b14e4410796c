"""The arms of experiments/claims.py: what each student reads, and how it differs from the default one.

    config_of(job)           the train.Config of a job's student
    mix_of(job)              what it reads: a DataMix

A new arm is a line of ARMS; a new kind of annotated text is a branch of `annotated`.
"""

import functools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import train
from data import world
from data.batches import DataMix
from data.documents import (PLAIN_TOKENS, QRA_TOKENS, QUESTIONS_FIRST, course_tokenizer, plain_rows,
                            reading_rows)
from data.world import Level
from experiments import claim_items, retelling

RATE = train.Config.learning_rate   # of starts
NER_TOKENS = 40                     # tokens of an average paragraph in D_NER, rounded down
APART = 0.98                        # tokens of a paragraph in D_QRA read sentence by sentence, in those of a whole one
BINDING_TOKENS = 500_000            # of questions, after which students tell two people apart
BINDING_LENGTH, LATER_LENGTH = 94, 68     # tokens of an average document of D_QRA until then and after; rounded down
FEELINGS = ("Is this {0} or {1}?", "Does this sound {0} or {1}?", "Would you say {0} or {1}?",
            "What is it, {0} or {1}?")


@dataclass(frozen=True)
class Arm:
    what: str                       # how it differs from the default student
    read: str = "brd"               # "plain", or a variant of the annotated text: brd, sentences, attitudes, short
    shares: tuple = (0.1, 0.1)      # of D_ORI and D_NER; the rest is D_QRA
    tokens: float = 1.0             # what it reads after its start, in tokens of a default student
    start: str = "start"            # the arm that it starts from; "": new weights
    answer_weight: float = train.Config.answer_weight
    tests: str = "all"              # "all"; "bits": only bits a byte of plain text


ARMS = {
    "start": Arm("the common start of Size.start tokens", "plain", start=""),
    "plain": Arm("plain text alone", "plain"),
    "brd": Arm("D_ORI .1, D_NER .1, D_QRA .8"),
    "uniform": Arm("every token weighs 1 in the loss", answer_weight=1.0),
    "pretrained": Arm("the longer start itself", "plain", tokens=0.25, start=""),
    "further": Arm("plain text after the longer start", "plain", start="pretrained"),
    "further_brd": Arm("BRD after the longer start", start="pretrained"),
    "no_ner": Arm("no D_NER, D_QRA in its place", shares=(0.1, 0.0)),
    "no_qra": Arm("no D_QRA, D_NER in its place", shares=(0.1, 0.9)),
    "ner_more": Arm("as brd, with four times the D_NER", shares=(0.1 / 1.3, 0.4 / 1.3), tokens=1.3),
    "uniform_no_ner": Arm("every token weighs 1, no D_NER", shares=(0.1, 0.0), answer_weight=1.0),
    "sentence": Arm("sentence by sentence, no questions that need another one", "sentences"),
    "ori_25": Arm("D_ORI .25", shares=(0.25, 0.1)),
    "ori_50": Arm("D_ORI .5", shares=(0.5, 0.1)),
    "plain_10": Arm("plain text, as many tokens as brd has of it", "plain", tokens=0.1, tests="bits"),
    "plain_25": Arm("plain text, as many tokens as ori_25 has of it", "plain", tokens=0.25, tests="bits"),
    "plain_50": Arm("plain text, as many tokens as ori_50 has of it", "plain", tokens=0.5, tests="bits"),
    "brd_eighth": Arm("an eighth of the tokens", tokens=0.125),
    "brd_quarter": Arm("a quarter of the tokens", tokens=0.25),
    "brd_half": Arm("half of the tokens", tokens=0.5),
    "brd_double": Arm("twice the tokens", tokens=2.0),
    "attitudes": Arm("attitudes also asked as a choice of two feelings", "attitudes"),
    "short": Arm("the levels of train.py, without the binding curriculum", "short"),
}
AFTER = tuple(f"{first}+{method}" for first in ("plain", "brd") for method in retelling.METHODS)     # claim 5
LEARNT = tuple(f"{first}:{setting}" for first in ("plain", "brd") for setting in ("relaxed", "supervised"))
CONTROL = ("plain", "brd")          # arms also tested without paragraphs, and compared with the teacher
CLAIM_ARMS = {
    "1": ("plain", "brd", "uniform"), "2": ("pretrained", "further", "further_brd"),
    "3": ("brd", "no_ner", "no_qra", "ner_more", "uniform", "uniform_no_ner"), "4": ("brd", "sentence"),
    "5": ("plain", "brd", *AFTER, "plain:relaxed", "brd:relaxed"), "6": ("plain", "brd"),
    "7": ("brd_eighth", "brd_quarter", "brd_half", "brd", "brd_double"), "8": ("plain", "brd", *LEARNT),
    "mix": ("plain", "brd", "ori_25", "ori_50", "plain_10", "plain_25", "plain_50"),
    "mends": ("brd", "attitudes", "short")}
TAUGHT = ("5", "6", "8")            # claims that need a teacher


class Size(NamedTuple):
    """How much: what all students of a folder share."""
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
    arm: str                        # of ARMS, AFTER or LEARNT
    seed: int
    rate: float                     # learning rate of the student of ARMS
    out: str
    wrappers: str
    size: Size

    @property
    def name(self):
        """The student's stage and folder in `out`."""
        arm = self.arm.replace("+", "-").replace(":", "-").replace(" ", "_")
        return f"{arm}-{self.seed}-{self.rate:g}"

    @property
    def result(self):
        """The file of its test."""
        return Path(self.out) / self.name / f"test-{Path(self.wrappers).stem}.json"

    def of(self, arm):
        """The job of another arm of the same seed, with its learning rate: starts have RATE."""
        return self._replace(arm=arm, rate=self.rate if ARMS[arm].start else RATE)


def config_of(job):
    """The Config of a student of ARMS: the default one but for size, seed, rate and its arm."""
    arm, size = ARMS[job.arm], job.size
    tokens = size.start if job.arm == "start" else round(size.tokens * arm.tokens)
    return train.Config(seed=job.seed, learning_rate=job.rate, student_tokens=tokens, n_layer=size.n_layer,
                        n_embd=size.n_embd, answer_weight=arm.answer_weight, out_dir=job.out,
                        cooldown=train.Config.cooldown if arm.start else 0.0)


def family(arm):
    """Whose learning rate an arm has, and what is learnt after it: that of plain text or of reading."""
    return "plain" if ARMS[arm.split("+")[0].split(":")[0]].read == "plain" else "brd"


def arms_of(claims):
    """(students, what is learnt after them) that these claims need; those that take longest first."""
    arms = dict.fromkeys(arm for claim in claims for arm in CLAIM_ARMS[claim])
    students = sorted((arm for arm in arms if arm in ARMS), key=lambda arm: -ARMS[arm].tokens)
    return students, [arm for arm in arms if arm not in ARMS]


# --- what an arm reads --------------------------------------------------------------------------------------

def binding_curriculum(tokens):
    """(number of paragraphs, levels) for `tokens` tokens of D_QRA that teach which person a fact belongs to.

    The first paragraphs tell facts of the same kinds about two people and ask wh questions about both, in any
    order and in one surface form. "The person named first" and "what was said last" are then right half of
    the time; a student that meets such paragraphs only among others stays with these two answers."""
    binding = min(BINDING_TOKENS, tokens / 2) / BINDING_LENGTH                     # paragraphs
    n = binding + (tokens - binding * BINDING_LENGTH) / LATER_LENGTH
    part, two = binding / n, {"alike": 0.8, "swapped": 0.8}

    def after(until, sentences, people=2, **other):
        return Level(part + (1 - part) * until, sentences, people, join_prob=0.6, varied=0.6, **other)
    first = Level(part, (2, 2), denied=0.0, alike=1.0, join_prob=1.0, forms=1, wh=12, whether=False)
    return int(n) + 1, (first, after(0.1, (1, 1), 1, swapped=0.0, claims=0.3), after(0.4, (1, 2), **two),
                        after(0.7, (1, 3), **two), after(1.0, (1, 4), **two))


def alone(record):
    """A record as a teacher would write it who sees this sentence alone: nothing about earlier ones, and only
    the attitude of a sentence that does not name its person."""
    words = record["text"].replace(".", "").replace(",", "").split()
    named = any(word in world.WORDS["person"] for word in words)
    kinds = ("content", "attitude") if named else ("attitude",)
    return {**record, "sentence": 0, "questions": [q for q in record["questions"] if q["kind"] in kinds]}


def as_feelings(record, rng):
    """Six in ten of the questions for the attitude, with an answer good or bad, become a choice of two
    feelings that the sentence does not hold. The answers are never words of the test sentiment_words
    (world.MOODS)."""
    def reworded(item):
        if item["kind"] != "attitude" or item["answer"] == "neutral" or rng.random() > 0.6:
            return item
        good, bad = (world.pick(rng, [word for word in words if word not in record["text"]])
                     for words in (world.GOOD, world.BAD))
        offered = sorted((good, bad), key=lambda _: rng.random())
        answer = good if item["answer"] == "good" else bad
        return {**item, "question": world.pick(rng, FEELINGS).format(*offered), "answer": answer}
    return {**record, "questions": [reworded(item) for item in record["questions"]]}


def annotated(read, n, seed, levels):
    """n annotated paragraphs of these levels in a variant; "sentences" gives a paragraph for each
    sentence."""
    rng, paragraphs = random.Random(f"{read} {seed}"), list(world.annotated(n, seed, levels))
    if read == "attitudes":
        return [[as_feelings(record, rng) for record in paragraph] for paragraph in paragraphs]
    if read == "sentences":
        return [[alone(record)] for paragraph in paragraphs for record in paragraph]
    return paragraphs


@functools.lru_cache(maxsize=1)      # used twice: to learn from, and to look for near-duplicates
def mix_of(job):
    """The DataMix that a student of ARMS reads."""
    arm, config, tokenizer = ARMS[job.arm], config_of(job), course_tokenizer("world", 1024)
    tokens = config.student_tokens

    def plain(tokens, name):
        return plain_rows(list(claim_items.plain(int(tokens / PLAIN_TOKENS) + 1, f"{job.seed} {name}")), tokenizer)
    if arm.read == "plain":
        return DataMix([plain(tokens, "plain" if arm.start else job.arm)], [1.0])
    ori, ner = arm.shares
    qra = round(1 - ori - ner, 6)
    usual = tokens * (1 - sum(Arm.shares))                        # tokens of questions that brd reads
    binding = QUESTIONS_FIRST if arm.read == "short" else min(BINDING_TOKENS, usual / 2) / tokens
    n, levels = (usual / QRA_TOKENS, world.LEVELS) if arm.read == "short" else binding_curriculum(usual)
    n *= qra * tokens / usual / (APART if arm.read == "sentences" else 1)
    paragraphs = annotated(arm.read, int(max(n, ner * tokens / NER_TOKENS)) + 1, job.seed, levels)
    rows = [reading_rows(paragraphs, behaviour, tokenizer, job.seed, config.block_size, levels)
            for behaviour in ("ner", "qra")]
    # Questions come first and alone, until the student can tell which person a fact belongs to.
    begin = binding if qra else 0.0
    return DataMix([plain(tokens * ori, "D_ORI"), *rows], [ori, ner, qra], [begin, begin, 0.0])
