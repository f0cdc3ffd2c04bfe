"""The report refuses parts that do not belong together, and needs neither torch nor a model."""

import base64
import functools
import json
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest

from medkit import MedkitError, report
from medkit.evaluate import accuracy
from medkit.report import consistency, figures, markdown, training
from medkit.runs import run_json, storage
from medkit.runs.arms import ARMS

MODELS = tuple(name for name in ARMS if name != "relearned")


def items():
    """Two questions a benchmark; every model has the first of them right."""
    rows = [
        {"model": model, "dataset": dataset, "item_id": f"{dataset}-{i}", "gold": "A", "group": ""}
        | {"predicted": "AB"[i], "correct": i == 0}
        for model in MODELS
        for dataset in accuracy.CHANCE
        for i in range(2)
    ]
    return pd.DataFrame(rows)


@functools.cache
def summary():
    return accuracy.mcq_summary(items())


def loss(steps=20):
    step = np.arange(1, steps + 1)
    evaluated = np.where(step % 10 == 0, 1 / step, np.nan)
    return pd.DataFrame({"step": step, "train_loss": 2.0 / step, "eval_loss": evaluated})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of which everything that the report reads is there and fits."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RUNNER", "1")  # no lock to hold
    info = run_json.describe("cpu")
    names = (*consistency.STAGES, consistency.CONTROL, *consistency.EVALUATIONS)
    for hour, name in enumerate(names):
        entry = {"status": "complete", "started": f"2026-01-01T0{hour}:00:00+00:00", "seconds": 90}
        info["notebooks"][name] = entry | {"peak_memory_gb": 1.5}
    for name, models in zip(consistency.EVALUATIONS, (MODELS, ("base", "med-nirvana")), strict=True):
        info["notebooks"][name]["models"] = {model: f"weights of {model}" for model in models}
    place = tmp_path / "tiny"
    storage.write_json(place / "run.json", info)
    for arm in filter(None, (arm.folder for arm in ARMS.values())):
        storage.write_csv(place / arm / "loss.csv", loss())
    replay = pd.DataFrame({"part": ["train", "train", "validation"], "source": "medqa", "id": list("abc")})
    storage.write_csv(place / "stage2" / "replay.csv", replay)
    stage2 = {"replay": {"train": 2, "validation": 1, "train_ids": ["medqa/a", "medqa/b"]}}
    storage.write_json(
        place / "data/manifest.json", {"recipe": "cpu", "stage1": {"seed": 42}, "stage2": stage2}
    )
    storage.write_csv(place / "mcq" / "items.csv", items())
    storage.write_json(place / "mcq" / "summary.json", summary())
    return run_json.begin("tiny", "05_report", data_dir=None)


def test_parts_that_fit_are_told_one_by_one(run):
    told = consistency.check(run).splitlines()
    assert len(told) == 6 and all(line.startswith("- ") for line in told)
    assert told[0] == "- 5 notebooks are complete."
    assert told[2] == "- 2 models have the same weights in both evaluations."
    assert told[3] == "- mcq/summary.json matches the 24 outcomes in mcq/items.csv."  # 4 x 3 x 2
    assert told[4] == "- stage2/replay.csv has the 2 training rows of data/manifest.json."


def test_a_run_without_the_control_arm_is_whole(run):
    del run.info["notebooks"]["02_stage2_noreplay"]
    one_model_less(run)
    told = consistency.check(run).splitlines()
    assert told[0].startswith("- 4 notebooks are complete. No control arm: notebook 02")
    assert consistency.stage2_models(run) == ("med-nirvana",)


def test_a_control_arm_of_an_earlier_stage_1_that_was_not_evaluated_is_not_the_runs(run):
    """As where notebooks 01 to 05 are run once in a finished demo."""
    for hour, name in enumerate((*consistency.STAGES, *consistency.EVALUATIONS), 10):
        run.info["notebooks"][name]["started"] = f"2026-01-01T{hour}:00:00+00:00"
    with pytest.raises(MedkitError, match="run 02_stage2_noreplay again too"):
        consistency.check(run)
    del run.info["notebooks"]["03_mcq_eval"]["models"]["control"]
    one_model_less(run)
    assert "No control arm" in consistency.check(run)
    assert consistency.stage2_models(run) == ("med-nirvana",)


def failed(run):
    run.info["notebooks"]["04_consumer_eval"]["status"] = "failed"


def missing(run):
    del run.info["notebooks"]["02_stage2"]


def trained_again(run):
    run.info["notebooks"]["02_stage2"]["started"] = "2026-01-01T03:30:00+00:00"


def first_stage_again(run):
    run.info["notebooks"]["01_stage1"]["started"] = "2026-01-01T01:30:00+00:00"


def other_weights(run):
    run.info["notebooks"]["04_consumer_eval"]["models"]["base"] = "weights of another base"


def other_outcomes(run):
    storage.write_csv(run.folder / "mcq" / "items.csv", items().iloc[:-1])


