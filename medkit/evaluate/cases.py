"""The patients' queries of a run, step by step as notebook 04 takes them: cases in, answers out."""

from collections import Counter
from collections.abc import Sequence

from medkit import prompts
from medkit.data import contamination
from medkit.evaluate import consumer, generation
from medkit.evaluate.generation import Answer
from medkit.evaluate.lineup import Active
from medkit.records import ConsumerQuery
from medkit.runs import run_json, storage
from medkit.runs.run_json import Run
from medkit.train import stages

REPEATED = 8  # words in a row that an answer must share with a data set's row for its text to be withheld


def drawn(run: Run) -> tuple[list[ConsumerQuery], dict[str, int]]:
    """The recipe's draw of patients' queries, and how many rows were passed over for which reason."""
    loaded = [stages.load(run, name, "eval") for name in ("icliniq", "healthcaremagic")]
    passed_over = sum((one.dropped for one in loaded), Counter())
    queries = [query for one in loaded for query in one.records]
    return consumer.draw(queries, run.recipe.consumer.cases, run.recipe.consumer.seed), dict(passed_over)


def answer(run: Run, active: Active, cases: Sequence[ConsumerQuery]) -> list[list[Answer]]:
    """Per case one model's greedy answer and, after it, the recipe's number of sampled ones."""
    spec = run.recipe.consumer
    chat = prompts.ChatFormat.from_tokenizer(active.tokenizer)
    ids = [prompts.prompt_ids(active.tokenizer, chat, case) for case in cases]
    common = {"max_new_tokens": spec.max_new_tokens, "batch_size": spec.batch_size, "key": active.identity}
    common["store"] = run.folder / ".cache" / "consumer.jsonl"
    given = generation.generate_answers(active.model, active.tokenizer, ids, **common)
    if spec.samples:
        sampled = {"samples": spec.samples, "temperature": spec.temperature, "seed": spec.seed}
        more = generation.generate_answers(active.model, active.tokenizer, ids, **common, **sampled)
        given = [[*one, *others] for one, others in zip(given, more, strict=True)]
    return given


def decoding(run: Run) -> dict:
    spec = run.recipe.consumer
    return {
        "greedy": {"max_new_tokens": spec.max_new_tokens},
        "sampled": {"samples": spec.samples, "temperature": spec.temperature, "seed": spec.seed},
    }


def write(run: Run, cases: Sequence[ConsumerQuery], answers: dict, show_text: bool) -> int:
    """consumer/answers.jsonl; returns of how many answers the text was withheld.

    Withheld is what repeats REPEATED words in a row of a data set's query or physician's answer.
    """
    shown, rows = run_json.may_show(run, show_text), []
    for model, given in answers.items():
        for case, own in zip(cases, given, strict=True):
            for sample, answer in enumerate(own):
                row = {"model": model, "source": case.source, "case": case.id, "sample": sample}
                row |= storage.plain(answer)
                if not shown and _repeats(answer.text, f"{case.query}\n{case.reference}"):
                    row["text"] = None
                rows.append(row)
    storage.write_jsonl(run.folder / "consumer" / "answers.jsonl", rows)
    return sum(row["text"] is None for row in rows)


def _repeats(answer: str, row: str) -> bool:
    return bool(_runs_of_words(answer) & _runs_of_words(row))


def _runs_of_words(text: str) -> set[tuple[str, ...]]:
    words = contamination.normalize(text).split()
    return {tuple(words[i : i + REPEATED]) for i in range(len(words) - REPEATED + 1)}
