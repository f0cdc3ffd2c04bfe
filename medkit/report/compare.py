"""Two runs compared on the same questions: paired differences, what could be seen, which settings differ.

A side is a run's folder, or samples of lm-evaluation-harness (report.harness). Only questions that both
sides answered, with the same correct answer, are compared; what is left out is counted.
"""

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
from medkit.runs import arms, run_json, storage

# Fields that make the same question another prompt, or read its answer otherwise.
PROTOCOL = ("model.chat_template", "data.mcq_target")
OTHER_QUESTIONS = 0.05  # share of ids with other answers from which on the ids number other questions


class CompareError(MedkitError):
    """Two results that have no question, or no model, in common."""


@dataclass(frozen=True)
class Side:
    """One of the two results."""

    name: str
    items: pd.DataFrame  # model, dataset, item_id, gold, predicted, correct
    protocol: dict[str, str]  # how prompts are made and answers read
    settings: dict[str, str] = field(default_factory=dict)  # a run's resolved fields
    origin: str = ""  # a run's rows: "builtin", "folder" or "hub"
    machine: dict[str, str] = field(default_factory=dict)  # a run's versions and hardware


def read(given: str) -> Side:
    """The side that `given` names: a run (name or folder), a samples file, or a folder of samples files."""
    place = Path(given).expanduser()
    if harness.sample_files(place):
        protocol = {"answers": "lm-evaluation-harness's task"}
        return Side(place.stem if place.is_file() else place.name, harness.read_samples(place), protocol)
    folder = storage.folder(given)
    info = run_json.read(folder)
    if info is None:
        raise CompareError(f"{given} is neither a run nor a samples file of lm-evaluation-harness; name one")
    items = accuracy.read_items(folder)
    items = items.assign(correct=accuracy.is_correct(items))[harness.COLUMNS]
    settings = {name: str(value) for name, value in run_json.identity(info).items()}
    protocol = {"answers": "log-probability of the letter", **{name: settings[name] for name in PROTOCOL}}
    machine = {name: str(value) for name, value in (info["versions"] | info["hardware"]).items()}
    return Side(folder.name, items, protocol, settings, info["data"]["origin"], machine)


def compare(first: Side, second: Side, seed: int = 0) -> dict:
    """Everything the tables show; JSON-plain. Accuracies are fractions, differences second minus first.

    "comparisons": per benchmark and pair of models n, both accuracies, difference with the paired
    bootstrap's 95% interval, McNemar's exact p, p_holm over all rows, and `detectable`, the smallest
    difference that these questions would have shown with 80% power. "left_out": what was not compared, and
    why. "protocol", "settings" and "machine": fields that differ. "builtin": whether the questions are the
    built-in corpus's. Raises CompareError where nothing is left.
    """
    shared, left_out = _shared(first, second)
    rows = []
    for dataset, ids in shared.items():
        firsts, seconds = (_outcomes(side, dataset, ids) for side in (first, second))
        for model, other in _pairs(first, second):
            if model not in firsts or other not in seconds:
                continue  # a model that was not asked this benchmark
            before, after = firsts[model].to_numpy(), seconds[other].to_numpy()
            row: dict = {"dataset": dataset, "first": model, "second": other}
            row |= storage.plain(statistics.compare(before, after, seed))
            discordant = row["first_only"] + row["second_only"]
            row |= {"first_accuracy": float(before.mean()), "second_accuracy": float(after.mean())}
            rows.append(row | {"detectable": statistics.detectable_difference(row["n"], discordant)})
    if not rows:
        raise CompareError(
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
        "builtin": first.origin == "builtin",
    }


def _outcomes(side: Side, dataset: str, ids: list[str]) -> pd.DataFrame:
    """A row a question of `ids`, a column a model that answered all of them: whether it was right."""
    items = side.items[side.items["dataset"] == dataset]
    outcomes = items.pivot(index="item_id", columns="model", values="correct")
    return outcomes.reindex(ids).dropna(axis="columns").astype(bool)