def one_model_less(run):
    some = items().query("model != 'control'")
    storage.write_csv(run.folder / "mcq" / "items.csv", some)
    storage.write_json(run.folder / "mcq" / "summary.json", accuracy.mcq_summary(some))


def other_recipe(run):
    path = run.folder / "data" / "manifest.json"
    storage.write_json(path, json.loads(path.read_text()) | {"recipe": "paper"})


def other_replay(run):
    replay = pd.DataFrame({"part": ["train"], "source": "medqa", "id": ["a"]})
    storage.write_csv(run.folder / "stage2" / "replay.csv", replay)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (failed, "notebook 04_consumer_eval is failed; run it before the report"),
        (missing, "notebook 02_stage2 is missing"),
        (trained_again, "02_stage2 was run again after 03_mcq_eval; run 03_mcq_eval again too"),
        (first_stage_again, "01_stage1 was run again after 02_stage2; run 02_stage2 again too"),
        (
            other_weights,
            "03_mcq_eval and 04_consumer_eval evaluated different weights of base; run both again",
        ),
        (other_outcomes, r"does not match mcq/items\.csv \(control, pubmedqa\); run 03_mcq_eval again"),
        (one_model_less, r"mcq/summary\.json lacks control"),
        (other_recipe, r"data/manifest\.json belongs to recipe paper; run 01_stage1 again"),
        (
            other_replay,
            r"stage2/replay\.csv does not match data/manifest\.json; run notebook 02_stage2 again",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_that_do_not_belong_together_are_refused(run, spoil, said):
    spoil(run)
    with pytest.raises(MedkitError, match=said) as caught:
        consistency.check(run)
    assert "\n" not in str(caught.value)


def test_a_run_made_in_parts_says_so(run):
    part = {key: run.info[key] for key in ("git", "versions")}
    run.info["continued"] = [part]
    assert "Made with one version of the code" in consistency.check(run)
    run.info["continued"] = [part | {"git": {"commit": "f" * 40, "modified": []}}]
    assert "different versions of code or libraries" in consistency.check(
        run
    ) and "f" * 12 in consistency.check(run)


def test_curves_and_costs(run):
    # validated at steps 10 and 20
    assert training.loss_text(run, ["med-mix"]) == (
        "Med-Mix, 20 steps. Validation loss, nats per trained token: in all 0.100 to 0.050."
    )
    assert consistency.costs(run).loc["01_stage1"].tolist() == ["1.5", 1.5, ""]
    (run.folder / "stage1" / "loss.csv").unlink()
    with pytest.raises(storage.ResultsError, match=r"loss\.csv is missing; run notebook 01_stage1 first"):
        training.loss_text(run, ["med-mix"])


def test_a_finished_report_names_what_it_leaves_and_misses_nothing(run, monkeypatch):
    monkeypatch.delenv("MEDKIT_RUNNER")
    for name in ("figures/figure11.png", "figures/figure12.png", "tables/table1.md", "tables/table2.md"):
        storage.write_text(run.folder / name, "")
    for name in ("tables/table3.md", "ledger.md"):
        storage.write_text(run.folder / name, "")
    with pytest.raises(storage.ResultsError, match=r"table4\.md is missing; run notebook 05_report first"):
        report.finish(run)
    storage.write_text(run.folder / "tables" / "table4.md", "")
    assert report.finish(run).split("  ")[-3:] == [
        "figures/figure11.png",
        "figures/figure12.png",
        "ledger.md",
    ]
    assert run_json.read(run.folder)["notebooks"]["05_report"]["files"] == 4 + 2 + 1


def executed(run, *outputs):
    """An executed notebook 05 in the run's folder, of one cell with these outputs."""
    cell = nbformat.v4.new_code_cell("secret_code()", execution_count=1, outputs=list(outputs))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Report"), cell])
    storage.write_text(run.folder / "notebooks" / "05_report.ipynb", nbformat.writes(notebook))


def shown(**data):
    return nbformat.v4.new_output("display_data", data={k.replace("_", "/"): v for k, v in data.items()})


def test_the_page_holds_texts_and_figures_and_no_code(run):
    figure, _ = figures.new(1, 1)
    image = base64.b64encode(figure._repr_png_()).decode()
    printed = nbformat.v4.new_output("stream", name="stdout", text="tables/table1.md")
    executed(
        run,
        printed,
        shown(image_png=image),
        shown(text_html="<details><summary>More</summary>rows</details>"),
    )
    path = report.write_page(run.folder)
    text = path.read_text(encoding="utf-8")
    assert path == run.folder / "report.html"
    assert f'src="data:image/png;base64,{image}' in text.replace("\n", "")
    assert "<summary>More</summary>" in text and ">Report<" in text
    assert "secret_code" not in text and "table1.md" not in text
    assert "<script" not in text and "<link" not in text and "http" not in text


@pytest.mark.parametrize(
    "loads",
    [
        "<script src='https://cdn.example.org/a.js'></script>",
        '<img src="figures/accuracy.png">',
        "<img src=https://example.org/a.png>",
        "<iframe></iframe>",
    ],
)
def test_a_page_that_would_load_something_is_refused(run, loads):
    executed(run, shown(text_html=loads))
    with pytest.raises(MedkitError, match=r"report\.html would load"):
        report.write_page(run.folder)
    assert not (run.folder / "report.html").exists()


def test_a_page_needs_the_executed_notebook(run):
    with pytest.raises(
        storage.ResultsError, match=r"05_report\.ipynb is missing; run notebook 05_report first"
    ):
        report.write_page(run.folder)


def test_the_report_loads_what_it_offers_when_asked_and_nothing_else():
    with pytest.raises(AttributeError, match=r"medkit\.report.*nothing"):
        _ = report.nothing
    assert len(report._EXPORTS) <= 8 and all(callable(getattr(report, name)) for name in report._EXPORTS)


def test_a_page_becomes_a_part_of_a_notebook():
    assert markdown.demote_headings("# Title\n\ntext # no heading\n\n## Part\n") == (
        "### Title\n\ntext # no heading\n\n#### Part\n"
    )


def test_what_the_report_imports_loads_no_model_library():
    """The imports of notebooks 05 and 06, up to where they read a run and a study."""
    code = ""
    for name, first in (("05_report", "run ="), ("06_replay_study", "replay =")):
        notebook = json.loads((storage.machine.CHECKOUT / "notebooks" / f"{name}.ipynb").read_text())
        cells = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
        code += next(cell for cell in cells if "import" in cell).partition(f"\n{first}")[0] + "\n"
    assert "report.study_page" in code and "report.consistency" in code
    code += "import sys; print([m for m in ('torch', 'unsloth') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def again(run, name, **seeds):
    """A complete copy of the run under another name, with other seeds."""
    info = run.info | {"status": "complete", "seeds": run.info["seeds"] | seeds}
    for stage, seed in seeds.items():
        info = info | {"recipe": info["recipe"] | {stage: info["recipe"][stage] | {"seed": seed}}}
    storage.write_json(run.folder.parent / name / "run.json", info)
    wrong = items()
    wrong.loc[wrong["model"] == "control", ["predicted", "correct"]] = ["B", False]
    storage.write_csv(run.folder.parent / name / "mcq" / "items.csv", wrong)


def test_further_runs_of_other_seeds_are_folded_in(run):
    again(run, "other", stage1=1)
    accuracies, differences = consistency.with_seeds(run, "other")
    folded = accuracies.set_index(["model", "dataset"])
    # The control has 1 of 2 right here and 0 of 2 there: 25 percent, sd of 50 and 0 = 35.4.
    control = folded.loc["control", "medqa"]
    assert (control["seeds"], control["accuracy"], control["seed_sd"]) == (2, 25.0, 35.4)
    base = folded.loc["base", "medqa"]  # nothing trained it: no seed of its own, and no spread
    assert base["seeds"] == 1 and pd.isna(base["seed_sd"])
    lost = differences.set_index(["dataset", "shows"]).loc[("medqa", "stage 2 without replay")]
    assert lost["seeds"] == 2 and lost["seed_sd"] == 35.4  # Med-Mix is the same in both
    consistency.write_seeds(run, (accuracies, differences))
    assert len(pd.read_csv(run.folder / "tables" / "seed_differences.csv")) == len(differences)
    assert consistency.with_seeds(run, "") is None


def test_runs_that_are_no_other_seeds_are_not_folded_in(run):
    again(run, "same")
    with pytest.raises(MedkitError, match="same has the same seeds as another run; leave one of them out"):
        consistency.with_seeds(run, "same")
    again(run, "other", stage1=1)
    info = json.loads((run.folder.parent / "other" / "run.json").read_text())
    info["recipe"]["lora"]["r"] = 8
    storage.write_json(run.folder.parent / "other" / "run.json", info)
    with pytest.raises(MedkitError, match=r"other differs in lora\.r \(8, in this run 16\)"):
        consistency.with_seeds(run, "other")
    with pytest.raises(MedkitError, match="nothing is not a complete run"):
        consistency.with_seeds(run, "nothing")


def test_costs_add_up_and_take_a_price(tmp_path):
    info = {
        "notebooks": {
            "01_stage1": {"status": "complete", "seconds": 5400, "peak_memory_gb": 2.0, "energy_kwh": 0.9},
            "02_stage2": {"status": "complete", "seconds": 1800, "peak_memory_gb": 3.5, "energy_kwh": 0.3},
            "03_mcq_eval": {"status": "failed", "seconds": 60},
        }
    }
    run = run_json.Run(tmp_path, info, None)
    table = consistency.costs(run, price_per_hour=2.5)
    # 90 + 30 minutes are 2 hours, 5.00 at 2.50 an hour; 0.9 + 0.3 kWh; the larger of the peaks
    assert table.loc["all"].to_dict() == {
        "minutes": "120.0",
        "peak memory, GB": 3.5,
        "peak GPU memory, GB": "",
        "kWh": "1.2",
        "price": "5.00",
    }
    assert {"price", "CO2e, kg"}.isdisjoint(consistency.costs(run).columns)
    assert "03_mcq_eval" not in table.index
