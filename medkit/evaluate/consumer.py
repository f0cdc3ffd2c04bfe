"""Answers to patients' questions beside the physicians': which cases, how similar, how long, in what style.

What is measured is similarity to one physician's wording. It is not safety, and it rewards matching length;
hence the lengths, the length-matched difference and the shuffled references beside every score.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medkit import MedkitError
from medkit.evaluate import statistics
from medkit.evaluate.generation import Answer
from medkit.evaluate.scorer import PARTS, Scorer
from medkit.evaluate.style import MARKERS, in_another_script, markers, words
from medkit.records import ConsumerQuery
from medkit.runs import storage

SCORES = (*PARTS, "rouge_l")
# per model and case the greedy answer and, after it, the sampled ones
Answers = dict[str, list[list[Answer]]]


def draw(queries: Sequence[ConsumerQuery], cases: int, seed: int) -> list[ConsumerQuery]:
    """`cases` queries in equal numbers from each source, or all of them where there are fewer.

    A source that has too few gives what it has, the others the rest. The draw does not depend on the order of
    `queries`, and a smaller draw of the same seed is the beginning of a larger one.
    Raises MedkitError where there is no query, or an id appears twice in a source.
    """
    if not queries:
        raise MedkitError("no consumer queries: give a data folder with icliniq or healthcaremagic in it")
    if len({(query.source, query.id) for query in queries}) < len(queries):
        raise MedkitError("a consumer query's id appears twice in its source; give each query its own")
    by_source = {}
    for source in sorted({query.source for query in queries}):
        own = sorted((query for query in queries if query.source == source), key=lambda query: query.id)
        random.Random(f"{seed} {source}").shuffle(own)
        by_source[source] = own
    rounds = range(max(len(own) for own in by_source.values()))
    return [own[i] for i in rounds for own in by_source.values() if i < len(own)][:cases]


def evaluate(
    cases: Sequence[ConsumerQuery],
    answers: Answers,
    scorer: Scorer,
    *,
    decoding: dict,
    passed_over: dict[str, int],
    seed: int = 0,
) -> tuple[dict, pd.DataFrame]:
    """Everything Table 4 and its neighbours print, as (summary, scores).

    `answers` has the same number of answers to each case, in order; the others are compared with the first
    model. `decoding` and `passed_over` (rows left out before the draw, by reason) go into the summary.

    `scores` has one row per model, case and answer (`sample` 0 is greedy) and no text. Means in the summary
    have 95% bootstrap intervals over the cases (null for fewer than two); differences are paired, a model
    minus the first; shares are of the cases.
    """
    samples = [(model, k) for model, given in answers.items() for k in range(len(given[0]))]
    samples.sort(key=lambda sample: sample[1] > 0)  # every model's greedy answers first
    scores = {
        (model, k): _score(cases, model, k, [own[k] for own in answers[model]], scorer)
        for model, k in samples
    }
    found = _Evaluation(cases, answers, scorer, scores, seed)
    first, *others = answers
    summary = {
        "scorer": scorer.about,
        "decoding": decoding,
        "n": len(cases),
        "sources": pd.Series([case.source for case in cases]).value_counts().to_dict(),
        "passed_over": passed_over,
        "models": {model: found.of_model(model) for model in answers},
        "reference": found.reference(),
        "differences": {model: found.difference(first, model) for model in others},
        "control": found.shuffled() if len(cases) > 1 else None,
        "sampling": found.sampling() if len(samples) > len(answers) else None,
    }
    return storage.plain(summary), pd.concat(scores.values(), ignore_index=True)


def _score(cases, model: str, sample: int, given: Sequence[Answer], scorer: Scorer) -> pd.DataFrame:
    texts = [answer.text for answer in given]
    about = pd.DataFrame(
        {
            "model": model,
            "case": [case.id for case in cases],
            "source": [case.source for case in cases],
            "sample": sample,
            "words": [words(text) for text in texts],
            "reference_words": [words(case.reference) for case in cases],
            "finish": [answer.finish for answer in given],
            "empty": [not text.strip() for text in texts],
            "other_script": [in_another_script(text) for text in texts],
        }
    )
    style = pd.DataFrame([markers(text) for text in texts])
    return pd.concat([about, scorer.score(texts, [case.reference for case in cases]), style], axis=1)


@dataclass(frozen=True)
class _Evaluation:
    """The parts of the summary. scores: by model and sample, a row a case."""

    cases: Sequence[ConsumerQuery]
    answers: Answers
    scorer: Scorer
    scores: dict[tuple[str, int], pd.DataFrame]
    seed: int

    def mean(self, values: ArrayLike) -> dict:
        return statistics.bootstrap_mean(values, self.seed).named("mean")

    def gain(self, first: ArrayLike, second: ArrayLike) -> dict:
        """Second minus first."""
        return statistics.paired_difference(first, second, self.seed).named("mean")

    def tested_gain(self, first: ArrayLike, second: ArrayLike) -> dict:
        return self.gain(first, second) | {"p": statistics.sign_flip_p(first, second, self.seed)}

    def lengths(self, counts: Sequence[int]) -> dict:
        return self.mean(counts) | {"median": np.median(counts), "max": max(counts)}

    def style_gains(self, first: pd.DataFrame, second: pd.DataFrame) -> dict[str, dict]:
        """Per marker the share of `second` minus that of `first`."""
        return {name: self.gain(first[name].astype(float), second[name].astype(float)) for name in MARKERS}

    @cached_property
    def physicians(self) -> pd.DataFrame:
        return pd.DataFrame([markers(case.reference) for case in self.cases])

    def of_model(self, model: str) -> dict:
        rows = self.scores[model, 0]
        means = {part: self.mean(rows[part]) for part in SCORES}
        rescaled = None
        if self.scorer.baseline:
            rescaled = {
                part: {end: self.scorer.rescaled(part, value) for end, value in means[part].items()}
                for part in PARTS
            }
        return {
            **means,
            "rescaled": rescaled,
            "words": self.lengths(rows["words"]),
            "style": rows[list(MARKERS)].mean().to_dict(),
            "cut": (rows["finish"] == "cut").sum(),
            "too_long": (rows["finish"] == "too long").sum(),  # for the model's context: not asked
            **{name: rows[name].sum() for name in ("empty", "truncated", "other_script")},
            "style_minus_physicians": self.style_gains(self.physicians, rows),
        }

    def reference(self) -> dict:
        texts = [case.reference for case in self.cases]
        return {
            "words": self.lengths([words(text) for text in texts]),
            "style": self.physicians.mean().to_dict(),
            "truncated": sum(self.scorer.too_long(text) for text in texts),
        }

    def difference(self, first: str, second: str) -> dict:
        rows, others = self.scores[first, 0], self.scores[second, 0]
        return {
            "minus": first,
            **{part: self.tested_gain(rows[part], others[part]) for part in (*SCORES, "words")},
            "length_matched": self.length_matched(first, second),
            "style": self.style_gains(rows, others),
        }

    def length_matched(self, first: str, second: str) -> dict:
        """Difference in F1 with both answers to a case cut to the words of the shorter one.

        It asks what is left of a difference when neither answer can gain by its length. It compares
        beginnings: an answer that comes to the point late loses by it. Cases with an empty answer are left
        out, and `n` counts the rest.
        """
        pairs = [
            (*_cut_alike(before.text, after.text), case.reference)
            for case, (before, *_), (after, *_) in zip(
                self.cases, self.answers[first], self.answers[second], strict=True
            )
            if before.text.strip() and after.text.strip()
        ]
        references = [reference for *_, reference in pairs]
        before, after = (self.scorer.score([pair[k] for pair in pairs], references)["f1"] for k in (0, 1))
        return {"n": len(pairs), "f1": self.tested_gain(before, after)}

    def shuffled(self) -> dict:
        """The same answers against another case's physician: what merely sounding like a physician earns.
        `gap` is the F1 against the case's own reference minus that against the other."""
        strangers = [self.cases[i].reference for i in derangement(len(self.cases), self.seed)]
        control = {}
        for model, given in self.answers.items():
            f1 = self.scorer.score([own[0].text for own in given], strangers)["f1"]
            control[model] = {"f1": self.mean(f1), "gap": self.gain(f1, self.scores[model, 0]["f1"])}
        return control

    def sampling(self) -> dict:
        """Greedy, the mean over the sampled answers, and the best of them, all in F1.

        The best is the one with the highest F1 against the reference: an upper bound that needs to know the
        physician's answer, as picking by hand does. `gain_of_best` is best minus mean, `best_minus_greedy`
        what the answer that counts would have gained.
        """
        f1 = {}
        for model, given in self.answers.items():
            greedy, *sampled = (self.scores[model, k]["f1"] for k in range(len(given[0])))
            tries = pd.concat(sampled, axis=1)
            f1[model] = {"greedy": greedy, "mean": tries.mean(axis=1), "best": tries.max(axis=1)}
        first, *others = f1
        return {
            "samples": max(k for _, k in self.scores),
            "models": {
                model: {kind: self.mean(values) for kind, values in own.items()}
                | {
                    "gain_of_best": self.gain(own["mean"], own["best"]),
                    "best_minus_greedy": self.gain(own["greedy"], own["best"]),
                }
                for model, own in f1.items()
            },
            "differences": {
                model: {kind: self.gain(f1[first][kind], values) for kind, values in f1[model].items()}
                for model in others
            },
        }


def _cut_alike(first: str, second: str) -> tuple[str, str]:
    length = min(words(first), words(second))
    return " ".join(first.split()[:length]), " ".join(second.split()[:length])


def derangement(n: int, seed: int) -> list[int]:
    """A seeded permutation of 0..n-1 that leaves nothing in its place (one cycle); n at least 2."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    target = [0] * n
    for here, following in zip(order, order[1:] + order[:1], strict=True):
        target[here] = following
    return target
