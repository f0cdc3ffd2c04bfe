"""The exam questions of a run, step by step as notebook 03 takes them: questions in, outcomes out."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkit import MedkitError, prompts
from medkit.data.builtin import general as written
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
from medkit.runs.arms import adapter_files
from medkit.runs.run_json import Run
from medkit.runs.storage import ResultsError
from medkit.train import adapters, models, stages

NOTEBOOK = "03_mcq_eval"
ALONE = "recommended"  # the recipe of a model that is evaluated by itself


@dataclass(frozen=True)
class ExamAnswers:
    """What the models of a lineup answered to the exam questions: the rows of mcq/items.csv, answers.jsonl
    (with the texts), permutations.csv and general.csv, empty where the recipe asks for none; and per model
    letter_scoring's report, the hash of its weights, and lm-evaluation-harness's results."""

    letters: pd.DataFrame
    words: pd.DataFrame
    orders: pd.DataFrame
    general: pd.DataFrame
    scoring: dict[str, dict]
    identities: dict[str, str]
    lm_eval: dict[str, dict[str, dict]]


def begin_exams(
    run_dir: str, data_dir: str = "", model: str = "", adapter: str = "", arms: str = ""
) -> tuple[Run, Lineup]:
    """Notebook 03's run, and the models it compares: the run's base and trained arms, those of them that
    `arms` names ("base,med-mix"), or any one `model` with an `adapter` or without.

    Raises ResultsError where the run lacks an arm, ArmError for an unknown arm.
    """
    names = lineup.arm_names(arms)
    if model and names:
        raise ResultsError(f"model={model} is evaluated alone; leave arms={arms} out, or the model")
    run = begin(run_dir, data_dir, model, adapter, names)
    lm_eval_tasks.check(run.recipe.mcq.lm_eval_tasks)
    return run, lineup.alone(run, model, adapter) if model else lineup.of_run(run, names)


def begin(run_dir: str, data_dir: str, model: str = "", adapter: str = "", arms: Sequence[str] = ()) -> Run:
    """The run to evaluate; a `model` alone gets a run of its own, begun here where there is none.

    Raises ResultsError where a model alone would write over a run's results, or over another model's.
    """
    storage.check_text("model", model)
    storage.check_text("adapter", adapter)
    place = storage.folder(run_dir)
    info = run_json.read(place)
    if adapter:
        adapters.read_config(Path(adapter).expanduser())
    if not model or info is None:
        recipe, settings = (ALONE, f"model.base={model}{_as_trained(adapter)}") if model else ("", "")
        needs = () if model else adapter_files(*(arms or ["med-mix", "med-nirvana"]))
        return run_json.begin(run_dir, NOTEBOOK, recipe, settings, data_dir, adapter, needs)
    base = info["recipe"]["model"]["base"]
    if "01_stage1" in info["notebooks"] or base != model:
        raise ResultsError(f"{storage.relpath(place)} is a run of {base}; give {model} a run_dir of its own")
    if run_json.adapter_hash(adapter) != info.get("adapter", ""):
        raise ResultsError(
            f"{storage.relpath(place)} is a run of {model} with another adapter, or none; give this one a "
            "run_dir of its own"
        )
    return run_json.begin(run_dir, NOTEBOOK, data_dir=data_dir)


def _as_trained(adapter: str) -> str:
    """What an adapter's run, where it still lies in its folder, has settled for its evaluation: one that saw
    PubMedQA's labelled rows is asked the official fold alone."""
    info = run_json.read(Path(adapter).expanduser().resolve().parents[1]) if adapter else None
    trained = info["recipe"]["data"].get("pubmedqa_train", "artificial") if info else "artificial"
    return "" if trained == "artificial" else f"\ndata.pubmedqa_train={trained}"


def exam_items(run: Run) -> list[MCQItem]:
    """The evaluation questions of the three benchmarks, cut to the recipe's rows by file order."""
    loaded = stages.load_exams(run, "eval")
    items = [item for rows in loaded.values() for item in first_of_each(rows.records, run.recipe.mcq.rows)]
    twice = [name for name, count in Counter((item.source, item.id) for item in items).items() if count > 1]
    if twice:
        source, name = twice[0]
        raise MedkitError(f"{source} has two questions {name}; give each an id of its own")
    return items


def answer_exams(run: Run, models: Lineup, items: Sequence[MCQItem]) -> ExamAnswers:
    """Every model's answers to `items` and to whatever else the recipe asks, kept as they come: a killed
    evaluation resumes where it stopped. Frees the models at the end."""
    frames, scoring, identities, others = [], {}, {}, {}
    for active in models:
        scored = score(run, active, items)
        letters = letter_scoring.frame(active.name, items, scored.outcomes)
        words, orders = answer_in_words(run, active, items), in_every_order(run, active, items, letters)
        frames.append((letters, words, orders, answer_general(run, active)))
        scoring[active.name], identities[active.name] = scored.report, active.identity
        others[active.name] = harness.measure(active, run.recipe.mcq.lm_eval_tasks, run.folder / ".cache")
    models.close()
    letters, words, orders, general = (pd.concat(own, ignore_index=True) for own in zip(*frames, strict=True))
    return ExamAnswers(letters, words, orders, general, scoring, identities, others)


