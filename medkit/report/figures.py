"""What a paper plots: every function draws into the `ax` it is given, names units and the better direction.

Nothing is saved but by `save`, whose files are the same for the same data. Colours are those of Okabe and Ito
(jfly.uni-koeln.de/color), distinct under every common colour blindness; marks and dashes differ as well.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medkit.evaluate import statistics
from medkit.report import published
from medkit.runs import arms, storage

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00".split()
GREY = "#666666"
COLOURS = {"base": GREY, "med-mix": BLUE, "med-nirvana": VERMILION, "control": GREEN}
MARKS = {"base": "o", "med-mix": "s", "med-nirvana": "D", "control": "^"}
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
TITLES = published.TITLES | {"notechat": "NoteChat", "mts_dialog": "MTS-Dialog"}
TITLES |= {"icliniq": "iCliniq", "healthcaremagic": "HealthCareMagic"}
STYLE: dict = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.25}
ABOVE: dict = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}  # where a legend hides nothing
BELOW: dict = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}


class Shown(Figure):
    """A figure that a notebook shows on its own: without pyplot, nothing else tells IPython how."""

    def _repr_png_(self) -> bytes:
        return _png(self, dpi=100)


def new(width: float = 7.0, height: float = 4.0, columns: int = 1, rows: int = 1) -> tuple[Shown, Any]:
    """An empty figure of `width` x `height` inches (7 is a notebook's column) with its ax or axes. Those of a
    column have one x axis."""
    with matplotlib.rc_context(STYLE):
        figure = Shown(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, sharex="col")
    return figure, axes


def save(figure: Figure, path: str | Path, note: str = "", dpi: int = 120) -> Path:
    """Write a PNG, the same to the byte for the same figure and matplotlib; whole or not at all.

    `note` goes under the figure: what it must not be taken for.
    """
    if note:
        figure.supxlabel(textwrap.fill(note, 90), fontsize="small", color=GREY)
    return storage.write_bytes(path, _png(figure, dpi))


def _png(figure: Figure, dpi: int) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None})
    return png.getvalue()


def loss_curves(ax: Axes, loss: pd.DataFrame, title: str = "") -> Axes:
    """Training and validation loss of one stage (Figures 11 and 12) from loss.csv.

    Columns step, train_loss and eval_loss, a row a logged step; eval_loss is NaN between evaluations. With
    more than 60 steps the training loss is drawn pale, with its running mean over a twentieth of the steps.
    """
    train, evaluated, window = _losses(loss)
    look: dict = {"color": SKY, "alpha": 0.6, "linewidth": 0.8, "label": "training (each step)"}
    if not window:  # a line through one point shows nothing
        look = {"color": BLUE, "marker": "." if len(train) == 1 else None, "label": "training"}
    ax.plot(train["step"], train["train_loss"], **look)
    if window:
        look = {"color": BLUE, "linewidth": 1.8, "label": f"training (mean of {window} steps)"}
        ax.plot(train["step"], _smooth(train["train_loss"], window), **look)
    if len(evaluated):
        look = {"color": VERMILION, "markersize": 5, "label": "validation"}
        ax.plot(evaluated["step"], evaluated["eval_loss"], "D--", **look)
    return _loss_axes(ax, title, empty=train.empty and evaluated.empty)


def loss_arms(ax: Axes, curves: Mapping[str, pd.DataFrame], title: str = "") -> Axes:
    """The arms of one stage over each other: training loss thin, validation loss (the one to compare) marked.

    Training loss is a dot a step, as steps of unlike rows have unlike losses; with more than 60 steps a line,
    its running mean over a twentieth of them.
    """
    for i, (name, loss) in enumerate(curves.items()):
        look = _look(name, i)
        train, evaluated, window = _losses(loss)
        values, line = train["train_loss"], {"linestyle": "none", "marker": ".", "alpha": 0.6}
        if window:
            values, line = _smooth(values, window), {"linewidth": 1}
        ax.plot(train["step"], values, color=look["color"], label=f"{look['label']}, training", **line)
        if len(evaluated):
            look |= {"label": f"{look['label']}, validation", "linestyle": "--", "markersize": 6}
            ax.plot(evaluated["step"], evaluated["eval_loss"], **look)
    return _loss_axes(ax, title, empty=not any(len(loss) for loss in curves.values()))


def _losses(loss: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The steps with a training loss, those with a validation loss, and the steps that a running mean takes;
    0 for no more than 60 steps."""
    train, evaluated = (loss.dropna(subset=name) for name in ("train_loss", "eval_loss"))
    return train, evaluated, len(train) // 20 if len(train) > 60 else 0


def _smooth(values: pd.Series, window: int) -> pd.Series:
    return values.rolling(window, center=True, min_periods=1).mean()


def loss_by_source(ax: Axes, curves: Mapping[str, pd.DataFrame], title: str = "") -> Axes:
    """Validation loss of stage 2 by source (loss.BY_SOURCE), an arm a colour: solid lines for the
    consultations, dashed ones for stage 1's questions, whose rise is the forgetting as it happens."""
    empty = True
    kinds = {"eval_loss_dialogues": ("consultations", "-"), "eval_loss_stage1": ("exam questions", "--")}
    for i, (name, loss) in enumerate(curves.items()):
        for column, (kind, line) in kinds.items():
            rows = loss.dropna(subset=column) if column in loss else loss.iloc[:0]
            if len(rows):
                look = _look(name, i)
                look |= {"label": f"{look['label']}, {kind}", "linestyle": line, "markersize": 5}
                ax.plot(rows["step"], rows[column], **look)
                empty = False
    _loss_axes(ax, title, empty=empty)
    ax.set_ylabel(f"validation {ax.get_ylabel()}")
    return ax


def _look(model: str, k: int) -> dict:
    """Colour, mark and name of a model, the k-th of a figure."""
    colour, mark = COLOURS.get(model, CYCLE[k % len(CYCLE)]), MARKS.get(model, "osD^v"[k % 5])
    return {"color": colour, "marker": mark, "label": arms.title(model)}


def _whole_numbers(ax: Axes):
    """Ticks at whole numbers only, also where all data lie at one of them."""
    low, high = ax.get_xlim()
    if high - low < 1:
        ax.set_xlim(low - 0.5, high + 0.5)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))


