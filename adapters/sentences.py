"""
A reader's own text -> paragraphs -> sentences.

    python data/prepare.py my_book.txt      # or a folder with .txt and .md files; prints counts and the first sentences

    from adapters.sentences import paragraphs, read_text, sentences, split
    train, val = split(paragraphs(read_text("my_book.txt")))
    sentences(train[0])                     # ["Anna took a train. ", "It was late."]

A paragraph is what stands between two blank lines. A sentence keeps the white space that follows it, and the line breaks
of verse and wrapped prose inside it, so nothing is lost and the cut can be checked exactly:

    "".join(sentences(paragraph)) == paragraph

`" ".join(sentence.split())` is the sentence on one line. Sentences are found by a page of rules that know English
abbreviations and read most other languages tolerably. Where an abbreviation leaves it open they do not cut: two sentences
in one still make sense, half a sentence does not. What they get wrong: `"Stop!" Anna said.` is cut after the quotation.
"""
import argparse
import re
import sys
from itertools import pairwise
from pathlib import Path

if not __package__:  # python data/prepare.py: the modules stand one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.cli import printable  # noqa: E402

SUFFIXES = (".txt", ".md")      # what is read from a folder
MAX_SENTENCE = 500              # characters, some 150 tokens; what is longer (a table, no stops at all) is cut at a word

# ---------------------------------------------------------------------------------------------------------------------
# reading

def read_text(path):
    """
    A UTF-8 file, or all .txt and .md files below a folder in the order of their names, -> str.

    A byte order mark is removed, line ends become "\\n", files are joined by a blank line; hidden files and folders are
    passed over. ValueError of one line: no such path, nothing to read, not text, not UTF-8.
    """
    text = "\n\n".join(_decode(file) for file in text_files(path))
    if not text.strip():
        raise ValueError(f"{path}: empty; expected text, paragraphs separated by blank lines")
    return text


