"""A replay study of made-up outcomes: what was planted is found, what was not is not claimed."""

import math

import nbformat
import numpy as np
import pandas as pd
import pytest
from sweep_outcomes import ARMS, Sweep

from medkit import MedkitError
from medkit.pipeline import notebooks
from medkit.report import figures, study, study_figure, study_page
from medkit.runs import machine, storage


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKIT_RESULTS", str(root))
        yield root


@pytest.fixture(scope="module")
def whole(root):
    """(study, comparisons) of five seeds, with the noise floor."""
    sweep = Sweep(root)
    sweep.write()
    sweep.again("k25", "k25-again")
    for seed in (0, 1):
        sweep.again("k25", "k25-order", seed, stage2_seed=1000)
    read = study.read("replay-cpu")
    return read, study.comparisons(read)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    return tmp_path


def row(found, **wanted):
    for column, value in wanted.items():
        found = found[found[column] == value]
    (one,) = found.to_dict("records")
    return one


def test_a_planted_effect_is_found_and_a_null_is_not_claimed(whole):
    _, found = whole
    # k25 keeps 80% of the questions, k0 20%: +60 points, give or take three seeds' rounding.
    kept = row(found, kind="no replay", measure="accuracy", first="k0", second="k25")
    assert kept["seeds"] == 5 and kept["items"] == 60
    assert kept["low"] < 0.6 < kept["high"] and kept["p_holm"] < 0.05
    assert kept["model_low"] < kept["difference"] < kept["model_high"]
    null = row(found, kind="no replay", measure="accuracy", first="k0", second="k5")
    assert null["low"] < 0 < null["high"] and null["p_holm"] > 0.05
    gain = row(found, kind="stage 1", measure="f1", second="k25")  # planted: 0.10 above the base
    assert gain["first"] == "base" and gain["low"] < 0.1 < gain["high"] and gain["p_holm"] < 0.05
    same = row(found, kind="no replay", measure="f1", first="k0", second="k25")
    assert same["p_holm"] > 0.05 and same["detectable"] > 0
    loss = row(found, kind="stage 1", measure="general_loss", second="k0")  # 2.1 - 2.0 nats
    assert loss["difference"] == pytest.approx(0.1, abs=0.02)
    # a question that is lost goes from -ln 0.8 to -ln 0.1: ln 8 nats
    lost = -row(found, kind="stage 1", measure="accuracy", second="k0")["difference"]
    letter = row(found, kind="stage 1", measure="letter_loss", second="k0")
    assert letter["difference"] == pytest.approx(lost * np.log(8)) and letter["p_holm"] < 0.05


def test_what_is_compared_with_what(whole):
    read, _ = whole
    assert study.dose_arms(read) == ["k0", "k5", "k25", "k50"]
    assert {arm: study.no_replay_arm(read, arm) for arm in ARMS} == {
        "k0": "",
        "k5": "k0",
        "k25": "k0",
        "k50": "k0",
        "lr1e-4-k0": "",  # another learning rate: without replay, and so the reference of its own
        "lr1e-4-k25": "lr1e-4-k0",
        "k25-pad": "k0",
        "joint": "",  # it begins otherwise, and has no arm without replay of its own
    }
    others = {pair[1:] for pair in study.pairs(read) if pair[0] == "one setting"}
    # pad has 32 further consultations beside its 96, k25 32 replayed rows.
    assert others == {("k0", "lr1e-4-k0"), ("k25", "lr1e-4-k25"), ("k25", "k25-pad"), ("k50", "joint")}
    assert read.arms["trained_rows"][["k25", "k25-pad"]].tolist() == [128, 128]
    assert read.arms.loc["k25", "rows"] == pytest.approx(0.25)
    settings = study.settings(read)
    assert settings["k25"] == "dmt.replay_share=0.3333" and settings["k0"] == ""


def test_holm_is_taken_within_a_kind_and_a_measure(whole):
    _, found = whole
    family = found[(found["kind"] == "one setting") & (found["measure"] == "f1")].sort_values("p")
    # the smallest of four is taken four times, the next three times, and none falls below the one before
    p = family["p"].to_numpy()
    expected = np.maximum.accumulate(p * np.array([4, 3, 2, 1])).clip(max=1)
    assert family["p_holm"].to_numpy() == pytest.approx(expected)


def test_repeats_are_the_noise_floor_and_no_arms(whole):
    read, found = whole
    assert read.repeats == {"k25-again": ("k25", "same"), "k25-order": ("k25", "order")}
    noise = study.noise_floor(read)
    again = row(noise, again="k25-again", measure="accuracy")
    assert again["changed"] == pytest.approx(3 / 60) and again["how"] == "same"  # three questions planted
    assert row(noise, again="k25-again", measure="f1")["changed"] == 0
    assert not {"k25-again", "k25-order"} & set(found["second"])
    scope = study_page.sentences(read, found)[2]
    assert "again (n = 1) moved accuracy by up to 5.0 points and changed up to 5.0% of answers" in scope
    assert "another order of rows (n = 2) moved accuracy by up to 5.0 points" in scope
    assert "48 of 48 runs" in scope  # 5 x (1 stage 1 + 8 arms) + 3 repeats