def _loss_axes(ax: Axes, title: str, empty: bool) -> Axes:
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("loss, nats per trained token\n(lower is better)")
    ax.set_title(title)
    if empty:
        return _nothing(ax, "no step was logged")
    _whole_numbers(ax)
    ax.legend()
    return ax


def accuracy(ax: Axes, summary: dict) -> Axes:
    """Accuracy of every model on every benchmark with Wilson's 95% interval, from mcq/summary.json.

    A dotted line marks chance, a dashed one always giving the most frequent answer.
    """
    datasets, models = summary["datasets"], summary["models"]
    if not datasets:
        return _nothing(ax, "no benchmark was scored")
    step = 0.8 / len(models)
    for k, model in enumerate(models):
        rows = {i: d["models"][model] for i, d in enumerate(datasets.values()) if model in d["models"]}
        at = [i + (k - (len(models) - 1) / 2) * step for i in rows]
        errorbars(ax, at, [*rows.values()], "accuracy", **_look(model, k))
    for i, dataset in enumerate(datasets.values()):
        here = {"xmin": i - 0.45, "xmax": i + 0.45, "color": "black", "linewidth": 1}
        ax.hlines(dataset["chance"], linestyle=":", label="chance" if i == 0 else "", **here)
        most = "most frequent answer" if i == 0 else ""
        ax.hlines(dataset["majority"]["share"], linestyle="--", label=most, **here)
    ticks = [f"{TITLES.get(name, name)}\nn = {d['n']:,}" for name, d in datasets.items()]
    ax.set_xticks(range(len(datasets)), ticks)
    ax.set_xlim(-0.6, len(datasets) - 0.4)
    ax.set_ylim(-0.03, 1.03)  # a mark at 0 or 100% is seen whole
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_ylabel("accuracy, 95% interval\n(higher is better)")
    ax.grid(axis="x", visible=False)
    ax.legend(**BELOW, ncols=3)
    return ax


def errorbars(
    ax: Axes, at: Sequence[float], rows: Sequence[Mapping], key: str, factor=1.0, lying=False, **look
) -> None:
    """A mark a row at row[key] with an interval from row["low"] to row["high"], all times `factor`; `lying`:
    along the x axis."""
    middle, low, high = (
        factor * np.array([row[k] for row in rows], dtype=float) for k in (key, "low", "high")
    )
    reach = np.nan_to_num(np.abs([middle - low, high - middle]))
    places: dict = {"x": middle, "y": at, "xerr": reach} if lying else {"x": at, "y": middle, "yerr": reach}
    ax.errorbar(**places | {"linestyle": "none", "capsize": 3, "markersize": 6} | look)


