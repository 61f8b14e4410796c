"""The arms of course/claims.py: what each student reads, and how it differs from the default one.

    config_of(job)           its train.Config
    sources_of(job)          (sources, shares, begins), what train.fit takes

A new arm is a line of ARMS; for a new kind of annotated text, a branch of `annotated`.
"""

import dataclasses
import functools
import random
from pathlib import Path
from typing import NamedTuple

import train
from course import retelling
from data import world
from data.documents import PLAIN_TOKENS, QRA_TOKENS, course_tokenizer, plain_rows, reading_rows
from data.tasks import items

NER_TOKENS, APART = 40, 0.98                 # tokens of a paragraph in D_NER; in D_QRA, of one read sentence by sentence, in tokens of a whole one
RATE = train.Config.learning_rate            # of starts
FEELINGS = ("Is this {0} or {1}?", "Does this sound {0} or {1}?", "Would you say {0} or {1}?", "What is it, {0} or {1}?")


@dataclasses.dataclass(frozen=True)
class Arm:
    what: str                # how it differs from the default student
    read: str = "brd"        # plain, or a variant of the annotated text: brd, sentences, attitudes, short
    changes: tuple = ()      # fields of train.Config that differ: ((name, value), ...)
    tokens: float = 1.0      # what it reads after its start, in tokens of a default student
    start: str = "start"     # what it sets out from: start, pretrained
    tests: str = "all"       # all, or bits: only bits a byte on plain text


ARMS = {
    "plain": Arm("plain text alone", "plain"),
    "brd": Arm("D_ORI .1, D_NER .1, D_QRA .8"),
    "uniform": Arm("every token weighs 1 in the loss", changes=(("answer_weight", 1.0),)),
    "pretrained": Arm("the longer start itself", "plain", tokens=0.25, start=""),
    "further": Arm("plain text after the longer start", "plain", start="pretrained"),
    "further_brd": Arm("BRD after the longer start", start="pretrained"),
    "no_ner": Arm("no D_NER, D_QRA in its place", changes=(("ner_share", 0.0),)),
    "no_qra": Arm("no D_QRA, D_NER in its place", changes=(("ner_share", 0.9),)),
    "ner_more": Arm("as brd, with four times the D_NER", changes=(("ner_share", 0.4 / 1.3), ("plain_share", 0.1 / 1.3)), tokens=1.3),
    "uniform_no_ner": Arm("every token weighs 1, no D_NER", changes=(("answer_weight", 1.0), ("ner_share", 0.0))),
    "sentence": Arm("sentence by sentence, no questions that need another one", "sentences"),
    "ori_25": Arm("D_ORI .25", changes=(("plain_share", 0.25),)),
    "ori_50": Arm("D_ORI .5", changes=(("plain_share", 0.5),)),
    "plain_10": Arm("plain text, as many tokens as brd has of it", "plain", tokens=0.1, tests="bits"),
    "plain_25": Arm("plain text, as many tokens as ori_25 has of it", "plain", tokens=0.25, tests="bits"),
    "plain_50": Arm("plain text, as many tokens as ori_50 has of it", "plain", tokens=0.5, tests="bits"),
    "brd_eighth": Arm("an eighth of the tokens", tokens=0.125),
    "brd_quarter": Arm("a quarter of the tokens", tokens=0.25),
    "brd_half": Arm("half of the tokens", tokens=0.5),
    "brd_double": Arm("twice the tokens", tokens=2.0),
    "attitudes": Arm("attitudes also asked as a choice of two feelings", "attitudes"),
    "short": Arm("the levels of the five-minute course: yes or no first, and whose it was last", "short"),
}
AFTER = tuple(f"{first}+{method}" for first in ("plain", "brd") for method in retelling.METHODS)      # claim 5
LEARNT = tuple(f"{first}:{setting}" for first in ("plain", "brd") for setting in ("relaxed", "supervised"))    # claims 5, 8
CONTROL = ("plain", "brd")          # arms that are also tested without paragraphs, and compared with the teacher
CLAIM_ARMS = {
    "1": ("plain", "brd", "uniform"), "2": ("pretrained", "further", "further_brd"),
    "3": ("brd", "no_ner", "no_qra", "ner_more", "uniform", "uniform_no_ner"), "4": ("brd", "sentence"),
    "5": ("plain", "brd", *AFTER, "plain:relaxed", "brd:relaxed"), "6": ("plain", "brd"),
    "7": ("brd_eighth", "brd_quarter", "brd_half", "brd", "brd_double"), "8": ("plain", "brd", *LEARNT),
    "mix": ("plain", "brd", "ori_25", "ori_50", "plain_10", "plain_25", "plain_50"), "mends": ("brd", "attitudes", "short")}
TAUGHT = ("5", "6", "8")            # claims that need a teacher


class Size(NamedTuple):
    """How much: what all students of a folder share."""
    tokens: int = 1_800_000         # of a default student, after its start
    start: int = 100_000            # of the common start
    teacher: int = 3_000_000        # of the teacher
    retelling: int = 150_000        # of one method of claim 5
    items: int = items.N            # a task
    n_layer: int = 3                # blocks and channels of a student
    n_embd: int = 128
    teacher_layer: int = 4          # ... and of the teacher
    teacher_embd: int = 192


