"""A paragraph -> its sentences.

    sentences("Anna took a train. It was late.")    # ["Anna took a train. ", "It was late."]

The rules know English abbreviations. Where an abbreviation leaves it open they do not cut, because two
sentences in one still make sense and half a sentence does not. A known error: `"Stop!" Anna said.` is cut.
"""
import re
from itertools import pairwise

MAX_SENTENCE = 500      # characters, some 150 tokens; what is longer (a table, no stops) is cut between words
STOPS = ".!?…。！？।؟"
CLOSERS = "\"'”’»)]}*_」』）"       # may stand between the stop and the end of a sentence: (He left.) "Go."
OPENERS = "\"'“‘«„([{*_¿¡—–-「『（"   # may stand before the first letter of a sentence
MARK = r"[\[({][^][(){}.!?…\n]{1,30}[])}]|[⁰¹²³⁴-⁹†‡]"         # of a footnote: [1] [note 2] [^a] (3) ⁴

# A stop after these is part of the word. A title stands before a name, so a capital letter tells nothing.
TITLES = "Mr Mrs Ms Mme Mlle Messrs Dr Prof Rev Hon Gen Col Maj Capt Cmdr Lt Sgt Gov Sen Rep Mt".split()
BEFORE_NUMBER = "no nos p pp vol ch fig sec art eq jan feb mar apr jun jul aug sep sept oct nov dec".split()
# These, initials ("J.") and dotted words ("U.S.", "e.g.") end a sentence if a word of STARTERS follows.
MAY_BE_LAST = "st jr sr inc ltd co corp dept est bros ave al ca cf vs viz approx".split()
STARTERS = set("""The A An This That These Those He She It They We You I His Her Its Their My Our Your In On
    At For From With By As If When While After Before Since Until Then There Here But And Or So Yet Nor Not No
    Yes What Who Whose Why How Where Which Now Once One Some Many Most All Each Every Another Both Nobody
    Nothing Everyone Everything However Although Though Perhaps Please Let Did Do Does Is Are Was Were Has
    Have Had Can Could Will Would Should Today Yesterday Tomorrow""".split())

LETTER = r"[^\W\d_]"
# What a sentence ends with: a stop, and the marks of footnotes, which may have lost their brackets: river.12
END = re.compile(rf"([{STOPS}]+)(?:{MARK}|[{re.escape(CLOSERS)}])*(\d{{1,3}})?$")
# White space ends a word, but in brackets. Chinese and Japanese stops end one too: no space follows them.
BRACKETS = r"\[(?:[^][\s.!?…]{1,20}(?: [^][\s.!?…]{1,20}){1,3}\])?"
WORD = re.compile(rf"\s*(?:[^\s。！？]*[。！？]+(?:{MARK}|[{re.escape(CLOSERS)}])*|(?:[^\s\[]+|{BRACKETS})+)\s*")
# At most MAX_SENTENCE characters up to a space or the end, or that many of a longer word; then the space.
CHUNK = re.compile(rf"\s*\S(?:.{{0,{MAX_SENTENCE - 1}}}(?!\S)|.{{{MAX_SENTENCE - 1}}})\s*", re.DOTALL)


def sentences(paragraph):
    """str -> list of str, each with the white space behind it; joined they are the paragraph. None is blank
    unless the paragraph is, nor has more than MAX_SENTENCE characters without the white space around it.

    >>> sentences('Dr. J. R. Smith paid $3.50. "Why?" he asked.\\nNobody knew...')
    ['Dr. J. R. Smith paid $3.50. ', '"Why?" he asked.\\n', 'Nobody knew...']
    """
    if not paragraph.strip():
        return [paragraph] if paragraph else []
    found, sentence, has_letter = [], [], False
    for word, following in pairwise([*WORD.findall(paragraph), ""]):
        sentence.append(word)
        has_letter = has_letter or any(map(str.isalpha, word))      # "1." and "..." belong to what follows
        if not following or (has_letter and ends(word, following)):
            found.append("".join(sentence))
            sentence, has_letter = [], False
    return [piece for s in found for piece in ([s] if len(s) <= MAX_SENTENCE else CHUNK.findall(s))]


def ends(word, following):
    """Whether a sentence ends with this word; both come with their white space."""
    core = word.strip()[-100:]
    found, opening = END.search(core), following.lstrip(OPENERS)
    if not found or opening[:1].islower() or following[0] in STOPS:
        return False                                    # no stop; "Why?" he asked; a spaced ellipsis: . . .
    stem = core[:found.start()]
    if found[2] and (not stem[-3:].isalpha() or stem.lower() in BEFORE_NUMBER):
        return False                                    # 3.14, Fig.2
    if found[1] != ".":
        return True                                     # "?", "!", "?!", "..."
    stem = re.split(r"[^\w.'’]", stem)[-1].strip("'’")  # "(e.g" -> "e.g", "Rolls-Royce" -> "Royce"
    if stem[:1].isupper() and stem.capitalize() in TITLES:
        return False
    if stem.lower() in BEFORE_NUMBER:
        return not opening[:1].isdigit()                # No. 5, but: She said no. Five left.
    initial = len(stem) == 1 and stem.isupper()
    if initial or re.fullmatch(rf"({LETTER}{{1,2}}\.)+{LETTER}{{1,2}}", stem) or stem.lower() in MAY_BE_LAST:
        first = re.match(rf"{LETTER}+\b(?!\.)", opening)           # a whole word, and not itself an initial
        return bool(first) and first.group() in STARTERS
    return True
