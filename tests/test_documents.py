"""Annotated paragraphs as documents: rendering, other layouts, tokens with roles, an annotated corpus."""
import json
import random
import re
from itertools import product

import pytest

import train
from data import annotated, annotations, documents, stories, world
from data.annotations import ALL_FORMS, BRIDGES, OPENERS, lines_of, parse_entities, parse_question
from data.batches import plan_batches
from data.documents import END, ROLES, SEP, encode_documents, render, render_reading
from data.tokenizer import train_bpe
from test_annotations import PARAGRAPH

WORLD = list(world.annotated(400, seed=3))


def test_plain_rendering_is_the_format_of_the_docstring():
    plain, rng = [PARAGRAPH[0], PARAGRAPH[2]], random.Random(0)
    first, last = ("Anna took a train to Oslo.", "text"), (" So it goes.", "text")
    assert render(plain, "ori", rng) == [first, last, END]
    assert render(plain, "ner", rng, forms=1) == [
        first, SEP, (" Anna: person, traveller\n", "entity"), (" Oslo: place, goal, far away\n", "entity"),
        SEP, last, SEP, (" none\n", "entity"), SEP, END]
    assert render(plain, "qra", rng, forms=1) == [
        first, SEP, (" Where did Anna go?", "question"), (" Oslo\n", "answer"),
        (" Did Anna stay?", "question"), (" No\n", "answer"), SEP, last, SEP, SEP, END]
    with pytest.raises(ValueError, match="behaviour 'nre'"):
        render(plain, "nre", rng)


def test_parsing_inverts_rendering_over_all_draws():
    rng, seen = random.Random(1), {forms: set() for forms in (1, 2, 5, ALL_FORMS)}
    for forms, record, _ in product(seen, PARAGRAPH, range(200)):
        ner, qra = (render_reading(record, behaviour, rng, forms) for behaviour in ("ner", "qra"))
        seen[forms] |= {text.strip() for text, _ in qra}
        assert parse_entities("".join(text for text, _ in ner)) == record["entities"]
        found = map(parse_question, lines_of("".join(text for text, _ in qra)))
        assert [{"kind": q["kind"], **own} for q, own in zip(record["questions"], found, strict=True)] \
            == record["questions"]
    assert seen[ALL_FORMS] >= set(OPENERS[1:] + BRIDGES[1:]) and not seen[1] & set(OPENERS + BRIDGES)
    assert seen[2] & set(OPENERS) == {"Q:"}


def test_a_joined_reading_stands_behind_the_last_sentence():
    """Nothing is lost but the mood of earlier sentences; the questions come in any order."""
    rng, orders, n = random.Random(0), set(), len(PARAGRAPH)
    asked = [(q["question"], q["answer"]) for record in PARAGRAPH for q in record["questions"]
             if record is PARAGRAPH[-1] or q["kind"] != "attitude"]
    for behaviour in ["ner"] + ["qra"] * 20:
        *pieces, end = render(PARAGRAPH, behaviour, rng, forms=1, join_prob=1.0)
        assert [text.strip() for text, _ in pieces[:n]] == [record["text"] for record in PARAGRAPH]
        assert pieces[n] == pieces[-1] == SEP and end == END
        texts = [text.strip() for text, _ in pieces[n + 1:-1]]
        if behaviour == "ner":
            entities = [entity["text"] for record in PARAGRAPH for entity in record["entities"]]
            assert [text.split(":")[0] for text in texts] == entities
        else:
            pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
            assert sorted(pairs) == sorted(asked)
            orders.add(pairs)
    assert len(orders) > 5
    halves = [render(PARAGRAPH, "ner", rng, join_prob=0.5).count(SEP) for _ in range(50)]
    assert set(halves) == {2 * readings for readings in range(1, n + 1)}