class Job(NamedTuple):
    """One student with its test; the fields above the line tell it from others."""
    arm: str
    seed: int
    rate: float
    # ------
    out: str
    wrappers: str
    size: Size

    @property
    def folder(self):
        return Path(self.out) / "students" / f"{self.arm.replace('+', '-').replace(':', '-').replace(' ', '_')}-{self.seed}-{self.rate:g}"

    @property
    def result(self):
        return self.folder / f"test-{Path(self.wrappers).stem}.json"


def config_of(job):
    """The Config of a job's student: the default one but for size, seed, rate, and the changes of its arm."""
    arm, size = ARMS.get(job.arm, ARMS["brd"]), job.size
    tokens = round(size.tokens * arm.tokens)
    return train.Config(seed=job.seed, learning_rate=job.rate, start_tokens=size.start if arm.start else tokens, student_tokens=tokens,
                        teacher_tokens=size.teacher, n_layer=size.n_layer, n_embd=size.n_embd, teacher_layer=size.teacher_layer,
                        teacher_embd=size.teacher_embd, **dict(arm.changes))


def family(arm):
    """Whose learning rate an arm has: that of plain text, or that of reading."""
    return "plain" if ARMS[arm].read == "plain" else "brd"


def rate_of(arm, rates):
    """The learning rate of an arm; starts have RATE, and so have methods that come after, as far as names of files go."""
    return RATE if arm == "pretrained" or arm not in ARMS else rates[family(arm)]


def arms_of(claims):
    """(students, what comes after them): the arms that these claims need, those that take longest first."""
    arms = dict.fromkeys(arm for claim in claims for arm in CLAIM_ARMS[claim])
    return sorted((arm for arm in arms if arm in ARMS), key=lambda arm: -ARMS[arm].tokens), [arm for arm in arms if arm not in ARMS]


# --- what an arm reads ---------------------------------------------------------------------------------------------------

def alone(record):
    """A record as a teacher would write it who has this sentence alone: nothing about earlier ones, and of a sentence that does
    not name its person ("She went to Oslo.") the attitude only."""
    named = any(word in world.FEMALE or word in world.HE for word in record["text"].replace(".", "").replace(",", "").split())
    kinds = ("content", "attitude") if named else ("attitude",)
    return {**record, "sentence": 0, "questions": [q for q in record["questions"] if q["kind"] in kinds]}


def as_feelings(record, rng):
    """Six in ten of the questions for the attitude, with an answer good or bad, become a choice of two feelings that the sentence
    does not hold. The words of world.MOODS, with which sentiment_words is tested, are never an answer."""
    def reworded(item):
        if item["kind"] != "attitude" or item["answer"] == "neutral" or rng.random() > 0.6:
            return item
        good, bad = (world.pick(rng, [w for w in words if w not in record["text"]]) for words in (world.GOOD, world.BAD))
        offered = sorted((good, bad), key=lambda _: rng.random())
        answer = good if item["answer"] == "good" else bad
        return {**item, "question": world.pick(rng, FEELINGS).format(*offered), "answer": answer}
    return {**record, "questions": [reworded(item) for item in record["questions"]]}


def annotated(read, n, seed, levels):
    """n annotated paragraphs of these levels in one of the variants; "sentences" gives one paragraph for each sentence."""
    rng, paragraphs = random.Random(f"{read} {seed}"), list(world.annotated(n, seed, levels))
    if read == "attitudes":
        return [[as_feelings(record, rng) for record in paragraph] for paragraph in paragraphs]
    return [[alone(record)] for paragraph in paragraphs for record in paragraph] if read == "sentences" else paragraphs


@functools.lru_cache(maxsize=1)      # asked for twice: to learn from, and to look for near-duplicates
def sources_of(job):
    """(sources, shares, begins) of train.fit for an arm of ARMS."""
    arm, config, tokenizer = ARMS[job.arm], config_of(job), course_tokenizer("world", 1024)
    tokens = config.student_tokens if arm.start else config.start_tokens
    if arm.read == "plain":
        name = "plain" if arm.start else "pretrained"
        return [plain_rows(list(items.plain(tokens // PLAIN_TOKENS + 1, f"{job.seed} {name}")), tokenizer)], [1.0], [0.0]
    shares = [config.plain_share, config.ner_share, round(1 - config.plain_share - config.ner_share, 6)]
    usual = tokens * (1 - train.Config.plain_share - train.Config.ner_share)            # tokens of questions that brd reads
    n, levels = world.binding_curriculum(usual) if arm.read != "short" else (usual / QRA_TOKENS, world.LEVELS)
    n *= shares[2] * tokens / usual / (APART if arm.read == "sentences" else 1)
    n = int(max(n, shares[1] * tokens / NER_TOKENS)) + 1
    paragraphs = annotated(arm.read, n, job.seed, levels)
    plain = plain_rows(list(items.plain(int(tokens * shares[0] / PLAIN_TOKENS) + 1, f"{job.seed} D_ORI")), tokenizer)
    rows = [reading_rows(paragraphs, copy, tokenizer, job.seed, config.block_size, levels) for copy in ("ner", "qra")]
    # Questions come first and alone, here until it is known whose a fact is.
    whose = train.ALONE if arm.read == "short" else min(world.WHOSE_TOKENS, usual / 2) / tokens
    alone = whose if shares[2] else 0.0
    return [plain, *rows], shares, [alone] * 2 + [0.0]
