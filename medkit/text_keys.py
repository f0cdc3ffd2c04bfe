"""Which texts count as the same: records by their words, whatever their case, punctuation or markup."""

import hashlib
import html
import re
import unicodedata

from medkit import pubmedqa
from medkit.records import Dialogue, MCQItem

NOT_A_WORD = re.compile(r"[\W_]+")
LINE_END_HYPHEN = re.compile(r"[-\u2010\u00ad](?<=[^\W\d_]{2}.)[^\S\n]*\n\s*(?=[^\W\d_])")  # not of X-ray
INLINE_TAG = re.compile(r"</?(b|i|em|strong|sub|sup|span|u)\b[^<>]*>", re.IGNORECASE)
TAG = re.compile(r"</?(p|br|div|li|ul|ol|td|tr|table|h\d)\b[^<>]*>", re.IGNORECASE)
INVISIBLE = ("Cf", "Cc", "Mn", "Me")  # zero-width characters and soft hyphens; accents, once they are apart
# An option's label in its text: "a) ", "(2) ", "C. ", "iii: "; not 1.5.
OPTION_LABEL = re.compile(r"^\W*([a-d]|[1-4]|i{1,3}|iv)\s*[).:\]](?!\d)\s*(?=\S)", re.IGNORECASE)
LABELS = ("abcd", "1234", ("i", "ii", "iii", "iv"))


def normalize(text: str) -> str:
    """The text's words in lower case, with a single space between them.

    Removes what does not change the words as read: case, punctuation, accents, HTML, invisible characters, a
    word's hyphen at a line's end, and the forms that NFKC treats as equal (ligatures, full-width letters).
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
    """A record's text: context, question and options; all turns; query and reference.

    PubMedQA's options are the same in every item and left out.
    """
    if isinstance(record, MCQItem):
        return "\n".join((stem(record), *options_of(record)))
    if isinstance(record, Dialogue):
        return "\n".join(turn.text for turn in record.turns)
    return f"{record.query}\n{record.reference}"


def stem(item: MCQItem) -> str:
    return f"{item.context}\n{item.question}"


def options_of(item: MCQItem) -> tuple[str, ...]:
    """The options' texts, without their labels where all four have them."""
    if item.options == pubmedqa.OPTIONS:
        return ()
    found = [OPTION_LABEL.match(option) for option in item.options]
    labels = tuple(label[1].lower() for label in found if label)
    if len(labels) == len(item.options) and any(labels == tuple(run)[: len(labels)] for run in LABELS):
        return tuple(OPTION_LABEL.sub("", option) for option in item.options)
    return item.options


def content_key(record) -> bytes:
    """16 bytes that two records share when their normalized text is the same."""
    return digest(normalize(text_of(record)))


def note_key(dialogue: Dialogue) -> bytes:
    """16 bytes shared by consultations written from one note; without notes, by equal consultations."""
    return digest(normalize(dialogue.note or text_of(dialogue)))


def digest(text: str) -> bytes:
    """16 bytes of the text, the same in every process."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
