"""A sweep's file: its trials by arithmetic, their shared stages 1, and every refusal in one line."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.pipeline import sweep_file

HEAD = 'name = "s"\nrecipe = "cpu"\nseeds = [0, 1]\n'


def read(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return sweep_file.read(path)


def test_arms_seeds_and_axes_are_crossed_and_share_a_stage_1_per_seed(tmp_path):
    text = HEAD + "[settings]\ndata.rows_pubmedqa = 30\n[arms.k0]\ndmt.replay_share = 0\n"
    text += '[arms.k25]\n"dmt.replay_share" = "1/3"\n[axes]\nstage2.learning_rate = [1e-4, 3e-4]\n'
    sweep = read(tmp_path, text)
    # 2 arms x 2 rates x 2 seeds, and a stage 1 for each seed, which stands before its trials
    assert [one.name for one in sweep.trials] == [
        *("stage1-s0", "k0-learning_rate-0.0001-s0", "k0-learning_rate-0.0003-s0"),
        *("k25-learning_rate-0.0001-s0", "k25-learning_rate-0.0003-s0"),
        *("stage1-s1", "k0-learning_rate-0.0001-s1", "k0-learning_rate-0.0003-s1"),
        *("k25-learning_rate-0.0001-s1", "k25-learning_rate-0.0003-s1"),
    ]
    by_name = {one.name: one for one in sweep.trials}
    one = by_name["k25-learning_rate-0.0003-s1"]
    assert one.stage1 == "stage1-s1"
    assert one.recipe.dmt.replay_share == 1 / 3
    assert (one.recipe.stage2.learning_rate, one.recipe.data.rows_pubmedqa) == (3e-4, 30)
    assert (one.recipe.stage1.seed, one.recipe.stage2.seed, one.recipe.data.seed) == (1, 1, 42)
    assert one.axes == {"stage2.learning_rate": "0.0003"}
    # A stage 1 has what it depends on, and nothing of stage 2.
    assert by_name["stage1-s1"].settings == {"data.rows_pubmedqa": "30", "stage1.seed": "1"}


def test_an_arm_that_changes_stage_1_has_one_of_its_own(tmp_path):
    text = HEAD + "[arms.a]\n[arms.b]\nstage1.epochs = 2\n[arms.c]\nstage1.epochs = 2\nstage2.epochs = 3\n"
    trials = {one.name: one.stage1 for one in read(tmp_path, text).trials if one.arm}
    assert trials == {
        **{"a-s0": "stage1-s0", "b-s0": "stage1-b-s0", "c-s0": "stage1-b-s0"},
        **{"a-s1": "stage1-s1", "b-s1": "stage1-b-s1", "c-s1": "stage1-b-s1"},
    }


def test_merged_models_are_not_shared_with_arms_that_have_none(tmp_path):
    text = HEAD.replace("[0, 1]", "[0]") + '[arms.a]\n[arms.b]\ndmt.handover = "merge"\n'
    sweep = {one.name: one for one in read(tmp_path, text).trials}
    assert sweep["b-s0"].stage1 == "stage1-b-s0"
    assert sweep["stage1-b-s0"].recipe.dmt.handover == "merge"


def test_a_shared_stage_1_keeps_its_optimizer_where_one_arm_goes_on_with_it(tmp_path):
    text = HEAD.replace("[0, 1]", "[0]") + '[arms.a]\n[arms.b]\ndmt.optimizer_state = "carried"\n'
    text += '[settings]\nstage1.optimizer = "adamw_torch_fused"\nstage2.optimizer = "adamw_torch_fused"\n'
    sweep = {one.name: one for one in read(tmp_path, text).trials}
    assert sweep["a-s0"].stage1 == sweep["b-s0"].stage1 == "stage1-s0"
    assert sweep["stage1-s0"].recipe.dmt.optimizer_state == "carried"
    assert sweep["a-s0"].recipe.dmt.optimizer_state == "fresh"


def test_a_joint_arm_has_no_stage_1_and_stands_by_itself(tmp_path):
    text = HEAD + '[arms.joint]\ndmt.handover = "joint"\n'
    assert [(one.name, one.stage1) for one in read(tmp_path, text).trials] == [
        ("joint-s0", ""),
        ("joint-s1", ""),
    ]
    both = read(tmp_path, text + "[arms.k0]\n")
    assert [one.name for one in both.trials][:3] == ["stage1-s0", "k0-s0", "joint-s0"]


def test_a_seed_sets_what_is_asked_and_an_arm_may_have_its_own(tmp_path):
    text = HEAD + 'seed_fields = ["stage2.seed", "data.seed"]\n'
    text += "[arms.a]\n[arms.again]\nseeds = [1]\n[arms.order]\nseeds = [1]\nstage2.seed = 7\n"
    sweep = {one.name: one.recipe for one in read(tmp_path, text).trials}
    assert set(sweep) == {"stage1-s0", "a-s0", "stage1-s1", "a-s1", "again-s1", "order-s1"}
    assert [sweep["a-s1"].data.seed, sweep["a-s1"].stage1.seed, sweep["a-s1"].stage2.seed] == [1, 0, 1]
    assert sweep["again-s1"] == sweep["a-s1"]
    assert sweep["order-s1"].stage2.seed == 7


def test_without_arms_there_is_one(tmp_path):
    assert [one.name for one in read(tmp_path, HEAD).trials] == [
        *("stage1-s0", "trial-s0", "stage1-s1", "trial-s1"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 's'", "recipe is missing"),
        ("name = 's'\nrecipe = 'cpu'", "seeds is missing"),
        (HEAD.replace("[0, 1]", "[]"), "seeds is []; list at least one seed"),
        (HEAD.replace("[0, 1]", "3"), "seeds=3 is not a list"),
        (HEAD.replace("[0, 1]", "[0, true]"), "seeds has True; a seed is a whole number from 0"),
        (HEAD.replace("[0, 1]", "[1, 1]"), "two trials are named trial-s1"),
        (HEAD.replace("[0, 1]", "[-1]"), "seeds has -1"),
        (HEAD.replace('"cpu"', '"gpu"'), "unknown recipe 'gpu'"),
        (HEAD.replace('"s"', '"S p"'), "name='S p' is not a valid run name"),
        (HEAD + "axis = 1", "unknown key 'axis'"),
        (HEAD + "cpus = 0", "cpus=0; a trial needs at least one core"),
        (HEAD + 'measure = ["mcq", "speed"]', "measure has 'speed'"),
        (HEAD + 'seed_fields = ["stage1.loss_on"]', "not a whole-numbered field"),
        (HEAD + "[axes]\nstage2.lr = [1e-4]", "unknown field 'stage2.lr'"),
        (HEAD + "[axes]\nstage2.learning_rate = 1e-4", "list its values"),
        (HEAD + "[axes]\nstage2.learning_rate = []", "list its values"),
        (
            HEAD + '[axes]\nstage2.learning_rate = ["fast"]',
            "rate=fast: a value of type number",
        ),
        (HEAD + "[arms.a]\nstage1.epochs = true", "stage1.epochs=true: a value of type number"),
        (HEAD + "[arms.a]\nstage1.max_steps = 1.5", "a value of type whole number"),
        (HEAD + "[arms.a]\nstage1.epochs = {}", ""),
        (HEAD + "[arms.a]\nmodel.base = ''", "model.base='' is not a field's value"),
        (HEAD + "[arms.a]\nmodel.base = 'x;stage1.seed=3'", "is not a field's value"),
        (HEAD + "[arms.a]\nmodel.base = 2026-01-01", "is not a field's value"),
        (HEAD + "[arms]\na = 3", "arms.a is not a table"),
        (HEAD + "[arms.a]\nseeds = []", "arms.a.seeds is []"),
        (HEAD + "[arms.A]\n[arms.a]", "two trials are named a-s0"),
        (HEAD + "[arms.stage1]", "two trials are named stage1-s0"),
        (HEAD + f"[arms.{'x' * 70}]", "take a shorter arm's name"),
        (HEAD + "[axes]\nstage2.epochs = [1, 1]", "two trials are named trial-epochs-1-s0"),
        (HEAD + "[axes]\nstage2.epochs = [1]\n[arms.a]\nstage2.epochs = 2", "an axis and a field of arm 'a'"),
        (HEAD + "[settings]\nstage1.seed = 3", "settings has stage1.seed, which each seed sets"),
        (HEAD + '[arms.a]\nstage1.epochs = 1\n"stage1.epochs" = 2', "sets stage1.epochs twice"),
        (HEAD + '[axes]\nstage1.epochs = [1]\n"stage1.epochs" = [2]', "axes sets stage1.epochs twice"),
        (HEAD + "seeds = [3]", "cannot be read as a sweep"),
        (HEAD + "[arms.a]\nstage1.packing = 'wrapped'", "packing=wrapped cuts samples"),
    ],
)
def test_refusals_are_one_line_that_names_the_file_and_the_thing(tmp_path, text, said):
    if not said:  # an empty table sets nothing
        assert read(tmp_path, text).trials
        return
    with pytest.raises(MedkitError) as refused:
        read(tmp_path, text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "sweep.toml"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MedkitError, match="cannot be read as a sweep: No such file"):
        sweep_file.read(tmp_path / "absent.toml")


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, unique=True),
    st.lists(st.sampled_from([1, 2, 0.5]), unique=True, max_size=3),
)
def test_as_many_trials_as_the_product_and_each_after_its_stage_1(seeds, arms, epochs):
    given_ = {"name": "s", "recipe": "cpu", "seeds": seeds, "arms": {arm: {} for arm in arms}}
    if epochs:
        given_["axes"] = {"stage2": {"epochs": epochs}}
    trials = sweep_file._parse(given_).trials
    assert len(trials) == len(seeds) * (1 + len(arms) * max(1, len(epochs)))
    at = {one.name: place for place, one in enumerate(trials)}
    assert all(at[one.stage1] < at[one.name] for one in trials if one.stage1)


def test_the_example_in_the_docstring_is_a_sweep():
    example = sweep_file.__doc__.partition("\n\n")[2]
    sweep = sweep_file._parse(tomllib.loads(example))
    # k25: 3 seeds x 2 rates; again: 1 seed x 2 rates; a stage 1 for each of the 3 seeds
    assert len(sweep.trials) == 3 * 2 + 1 * 2 + 3


@pytest.mark.parametrize(
    "field",
    ["lora.r = 8", "model.max_length = 512", "data.rows_medqa = 4", "mcq.rows = 5", "consumer.cases = 3"],
)
def test_arms_that_need_another_stage_1_do_not_share_one(field, tmp_path):
    text = HEAD.replace("[0, 1]", "[0]") + f"[arms.a]\n[arms.b]\n{field}\n"
    shared = {trial.name: trial.stage1 for trial in read(tmp_path, text).trials if trial.arm}
    assert shared == {"a-s0": "stage1-s0", "b-s0": "stage1-b-s0"}
