"""Multiple-choice evaluation of a run, in the steps of notebook 03: from questions to mcq/summary.json."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkit import MedkitError, prompts, recipes
from medkit.data.builtin import general as builtin_general
from medkit.evaluate import (
    accuracy,
    answer_parsing,
    calibration,
    general,
    generation,
    harness,
    letter_scoring,
    lineup,
    option_order,
    statistics,
)
from medkit.evaluate.lineup import Active, Lineup
from medkit.recipes import RELEASED
from medkit.records import MCQItem
from medkit.runs import lm_eval_tasks, run_json, storage
from medkit.runs.arms import adapter_files, required
from medkit.runs.run_json import Run
from medkit.runs.storage import ResultsError
from medkit.train import adapters, models, stages

NOTEBOOK = "03_mcq_eval"
SINGLE_MODEL_RECIPE = "recommended"  # for a model without a training run


@dataclass(frozen=True)
class ExamAnswers:
    """The answers of all models, as rows of the files in mcq/. What the recipe does not evaluate is empty."""

    letters: pd.DataFrame  # items.csv
    words: pd.DataFrame  # answers.jsonl, with the texts
    orders: pd.DataFrame  # permutations.csv
    general: pd.DataFrame  # general.csv
    scoring: dict[str, dict]  # per model, letter_scoring's report
    identities: dict[str, str]  # per model, the hash of its weights
    lm_eval: dict[str, dict[str, dict]]  # per model, lm-evaluation-harness's results


def begin_exams(
    run_dir: str, data_dir: str = "", model: str = "", adapter: str = "", arms: str = ""
) -> tuple[Run, Lineup]:
    """Open notebook 03's run and the models it compares.

    These are the base and the trained arms, only the `arms` named ("base,med-mix"), or a single `model` with
    an optional `adapter`. Raises ResultsError if the run lacks an arm, MedkitError for an unknown arm.
    """
    names = lineup.arm_names(arms)
    if model and names:
        raise ResultsError(f"model={model} cannot be combined with arms={arms}; set only one of them")
    run = begin(run_dir, data_dir, model, adapter, names)
    lm_eval_tasks.check(run.recipe.mcq.lm_eval_tasks)
    return run, lineup.single(run, model, adapter) if model else lineup.of_run(run, names)


def begin(run_dir: str, data_dir: str, model: str = "", adapter: str = "", arms: Sequence[str] = ()) -> Run:
    """Open the run to evaluate. For a single `model`, create it if necessary.

    Raises ResultsError if a single model would overwrite a training run's or another model's results.
    """
    storage.check_text("model", model)
    storage.check_text("adapter", adapter)
    folder = storage.folder(run_dir)
    info = run_json.read(folder)
    if adapter:
        adapters.read_config(Path(adapter).expanduser())
    if not model:
        expected = arms or (required(recipes.from_dict(info["recipe"])) if info else [])
        return run_json.begin(run_dir, NOTEBOOK, data_dir=data_dir, needs=adapter_files(*expected))
    if info is None:
        settings = {"model.base": model, **run_json.settings_of_adapter(adapter)}
        lines = "\n".join(f"{name}={value}" for name, value in settings.items())
        return run_json.begin(run_dir, NOTEBOOK, SINGLE_MODEL_RECIPE, lines, data_dir, adapter)
    base = info["recipe"]["model"]["base"]
    if "01_stage1" in info["notebooks"] or base != model:
        raise ResultsError(f"{storage.relpath(folder)} is a run of {base}; use another run_dir for {model}")
    if run_json.adapter_hash(adapter) != info.get("adapter", ""):
        raise ResultsError(
            f"{storage.relpath(folder)} is a run of {model} with another adapter, or none; use another "
            "run_dir for this one"
        )
    return run_json.begin(run_dir, NOTEBOOK, data_dir=data_dir)


def exam_items(run: Run) -> list[MCQItem]:
    """The evaluation questions of the three benchmarks, limited to the recipe's rows in file order.

    Raises MedkitError if two questions of a benchmark have the same id.
    """
    loaded = stages.load_exams(run, "eval")
    items = [item for source in loaded.values() for item in first_rows(source.records, run.recipe.mcq.rows)]
    counts = Counter((item.source, item.id) for item in items)
    if duplicates := [key for key, count in counts.items() if count > 1]:
        source, item_id = duplicates[0]
        raise MedkitError(f"{source} has two questions {item_id}; give each question a unique id")
    return items


def answer_exams(run: Run, models: Lineup, items: Sequence[MCQItem]) -> ExamAnswers:
    """Answer `items` and all else that the recipe evaluates with every model, then free the models.

    Answers are stored as they come, so that an interrupted evaluation resumes.
    """
    frames, scoring, identities, lm_eval = [], {}, {}, {}
    for active in models:
        scored = score_letters(run, active, items)
        letters = letter_scoring.frame(active.name, items, scored.outcomes)
        words, orders = answer_in_words(run, active, items), answer_all_orders(run, active, items, letters)
        frames.append((letters, words, orders, answer_general(run, active)))
        scoring[active.name], identities[active.name] = scored.report, active.identity
        lm_eval[active.name] = harness.measure(active, run.recipe.mcq.lm_eval_tasks, run.folder / ".cache")
    models.close()
    letters, words, orders, general = (
        pd.concat(by_model, ignore_index=True) for by_model in zip(*frames, strict=True)
    )
    return ExamAnswers(letters, words, orders, general, scoring, identities, lm_eval)


def answer_all_orders(
    run: Run, active: Active, items: Sequence[MCQItem], letters: pd.DataFrame
) -> pd.DataFrame:
    """A model's letters for the first questions of each benchmark in all cyclic option orders.

    Order 0 is the original and taken from `letters`. Columns: option_order.COLUMNS.
    """
    count = run.recipe.mcq.permutations
    questions = first_rows(items, count) if count else []
    rotations = option_order.rotations(questions)
    rotated_items = [item for _, item in rotations]
    rotated = letter_scoring.frame(
        active.name, rotated_items, score_letters(run, active, rotated_items).outcomes
    )
    rotated = rotated.assign(rotation=[k for k, _ in rotations])
    names = ["dataset", "item_id"]
    ids = pd.MultiIndex.from_tuples([(item.source, item.id) for item in questions], names=names)
    original = letters.set_index(names).loc[ids].reset_index().assign(rotation=0)
    return pd.concat([original, rotated], ignore_index=True)[option_order.COLUMNS]


def answer_general(run: Run, active: Active) -> pd.DataFrame:
    """A model's letters for the built-in general questions and its loss on the texts; see general.frame."""
    items, texts = [], []
    if run.recipe.mcq.general:
        items, texts = builtin_general.questions(), builtin_general.texts()
    losses = general.losses(
        active.model, active.tokenizer, texts, run.folder / ".cache" / "losses.jsonl", active.identity
    )
    return general.frame(active.name, items, score_letters(run, active, items).outcomes, losses)


