"""The patients' queries of a run as notebook 04 takes them: cases in, answers and scores out."""

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
from medkit.text_keys import normalize
from medkit.train import stages

REPEATED = 8  # words in a row that an answer must share with a data set's row for its text to be withheld


@dataclass(frozen=True)
class QueryAnswers:
    """by_model: per model and case the greedy answer and, after it, the sampled ones. identities: per model
    the hash of its weights."""

    by_model: consumer.Answers
    identities: dict[str, str]


def begin_queries(run_dir: str, data_dir: str = "", arms: str = "base,med-nirvana") -> tuple[Run, Lineup]:
    """Notebook 04's run, and the models that it compares; the first is the one the others are compared with.
    Raises ResultsError where the run lacks one, ArmError for an unknown arm."""
    names = lineup.named(arms)
    if not names:
        raise MedkitError("arms is empty; name the models to ask, e.g. arms=base,med-nirvana")
    run = run_json.begin(run_dir, "04_consumer_eval", data_dir=data_dir, needs=adapter_files(*names))
    return run, lineup.of_run(run, names)


def draw_queries(run: Run) -> tuple[list[ConsumerQuery], dict[str, int]]:
    """The recipe's draw of patients' queries, and how many rows were left out before it, by reason."""
    loaded = [stages.load_source(run, name, "eval") for name in ("icliniq", "healthcaremagic")]
    left_out = sum((rows.dropped for rows in loaded), Counter())
    queries = [query for rows in loaded for query in rows.records]
    return consumer.draw(queries, run.recipe.consumer.cases, run.recipe.consumer.seed), dict(left_out)


def answer_queries(run: Run, models: Lineup, cases: Sequence[ConsumerQuery]) -> QueryAnswers:
    """Every model's answers to `cases`, kept as they come: a killed evaluation resumes where it stopped.
    Frees the models at the end."""
    by_model, identities = {}, {}
    for active in models:
        by_model[active.name] = answer(run, active, cases)
        identities[active.name] = active.identity
    models.close()
    return QueryAnswers(by_model, identities)


def write_queries(
    run: Run,
    cases: Sequence[ConsumerQuery],
    answers: QueryAnswers,
    left_out: dict[str, int],
    show_text: bool = False,
) -> tuple[dict, pd.DataFrame]:
    """consumer/answers.jsonl, scores.csv and summary.json; returns (summary, scores) as consumer.evaluate
    does, with the number of "answers_withheld" in the summary."""
    spec = run.recipe.consumer
    decoding = {
        "greedy": {"max_new_tokens": spec.max_new_tokens},
        "sampled": {"samples": spec.samples, "temperature": spec.temperature, "seed": spec.seed},
    }
    scorer = Scorer(spec.scorer, spec.scorer_layers)
    summary, scores = consumer.evaluate(
        cases, answers.by_model, scorer, decoding=decoding, skipped=left_out, seed=spec.seed
    )
    summary["answers_withheld"] = write_answers(run, cases, answers.by_model, show_text)
    storage.write_csv(run.folder / "consumer" / "scores.csv", scores)
    storage.write_json(run.folder / "consumer" / "summary.json", summary)
    return summary, scores


def answer(run: Run, active: Active, cases: Sequence[ConsumerQuery]) -> list[list[Answer]]:
    """Per case one model's greedy answer and, after it, the recipe's number of sampled ones."""
    spec = run.recipe.consumer
    chat = prompts.ChatFormat.from_tokenizer(active.tokenizer)
    ids = [prompts.prompt_ids(active.tokenizer, chat, case) for case in cases]
    settings = {"max_new_tokens": spec.max_new_tokens, "batch_size": spec.batch_size, "key": active.identity}
    settings["store"] = run.folder / ".cache" / "consumer.jsonl"
    answers = generation.generate_answers(active.model, active.tokenizer, ids, **settings)
    if spec.samples:
        settings |= {"samples": spec.samples, "temperature": spec.temperature, "seed": spec.seed}
        sampled = generation.generate_answers(active.model, active.tokenizer, ids, **settings)
        answers = [[*greedy, *others] for greedy, others in zip(answers, sampled, strict=True)]
    return answers


def write_answers(run: Run, cases: Sequence[ConsumerQuery], answers: dict, show_text: bool) -> int:
    """consumer/answers.jsonl; returns of how many answers the text was withheld: those that repeat REPEATED
    words in a row of a data set's query or physician's answer."""
    shown, rows = run_json.may_show(run, show_text), []
    for model, given in answers.items():
        for case, own in zip(cases, given, strict=True):
            for sample, answer in enumerate(own):
                row = {"model": model, "source": case.source, "case": case.id, "sample": sample}
                row |= storage.plain(answer)
                if not shown and _sequences(answer.text) & _sequences(f"{case.query}\n{case.reference}"):
                    row["text"] = None
                rows.append(row)
    storage.write_jsonl(run.folder / "consumer" / "answers.jsonl", rows)
    return sum(row["text"] is None for row in rows)


def _sequences(text: str) -> set[tuple[str, ...]]:
    """Every REPEATED words in a row."""
    words = normalize(text).split()
    return {tuple(words[i : i + REPEATED]) for i in range(len(words) - REPEATED + 1)}
