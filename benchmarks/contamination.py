"""Contamination check at the paper's size: seconds and memory of contamination.find on rows of real length.

    python benchmarks/contamination.py [--scale 1.0]

Rows are words drawn from a Zipf-like vocabulary, as long as the data sets' rows are (mean and standard
deviation of words a row, measured on real rows of each). Into the training rows go copies of known
evaluation items: as they are, with one word in thirty replaced, as a passage of 40 words in another row, with
the options in another order, with other options, and of short questions with the correct answer among other
options. Every other copy, and every short one, has invisible characters in its words. The last line printed
is one JSON object with what was planted and what was found. `not_planted` are items that a method found
besides those planted for it: a copy with other options still shares its 13-grams.
"""

import argparse
import json
import random
import time
from collections import Counter

import numpy as np

from medkit import pubmedqa
from medkit.data.contamination import METHODS, NGRAM, QUESTION, find
from medkit.data.sources import SOURCES
from medkit.records import MCQItem
from medkit.runs import machine
from medkit.text_keys import normalize, text_of

# Words a row: mean, standard deviation. Whole exam item, or abstract and question.
LENGTHS = {"medqa": (140, 50), "medmcqa": (25, 16), "pubmedqa": (226, 53)}
VOCABULARY = 150_000
PLANTED = 200  # evaluation items per kind of copy, at full scale


class Generator:
    """Records of one source's length, from words drawn by rank with probability ~ 1 / (rank + 3)."""

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
    ends = words[-8:]
    options = tuple(" ".join(ends[i : i + 2]) for i in range(0, 8, 2))
    return MCQItem(id, source, " ".join(words[:-8]), options, "A")


def plant(train: list, evaluation: list, planted: int, generator: Generator) -> dict[str, set[str]]:
    """Put copies of evaluation items over training rows; the (source, id) that each method must find."""
    rng = random.Random(1)
    long_enough = [e for e in evaluation if len(normalize(text_of(e)).split()) >= 60]
    chosen = rng.sample(long_enough, 5 * planted)
    places = iter(rng.sample(range(len(train) - planted), 5 * planted))  # plant_short has the last ones
    must = {method: set() for method in METHODS}
    for number, item in enumerate(chosen):
        words = normalize(text_of(item)).split()
        key = item.source, item.id
        options, question, context = pubmedqa.OPTIONS, "", ""
        if number % 5 == 0:  # the same
            for method in ("exact", "13-gram", "near-duplicate"):
                must[method].add(key)
        elif number % 5 == 1:  # one word in thirty replaced, at an even distance
            for i in range(15, len(words), 30):
                words[i] = "replaced"
            must["near-duplicate"].add(key)
            must["13-gram"].add(key)
        elif number % 5 == 2:  # a passage inside another row
            assert len(words[10:50]) >= NGRAM
            words = generator.words(60) + words[10:50] + generator.words(60)
            must["13-gram"].add(key)
        elif number % 5 == 3:  # the options in another order; an abstract's are no part of its text
            question, context, options = item.question, item.context, tuple(reversed(item.options))
            must["exact" if item.options != pubmedqa.OPTIONS else "same question"].add(key)
        else:  # other options
            question, context, options = item.question, item.context, tuple(generator.words(4))
            must["same question"].add(key)
        place = next(places)
        question = question or " ".join(words)
        if number % 2:
            question, context = hidden(question), hidden(context)
        train[place] = MCQItem(train[place].id, "pubmedqa", question, options, "A", context)
    return must


def plant_short(train: list, evaluation: list, planted: int, generator: Generator) -> set[tuple[str, str]]:
    """The same for short questions, over the last training rows: the correct answer at another letter."""
    chosen = [e for e in evaluation if e.source == "medmcqa" and len(e.question.split()) < QUESTION][:planted]
    for place, item in zip(range(len(train) - len(chosen), len(train)), chosen, strict=True):
        options = (*generator.words(3), item.options[0])
        train[place] = MCQItem(train[place].id, "medmcqa", hidden(item.question), options, "D")
    return {(item.source, item.id) for item in chosen}


def hidden(text: str) -> str:
    """The text with characters in its words that are not seen."""
    return " ".join(f"{word[:2]}\u200b{word[2:3]}\u00ad{word[3:]}" for word in text.split(" "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the paper's rows (default 1.0)")
    scale = parser.parse_args().scale
    generator = Generator(0)
    train = [r for source in LENGTHS for r in generator.records(source, "train", scale)]
    evaluation = [r for source in LENGTHS for r in generator.records(source, "eval", max(scale, 0.2))]
    planted = max(5, round(PLANTED * scale))
    must = plant(train, evaluation, planted, generator)
    must["short question"] = plant_short(train, evaluation, planted, generator)

    start = time.perf_counter()
    matches = find(train, evaluation)
    seconds = time.perf_counter() - start

    hits = {method: {(m.eval_source, m.eval_id) for m in matches if m.method == method} for method in METHODS}
    result = {
        "rows": len(train),
        "eval_rows": len(evaluation),
        "words": sum(len(text_of(r).split()) for r in train),
        "seconds": round(seconds, 1),
        **machine.peak_memory(),
        "planted": {method: len(keys) for method, keys in must.items()},
        "found": {method: len(keys) for method, keys in hits.items()},
        "missed": {method: len(must[method] - hits[method]) for method in METHODS},
        "not_planted": dict(Counter({method: len(hits[method] - must[method]) for method in METHODS})),
        "hardware": machine.hardware(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
