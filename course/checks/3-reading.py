"""Checks of assignment 3, D_ORI, D_NER, D_QRA (data/documents.py). The docstring of a check is its hint."""
import copy
import random

from data.annotations import ALL_FORMS, ENTITY_FORMS, parse_entity, parse_question
from data.documents import END, ROLES, SEP, encode_documents, render
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


class Letters:
    """A tokenizer of letters that notes what it is asked for."""
    sep, end = 1000, 1001

    def __init__(self):
        self.asked = []

    def encode_batch(self, texts):
        self.asked.append(list(texts))
        return [[ord(letter) for letter in text] for text in texts]


def plain(behaviour, paragraph=PARAGRAPH, seed=1, **options):
    return render(paragraph, behaviour, random.Random(seed), forms=1, **options)


def same(found, want):
    k = next((k for k, (a, b) in enumerate(zip(found, want)) if a != b), min(len(found), len(want)))
    assert found == want, (f"piece {k} is {found[k:k + 1]}, expected {want[k:k + 1]}; {len(found)} pieces, "
                           f"expected {len(want)}")


def pairs(document):
    """Questions with their answers, in the order asked."""
    said = [piece for piece in document if piece[1] in ("question", "answer")]
    roles = [role for _, role in said]
    assert roles == ["question", "answer"] * (len(said) // 2), f"{said}: an answer must follow its question"
    return list(zip(said[::2], said[1::2]))


def check_ori(points=2):
    """D_ORI is the text alone: one piece a sentence, no separator, END last."""
    same(plain("ori"), TEXTS + [END])
    same(plain("ori", join_prob=1.0), TEXTS + [END])


def check_ner(points=3):
    """D_NER: a sentence, SEP, a piece for each of ITS entities, SEP, the next sentence ... END. A piece ends
    its line."""
    same(plain("ner"), [TEXTS[0], SEP, *ANNA_NER, SEP, TEXTS[1], SEP, *NONE, SEP,
                        TEXTS[2], SEP, *SHE_NER, SEP, END])


def check_qra(points=3):
    """D_QRA likewise. A question and its answer are two pieces with different roles, because answers have a
    larger weight in the loss."""
    same(plain("qra"), [TEXTS[0], SEP, *ANNA_QRA, *ANNA_MOOD, SEP, TEXTS[1], SEP, *DAY_QRA, SEP,
                        TEXTS[2], SEP, *SHE_QRA, SEP, END])


def check_spaces(points=1):
    """Every piece but the first begins with one space, after any piece: " Oslo" is one token, "Oslo" is
    three."""
    for name in ("ori", "ner", "qra"):
        for document in (plain(name), render(PARAGRAPH, name, random.Random(2)), plain(name, [DAY]),
                         plain(name, [SHE, DAY])):
            first, *rest = [text for text, role in document if role not in ("sep", "end")]
            assert first[0] != " ", f"{name}: {document}"
            assert all(text[0] == " " and text[1] != " " for text in rest), f"{name}: {document}"


def check_nothing_to_say(points=1):
    """A sentence without entities reads "none". One without questions has an empty reading between two
    SEP."""
    same(plain("ner", [DAY]), [("What a lovely day!", "text"), SEP, *NONE, SEP, END])
    same(plain("qra", [{**DAY, "questions": []}]), [("What a lovely day!", "text"), SEP, SEP, END])


def check_joined_sentences(points=2):
    """join_prob: a sentence waits and is read together with the next one. All that waited is one reading
    between ONE pair of SEP: its entities in order, "none" only where it has no entity. The last sentence
    never waits."""
    same(plain("ner", join_prob=1.0), [*TEXTS, SEP, *ANNA_NER, *SHE_NER, SEP, END])
    same(plain("ner", [ANNA], join_prob=1.0), [TEXTS[0], SEP, *ANNA_NER, SEP, END])
    same(plain("ner", [{**DAY}, DAY], join_prob=1.0)[2:], [SEP, *NONE, SEP, END])


def check_the_order_of_questions(points=2):
    """Questions about several sentences are shuffled (rng.shuffle), or their position would reveal their
    answer. Questions about one sentence keep their order."""
    orders = {tuple(pairs(plain("qra", seed=seed, join_prob=1.0))) for seed in range(60)}
    assert len(orders) == 6, f"{len(orders)} of 6 orders of three questions"
    assert len({tuple(pairs(plain("qra", [SHE], seed=seed))) for seed in range(20)}) == 1
    again = {tuple(pairs(plain("qra", join_prob=1.0))) for _ in range(20)}
    assert len(again) == 1, "the same rng gives another order"


def check_attitude_is_asked_of_the_last_sentence(points=2):
    """"Is this good or bad?" after three sentences means the third: leave out the questions of kind
    "attitude" of the sentences that waited."""
    for paragraph, asked in ((PARAGRAPH, ANNA_QRA + SHE_QRA), ([ANNA, DAY], ANNA_QRA + DAY_QRA)):
        document, n = plain("qra", paragraph, join_prob=1.0), len(paragraph)
        same(document[:n + 1], [*TEXTS[:n], SEP])
        same(sorted(pairs(document)), sorted(pairs(asked)))
        same(document[n + 1 + len(asked):], [SEP, END])


def check_how_often_a_sentence_waits(points=1):
    """Of the sentences that have a next one, a share of join_prob waits: rng.random() < join_prob, once for
    each."""
    rng, waited = random.Random(3), 0
    for _ in range(1000):
        document = render(PARAGRAPH, "qra", rng, forms=1, join_prob=0.3)
        waited += 6 - document.count(SEP)                       # a sentence that waits saves two separators
    assert 0.26 < waited / 4000 < 0.34, f"{waited / 4000:.2f} of the sentences waited, expected .30"
    assert plain("ner", join_prob=0.0).count(SEP) == 6


def check_forms(points=2):
    """forms = n: draw the form of every entity line from the first n of ENTITY_FORMS, and questions by
    question_texts(.., n, rng)."""
    rng, lines, openers = random.Random(4), set(), set()
    for _ in range(300):
        for text, role in render([ANNA], "ner", rng):
            if role == "entity":
                lines.add(text)
                assert parse_entity(text) in ANNA["entities"]
        openers.add(render([ANNA], "qra", rng)[2])
    want = 2 * len(ENTITY_FORMS)
    assert len(lines) == want, f"{len(lines)} different lines of two entities, expected {want}"
    assert len(openers) > 10, "all questions have the same opener"
    documents = [render([ANNA], "ner", rng, forms=2) for _ in range(100)]
    lines = {text for document in documents for text, role in document if role == "entity"}
    assert lines == {" Anna: person, traveller\n", " Anna is a person, traveller\n", " Oslo: place, goal\n",
                     " Oslo is a place, goal\n"}, f"forms=2 gives {sorted(lines)}"


def check_questions_can_be_parsed_back(points=1):
    """Opener, question, bridge and answer together are the line that parse_question reads."""
    rng = random.Random(5)
    for _ in range(200):
        document = render([SHE], "qra", rng, forms=ALL_FORMS)
        lines = "".join(text for text, role in document if role in ("question", "answer")).split("\n")[:-1]
        want = [{name: item[name] for name in ("question", "answer")} for item in SHE["questions"]]
        assert [parse_question(line) for line in lines] == want, f"{lines}"


def check_the_same_seed(points=1):
    """All random numbers come from rng, and the records are not changed."""
    before = copy.deepcopy(PARAGRAPH)
    for name in ("ner", "qra"):
        found = [render(PARAGRAPH, name, random.Random(6), join_prob=0.5) for _ in range(5)]
        assert all(document == found[0] for document in found)
    assert PARAGRAPH == before, "render has changed the records that it was given"


def check_bad_arguments(points=1):
    """ValueError for another behaviour and for forms below 1, as the docstring says."""
    for behaviour, forms in (("nre", 2), ("ner", 0)):
        try:
            render(PARAGRAPH, behaviour, random.Random(8), forms)
        except ValueError:
            continue
        raise AssertionError(f"behaviour {behaviour!r} with {forms} forms gave no ValueError")


def check_encoding(points=3):
    """Ids of all pieces one after another. Every token of a piece has its role. SEP and END are one id
    each."""
    document = [("Hi.", "text"), SEP, (" a: b\n", "entity"), SEP, END]
    (ids, roles), (other, _) = encode_documents([document, [(" a: b\n", "entity"), END]], Letters())
    assert ids == [72, 105, 46, 1000, 32, 97, 58, 32, 98, 10, 1000, 1001], f"ids {ids}"
    names = [ROLES[role] for role in roles]
    assert names == ["text"] * 3 + ["sep"] + ["entity"] * 6 + ["sep", "end"], f"roles {names}"
    assert other == [32, 97, 58, 32, 98, 10, 1001] and encode_documents([], Letters()) == []


def check_pieces_are_encoded_once(points=2):
    """Every distinct piece once, all in one call of encode_batch."""
    letters, document = Letters(), [("Hi.", "text"), SEP, (" a\n", "entity"), (" a\n", "entity"), SEP, END]
    encode_documents([document, document], letters)
    assert [sorted(texts) for texts in letters.asked] == [[" a\n", "Hi."]], f"asked for {letters.asked}"


def check_pieces_are_running_text(points=1):
    """Because of the spaces, pieces encoded one by one are the tokens of the running text."""
    text = "Anna went to Oslo. What a lovely day! She felt proud."
    tokenizer = train_bpe([f"{text} Where did Anna go? Is this good?"] * 9, 320)
    for name in ("ori", "ner", "qra"):
        document = render(PARAGRAPH, name, random.Random(9))
        (ids, _), = encode_documents([document], tokenizer)
        if name == "ori":
            assert ids == tokenizer.encode(text) + [tokenizer.end]
        found = tokenizer.decode(ids).replace("<|sep|>", "").replace("<|end|>", "")
        assert found == "".join(piece for piece, _ in document)