def write_exams(run: Run, answers: ExamAnswers, show_text: bool = False) -> dict:
    """Write items.csv, answers.jsonl, permutations.csv, general.csv and summary.json to mcq/.

    Returns the summary: accuracy.mcq_summary with the results of the other evaluations added. Raises
    MedkitError if items.csv does not contain the answers.
    """
    contaminated = contaminated_ids(run)
    summary = accuracy.mcq_summary(answers.letters) | {
        "protocols": protocols(answers.letters, answers.words),
        "without_contaminated": without_contaminated(answers.letters, contaminated or set()),
        "contamination_known": contaminated is not None,
        "calibration": calibration.summary(answers.letters),
        "overconfidence": calibration.overconfidence(answers.letters, "med-mix", "med-nirvana"),
        "option_order": option_order.summary(answers.orders),
        "general": general.summary(answers.general),
        "lm_eval": answers.lm_eval if run.recipe.mcq.lm_eval_tasks else {},
        "scoring": answers.scoring,
    }
    write_mcq(run, answers.letters, answers.words, summary, show_text)
    for name, frame in (("permutations", answers.orders), ("general", answers.general)):
        if len(frame):
            storage.write_csv(run.folder / "mcq" / f"{name}.csv", _rounded(frame))
    saved = accuracy.read_items(run.folder)
    correct = accuracy.is_correct(answers.letters).sum()
    if len(saved) != len(answers.letters) or accuracy.is_correct(saved).sum() != correct:
        raise MedkitError("mcq/items.csv differs from the models' answers; run notebook 03 again")
    return summary


