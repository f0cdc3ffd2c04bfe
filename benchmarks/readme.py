"""Writes the tables in README.md and docs/ from results/: `python benchmarks/readme.py`."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import full_run
import numpy as np
import pandas as pd

from medkit import MedkitError, recipes
from medkit.evaluate import accuracy
from medkit.preflight import estimate
from medkit.report import published
from medkit.report.markdown import grid, in_percent, percent
from medkit.runs import machine, storage

PAGES = (machine.CHECKOUT / "README.md", *sorted((machine.CHECKOUT / "docs").glob("*.md")))
NAMES = {"base": "SmolLM2-135M-Instruct, 4 bit", "med-mix": "Med-Mix (after stage 1)"}
NAMES |= {"med-nirvana": "Med-Nirvana (stage 2 with replay)", "control": "control (stage 2 without replay)"}
COLUMNS = {name: f"{title}-style" for name, title in published.TITLES.items()}  # the built-in corpus


def headline(run: Path) -> str:
    """Markdown table of the accuracy of a run's models, in percent with n and Wilson 95% intervals."""
    summary = accuracy.mcq_summary(accuracy.read_items(run))
    datasets = {
        f"{title} (n = {summary['datasets'][name]['n']})": summary["datasets"][name]
        for name, title in COLUMNS.items()
    }
    rows = [
        {"model": NAMES[model], **{title: percent(d["models"][model]) for title, d in datasets.items()}}
        for model in summary["models"]
    ]
    rows.append({"model": "chance", **{title: in_percent(d["chance"]) for title, d in datasets.items()}})
    majority = {title: in_percent(d["majority"]["share"]) for title, d in datasets.items()}
    return grid(pd.DataFrame([*rows, {"model": "always the most frequent answer", **majority}]))


def untrained(run: Path) -> str:
    """The same for the untrained model on the real benchmarks, one row each, and its usual letter."""
    summary = accuracy.mcq_summary(accuracy.read_items(run))
    rows = []
    for name, dataset in summary["datasets"].items():
        (model,) = dataset["models"].values()
        usual = model["usual"]
        rows.append(
            {
                "benchmark": published.TITLES[name],
                "n": f"{model['n']:,}",
                "accuracy, %": percent(model),
                "chance": in_percent(dataset["chance"]),
                "always the most frequent answer": in_percent(dataset["majority"]["share"]),
                "the model says": f"{usual['letter']} in {usual['share']:.1%}",
            }
        )
    return grid(pd.DataFrame(rows))


def cost(run: Path) -> str:
    """Seconds and peak memory of each notebook of a run, and what it was computed on."""
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    table = pd.DataFrame(info["notebooks"]).T[["seconds", "peak_memory_gb"]].astype(float)
    table.loc["all"] = table["seconds"].sum(), table["peak_memory_gb"].max()
    cells = {"seconds": table["seconds"].map("{:.0f}".format)}
    cells |= {"peak memory, GB": table["peak_memory_gb"].map("{:.2f}".format)}
    cost_table = grid(pd.DataFrame(cells).rename_axis("notebook").reset_index())
    scoring = json.loads((run / "mcq" / "summary.json").read_text(encoding="utf-8"))["scoring"]
    dtypes = " and ".join(sorted({report["dtype"] for report in scoring.values()}))
    hardware = info["hardware"]
    return f"{cost_table}\n\nOn {hardware['cores']} cores: {hardware['processor']}, computing in {dtypes}."


def measured(folder: Path) -> str:
    """One row per benchmark, from the JSON line that it printed: results/benchmarks/*.json."""
    rows = []
    for name, (title, describe) in MEASURED.items():
        finding, device = "not measured", ""
        if (path := folder / f"{name}.json").is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            hardware = result["hardware"]
            finding = describe(result)
            device = hardware["gpus"][0]["name"] if hardware["gpus"] else hardware["processor"]
        rows.append({"what": title, "found": finding, "machine": device})
    return grid(pd.DataFrame(rows))


def _against_trl(b: dict) -> str:
    return (
        f"{b['ratio']:.2f} times the useful tokens a second ({b['tokens_per_s']:.0f} and "
        f"{b['trl']['tokens_per_s']:.0f}); loss after {b['samples']:.0f} samples {b['loss']:.3f} and "
        f"{b['trl']['loss']:.3f}; {b['peak_memory_gb']:.1f} and {b['trl']['peak_memory_gb']:.1f} GB; "
        f"rounds: {len(b['ratios'])}"
    )


MEASURED = {
    "mcq_vs_lm_eval": (
        "letter scoring compared with lm-evaluation-harness, same model and prompts",
        lambda b: (
            f"{b['speed_ratio']:.2f} times as fast on medkit's prompts, "
            f"{b['speed_ratio_harness_prompts']:.2f} on the harness's; agreement {b['agreement']:.3f} "
            f"({b['n']} rows each, {b['dtype']}, {b['threads']} threads)"
        ),
    ),
    "throughput_cpu": ("training compared with plain TRL + PEFT, same updates, recipe `cpu`", _against_trl),
    "throughput_cpu_float32": ("the same on a processor without bfloat16, both in float32", _against_trl),
    "prepare": (
        "preparing stage 1's rows, at real lengths",
        lambda b: (
            f"{b['rows']:,} rows in {b['seconds']:.0f} s, {b['peak_memory_gb']:.1f} GB; "
            f"{b['ratio_vs_trl']:.1f} times as fast as SFTTrainer's own"
        ),
    ),
    "contamination": (
        "searching stage 1's rows for the evaluation items",
        lambda b: (
            f"{b['rows']:,} x {b['eval_rows']:,} in {b['seconds']:.0f} s, {b['peak_memory_gb']:.1f} GB; "
            f"{sum(b['missed'].values())} of {sum(b['planted'].values()):,} planted matches missed"
        ),
    ),
    "faults": (
        "crashes, full disks and broken files survived",
        lambda b: (
            f"{b['survived']} of {b['faults']}; at most {b['lost_steps_max']} steps lost, with a "
            f"checkpoint every {b['save_every']}"
        ),
    ),
    **{
        f"throughput_{name}": (
            f"Llama 3.1 8B, `{name}`, on one GPU",
            lambda b: (
                f"{b['tokens_per_s']:,.0f} tokens/s, MFU {b['mfu']:.0%}, {b['peak_memory_gb']:.0f} GB; "
                f"stage 1 {b['projected_hours_stage1']:.1f} h, stage 2 {b['projected_hours_stage2']:.1f} h"
            ),
        )
        for name in ("recommended", "paper", "as_released")
    },
}


