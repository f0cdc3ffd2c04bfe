"""Finds duplicate records, and evaluation items that appear in training rows.

Items are matched by their normalized text, by the question with other options, by 13-grams of words, by the
similarity of 3-word shingles, and, for exam questions, by that of their words and options in any order.
"""

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
SHINGLE = 3  # words; short enough that one changed word keeps most shingles of a 25-word question
QUESTION = 8  # minimum words of a specific question; "All of the following are true, except" has 7
NEAR = 0.7  # minimum Jaccard similarity of near-duplicates
SHARED_OPTIONS = 2  # minimum for a comparison in any order; it also keeps the comparisons few

# Correct answers that are not specific, so that two short questions may share one by chance.
GENERIC = re.compile(
    r"(all|none|both|any|either|neither)( .*(above|these|them|options?))?|yes|no|true|false|"
    r"[a-d]|((both|all|only) )?[a-d1-4]( ((and|or) )?[a-d1-4])+( (is|are) (true|correct))?"
)


def duplicates(records: Iterable) -> list[list[str]]:
    """Groups of two or more ids whose records have the same normalized text, in order of appearance."""
    groups = defaultdict(list)
    for record in records:
        groups[content_key(record)].append(record.id)
    return [ids for ids in groups.values() if len(ids) > 1]


@dataclass(frozen=True, slots=True)
class Match:
    """An evaluation item found in training rows by one method, and the row that matches it best."""

    eval_source: str
    eval_id: str
    method: str  # one of METHODS
    train_source: str
    train_id: str
    # 13-gram: share of the item's distinct 13-grams that are in the row; near-duplicate: Jaccard similarity
    # of the two texts' shingles, or of two questions' words and options if higher; other methods: 1.
    score: float
    rows: int  # training rows that match the item by this method


def find(train: Iterable, evaluation: Sequence, progress: bool = True) -> list[Match]:
    """Find evaluation items in training rows: one Match per item and method, ordered by item.

    "exact": the same normalized text; the order and labels of an exam question's options do not matter.
    "same question": the same context and question of at least QUESTION words, with other options.
    "short question": the same shorter question and correct answer, with other options. Answers such as "all
    of the above" do not count.
    "13-gram" and "near-duplicate": see Match.score. An item of fewer than 13 words has no 13-gram.

    Only the evaluation items are kept in memory; `train` may be a generator.
    """
    index = _Index(evaluation)
    best: dict[tuple[int, str], tuple[float, Any]] = {}  # (item, method) -> score, training record
    rows = Counter()  # of each (item, method)
    for record in tqdm(train, desc="overlap", unit=" rows", disable=not progress, leave=False):
        for item, method, score in index.matches(record):
            rows[item, method] += 1
            if (item, method) not in best or score > best[item, method][0]:
                best[item, method] = score, record
    matches = []
    for item, method in sorted(best, key=lambda key: (key[0], METHODS.index(key[1]))):
        score, record = best[item, method]
        hit, score = evaluation[item], round(score, 4)
        matches.append(Match(hit.source, hit.id, method, record.source, record.id, score, rows[item, method]))
    return matches


def contaminated(matches: Iterable[Match], share: float = 0.5) -> set[tuple[str, str]]:
    """(source, id) of items that match a training row; by 13-grams, only with at least `share` of them.

    A single shared 13-gram is weak evidence in exam questions: stock phrases, such as a list of vital signs,
    can be longer. A fifth of MedQA's test items share one with only 425 training rows.
    """
    return {(m.eval_source, m.eval_id) for m in matches if m.method != "13-gram" or m.score >= share}


