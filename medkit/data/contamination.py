"""Duplicates, and evaluation items found in training rows: as they are, as the same question with other
options, by 13-grams, or nearly."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from medkit.records import LETTERS, MCQItem
from medkit.text_keys import content_key, normalize, options_of, stem, text_of

METHODS = ("exact", "same question", "short question", "13-gram", "near-duplicate")
NGRAM = 13  # words; the length used for GPT-3 (arXiv 2005.14165, appendix C)
SHINGLE = 3  # words; short, so that one changed word leaves most of a 25-word question's shingles
QUESTION = 8  # words from which an exam question is specific ("All of the following are true, except" is not)
NEAR = 0.7  # Jaccard similarity of the shingles from which a row counts as a near-duplicate

# A correct answer that says nothing specific, so that a short question may share it by chance.
GENERIC = re.compile(
    r"(all|none|both|any|either|neither)( .*(above|these|them|options?))?|yes|no|true|false|"
    r"[a-d]|((both|all|only) )?[a-d1-4]( ((and|or) )?[a-d1-4])+( (is|are) (true|correct))?"
)


def duplicates(records: Iterable) -> list[list[str]]:
    """Ids of records with the same normalized text, in groups of two or more, in order of appearance."""
    groups = defaultdict(list)
    for record in records:
        groups[content_key(record)].append(record.id)
    return [ids for ids in groups.values() if len(ids) > 1]


@dataclass(frozen=True, slots=True)
class Match:
    """An evaluation item that one method finds in training rows, and the row that matches it best."""

    eval_source: str
    eval_id: str
    method: str  # one of METHODS
    train_source: str
    train_id: str
    # 13-gram: share of the item's different 13-grams that are in the row; the three methods before it: 1;
    # near-duplicate: Jaccard similarity of the two texts' 3-word shingles.
    score: float
    rows: int  # training rows that match the item by this method


def find(train: Iterable, evaluation: Sequence, progress: bool = True) -> list[Match]:
    """Find evaluation items in training rows, one Match per item and method, ordered by item.

    "exact" is the same normalized text, an exam question's options in whatever order and under whatever
    labels; "same question" the same context and question, of QUESTION words or more, with other options;
    "short question" the same question of fewer words and the same correct answer among other options, where
    that is no "all of the above".

    Only the evaluation side is kept in memory; `train` may be a generator. An item of fewer than 13 words
    has no 13-gram and can match by the other methods only.
    """
    index = _Index(evaluation)
    best: dict[tuple[int, str], tuple[float, Any]] = {}  # (item, method) -> score, training record
    found = Counter()
    for record in tqdm(train, desc="overlap", unit=" rows", disable=not progress, leave=False):
        for item, method, score in index.matches(record):
            found[item, method] += 1
            if (item, method) not in best or score > best[item, method][0]:
                best[item, method] = score, record
    matches = []
    for item, method in sorted(best, key=lambda pair: (pair[0], METHODS.index(pair[1]))):
        score, record = best[item, method]
        of = evaluation[item]
        matches.append(
            Match(of.source, of.id, method, record.source, record.id, round(score, 4), found[item, method])
        )
    return matches


def contaminated(matches: Iterable[Match], share: float = 0.5) -> set[tuple[str, str]]:
    """(source, id) of items found in a training row: exactly, nearly, or by `share` of their 13-grams.

    A single 13-gram is weak evidence in exam questions: stock phrases such as a list of vital signs are
    longer, so that a fifth of MedQA's test items share one with only 425 training rows.
    """
    return {(m.eval_source, m.eval_id) for m in matches if m.method != "13-gram" or m.score >= share}


def counts(matches: Iterable[Match], share: float = 0.5) -> dict[str, dict[str, int]]:
    """Evaluation items found, by source and method; the 13-gram method once for any, once from `share` on."""
    best: dict[tuple, Match] = {}  # of an item that was looked for in several sets of rows
    for match in matches:
        key = match.eval_source, match.eval_id, match.method
        if key not in best or match.score > best[key].score:
            best[key] = match
    table: dict[str, Counter] = defaultdict(Counter)
    for match in best.values():
        if match.method == "13-gram":
            table[match.eval_source]["any 13-gram"] += 1
            table[match.eval_source][f"{share:.0%} of 13-grams"] += match.score >= share
        else:
            table[match.eval_source][match.method] += 1
    return {source: dict(row) for source, row in table.items()}


class _Index:
    """The evaluation items by what they are compared by: texts, and the n-grams of their words."""

    def __init__(self, records: Sequence):
        self.codes: dict[str, int] = {}  # word -> number
        self.same: dict[tuple[str, str], set[int]] = defaultdict(set)  # (method, text) -> items
        texts = []
        for item, record in enumerate(records):
            text, keys = _keys(record)
            texts.append(text)
            for key in keys:
                self.same[key].add(item)
        self.grams, self.shingles = (
            _Grams([self._ngrams(text, n) for text in texts]) for n in (NGRAM, SHINGLE)
        )

    def matches(self, record) -> Iterable[tuple[int, str, float]]:
        """(item, method, score) for each item that the training record matches."""
        text, keys = _keys(record)
        same: set[int] = set()
        for key in keys:
            found = self.same.get(key, set()) - same
            yield from ((item, key[0], 1.0) for item in found)
            same |= found
        shared, _ = self.grams.shared(self._ngrams(text, NGRAM))
        for item in np.flatnonzero(shared):
            yield int(item), "13-gram", float(shared[item] / self.grams.sizes[item])
        shared, either = self.shingles.shared(self._ngrams(text, SHINGLE))
        for item in np.flatnonzero(shared >= NEAR * np.maximum(either, 1)):
            yield int(item), "near-duplicate", float(shared[item] / either[item])

    def _ngrams(self, text: str, n: int) -> np.ndarray:
        """64-bit hashes of the different n-grams of a text's words; a shorter text is one shingle."""
        words = text.split()
        n = min(n, len(words)) if n == SHINGLE else n
        if n == 0 or len(words) < n:
            return np.empty(0, np.uint64)
        codes = np.array([self.codes.setdefault(word, len(self.codes)) for word in words], np.uint64)
        return np.unique(np.lib.stride_tricks.sliding_window_view(codes, n) @ _FACTORS[:n])