def in_every_order(run: Run, active: Active, items: Sequence[MCQItem], letters: pd.DataFrame) -> pd.DataFrame:
    """One model's letters to the first questions of each benchmark in every cyclic order of their options.
    Order 0 is the questions' own, as in `letters`. Columns: option_order.COLUMNS."""
    asked = first_of_each(items, run.recipe.mcq.permutations) if run.recipe.mcq.permutations else []
    rotations = option_order.rotations(asked)
    turned = [item for _, item in rotations]
    others = letter_scoring.frame(active.name, turned, score(run, active, turned).outcomes)
    others = others.assign(rotation=[k for k, _ in rotations])
    ids = pd.MultiIndex.from_tuples([(item.source, item.id) for item in asked], names=["dataset", "item_id"])
    original = letters.set_index(["dataset", "item_id"]).loc[ids].reset_index().assign(rotation=0)
    return pd.concat([original, others], ignore_index=True)[option_order.COLUMNS]


def answer_general(run: Run, active: Active) -> pd.DataFrame:
    """One model's letters to the built-in general questions and its loss on the texts, as general.frame."""
    items, texts = (written.questions(), written.texts()) if run.recipe.mcq.general else ([], [])
    losses = general.losses(
        active.model, active.tokenizer, texts, run.folder / ".cache" / "losses.jsonl", active.identity
    )
    return general.frame(active.name, items, score(run, active, items).outcomes, losses)


