"""Compares answers to patients' questions with the physicians': similarity, length and style.

Similarity to one physician's wording is not safety, and it rewards a matching length. Scores are therefore
reported with lengths, length-matched differences and a control with shuffled references.
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
from medkit.evaluate.scorer import BERTSCORE, Scorer
from medkit.evaluate.style import MARKERS, in_another_script, markers, word_count
from medkit.records import ConsumerQuery
from medkit.runs import storage

SCORES = (*BERTSCORE, "rouge_l")
# by model, per case: the greedy answer, then the sampled answers
Answers = dict[str, list[list[Answer]]]


def draw(queries: Sequence[ConsumerQuery], cases: int, seed: int) -> list[ConsumerQuery]:
    """Draw `cases` queries, equally many per source; all queries if there are fewer.

    If a source has too few, the others make up the difference. The draw does not depend on the order of
    `queries`, and with the same seed a smaller draw is a prefix of a larger one.
    Raises MedkitError if there are no queries, or if an id occurs twice in a source.
    """
    if not queries:
        raise MedkitError("no consumer queries; use a data folder with icliniq or healthcaremagic in it")
    if len({(query.source, query.id) for query in queries}) < len(queries):
        raise MedkitError("a consumer query's id occurs twice in its source; make the ids unique")
    groups = []
    for source in sorted({query.source for query in queries}):
        group = sorted((query for query in queries if query.source == source), key=lambda query: query.id)
        random.Random(f"{seed} {source}").shuffle(group)
        groups.append(group)
    rounds = range(max(map(len, groups)))
    return [group[i] for i in rounds for group in groups if i < len(group)][:cases]


def evaluate(
    cases: Sequence[ConsumerQuery],
    answers: Answers,
    scorer: Scorer,
    *,
    decoding: dict,
    skipped: dict[str, int],
    seed: int = 0,
) -> tuple[dict, pd.DataFrame]:
    """Score every answer; returns (summary, scores).

    `answers` has equally many answers to each case. All models are compared with the first. `decoding` and
    `skipped` (rows left out before the draw, by reason) are copied into the summary.

    `scores` has one row per model, case and answer (`sample` 0 is greedy) and no text. Means in the summary
    have 95% bootstrap intervals over the cases (null for fewer than two). Differences are paired, a model
    minus the first. Shares are of the cases.
    """
    samples = [(model, k) for model, per_case in answers.items() for k in range(len(per_case[0]))]
    samples.sort(key=lambda sample: sample[1] > 0)  # the greedy answers of all models first
    scores = {
        (model, k): _score(cases, model, k, [case_answers[k] for case_answers in answers[model]], scorer)
        for model, k in samples
    }
    evaluation = _Evaluation(cases, answers, scorer, scores, seed)
    first, *others = answers
    summary = {
        "scorer": scorer.settings,
        "decoding": decoding,
        "n": len(cases),
        "sources": pd.Series([case.source for case in cases]).value_counts().to_dict(),
        "passed_over": skipped,
        "models": {model: evaluation.of_model(model) for model in answers},
        "reference": evaluation.of_physicians(),
        "differences": {model: evaluation.comparison(first, model) for model in others},
        "control": evaluation.control() if len(cases) > 1 else None,
        "sampling": evaluation.sampling() if len(samples) > len(answers) else None,
    }
    return storage.plain(summary), pd.concat(scores.values(), ignore_index=True)


def _score(cases, model: str, sample: int, answers: Sequence[Answer], scorer: Scorer) -> pd.DataFrame:
    texts = [answer.text for answer in answers]
    columns = pd.DataFrame(
        {
            "model": model,
            "case": [case.id for case in cases],
            "source": [case.source for case in cases],
            "sample": sample,
            "words": [word_count(text) for text in texts],
            "reference_words": [word_count(case.reference) for case in cases],
            "finish": [answer.finish for answer in answers],
            "empty": [not text.strip() for text in texts],
            "other_script": [in_another_script(text) for text in texts],
        }
    )
    style = pd.DataFrame([markers(text) for text in texts])
    return pd.concat([columns, scorer.score(texts, [case.reference for case in cases]), style], axis=1)


@dataclass(frozen=True)
class _Evaluation:
    """The sections of the summary. scores: one row per case, by model and sample."""

    cases: Sequence[ConsumerQuery]
    answers: Answers
    scorer: Scorer
    scores: dict[tuple[str, int], pd.DataFrame]
    seed: int

    def mean(self, values: ArrayLike) -> dict:
        return statistics.bootstrap_mean(values, self.seed).as_dict("mean")

    def difference(self, first: ArrayLike, second: ArrayLike) -> dict:
        """Second minus first, paired."""
        return statistics.paired_difference(first, second, self.seed).as_dict("mean")

    def tested_difference(self, first: ArrayLike, second: ArrayLike) -> dict:
        return self.difference(first, second) | {"p": statistics.sign_flip_p(first, second, self.seed)}

    def lengths(self, word_counts: Sequence[int]) -> dict:
        return self.mean(word_counts) | {"median": np.median(word_counts), "max": max(word_counts)}

    def style_differences(self, first: pd.DataFrame, second: pd.DataFrame) -> dict[str, dict]:
        """For each marker its share in `second` minus its share in `first`."""
        compared = {name: statistics.compare(first[name], second[name], self.seed) for name in MARKERS}
        return {
            name: {"mean": row.difference, "low": row.low, "high": row.high} for name, row in compared.items()
        }

    @cached_property
    def physician_style(self) -> pd.DataFrame:
        return pd.DataFrame([markers(case.reference) for case in self.cases])

    def of_model(self, model: str) -> dict:
        rows = self.scores[model, 0]
        means = {metric: self.mean(rows[metric]) for metric in SCORES}
        rescaled = None
        if self.scorer.baseline:
            rescaled = {
                metric: {name: self.scorer.rescale(metric, value) for name, value in means[metric].items()}
                for metric in BERTSCORE
            }
        return {
            **means,
            "rescaled": rescaled,
            "words": self.lengths(rows["words"]),
            "style": rows[list(MARKERS)].mean().to_dict(),
            "cut": (rows["finish"] == "cut").sum(),
            "too_long": (rows["finish"] == "too long").sum(),  # prompts that exceed the context length
            **{name: rows[name].sum() for name in ("empty", "truncated", "other_script")},
            "style_minus_physicians": self.style_differences(self.physician_style, rows),
        }

    def of_physicians(self) -> dict:
        references = [case.reference for case in self.cases]
        return {
            "words": self.lengths([word_count(reference) for reference in references]),
            "style": self.physician_style.mean().to_dict(),
            "truncated": sum(map(self.scorer.is_truncated, references)),
        }

    def comparison(self, first: str, second: str) -> dict:
        """Second model minus first, on the greedy answers."""
        before, after = self.scores[first, 0], self.scores[second, 0]
        return {
            "minus": first,
            **{name: self.tested_difference(before[name], after[name]) for name in (*SCORES, "words")},
            "length_matched": self.length_matched(first, second),
            "style": self.style_differences(before, after),
        }

    def length_matched(self, first: str, second: str) -> dict:
        """Difference in F1 after cutting both answers to a case to the length of the shorter one.

        This removes the effect of length, but compares only the beginnings: an answer that comes to the point
        late is at a disadvantage. Cases with an empty answer are omitted; `n` counts the rest.
        """
        pairs = [
            (*_cut_to_shorter(before.text, after.text), case.reference)
            for case, (before, *_), (after, *_) in zip(
                self.cases, self.answers[first], self.answers[second], strict=True
            )
            if before.text.strip() and after.text.strip()
        ]
        references = [reference for *_, reference in pairs]
        before, after = (self.scorer.score([pair[k] for pair in pairs], references)["f1"] for k in (0, 1))
        return {"n": len(pairs), "f1": self.tested_difference(before, after)}

    def control(self) -> dict:
        """F1 of the same answers against the reference of another case.

        This is the score for merely sounding like a physician. `gap` is the F1 against the case's reference
        minus this F1.
        """
        references = [self.cases[i].reference for i in derangement(len(self.cases), self.seed)]
        control = {}
        for model, answers in self.answers.items():
            f1 = self.scorer.score([greedy.text for greedy, *_ in answers], references)["f1"]
            control[model] = {"f1": self.mean(f1), "gap": self.difference(f1, self.scores[model, 0]["f1"])}
        return control

    def sampling(self) -> dict:
        """F1 of the greedy answer, of the sampled answers on average, and of the best sampled answer.

        The best answer is the one with the highest F1 against the reference, as in manual selection. It is an
        upper bound, because it requires the physician's answer. `gain_of_best` is best minus mean.
        """
        f1 = {}
        for model, answers in self.answers.items():
            greedy, *samples = (self.scores[model, k]["f1"] for k in range(len(answers[0])))
            sampled = pd.concat(samples, axis=1)
            f1[model] = {"greedy": greedy, "mean": sampled.mean(axis=1), "best": sampled.max(axis=1)}
        first, *others = f1
        return {
            "samples": max(k for _, k in self.scores),
            "models": {
                model: {kind: self.mean(values) for kind, values in by_kind.items()}
                | {
                    "gain_of_best": self.difference(by_kind["mean"], by_kind["best"]),
                    "best_minus_greedy": self.difference(by_kind["greedy"], by_kind["best"]),
                }
                for model, by_kind in f1.items()
            },
            "differences": {
                model: {kind: self.difference(f1[first][kind], values) for kind, values in f1[model].items()}
                for model in others
            },
        }


def _cut_to_shorter(first: str, second: str) -> tuple[str, str]:
    length = min(word_count(first), word_count(second))
    return " ".join(first.split()[:length]), " ".join(second.split()[:length])


def derangement(n: int, seed: int) -> list[int]:
    """A seeded permutation of 0..n-1 without fixed points (a single cycle); n is at least 2."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    permutation = [0] * n
    for item, successor in zip(order, order[1:] + order[:1], strict=True):
        permutation[item] = successor
    return permutation
