"""What notebook 05 reads of a run, and the refusal to report parts that do not belong together.

It reads results only: no model is loaded, and neither torch nor unsloth is imported.
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


class ReportError(MedkitError):
    """Parts of a run that are missing or do not belong together; one line names them and the notebook."""


def check(run: Run) -> str:
    """What was checked, as a Markdown list; raises ReportError at the first part that does not match."""
    checks = (_finished, _in_order, _same_models, _same_outcomes, _same_rows, _versions)
    return "\n".join(f"- {checked(run)}" for checked in checks)


def arms(run: Run) -> tuple[str, ...]:
    """The models of stage 2: Med-Nirvana, and the control arm where the run has one.

    One that was trained from an earlier stage 1 and is not among the evaluated models is not the run's, as
    where notebooks 01 to 05 are run once after make demo."""
    entries = run.info["notebooks"]
    evaluated = entries.get("03_mcq_eval", {}).get("models") or {}
    first = entries.get("01_stage1", {}).get("started", "")
    has_control = CONTROL in entries and ("control" in evaluated or entries[CONTROL]["started"] > first)
    return ("med-nirvana", "control") if has_control else ("med-nirvana",)


def _stages(run: Run) -> tuple[str, ...]:
    """The training notebooks of the run."""
    trained = {ARMS[name].notebook for name in (*required(run.recipe), *arms(run))}
    return tuple(name for name in (*STAGES, CONTROL) if name in trained)


def _finished(run: Run) -> str:
    entries, wanted = run.info["notebooks"], (*_stages(run), *EVALUATIONS)
    for name in wanted:
        status = entries.get(name, {}).get("status", "missing")
        if status != "complete":
            raise ReportError(f"notebook {name} is {status}; run it before the report")
    missing = "" if CONTROL in wanted else " No control arm: notebook 02 with replay=False trains it."
    return f"{len(wanted)} notebooks are complete.{missing}"


def _in_order(run: Run) -> str:
    """Trained again after it was evaluated, a model is another one than the one that was scored."""
    first_stage, *second_stages = stages = _stages(run)
    started = {name: run.info["notebooks"][name]["started"] for name in (*stages, *EVALUATIONS)}
    later = [(stage, evaluation) for stage in stages for evaluation in EVALUATIONS]
    later += [(first_stage, second) for second in second_stages]
    for first, second in later:
        if started[first] > started[second]:
            raise ReportError(f"{first} was run again after {second}; run {second} again too")
    return "Every evaluation was made after the last training, and stage 2 after stage 1."


def _same_models(run: Run) -> str:
    """Exam questions and patients' queries were answered by the same weights."""
    exams, cases = (run.info["notebooks"][name].get("models") or {} for name in EVALUATIONS)
    both = exams.keys() & cases.keys()
    if different := sorted(name for name in both if exams[name] != cases[name]):
        raise ReportError(
            f"{different[0]} is not one model in 03_mcq_eval and 04_consumer_eval; run both again"
        )
    return f"{len(both)} models have the same identity in both evaluations."


def _same_outcomes(run: Run) -> str:
    """The summary is that of the outcomes beside it, and of all of this run's models."""
    summary = storage.load(run.folder, "mcq/summary.json", ("models", "datasets"))
    items = accuracy.read_items(run.folder)
    if missing := {*required(run.recipe), *arms(run)} - set(summary["models"]):
        raise ReportError(f"mcq/summary.json lacks {', '.join(sorted(missing))}; run 03_mcq_eval again")
    for (dataset, model), rows in items.groupby(["dataset", "model"]):
        result = summary["datasets"].get(dataset, {}).get("models", {}).get(model, {})
        if (result.get("n"), result.get("correct")) != (len(rows), int(accuracy.is_correct(rows).sum())):
            raise ReportError(
                f"mcq/summary.json does not fit mcq/items.csv ({model}, {dataset}); run 03_mcq_eval again"
            )
    return f"mcq/summary.json is that of the {len(items):,} outcomes in mcq/items.csv."


def _same_rows(run: Run) -> str:
    """The manifest is this recipe's, and the replayed rows are those that stage 2 says it trained on."""
    manifest = storage.load(
        run.folder, "data/manifest.json", ("recipe", "stage1", "stage2"), writer="02_stage2"
    )
    if manifest["recipe"] != run.recipe.name:
        raise ReportError(f"data/manifest.json is of recipe {manifest['recipe']}; run 01_stage1 again")
    replay = manifest["stage2"]["replay"]
    written = pd.read_csv(storage.file(run.folder, "stage2/replay.csv"))["part"].value_counts()
    if any(replay[part] != written.get(part, 0) for part in ("train", "validation")):
        raise ReportError("stage2/replay.csv does not fit data/manifest.json; run notebook 02_stage2 again")
    return f"stage2/replay.csv holds the {len(replay['train_ids']):,} training rows of data/manifest.json."