def text_files(path):
    """The file itself, or all of a folder in the order of their names: list of Path. ValueError where there is none."""
    path = Path(path)
    if path.is_dir():
        names = [p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        if not names:
            raise ValueError(f"{path}: no {' or '.join(SUFFIXES)} file in this folder")
        return [path / name for name in sorted(names, key=Path.as_posix)]
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return [path]


def blocks(path, size):
    """
    The text of read_text in parts of about `size` characters, for texts that memory should not hold.

    Joined they are the text. A block ends before a blank line, or in a text that has none, at about four times the size
    before the end of a line, of a word, or anywhere. The errors are those of read_text, for files that hold any text.
    """
    rest = ""
    for number, file in enumerate(text_files(path)):
        rest += "\n\n" * bool(number)
        with open(file, encoding="utf-8-sig") as source:            # line ends become "\n"
            try:
                while part := source.read(size):
                    if "\0" in part:
                        _decode(file)                               # raises, and says where
                    rest += part
                    at = rest.rfind("\n\n") if len(rest) >= size else 0
                    if at <= 0 and len(rest) > 4 * size:
                        at = max(rest.rfind("\n"), 0) or max(rest.rfind(" "), 0) or len(rest)
                    if at > 0:
                        yield rest[:at]
                        rest = rest[at:]
            except UnicodeDecodeError:
                _decode(file)
    if rest:
        yield rest


def _decode(path):
    """One file -> str. The errors say where, because a single stray byte in a megabyte is hard to find."""
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{path}: NUL byte at offset {data.index(0)}, so this is no UTF-8 text; if it is UTF-16, "
                         f"try `iconv -f UTF-16 -t UTF-8 {path.name} > new.txt`")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}) is not UTF-8; "
                         f"if the file is Latin-1, try `iconv -f LATIN1 -t UTF-8 {path.name} > new.txt`") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def paragraphs(text):
    """str -> list of str: what blank lines separate, without the white space around it. Never an empty one."""
    return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def split(paragraphs, held_out=0.1):
    """
    List -> (training list, validation list); the last share `held_out`, at least one paragraph, is for validation.

    A contiguous tail and not a random sample: neighbouring paragraphs share their people, places and phrases, so a model
    that has read the paragraphs around a held-out one has half read it, and its validation loss would look too good. The
    price is that the tail may differ from the rest (the last file of a folder, the last act). held_out=0 holds nothing
    out. ValueError: held_out is not in [0, 1), or nothing would be left to train on.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}; expected a share from 0 to below 1")
    n = max(1, round(held_out * len(paragraphs))) if held_out else 0
    if n >= len(paragraphs):
        raise ValueError(f"{len(paragraphs)} paragraphs, {n} of them held out, leave none to train on; "
                         "put blank lines between paragraphs, add text, or hold less out")
    return paragraphs[:len(paragraphs) - n], paragraphs[len(paragraphs) - n:]


# ---------------------------------------------------------------------------------------------------------------------
# sentences

STOPS = ".!?…。！？।؟"
CLOSERS = "\"'”’»)]}*_」』）"      # these may stand between the stop and the end of its sentence: (He left.) "Go."
OPENERS = "\"'“‘«„([{*_¿¡—–-「『（"  # these may stand before the first letter of the next one

# A stop after these is part of the word. A title leads a name, so a capital letter after it says nothing.
TITLES = set("Mr Mrs Ms Mme Mlle Messrs Dr Prof Rev Hon Gen Col Maj Capt Cmdr Lt Sgt Gov Sen Rep Mt".split())
NEVER_LAST = set("e.g i.e cf vs viz approx".split())
BEFORE_NUMBER = set("no nos p pp vol ch fig figs sec art eq jan feb mar apr jun jul aug sep sept oct nov dec".split())
# These, initials ("J.") and dotted words ("U.S.", "a.m.") may end a sentence: where a word follows that often begins one.
MAY_BE_LAST = set("st jr sr inc ltd co corp dept est bros ave al ca".split())
STARTERS = set("""The A An This That These Those He She It They We You I His Her Its Their My Our Your In On At For From
    With By As If When While After Before Since Until Then There Here But And Or So Yet Nor Not No Yes What Who Whose Why
    How Where Which Now Once One Some Many Most All Each Every Another Both Nobody Nothing Everyone Everything However
    Although Though Perhaps Please Let Did Do Does Is Are Was Were Has Have Had Can Could Will Would
    Should Today Yesterday Tomorrow""".split())

# White space parts words. Chinese and Japanese stops part them as well, since no space follows there.
WORD = re.compile(rf"\s*(?:[^\s。！？]*[。！？]+[{re.escape(CLOSERS)}]*|\S+)\s*")
# At most MAX_SENTENCE characters up to a space or the end, or that many of a longer word; then the space after them.
CHUNK = re.compile(rf"\s*\S(?:.{{0,{MAX_SENTENCE - 1}}}(?!\S)|.{{{MAX_SENTENCE - 1}}})\s*", re.DOTALL)


def sentences(paragraph):
    """
    str -> list of str, each with the white space after it: "".join(sentences(p)) == p. Time is linear in the length.

    No sentence is blank, unless the paragraph is, and none is longer than MAX_SENTENCE characters, outer space aside.

    >>> sentences('Dr. J. R. Smith paid $3.50. "Why?" he asked.\\nNobody knew...')
    ['Dr. J. R. Smith paid $3.50. ', '"Why?" he asked.\\n', 'Nobody knew...']
    """
    if not paragraph.strip():
        return [paragraph] if paragraph else []
    found, sentence, has_letter = [], [], False
    for word, following in pairwise([*WORD.findall(paragraph), ""]):
        sentence.append(word)
        has_letter = has_letter or any(map(str.isalpha, word))  # if not, it is "1." or "..." and leads what follows
        if not following or (has_letter and _ends(word, following) and not _is_speaker(sentence)):
            found.append("".join(sentence))
            sentence, has_letter = [], False
    return [piece for s in found for piece in ([s] if len(s) <= MAX_SENTENCE else CHUNK.findall(s))]


def _ends(word, following):
    """Whether a sentence ends with this word (both come with their white space). The first rule that applies decides."""
    core = word.strip().rstrip(CLOSERS)
    stem = core.rstrip(STOPS)
    stop = core[len(stem):]
    opening = following.lstrip(OPENERS)
    if not stop or opening[:1].islower() or following[0] in STOPS:
        return False                                    # no stop; "Why?" he asked; a spaced ellipsis: . . .
    if stop != ".":
        return True                                     # "?", "!", "?!", "..."
    stem = re.split(r"[^\w.'’]", stem)[-1].strip("'’")  # "(e.g" -> "e.g", "Rolls-Royce" -> "Royce"
    if (stem[:1].isupper() and stem.capitalize() in TITLES) or stem.lower() in NEVER_LAST:
        return False
    if stem.lower() in BEFORE_NUMBER:
        return not opening[:1].isdigit()                # No. 5, but: She said no. Five left.
    initial = len(stem) == 1 and stem.isupper()
    dotted = re.fullmatch(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}", stem)
    if initial or dotted or stem.lower() in MAY_BE_LAST:
        first = re.match(r"[^\W\d_]+\b(?!\.)", opening)  # a whole word, and not itself an initial
        return bool(first) and first.group() in STARTERS
    return True


def _is_speaker(words):
    """Whether a sentence so far is the line of a play that names the speaker, "ROMEO." alone: it stays with the speech."""
    if len(words) > 5:      # a name is short; joining the words at every stop of a long text would take quadratic time
        return False
    line = "".join(words)
    return line.isupper() and line.count("\n") == 1 and line.endswith(".\n")


# ---------------------------------------------------------------------------------------------------------------------
# from the command line

def main(argv=None):
    """Print how many paragraphs, sentences and bytes a text has, and its first sentences."""
    parser = argparse.ArgumentParser(description="Show how a text is cut into paragraphs and sentences.")
    parser.add_argument("path", help="a UTF-8 text file, or a folder with .txt and .md files")
    parser.add_argument("--show", type=int, default=8, help="how many sentences to print (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        text = read_text(args.path)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    cut = [(number, sentence) for number, p in enumerate(paragraphs(text)) for sentence in sentences(p)]
    lengths = sorted(len(sentence.strip()) for _, sentence in cut)
    print(f"{printable(args.path)}: {len(text.encode('utf-8')):,} bytes, {cut[-1][0] + 1:,} paragraphs, {len(cut):,} sentences; "
          f"characters a sentence: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}")
    for number, sentence in cut[:args.show]:
        print(f"  {number}: {printable(' '.join(sentence.split()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