def forgetting(ax: Axes, summary: dict) -> Axes:
    """What changed in accuracy by stage 2, with and without replay, per benchmark; 95% intervals, paired.

    From the comparisons of mcq/summary.json whose first model is Med-Mix; below zero is forgotten.
    """
    rows = [row for row in summary["comparisons"] if row["first"] == "med-mix"]
    if not rows:
        return _nothing(ax, "no model was compared with Med-Mix")
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    compared = list(dict.fromkeys(row["second"] for row in rows))
    for k, arm in enumerate(compared):
        of_arm = [row for row in rows if row["second"] == arm]
        at = [-datasets.index(row["dataset"]) + (0.5 - (k + 0.5) / len(compared)) * 0.5 for row in of_arm]
        look = _look(arm, k) | {"label": f"{arms.title(arm)} minus {arms.title('med-mix')}"}
        errorbars(ax, at, of_arm, "difference", factor=100, lying=True, **look)
    ax.axvline(0, color="black", linewidth=1)
    sizes = {name: summary["datasets"][name]["n"] for name in datasets}
    names = [f"{TITLES.get(name, name)}\nn = {sizes[name]:,}" for name in datasets]
    ax.set_yticks([-i for i in range(len(datasets))], names)
    ax.set_ylim(-len(datasets) + 0.5, 0.5)
    ax.set_xlabel("change in accuracy, percentage points, 95% interval\n(left of 0: forgotten in stage 2)")
    ax.grid(axis="y", visible=False)
    ax.legend(**ABOVE, ncols=2)
    return ax


def f1_difference_per_case(ax: Axes, scores: pd.DataFrame, first: str, second: str) -> Axes:
    """BERTScore F1 of `second` minus `first`, a bar a case in order of size, with the mean and its interval.

    `scores` as consumer.evaluate gives them; the greedy answers are taken.
    """
    greedy = scores[scores["sample"] == 0]
    if first == second or not {first, second} <= set(greedy["model"]):
        return _nothing(ax, f"no answers of both {arms.title(first)} and {arms.title(second)}")
    f1 = greedy.pivot(index=["source", "case"], columns="model", values="f1")
    gains = (f1[second] - f1[first]).sort_values(ascending=False).to_numpy()
    ranks = np.arange(1, len(gains) + 1)
    nearer = np.where(gains > 0, COLOURS.get(second, BLUE), COLOURS.get(first, GREY))
    ax.bar(ranks, gains, color=nearer, width=0.8)
    mean = statistics.bootstrap_mean(gains)
    label = f"mean {mean.mean:+.4f}"
    if not np.isnan(mean.low):
        ax.axhspan(
            mean.low, mean.high, color=SKY, alpha=0.3, linewidth=0, zorder=0, label="95% interval of the mean"
        )
    ax.axhline(mean.mean, color="black", linestyle="--", linewidth=1.2, label=label)
    ax.axhline(0, color="black", linewidth=0.8)
    better = int((gains > 0).sum())
    names = f"{arms.title(second)} minus {arms.title(first)}"
    ax.set_title(f"{arms.title(second)} nearer in {better} of {len(gains)} cases")
    ax.set_xlabel("case, in order of the difference")
    ax.set_ylabel(f"BERTScore F1, {names}\n(above 0: nearer to the physician)")
    _whole_numbers(ax)
    ax.grid(axis="x", visible=False)
    ax.legend()
    return ax