def test_what_holds_now_alone_is_not_asked_later():
    """The others are; behind its own sentence it is asked."""
    first, last = ({**record, "questions": [{**question, "now": True} for question in record["questions"][:1]]
                    + record["questions"][1:]} for record in PARAGRAPH[:2])
    apart, together = (render([first, last], "qra", random.Random(0), 1, join) for join in (0.0, 1.0))
    asked = [[text.strip() for text, role in pieces if role == "question"] for pieces in (apart, together)]
    assert asked[0] == ["Where did Anna go?", "Did Anna stay?", "Who is she?", "Is this good or bad?"]
    assert sorted(asked[1]) == sorted(asked[0][1:])


@pytest.mark.parametrize("whole, join_prob", [(0.0, 1.0), (0.0, 0.4), (0.7, 0.0), (0.6, 0.5)])
def test_sentences_wait_as_the_level_tells_and_less_often_for_entities(whole, join_prob):
    """`whole`: all of a document; in the others, and for entities by NER_JOIN, each sentence by itself."""
    at = world.Level(sentences=(4, 4), whole=whole, join_prob=join_prob)
    rng = random.Random(0)
    paragraphs = [world.annotate(rng, world.draw_paragraph(rng, at), 0, at) for _ in range(900)]
    readings = {behaviour: [document.count(SEP) // 2 for document in documents.reading_documents(
        paragraphs, behaviour, 1, (at,))] for behaviour in ("qra", "ner")}
    waits = {behaviour: sum(4 - n for n in found) / 3 / 900 for behaviour, found in readings.items()}
    expected = whole + (1 - whole) * join_prob
    assert waits["qra"] == pytest.approx(expected, abs=0.05)
    assert waits["ner"] == pytest.approx(documents.NER_JOIN * expected, abs=0.05)
    assert readings["qra"].count(1) / 900 == pytest.approx(whole + (1 - whole) * join_prob ** 3, abs=0.06)


def test_pieces_encode_to_the_tokens_of_the_running_text():
    tokenizer = train_bpe([record["text"] for record in PARAGRAPH] * 20 + ["Q: A: Oslo\n"] * 20, 300)
    rng = random.Random(2)
    rendered = [render(PARAGRAPH, behaviour, rng) for behaviour in ("ori", "ner", "qra") * 30]
    for pieces, (ids, roles) in zip(rendered, encode_documents(rendered, tokenizer)):
        *runs, _ = "".join(text or "\0" for text, _ in pieces).split("\0")
        wanted = [token for run in runs for token in tokenizer.encode(run) + [tokenizer.sep]]
        assert ids == wanted[:-1] + [tokenizer.end] and len(roles) == len(ids)
        answers = tokenizer.decode([i for i, role in zip(ids, roles) if ROLES[role] == "answer"])
        assert answers == "".join(text for text, role in pieces if role == "answer")


@pytest.mark.parametrize("behaviour", ["ner", "qra"])
def test_another_layout_keeps_every_sentence_question_and_answer(behaviour):
    """In order, and with its role; of the separators none is left."""
    rng = random.Random(0)
    for paragraph in WORLD[-200:]:
        document = render(paragraph, behaviour, rng)
        varied = documents.vary_layout(document, rng)
        sentences = [record["text"] for record in paragraph]
        entities = [(e["text"], e["type"]) for record in paragraph for e in record["entities"]]
        stripped = [(text.strip(), role) for text, role in varied]
        assert SEP not in varied and varied[-1] == END and all(text for text, _ in varied[:-1])
        assert [text for text, role in stripped if role == "text" and text in sentences] == sentences
        if behaviour == "qra":
            kept = [(text.strip(), role) for text, role in document if role == "answer" or text.endswith("?")]
            assert [(text, role) for text, role in stripped if role == "answer" or text.endswith("?")] == kept
        elif any(role == "answer" for _, role in varied):               # reworded: each entity, then its type
            assert [text for text, role in stripped if role == "answer"] == [kind for _, kind in entities]
            named = [name for name, _ in entities]
            assert [text for text, role in stripped if role == "entity" and text in named] == named


