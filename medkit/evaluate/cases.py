"""The steps of notebook 04: draw patients' queries, answer them with each model, score the answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from medkit import MedkitError, prompts
from medkit.evaluate import consumer, generation, lineup
from medkit.evaluate.generation import Answer
from medkit.evaluate.lineup import Active, Lineup
from medkit.evaluate.scorer import Scorer
from medkit.records import ConsumerQuery
from medkit.runs import run_json, storage
from medkit.runs.arms import adapter_files
from medkit.runs.run_json import Run
from medkit.text_keys import normalize, text_of
from medkit.train import stages

REPEATED = 8  # consecutive words; an answer that repeats as many from a data set has its text withheld


@dataclass(frozen=True)
class QueryAnswers:
    """by_model: per model and case, the greedy answer, then the sampled answers. identities: per model, the
    hash of its weights."""

    by_model: consumer.Answers
    identities: dict[str, str]


def begin_queries(run_dir: str, data_dir: str = "", arms: str = "base,med-nirvana") -> tuple[Run, Lineup]:
    """Open notebook 04's run and its models. The first model is the reference for comparisons.

    Raises ResultsError if the run lacks a model, MedkitError for an unknown arm.
    """
    names = lineup.arm_names(arms)
    if not names:
        raise MedkitError("arms is empty; name the models to compare, e.g. arms=base,med-nirvana")
    run = run_json.begin(run_dir, "04_consumer_eval", data_dir=data_dir, needs=adapter_files(*names))
    return run, lineup.of_run(run, names)


def draw_queries(run: Run) -> tuple[list[ConsumerQuery], dict[str, dict[str, int]]]:
    """Draw the recipe's patients' queries.

    Also returns numbers among all rows read: those "passed_over", by reason, and the "notes" on the others.
    """
    loaded = [stages.load_source(run, name, "eval") for name in ("icliniq", "healthcaremagic")]
    counts = {
        "passed_over": dict(sum((rows.dropped for rows in loaded), Counter())),
        "notes": dict(sum((rows.notes for rows in loaded), Counter())),
    }
    queries = [query for rows in loaded for query in rows.records]
    return consumer.draw(queries, run.recipe.consumer.cases, run.recipe.consumer.seed), counts


def answer_queries(run: Run, models: Lineup, cases: Sequence[ConsumerQuery]) -> QueryAnswers:
    """Answer `cases` with every model, then free the models.

    Answers are saved after each batch, so that an interrupted evaluation can resume.
    """
    by_model, identities = {}, {}
    for active in models:
        by_model[active.name] = answer_cases(run, active, cases)
        identities[active.name] = active.identity
    models.close()
    return QueryAnswers(by_model, identities)


def write_queries(
    run: Run,
    cases: Sequence[ConsumerQuery],
    answers: QueryAnswers,
    row_counts: dict[str, dict[str, int]],
    show_text: bool = False,
) -> tuple[dict, pd.DataFrame]:
    """Write consumer/answers.jsonl, scores.csv and summary.json.

    Returns (summary, scores) of consumer.evaluate; the summary also has `row_counts` and the number of
    "answers_withheld".
    """
    spec = run.recipe.consumer
    decoding = {
        "greedy": {"max_new_tokens": spec.max_new_tokens},
        "sampled": {"samples": spec.samples, "temperature": spec.temperature, "seed": spec.seed},
    }
    scorer = Scorer(spec.scorer, spec.scorer_layers)
    skipped = row_counts["passed_over"]
    summary, scores = consumer.evaluate(
        cases, answers.by_model, scorer, decoding=decoding, skipped=skipped, seed=spec.seed
    )
    summary |= row_counts
    summary["answers_withheld"] = write_answers(run, cases, answers.by_model, show_text)
    storage.write_csv(run.folder / "consumer" / "scores.csv", scores)
    storage.write_json(run.folder / "consumer" / "summary.json", summary)
    return summary, scores


def answer_cases(run: Run, active: Active, cases: Sequence[ConsumerQuery]) -> list[list[Answer]]:
    """One model's answers: per case the greedy answer, then the recipe's number of sampled answers."""
    spec = run.recipe.consumer
    chat = prompts.ChatFormat.from_tokenizer(active.tokenizer)
    ids = [prompts.prompt_ids(active.tokenizer, chat, case) for case in cases]
    settings: dict = {
        "max_new_tokens": spec.max_new_tokens,
        "batch_size": spec.batch_size,
        "key": active.identity,
        "store": run.folder / ".cache" / "consumer.jsonl",
    }
    answers = generation.generate_answers(active.model, active.tokenizer, ids, **settings)
    if spec.samples:
        settings |= {"samples": spec.samples, "temperature": spec.temperature, "seed": spec.seed}
        sampled = generation.generate_answers(active.model, active.tokenizer, ids, **settings)
        answers = [[*greedy, *rest] for greedy, rest in zip(answers, sampled, strict=True)]
    return answers


def write_answers(run: Run, cases: Sequence[ConsumerQuery], answers: dict, show_text: bool) -> int:
    """Write consumer/answers.jsonl; returns how many answers have their text withheld.

    Unless all text may be shown, this is an answer that repeats REPEATED consecutive words of the case's
    query or reference.
    """
    show_all, rows = run_json.may_show(run, show_text), []
    for model, per_case in answers.items():
        for case, case_answers in zip(cases, per_case, strict=True):
            for sample, answer in enumerate(case_answers):
                row = {"model": model, "source": case.source, "case": case.id, "sample": sample}
                row |= storage.plain(answer)
                if not show_all and _ngrams(answer.text) & _ngrams(text_of(case)):
                    row["text"] = None
                rows.append(row)
    storage.write_jsonl(run.folder / "consumer" / "answers.jsonl", rows)
    return sum(row["text"] is None for row in rows)


def _ngrams(text: str) -> set[tuple[str, ...]]:
    """All sequences of REPEATED consecutive words."""
    words = normalize(text).split()
    return {tuple(words[i : i + REPEATED]) for i in range(len(words) - REPEATED + 1)}