def first_rows(items: Iterable[MCQItem], rows: int) -> list[MCQItem]:
    """The first `rows` questions of each benchmark; 0 = all."""
    numbers: dict = defaultdict(itertools.count)  # running number within each benchmark
    return [item for item in items if not rows or next(numbers[item.source]) < rows]


def score_letters(run: Run, active: Active, items: Sequence[MCQItem]) -> letter_scoring.Scored:
    """letter_scoring.score with the run's settings and store."""
    return letter_scoring.score(
        active.model,
        active.tokenizer,
        items,
        **prompts.letter_position(active.tokenizer, run.recipe.data.mcq_target),
        max_batch_tokens=run.recipe.mcq.max_batch_tokens,
        prefix_cache=run.recipe.mcq.prefix_cache,
        store=run.folder / ".cache" / "letters.jsonl",
        key=active.identity,
    )


def answer_in_words(run: Run, active: Active, items: Sequence[MCQItem]) -> pd.DataFrame:
    """A model's generated answers to the first questions of each benchmark, by two protocols.

    medkit decodes greedily and parses the answer. The released notebooks sample and have their own rule.
    Columns: model, dataset, item_id, gold; text, finish, tokens, letter, tier, first_last_disagree; released
    (a letter), released_text, released_finish.
    """
    spec = run.recipe.mcq
    questions = first_rows(items, spec.generated_rows) if spec.generated_rows else []
    _, answers = _generate(run, active, questions, "", max_new_tokens=spec.max_new_tokens)
    released_prompts, released_answers = _generate(run, active, questions, "\nAnswer:", **RELEASED)
    rows = []
    for item, answer, prompt, released in zip(
        questions, answers, released_prompts, released_answers, strict=True
    ):
        row = {"model": active.name, "dataset": item.source, "item_id": item.id, "gold": item.answer}
        row |= storage.plain(answer)
        row |= storage.plain(answer_parsing.parse(answer.text, item, cut=answer.finish == "cut"))
        row["released"] = answer_parsing.as_released(prompt, released.text, item)
        rows.append(row | {"released_text": released.text, "released_finish": released.finish})
    return pd.DataFrame(rows)


def _generate(run: Run, active: Active, items: Sequence[MCQItem], suffix: str, **decoding):
    """(prompts, answers), with `suffix` appended to each question."""
    chat = prompts.ChatFormat.from_tokenizer(active.tokenizer)
    ids = [prompts.prompt_ids(active.tokenizer, chat, item, suffix) for item in items]
    answers = generation.generate_answers(
        active.model,
        active.tokenizer,
        ids,
        **decoding,
        batch_size=run.recipe.mcq.generation_batch_size(max(map(len, ids), default=1)),
        store=run.folder / ".cache" / "words.jsonl",
        key=active.identity,
    )
    return [prompts.prompt(chat, item, suffix) for item in items], [answer for (answer,) in answers]


def answer(model, tokenizer, item: MCQItem, max_new_tokens: int = 32) -> str:
    """Generate a model's greedy answer to one question."""
    ids = prompts.prompt_ids(tokenizer, prompts.ChatFormat.from_tokenizer(tokenizer), item)
    settings: dict = {"batch_size": 1, "store": None, "key": "", "progress": False}
    with models.for_inference(model):
        ((generated,),) = generation.generate_answers(
            model, tokenizer, [ids], max_new_tokens=max_new_tokens, **settings
        )
    return generated.text


