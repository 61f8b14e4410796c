"""The prompts for the two reading behaviours, and the parser of the replies.

    prompts = read_prompts("adapters/prompts.txt")
    prompts.messages("ner", "Anna took a train to Oslo.")           # a chat that ends with the sentence
    parse("ner", "Anna took a train to Oslo.", reply, prompts)      # (items, dropped, why)

A prompt is a task, worked examples as turns of the chat and the sentence; the paper (Zhou et al., ACL 2025)
does not print its own. Some chat templates refuse a system message. What the model copies must occur in the
sentence word for word; an item that fails a check is dropped and counted.
"""
import json
import re
from collections import Counter
from typing import NamedTuple

from data.annotated import KINDS, check_text, entity_problem, question_problem
from data.annotations import TYPES
from data.own_text import read_text

MAX_TEXT, IN_VAIN = 200, 10**8      # characters in a field of an item; read for braces that begin no JSON
SPANS, WORDS, MOST = 200, 4, 6      # of a schema: spans of a sentence, words of a span, entities
# Letters of scripts that put spaces between words; Thai, Lao, Chinese and Japanese do not.
LETTER = r"[^\W_\u0e00-\u0eff\u2e80-\U0010ffff]"
EDGE = re.compile(rf"(?!(?<={LETTER}){LETTER})")    # not between two letters of a word
WORD = re.compile(rf"['’]s\b|{LETTER}+(?:[-.'’](?!s\b){LETTER}+)*|\S")
FIELDS = {"ner": "entities", "qra": "questions"}                # behaviour -> the field of the JSON object
ITEMS = {"ner": ("text", "type", "about"), "qra": ("kind", "answer", "question")}       # fields of an item
TASKS = "ner", "qra", "answer"                      # sections of a file of prompts
SECTIONS = *TASKS, "labels", "slots", "edges"


