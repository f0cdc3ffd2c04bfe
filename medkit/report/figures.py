"""Plots of the report. Every function draws into the given `ax` and labels units and the better direction.

Only `save` writes files; the same data give the same bytes. Colours are those of Okabe and Ito
(jfly.uni-koeln.de/color), distinct with colour blindness; markers and line styles differ as well.
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
MARKERS = {"base": "o", "med-mix": "s", "med-nirvana": "D", "control": "^"}
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
TITLES = published.TITLES | {"notechat": "NoteChat", "mts_dialog": "MTS-Dialog"}
TITLES |= {"icliniq": "iCliniq", "healthcaremagic": "HealthCareMagic"}
RC_PARAMS: dict = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
RC_PARAMS |= {"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.25}
ABOVE: dict = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}  # legends outside the axes
BELOW: dict = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}


class InlineFigure(Figure):
    """A figure that notebooks display. It does not belong to pyplot, so it provides its own PNG."""

    def _repr_png_(self) -> bytes:
        return _png(self, dpi=100)


def new(width: float = 7.0, height: float = 4.0, columns: int = 1, rows: int = 1) -> tuple[InlineFigure, Any]:
    """An empty figure and its ax, or array of axes. Size in inches; 7 is the width of a notebook column.

    Axes in one column share the x axis.
    """
    with matplotlib.rc_context(RC_PARAMS):
        figure = InlineFigure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, sharex="col")
    return figure, axes


def save(figure: Figure, path: str | Path, note: str = "", dpi: int = 120) -> Path:
    """Write a PNG atomically. The same figure and matplotlib version give the same bytes.

    `note` is a warning printed below the figure.
    """
    if note:
        figure.supxlabel(textwrap.fill(note, 90), fontsize="small", color=GREY)
    return storage.write_bytes(path, _png(figure, dpi))


def _png(figure: Figure, dpi: int) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None})
    return png.getvalue()


def loss_curves(ax: Axes, loss: pd.DataFrame, title: str = "") -> Axes:
    """Training and validation loss of one stage (Figures 11 and 12).

    loss: the rows of loss.csv, one per logged step, with the columns step, train_loss and eval_loss (NaN
    between evaluations). With more than 60 steps, a running mean over 5% of them is drawn on top.
    """
    train, validation, smooth, window = _split_losses(loss)
    style: dict = {"color": SKY, "alpha": 0.6, "linewidth": 0.8, "label": "training (each step)"}
    if not window:  # a single point needs a marker to be visible
        style = {"color": BLUE, "marker": "." if len(train) == 1 else None, "label": "training"}
    ax.plot(train["step"], train["train_loss"], **style)
    if window:
        style = {"color": BLUE, "linewidth": 1.8, "label": f"training (mean of {window} steps)"}
        ax.plot(train["step"], smooth, **style)
    if len(validation):
        style = {"color": VERMILION, "markersize": 5, "label": "validation"}
        ax.plot(validation["step"], validation["eval_loss"], "D--", **style)
    return _finish_loss_axes(ax, title, empty=train.empty and validation.empty)


def loss_arms(ax: Axes, curves: Mapping[str, pd.DataFrame], title: str = "") -> Axes:
    """Loss of several arms of a stage: training loss thin, validation loss with markers.

    The arms train on different rows, so only their validation losses are comparable. Training loss is drawn
    as one dot per step; with more than 60 steps, as a running mean over 5% of them.
    """
    for k, (model, loss) in enumerate(curves.items()):
        style = _model_style(model, k)
        train, validation, smooth, window = _split_losses(loss)
        line = {"linewidth": 1} if window else {"linestyle": "none", "marker": ".", "alpha": 0.6}
        ax.plot(train["step"], smooth, color=style["color"], label=f"{style['label']}, training", **line)
        if len(validation):
            style |= {"label": f"{style['label']}, validation", "linestyle": "--", "markersize": 6}
            ax.plot(validation["step"], validation["eval_loss"], **style)
    return _finish_loss_axes(ax, title, empty=not any(len(loss) for loss in curves.values()))


def _split_losses(loss: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series, int]:
    """Rows with a training loss, rows with a validation loss, the training losses' running mean, and its
    window (0: none)."""
    train, validation = (loss.dropna(subset=column) for column in ("train_loss", "eval_loss"))
    window, values = len(train) // 20 if len(train) > 60 else 0, train["train_loss"]
    smooth = values.rolling(window, center=True, min_periods=1).mean() if window else values
    return train, validation, smooth, window


def loss_by_source(ax: Axes, curves: Mapping[str, pd.DataFrame], title: str = "") -> Axes:
    """Validation loss of stage 2 by source (loss.BY_SOURCE), one colour per arm.

    Solid lines are consultations, dashed lines exam questions. A rising dashed line is forgetting.
    """
    empty = True
    sources = {"eval_loss_dialogues": ("consultations", "-"), "eval_loss_stage1": ("exam questions", "--")}
    for k, (model, loss) in enumerate(curves.items()):
        for column, (source, linestyle) in sources.items():
            rows = loss.dropna(subset=column) if column in loss else loss.iloc[:0]
            if len(rows):
                style = _model_style(model, k)
                style |= {"label": f"{style['label']}, {source}", "linestyle": linestyle, "markersize": 5}
                ax.plot(rows["step"], rows[column], **style)
                empty = False
    _finish_loss_axes(ax, title, empty=empty)
    ax.set_ylabel(f"validation {ax.get_ylabel()}")
    return ax


def _model_style(model: str, k: int) -> dict:
    """Colour, marker and label of the k-th model in a figure."""
    colour, marker = COLOURS.get(model, CYCLE[k % len(CYCLE)]), MARKERS.get(model, "osD^v"[k % 5])
    return {"color": colour, "marker": marker, "label": arms.title(model)}


def _use_integer_ticks(ax: Axes) -> None:
    """Put x ticks at integers only; widens the axis if all data have one x."""
    low, high = ax.get_xlim()
    if high - low < 1:
        ax.set_xlim(low - 0.5, high + 0.5)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))


def _finish_loss_axes(ax: Axes, title: str, empty: bool) -> Axes:
    ax.set(xlabel="optimizer step", ylabel="loss, nats per trained token\n(lower is better)", title=title)
    if empty:
        return _empty(ax, "no step was logged")
    _use_integer_ticks(ax)
    ax.legend()
    return ax


def accuracy(ax: Axes, summary: dict) -> Axes:
    """Accuracy of every model on every benchmark with Wilson 95% intervals, from mcq/summary.json.

    Dotted lines mark chance, dashed lines the score of always giving the most frequent answer.
    """
    datasets, models = summary["datasets"], summary["models"]
    if not datasets:
        return _empty(ax, "no benchmark was scored")
    step = 0.8 / len(models)
    for k, model in enumerate(models):
        rows = {i: d["models"][model] for i, d in enumerate(datasets.values()) if model in d["models"]}
        x = [i + (k - (len(models) - 1) / 2) * step for i in rows]
        errorbars(ax, x, [*rows.values()], "accuracy", **_model_style(model, k))
    for i, dataset in enumerate(datasets.values()):
        line = {"xmin": i - 0.45, "xmax": i + 0.45, "color": "black", "linewidth": 1}
        ax.hlines(dataset["chance"], linestyle=":", label="chance" if i == 0 else "", **line)
        label = "most frequent answer" if i == 0 else ""
        ax.hlines(dataset["majority"]["share"], linestyle="--", label=label, **line)
    ticks = [f"{TITLES.get(name, name)}\nn = {d['n']:,}" for name, d in datasets.items()]
    ax.set_xticks(range(len(datasets)), ticks)
    ax.set_xlim(-0.6, len(datasets) - 0.4)
    ax.set_ylim(-0.03, 1.03)  # room for a whole marker at 0 and 100%
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_ylabel("accuracy, 95% interval\n(higher is better)")
    ax.grid(axis="x", visible=False)
    ax.legend(**BELOW, ncols=3)
    return ax


def errorbars(ax: Axes, positions, rows: Sequence[Mapping], key: str, factor=1.0, horizontal=False, **style):
    """Draw `factor` * row[key] with an error bar from row["low"] to row["high"], one marker per row.

    positions: the rows' y coordinates if `horizontal`, else their x coordinates.
    """
    values, low, high = (
        factor * np.array([row[column] for row in rows], dtype=float) for column in (key, "low", "high")
    )
    errors = np.nan_to_num(np.abs([values - low, high - values]))
    data: dict = {"x": positions, "y": values, "yerr": errors}
    if horizontal:
        data = {"x": values, "y": positions, "xerr": errors}
    ax.errorbar(**data | {"linestyle": "none", "capsize": 3, "markersize": 6} | style)


def forgetting(ax: Axes, summary: dict) -> Axes:
    """Change in accuracy after stage 2, with and without replay, with paired 95% intervals.

    Uses the comparisons of mcq/summary.json with Med-Mix as the first model; below zero means forgetting.
    """
    rows = [row for row in summary["comparisons"] if row["first"] == "med-mix"]
    if not rows:
        return _empty(ax, "no model was compared with Med-Mix")
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    compared = list(dict.fromkeys(row["second"] for row in rows))
    for k, arm in enumerate(compared):
        arm_rows = [row for row in rows if row["second"] == arm]
        offset = (0.5 - (k + 0.5) / len(compared)) * 0.5
        y = [offset - datasets.index(row["dataset"]) for row in arm_rows]
        style = _model_style(arm, k) | {"label": f"{arms.title(arm)} minus {arms.title('med-mix')}"}
        errorbars(ax, y, arm_rows, "difference", factor=100, horizontal=True, **style)
    ax.axvline(0, color="black", linewidth=1)
    labels = [f"{TITLES.get(name, name)}\nn = {summary['datasets'][name]['n']:,}" for name in datasets]
    ax.set_yticks([-i for i in range(len(datasets))], labels)
    ax.set_ylim(-len(datasets) + 0.5, 0.5)
    ax.set_xlabel("change in accuracy, percentage points, 95% interval\n(left of 0: forgotten in stage 2)")
    ax.grid(axis="y", visible=False)
    ax.legend(**ABOVE, ncols=2)
    return ax


def f1_difference_per_case(ax: Axes, scores: pd.DataFrame, first: str, second: str) -> Axes:
    """BERTScore F1 of `second` minus `first`, one bar per case in descending order, with the mean's interval.

    scores: from consumer.evaluate; only greedy answers are used.
    """
    greedy = scores[scores["sample"] == 0]
    if first == second or not {first, second} <= set(greedy["model"]):
        return _empty(ax, f"no answers of both {arms.title(first)} and {arms.title(second)}")
    f1 = greedy.pivot(index=["source", "case"], columns="model", values="f1")
    differences = (f1[second] - f1[first]).sort_values(ascending=False).to_numpy()
    ranks = np.arange(1, len(differences) + 1)
    colours = np.where(differences > 0, COLOURS.get(second, BLUE), COLOURS.get(first, GREY))
    ax.bar(ranks, differences, color=colours, width=0.8)
    mean = statistics.bootstrap_mean(differences)
    if not np.isnan(mean.low):
        band: dict = {"color": SKY, "alpha": 0.3, "linewidth": 0, "zorder": 0}
        ax.axhspan(mean.low, mean.high, label="95% interval of the mean", **band)
    ax.axhline(mean.mean, color="black", linestyle="--", linewidth=1.2, label=f"mean {mean.mean:+.4f}")
    ax.axhline(0, color="black", linewidth=0.8)
    better = int((differences > 0).sum())
    ax.set_title(f"{arms.title(second)} nearer in {better} of {len(differences)} cases")
    ax.set_xlabel("case, in order of the difference")
    names = f"{arms.title(second)} minus {arms.title(first)}"
    ax.set_ylabel(f"BERTScore F1, {names}\n(above 0: nearer to the physician)")
    _use_integer_ticks(ax)
    ax.grid(axis="x", visible=False)
    ax.legend()
    return ax


def f1_against_length(ax: Axes, scores: pd.DataFrame) -> Axes:
    """BERTScore F1 against length relative to the physician's answer, one marker per greedy answer."""
    greedy = scores[scores["sample"] == 0]
    answered = greedy[greedy["words"] > 0]
    if answered.empty:
        return _empty(ax, "no answer has a word")
    relative = answered["words"] / answered["reference_words"]
    for k, (model, rows) in enumerate(answered.groupby("model", sort=False)):
        ax.scatter(relative[rows.index], rows["f1"], s=28, alpha=0.75, linewidths=0, **_model_style(model, k))
    ax.set_xscale("log")
    ax.axvline(1, color="black", linestyle=":", linewidth=1, label="as long as the physician's")
    narrow = max(relative.max(), 1) < 10 * min(relative.min(), 1)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if narrow else (1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlabel("words, answer / physician (log scale)")
    ax.set_ylabel("BERTScore F1\n(higher is nearer to the physician)")
    if empty := len(greedy) - len(answered):
        ax.set_title(f"empty answers, not shown (F1 = 0): {empty}", pad=28)
    ax.legend(**ABOVE, ncols=3)
    return ax


def confusion(ax: Axes, panel: dict, title: str = "") -> Axes:
    """Confusion matrix of PubMedQA's yes, no and maybe, with row shares: a panel of mcq/summary.json.

    A fourth column counts unparsed answers, if there are any.
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
    ax.set(xlabel="predicted", ylabel="expert (the diagonal is right)", title=title)
    ax.grid(visible=False)
    return ax


def confusions(summary: dict) -> InlineFigure:
    """Confusion matrices of every model on PubMedQA: all rows and, if present, the official fold below."""
    models = summary["pubmedqa"]
    titles = {"all": "", "fold": ", official fold"}
    rows = [fold for fold in titles if any(folds[fold] for folds in models.values())]
    figure, axes = new(3.3 * len(models), 3.4 * len(rows), columns=len(models), rows=len(rows))
    for row, fold in zip(np.reshape(axes, (len(rows), len(models))), rows, strict=True):
        for ax, (model, folds) in zip(row, models.items(), strict=True):
            if folds[fold]:
                confusion(ax, folds[fold], f"{arms.title(model)}{titles[fold]}")
            ax.tick_params(labelbottom=True)  # the panels share the x axis
    return figure


def reliability(ax: Axes, models: Mapping[str, dict]) -> Axes:
    """Reliability diagram: accuracy against confidence, in bins with equal numbers of answers.

    models: {model: {"bins": [{"confidence", "accuracy", "n"}], "ece", "brier", "n"}}, as fractions.
    Confidence is the probability of the chosen letter. Below the diagonal, a model is overconfident.
    """
    if not any(calibration["bins"] for calibration in models.values()):
        return _empty(ax, "no answer has a confidence")
    ax.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, label="perfect calibration")
    for k, (model, calibration) in enumerate(models.items()):
        x, y = ([row[key] for row in calibration["bins"]] for key in ("confidence", "accuracy"))
        style = _model_style(model, k)
        ece, brier, n = (calibration[key] for key in ("ece", "brier", "n"))
        style["label"] += f": ECE {ece:.3f}, Brier {brier:.3f}, n {n:,}"
        ax.plot(x, y, linewidth=1, markersize=6, **style)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_xlabel("confidence: probability of the chosen letter")
    ax.set_ylabel("accuracy of these answers\n(nearer to the diagonal is better)")
    ax.legend(**BELOW)
    return ax


def reliabilities(summary: dict) -> InlineFigure:
    """`reliability` of every model, one panel per benchmark, from mcq/summary.json."""
    return _panels(reliability, summary["calibration"], 4.8)


def option_order(ax: Axes, models: Mapping[str, dict]) -> Axes:
    """Accuracy under each cyclic order of the options, one row per model, the original order in a ring.

    models: {model: {"accuracies": [one per order, the original first], "consistency", "vote_accuracy", "n"}},
    as fractions. Consistency is the share of questions answered with the same option under every order.
    """
    if not models:
        return _empty(ax, "no question was asked in several orders")
    ring: dict = {"color": "black", "fillstyle": "none", "linestyle": "none", "marker": "o", "markersize": 12}
    for k, (model, result) in enumerate(models.items()):
        style = _model_style(model, k) | {"label": None}
        y = [-k] * len(result["accuracies"])
        ax.plot(result["accuracies"], y, markersize=6, linewidth=1, alpha=0.8, **style)
        ax.plot(result["vote_accuracy"], -k, "|", color="black", markersize=18, markeredgewidth=2)
        ax.plot(result["accuracies"][0], -k, **ring)
    ax.plot([], [], "|", color="black", markersize=12, markeredgewidth=2, label="vote over the orders")
    ax.plot([], [], **ring, label="original order")
    ax.plot([], [], "o", color=GREY, label="another order")
    labels = [
        f"{arms.title(model)}, n = {result['n']:,}\n{result['consistency']:.0%} the same option"
        for model, result in models.items()
    ]
    ax.set_yticks([-k for k in range(len(models))], labels)
    ax.set(xlim=(-0.06, 1.06), ylim=(-len(models) + 0.5, 0.5))
    ax.xaxis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_xlabel("accuracy (right is better;\nclose together: the order hardly matters)")
    ax.grid(axis="y", visible=False)
    ax.legend(**ABOVE, ncols=2, fontsize="small")
    return ax


def option_orders(summary: dict) -> InlineFigure:
    """`option_order` of every model, one panel per benchmark, from mcq/summary.json."""
    benchmarks = {name: models for name, models in summary["option_order"].items() if name != "all"}
    return _panels(option_order, benchmarks or {"": {}}, 3.6)


def _panels(draw, benchmarks: Mapping[str, dict], height: float) -> InlineFigure:
    """A figure with draw(ax, models) for each benchmark's models, side by side."""
    figure, axes = new(5.0 * len(benchmarks), height, columns=len(benchmarks))
    for ax, (name, models) in zip(np.ravel(axes), benchmarks.items(), strict=True):
        draw(ax, models)
        ax.set_title(TITLES.get(name, name), pad=42 if draw is option_order else None)
    return figure


def _empty(ax: Axes, reason: str) -> Axes:
    """Write why there is nothing to draw instead of leaving the axes blank."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set(xticks=[], yticks=[])
    return ax