def test_layouts_differ_and_are_as_frequent_as_the_level_tells():
    rng, document = random.Random(1), render(WORLD[-1], "qra", random.Random(1))
    varied = {"".join(text for text, _ in documents.vary_layout(document, rng)) for _ in range(200)}
    assert len(varied) > 120 and sum("\n\n" in text for text in varied) > 40
    other = [SEP not in document for document in documents.reading_documents(WORLD * 4, "qra", seed=1)]
    for at, begin in zip(world.LEVELS, [0, *(level.until for level in world.LEVELS)]):
        some = other[round(begin * len(other)) + 1:round(at.until * len(other)) - 1]
        assert sum(some) / len(some) == pytest.approx(at.varied, abs=0.12 if at.varied else 0)


def test_random_words_hold_no_answer():
    rng, records = random.Random(2), [record for paragraph in WORLD for record in paragraph]
    phrases = [documents.phrase(rng) for _ in range(6000)]
    answers = {word for record in records for item in record["questions"] for word in item["answer"].split()}
    answers |= {entity["type"] for record in records for entity in record["entities"]}
    assert not answers & {word for text in phrases for word in re.findall(r"\w+", text)}
    assert 0.3 < phrases.count("") / len(phrases) < 0.37


def test_sources_hold_the_training_part_alone(tmp_path):
    """Every third paragraph of each file of an annotated corpus is held out."""
    files = [annotated.read_annotations(path) for path in annotated.PRIMER]
    training, held_out = annotated.annotated_text("primer")
    assert held_out == [p for whole in files for p in whole[2::3]]
    assert training == [p for whole in files for i, p in enumerate(whole) if i % 3 < 2]
    whole = sum(files, [])
    annotations.write_annotations(tmp_path / "two.jsonl", whole[:2])
    with pytest.raises(ValueError, match="2 paragraphs, every third.* held out"):
        annotated.annotated_text(str(tmp_path / "two.jsonl"))
    tokenizer = train_bpe([record["text"] for paragraph in whole for record in paragraph], 1000)
    sources = list(documents.text_sources("primer", tokenizer, 384, 1))
    pieces = sum(-(-len(paragraph) // documents.PIECE) for paragraph in training)
    assert len(sources[0]) == pieces and all(3 * pieces < len(rows) <= 4 * pieces for rows in sources[1:])
    texts = [tokenizer.decode(rows.tokens.tolist()) for rows in sources]
    assert all(paragraph[0]["text"] in texts[0] for paragraph in training)
    assert not any(record["text"] in text for paragraph in held_out for record in paragraph for text in texts)


def test_questions_of_ones_own_teach_no_entities(tmp_path, capsys):
    """A text of them is in no D_NER, whose part of the run the questions take; what is too long is told."""
    corpus, lines = tmp_path / "own.jsonl", [json.dumps({"text": f"Fry {n} onions.", "questions": [
        {"question": "How many?", "answer": str(n)}]}) for n in range(6)]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    config = train.Config(corpus=str(corpus), student_tokens=2000, n_vocab=400, corpus_share=0.5)
    tokenizer, words = documents.course_tokenizer(config.corpus, 400), "word " * 400
    paragraphs = documents.world_paragraphs(2000, config, 0)
    for listed, shares in ((0, [0.05, 0, 0.45]), (8, [0.05, 0.06, 0.39])):
        mix = documents.data_mix("brd", config, tokenizer, paragraphs)
        assert [len(rows) for rows in mix.sources[3:]] == [4, listed, 16]
        assert mix.shares[3:] == pytest.approx(shares) and sum(mix.shares) == pytest.approx(1)
        assert plan_batches(mix, 2000, 512, 0)
        assert len(documents.data_mix("plain", config, tokenizer, paragraphs).sources) == 2
        lines[:2] = [json.dumps({**json.loads(line), "entities": []}) for line in lines[:2]]
        corpus.write_text("\n".join(lines), encoding="utf-8")
        annotated.annotated_text.cache_clear()
    assert capsys.readouterr().out == ""
    lines.append(json.dumps({"text": words.strip(), "questions": []}))
    corpus.write_text("\n".join(lines), encoding="utf-8")
    annotated.annotated_text.cache_clear()
    list(documents.text_sources(config.corpus, tokenizer, 64, 0))
    said = "left out: 4 of 20 qra readings, longer than --block_size=64\n"
    assert capsys.readouterr().out == f"{corpus}: {said}"
    annotated.annotated_text.cache_clear()


@pytest.mark.parametrize("corpus, n_vocab", [("world", 1024), ("open", 1536)])
def test_a_run_reads_the_levels_of_its_corpus_and_nothing_twice(corpus, n_vocab):
    """Its paragraphs and its plain text suffice for all its tokens; the open world has stories in both."""
    tokenizer, tokens = documents.course_tokenizer(corpus, n_vocab), 30_000
    config = train.Config(corpus=corpus, student_tokens=tokens, n_vocab=n_vocab)
    sources, shares = documents.reading_mix(tokens, config, tokenizer, 1)
    for rows, share in zip(sources, shares, strict=True):
        assert (rows.lengths - 1).sum() > 0.98 * share * tokens
    for rows in (sources[0], sources[2], documents.data_mix("plain", config, tokenizer, None).sources[0]):
        assert (" went back to the " in tokenizer.decode(rows.tokens.tolist())) == (corpus == "open")
    assert documents.levels_of(corpus) is (stories.OPEN if corpus == "open" else world.LEVELS)
    assert documents.levels_of("primer") is documents.levels_of("my.jsonl") is world.LEVELS


def test_the_vocabulary_of_the_open_world_has_common_english_words():
    """They come from the primer; words that are made up for one paragraph are none of them."""
    known = {name: documents.course_tokenizer(*name) for name in (("world", 1024), ("open", 1536))}
    common = {word for paragraph in annotated.annotated_text("primer")[0] for record in paragraph
              for word in re.findall(r"[a-z]{4,}", record["text"])}
    single = {name: sum(len(t.encode(f" {word}")) == 1 for word in common) for name, t in known.items()}
    assert single["open", 1536] > 1.3 * single["world", 1024]


def test_the_open_world_has_arms_only_with_a_cache_of_its_own(tmp_path):
    config = train.Config(corpus="open")
    assert set(documents.run_inputs(config, [], tmp_path)) == {"task files"} and config.arms == ""
    with pytest.raises(ValueError, match="--arms=kd has no effect without a --cache of this corpus"):
        documents.run_inputs(train.Config(corpus="open", arms="kd"), [], tmp_path)
    with pytest.raises(ValueError, match="--corpus_share=0.5 has no effect without annotations as --corpus"):
        documents.run_inputs(train.Config(corpus="open", corpus_share=0.5), [], tmp_path)


@pytest.mark.parametrize("place", documents.TEST_LEVELS)
def test_fresh_text_is_of_pairs_that_no_training_text_tells(place):
    drawn, records = documents.fresh_text(place, 60)
    assert documents.fresh_text(place, 60)[1] == records
    at = documents.TEST_LEVELS[place]
    for paragraph, some in zip(drawn, records, strict=True):
        assert all(world.held_out(fact.person, fact.value) for fact in paragraph.facts if fact.person)
        assert [record["text"] for record in some] == paragraph.sentences
        assert at.sentences[0] <= len(some) <= at.sentences[1]
        for k, record in enumerate(some):
            known = world.all_answers(paragraph, k)
            assert all(known[item["question"]] == item["answer"] for item in record["questions"])


def test_two_who_did_alike_are_asked_about_alike():
    """All at the end: whoever takes the person named last, or first, is right half of the time."""
    drawn, records = documents.fresh_text("alike", 300)
    right = {True: 0, False: 0}
    for paragraph, (first, last) in zip(drawn, records, strict=True):
        one, other = paragraph.facts
        assert one.kind == other.kind and one.person != other.person and first["questions"] == []
        for item in last["questions"]:
            assert item["kind"] == "content" and "now" not in item
            if item["answer"] not in ("Yes", "No"):
                right[item["answer"] in (one.person, one.value, one.day)] += 1
    assert right[True] == pytest.approx(right[False], rel=0.1) and right[True] > 400
