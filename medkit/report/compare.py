"""Compare two runs on the same questions: paired differences, detectable differences, differing settings.

A side is a run's folder, or samples of lm-evaluation-harness (report.harness). Questions are compared if both
sides answered them and agree on the correct answer. The others are counted.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from nbconvert.filters import markdown2html

from medkit import MedkitError
from medkit.evaluate import accuracy, statistics
from medkit.report import harness
from medkit.report.markdown import ALPHA, BUILT_IN, grid, in_percent, number, percent, plain_table, wrap
from medkit.report.page import html
from medkit.report.published import TITLES
from medkit.runs import arms, machine, run_json, storage

# Fields that change a question's prompt, or how its answer is read.
PROTOCOL = ("model.chat_template", "data.mcq_target")
MAX_CHANGED_GOLD = 0.05  # if more ids have another correct answer, the ids do not match


@dataclass(frozen=True)
class Side:
    """One of the two compared results."""

    name: str
    items: pd.DataFrame  # model, dataset, item_id, gold, predicted, correct
    protocol: dict[str, str]  # how prompts are built and answers read
    # of a run only
    settings: dict[str, str] = field(default_factory=dict)  # resolved fields
    origin: str = ""  # of its rows: "builtin", "folder" or "hub"
    machine: dict[str, str] = field(default_factory=dict)  # versions and hardware


def read(source: str) -> Side:
    """Read a run (name or folder), a samples file, or a folder of samples files."""
    path = Path(source).expanduser()
    if harness.sample_files(path):
        protocol = {"answers": "lm-evaluation-harness's task"}
        return Side(path.stem if path.is_file() else path.name, harness.read_samples(path), protocol)
    folder = storage.folder(source)
    info = run_json.read(folder)
    if info is None:
        raise MedkitError(f"{source} is neither a run nor a samples file of lm-evaluation-harness; name one")
    items = accuracy.read_items(folder)
    items = items.assign(correct=accuracy.is_correct(items))[harness.COLUMNS]
    settings = {name: str(value) for name, value in run_json.identity(info).items()}
    protocol = {"answers": "log-probability of the letter", **{name: settings[name] for name in PROTOCOL}}
    versions = {name: str(version) for name, version in info["versions"].items()}
    versions_and_hardware = versions | machine.as_text(info["hardware"])
    return Side(folder.name, items, protocol, settings, info["data"]["origin"], versions_and_hardware)


def compare(first: Side, second: Side) -> dict:
    """The comparison as JSON-compatible data. Accuracies are fractions, differences are second minus first.

    "comparisons": for each benchmark and pair of models n, both accuracies, the difference with the paired
    bootstrap's 95% interval, McNemar's exact p, p_holm over all rows, and `detectable`, the smallest
    difference that one such test finds with 80% power. "left_out": what was not compared, and why.
    "protocol", "settings", "machine": fields that differ. "settings_known": whether both sides are runs.
    "builtin": whether the questions come from the
    built-in corpus. Raises MedkitError if no question is left.
    """
    shared, left_out = _shared(first, second)
    rows = []
    for dataset, ids in shared.items():
        first_correct, second_correct = (_correct(side, dataset, ids) for side in (first, second))
        for first_model, second_model in _model_pairs(first, second):
            if first_model not in first_correct or second_model not in second_correct:
                continue  # this model was not evaluated on the benchmark
            before = first_correct[first_model].to_numpy()
            after = second_correct[second_model].to_numpy()
            row: dict = {"dataset": dataset, "first": first_model, "second": second_model}
            row |= storage.plain(statistics.compare(before, after))
            discordant = row["first_only"] + row["second_only"]
            row |= {"first_accuracy": float(before.mean()), "second_accuracy": float(after.mean())}
            rows.append(row | {"detectable": statistics.detectable_difference(row["n"], discordant)})
    if not rows:
        raise MedkitError(
            f"{first.name} and {second.name} have no question in common "
            f"({'; '.join(left_out) or 'no model'}); compare results on the same benchmarks"
        )
    return {
        "first": first.name,
        "second": second.name,
        "comparisons": statistics.with_holm(rows),
        "left_out": left_out,
        "protocol": _differing(first.protocol, second.protocol),
        "settings": _differing(first.settings, second.settings) if first.settings and second.settings else {},
        "machine": _differing(first.machine, second.machine) if first.machine and second.machine else {},
        "settings_known": bool(first.settings and second.settings),
        "builtin": first.origin == "builtin",
    }


def _correct(side: Side, dataset: str, ids: list[str]) -> pd.DataFrame:
    """Correctness, one row per question of `ids`, one column per model that answered all of them."""
    items = side.items[side.items["dataset"] == dataset]
    correct = items.pivot(index="item_id", columns="model", values="correct")
    return correct.reindex(ids).dropna(axis="columns").astype(bool)


def _shared(first: Side, second: Side) -> tuple[dict[str, list[str]], list[str]]:
    """(ids to compare by benchmark, descriptions of what is left out)."""
    if (first.origin == "builtin") != (second.origin == "builtin"):
        return {}, ["only one of them used the built-in corpus"]
    shared, left_out = {}, []
    items = [side.items.drop_duplicates(["dataset", "item_id"]) for side in (first, second)]
    for dataset in dict.fromkeys([*items[0]["dataset"], *items[1]["dataset"]]):
        gold, other_gold = (rows[rows["dataset"] == dataset].set_index("item_id")["gold"] for rows in items)
        both = gold.index.intersection(other_gold.index)
        same = both[(gold[both] == other_gold[both]).to_numpy()]
        if unpaired := len(gold) + len(other_gold) - 2 * len(both):
            left_out.append(f"{dataset}: {unpaired:,} questions that only one of them answered")
        if len(both) - len(same) > MAX_CHANGED_GOLD * len(both):
            left_out.append(f"{dataset}: {len(both):,} ids that stand for different questions")
            continue
        if len(both) > len(same):
            left_out.append(f"{dataset}: {len(both) - len(same):,} questions with another correct answer")
        if len(same):
            shared[dataset] = sorted(same)
    return shared, left_out


def _model_pairs(first: Side, second: Side) -> list[tuple[str, str]]:
    """Pair the models by name; without a common name, pair every model with every other."""
    first_models, second_models = (list(dict.fromkeys(side.items["model"])) for side in (first, second))
    common = [(model, model) for model in first_models if model in second_models]
    return common or list(itertools.product(first_models, second_models))


def _differing(first: dict, second: dict) -> dict[str, list[str]]:
    """Field -> [first's value, second's value], for the fields that differ."""
    names = [name for name in first | second if first.get(name) != second.get(name)]
    return {name: [str(side.get(name, "not known")) for side in (first, second)] for name in names}


def page(comparison: dict) -> pd.DataFrame:
    """The comparisons as a table of strings, in percent and points."""
    return pd.DataFrame(
        {
            "benchmark": TITLES[row["dataset"]],
            "models": ", ".join(dict.fromkeys(arms.title(row[side]) for side in ("first", "second"))),
            "n": f"{row['n']:,}",
            "first, %": in_percent(row["first_accuracy"]),
            "second, %": in_percent(row["second_accuracy"]),
            "second - first, points": percent(row, "difference"),
            "detectable": number(100 * row["detectable"]),
            "p (Holm)": f"{row['p_holm']:.2g}",
        }
        for row in comparison["comparisons"]
    )


def headline(comparison: dict) -> str:
    """How many differences are significant, and how many answers differ."""
    rows = comparison["comparisons"]
    significant = sum(row["p_holm"] < ALPHA for row in rows)
    discordant = sum(row["first_only"] + row["second_only"] for row in rows)
    return (
        f"{significant} of {len(rows)} differences significant at {ALPHA}. Of "
        f"{sum(row['n'] for row in rows):,} pairs of answers {discordant:,} are right on one side only."
    )


def text(comparison: dict) -> str:
    """How the differences were tested, what was left out, and which settings and versions differ."""
    parts = [
        f"First: {comparison['first']}. Second: {comparison['second']}. Paired over the same questions: "
        "McNemar's exact test with Holm's correction over all rows; 95% intervals by the paired bootstrap. "
        "Detectable: the smallest difference, in points, that one such test, without the correction, finds "
        "with 80% power at the observed share of questions that only one side answered correctly."
    ]
    if comparison["builtin"]:
        parts.append(f"**{BUILT_IN}**")
    if comparison["left_out"]:
        parts.append(f"Left out: {'; '.join(comparison['left_out'])}.")
    if comparison["protocol"]:
        fields = "; ".join(f"{name} ({a}, {b})" for name, (a, b) in comparison["protocol"].items())
        parts.append(f"**The protocols differ, which affects every difference above**: {fields}.")
    if comparison["settings"]:
        fields = "; ".join(f"`{name}` {a}, {b}" for name, (a, b) in comparison["settings"].items())
        parts.append(f"Settings that differ (first, second): {fields}.")
    elif not comparison["settings_known"]:
        parts.append("The settings of lm-evaluation-harness's samples are not known.")
    elif not comparison["protocol"]:
        parts.append("No setting differs.")
    if comparison["machine"]:
        fields = "; ".join(f"{name} {a}, {b}" for name, (a, b) in comparison["machine"].items())
        parts.append(f"Versions and hardware that differ (first, second): {fields}.")
    return "\n\n".join(parts)


def write(comparison: dict) -> Path:
    """Write compare.json, compare.md and a self-contained compare.html; return their folder,
    results/compare-FIRST-SECOND."""
    folder = storage.root() / storage.slug(f"compare-{comparison['first']}-{comparison['second']}")
    title = f"{comparison['first']} and {comparison['second']}, compared"
    markdown = f"# {title}\n\n{headline(comparison)}\n\n{grid(page(comparison))}\n\n{text(comparison)}\n"
    storage.write_json(folder / "compare.json", comparison)
    storage.write_text(folder / "compare.md", markdown)
    storage.write_text(folder / "compare.html", html(title, markdown2html(markdown)))
    return folder


def terminal(comparison: dict) -> str:
    """Headline, table and text, at most markdown.WIDTH columns wide."""
    return f"{wrap(headline(comparison))}\n\n{plain_table(page(comparison))}\n\n{wrap(text(comparison))}"