class Prompts(NamedTuple):
    tasks: dict         # section -> its text
    labels: list        # before a sentence and a question
    slots: list         # of questions: (kind, beginnings, answers), "copied" for spans of the sentence
    edges: frozenset    # words at which no span begins or ends
    examples: dict      # sentence -> {behaviour: items}

    def chat(self, task, turns):
        """Pairs of what is shown and what is replied to it -> list of {"role", "content"}; the last reply is
        None."""
        before, chat = self.tasks[task] + "\n\n", []
        for shown, reply in turns:
            chat += [{"role": "user", "content": before + shown}, {"role": "assistant", "content": reply}]
            before = ""
        return chat[:-1]

    def messages(self, behaviour, sentence):
        """The chat for one sentence (str, one line) and a behaviour, "ner" or "qra"."""
        turns = [(text, json.dumps({FIELDS[behaviour]: items[behaviour]}, ensure_ascii=False))
                 for text, items in self.examples.items()]
        return self.chat(behaviour, [(f"{self.labels[0]} {text}", reply)
                                     for text, reply in [*turns, (sentence, None)]])

    def again(self, sentence, item):
        """The chat that asks one question (dict) about a sentence."""
        known = [(text, item) for text, items in self.examples.items() for item in items["qra"]]
        first, second = self.labels
        return self.chat("answer", [(f"{first} {text}\n{second} {item['question']}", item["answer"])
                                    for text, item in [*known, (sentence, item)]])

    def fixed(self, kind="content"):
        """The answers to questions of a kind that are not copied, such as Yes and No: a list."""
        return [answer for slot, _, answers in self.slots if slot == kind
                for answer in answers if answer != "copied"]

    def choices(self, sentence, item):
        """The JSON schema of the reply to `again`."""
        fixed = self.fixed(item["kind"])
        return {"enum": fixed if item["answer"] in fixed else spans(sentence, self.edges)}

    def schema(self, behaviour, sentence):
        """The JSON schema (dict) of a reply about one sentence: a list of a fixed length, in which each
        entity and each copied answer is out of another part of the sentence: a small model repeats itself."""
        found, items = spans(sentence, self.edges), []

        def parts(n):
            return (found[i * len(found) // n:(i + 1) * len(found) // n] or found for i in range(n))
        if behaviour == "ner":
            for part in parts(min(MOST, 1 + len(found) // 8)):
                items.append({"text": {"enum": part}, "type": {"enum": TYPES},
                              "about": {"type": "string", "maxLength": 30}})
        else:
            copied = parts(sum(answers == ["copied"] for *_, answers in self.slots))
            for kind, starts, answers in self.slots:
                given = next(copied) if answers == ["copied"] else answers
                start = "|".join(map(re.escape, starts)).replace("\\ ", " ")      # llama.cpp knows no "\ "
                pattern = rf'^({start})( [^?"\\\n]{{2,60}})?\?$'
                items.append({"kind": {"const": kind}, "answer": {"enum": given},
                              "question": {"type": "string", "pattern": pattern}})
        return shape({FIELDS[behaviour]: {"type": "array", "prefixItems": list(map(shape, items)),
                                          "minItems": len(items), "maxItems": len(items)}})


def shape(fields):
    """The schema of a JSON object with all of these fields (dict: name -> schema) and no other."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def spans(sentence, edges):
    """What may be copied, in the order of the sentence: its runs of 1 to WORDS words, the shortest SPANS; no
    edge word at their ends, no comma or quotation mark inside."""
    words = [match.span() for match in WORD.finditer(sentence)]
    runs = [(i, n, sentence[words[i][0]:words[i + n][1]])
            for n in range(WORDS) for i in range(len(words) - n)]
    found = [run for run in runs if re.fullmatch(r"\w([^,;:!?\"“”()—–]*\w)?", run[2])
             and not {run[2].split()[0].lower(), run[2].split()[-1].lower()} & edges]
    return list(dict.fromkeys(text for *_, text in sorted(found[:SPANS]))) or [sentence]


def read_prompts(path):
    """A file as prompts.txt, which explains itself -> Prompts. ValueError "file:line: ..." for a bad one."""
    sections, name = [], None                           # (name, [(line number, line), ...])
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.startswith("["):
            name = line.strip()[1:-1]
            if name not in (*SECTIONS, "example") or name != "example" and name in dict(sections):
                raise ValueError(f"{path}:{number}: {line:.60}, expected [example] or, once each, {SECTIONS}")
            sections.append((name, []))
        elif not line.startswith("#") and (line.strip() or name in TASKS):
            if not name:
                raise ValueError(f"{path}:{number}: expected [ner] or another section before this line")
            sections[-1][1].append((number, line.strip()))
    text = {name: "\n".join(line for _, line in lines).strip() for name, lines in sections}
    if absent := [name for name in (*SECTIONS, "example") if not text.get(name)]:
        raise ValueError(f"{path}: no section [{absent[0]}], or nothing in it")
    if len(labels := text["labels"].splitlines()) != 2:
        raise ValueError(f"{path}: {len(labels)} lines in [labels], expected those of sentence and question")
    prompts = Prompts({name: text[name] for name in TASKS}, labels, [], frozenset(text["edges"].split()), {})
    for number, line in dict(sections)["slots"]:
        parts = [part.split(", ") for part in line.split(" | ")]
        if len(parts) != 3 or parts[0][0] not in KINDS:
            raise ValueError(f"{path}:{number}: {line:.60}, expected kind | beginnings | answers, "
                             f"kind: {KINDS}")
        prompts.slots.append((parts[0][0], *parts[1:]))
    for (number, sentence), *lines in [lines for name, lines in sections if name == "example" and lines]:
        if " | " in sentence:
            raise ValueError(f"{path}:{number}: {sentence:.60}, expected the sentence of these items first")
        items = prompts.examples[sentence] = {behaviour: [] for behaviour in FIELDS}
        for number, line in lines:
            behaviour = "qra" if line.split(" | ")[0] in KINDS else "ner"
            item = dict(zip(ITEMS[behaviour], line.split(" | ", 2)))
            if problem := item_problem(behaviour, item, sentence, prompts.fixed()):
                raise ValueError(f"{path}:{number}: {problem}: {line:.60}")
            items[behaviour].append(item)
    return prompts


def behind_thought(reply):
    """What stands behind </think>, unless the JSON has begun before it."""
    thought, end, rest = reply.partition("</think>")
    return rest if end and not thought.lstrip().startswith(("{", "`")) else reply


def find_object(reply):
    """The one JSON object in a reply (str), whatever stands around it -> (dict, None), or (None, why not).
    Two different objects are an error: one may be part of the sentence."""
    reply = behind_thought(reply)
    if reply.lstrip().startswith("<think>"):
        return None, "a thought without an end"
    found, after, in_vain = None, 0, 0
    for brace in re.finditer(r'\{(?=\s*["}])', reply):
        if brace.start() < after:                       # inside of an object
            continue
        try:
            value, after = json.JSONDecoder().raw_decode(reply, brace.start())
        except (ValueError, RecursionError) as error:   # a brace that is not JSON
            in_vain += getattr(error, "pos", len(reply))
            if in_vain > IN_VAIN:
                break
            continue
        if found not in (None, value):
            return None, "several JSON objects"
        found = value
    return found, "no JSON object" if found is None else None


def occurs(span, sentence):
    """Whether a span occurs in a sentence in whole words: "Ann" does in "Ann's hat", not in "Anna left."."""
    at = sentence.find(span)
    while at >= 0 and not (EDGE.match(sentence, at) and EDGE.match(sentence, at + len(span))):
        at = sentence.find(span, at + 1)
    return at >= 0


def item_problem(behaviour, item, sentence, fixed):
    """Why an entity ("ner") or a question with its answer ("qra") is dropped, or None if it is valid; fixed:
    the answers to questions of content that need not occur in the sentence."""
    try:
        for name in ITEMS[behaviour]:
            check_text(item[name], name)
            if len(item[name]) > MAX_TEXT:
                raise ValueError
    except (ValueError, KeyError, TypeError):
        return f"a field is missing, or not one line of at most {MAX_TEXT} characters"
    if behaviour == "ner":
        checks = {"unknown type": item["type"] not in TYPES,
                  "entity not in the sentence": not occurs(item["text"], sentence),
                  "entity that its line would hide": entity_problem(item, sentence)}
    else:
        copied = item["kind"] == "content" and item["answer"] not in fixed
        checks = {"unknown kind": item["kind"] not in KINDS,
                  "answer not in the sentence": copied and not occurs(item["answer"], sentence),
                  "question without '?' at its end, or with a label": question_problem(item, sentence)}
    return next((problem for problem, found in checks.items() if found), None)


def closed(reply, field):
    """A reply that was cut off in its list, closed behind the last item that is complete; "" without one."""
    reply, end = behind_thought(reply), 0
    place = re.search(rf'\{{\s*"{field}"\s*:\s*\[', reply)
    while place:
        try:
            end = json.JSONDecoder().raw_decode(reply, place.end())[1]
        except (ValueError, RecursionError):
            break
        place = re.compile(r"\s*,\s*").match(reply, end)
    return f"{reply[:end]}]}}" if end else ""


def parse(behaviour, sentence, reply, prompts, finish=None):
    """Reads a reply (str; finish: its finish_reason) -> (items, dropped, why): the valid ones, a Counter of
    reasons for the others, and None or why the reply cannot be used. No entities are fine. Of a list that was
    cut off the complete items count."""
    field, dropped, items = FIELDS[behaviour], Counter(), {}
    name = "text" if behaviour == "ner" else "question"
    value, why = find_object(reply)
    if finish == "length" and field not in (value or {}) and (whole := closed(reply, field)):
        value, why = find_object(whole)
        dropped["the rest of a list that was cut off at --max_tokens"] = 1
    listed = value.get(field) if value else None
    if not isinstance(listed, list):
        end = {None: "", "stop": "", "length": ", cut off at --max_tokens"}
        why = why or f"no list '{field}' in the JSON"
        return [], Counter(), why + end.get(finish, f", finish_reason {str(finish):.90}")
    for item in listed:
        if problem := item_problem(behaviour, item, sentence, prompts.fixed()):
            dropped[problem] += 1
        elif item[name] in items:
            dropped["listed twice"] += 1
        else:
            items[item[name]] = {key: item[key] for key in ITEMS[behaviour]}
    usable = items or (behaviour == "ner" and not listed)
    return list(items.values()), dropped, None if usable else "no valid item"


def agree(reply, answer, exact):
    """Whether a second answer is the first one: the same words, or, unless exact, one holds the other and at
    most as many words besides; case, English articles and what is no word do not count."""
    words = [" ".join(word for word in re.findall(r"\w+", text.rpartition("</think>")[2].casefold())
                      if word not in ("a", "an", "the")) for text in (reply, answer)]
    less, more = sorted(words, key=len)
    holds = f" {less} " in f" {more} " and len(more.split()) <= 2 * len(less.split())
    return bool(less) and (less == more or holds and not exact)