def _versions(run: Run) -> str:
    """Whether one version of the code and the libraries made all of the run, in a sentence."""
    origin = {key: run.info[key] for key in ("git", "versions")}
    changed = [part for part in run.info.get("continued", []) if {k: part[k] for k in origin} != origin]
    if not changed:
        return f"Made by one version of the code, commit {(origin['git']['commit'] or 'unknown')[:12]}."
    commits = dict.fromkeys(str(part["git"]["commit"])[:12] for part in [origin, *changed])
    return f"Made in parts, under different code or libraries: commits {', '.join(commits)}."


def with_seeds(run: Run, others: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The run and `others`, run names separated by commas, folded: (accuracy.fold_seeds,
    accuracy.fold_differences), in percent; None without others. The base is the run's: nothing trained it.

    Raises ReportError where another run differs in anything but the stages' seeds, or in none of them.
    """
    storage.check_text("other_runs", others)
    names = [name.strip() for name in others.split(",") if name.strip()]
    fields, parts = _but_seeds(run.info), [accuracy.read_items(run.folder).assign(seed=0)]
    seen = {_seeds(run.info)}
    for number, name in enumerate(names, 1):
        place = storage.folder(name)
        info = run_json.read(place)
        if info is None or info["status"] != "complete":
            raise ReportError(f"{storage.relpath(place)} is no complete run; finish it, or leave it out")
        other = _but_seeds(info)
        if different := [field for field in fields | other if fields.get(field) != other.get(field)]:
            raise ReportError(
                f"{storage.relpath(place)} differs in {different[0]} ({other.get(different[0])}, here "
                f"{fields.get(different[0])}); only runs that differ in their seeds can be folded"
            )
        if _seeds(info) in seen:
            raise ReportError(f"{storage.relpath(place)} has the seeds of a run that is in already")
        seen.add(_seeds(info))
        items = accuracy.read_items(place).assign(seed=number)
        parts.append(items[items["model"] != "base"])
    if not names:
        return None
    items = pd.concat(parts)
    return _percent(accuracy.fold_seeds(items)), _percent(accuracy.fold_differences(items))


def write_seeds(run: Run, folded: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """tables/seeds.csv and tables/seed_differences.csv."""
    for name, table in zip(("seeds", "seed_differences"), folded, strict=True):
        storage.write_csv(run.folder / "tables" / f"{name}.csv", table)


def _percent(folded: pd.DataFrame) -> pd.DataFrame:
    shares = folded.select_dtypes("float").columns
    return folded.assign(**(100 * folded[shares]).round(1))


def _seeds(info: dict) -> tuple[int, int]:
    return info["seeds"]["stage1"], info["seeds"]["stage2"]


def _but_seeds(info: dict) -> dict:
    """What two runs have to share to be one study under several training seeds: recipe and rows."""
    fields = {k: v for k, v in run_json.identity(info).items() if k not in ("stage1.seed", "stage2.seed")}
    return fields | {f"data {file}": digest for file, digest in info["data"]["hashes"].items()}


def costs(run: Run, price_per_hour: float = 0.0) -> pd.DataFrame:
    """Per notebook, and in all, minutes, the most memory held, the energy and CO2e where they were measured
    (runs.energy), and what the machine cost at `price_per_hour`, in its currency, where that is given."""
    peaks = {"peak_memory_gb": "peak memory, GB", "peak_gpu_memory_gb": "peak GPU memory, GB"}
    energy = {"energy_kwh": "kWh", "co2e_kg": "CO2e, kg"}
    entries = {name: entry for name, entry in run.info["notebooks"].items() if entry["status"] == "complete"}
    numbers = pd.DataFrame.from_dict(entries, orient="index")
    numbers = numbers.reindex(columns=["seconds", *peaks, *energy]).astype(float)
    most = numbers[[*peaks]].max()
    numbers.loc["all"] = numbers.sum(min_count=1)
    numbers.loc["all", [*peaks]] = most
    table = pd.DataFrame({"minutes": (numbers["seconds"] / 60).map("{:.1f}".format, na_action="ignore")})
    table = table.assign(**{title: numbers[key].astype(object) for key, title in peaks.items()})
    for key, title in energy.items():
        if numbers[key].notna().any():
            table[title] = numbers[key].map("{:.3g}".format, na_action="ignore")
    if price_per_hour:
        table["price"] = (numbers["seconds"] / 3600 * price_per_hour).map("{:.2f}".format, na_action="ignore")
    return table.fillna("")


def finish(run: Run) -> str:
    """Complete the report's entry in run.json and name the files that it leaves: tables, figures, ledger;
    ResultsError where one of the report's own is missing."""
    for name in (*(f"tables/table{i}.md" for i in (1, 2, 3, 4)), *FIGURES, "ledger.md"):
        storage.file(run.folder, name)
    paths = [path for part in ("tables", "figures") for path in sorted((run.folder / part).iterdir())]
    run.finish(files=len(paths) + 1)
    return "  ".join([*(str(path.relative_to(run.folder)) for path in paths), "ledger.md"])
