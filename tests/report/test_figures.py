"""Every figure shows the numbers it was given, stays legible, and survives empty and single-point data."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from medkit.report import figures
from medkit.runs import storage
from medkit.runs.storage import ResultsError


def loss(steps, every=5):
    step = np.arange(1, steps + 1)
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step / max(steps, 1),
            "tokens": 900 * step,
            "train_loss": 3 - step / (steps + 1),
            "eval_loss": np.where(step % every == 0, 2.5 - step / (steps + 1), math.nan),
            "learning_rate": 3e-4,
        }
    )


def mcq(models=("base", "med-mix", "med-nirvana", "control"), datasets=("medqa", "medmcqa", "pubmedqa")):
    """Model k has accuracy 0.5 + k/10; the interval is 0.05 to either side."""
    own = {
        model: {"accuracy": 0.5 + k / 10, "low": 0.45 + k / 10, "high": 0.55 + k / 10}
        for k, model in enumerate(models)
    }
    comparisons = [
        {
            "dataset": d,
            "first": "med-mix",
            "second": m,
            "difference": gap,
            "low": gap - 0.1,
            "high": gap + 0.1,
        }
        for d in datasets
        for m, gap in (("med-nirvana", -0.01), ("control", -0.2))
        if {"med-mix", m} <= set(models)
    ]
    about = {"n": 1234, "chance": 0.25, "majority": {"letter": "A", "share": 0.3}, "models": own}
    return {"models": list(models), "datasets": {d: about for d in datasets}, "comparisons": comparisons}


def scores(cases, empty=0):
    """Case i: base 0.8, Med-Nirvana 0.8 + (i - 1) / 100; answers twice and half the physician's length."""
    return pd.DataFrame(
        {
            "model": model,
            "source": "icliniq",
            "case": f"case-{i}",
            "sample": 0,
            "f1": 0.8 + (i - 1) / 100 * (model == "med-nirvana"),
            "words": 0 if i < empty else {"base": 200, "med-nirvana": 50}[model],
            "reference_words": 100,
        }
        for i in range(cases)
        for model in ("base", "med-nirvana")
    )


BINS = [{"confidence": c, "accuracy": c - 0.1, "n": 30} for c in (0.3, 0.5, 0.9)]


def sure(models=("base", "med-mix", "med-nirvana", "control")):
    return {model: {"bins": BINS, "ece": 0.1, "brier": 0.2, "n": 90} for model in models}


def orders(*models):
    own = {"accuracies": [0.5, 0.4, 0.45, 0.3], "consistency": 0.25, "vote_accuracy": 0.55, "n": 20}
    return dict.fromkeys(models, own)


NO_SCORES = scores(1).iloc[:0]
PANEL = {
    "labels": ["yes", "no", "maybe"],
    "confusion": [[480, 60, 12], [90, 230, 18], [60, 40, 10]],
    "unparsed": [0, 0, 0],
}
PLOTS = {
    "loss, long": lambda ax: figures.loss_curves(ax, loss(500), "Stage 1"),
    "loss, short": lambda ax: figures.loss_curves(ax, loss(20)),
    "loss, one step": lambda ax: figures.loss_curves(ax, loss(1, every=1)),
    "loss, never evaluated": lambda ax: figures.loss_curves(ax, loss(4, every=9)),
    "loss, empty": lambda ax: figures.loss_curves(ax, loss(0)),
    "arms": lambda ax: figures.loss_arms(ax, {"med-nirvana": loss(100), "control": loss(80)}, "Stage 2"),
    "arms, one step": lambda ax: figures.loss_arms(ax, {"a": loss(1), "b": loss(1)}),
    "arms, none": lambda ax: figures.loss_arms(ax, {}),
    "accuracy": lambda ax: figures.accuracy(ax, mcq()),
    "accuracy, one": lambda ax: figures.accuracy(ax, mcq(["base"], ["pubmedqa"])),
    "accuracy, none": lambda ax: figures.accuracy(ax, mcq([], [])),
    "forgetting": lambda ax: figures.forgetting(ax, mcq()),
    "forgetting, none": lambda ax: figures.forgetting(ax, mcq(["base"])),
    "difference": lambda ax: figures.f1_difference_per_case(ax, scores(50), "base", "med-nirvana"),
    "difference, one": lambda ax: figures.f1_difference_per_case(ax, scores(1), "base", "med-nirvana"),
    "difference, none": lambda ax: figures.f1_difference_per_case(ax, NO_SCORES, "base", "med-nirvana"),
    "length": lambda ax: figures.f1_against_length(ax, scores(50, empty=2)),
    "length, one": lambda ax: figures.f1_against_length(ax, scores(1)),
    "length, all empty": lambda ax: figures.f1_against_length(ax, scores(2, empty=2)),
    "confusion": lambda ax: figures.confusion(ax, PANEL, "Med-Mix"),
    "confusion, unparsed": lambda ax: figures.confusion(ax, PANEL | {"unparsed": [3, 0, 1]}),
    "confusion, no rows": lambda ax: figures.confusion(ax, PANEL | {"confusion": np.zeros((3, 3), int)}),
    "reliability": lambda ax: figures.reliability(ax, sure()),
    "reliability, one bin": lambda ax: figures.reliability(ax, {"base": sure()["base"] | {"bins": BINS[:1]}}),
    "reliability, none": lambda ax: figures.reliability(ax, {}),
    "order": lambda ax: figures.option_order(ax, orders("base", "med-mix", "med-nirvana", "control")),
    "order, a model alone": lambda ax: figures.option_order(ax, orders("some-model + adapter")),
    "order, none": lambda ax: figures.option_order(ax, {}),
}


def ticks(axis):
    """The labels in view; matplotlib keeps some beyond the limits."""
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
    return [label for at, label in labels if low <= at <= high and label.get_text()]


def check_legible(ax):
    """Something is written in or around `ax`, all of it on the page, and no tick's label over another's."""
    ax.figure.draw_without_rendering()
    written = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *ticks(ax.xaxis), *ticks(ax.yaxis)]
    written += ax.get_legend().get_texts() if ax.get_legend() else []
    written = [text for text in written if text.get_text()]
    assert written, "an empty figure must say why"
    page = ax.figure.bbox
    for text in written:
        box = text.get_window_extent()
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{text.get_text()!r} is cut off"
    for axis in (ax.xaxis, ax.yaxis):
        for one, other in itertools.pairwise(label.get_window_extent() for label in ticks(axis)):
            assert not one.overlaps(other), "tick labels lie over each other"


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.filterwarnings("error")
def test_nothing_is_cut_off_or_written_over(name):
    figure, ax = figures.new()
    assert PLOTS[name](ax) is ax and figure.axes == [ax]
    check_legible(ax)


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_the_check_finds_what_does_not_fit():
    with pytest.raises(AssertionError, match="cut off"):
        check_legible(PLOTS["forgetting"](figures.new(2, 2)[1]))
    ax = PLOTS["accuracy"](figures.new()[1])
    ax.set_xticks([0, 0.05], ["one label", "another label"])
    with pytest.raises(AssertionError, match="over each other"):
        check_legible(ax)


@pytest.mark.parametrize("name", [name for name in PLOTS if not name.endswith("none")])
def test_axes_have_names(name):
    ax = PLOTS[name](figures.new()[1])
    if not any(text.get_text().startswith("no ") for text in ax.texts):
        assert ax.get_xlabel() or "n = " in ax.get_xticklabels()[0].get_text()
        assert ax.get_ylabel() or "n = " in ax.get_yticklabels()[0].get_text()


def test_any_ax_will_do():
    figure = Figure(figsize=(9, 3))
    left, right = figure.subplots(1, 2)
    figures.loss_curves(right, loss(9))
    assert not left.lines and right.lines


def test_the_better_direction_is_named():
    for name, words in [
        ("loss, short", "lower is better"),
        ("accuracy", "higher is better"),
        ("forgetting", "left of 0: forgotten"),
        ("difference", "above 0: nearer"),
        ("length", "higher is nearer"),
    ]:
        ax = PLOTS[name](figures.new()[1])
        assert words in ax.get_xlabel() + ax.get_ylabel()