def counts(matches: Iterable[Match], share: float = 0.5) -> dict[str, dict[str, int]]:
    """Number of items found by source and method. 13-grams are counted twice: any, and at least `share`."""
    best: dict[tuple, Match] = {}  # an item may have been searched for in several sets of rows
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
    """Looks up evaluation items by the texts and n-grams they share with a training record."""

    def __init__(self, records: Sequence):
        self.codes: dict[str, int] = {}  # word -> number
        self.items: dict[tuple[str, str], set[int]] = defaultdict(set)  # (method, text) -> items
        self.questions: list[tuple[set[str], set[str]]] = []  # words and options of each item
        self.by_option: dict[str, list[int]] = defaultdict(list)  # option -> items
        texts = []
        for item, record in enumerate(records):
            text, keys, question = _keys(record)
            texts.append(text)
            self.questions.append(question)
            for key in keys:
                self.items[key].add(item)
            for option in question[1]:
                self.by_option[option].append(item)
        self.ngrams = _NgramSets([self._ngrams(text, NGRAM) for text in texts])
        self.shingles = _NgramSets([self._ngrams(text, SHINGLE) for text in texts])

    def matches(self, record) -> Iterable[tuple[int, str, float]]:
        """(item, method, score) for each item that the training record matches."""
        text, keys, (words, options) = _keys(record)
        matched: set[int] = set()
        for key in keys:
            items = self.items.get(key, set()) - matched
            yield from ((item, key[0], 1.0) for item in items)
            matched |= items
        shared, _ = self.ngrams.overlap(self._ngrams(text, NGRAM))
        for item in np.flatnonzero(shared):
            yield int(item), "13-gram", float(shared[item] / self.ngrams.sizes[item])
        shared, union = self.shingles.overlap(self._ngrams(text, SHINGLE))
        near = shared >= NEAR * np.maximum(union, 1)
        similar = {int(item): float(shared[item] / union[item]) for item in np.flatnonzero(near)}
        for item, score in self._in_any_order(words, options):
            similar[item] = max(score, similar.get(item, 0.0))
        yield from ((item, "near-duplicate", score) for item, score in similar.items())

    def _in_any_order(self, words: set[str], options: set[str]) -> Iterable[tuple[int, float]]:
        """(item, Jaccard similarity) of the items with about the same question words and options.

        A short question with an added word and its options in another order has few shingles of the other.
        """
        common = Counter(item for option in options for item in self.by_option.get(option, ()))
        for item, count in common.items():
            if count < SHARED_OPTIONS:
                continue
            item_words, item_options = self.questions[item]
            union = len(words | item_words) + len(options | item_options)
            similarity = (len(words & item_words) + count) / union
            if similarity >= NEAR:
                yield item, similarity

    def _ngrams(self, text: str, n: int) -> np.ndarray:
        """64-bit hashes of the distinct n-grams of a text's words. A shorter text is one shingle."""
        words = text.split()
        n = min(n, len(words)) if n == SHINGLE else n
        if n == 0 or len(words) < n:
            return np.empty(0, np.uint64)
        codes = np.array([self.codes.setdefault(word, len(self.codes)) for word in words], np.uint64)
        return np.unique(np.lib.stride_tricks.sliding_window_view(codes, n) @ _FACTORS[:n])


_FACTORS = np.random.default_rng(13).integers(0, 2**63, NGRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class _NgramSets:
    """Sets of n-grams, and the size of their overlap with another set."""

    def __init__(self, sets: list[np.ndarray]):
        self.sizes = np.array([len(ngrams) for ngrams in sets], dtype=np.int64)
        ngrams = np.concatenate([*sets, np.empty(0, np.uint64)])
        order = np.argsort(ngrams, kind="stable")
        self.ngrams, self.owners = ngrams[order], np.repeat(np.arange(len(sets)), self.sizes)[order]

    def overlap(self, ngrams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each set, the sizes of its intersection and its union with `ngrams`."""
        start, end = np.searchsorted(self.ngrams, ngrams), np.searchsorted(self.ngrams, ngrams, "right")
        owners = [self.owners[a:b] for a, b in np.stack([start, end], 1)[start < end]]
        empty = np.empty(0, np.int64)
        shared = np.bincount(np.concatenate([empty, *owners]), minlength=len(self.sizes))
        return shared, self.sizes + len(ngrams) - shared


def _keys(record) -> tuple[str, list[tuple[str, str]], tuple[set[str], set[str]]]:
    """A record's normalized text, (method, text) for each method that compares whole texts, and an exam
    question's words and options, without options such as "all of the above".

    A record of only punctuation has no keys, as it would equal any other.
    """
    if not isinstance(record, MCQItem):
        text = normalize(text_of(record))
        return text, [("exact", text)] if text else [], (set(), set())
    question, options = normalize(stem(record)), [normalize(option) for option in options_of(record)]
    text = " ".join(filter(None, (question, *options)))
    text_of_sorted_options = " ".join(filter(None, (question, *sorted(options))))
    keys = [("exact", text), ("exact", text_of_sorted_options)] if text else []
    if len(question.split()) >= QUESTION:
        keys.append(("same question", question))
    elif question and options:
        gold = options[LETTERS.index(record.answer)]
        if gold and not GENERIC.fullmatch(gold):
            keys.append(("short question", f"{question}\n{gold}"))
    specific = {option for option in options if option and not GENERIC.fullmatch(option)}
    return text, keys, (set(question.split()), specific)
