"""Checks of assignment 3, D_ORI, D_NER, D_QRA (data/documents.py). The docstring of a check is its hint, in
three steps. Random inputs are drawn from SEED, which the grader sets."""
import copy
import random
from collections import Counter
from itertools import groupby, product

from data.annotations import (ALL_FORMS, BRIDGES, ENTITY_FORMS, OPENERS, entity_line, parse_entity,
                              parse_question)
from data.documents import END, ROLES, SEP, encode_documents, render, render_reading
from data.tokenizer import train_bpe

ANNA = {"paragraph": 0, "sentence": 0, "text": "Anna went to Oslo.",
        "entities": [{"text": "Anna", "type": "person", "about": "traveller"},
                     {"text": "Oslo", "type": "place", "about": "goal"}],
        "questions": [{"kind": "content", "question": "Where did Anna go?", "answer": "Oslo"},
                      {"kind": "attitude", "question": "Is this good or bad?", "answer": "neutral"}]}
DAY = {"paragraph": 0, "sentence": 1, "text": "What a lovely day!", "entities": [],
       "questions": [{"kind": "attitude", "question": "Is the mood good or bad?", "answer": "good"}]}
SHE = {"paragraph": 0, "sentence": 2, "text": "She felt proud.",
       "entities": [{"text": "proud", "type": "feeling", "about": "mood"}],
       "questions": [{"kind": "structure", "question": "Who is she?", "answer": "Anna"},
                     {"kind": "content", "question": "Did Anna feel proud?", "answer": "Yes"}]}
PARAGRAPH = [ANNA, DAY, SHE]
ANNA_NER = [(" Anna: person, traveller\n", "entity"), (" Oslo: place, goal\n", "entity")]
SHE_NER, NONE = [(" proud: feeling, mood\n", "entity")], [(" none\n", "entity")]
ANNA_QRA = [(" Where did Anna go?", "question"), (" Oslo\n", "answer")]
ANNA_MOOD = [(" Is this good or bad?", "question"), (" neutral\n", "answer")]
DAY_QRA = [(" Is the mood good or bad?", "question"), (" good\n", "answer")]
SHE_QRA = [(" Who is she?", "question"), (" Anna\n", "answer"),
           (" Did Anna feel proud?", "question"), (" Yes\n", "answer")]
TEXTS = [("Anna went to Oslo.", "text"), (" What a lovely day!", "text"), (" She felt proud.", "text")]
QUESTIONS = ("Who is she?", "Where did Anna go?", "Did Ben stay?", "Is this good or bad?", "Where is Rom?")


class Letters:
    """A tokenizer of letters that notes what it is asked for."""
    sep, end = 1000, 1001

    def __init__(self):
        self.asked = []

    def encode_batch(self, texts):
        self.asked.append(list(texts))
        return [[ord(letter) for letter in text] for text in self.asked[-1]]

    def encode(self, text):
        return self.encode_batch([text])[0]


class Pairs(Letters):
    """A tokenizer of two bytes a token: pieces joined before have other tokens, "🙂" has two."""

    def encode_batch(self, texts):
        self.asked.append(list(texts))
        codes = [text.encode("utf-8") for text in self.asked[-1]]
        return [[int.from_bytes(code[k:k + 2], "big") for k in range(0, len(code), 2)] for code in codes]


def plain(behaviour, paragraph=PARAGRAPH, seed=1, **options):
    return render(paragraph, behaviour, random.Random(seed), forms=1, **options)


def same(found, want):
    k = next((k for k, (a, b) in enumerate(zip(found, want)) if a != b), min(len(found), len(want)))
    assert found == want, (f"piece {k} is {found[k:k + 1]}, expected {want[k:k + 1]}; {len(found)} pieces, "
                           f"expected {len(want)}")


