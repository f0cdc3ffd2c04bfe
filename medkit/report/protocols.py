"""What the way of reading an answer does to an accuracy: same models, same questions, three protocols."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medkit.evaluate import statistics
from medkit.report.markdown import Table, in_percent, origin_note, percent
from medkit.report.published import TITLES
from medkit.report.table3 import ALPHA
from medkit.runs import arms, storage
from medkit.runs.storage import load

PROTOCOLS = {"scored": "most likely letter", "generated": "answer in words", "released": "as released"}


def protocols(run_dir: str | Path) -> Table:
    """tables/protocols: an accuracy per model, benchmark and protocol in percent, from mcq/summary.json."""
    found = load(run_dir, "mcq/summary.json", ("protocols",))["protocols"]
    figures = pd.DataFrame([row for one in found for row in _figures(one)])
    title = "Protocols: the same questions, read in three ways"
    return Table("protocols", title, figures, page(found), told_apart(found), origin_note(run_dir))


def _figures(one: dict) -> list[dict]:
    rows = []
    for protocol, title in PROTOCOLS.items():
        own = statistics.wilson(one["correct"][protocol], one["n"])
        row = {"model": one["model"], "dataset": one["dataset"], "protocol": title, "n": one["n"]}
        row |= {"correct": own.correct, "unparsed": one["unparsed"][protocol]}
        row |= {"percent": 100 * own.accuracy, "low": 100 * own.low, "high": 100 * own.high}
        if minus := one.get("minus_scored", {}).get(protocol):
            names = {"difference": "minus_letter", "low": "minus_low", "high": "minus_high"}
            row |= {name: 100 * minus[key] for key, name in names.items()} | {"p": minus["p"]}
        rows.append(row)
    return rows


def page(found: Sequence[dict]) -> pd.DataFrame:
    """A row a model and benchmark; an answer that could not be read is a wrong one."""
    rows = []
    for one in found:
        row = {"model": arms.title(one["model"]), "benchmark": TITLES[one["dataset"]]}
        row |= {"n": one["n"]}
        for protocol, title in PROTOCOLS.items():
            row[title] = percent(storage.plain(statistics.wilson(one["correct"][protocol], one["n"])))
        for protocol, own in one.get("minus_scored", {}).items():
            row[f"{PROTOCOLS[protocol]} minus letter"] = in_percent(
                own["difference"], own["low"], own["high"]
            )
        row |= {f"in words: {tier}": in_percent(share["share"]) for tier, share in one["tiers"].items()}
        row |= {"cut at the limit": in_percent(one.get("cut")), "too long": one.get("too_long", 0)}
        row |= {"first and last letter differ": in_percent(one["first_last_disagree"])}
        rows.append(row | {"agrees with the letter": in_percent(one["agreement_with_scored"]["generated"])})
    return pd.DataFrame(rows)


def told_apart(found: Sequence[dict]) -> str:
    """Which protocols give another accuracy than the letters, McNemar's test corrected over all of them."""
    pairs = [(one, protocol, own) for one in found for protocol, own in one.get("minus_scored", {}).items()]
    if not pairs:
        return "No question was answered in words."
    apart = []
    for (one, protocol, own), p in zip(pairs, statistics.holm([own["p"] for *_, own in pairs]), strict=True):
        if p < ALPHA:
            points = 100 * own["difference"]
            name = f"{arms.title(one['model'])} on {TITLES[one['dataset']]}"
            apart.append(f"{name}, {PROTOCOLS[protocol]} ({points:+.1f} points; corrected p = {p:.2g})")
    return (
        "Percent. Answers in words are greedy and read by tiers; `as released` puts `Answer:` behind the "
        "question, samples up to 128 tokens and looks for `Answer: X` in prompt and output; two letters are "
        "wrong, and so is a letter without these words, which is all that a model trained on letters says. "
        "Paired with the likeliest letter over the same questions: McNemar's exact test with "
        f"Holm's correction over {len(pairs)}, at {ALPHA}. Told apart: {'; '.join(apart) or 'none'}."
    )
