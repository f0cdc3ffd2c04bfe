"""Answers to patients' questions beside the physicians': which cases, how near, how long, in what style.

What is measured is likeness to one physician's wording. Likeness is not safety, and rewards matching length;
hence the lengths, the length-matched difference and the shuffled references beside every score.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import pandas as pd

from medkit import MedkitError
from medkit.evaluate import statistics
from medkit.evaluate.generation import Answer
from medkit.evaluate.scorer import PARTS, Scorer
from medkit.evaluate.style import MARKERS, in_another_script, markers, words
from medkit.records import ConsumerQuery

SCORES = (*PARTS, "rouge_l")


class ConsumerError(MedkitError):
    """Cases or answers that cannot be evaluated."""


def draw(queries: Sequence[ConsumerQuery], cases: int, seed: int) -> list[ConsumerQuery]:
    """`cases` queries in equal numbers from each source, or all of them where there are fewer.

    A source that has too few gives what it has, the others the rest. What is drawn does not depend on the
    order of `queries`, and a smaller draw of the same seed is the beginning of a larger one.
    Raises ConsumerError where there is no query, or one id stands twice in a source.
    """
    if not queries:
        raise ConsumerError("no consumer queries: give a data folder with icliniq or healthcaremagic in it")
    if len({(query.source, query.id) for query in queries}) < len(queries):
        raise ConsumerError("a consumer query's id stands twice in its source: ids must tell cases apart")
    by_source = {}
    for source in sorted({query.source for query in queries}):
        own = sorted((query for query in queries if query.source == source), key=lambda query: query.id)
        random.Random(f"{seed} {source}").shuffle(own)
        by_source[source] = own
    rounds = range(max(len(own) for own in by_source.values()))
    return [own[i] for i in rounds for own in by_source.values() if i < len(own)][:cases]


def evaluate(
    cases: Sequence[ConsumerQuery],
    answers: dict[str, Sequence[Answer]],
    scorer: Scorer,
    *,
    sampled: dict[str, Sequence[Sequence[Answer]]] | None = None,
    decoding: dict,
    passed_over: dict[str, int],
    seed: int = 0,
) -> tuple[dict, pd.DataFrame]:
    """Everything Table 4 and its neighbours print, as (summary, scores).

    `answers` has, per model, the greedy answer to each case, in order; the first model is the one the others
    are compared with. `sampled` has, per model, the same number of sampled answers to each case. `decoding`
    and `passed_over` (rows left out before the draw, by reason) are handed through to the summary.

    `scores` has one row per model, case and answer (`sample` 0 is greedy, sampled ones count from 1) and no
    text. Means in the summary have 95% bootstrap intervals over the cases; differences are paired, a model
    minus the first; shares are of the cases.
    Raises ConsumerError where answers and cases do not match in number.
    """
    sampled = sampled or {}
    _check(cases, answers, sampled)
    scores = pd.concat(
        [_score(cases, model, 0, given, scorer) for model, given in answers.items()]
        + [
            _score(cases, model, k + 1, [per_case[k] for per_case in given], scorer)
            for model, given in sampled.items()
            for k in range(len(given[0]))
        ],
        ignore_index=True,
    )
    references = [case.reference for case in cases]
    physicians = pd.DataFrame([markers(text) for text in references])
    greedy = {model: rows.reset_index(drop=True) for model, rows in _of(scores, sample=0).groupby("model")}
    first, *others = answers
    summary = {
        "scorer": {
            "model": scorer.name,
            "layers": scorer.layers,
            "hash": scorer.hash,
            "rescaled": bool(scorer.baseline),
            "limit_tokens": scorer.limit,
        },
        "decoding": decoding,
        "n": len(cases),
        "sources": {str(k): int(v) for k, v in pd.Series([c.source for c in cases]).value_counts().items()},
        "passed_over": passed_over,
        "models": {
            model: _of_model(greedy[model], scorer, seed)
            | {"style_minus_physicians": _style_differences(physicians, greedy[model], seed)}
            for model in answers
        },
        "reference": {
            "words": _lengths([words(text) for text in references], seed),
            "style": _style(physicians.to_dict("records")),
            "truncated": sum(scorer.too_long(text) for text in references),
        },
        "differences": {
            model: _differences(greedy[first], greedy[model], first, seed)
            | {"length_matched": _length_matched(cases, answers[first], answers[model], scorer, seed)}
            | {"style": _style_differences(greedy[first], greedy[model], seed)}
            for model in others
        },
        "control": _shuffled(cases, answers, greedy, scorer, seed),
        "sampling": _sampling(scores, list(answers), list(sampled), seed),
    }
    return summary, scores


def _check(cases, answers, sampled):
    if not cases or not answers:
        raise ConsumerError("no cases or no model's answers: there is nothing to evaluate")
    for model, given in [*answers.items(), *sampled.items()]:
        if len(given) != len(cases):
            raise ConsumerError(f"{model} has {len(given)} answers to {len(cases)} cases: generate them anew")
    for model, given in sampled.items():
        if model not in answers:
            raise ConsumerError(f"{model} has sampled answers and no greedy ones: generate those too")
        if len({len(per_case) for per_case in given}) > 1 or not given[0]:
            raise ConsumerError(f"{model} has not the same number of sampled answers to each case")


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


def _of_model(rows: pd.DataFrame, scorer: Scorer, seed: int) -> dict:
    means = {part: _interval(statistics.bootstrap_mean(rows[part], seed)) for part in SCORES}
    rescaled = None
    if scorer.baseline:
        rescaled = {
            part: {k: None if v is None else scorer.rescaled(part, v) for k, v in means[part].items()}
            for part in PARTS
        }
    return {
        **means,
        "rescaled": rescaled,
        "words": _lengths(rows["words"], seed),
        "style": _style(rows[list(MARKERS)].to_dict("records")),
        "cut": int((rows["finish"] == "cut").sum()),
        "too_long": int((rows["finish"] == "too long").sum()),  # for the model's context: not asked
        "empty": int(rows["empty"].sum()),
        "truncated": int(rows["truncated"].sum()),
        "other_script": int(rows["other_script"].sum()),
    }


def _differences(first: pd.DataFrame, second: pd.DataFrame, first_name: str, seed: int) -> dict:
    parts = (*SCORES, "words")
    paired = {part: statistics.paired_difference(first[part], second[part], seed) for part in parts}
    p = {part: statistics.sign_flip_p(first[part], second[part], seed) for part in parts}
    return {"minus": first_name} | {part: _interval(paired[part], p[part]) for part in parts}


def _length_matched(cases, first: Sequence[Answer], second: Sequence[Answer], scorer, seed: int) -> dict:
    """Difference in F1 with both answers to a case cut to the words of the shorter one.

    It asks what is left of a difference when neither answer can gain by its length. It compares beginnings:
    an answer that comes to the point late loses by it. Cases with an empty answer are left out, and `n`
    counts the rest.
    """
    pairs = [
        (*_cut_alike(one.text, other.text), case.reference)
        for case, one, other in zip(cases, first, second, strict=True)
        if one.text.strip() and other.text.strip()
    ]
    references = [reference for _, _, reference in pairs]
    ours, theirs = (scorer.score([pair[k] for pair in pairs], references)["f1"] for k in (1, 0))
    p = statistics.sign_flip_p(theirs, ours, seed)
    return {"n": len(pairs), "f1": _interval(statistics.paired_difference(theirs, ours, seed), p)}


def _cut_alike(one: str, other: str) -> tuple[str, str]:
    length = min(words(one), words(other))
    return " ".join(one.split()[:length]), " ".join(other.split()[:length])


def _shuffled(cases, answers, greedy, scorer, seed: int) -> dict | None:
    """The same answers against another case's physician: what merely sounding like a physician earns.

    `gap` is the own reference's F1 minus the shuffled one's. None for a single case.
    """
    if len(cases) < 2:
        return None
    strangers = [cases[i].reference for i in derangement(len(cases), seed)]
    control = {}
    for model, given in answers.items():
        shuffled = scorer.score([answer.text for answer in given], strangers)["f1"]
        control[model] = {
            "f1": _interval(statistics.bootstrap_mean(shuffled, seed)),
            "gap": _interval(statistics.paired_difference(shuffled, greedy[model]["f1"], seed)),
        }
    return control


def derangement(n: int, seed: int) -> list[int]:
    """A seeded permutation of 0..n-1 that leaves nothing in its place (one cycle); n at least 2."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    target = [0] * n
    for here, following in zip(order, order[1:] + order[:1], strict=True):
        target[here] = following
    return target


