"""Published accuracies, and which of them are attainable: k/n for a whole number k of correct answers.

`attainable` lists the k that print as a given figure, rounded or truncated. A figure's precision is that of
its string ("57.5" has one decimal), except in the three rows that the paper measured: its Table 3 drops
trailing zeros, so these are read with two decimals (57.5 is 57.50, 75 is 75.00). Reprinted rows are read as
printed, which accepts more counts. All figures are in percent.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import pandas as pd

from medkit import MedkitError
from medkit.evaluate import statistics
from medkit.report.markdown import grid, plain_table, wrap

SIZES = {"medqa": 1273, "medmcqa": 4183, "pubmedqa": 1000}  # test samples, the paper's Table 1
TITLES = {"medqa": "MedQA", "medmcqa": "MedMCQA", "pubmedqa": "PubMedQA"}
RULES = ("rounded", "truncated")
PUBMEDQA_FOLD = 500  # PubMedQA's official test fold, which most other papers report on

PAPER = "the paper, Table 3"
REPRINTED = f"{PAPER}, after Wu et al. (doi 10.1093/jamia/ocae045)"
UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Row:
    """One model's printed accuracies in percent, as strings to keep the printed decimals."""

    model: str
    size: str
    printed: str  # MedQA, MedMCQA, PubMedQA and, if printed, their average; "-" for none
    source: str = REPRINTED
    protocol: str = UNKNOWN
    base: str = ""  # model of the row it is compared with
    people: bool = False  # a pass mark or experts, not a model

    @property
    def first_hand(self) -> bool:
        """Whether it was read in the publication that measured it, not in a copy."""
        return self.source == PAPER

    @property
    def decimals(self) -> int | None:
        """Decimals of the figures; None: as printed."""
        return 2 if self.first_hand else None

    @property
    def percents(self) -> dict[str, str]:
        """Printed figure by benchmark (and "average"), without the missing ones."""
        figures = zip((*SIZES, "average"), self.printed.split(), strict=False)
        return {name: figure for name, figure in figures if figure != "-"}


BASE = "LLaMA-3.1-Instruct (4-bit quantized)"
MED_MIX = "Med-Mix (4-bit quantized)"
MED_NIRVANA = "Med-Nirvana (4-bit quantized)"
_LLAMA = "Llama-3.1-8B-Instruct"
_HUATUO = "its released scorer: the better of two extraction rules, empty answers left out of the denominator"
_SILENT = "the paper is silent, and the run was not released"
_RELEASED = (
    "the paper is silent; the released notebook samples up to 128 tokens, unseeded, and looks for `Answer: X`"
)
_WIDELY = f"{_HUATUO}; its MedQA spans 72.6 to 77.9 across harnesses"
ROWS = (
    Row("Human (pass)", "", "50 - 60", people=True),
    Row("Human (expert)", "", "87 90 78 85", people=True),
    Row("GPT-4", "", "81.38 72.36 74.4 76.04", base=BASE),
    Row("Med-Palm 2", "540B", "86.5 72.3 81.8 80.2", base=BASE),
    Row("GPT-3.5", "175B", "57 44 63.9 54.97", base=BASE),
    Row("MEDITRON", "7B", "37.4 36.3 69.3 47.67", base=BASE),
    Row("MEDITRON", "70B", "59.8 53.3 79.8 64.3", base=BASE),
    Row("LLaMA-2", "70B", "43.68 35.02 74.3 51", base=BASE),
    Row("Med-Alpaca", "13B", "30.85 31.13 53.2 38.39", base=BASE),
    Row("Chat-Doctor", "7B", "33.93 31.1 54.3 39.78", base=BASE),
    Row("PMC-LLaMA_k", "7B", "48.15 54.15 77.1 59.8", base=BASE),
    Row("PMC-LLaMA", "13B", "56.36 56.04 77.9 63.43", base=BASE),
    Row(BASE, "8B", "56.87 54.82 75 62.23", PAPER, _SILENT),
    Row(MED_MIX, "8B", "57.5 56.35 79.1 64.32", PAPER, _RELEASED, BASE),
    Row(MED_NIRVANA, "8B", "53.55 52.77 71.67 59.33", PAPER, _SILENT, BASE),
    Row(_LLAMA, "", "58.7 56.0 75.2", "arXiv 2412.18925, Table 1", _HUATUO, BASE),
    Row(f"{_LLAMA}, SFT on exam data", "", "60.0 55.5 74.1", "arXiv 2412.18925, Table 2", _HUATUO, _LLAMA),
    Row("HuatuoGPT-o1-8B", "", "72.6 60.4 79.2", "arXiv 2412.18925", _WIDELY, _LLAMA),
    Row("MMed-Llama-3-8B", "", "65.4 63.5 80.1", "Nature Communications, s41467-024-52417-z", base=BASE),
    Row("MedGemma-4B-it", "", "64.4 55.7 73.4", "arXiv 2507.05201", base=BASE),
    Row("MedGemma-1.5-4B", "", "69.1 59.8 67.6", "arXiv 2604.05081", base=BASE),
    Row("II-Medical-8B-SFT", "", "86.57 71.92 77.4", "its model card", base=BASE),
)

