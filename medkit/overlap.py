"""Duplicates, and evaluation items that stand in training rows."""

import hashlib
import re
import unicodedata

from medkit.records import Dialogue, MCQItem

NOT_A_WORD = re.compile(r"[\W_]+")


def normalize(text: str) -> str:
    """Lower case, NFKC, and a single space for every run of anything but letters and digits."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return NOT_A_WORD.sub(" ", text.lower()).strip()


def text_of(record) -> str:
    """A record's text: context, question and options; all turns; query and reference."""
    if isinstance(record, MCQItem):
        return "\n".join(filter(None, (record.context, record.question, *record.options)))
    if isinstance(record, Dialogue):
        return "\n".join(turn.text for turn in record.turns)
    return f"{record.query}\n{record.reference}"


def content_key(record) -> bytes:
    """16 bytes that two records share when their normalized text is the same."""
    return _hash(text_of(record))


def note_key(dialogue: Dialogue) -> bytes:
    """16 bytes shared by consultations written from one note; without notes, by equal consultations."""
    return _hash(dialogue.note or text_of(dialogue))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(normalize(text).encode(), digest_size=16).digest()
