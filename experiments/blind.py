"""The settings of the paper's tests (Zhou et al., ACL 2025): what a student may see of a task before it is tested on it.

    python brd.py test out/brd FILE                                                        # blind: nothing
    python brd.py test out/brd FILE --setting=relaxed --labels=200 --teacher=out/teacher   # inputs, answered by a teacher
    python brd.py test out/brd FILE --setting=supervised --labels=16                       # gold labels of a few items

In the last two the student learns from `labels` items of the file, drawn with --seed, and is tested on the others; each task
sets out from the same student. Items without candidates (answers to be generated) can only be learnt supervised.
"""

import copy
import random

SETTINGS = ("blind", "relaxed", "supervised")
PASSES, BATCH, RATE = 20, 8, 0.005          # how often every item is read, items of a batch, and a small learning rate


def add_arguments(parser):
    """The options of the command `brd.py test`."""
    parser.add_argument("--setting", choices=SETTINGS, default="blind", help="what of a task is seen before the test [blind]: task "
                        "inputs answered by a --teacher, or gold labels")
    parser.add_argument("--labels", type=int, default=16, help="items of a task to learn from, where the setting is not blind [16]")
    parser.add_argument("--teacher", metavar="FOLDER", help="the checkpoint that answers in the relaxed setting")


def adapter(model, tokenizer, options):
    """None in the blind setting, otherwise a function: task -> (a student that has learnt, the task without those items).

    options: those of the command. Raises ValueError for a setting that lacks something, for a teacher of another vocabulary, and in use for a task that
    has too few items."""
    if options.setting == "blind":
        return None
    if options.labels < 1 or (options.setting == "relaxed") != bool(options.teacher):
        raise ValueError(f"--setting={options.setting} --labels={options.labels} --teacher={options.teacher}; expected at least one "
                         "label, and a teacher for relaxed alone")
    teacher = None
    if options.teacher:
        from model import GPT
        teacher = GPT.load(options.teacher, options.device).eval()
        if teacher.config.n_vocab != model.config.n_vocab:
            raise ValueError(f"{options.teacher}: a vocabulary of {teacher.config.n_vocab}, but {options.folder} has "
                             f"{model.config.n_vocab}; teacher and student must share a tokenizer")

    def learnt(task):
        items = task["items"]
        if len(items) <= options.labels:
            raise ValueError(f"{task['name']}: {len(items)} items, of which {options.labels} are to be learnt from; "
                             f"try --labels={max(1, len(items) // 2)}")
        order = random.Random(f"{task['name']} {options.seed}").sample(range(len(items)), len(items))
        shown, rest = ([items[i] for i in sorted(part)] for part in (order[:options.labels], order[options.labels:]))
        answers = gold_answers(shown) if teacher is None else teacher_answers(teacher, tokenizer, task["name"], shown)
        return teach(model, tokenizer, shown, answers, options), {**task, "items": rest}
    return learnt


def gold_answers(items):
    """The first right answer of every item, str."""
    return [sorted(right)[0] if not candidates else candidates[min(right)] for _, candidates, right in items]


def teacher_answers(teacher, tokenizer, name, items):
    """What the teacher holds for right, blind: the candidate of its highest mean log-probability a token."""
    import brd                              # only here: it knows this file
    if not all(candidates for _, candidates, _ in items):
        raise ValueError(f"{name}: its answers are generated, so there are no candidates for a teacher to choose from; "
                         "try --setting=supervised")
    scores = brd.blind_scores(teacher, tokenizer, [(prompt, candidates) for prompt, candidates, _ in items])
    return [candidates[max(range(len(row)), key=row.__getitem__)] for (_, candidates, _), row in zip(items, scores)]


def teach(model, tokenizer, items, answers, options):
    """A copy of the student that has learnt these answers to these prompts, by next-token training on the answers' tokens."""
    import brd
    import train
    from data.batches import Rows
    text, answer, block_size = brd.ROLES.index("text"), brd.ROLES.index("answer"), model.config.block_size
    documents = []
    for (prompt, *_), wanted in zip(items, answers):
        context, (tail,), _ = brd.split_tokens(tokenizer, prompt, [wanted], block_size)
        documents.append((context + tail, [text] * len(context) + [answer] * len(tail)))
    rows = Rows.pack(documents, tokenizer.n_vocab)
    config = train.Config(seed=options.seed, device=options.device, learning_rate=RATE, warmup=5, text_weight=0.0,
                          answer_weight=1.0, step_tokens=BATCH * int(rows.lengths.max()))
    student = copy.deepcopy(model)
    train.fit("learning a task", student, [rows], [1.0], PASSES * int((rows.lengths - 1).sum()), config, decay=0.5)
    return student