def _sampling(scores: pd.DataFrame, models: list[str], sampled: list[str], seed: int) -> dict | None:
    """Greedy, the mean over the sampled answers, and the best of them, all in F1.

    The best is the one with the highest F1 against the reference: an upper bound that needs to know the
    physician's answer, as picking by hand does. `gain_of_best` is best minus mean, `best_minus_greedy` what
    the answer that counts would have gained.
    """
    if not sampled:
        return None
    per_case = {}
    for model in sampled:
        tries = (
            _of(scores, model=model).query("sample > 0").pivot(index="case", columns="sample", values="f1")
        )
        one = _of(scores, model=model, sample=0).set_index("case")["f1"]
        tries = tries.loc[one.index]
        per_case[model] = {"greedy": one, "mean": tries.mean(axis=1), "best": tries.max(axis=1)}
    first = models[0]
    return {
        "samples": int(scores["sample"].max()),
        "models": {
            model: {how: _interval(statistics.bootstrap_mean(f1, seed)) for how, f1 in kinds.items()}
            | {
                name: _interval(statistics.paired_difference(kinds[other], kinds["best"], seed))
                for name, other in (("gain_of_best", "mean"), ("best_minus_greedy", "greedy"))
            }
            for model, kinds in per_case.items()
        },
        "differences": {
            model: {
                how: _interval(statistics.paired_difference(per_case[first][how], kinds[how], seed))
                for how in kinds
            }
            for model, kinds in per_case.items()
            if model != first and first in per_case
        },
    }


def _lengths(counts: Sequence[int], seed: int) -> dict:
    return _interval(statistics.bootstrap_mean(counts, seed)) | {
        "median": float(np.median(counts)),
        "max": int(max(counts)),
    }


def _style(found: list[dict[str, bool]]) -> dict[str, float]:
    return {name: sum(marks[name] for marks in found) / len(found) for name in MARKERS}


def _style_differences(first: pd.DataFrame, second: pd.DataFrame, seed: int) -> dict[str, dict]:
    """Per marker the share of `second` minus that of `first`, paired over the cases."""
    return {
        name: _interval(
            statistics.paired_difference(first[name].astype(float), second[name].astype(float), seed)
        )
        for name in MARKERS
    }


def _of(scores: pd.DataFrame, **wanted) -> pd.DataFrame:
    for column, value in wanted.items():
        scores = scores[scores[column] == value]
    return scores


def _interval(result: statistics.Mean, p: float | None = None) -> dict[str, float | None]:
    """JSON has no NaN: an interval of fewer than two cases is null. `p`: of a difference."""
    found = {"mean": result.mean, "low": result.low, "high": result.high}
    found |= {} if p is None else {"p": p}
    return {name: None if math.isnan(value) else value for name, value in found.items()}