def test_the_sentences_say_what_the_numbers_say(whole):
    read, found = whole
    first, second, scope = study_page.sentences(read, found)
    levels = [
        f"{100 * read.grid(arm, 'accuracy').to_numpy().mean():.1f}%" for arm in ("k0", "k5", "k25", "k50")
    ]
    assert ", ".join(levels[:-1]) + f" and {levels[-1]}" in first
    assert "100.0% of 60 PubMedQA-style questions" in first
    assert "(always giving the most frequent answer: 100.0%)" in first  # every right answer is A here
    assert "Stage 1 is not above that, so this exam cannot show forgetting" in first
    assert "k25 - k0 +" in first and "k5 - k0" not in first.split("significantly below")[0]
    assert "k5 - k0" in second and "k25 - k0" not in second.split("BERTScore")[0]
    assert "general accuracy for any comparison" in second
    assert scope.startswith("**Scope**: SmolLM2-135M-Instruct on the built-in corpus, 5 seeds per arm")


def test_with_one_seed_the_spread_is_unknown(place):
    Sweep(place, seeds=(3,)).write()
    read = study.read("replay-cpu")
    found = study.comparisons(read)
    kept = row(found, kind="no replay", measure="accuracy", first="k0", second="k25")
    assert kept["difference"] > 0.4 and math.isnan(kept["p"]) and math.isnan(kept["low"])
    first, second, scope = study_page.sentences(read, found)
    assert "significant" not in first and "the spread is unknown" in second
    assert "1 seed per arm" in scope
    table = study_page.table(read, found)
    assert "[" not in table.page.drop(columns=["arm"]).to_string() and "nan" not in table.markdown()
    assert "No comparison has both" in study_page.agreement(found)


def test_missing_trials_are_named_and_the_rest_is_compared(place):
    Sweep(place, seeds=(0, 1), left_out=("k25-s1", "k50-s0", "k50-s1", "stage1-s1")).write()
    read = study.read("replay-cpu")
    found = study.comparisons(read)
    assert read.missing == ["k50-s0", "stage1-s1", "k25-s1", "k50-s1"]
    assert (
        "14 of 18 runs (missing: k50-s0, stage1-s1, k25-s1, k50-s1)" in study_page.sentences(read, found)[2]
    )
    assert row(found, kind="no replay", measure="accuracy", first="k0", second="k5")["seeds"] == 2
    assert row(found, kind="no replay", measure="accuracy", first="k0", second="k25")["seeds"] == 1
    assert (
        row(found, kind="stage 1", measure="accuracy", second="k0")["seeds"] == 1
    )  # of seed 1 there is none
    progress = study.progress(read)
    assert progress.loc["k50"].tolist() == ["missing"] * 2 and progress.loc["k25"].tolist() == [
        "done",
        "missing",
    ]


def test_a_measure_that_was_not_taken_leaves_its_cells_empty(place):
    sweep = Sweep(place, {arm: ARMS[arm] for arm in ("k0", "k25")}, seeds=(0, 1))
    sweep.write()
    for path in [*sweep.outcomes.glob("*/consumer/scores.csv"), *sweep.outcomes.glob("*/mcq/general.csv")]:
        path.unlink()
    read = study.read("replay-cpu")
    found = study.comparisons(read)
    assert set(found["measure"]) == {"accuracy", "letter_loss"}
    assert set(study_page.table(read, found).page["gain: BERTScore F1 minus the base's"]) == {""}
    assert study_page.points(read, "f1").empty
    _, axes = figures.new(9, 7, rows=2)
    empty = (study_page.points(read, "f1"), study_page.intervals(found, "f1"))
    study_figure.figure13(axes, {"accuracy": empty, "f1": empty})
    assert [text.get_text() for text in axes[1].texts] == ["not measured"]