def write_exams(run: Run, items: Sequence[MCQItem], answers: ExamAnswers, show_text: bool = False) -> dict:
    """mcq/items.csv, answers.jsonl, permutations.csv, general.csv and summary.json; returns the summary: that
    of accuracy.mcq_summary and what the functions below add under their names.

    Raises MedkitError where items.csv does not hold what was answered.
    """
    contaminated_questions = contaminated(run)
    summary = accuracy.mcq_summary(answers.letters) | {
        "protocols": protocols(answers.letters, answers.words),
        "without_contaminated": without(answers.letters, contaminated_questions or set()),
        "contamination_known": contaminated_questions is not None,
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
    read = accuracy.read_items(run.folder)
    correct = accuracy.is_correct(answers.letters).sum()
    if len(read) != len(answers.letters) or accuracy.is_correct(read).sum() != correct:
        raise MedkitError("mcq/items.csv is not what the models answered; run notebook 03 again")
    return summary


def first_of_each(items: Iterable[MCQItem], rows: int) -> list[MCQItem]:
    """The first `rows` questions of every benchmark; 0 takes all."""
    numbers: dict = defaultdict(itertools.count)  # of a benchmark's questions, from 0
    return [item for item in items if not rows or next(numbers[item.source]) < rows]


def score(run: Run, active: Active, items: Sequence[MCQItem]) -> letter_scoring.Scored:
    """The letters of one model, kept as they come, so that a killed evaluation goes on."""
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
    """One model's answers in words to the first questions of each benchmark: greedily, for the parser; and as
    the released notebooks asked, for their rule. Columns: model, dataset, item_id, gold; text, finish,
    tokens, letter, tier, first_last_disagree; released (a letter), released_text, released_finish."""
    spec = run.recipe.mcq
    asked = first_of_each(items, spec.generated_rows) if spec.generated_rows else []
    _, ours = _generated(run, active, asked, "", max_new_tokens=spec.max_new_tokens)
    prompts_seen, theirs = _generated(run, active, asked, "\nAnswer:", **RELEASED)
    rows = []
    for item, answer, prompt, as_theirs in zip(asked, ours, prompts_seen, theirs, strict=True):
        row = {"model": active.name, "dataset": item.source, "item_id": item.id, "gold": item.answer}
        row |= storage.plain(answer)
        row |= storage.plain(answer_parsing.parse(answer.text, item, cut=answer.finish == "cut"))
        row["released"] = answer_parsing.as_released(prompt, as_theirs.text, item)
        rows.append(row | {"released_text": as_theirs.text, "released_finish": as_theirs.finish})
    return pd.DataFrame(rows)


def _generated(run: Run, active: Active, items: Sequence[MCQItem], end: str, **decoding):
    """(prompts, answers), with `end` put behind each question."""
    chat = prompts.ChatFormat.from_tokenizer(active.tokenizer)
    ids = [prompts.prompt_ids(active.tokenizer, chat, item, end) for item in items]
    answers = generation.generate_answers(
        active.model,
        active.tokenizer,
        ids,
        **decoding,
        batch_size=run.recipe.mcq.generation_batch_size(max(map(len, ids), default=1)),
        store=run.folder / ".cache" / "words.jsonl",
        key=active.identity,
    )
    return [prompts.prompt(chat, item, end) for item in items], [answer for (answer,) in answers]


def answer(model, tokenizer, item: MCQItem, max_new_tokens: int = 32) -> str:
    """A model's greedy answer to one question, in words."""
    ids = prompts.prompt_ids(tokenizer, prompts.ChatFormat.from_tokenizer(tokenizer), item)
    settings: dict = {"batch_size": 1, "store": None, "key": "", "progress": False}
    with models.for_inference(model):
        ((said,),) = generation.generate_answers(
            model, tokenizer, [ids], max_new_tokens=max_new_tokens, **settings
        )
    return said.text


def protocols(letters: pd.DataFrame, words: pd.DataFrame) -> list[dict]:
    """Per model and benchmark, how the protocols fared on the questions that were answered in both ways.

    "scored": letters by log-probability; "generated": answers in words by answer_parsing.parse; "released":
    by the released notebooks' rule. Every share is of `n`, unparsed answers included.
    """
    if words.empty:
        return []
    keys, in_words, found = ["model", "dataset", "item_id"], ("generated", "released"), []
    both = words.merge(letters[[*keys, "predicted"]].fillna(""), on=keys, how="left")
    for (model, dataset), rows in both.groupby(["model", "dataset"], sort=False):
        given = {"scored": rows["predicted"], "generated": rows["letter"], "released": rows["released"]}
        right = {name: letter == rows["gold"] for name, letter in given.items()}
        tiers = {tier: rows["tier"] == tier for tier in answer_parsing.TIERS}
        same = {name: (given[name] == given["scored"]) & (given[name] != "") for name in in_words}
        found.append(
            {
                "model": model,
                "dataset": dataset,
                "n": len(rows),
                "correct": {name: outcomes.sum() for name, outcomes in right.items()},
                "accuracy": {name: outcomes.mean() for name, outcomes in right.items()},
                "unparsed": {name: (letter == "").sum() for name, letter in given.items()},
                "tiers": {tier: {"count": own.sum(), "share": own.mean()} for tier, own in tiers.items()},
                "first_last_disagree": rows["first_last_disagree"].mean(),
                "agreement_with_scored": {name: own.mean() for name, own in same.items()},
                "cut": (rows["finish"] == "cut").mean(),  # at max_new_tokens
                "too_long": (rows["finish"] == "too long").sum(),  # for the model's context: not asked
                "minus_scored": {name: statistics.compare(right["scored"], right[name]) for name in in_words},
            }
        )
    return storage.plain(found)


def contaminated(run: Run) -> set[tuple[str, str]] | None:
    """(source, id) of the questions that appear in training rows of either stage; None without a
    data/manifest.json."""
    path = run.folder / "data" / "manifest.json"
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    # A joint arm has no stage 1 of its own: its one stage has looked through all rows.
    stages_found = [part.get("overlap", {}) for part in (manifest, manifest.get("stage2", {}))]
    return {tuple(name.split("/", 1)) for found in stages_found for name in found.get("contaminated", [])}


def without(letters: pd.DataFrame, found: set[tuple[str, str]]) -> dict:
    """Accuracies over the questions that appear in no training row, and how many were left out."""
    keys = pd.Series(list(zip(letters["dataset"], letters["item_id"], strict=True)), index=letters.index)
    clean = letters[~keys.isin(found)]
    left_out = letters[keys.isin(found)].drop_duplicates(["dataset", "item_id"])
    return {
        "left_out": left_out["dataset"].value_counts().to_dict(),
        "datasets": accuracy.accuracies(clean),
    }


def wrong(letters: pd.DataFrame, model: str, count: int, seed: int = 0) -> pd.DataFrame:
    """A seeded sample of up to `count` questions that `model` has wrong."""
    own = letters[(letters["model"] == model) & ~accuracy.is_correct(letters)]
    return own.sample(min(count, len(own)), random_state=seed).sort_index()


def write_mcq(run: Run, letters: pd.DataFrame, words: pd.DataFrame, summary: dict, show_text: bool) -> None:
    """mcq/items.csv, mcq/answers.jsonl and mcq/summary.json.

    A model's answer repeats options, so its text is a data set's: it is kept with the built-in corpus only.
    """
    folder = run.folder / "mcq"
    storage.write_csv(folder / "items.csv", _rounded(letters))
    texts = [] if run_json.may_show(run, show_text) else ["text", "released_text"]
    kept = words.drop(columns=texts, errors="ignore")
    storage.write_jsonl(folder / "answers.jsonl", kept.to_dict("records"))
    storage.write_json(folder / "summary.json", summary)


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{name: frame[name].round(5) for name in calibration.LOGPROBS})