def f1_against_length(ax: Axes, scores: pd.DataFrame) -> Axes:
    """BERTScore F1 against the answer's length relative to the physician's, a mark an answer (greedy)."""
    greedy = scores[(scores["sample"] == 0) & (scores["words"] > 0)]
    if greedy.empty:
        return _nothing(ax, "no answer has a word")
    relative = greedy["words"] / greedy["reference_words"]
    for k, (model, rows) in enumerate(greedy.groupby("model", sort=False)):
        ax.scatter(relative[rows.index], rows["f1"], s=28, alpha=0.75, linewidths=0, **_look(model, k))
    ax.set_xscale("log")
    ax.axvline(1, color="black", linestyle=":", linewidth=1, label="as long as the physician's")
    narrow = max(relative.max(), 1) < 10 * min(relative.min(), 1)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if narrow else (1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlabel("words, answer / physician (log scale)")
    ax.set_ylabel("BERTScore F1\n(higher is nearer to the physician)")
    empty = int((scores.query("sample == 0")["words"] == 0).sum())
    if empty:
        ax.set_title(f"empty answers, not shown (F1 = 0): {empty}", pad=28)
    ax.legend(**ABOVE, ncols=3)
    return ax


def confusion(ax: Axes, panel: dict, title: str = "") -> Axes:
    """PubMedQA's three answers, expected by predicted, with row shares: a panel of mcq/summary.json.

    Answers that are none of the three are in a fourth column, where there are any.
    """
    labels = panel["labels"]
    counts, columns = np.array(panel["confusion"]), list(labels)
    if any(panel["unparsed"]):
        counts, columns = np.column_stack([counts, panel["unparsed"]]), [*labels, "none"]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if share > 0.55 else "black"
        ax.text(column, row, f"{count:,}\n{share:.0%}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(labels)), [f"{x}\nn = {n:,}" for x, n in zip(labels, totals[:, 0], strict=True)])
    ax.set_xlabel("predicted")
    ax.set_ylabel("expert (the diagonal is right)")
    ax.grid(visible=False)
    ax.set_title(title)
    return ax


def confusions(summary: dict) -> Shown:
    """PubMedQA's answers, expected by predicted; a panel a model, on all rows and, where the official fold is
    among them, beside it on the fold."""
    panels = [
        (folds[fold], f"{arms.title(model)}{', official fold' if fold == 'fold' else ''}")
        for model, folds in summary["pubmedqa"].items()
        for fold in ("all", "fold")
        if folds[fold]
    ]
    figure, axes = new(width=3.3 * len(panels), height=3.4, columns=len(panels))
    for ax, (panel, title) in zip(np.ravel(axes), panels, strict=True):
        confusion(ax, panel, title)
    return figure


def reliability(ax: Axes, models: Mapping[str, dict]) -> Axes:
    """How often a model is right when it is so sure: a mark a bin of equally many answers.

    models: {model: {"bins": [{"confidence", "accuracy", "n"}], "ece", "brier", "n"}}, fractions; the
    confidence is the probability of the letter that was chosen. Below the diagonal a model is surer than it
    is right.
    """
    if not any(measured["bins"] for measured in models.values()):
        return _nothing(ax, "no answer has a confidence")
    ax.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, label="as sure as right")
    for k, (model, measured) in enumerate(models.items()):
        sure, right = ([part[key] for part in measured["bins"]] for key in ("confidence", "accuracy"))
        look = _look(model, k)
        look["label"] += f": ECE {measured['ece']:.3f}, Brier {measured['brier']:.3f}, n {measured['n']:,}"
        ax.plot(sure, right, linewidth=1, markersize=6, **look)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.03, 1.03)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_xlabel("confidence: probability of the chosen letter")
    ax.set_ylabel("accuracy of these answers\n(nearer to the diagonal is better)")
    ax.legend(**BELOW)
    return ax


def reliabilities(summary: dict) -> Shown:
    """`reliability` of every model, a panel a benchmark, from mcq/summary.json."""
    benchmarks = summary["calibration"]
    figure, axes = new(width=5.0 * len(benchmarks), height=4.8, columns=len(benchmarks))
    for ax, (name, models) in zip(np.ravel(axes), benchmarks.items(), strict=True):
        reliability(ax, models)
        ax.set_title(TITLES[name])
    return figure


def option_order(ax: Axes, models: Mapping[str, dict]) -> Axes:
    """What the order of the options is worth: accuracy under each of the cyclic orders, a row a model.

    models: {model: {"accuracies": [one an order, the original first], "consistency", "vote_accuracy", "n"}},
    fractions; consistency is the share of questions that get the same option under every order.
    """
    if not models:
        return _nothing(ax, "no question was asked in several orders")
    for k, (model, measured) in enumerate(models.items()):
        look = _look(model, k) | {"label": None}
        at = [-k] * len(measured["accuracies"])
        ax.plot(measured["accuracies"], at, markersize=6, linewidth=1, alpha=0.8, **look)
        ax.plot(measured["vote_accuracy"], -k, "|", color="black", markersize=18, markeredgewidth=2)
    ax.plot([], [], "|", color="black", markersize=12, markeredgewidth=2, label="vote over the orders")
    ax.plot([], [], "o", color=GREY, label="one order of the options")
    names = [
        f"{arms.title(model)}, n = {measured['n']:,}\n{measured['consistency']:.0%} the same option"
        for model, measured in models.items()
    ]
    ax.set_yticks([-k for k in range(len(models))], names)
    ax.set_ylim(-len(models) + 0.5, 0.5)
    ax.xaxis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_xlabel("accuracy (right is better; close together: the order hardly matters)")
    ax.grid(axis="y", visible=False)
    ax.legend(**ABOVE, ncols=2)
    return ax


def _nothing(ax: Axes, why: str) -> Axes:
    """Say in the figure that there is nothing to draw, rather than leave it blank."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax
