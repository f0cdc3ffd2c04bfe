"""Checks that the parts of a run belong together, before notebook 05 reports them; seeds and costs.

Reads results only: no model is loaded, and neither torch nor unsloth is imported.
"""

import pandas as pd

from medkit import MedkitError
from medkit.evaluate import accuracy
from medkit.runs import run_json, storage
from medkit.runs.arms import ARMS, required
from medkit.runs.run_json import Run

STAGES = tuple(ARMS[name].notebook for name in ("med-mix", "med-nirvana"))
CONTROL = ARMS["control"].notebook
FIGURES = ("figures/figure11.png", "figures/figure12.png")
EVALUATIONS = ("03_mcq_eval", "04_consumer_eval")


def check(run: Run) -> str:
    """Run all checks and list what they found, as Markdown; MedkitError at the first mismatch."""
    checks = (_finished, _in_order, _same_models, _same_outcomes, _same_rows, _versions)
    return "\n".join(f"- {check_part(run)}" for check_part in checks)


def stage2_models(run: Run) -> tuple[str, ...]:
    """Med-Nirvana and, if the run has one, the control arm.

    A control arm trained from an earlier stage 1 only counts if it was evaluated. Running notebooks 01 to 05
    in the folder of `make demo` leaves one behind.
    """
    entries = run.info["notebooks"]
    evaluated = entries.get("03_mcq_eval", {}).get("models") or {}
    stage1_started = entries.get("01_stage1", {}).get("started", "")
    has_control = CONTROL in entries and (
        "control" in evaluated or entries[CONTROL]["started"] > stage1_started
    )
    return ("med-nirvana", "control") if has_control else ("med-nirvana",)


def _training_notebooks(run: Run) -> tuple[str, ...]:
    trained = {ARMS[name].notebook for name in (*required(run.recipe), *stage2_models(run))}
    return tuple(name for name in (*STAGES, CONTROL) if name in trained)


def _finished(run: Run) -> str:
    if STAGES[0] not in run.info["notebooks"]:  # possible with a joint stage
        fix = f"run notebook {STAGES[0]}, then 03 and 04 again"
        raise MedkitError(f"Table 1 and Figure 11 need a stage 1; {fix}")
    notebooks = (*_training_notebooks(run), *EVALUATIONS)
    for name in notebooks:
        status = run.info["notebooks"].get(name, {}).get("status", "missing")
        if status != "complete":
            raise MedkitError(f"notebook {name} is {status}; run it before the report")
    hint = "" if CONTROL in notebooks else " No control arm: notebook 02 with replay=False trains it."
    return f"{len(notebooks)} notebooks are complete.{hint}"


def _in_order(run: Run) -> str:
    """Check that no model was trained again after it was evaluated or used for stage 2."""
    stage1, *stage2 = stages = _training_notebooks(run)
    started = {name: run.info["notebooks"][name]["started"] for name in (*stages, *EVALUATIONS)}
    ordered = [(stage, evaluation) for stage in stages for evaluation in EVALUATIONS]
    ordered += [(stage1, second) for second in stage2]
    for first, second in ordered:
        if started[first] > started[second]:
            raise MedkitError(f"{first} was run again after {second}; run {second} again too")
    return "Stage 2 was trained after stage 1, and every evaluation ran after the last training."


def _same_models(run: Run) -> str:
    """Check that both evaluations used the same weights."""
    exam_models, query_models = (run.info["notebooks"][name].get("models") or {} for name in EVALUATIONS)
    shared = exam_models.keys() & query_models.keys()
    if different := sorted(name for name in shared if exam_models[name] != query_models[name]):
        raise MedkitError(
            f"03_mcq_eval and 04_consumer_eval evaluated different weights of {different[0]}; run both again"
        )
    return f"{len(shared)} models have the same weights in both evaluations."


def _same_outcomes(run: Run) -> str:
    """Check that the summary matches the outcomes and has all models of the run."""
    summary = storage.load(run.folder, "mcq/summary.json", ("models", "datasets"))
    items = accuracy.read_items(run.folder)
    if missing := {*required(run.recipe), *stage2_models(run)} - set(summary["models"]):
        raise MedkitError(f"mcq/summary.json lacks {', '.join(sorted(missing))}; run 03_mcq_eval again")
    for (dataset, model), rows in items.groupby(["dataset", "model"]):
        result = summary["datasets"].get(dataset, {}).get("models", {}).get(model, {})
        if (result.get("n"), result.get("correct")) != (len(rows), int(accuracy.is_correct(rows).sum())):
            raise MedkitError(
                f"mcq/summary.json does not match mcq/items.csv ({model}, {dataset}); run 03_mcq_eval again"
            )
    return f"mcq/summary.json matches the {len(items):,} outcomes in mcq/items.csv."


def _same_rows(run: Run) -> str:
    """Check that the manifest belongs to the recipe and matches the replayed rows of stage 2."""
    manifest = storage.load(
        run.folder, "data/manifest.json", ("recipe", "stage1", "stage2"), writer="02_stage2"
    )
    if manifest["recipe"] != run.recipe.name:
        raise MedkitError(f"data/manifest.json belongs to recipe {manifest['recipe']}; run 01_stage1 again")
    replay = manifest["stage2"]["replay"]
    counts = pd.read_csv(storage.file(run.folder, "stage2/replay.csv"))["part"].value_counts()
    if any(replay[split] != counts.get(split, 0) for split in ("train", "validation")):
        raise MedkitError("stage2/replay.csv does not match data/manifest.json; run notebook 02_stage2 again")
    return f"stage2/replay.csv has the {len(replay['train_ids']):,} training rows of data/manifest.json."


def _versions(run: Run) -> str:
    """Report whether the run used a single version of the code and the libraries."""
    origin = {key: run.info[key] for key in ("git", "versions")}
    changed = [
        entry for entry in run.info.get("continued", []) if {key: entry[key] for key in origin} != origin
    ]
    if not changed:
        return f"Made with one version of the code, commit {(origin['git']['commit'] or 'unknown')[:12]}."
    commits = dict.fromkeys(str(entry["git"]["commit"])[:12] for entry in [origin, *changed])
    return f"Made with different versions of code or libraries: commits {', '.join(commits)}."


def with_seeds(run: Run, other_runs: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Accuracies and differences in percent over several training seeds; None without other runs.

    other_runs: run names separated by commas. Returns (accuracy.fold_seeds, accuracy.fold_differences). The
    base is only taken from `run`, since it has no training seed.

    Raises MedkitError if another run is incomplete, differs in anything but the seeds of the stages, or has
    seeds that were already read.
    """
    storage.check_text("other_runs", other_runs)
    names = [name.strip() for name in other_runs.split(",") if name.strip()]
    if not names:
        return None
    expected, seeds = _settings_without_seeds(run.info), {_seeds(run.info)}
    frames = [accuracy.read_items(run.folder).assign(seed=0)]
    for number, name in enumerate(names, 1):
        folder = storage.folder(name)
        path, info = storage.relpath(folder), run_json.read(folder)
        if info is None or info["status"] != "complete":
            raise MedkitError(f"{path} is not a complete run; finish it, or leave it out")
        settings = _settings_without_seeds(info)
        if different := [key for key in expected | settings if expected.get(key) != settings.get(key)]:
            raise MedkitError(
                f"{path} differs in {different[0]} ({settings.get(different[0])}, in this run "
                f"{expected.get(different[0])}); only runs that differ in their seeds can be combined"
            )
        if _seeds(info) in seeds:
            raise MedkitError(f"{path} has the same seeds as another run; leave one of them out")
        seeds.add(_seeds(info))
        items = accuracy.read_items(folder).assign(seed=number)
        frames.append(items[items["model"] != "base"])
    items = pd.concat(frames)
    return _percent(accuracy.fold_seeds(items)), _percent(accuracy.fold_differences(items))


def write_seeds(run: Run, seed_tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Write tables/seeds.csv and tables/seed_differences.csv."""
    for name, table in zip(("seeds", "seed_differences"), seed_tables, strict=True):
        storage.write_csv(run.folder / "tables" / f"{name}.csv", table)


def _percent(folded: pd.DataFrame) -> pd.DataFrame:
    shares = folded.select_dtypes("float").columns
    return folded.assign(**(100 * folded[shares]).round(1))


def _seeds(info: dict) -> tuple[int, int]:
    return info["seeds"]["stage1"], info["seeds"]["stage2"]


def _settings_without_seeds(info: dict) -> dict:
    """What runs that differ only in their training seeds must share: the recipe and the data."""
    fields = {k: v for k, v in run_json.identity(info).items() if k not in ("stage1.seed", "stage2.seed")}
    return fields | {f"data {file}": digest for file, digest in info["data"]["hashes"].items()}


def costs(run: Run, price_per_hour: float = 0.0) -> pd.DataFrame:
    """Minutes, peak memory and, where measured, energy and CO2e, per notebook and in total.

    With `price_per_hour`, also what the machine cost, in the same currency.
    """
    peaks = {"peak_memory_gb": "peak memory, GB", "peak_gpu_memory_gb": "peak GPU memory, GB"}
    energy = {"energy_kwh": "kWh", "co2e_kg": "CO2e, kg"}
    entries = {name: entry for name, entry in run.info["notebooks"].items() if entry["status"] == "complete"}
    numbers = pd.DataFrame.from_dict(entries, orient="index")
    numbers = numbers.reindex(columns=["seconds", *peaks, *energy]).astype(float)
    highest = numbers[[*peaks]].max()
    numbers.loc["all"] = numbers.sum(min_count=1)
    numbers.loc["all", [*peaks]] = highest
    table = pd.DataFrame({"minutes": (numbers["seconds"] / 60).map("{:.1f}".format, na_action="ignore")})
    table = table.assign(**{title: numbers[key].astype(object) for key, title in peaks.items()})
    for key, title in energy.items():
        if numbers[key].notna().any():
            table[title] = numbers[key].map("{:.3g}".format, na_action="ignore")
    if price_per_hour:
        table["price"] = (numbers["seconds"] / 3600 * price_per_hour).map("{:.2f}".format, na_action="ignore")
    return table.fillna("")


def finish(run: Run) -> str:
    """Complete the report's entry in run.json and list its tables, figures and ledger.

    Raises ResultsError if one of the files that notebook 05 writes is missing.
    """
    for name in (*(f"tables/table{i}.md" for i in (1, 2, 3, 4)), *FIGURES, "ledger.md"):
        storage.file(run.folder, name)
    paths = [path for folder in ("tables", "figures") for path in sorted((run.folder / folder).iterdir())]
    run.finish(files=len(paths) + 1)
    return "  ".join([*(str(path.relative_to(run.folder)) for path in paths), "ledger.md"])