def protocols(letters: pd.DataFrame, words: pd.DataFrame) -> list[dict]:
    """Compare the answering protocols per model and benchmark, on the questions that were also generated.

    "scored": letters by log-probability; "generated": answers parsed by answer_parsing.parse; "released":
    answers by the released notebooks' rule. Shares are of `n`, including unparsed answers.
    """
    if words.empty:
        return []
    keys, generated, results = ["model", "dataset", "item_id"], ("generated", "released"), []
    merged = words.merge(letters[[*keys, "predicted"]].fillna(""), on=keys, how="left")
    for (model, dataset), rows in merged.groupby(["model", "dataset"], sort=False):
        predicted = {"scored": rows["predicted"], "generated": rows["letter"], "released": rows["released"]}
        correct = {name: letters == rows["gold"] for name, letters in predicted.items()}
        tiers = {tier: rows["tier"] == tier for tier in answer_parsing.TIERS}
        scored = predicted["scored"]
        agree = {name: (predicted[name] == scored) & (predicted[name] != "") for name in generated}
        gains = {name: statistics.compare(correct["scored"], correct[name]) for name in generated}
        results.append(
            {
                "model": model,
                "dataset": dataset,
                "n": len(rows),
                "correct": {name: outcomes.sum() for name, outcomes in correct.items()},
                "accuracy": {name: outcomes.mean() for name, outcomes in correct.items()},
                "unparsed": {name: (letters == "").sum() for name, letters in predicted.items()},
                "tiers": {tier: {"count": mask.sum(), "share": mask.mean()} for tier, mask in tiers.items()},
                "first_last_disagree": rows["first_last_disagree"].mean(),
                "agreement_with_scored": {name: mask.mean() for name, mask in agree.items()},
                "cut": (rows["finish"] == "cut").mean(),  # at max_new_tokens
                "too_long": (rows["finish"] == "too long").sum(),  # for the model's context; not generated
                "minus_scored": gains,
            }
        )
    return storage.plain(results)


def contaminated_ids(run: Run) -> set[tuple[str, str]] | None:
    """(source, id) of the questions that occur in training rows of either stage.

    None if there is no data/manifest.json.
    """
    path = run.folder / "data" / "manifest.json"
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    # A joint arm has no separate stage 1; its "stage2" covers all rows.
    overlaps = [stage.get("overlap", {}) for stage in (manifest, manifest.get("stage2", {}))]
    return {tuple(name.split("/", 1)) for overlap in overlaps for name in overlap.get("contaminated", [])}


def without_contaminated(letters: pd.DataFrame, contaminated: set[tuple[str, str]]) -> dict:
    """Accuracies without the contaminated questions, and how many were left out per benchmark."""
    keys = pd.Series(list(zip(letters["dataset"], letters["item_id"], strict=True)), index=letters.index)
    is_contaminated = keys.isin(contaminated)
    left_out = letters[is_contaminated].drop_duplicates(["dataset", "item_id"])
    return {
        "left_out": left_out["dataset"].value_counts().to_dict(),
        "datasets": accuracy.accuracies(letters[~is_contaminated]),
    }


def wrong(letters: pd.DataFrame, model: str, count: int, seed: int = 0) -> pd.DataFrame:
    """A seeded sample of up to `count` questions that `model` answered incorrectly."""
    errors = letters[(letters["model"] == model) & ~accuracy.is_correct(letters)]
    return errors.sample(min(count, len(errors)), random_state=seed).sort_index()


def write_mcq(run: Run, letters: pd.DataFrame, words: pd.DataFrame, summary: dict, show_text: bool) -> None:
    """Write mcq/items.csv, mcq/answers.jsonl and mcq/summary.json.

    Generated texts repeat the data set's options, so they are written only if the run may show its rows.
    """
    folder = run.folder / "mcq"
    storage.write_csv(folder / "items.csv", _rounded(letters))
    hidden = [] if run_json.may_show(run, show_text) else ["text", "released_text"]
    storage.write_jsonl(
        folder / "answers.jsonl", words.drop(columns=hidden, errors="ignore").to_dict("records")
    )
    storage.write_json(folder / "summary.json", summary)


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{name: frame[name].round(5) for name in calibration.LOGPROBS})