def test_the_relearning_probe_is_beside_its_arm_and_beside_stage_1(place):
    sweep = Sweep(place, {arm: ARMS[arm] for arm in ("k0", "k25")}, seeds=(0, 1, 2))
    sweep.write()
    for seed in sweep.seeds:  # after the probe every question is answered correctly again
        path = sweep.outcomes / f"k0-s{seed}" / "mcq" / "items.csv"
        items = pd.read_csv(path, dtype=str)
        probe = items.assign(model="relearned", predicted=items["gold"], correct="True")
        storage.write_csv(path, pd.concat([items, probe]))
    found = study.comparisons(study.read("replay-cpu"))
    probe = found[found["kind"] == "relearning"]
    assert probe[["first", "second"]].to_numpy().tolist() == [
        ["k0", "k0 relearned"],
        ["med-mix", "k0 relearned"],
    ]
    again, beside = probe.to_dict("records")
    assert again["difference"] == pytest.approx(0.8, abs=0.1)  # from 20% to 100%
    assert beside["difference"] == 0 and beside["p"] == 1  # the skill was hidden
    assert "a few steps on stage 1's rows" in set(study_page.pairs_page(found)["what differs"])


def test_what_is_no_study_is_refused_in_one_line(place):
    with pytest.raises(MedkitError, match=r"sweep.json is missing; medkit sweep FILE --resume writes it"):
        study.read("replay-cpu")
    Sweep(place, seeds=(0,), left_out=tuple(f"{arm}-s0" for arm in ARMS)).write()
    with pytest.raises(MedkitError, match="no finished trial besides stage 1"):
        study.read("replay-cpu")
    with pytest.raises(
        MedkitError, match="benchmark is 'pubmed'; it must be one of medqa, medmcqa, pubmedqa"
    ):
        study.read("replay-cpu", "pubmed")


def test_figure13_shows_every_seed_and_every_mean(whole):
    read, found = whole
    shown = {m: (study_page.points(read, m), study_page.intervals(found, m)) for m in study_figure.AXES}
    _, axes = figures.new(9, 7, rows=2)
    study_figure.figure13(axes, shown)
    for ax, (points, intervals) in zip(axes, shown.values(), strict=True):
        drawn = [
            value for line in ax.lines for value in np.atleast_1d(line.get_ydata()) if len(line.get_xdata())
        ]
        for value in [*points["difference"], *intervals["difference"]]:
            assert np.isclose(drawn, value).any()
        assert len(points) == 8 * 5 and len(intervals) == 8
    labels = [tick.get_text() for tick in axes[1].get_xticklabels()]
    assert labels == ["0%", "5%", "25%", "50%", "lr1e-4-k0", "lr1e-4-k25", "k25-pad", "joint"]


def test_notebook_06_makes_everything_from_the_outcomes_alone(place):
    some = {arm: ARMS[arm] for arm in ("k0", "k25", "k50", "k25-pad")}
    Sweep(place, some, seeds=(0, 1), left_out=("k50-s1",)).write()
    notebook = machine.CHECKOUT / "notebooks" / "06_replay_study.ipynb"
    cells = nbformat.read(notebook, as_version=4).cells
    assert 10 <= sum(cell.cell_type == "code" for cell in cells) <= 15
    executed = place / "executed.ipynb"
    environment = {"MEDKIT_RESULTS": str(place)}
    notebooks.check_parameters(notebook, {"sweep_dir": "results/replay-cpu", "benchmark": "pubmedqa"})
    assert notebooks.execute(notebook, executed, {"sweep_dir": "results/replay-cpu"}, environment) is None
    made = place / "replay-cpu"
    figures_ = pd.read_csv(made / "tables" / "replay_study.csv")
    assert {"share_of_rows", "share_of_tokens", "share_of_supervised_tokens", "p_holm"} <= set(figures_)
    page = (made / "tables" / "replay_study.md").read_text()
    assert "missing: k50-s1" in page and "## Between arms" in page and "nan" not in page
    assert (made / "figures" / "figure13.png").stat().st_size > 10_000


def test_a_sweep_leaves_the_list_that_the_study_reads(place):
    """medkit sweep writes outcomes/sweep.json; a study's keys are in it."""
    from medkit.pipeline import sweep, sweep_file

    plan = sweep.Plan(sweep_file.read(machine.CHECKOUT / "sweeps" / "replay_cpu.toml"))
    described = storage.plain(plan.description())
    assert described["trials"][0] == {"name": "stage1-s0", "arm": "", "seed": 0, "is_stage1": True}
    assert {one["name"] for one in described["trials"]} == set(plan.by_name)


def test_of_several_stages_1_of_a_seed_the_first_is_the_reference(place):
    """Arms that need another stage 1 bring one; here it knows nothing, and no arm is compared with it."""
    sweep = Sweep(place, arms={"k0": ARMS["k0"]}, seeds=(0, 1))
    sweep.write()
    path = sweep.outcomes / "sweep.json"
    plan = storage.load(path.parent, path.name, ["trials"], "sweep")["trials"]
    sweep._trial(plan, "stage1-other-s0", "", 0, {}, True, flipped=sweep.questions)
    storage.write_json(path, {"name": sweep.name, "trials": plan})
    assert study.read("replay-cpu").grid("med-mix", "accuracy").to_numpy().mean() == 1