_FACTORS = np.random.default_rng(13).integers(0, 2**63, NGRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class _Grams:
    """Sets of n-grams, and how many another set shares with each of them."""

    def __init__(self, sets: list[np.ndarray]):
        self.sizes = np.array([len(grams) for grams in sets], dtype=np.int64)
        grams = np.concatenate([*sets, np.empty(0, np.uint64)])
        order = np.argsort(grams, kind="stable")
        self.grams, self.owners = grams[order], np.repeat(np.arange(len(sets)), self.sizes)[order]

    def shared(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each set, how many n-grams it has in common with these, and how many the two have together."""
        start, end = np.searchsorted(self.grams, grams), np.searchsorted(self.grams, grams, "right")
        owners = [self.owners[a:b] for a, b in np.stack([start, end], 1)[start < end]]
        empty = np.empty(0, np.int64)
        counts = np.bincount(np.concatenate([empty, *owners]), minlength=len(self.sizes))
        return counts, self.sizes + len(grams) - counts


def _keys(record) -> tuple[str, list[tuple[str, str]]]:
    """A record's normalized text, and (method, text) for each method that compares whole texts. A record of
    nothing but punctuation has none: it would equal any other."""
    if not isinstance(record, MCQItem):
        text = normalize(text_of(record))
        return text, [("exact", text)] if text else []
    question, options = normalize(stem(record)), [normalize(option) for option in options_of(record)]
    text, unordered = (" ".join(filter(None, (question, *part))) for part in (options, sorted(options)))
    keys = [("exact", text), ("exact", unordered)] if text else []
    if len(question.split()) >= QUESTION:
        keys.append(("same question", question))
    elif (
        question
        and options
        and (gold := options[LETTERS.index(record.answer)])
        and not GENERIC.fullmatch(gold)
    ):
        keys.append(("short question", f"{question}\n{gold}"))
    return text, keys
