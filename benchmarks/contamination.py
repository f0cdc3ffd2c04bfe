"""Seconds and memory of the contamination check (contamination.find) at the paper's size.

    python benchmarks/contamination.py [--scale 1.0]

Rows are words drawn from a Zipf-like vocabulary, as long as real rows (mean and standard deviation of words
per row, measured on each data set). Copies of evaluation items are planted into the training rows: unchanged,
with one word in thirty replaced, as a passage of 40 words in another row, with the options in another order,
with other options, and short questions with the correct answer among other options. Every second copy, and
every short one, has invisible characters in its words. The last line printed is a JSON object with the
planted and the found matches. `not_planted` counts items that a method found in addition to those planted for
it; e.g. a copy with other options still shares its 13-grams.
"""

import argparse
import json
import random
import time

import numpy as np

from medkit import pubmedqa
from medkit.data.contamination import METHODS, NGRAM, QUESTION, find
from medkit.data.sources import SOURCES
from medkit.records import MCQItem
from medkit.runs import machine
from medkit.text_keys import normalize, text_of

# Words per row (mean, standard deviation) of a whole exam item, or of an abstract and its question.
LENGTHS = {"medqa": (140, 50), "medmcqa": (25, 16), "pubmedqa": (226, 53)}
VOCABULARY = 150_000
PLANTED = 200  # evaluation items per kind of copy, at full scale


class Generator:
    """Makes records of real length. A word's probability is proportional to 1 / (rank + 3)."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.vocabulary = np.array([f"w{i:x}" for i in range(VOCABULARY)], dtype=object)
        self.cumulative = np.cumsum(1 / (np.arange(VOCABULARY) + 3.0))

    def words(self, n: int) -> list[str]:
        ranks = np.searchsorted(self.cumulative, self.rng.random(n) * self.cumulative[-1])
        return self.vocabulary[ranks].tolist()

    def records(self, source: str, part: str, scale: float) -> list[MCQItem]:
        mean, deviation = LENGTHS[source]
        spread = np.log1p((deviation / mean) ** 2)  # log-normal with this mean and deviation
        rows = round(SOURCES[source].parts[part].rows * scale)
        lengths = self.rng.lognormal(np.log(mean) - spread / 2, spread**0.5, rows).astype(int) + 9
        return [record(source, f"{part}-{i}", self.words(int(n))) for i, n in enumerate(lengths)]


def record(source: str, id: str, words: list[str]) -> MCQItem:
    if source == "pubmedqa":
        return MCQItem(id, source, " ".join(words[-12:]), pubmedqa.OPTIONS, "A", " ".join(words[:-12]))
    last = words[-8:]
    options = tuple(" ".join(last[i : i + 2]) for i in range(0, 8, 2))
    return MCQItem(id, source, " ".join(words[:-8]), options, "A")


def plant(train: list, evaluation: list, count: int, generator: Generator) -> dict[str, set[str]]:
    """Replace training rows by copies of evaluation items. Returns the (source, id) each method must find.

    count: copies of each of the five kinds.
    """
    rng = random.Random(1)
    long_items = [item for item in evaluation if len(normalize(text_of(item)).split()) >= 60]
    items = rng.sample(long_items, 5 * count)
    positions = rng.sample(range(len(train) - count), 5 * count)  # the last `count` are for plant_short
    expected = {method: set() for method in METHODS}
    for number, (item, position) in enumerate(zip(items, positions, strict=True)):
        words = normalize(text_of(item)).split()
        key = item.source, item.id
        options, question, context = pubmedqa.OPTIONS, "", ""
        if number % 5 == 0:  # unchanged
            for method in ("exact", "13-gram", "near-duplicate"):
                expected[method].add(key)
        elif number % 5 == 1:  # one word in thirty replaced, evenly spaced
            for i in range(15, len(words), 30):
                words[i] = "replaced"
            expected["near-duplicate"].add(key)
            expected["13-gram"].add(key)
        elif number % 5 == 2:  # a passage inside another row
            assert len(words[10:50]) >= NGRAM
            words = generator.words(60) + words[10:50] + generator.words(60)
            expected["13-gram"].add(key)
        elif number % 5 == 3:  # the options in another order; those of PubMedQA are not part of its text
            question, context, options = item.question, item.context, tuple(reversed(item.options))
            expected["exact" if item.options != pubmedqa.OPTIONS else "same question"].add(key)
        else:  # other options
            question, context, options = item.question, item.context, tuple(generator.words(4))
            expected["same question"].add(key)
        question = question or " ".join(words)
        if number % 2:
            question, context = add_invisible(question), add_invisible(context)
        train[position] = MCQItem(train[position].id, "pubmedqa", question, options, "A", context)
    return expected


def plant_short(train: list, evaluation: list, count: int, generator: Generator) -> set[tuple[str, str]]:
    """The same for short questions, in the last training rows. The correct answer has another letter."""
    items = [e for e in evaluation if e.source == "medmcqa" and len(e.question.split()) < QUESTION][:count]
    for position, item in zip(range(len(train) - len(items), len(train)), items, strict=True):
        options = (*generator.words(3), item.options[0])
        train[position] = MCQItem(train[position].id, "medmcqa", add_invisible(item.question), options, "D")
    return {(item.source, item.id) for item in items}


def add_invisible(text: str) -> str:
    """Insert a zero-width space and a soft hyphen into each word."""
    return " ".join(f"{word[:2]}\u200b{word[2:3]}\u00ad{word[3:]}" for word in text.split(" "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the paper's rows (default 1.0)")
    scale = parser.parse_args().scale
    generator = Generator(0)
    train = [r for source in LENGTHS for r in generator.records(source, "train", scale)]
    evaluation = [r for source in LENGTHS for r in generator.records(source, "eval", max(scale, 0.2))]
    count = max(5, round(PLANTED * scale))
    expected = plant(train, evaluation, count, generator)
    expected["short question"] = plant_short(train, evaluation, count, generator)

    start = time.perf_counter()
    matches = find(train, evaluation)
    seconds = time.perf_counter() - start

    found = {
        method: {(m.eval_source, m.eval_id) for m in matches if m.method == method} for method in METHODS
    }
    result = {
        "rows": len(train),
        "eval_rows": len(evaluation),
        "words": sum(len(text_of(r).split()) for r in train),
        "seconds": round(seconds, 1),
        **machine.peak_memory(),
        "planted": {method: len(keys) for method, keys in expected.items()},
        "found": {method: len(keys) for method, keys in found.items()},
        "missed": {method: len(expected[method] - found[method]) for method in METHODS},
        "not_planted": {method: len(found[method] - expected[method]) for method in METHODS},
        "hardware": machine.hardware(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
