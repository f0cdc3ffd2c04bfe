"""Text normalization and hashes, to find records with the same words despite case, punctuation or markup."""

import hashlib
import html
import re
import unicodedata

from medkit import pubmedqa
from medkit.records import Dialogue, MCQItem

NOT_A_WORD = re.compile(r"[\W_]+")
LINE_END_HYPHEN = re.compile(r"[-\u2010\u00ad](?<=[^\W\d_]{2}.)[^\S\n]*\n\s*(?=[^\W\d_])")  # but not X-ray
INLINE_TAG = re.compile(r"</?(b|i|em|strong|sub|sup|span|u)\b[^<>]*>", re.IGNORECASE)
TAG = re.compile(r"</?(p|br|div|li|ul|ol|td|tr|table|h\d)\b[^<>]*>", re.IGNORECASE)
INVISIBLE = ("Cf", "Cc", "Mn", "Me")  # zero-width characters, soft hyphens, decomposed accents
# A label inside an option's text: "a) ", "(2) ", "C. ", "iii: ", but not 1.5.
OPTION_LABEL = re.compile(r"^\W*([a-d]|[1-4]|i{1,3}|iv)\s*[).:\]](?!\d)\s*(?=\S)", re.IGNORECASE)
LABELS = ("abcd", "1234", ("i", "ii", "iii", "iv"))


def normalize(text: str) -> str:
    """The words of `text` in lower case, separated by single spaces.

    Removes punctuation, accents, HTML, invisible characters and line-end hyphenation, and unifies the forms
    that NFKC treats as equal (ligatures, full-width letters).
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" in text:
        text = TAG.sub(" ", INLINE_TAG.sub("", text))
    text = LINE_END_HYPHEN.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text).casefold()
        text = "".join(
            character
            for character in unicodedata.normalize("NFKD", text)
            if character.isspace() or unicodedata.category(character) not in INVISIBLE
        )
    return NOT_A_WORD.sub(" ", text.lower()).strip()


def text_of(record) -> str:
    """A record's text: context, question and options; all turns; or query and reference.

    PubMedQA's options are omitted because every item has the same.
    """
    return "\n".join(_texts(record))


def _texts(record) -> tuple[str, ...]:
    if isinstance(record, MCQItem):
        return stem(record), *options_of(record)
    if isinstance(record, Dialogue):
        return tuple(turn.text for turn in record.turns)
    return record.query, record.reference


def stem(item: MCQItem) -> str:
    return f"{item.context}\n{item.question}"


def options_of(item: MCQItem) -> tuple[str, ...]:
    """The option texts, without labels such as "a)" if they run in order; () for PubMedQA."""
    if item.options == pubmedqa.OPTIONS:
        return ()
    matches = [OPTION_LABEL.match(option) for option in item.options]
    labels = tuple(match[1].lower() for match in matches if match)
    if len(labels) == len(item.options) and any(labels == tuple(series)[: len(labels)] for series in LABELS):
        return tuple(OPTION_LABEL.sub("", option) for option in item.options)
    return item.options


def content_key(record) -> bytes:
    """16-byte hash of the record's normalized text."""
    # One text at a time: a hyphen at the end of a question is none at the end of a line.
    return digest(" ".join(filter(None, map(normalize, _texts(record)))))


def note_key(dialogue: Dialogue) -> bytes:
    """16-byte hash of the normalized clinical note, or of the consultation if it has no note."""
    return digest(normalize(dialogue.note or text_of(dialogue)))


def digest(text: str) -> bytes:
    """16-byte hash of the text, stable across processes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