def line(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_validation_is_joined_across_the_steps_without_one():
    ax = PLOTS["loss, short"](figures.new()[1])
    frame = loss(20)
    assert line(ax, "validation").get_xdata().tolist() == [5, 10, 15, 20]
    assert np.isfinite(line(ax, "validation").get_ydata()).all()
    assert line(ax, "training").get_ydata().tolist() == frame["train_loss"].tolist()


def test_running_mean_of_a_long_run():
    """500 steps: means of 25, that is of 12 steps to either side; on a straight line, the line itself."""
    ax = PLOTS["loss, long"](figures.new()[1])
    smooth = line(ax, "training (mean of 25 steps)")
    assert smooth.get_ydata()[99] == pytest.approx(loss(500)["train_loss"][99])


def test_accuracy_shows_the_numbers_and_both_baselines():
    ax = PLOTS["accuracy"](figures.new()[1])
    heights = {c.get_label(): c.lines[0].get_ydata().tolist() for c in ax.containers}
    assert heights["Med-Mix"] == [0.6] * 3 and heights["control (no replay)"] == [0.8] * 3
    levels = sorted({path.vertices[0, 1] for c in ax.collections for path in c.get_paths() if len(path) == 2})
    assert {0.25, 0.3} <= set(levels)
    assert "n = 1,234" in ax.get_xticklabels()[0].get_text()


def test_forgetting_is_in_points_left_of_zero():
    ax = PLOTS["forgetting"](figures.new()[1])
    middle = {c.get_label(): c.lines[0].get_xdata().tolist() for c in ax.containers}
    assert middle["control (no replay) minus Med-Mix"] == pytest.approx([-20] * 3)
    assert middle["Med-Nirvana minus Med-Mix"] == pytest.approx([-1] * 3)


def test_difference_per_case():
    """Differences of 4 cases: -1, 0, 1, 2 hundredths; their mean is 2 / 4 = 0.5 hundredths, 2 are above 0."""
    ax = figures.f1_difference_per_case(figures.new()[1], scores(4), "base", "med-nirvana")
    assert [bar.get_height() for bar in ax.patches[:4]] == pytest.approx([0.02, 0.01, 0, -0.01])
    assert "2 of 4" in ax.get_title()
    assert any(text.get_text() == "mean +0.0050" for text in ax.get_legend().get_texts())


def test_sampled_answers_are_not_drawn():
    both = pd.concat([scores(4), scores(4).assign(sample=1, f1=0.1)])
    ax = figures.f1_against_length(figures.new()[1], both)
    assert sum(len(c.get_offsets()) for c in ax.collections) == 8
    ax = figures.f1_difference_per_case(figures.new()[1], both, "base", "med-nirvana")
    assert ax.patches[0].get_height() == pytest.approx(0.02)


def test_length_is_relative_and_empty_answers_are_told():
    ax = figures.f1_against_length(figures.new()[1], scores(5, empty=1))
    found = {c.get_label(): set(c.get_offsets()[:, 0]) for c in ax.collections}
    assert found == {"base": {2.0}, "Med-Nirvana": {0.5}}
    assert ax.get_title().endswith(": 2")  # one of each model


def test_confusion_prints_counts_and_row_shares():
    ax = PLOTS["confusion"](figures.new()[1])
    cells = [text.get_text() for text in ax.texts]
    assert cells[0] == "480\n87%"  # 480 / (480 + 60 + 12)
    assert cells[6:] == ["60\n55%", "40\n36%", "10\n9%"]  # of 110
    ax = PLOTS["confusion, unparsed"](figures.new()[1])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["yes", "no", "maybe", "none"]


def test_the_same_figure_is_the_same_file(tmp_path):
    written = []
    for name in ("a.png", "b.png"):
        figure, ax = figures.new()
        PLOTS["accuracy"](ax)
        written.append(figures.save(figure, tmp_path / "figures" / name).read_bytes())
    assert written[0] == written[1] and written[0].startswith(b"\x89PNG")
    assert b"Software" not in written[0]


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    figure, ax = figures.new()
    PLOTS["loss, short"](ax)
    path = figures.save(figure, tmp_path / "figure11.png")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    PLOTS["loss, long"](ax)
    with pytest.raises(ResultsError, match="No space left"):
        figures.save(figure, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_colours_differ_for_the_colour_blind():
    """Okabe and Ito's colours, of which no two used together may be near in lightness and hue alike."""
    assert len(set(figures.COLOURS.values())) == 4 and len(set(figures.MARKERS.values())) == 4
    assert len(set(figures.CYCLE)) == 6


def test_a_notebook_shows_a_figure_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    figure, ax = figures.new()
    figures.loss_curves(ax, loss(4))
    shown, _ = DisplayFormatter().format(figure)
    assert shown["image/png"].startswith(b"\x89PNG")


def test_a_reliability_curve_lies_where_its_bins_are():
    _, ax = figures.new()
    figures.reliability(ax, sure(["base"]))
    diagonal, own = ax.get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert list(own.get_xdata()) == [0.3, 0.5, 0.9]
    assert own.get_ydata() == pytest.approx([0.2, 0.4, 0.8])  # 0.1 below its confidence
    assert own.get_label() == "base: ECE 0.100, Brier 0.200, n 90"


def test_each_order_and_the_vote_are_marked_in_the_row_of_their_model():
    _, ax = figures.new()
    figures.option_order(ax, orders("base", "med-mix"))
    first, vote, ring, second, *_ = ax.get_lines()
    assert list(ring.get_xdata()) == [0.5] and ring.get_label().startswith("_")  # around the original order
    assert list(first.get_xdata()) == list(second.get_xdata()) == [0.5, 0.4, 0.45, 0.3]
    assert set(first.get_ydata()) == {0} and set(second.get_ydata()) == {-1}
    assert list(vote.get_xdata()) == [0.55]
    assert ax.get_yticklabels()[1].get_text() == "Med-Mix, n = 20\n25% the same option"


def test_validation_loss_by_source_is_a_line_a_kind_and_arm():
    own = pd.DataFrame(
        {
            "step": [0, 5],
            "eval_loss_dialogues": [2.0, 1.0],
            "eval_loss_stage1": [0.5, 3.0],
            "train_loss": [1, 1],
        }
    )
    other = own.drop(columns="eval_loss_stage1")  # only one kind validates
    _, ax = figures.new()
    figures.loss_by_source(ax, {"med-nirvana": own, "control": other})
    drawn = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines()}
    assert drawn == {
        "Med-Nirvana, consultations": [2.0, 1.0],
        "Med-Nirvana, exam questions": [0.5, 3.0],
        "control (no replay), consultations": [2.0, 1.0],
    }