def pairs(document):
    """Questions in the plain form with their answers, in the order asked."""
    said = [piece for piece in document if piece[1] in ("question", "answer")]
    roles = [role for _, role in said]
    assert roles == ["question", "answer"] * (len(said) // 2), f"{said}: an answer must follow its question"
    return list(zip(said[::2], said[1::2]))


def is_now(item):
    """Whether a question is about the sentence read last alone."""
    return item["kind"] == "attitude" or item.get("now")


def assert_even(found, n, what):
    """Asserts that a Counter of n things holds each about equally often: a chi-square test that an even
    choice fails once in a million times."""
    total, free = sum(found.values()), n - 1
    want = total / n
    chi_square = sum((count - want) ** 2 / want for count in found.values()) + (n - len(found)) * want
    limit = free * (1 - 2 / (9 * free) + 5 * (2 / (9 * free)) ** 0.5) ** 3 if free else 0
    assert chi_square <= limit, (
        f"{what}: of {total} draws {len(found)} of {n} occur, {min(found.values())} to {max(found.values())} "
        f"times, expected about {want:.0f} times each")


def draw_record(rng, number):
    """A made-up record. The pools are small, so that equal entities, questions and texts occur."""
    entities = [{"text": rng.choice(["Anna", "Oslo", "Ben: Rom", "Eva"]),
                 "type": rng.choice(["person", "place", "object"]),
                 "about": rng.choice(["goal", "old, tall"])} for _ in range(rng.choice([0, 1, 2, 4]))]
    entities = entities or rng.choice([[], ()])
    questions = [{"kind": rng.choice(["content", "structure", "attitude"]), "question": rng.choice(QUESTIONS),
                  "answer": rng.choice(["Yes", "No", "Oslo"]), **rng.choice([{}, {}, {"now": True}])}
                 for _ in range(rng.choice([0, 1, 2, 3, 5]))]
    text = rng.choice(["Anna went to Oslo.", "It rained.", "Ben said: no!"])
    return {"paragraph": 7, "sentence": number, "text": text, "entities": entities, "questions": questions}


def draw_paragraph(rng):
    """One to five records; some are equal to the one before. The numbers need not begin at 0."""
    first, records = rng.choice([0, 3]), []
    for k in range(rng.randint(1, 5)):
        repeated = records and rng.random() < 0.2
        records.append(copy.deepcopy(records[-1]) if repeated else draw_record(rng, first + k))
    return records


def judge_lines(pieces, records, behaviour, forms):
    """Asserts that pieces are the reading of these records in any of the first `forms` forms."""
    if behaviour == "ner":
        entities = [entity for record in records for entity in record["entities"]]
        allowed = [{f" {entity_line(**entity, form=form)}\n" for form in range(min(forms, len(ENTITY_FORMS)))}
                   for entity in entities] or [{" none\n"}]
        assert len(pieces) == len(allowed), f"{len(pieces)} entity lines {pieces}, expected {len(allowed)}"
        for (text, role), lines in zip(pieces, allowed):
            assert role == "entity" and text in lines, f"{(text, role)}, expected one of {sorted(lines)}"
        return
    want = [(item["question"], f" {item['answer']}\n") for record in records for item in record["questions"]
            if record is records[-1] or not is_now(item)]
    found, line = [], []            # (question, answer) as read; the pieces of a question until its answer
    for text, role in pieces:
        if role == "question":
            line.append(text)
            continue
        assert role == "answer", f"role {role!r} in a reading of {pieces}"
        place = next((k for k, part in enumerate(line) if part[1:] in QUESTIONS), None)
        assert place is not None, f"{line} before {text!r}, expected opener, question, bridge"
        for around, words in ((line[:place], OPENERS), (line[place + 1:], BRIDGES)):
            allowed = [[]] + [[f" {word}"] for word in words[1:forms]]
            assert around in allowed, f"{line} in the reading of a question with forms={forms}"
        found.append((line[place][1:], text))
        line = []
    assert not line, f"{line} has no answer"
    if len(records) > 1:
        found, want = sorted(found), sorted(want)
    assert found == want, f"a reading of {len(records)} sentences asks {found}, expected {want}"


def judge_document(document, paragraph, behaviour, forms, join_prob):
    """Asserts that render may give this document."""
    left, waiting, space = list(document), [], ""
    for k, record in enumerate(paragraph):
        assert left[:1] == [(space + record["text"], "text")], f"{left[:1]} as sentence {k} of {document}"
        left, space = left[1:], " "
        waiting.append(record)
        last = k == len(paragraph) - 1
        if behaviour == "ori" or (left[:1] != [SEP] and not last and join_prob > 0):
            continue
        assert left[:1] == [SEP] and SEP in left[1:], f"sentence {k} of {document}: expected a reading"
        assert last or join_prob < 1, f"sentence {k} is read at once with join_prob=1"
        end = left.index(SEP, 1)
        judge_lines(left[1:end], waiting, behaviour, forms)
        left, waiting = left[end + 1:], []
    assert left == [END], f"the document ends with {left}, expected {[END]}"


def check_ori(points=2):
    """D_ORI is the text alone: one piece a sentence, no separator, END last.

    Nobody reads in D_ORI, so join_prob and forms change nothing.

    For "ori" the loop appends the piece of the sentence and goes on with the next sentence."""
    same(plain("ori"), TEXTS + [END])
    same(plain("ori", join_prob=1.0), TEXTS + [END])
    same(plain("ori", []), [END])


def check_ner(points=3):
    """D_NER: a sentence, SEP, a piece for each of ITS entities, SEP, the next sentence ... END.

    Every entity line is a piece of its own that begins with a space and ends its line.

    The piece of Anna is (" Anna: person, traveller\\n", "entity"); entity_line gives what is in between."""
    same(plain("ner"), [TEXTS[0], SEP, *ANNA_NER, SEP, TEXTS[1], SEP, *NONE, SEP,
                        TEXTS[2], SEP, *SHE_NER, SEP, END])


def check_qra(points=3):
    """D_QRA: a sentence, SEP, its questions, each followed by its answer, SEP, the next sentence ... END.

    A question and its answer are pieces with different roles, because answers have a larger weight.

    question_texts gives texts with their spaces; the answer is " Oslo\\n" with the role "answer"."""
    same(plain("qra"), [TEXTS[0], SEP, *ANNA_QRA, *ANNA_MOOD, SEP, TEXTS[1], SEP, *DAY_QRA, SEP,
                        TEXTS[2], SEP, *SHE_QRA, SEP, END])


def check_render_reading(points=2):
    """render_reading gives the reading of one record, without SEP, and leaves the record as it is.

    Every entity and every question is read, in the order of the record, also where two are equal.

    One loop over record["entities"] or record["questions"]; hand `forms` and `rng` on in both."""
    rng = random.Random(f"{SEED} reading")
    for behaviour, want in (("ner", ANNA_NER), ("qra", ANNA_QRA + ANNA_MOOD)):
        same(render_reading(ANNA, behaviour, rng, 1), want)
        for forms in [1, 3, 4, 7, ALL_FORMS] * 30:
            record = draw_record(rng, 0)
            before = copy.deepcopy(record)
            judge_lines(render_reading(record, behaviour, rng, forms), [record], behaviour, forms)
            assert record == before, f"render_reading has changed {before} to {record}"


def check_spaces(points=1):
    """Every piece with text but the first begins with one space, after any piece.

    " Oslo" in the middle of a text is one token, "Oslo" is three: only with the space are the ids right.

    Whether a sentence is the first depends on its place in the paragraph, not on the piece before it."""
    for name in ("ori", "ner", "qra"):
        for document in (plain(name), render(PARAGRAPH, name, random.Random(2)), plain(name, [DAY]),
                         plain(name, [SHE, DAY])):
            first, *rest = [text for text, role in document if role not in ("sep", "end")]
            assert first[0] != " ", f"{name}: {document}"
            assert all(text[0] == " " and text[1] != " " for text in rest), f"{name}: {document}"


def check_nothing_to_say(points=1):
    """A sentence without entities reads "none". One without questions has an empty reading between two SEP.

    An empty list is an answer as well: the student learns that there is nothing to list.

    `lines or [NO_ENTITY]` for entities; nothing special for questions."""
    same(plain("ner", [DAY]), [("What a lovely day!", "text"), SEP, *NONE, SEP, END])
    same(plain("qra", [{**DAY, "questions": []}]), [("What a lovely day!", "text"), SEP, SEP, END])
    same(plain("ner", [{**DAY, "entities": ()}]), [("What a lovely day!", "text"), SEP, *NONE, SEP, END])
    same(render_reading({**DAY, "entities": ()}, "ner", random.Random(1)), NONE)


def check_joined_sentences(points=2):
    """A sentence that waits is read together with the next one. All that waited is one reading between ONE
    pair of SEP: its entities in order, "none" only where it has no entity. The last sentence never waits.

    Keep a list of the records that wait. A reading takes all of them, and the list is empty again.

    Only `waiting` goes into the reading; then `waiting = []`. Not the record alone, not the paragraph."""
    same(plain("ner", join_prob=1.0), [*TEXTS, SEP, *ANNA_NER, *SHE_NER, SEP, END])
    same(plain("ner", [ANNA], join_prob=1.0), [TEXTS[0], SEP, *ANNA_NER, SEP, END])
    same(plain("ner", [{**DAY}, DAY], join_prob=1.0)[2:], [SEP, *NONE, SEP, END])


def check_attitude_is_asked_of_the_last_sentence(points=2):
    """Of the sentences of a joined reading, only the last is asked its questions of kind "attitude" and those
    with "now": True.

    "Is this good or bad?" after three sentences means the third, and so does "Who is named last?".

    Keep a question if its record is the last of those that wait, or if its kind is not "attitude" and it has
    no "now"."""
    last = {"kind": "structure", "question": "Who is named last?", "answer": "Anna", "now": True}
    said = [(" Who is named last?", "question"), (" Anna\n", "answer")]
    both = [{**record, "questions": [last, *record["questions"]]} for record in (ANNA, DAY)]
    for paragraph, asked in ((PARAGRAPH, ANNA_QRA + SHE_QRA), ([ANNA, DAY], ANNA_QRA + DAY_QRA),
                             (both, ANNA_QRA + said + DAY_QRA)):
        document, n = plain("qra", paragraph, join_prob=1.0), len(paragraph)
        same(document[:n + 1], [*TEXTS[:n], SEP])
        same(sorted(pairs(document)), sorted(pairs(asked)))
        same(document[n + 1 + len(asked):], [SEP, END])


def check_bad_arguments(points=1):
    """ValueError for another behaviour and for forms below 1, as the docstring says.

    A misspelt behaviour would otherwise be read like another one, without a word.

    Look at both arguments before anything else; BEHAVIOURS holds the names."""
    for behaviour, forms in (("nre", 3), ("", 1), ("ORI", 1), ("ner", 0), ("qra", -1), ("ori", 0)):
        try:
            render(PARAGRAPH, behaviour, random.Random(8), forms)
        except ValueError:
            continue
        raise AssertionError(f"behaviour {behaviour!r} with {forms} forms gave no ValueError")


def check_the_same_seed(points=1):
    """All random numbers come from rng, and the records are not changed.

    Two runs with the same seed must give the same corpus, or no result can be repeated.

    No random.shuffle, random.random or random.Random() of your own; shuffle a new list, not the record's."""
    before, state = copy.deepcopy(PARAGRAPH), random.getstate()
    for name in ("ner", "qra"):
        found = [render(PARAGRAPH, name, random.Random(SEED), join_prob=0.5) for _ in range(5)]
        assert all(document == found[0] for document in found), "the same rng gives another document"
        others = {tuple(render(PARAGRAPH, name, random.Random(n), join_prob=0.5)) for n in range(50)}
        assert len(others) > 10, f"50 seeds give only {len(others)} different documents"
    assert PARAGRAPH == before, "render has changed the records that it was given"
    assert random.getstate() == state, "render has drawn from the module `random`, not from rng"


def check_encoding(points=3):
    """Ids of all pieces one after another. Every token of a piece has its role. SEP and END are one id each.

    roles has the same length as ids: a number, the place of the role in ROLES, for every token.

    A piece of five tokens adds [ROLES.index(role)] * 5; SEP adds tokenizer.sep, END tokenizer.end."""
    document = [("Hi.", "text"), SEP, (" a: b\n", "entity"), SEP, END]
    (ids, roles), (other, _) = encode_documents([document, [(" a: b\n", "entity"), END]], Letters())
    assert ids == [72, 105, 46, 1000, 32, 97, 58, 32, 98, 10, 1000, 1001], f"ids {ids}"
    names = [ROLES[role] for role in roles]
    assert names == ["text"] * 3 + ["sep"] + ["entity"] * 6 + ["sep", "end"], f"roles {names}"
    assert other == [32, 97, 58, 32, 98, 10, 1001] and encode_documents([], Letters()) == []


def check_many_documents(points=2):
    """Random documents: equal documents, equal pieces, one text in several roles, a role "sep" with text, no
    END. The tokens of the tokenizer are not letters.

    The text of a piece decides its ids, its role decides the roles. A role is no property of a text.

    A dict of text -> ids; the role comes from the piece; only a piece WITHOUT text is a special token."""
    rng = random.Random(f"{SEED} documents")
    for _ in range(40):
        texts = ["Hi.", " a\n", " a: b\n", " Oslo", "<|sep|>", "\n", "🙂", " ", "Hi. "]
        texts = rng.sample(texts, rng.randint(1, 9))
        pieces = [SEP, *product(texts, ROLES)]
        documents = [rng.choices(pieces, k=rng.randint(1, 7)) + rng.choice([[], [SEP, END]])
                     for _ in range(rng.randint(1, 5))]
        documents += [list(document) for document in documents[:rng.randint(0, 2)]]
        before, want = copy.deepcopy(documents), []
        for document in documents:
            ids, roles = [], []
            for text, role in document:
                new = Pairs().encode(text) or [{"sep": Pairs.sep, "end": Pairs.end}[role]]
                ids.extend(new)
                roles.extend(ROLES.index(role) for _ in new)
            want.append((ids, roles))
        found = encode_documents(documents, Pairs())
        assert len(found) == len(want), f"{len(found)} results for {len(want)} documents"
        for document, (ids, roles), (want_ids, want_roles) in zip(documents, found, want):
            assert ids == want_ids and roles == want_roles, (
                f"{document}: ids {ids}, roles {roles}, expected {want_ids}, {want_roles}")
            kinds = {type(number).__name__ for number in [*ids, *roles]}
            assert kinds <= {"int"}, f"{document}: numbers of type {kinds}, expected int"
        assert documents == before, "encode_documents has changed its documents"


def check_pieces_are_encoded_once(points=2):
    """Every distinct text once, all in one call of encode_batch.

    A corpus repeats its questions and openers thousands of times; the call costs more than a look-up.

    Collect the texts of all documents in a set or dict, encode them, then look every piece up."""
    letters, document = Letters(), [("Hi.", "text"), SEP, (" a\n", "entity"), (" a\n", "answer"), SEP, END]
    encode_documents([document, document, [(" b", "text"), END]], letters)
    asked = [sorted(filter(None, texts)) for texts in letters.asked]
    assert asked == [[" a\n", " b", "Hi."]], f"asked for {letters.asked}"


def check_pieces_are_running_text(points=1):
    """Because of the spaces, pieces encoded one by one are the tokens of the running text.

    Between two special tokens, the ids are those of the joined pieces.

    Look for a piece that begins without a space, or ends with one."""
    text = "Anna went to Oslo. What a lovely day! She felt proud."
    tokenizer = train_bpe([f"{text} Where did Anna go? Is this good?"] * 9, 320)
    for name in ("ori", "ner", "qra"):
        document = render(PARAGRAPH, name, random.Random(SEED), ALL_FORMS, 0.5)
        (ids, _), = encode_documents([document], tokenizer)
        *runs, _ = "".join(text or "\0" for text, _ in document).split("\0")
        want = [token for run in runs for token in tokenizer.encode(run) + [tokenizer.sep]]
        want[-1] = tokenizer.end
        assert ids == want, f"{name}: tokens {tokenizer.decode(ids)!r}, expected {tokenizer.decode(want)!r}"


def check_questions_can_be_parsed_back(points=1):
    """Opener, question, bridge and answer together are the line that parse_question reads.

    The answer ends the line, and every part begins with a space.

    Join the texts of the pieces and read them: " Q: Who is she? A: Anna\\n"."""
    rng = random.Random(f"{SEED} parse")
    for _ in range(100):
        document = render([SHE], "qra", rng, forms=ALL_FORMS)
        lines = "".join(text for text, role in document if role in ("question", "answer")).split("\n")[:-1]
        want = [{name: item[name] for name in ("question", "answer")} for item in SHE["questions"]]
        assert [parse_question(line) for line in lines] == want, f"{lines}"
        for text, role in render([ANNA], "ner", rng):
            assert role != "entity" or parse_entity(text) in ANNA["entities"], f"{text!r}"


def check_many_paragraphs(points=3):
    """Documents of random paragraphs hold every sentence, every entity and every question at its place.

    Records may be equal, and so may their entities and questions; `sentence` need not begin at 0.

    Take the place in the list (enumerate) or the object itself (`is`), not `==` or record["sentence"]."""
    rng = random.Random(f"{SEED} paragraphs")
    options = list(product(("ori", "ner", "qra"), (1, 4, ALL_FORMS), (0, 0.5, 1)))
    for behaviour, forms, join_prob in options * 12:
        paragraph = draw_paragraph(rng)
        before = copy.deepcopy(paragraph)
        document = render(paragraph, behaviour, rng, forms, join_prob)
        judge_document(document, paragraph, behaviour, forms, join_prob)
        assert paragraph == before, "render has changed the records that it was given"


def check_how_often_a_sentence_waits(points=1):
    """Every sentence that has a next one waits with probability join_prob, whatever the others do.

    A number drawn once for a document makes all its sentences wait, or none.

    rng.random() < join_prob inside the loop over the sentences."""
    rng, n, silent = random.Random(f"{SEED} waits"), 200, {**DAY, "questions": []}
    for join_prob in (0.15, 0.8):
        found, waited = Counter(), 0
        for _ in range(n):
            roles = [role for _, role in render([{**silent} for _ in range(13)], "qra", rng, 1, join_prob)]
            waits = tuple(b == "text" for a, b in zip(roles, roles[1:]) if a == "text")
            found.update(waits[k:k + 3] for k in (0, 3, 6, 9))
            waited += sum(waits) / (12 * n)
        assert abs(waited - join_prob) < 5 * (join_prob * (1 - join_prob) / (12 * n)) ** 0.5, (
            f"join_prob {join_prob}: {waited:.3f} of all sentences wait")
        for waits in product((False, True), repeat=3):
            want = join_prob ** sum(waits) * (1 - join_prob) ** (3 - sum(waits))
            share, slack = found[waits] / (4 * n), 6 * (want * (1 - want) / (4 * n)) ** 0.5
            assert abs(share - want) < slack, (
                f"join_prob {join_prob}: three sentences wait as {waits} in {share:.3f} of all cases, "
                f"expected {want:.3f}")
    assert plain("ner", join_prob=0.0).count(SEP) == 6, "a sentence waits with join_prob=0"


def check_the_order_of_questions(points=2):
    """The questions about several sentences are shuffled, "attitude" among them, every order equally often.
    Questions about one sentence keep their order, even where another sentence of the paragraph waited.

    In the order of the sentences, the position of a question would reveal its answer. Exchanging every place
    with any place is no even shuffle.

    rng.shuffle on a new list of all questions that will be asked, where more than one sentence waited."""
    who, did = SHE["questions"]
    first = {**DAY, "questions": ANNA["questions"]}
    two = [first, {**DAY, "questions": [who, *DAY["questions"], did]}]              # four are asked
    three = [first, {**DAY, "questions": [who]}, {**DAY, "questions": [did]}]       # three are asked
    rng = random.Random(f"{SEED} orders")
    for paragraph, orders, n in ((two, 24, 3000), (three, 6, 300)):
        found = Counter(tuple(render(paragraph, "qra", rng, 1, 1.0)) for _ in range(n))
        assert_even(found, orders, f"orders of the questions about {len(paragraph)} sentences")
    for single in ([{**SHE, "questions": [who, did, who]}], [ANNA]):
        orders = {tuple(pairs(render(single, "qra", rng, 1, 1.0))) for _ in range(20)}
        assert len(orders) == 1, "the questions of one sentence are shuffled"
    again = {tuple(pairs(plain("qra", join_prob=1.0))) for _ in range(20)}
    assert len(again) == 1, "the same rng gives another order"


def check_forms_of_questions(points=1):
    """forms = n: all of the first n OPENERS and BRIDGES occur, and each question draws its own.

    question_texts draws them; it needs `forms` and `rng`, and must be called once for every question.

    for text in question_texts(item["question"], forms, rng): a piece (text, "question")."""
    rng, n, silent = random.Random(f"{SEED} openers"), 90, {**DAY, "questions": []}
    paragraph = [silent, {**SHE, "questions": SHE["questions"] * 6}]
    for forms, join_prob in ((1, 0), (3, 1), (7, 0), (ALL_FORMS, 0), (ALL_FORMS, 1)):
        openers, bridges, empty = Counter(), Counter(), Counter()
        for _ in range(n):
            document = render(paragraph, "qra", rng, forms, join_prob)
            asked = [[text for text, _ in pieces]
                     for role, pieces in groupby(document, lambda piece: piece[1]) if role == "question"]
            assert len(asked) == 12, f"{len(asked)} of 12 questions, some of them equal"
            places = [next((k for k, text in enumerate(line) if text.endswith("?")), 0) for line in asked]
            before = ["".join(line[:k]).strip() for line, k in zip(asked, places)]
            behind = ["".join(line[k + 1:]).strip() for line, k in zip(asked, places)]
            openers.update(before)
            bridges.update(behind)
            for one, other in ((before, before[1:]), (behind, behind[1:]), (before, behind)):
                empty.update((a == "", b == "") for a, b in zip(one, other))
        for found, words in ((openers, OPENERS[:forms]), (bridges, BRIDGES[:forms])):
            assert set(found) == set(words), (f"forms={forms}: {len(found)} different openers or bridges, "
                                              f"expected {len(words)}")
        for both in product((False, True), repeat=2):
            share = empty[both] / empty.total()
            assert forms == 1 or 0.2 < share < 0.3, (f"forms={forms}: of two openers or bridges, {both} are "
                                                     f"empty in {share:.2f} of all cases, expected .25")


def check_forms(points=2):
    """forms = n: every entity line has one of the first n ENTITY_FORMS, all of them where n is larger, each
    equally often. Each line draws its own form.

    One form for a whole sentence, document or copy would make the other lines predictable.

    rng.randrange(min(forms, len(ENTITY_FORMS))) for each entity; a remainder (%) is not uniform."""
    rng, n, entities = random.Random(f"{SEED} forms"), 60, ANNA["entities"] * 5
    for forms in (2, 3, 4, 6, 9, ALL_FORMS):
        found = Counter(render_reading({**ANNA, "entities": entities[:1] * 2000}, "ner", rng, forms))
        assert_even(found, min(forms, len(ENTITY_FORMS)), f"entity lines with forms={forms}")
    paragraph = [{**ANNA, "entities": entities}, {**SHE, "entities": entities}]
    for forms, join_prob in product((1, 3, len(ENTITY_FORMS), ALL_FORMS), (0, 1)):
        size, found = min(forms, len(ENTITY_FORMS)), Counter()
        lines = [[f" {entity_line(**one, form=form)}\n" for form in range(size)] for one in entities * 2]
        for _ in range(n):
            document = render(paragraph, "ner", rng, forms, join_prob)
            texts = [text for text, role in document if role == "entity"]
            assert len(texts) == 20, f"{len(texts)} lines of 20 entities, some of them equal"
            drawn = [own.index(text) if text in own else None for own, text in zip(lines, texts)]
            assert None not in drawn, f"forms={forms} gives {texts[drawn.index(None)]!r}"
            for step in (1, 2, 10):                             # neighbours, equal entities, two sentences
                found.update((step, a, b) for a, b in zip(drawn, drawn[step:]))
        for step, a, b in product((1, 2, 10), range(size), range(size)):
            count, want = found[step, a, b], n * (20 - step) / size ** 2
            assert 0.15 * want < count < 2.2 * want, (
                f"forms={forms}: lines {step} apart: forms {a} and {b} {count} times, expected {want:.0f}")
