"""The HTML of the report: how it looks, what it says, tables, and text as students read it.

    html_table([("entity F1", ["0.9", "1.0"])], head=["brd", "distilled"])
    coloured("Anna left.", [{"text": "Anna", "type": "person"}], [])            # a sentence with its entities

Whatever comes from a text, a student or an option goes through `escape`: markup in it is shown, not run. PAGE forbids every
script and every address besides. Colours follow the reader's system, light or dark; nothing is told by colour alone.
"""

import re
from html import escape

from data import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f1f3f5; --line: #c9ced4; --good: #00654a; --bad: #a84300 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --paper: #15181c; --soft: #22272d; --line: #454c54; --good: #4fd0a5; --bad: #ff9a57 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h1 { line-height: 1.2; margin: .5rem 0 } h2 { margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem }
code, pre { font: 14px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap } code span { display: inline-block }
pre { background: var(--soft); padding: .75rem }
.two { display: grid; gap: 1rem 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); align-items: start }
figure { margin: 0 } figcaption { margin-top: .5rem } .note code { font-size: 12px } svg { display: block; width: 100%; max-width: 34rem; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem .2rem 0; text-align: right; white-space: nowrap } th { font-weight: 400 }
th[scope=row], .over { text-align: left } th[scope=row] { white-space: normal } .over { font-weight: 600; padding-top: .8rem }
article { border: 1px solid var(--line); border-radius: 6px; padding: .25rem 1rem 1rem; margin: 1rem 0 } h3 { margin: .5rem 0 }
.sentences, .answers { display: grid; grid: auto / auto-flow 1fr; gap: .25rem 1rem } article p { margin: .1rem 0 }
.sentences { background: var(--soft); padding: .5rem; margin-top: .75rem } .sentences p { line-height: 1.9 }
.who { font-size: 12px; font-weight: 600; opacity: .8 } .question { margin-top: .6rem } .answers .who { display: none }
.note { font-size: 13px } .right { color: var(--good) } .wrong { color: var(--bad) } article p { overflow-wrap: anywhere }
mark { color: inherit; background: color-mix(in srgb, var(--c) 28%, transparent); border-bottom: 2px solid var(--c); padding: 0 .2em; white-space: nowrap }
mark.wrong { border-bottom-style: dotted } mark small { font-size: 11px; margin-left: .35em }
[data-type=person] { --c: #0072b2 } [data-type=place] { --c: #009e73 } [data-type=organisation] { --c: #d55e00 } [data-type=thing] { --c: #cc79a7 }
[data-type=day] { --c: #56b4e9 } [data-type=job] { --c: #e69f00 } [data-type=feeling] { --c: #f0e442 }
@media (max-width: 40rem) { table { font-size: 12px } td, th { padding-right: .35rem; white-space: normal } .sentences { grid: auto / 1fr } .answers .who { display: block } }
@media print { :root { --ink: #000; --paper: #fff; --soft: #fff; --line: #888; --good: #00654a; --bad: #a84300 }
  body { font-size: 10.5pt; max-width: none; padding: 0 } figure, article, tr { break-inside: avoid } h2, h3 { break-after: avoid }
  mark { print-color-adjust: exact; -webkit-print-color-adjust: exact } .scroll { overflow: visible } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>nanoreader: report</title><style>{css}</style></head><body>
<h1>What the students learnt to read</h1><p>{command}<br>{run}</p>{missing}
{parts}</body></html>
"""
READING = """<p>Entity F1, and answers to given questions that are right to the letter, on fresh paragraphs of two to four sentences about
two people. Nothing that they tell was ever told in training.</p>
<p>Lines: {n} paragraphs, looked at on the way. Points: {tests} other paragraphs at the end, with one standard error.</p>
<p>All start from one common start. <b>plain</b> reads plain text and never sees a question. <b>brd</b> reads annotations of the
scripted reader. <b>distilled</b> reads fewer of these and, in their place, what the teacher said, with its top-p sets.</p>
<p>Expect nothing for a while, then entities, then wh questions, then yes/no questions, which stay at one half for long.</p>"""
READ = """<p>Each student reads the paragraph sentence by sentence, its own output in its context. Entities as it names them: a cross and
a dotted line where text or type is wrong. Behind each question stands the right answer, below it the students' own.</p>"""
UNROLLED = """<p>The teacher read:</p><pre>{text}</pre><p>and went on with the tokens at the left. Thick blue bars: the set that was kept, from which
the token (dark) was drawn; blank is what the set leaves out. Thin green bars: how much the distilled student gives to the same
tokens; blank is what it leaks to others.</p>
<p>V_p = log of the student's mass in the set, in nats: 0 where nothing leaks; the leak is -V_p. The residual
log pi(a|s) - {gamma} V_p(s') is the reward of token a that the student implies: what Bellman Distill squares.</p>"""
EXPECT = ""
CACHE = """<p>For every token that it drew the teacher's most probable tokens are kept, up to the mass p, and nothing else.</p>"""


def code(command):
    """A command, broken only between its options."""
    return "<code>" + " ".join(f"<span>{escape(word)}</span>" for word in command.split(" ")) + "</code>"


def coloured(sentence, entities, wanted):
    """A sentence in HTML, with what a student took for entities; wanted: what the scripted reader has. Each is named by
    its type as well as coloured, and a cross stands at one that is wrong; below it what is missed, and what is not there."""
    def mark(text, type_):
        cross = "" if (text, type_) in right else ' class="wrong"'
        return f'<mark data-type="{escape(type_)}"{cross}>{escape(text)}<small>{escape(type_)}{" ✗" if cross else ""}</small></mark>'

    found, right = {e["text"]: e["type"] for e in entities}, {(e["text"], e["type"]) for e in wanted}
    words = "|".join(re.escape(text) for text in sorted(found, key=len, reverse=True) if text in sentence)
    parts = re.split(rf"(?<!\w)({words})(?!\w)", sentence) if words else [sentence]       # every second one is an entity
    html = "".join(mark(part, found[part]) if i % 2 else escape(part) for i, part in enumerate(parts))
    strange = [mark(text, type_) for text, type_ in found.items() if text not in parts[1::2]]
    missed = [f"{text}, {type_}" for text, type_ in sorted(right - set(found.items()))]
    return (f"<p>{html}</p>" + (f'<p class="note">not in the text: {" ".join(strange)}</p>' if strange else "")
            + (f'<p class="note">missed: {escape("; ".join(missed))}</p>' if missed else ""))


def read_page(paragraphs, readings):
    """Paragraphs (lists of records) as each student read them, side by side; readings: {student: what `read` returned}."""
    def cells(kind, html):  # one a student
        return f'<div class="{kind}">' + "".join(f'<div><b class="who">{escape(name)}</b>{html(*readings[name])}</div>'
                                                for name in readings) + "</div>"

    def answered(pair, item):
        right = pair[1] == item["answer"]
        told = f'<span role="img" aria-label="{"right" if right else "wrong"}">{"✓" if right else "✗"}</span> {escape(pair[1]) or "(nothing)"}'
        return f'<p class="{"right" if right else "wrong"}">{told}</p>'

    html = []
    for p, paragraph in enumerate(paragraphs):
        number, body = 0, []
        for k, record in enumerate(paragraph):
            body.append(cells("sentences", lambda found, _: coloured(record["text"], annotations.parse_entities(found[p][k]), record["entities"])))
            for item in record["questions"]:
                body.append(f'<p class="question">{escape(item["question"])} <i>{escape(item["answer"])}</i></p>')
                body.append(cells("answers", lambda _, answers: answered(answers[p][number], item)))
                number += 1
        html.append(f'<article><h3>Paragraph {p + 1}</h3>{"".join(body)}</article>')
    return "".join(html)


def html_table(rows, head=()):
    """Rows (label, cells) as a table, `head` above the cells; a row without cells is a heading over those below it."""
    def line(label, cells, tag):
        return f'<tr><th scope="row">{escape(label.strip())}</th>' + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    width = 1 + max(len(cells) for _, cells in rows)
    body = "".join(line(label, cells, "td") if cells else f'<tr><th colspan="{width}" class="over">{escape(label)}</th></tr>'
                   for label, cells in rows)
    top = f'<thead>{line("", head, "th")}</thead>' if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'