# The paper's Table 4, then Tables 1 and 2: (training rows, test or validation rows).
BERTSCORE_N = 50
BERTSCORE_PROTOCOL = (
    "50 cases; several answers per model, the best chosen by hand; the paper names neither encoder nor "
    "rescaling (its values are as large as roberta-large's without rescaling)"
)
BERTSCORE = {
    BASE: {"precision": "0.843382", "recall": "0.840448", "f1": "0.841783"},
    MED_NIRVANA: {"precision": "0.881045", "recall": "0.848437", "f1": "0.864375"},
}
STAGE1_ROWS = {"medqa": (10_178, 1_273), "medmcqa": (182_822, 4_183), "pubmedqa": (211_269, 1_000)}
STAGE2_ROWS = {"notechat": (100_000, 10_000), "replay": (33_333, 3_333)}


def attainable(percent: str, n: int, decimals: int | None = None, rules=RULES) -> list[int]:
    """Whole counts k of n whose percentage prints as `percent` by one of `rules`, ascending.

    "rounded" takes a half either way. decimals: the printed precision, if trailing zeros were dropped; by
    default that of the string. Raises MedkitError if the string is not a number in [0, 100] or has more
    decimals, or if n < 1.
    """
    if n < 1:
        raise MedkitError(f"a test set of {n} questions has no accuracy; n must be at least 1")
    value, decimals = _scaled(percent, decimals)
    scale = 100 * 10**decimals  # k/n is scale * k / n units of the last decimal; integers only
    counts = set()
    if "rounded" in rules:  # (value - 1/2) n <= scale k <= (value + 1/2) n
        counts.update(range(-(-(2 * value - 1) * n // (2 * scale)), (2 * value + 1) * n // (2 * scale) + 1))
    if "truncated" in rules:  # value n <= scale k < (value + 1) n
        counts.update(range(-(-value * n // scale), -(-(value + 1) * n // scale)))
    return sorted(k for k in counts if 0 <= k <= n)


def fitting_sizes(percents: list[str], limit: int, decimals: int | None = None) -> list[int]:
    """Test sizes 1..limit for which all of `percents` are attainable by the same rule."""
    return [n for n in range(1, limit + 1) if _fit([(percent, n) for percent in percents], decimals)]


def fitting_runs(percents: dict[str, str], limit: int = 20, decimals: int | None = None) -> list[int]:
    """Numbers of runs 1..limit over Table 1's test sets whose mean accuracies can print as `percents`."""
    return [
        runs
        for runs in range(1, limit + 1)
        if _fit([(percent, runs * SIZES[name]) for name, percent in percents.items()], decimals)
    ]


def _fit(figures: list[tuple[str, int]], decimals: int | None) -> bool:
    return any(all(attainable(percent, n, decimals, (rule,)) for percent, n in figures) for rule in RULES)


def _scaled(percent: str, decimals: int | None) -> tuple[int, int]:
    try:
        value = Decimal(percent)
        printed = max(0, -int(value.as_tuple().exponent))
    except (InvalidOperation, TypeError, ValueError):
        raise MedkitError(f"{percent!r} is not a percentage; write it as printed, e.g. '57.5'") from None
    decimals = printed if decimals is None else decimals
    if not 0 <= value <= 100 or printed > decimals:
        raise MedkitError(f"{percent!r} is not a percentage between 0 and 100 with {decimals} decimals")
    return int(value.scaleb(decimals)), decimals


def audit() -> pd.DataFrame:
    """One row per published accuracy (model and benchmark), in percent and points.

    Columns: model, size, benchmark, published (as printed), n (Table 1's, an assumption for other sources),
    counts (the k that fit), attainable (None for people), fold_counts (the k that fit on PubMedQA's 500-row
    fold), low, high (Wilson), base, difference, difference_low, difference_high (Newcombe, unpaired),
    protocol, source, first_hand.
    """
    percents = {row.model: row.percents for row in ROWS}
    records = []
    for row in ROWS:
        for benchmark, percent in row.percents.items():
            if benchmark == "average":
                continue
            n = SIZES[benchmark]
            record: dict = {
                "model": row.model,
                "size": row.size,
                "benchmark": benchmark,
                "published": percent,
            }
            if not row.people:
                counts = attainable(percent, n, row.decimals)
                fold = attainable(percent, PUBMEDQA_FOLD, row.decimals) if benchmark == "pubmedqa" else []
                interval = statistics.wilson(float(percent) * n / 100, n)
                record |= {"n": n, "counts": counts, "attainable": bool(counts), "fold_counts": fold}
                record |= {"low": 100 * interval.low, "high": 100 * interval.high}
            if row.base:
                base = percents[row.base][benchmark]
                low, high = statistics.unpaired_difference(
                    float(base) * n / 100, n, float(percent) * n / 100, n
                )
                record |= {"base": row.base, "difference": float(Decimal(percent) - Decimal(base))}
                record |= {"difference_low": 100 * low, "difference_high": 100 * high}
            source = {"protocol": row.protocol, "source": row.source, "first_hand": row.first_hand}
            records.append(record | source)
    return pd.DataFrame(records).astype({"n": "Int64"})


def audit_text() -> str:
    """The audit's findings as paragraphs."""
    table = audit()
    paper = table[table["first_hand"]]
    paragraphs = [_verdict(model, paper[paper["model"] == model]) for model in (BASE, MED_MIX, MED_NIRVANA)]
    missed = paper[~paper["attainable"].astype(bool)]
    paragraphs += [_explanation(model, rows) for model, rows in missed.groupby("model", sort=False)]
    return "\n\n".join([*paragraphs, _against_base(paper), _reprinted(table[~table["first_hand"]])])


def _verdict(model: str, rows: pd.DataFrame) -> str:
    fitting = rows[rows["attainable"].astype(bool)]
    counts = "; ".join(
        f"{TITLES[row.benchmark]} {row.published} is {_counts(row.counts)} of {row.n:,}"
        for row in fitting.itertuples()
    )
    sentences = [f"{counts}."] if counts else []
    for row in rows.drop(fitting.index).itertuples():
        below = int(Decimal(row.published) * int(row.n) / 100)
        nearest = " and ".join(f"{k:,} of {row.n:,} is {100 * k / row.n:.4f}" for k in (below, below + 1))
        sentences.append(f"{TITLES[row.benchmark]} {row.published} is not attainable: {nearest}.")
    verdict = {len(rows): "attainable", 0: "not attainable"}.get(len(fitting), "attainable in part")
    return f"**{model}: {verdict} on Table 1's test sizes.** " + " ".join(sentences)


def _explanation(model: str, missed: pd.DataFrame) -> str:
    """What else could give unattainable figures: fewer questions, or the mean of several runs."""
    sizes = []
    for row in missed.itertuples():
        fitting = fitting_sizes([row.published], row.n, decimals=2)
        sizes.append(f"{TITLES[row.benchmark]} {row.published}: from {fitting[0]:,} up to {fitting[-1]:,}")
    percents = dict(zip(missed["benchmark"], missed["published"], strict=True))
    limit = min(SIZES[benchmark] for benchmark in percents)
    common = fitting_sizes(list(percents.values()), limit, decimals=2)
    smallest = f"at least {common[0]:,}" if common else f"none up to {limit:,}"
    runs = fitting_runs(percents, decimals=2)
    mean = f"{runs[0]} is the smallest number of runs" if runs else "no number of runs up to 20 is one"
    fold = "" if missed["fold_counts"].map(len).sum() else " PubMedQA's 500-row fold does not give it either."
    return (
        f"What could give {model}'s figures instead. Fewer questions than in Table 1, with the smallest and "
        f"largest number per benchmark: {'; '.join(sizes)}. The same number for all: {smallest}.{fold} "
        f"The mean of several runs over the full sets: {mean} that fits all of them. Arithmetic cannot tell "
        "which of these happened."
    )


def _against_base(paper: pd.DataFrame) -> str:
    results: tuple[list[str], list[str]] = ([], [])  # whose interval includes 0, and excludes it
    for row in paper[paper["base"].notna()].itertuples():
        interval = f"{row.difference:+.2f}, {row.difference_low:+.2f} to {row.difference_high:+.2f}"
        differs = not row.difference_low <= 0 <= row.difference_high
        results[differs].append(f"{row.model} on {TITLES[row.benchmark]} ({interval})")
    including, excluding = ("; ".join(group) for group in results)
    return (
        f"Against {BASE}, in points with the unpaired 95% interval, not corrected for their number. The "
        f"interval excludes 0: {excluding or 'none'}. It includes 0: {including or 'none'}. The outcomes per "
        "question were not published; paired intervals would usually be narrower."
    )


def _reprinted(rows: pd.DataFrame) -> str:
    rows = rows[rows["n"].notna()]
    missed = "; ".join(
        f"{_title(row)} on {TITLES[row.benchmark]} ({row.published})"
        for row in rows[~rows["attainable"].astype(bool)].itertuples()
    )
    fold = rows["fold_counts"].map(len).gt(0).sum()
    return (
        f"The other {len(rows)} figures were read in copies, not in the publications that measured them, and "
        f"their test sizes are assumed to be Table 1's. No whole count gives: {missed or 'none'}. "
        f"{fold} of the PubMedQA figures could also come from the 500-row fold, where the interval is wider "
        "than the one printed."
    )


def _title(row) -> str:
    return f"{row.model} {row.size}".strip()


def _counts(counts: list[int]) -> str:
    return "-".join(f"{k:,}" for k in dict.fromkeys([*counts[:1], *counts[-1:]])) or "none"


def render_audit() -> str:
    """The audit as Markdown: table and findings."""
    table = pd.DataFrame(_cells(row) for row in audit().itertuples())
    return f"# Published accuracies, audited\n\n{grid(table)}\n\n{audit_text()}\n"


def terminal_audit() -> str:
    """The audit for a terminal, markdown.WIDTH columns wide: each figure with the counts that fit."""
    rows: dict[str, dict[str, str]] = {}
    for row in audit().itertuples():
        counts = "" if pd.isna(row.n) else f" ({_counts(row.counts)})"
        rows.setdefault(_title(row), {})[TITLES[row.benchmark]] = row.published + counts
    sizes = ", ".join(f"{TITLES[name]} {n:,}" for name, n in SIZES.items())
    legend = (
        "In brackets: the numbers of correct answers that print as the figure, out of Table 1's test sizes "
        f"({sizes}); none: not attainable. medkit audit --markdown adds intervals and sources."
    )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*TITLES.values()]).fillna("")
    cells = plain_table(table.rename_axis("model").reset_index())
    return f"Published accuracies, audited\n\n{cells}\n\n{wrap(legend)}\n\n{wrap(audit_text())}\n"


def _cells(row) -> dict[str, str]:
    cells = {"model": _title(row), "benchmark": TITLES[row.benchmark]}
    cells |= {"published": row.published, "n": "", "counts that fit": "", "attainable": "no test run"}
    cells |= {"95% interval": "", "minus its base (unpaired)": "", "base": ""}
    if not pd.isna(row.n):
        fold = f" (or {_counts(row.fold_counts)} of {PUBMEDQA_FOLD})" if row.fold_counts else ""
        cells |= {"n": f"{row.n:,}", "counts that fit": _counts(row.counts) + fold}
        cells |= {"attainable": "yes" if row.attainable else "**no**"}
        cells |= {"95% interval": f"{row.low:.1f} to {row.high:.1f}"}
    if isinstance(row.base, str):
        interval = f"{row.difference_low:+.1f} to {row.difference_high:+.1f}"
        cells |= {"minus its base (unpaired)": f"{row.difference:+.2f} ({interval})", "base": row.base}
    read = "first-hand" if row.first_hand else "transcribed"
    return cells | {"protocol": row.protocol, "source": row.source, "read": read}