def _shared(first: Side, second: Side) -> tuple[dict[str, list[str]], list[str]]:
    """Per benchmark the ids to compare, and what was left out."""
    if (first.origin == "builtin") != (second.origin == "builtin"):
        return {}, ["one of them asked the built-in corpus"]
    shared, left_out = {}, []
    golds = [side.items.drop_duplicates(["dataset", "item_id"]) for side in (first, second)]
    for dataset in dict.fromkeys([*golds[0]["dataset"], *golds[1]["dataset"]]):
        ours, theirs = (gold[gold["dataset"] == dataset].set_index("item_id")["gold"] for gold in golds)
        both = ours.index.intersection(theirs.index)
        same = both[(ours[both] == theirs[both]).to_numpy()]
        if alone := len(ours) + len(theirs) - 2 * len(both):
            left_out.append(f"{dataset}: {alone:,} questions that only one of them answered")
        if len(both) - len(same) > OTHER_QUESTIONS * len(both):
            left_out.append(f"{dataset}: {len(both):,} ids that number other questions")
            continue
        if len(both) > len(same):
            left_out.append(f"{dataset}: {len(both) - len(same):,} questions with another correct answer")
        if len(same):
            shared[dataset] = sorted(same)
    return shared, left_out


def _pairs(first: Side, second: Side) -> list[tuple[str, str]]:
    """Models of one name with each other; where there is none, each with each."""
    ours, theirs = (list(dict.fromkeys(side.items["model"])) for side in (first, second))
    common = [(model, model) for model in ours if model in theirs]
    return common or [(model, other) for model in ours for other in theirs]


def _differing(ours: dict, theirs: dict) -> dict[str, list[str]]:
    """Field -> [first's value, second's], for the fields that are not the same in both."""
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    return {name: [str(side.get(name, "not known")) for side in (ours, theirs)] for name in names}


def page(comparison: dict) -> pd.DataFrame:
    """The comparisons as strings, in percent and points."""
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
    """How many differences are significant, and how many answers differ at all."""
    rows = comparison["comparisons"]
    significant = sum(row["p_holm"] < ALPHA for row in rows)
    one_alone = sum(row["first_only"] + row["second_only"] for row in rows)
    return (
        f"{significant} of {len(rows)} differences significant at {ALPHA}. Of "
        f"{sum(row['n'] for row in rows):,} pairs of answers {one_alone:,} are right on one side alone."
    )


def text(comparison: dict) -> str:
    """How the table was made, what was left out, and what differs between the two beside the weights."""
    parts = [
        f"First: {comparison['first']}. Second: {comparison['second']}. Paired over the same questions: "
        "McNemar's exact test with Holm's correction over all rows; 95% intervals by the paired bootstrap. "
        "Detectable: the smallest difference, in points, that this many questions would show with 80% power, "
        "at the observed share of questions that only one of the two has right."
    ]
    if comparison["builtin"]:
        parts.append(f"**{BUILT_IN}**")
    if comparison["left_out"]:
        parts.append(f"Left out: {'; '.join(comparison['left_out'])}.")
    if comparison["protocol"]:
        named = "; ".join(f"{name} ({one}, {other})" for name, (one, other) in comparison["protocol"].items())
        parts.append(f"**The protocols differ, and every difference above contains that**: {named}.")
    if comparison["settings"]:
        named = "; ".join(f"`{name}` {one}, {other}" for name, (one, other) in comparison["settings"].items())
        parts.append(f"Settings that differ (first, second): {named}.")
    elif not comparison["protocol"]:
        parts.append("No setting differs.")
    if comparison["machine"]:
        named = "; ".join(f"{name} {one}, {other}" for name, (one, other) in comparison["machine"].items())
        parts.append(f"Versions and machine that differ (first, second): {named}.")
    return "\n\n".join(parts)


def write(comparison: dict) -> Path:
    """compare.json, compare.md and compare.html (which loads nothing) in results/compare-FIRST-SECOND, the
    folder that is returned."""
    place = storage.root() / storage.slug(f"compare-{comparison['first']}-{comparison['second']}")
    title = f"{comparison['first']} and {comparison['second']}, compared"
    markdown = f"# {title}\n\n{headline(comparison)}\n\n{grid(page(comparison))}\n\n{text(comparison)}\n"
    storage.write_json(place / "compare.json", comparison)
    storage.write_text(place / "compare.md", markdown)
    storage.write_text(place / "compare.html", html(title, markdown2html(markdown)))
    return place


def terminal(comparison: dict) -> str:
    """The result in a line, the table and its text, markdown.WIDTH columns wide at most."""
    return f"{wrap(headline(comparison))}\n\n{plain_table(page(comparison))}\n\n{wrap(text(comparison))}"