def full(_: Path) -> str:
    """Hours, GPU memory and disk of the 8B recipes on an H100, as estimated by `medkit check`."""
    h100 = {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}], "cores": 1}
    lengths = json.loads((machine.CHECKOUT / "benchmarks" / "token_lengths.json").read_text(encoding="utf-8"))
    rows = []
    for recipe in map(recipes.get, ("recommended", "paper", "as_released")):
        measured_rows = lengths[recipe.model.chat_template][recipe.data.mcq_target]
        mean = {name: np.mean([row[0] for row in of_source]) for name, of_source in measured_rows.items()}
        plans = {stage: full_run.plan(recipe, stage, mean, h100) for stage in ("stage1", "stage2")}
        tokens = sum(plan.tokens for plan in plans.values())
        disk = sum(estimate.disk(estimate.LLAMA_8B, recipe, 1.1 * tokens).values())
        for stage, plan in plans.items():
            memory = estimate.memory(estimate.LLAMA_8B, recipe, getattr(recipe, stage), gpu=True)
            row = {"recipe": recipe.name, "stage": stage[-1]}
            row |= {"rows": f"{sum(full_run.rows(recipe, stage).values()):,.0f}"}
            row |= {"steps": f"{plan.steps:,}", "tokens": f"{plan.tokens / 1e6:.0f}M"}
            row |= {"hours": f"{plan.hours:.1f}", "hours based on": plan.basis}
            row |= {"GPU memory, at most": f"{sum(memory.values()):.0f} GB", "disk": f"{disk:.0f} GB"}
            rows.append(row)
    dialogues = len(measured_rows["notechat"])
    exams = sum(map(len, measured_rows.values())) - dialogues
    basis = (
        "Tokens are rows times the mean length, in the recipe's own template and target, of "
        f"{exams:,} real exam\nrows and, for stage 2, of {dialogues} NoteChat rows: so few that stage 2's "
        "hours are rough."
    )
    return f"{grid(pd.DataFrame(rows))}\n\n{basis}"


def replay(sweep: str, root: str = "") -> Callable[[Path], str]:
    """Figure 13 and the three sentences that notebook 06 wrote for a sweep, from the results' folder.

    root: the path from the page to the repository's root.
    """

    def block(folder: Path) -> str:
        page, outcomes = folder / sweep / "tables" / "replay_study.md", folder / sweep / "outcomes"
        if not page.is_file():
            planned = json.loads((outcomes / "sweep.json").read_text())["trials"] if outcomes.is_dir() else []
            done = sum((outcomes / trial["name"] / "run.json").is_file() for trial in planned)
            state = f"under way ({done} of {len(planned)} runs)" if planned else "not run yet"
            return (
                f"The study is {state}, and nothing is reported before it is whole: "
                f"`medkit sweep sweeps/{sweep.replace('-', '_')}.toml --resume`, then notebook 06."
            )
        lines = page.read_text(encoding="utf-8").splitlines()
        sentences = [line for line in lines if line.startswith(("**Found**", "**Not found**", "**Scope**"))]
        figure = f"![Retention and gain against replay's share]({root}results/{sweep}/figures/figure13.png)"
        return "\n\n".join([figure, *sentences])

    return block


BLOCKS = {"headline": (headline, "cpu"), "untrained": (untrained, "smollm2-real"), "cost": (cost, "cpu")}
BLOCKS |= {"measured": (measured, "benchmarks"), "full": (full, "")}
BLOCKS |= {"replay-cpu": (replay("replay-cpu"), ""), "replay-real": (replay("replay-real", "../"), "")}


def rendered(pages: Mapping[Path, str], folder: Path) -> dict[Path, str]:
    """The pages with each block between `<!-- NAME -->` and `<!-- /NAME -->` made from `folder`."""
    result = dict(pages)
    for name, (block, run) in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        matching = [page for page, text in result.items() if pattern.search(text)]
        if len(matching) != 1:
            raise MedkitError(f"{len(matching)} pages have a block {name}; put its two marks into one")
        if run and not (folder / run).is_dir():
            raise MedkitError(f"results/{run} is missing; make it, then run python benchmarks/readme.py")
        table, page = block(folder / run), matching[0]
        result[page] = pattern.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", result[page])
    return result


def texts() -> dict[Path, str]:
    return {page: page.read_text(encoding="utf-8") for page in PAGES}


def main() -> None:
    try:
        pages = rendered(texts(), machine.CHECKOUT / "results")
    except MedkitError as error:
        sys.exit(f"medkit: {error}")
    for page, text in pages.items():
        storage.write_text(page, text)


if __name__ == "__main__":
    main()
