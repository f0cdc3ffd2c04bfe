"""Recipes: what the presets say, every field settable, and one line for every mistake."""

import dataclasses

import pytest

from medkit import recipes
from medkit.recipes import RecipeError, get

FIELDS = [name for name in recipes.flat(get("recommended")) if "." in name]


def lines(error):
    return str(error.value).splitlines()


@pytest.mark.parametrize("name", ["cpu", "paper", "as_released", "recommended"])
def test_every_preset_is_valid_and_frozen(name):
    recipe = get(name)
    assert recipe.name == name
    assert recipe == get(name, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"


@pytest.mark.parametrize("name", ["paper", "as_released", "recommended"])
def test_what_the_paper_states(name):
    recipe = get(name)
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.rslora) == (16, 16, 0.0, True)
    assert len(recipe.lora.target_modules) == 7
    assert recipe.model.load_in_4bit
    assert recipe.model.max_length == 2048
    for stage in (recipe.stage1, recipe.stage2):
        assert (stage.learning_rate, stage.scheduler, stage.warmup_steps) == (3e-4, "linear", 10)
        assert (stage.weight_decay, stage.optimizer, stage.batch_size) == (0.01, "adamw_8bit", 4)
        assert stage.epochs == 1
    assert recipe.data.validation_share == 0.1
    assert (recipe.dmt.notechat_train, recipe.dmt.notechat_validation) == (100_000, 10_000)
    assert int(recipe.dmt.replay_share * 100_000) == 33_333
    assert recipe.consumer.cases == 50
    assert recipe.consumer.scorer == "roberta-large"


def test_where_release_and_paper_part():
    paper, released = get("paper"), get("as_released")
    assert (paper.stage1.accumulation, released.stage1.accumulation) == (1, 4)
    assert (paper.data.mcq_target, released.data.mcq_target) == ("letter", "letter_and_text")
    for recipe in (paper, released):  # the notebooks fill what the paper leaves out
        assert recipe.model.chat_template == "chatml"
        assert recipe.stage1.packing == "wrapped"
        assert recipe.stage1.loss_on == "text"
        assert recipe.stage1.eval_rows == 0  # all 40,427, every 360 steps
        assert recipe.stage1.eval_every == 360
        assert recipe.dmt.handover == "merge"
        assert not recipe.data.deduplicate
        assert recipe.data.notechat_split == "row"
        assert (recipe.data.seed, recipe.stage1.seed) == (42, 0)


def test_what_the_evidence_supports():
    recipe = get("recommended")
    assert recipe.model.chat_template == "own"
    assert recipe.stage1.loss_on == "answer"
    assert recipe.stage1.packing == "isolated"
    assert recipe.dmt.handover == "continue"
    assert recipe.data.deduplicate
    assert recipe.data.notechat_split == "note"
    assert recipe.stage1.eval_rows > 0


def test_the_laptops_is_recommended_in_small():
    cpu, recommended = recipes.flat(get("cpu")), recipes.flat(get("recommended"))
    same = ("lora.", "model.load_in_4bit", "model.chat_template", "data.seed", "data.deduplicate")
    same += (
        "data.notechat_split",
        "data.mcq_target",
        "stage1.loss_on",
        "dmt.handover",
    )
    for name in cpu:
        if name.startswith(same):
            assert cpu[name] == recommended[name], name
    assert cpu["stage1.packing"] == "off"  # Unsloth's CPU backend does not pack


# One value of the right type for each type, another than any preset's.
SAMPLES = {
    bool: ("false", False),
    int: ("7", 7),
    float: ("0.5", 0.5),
    str: None,
    tuple: ("q_proj", ("q_proj",)),
}
CHOICES = {
    "dmt.fill": "dialogues",
    "model.base": "some/model",
    "model.revision": "v1",
    "model.chat_template": "chatml",
    "data.origin": "builtin",
    "data.builtin_part": "tune",
    "data.mcq_target": "letter_and_text",
    "data.notechat_split": "row",
    "data.dialogues": "mts_dialog",
    "data.pubmedqa_train": "labelled_outside_fold",
    "stage1.scheduler": "cosine",
    "stage1.optimizer": "adamw_torch",
    "stage1.loss_on": "text",
    "stage1.packing": "off",
    "stage1.report_to": "tensorboard",
    "dmt.handover": "merge",
    "dmt.optimizer_state": "carried",
    "mcq.lm_eval_tasks": "hellaswag,piqa",
    "consumer.scorer": "minilm",
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_can_be_set(field):
    before = recipes.flat(get("recommended"))[field]
    if isinstance(before, str):
        text = wanted = CHOICES[field.replace("stage2", "stage1")]
    elif field == "model.max_length":
        text, wanted = "1,024", 1024
    else:
        text, wanted = SAMPLES[type(before)]
    made = recipes.flat(get("recommended", {field: text}))
    assert made[field] == wanted
    changed = [name for name in made if made[name] != recipes.flat(get("recommended"))[name]]
    assert changed in ([field], [])


@pytest.mark.parametrize(
    "field", [f for f in FIELDS if not isinstance(recipes.flat(get("cpu"))[f], (str, tuple))]
)
def test_a_value_of_the_wrong_type_is_one_line_with_the_field(field):
    with pytest.raises(RecipeError) as error:
        get("cpu", {field: "many"})
    assert len(lines(error)) == 1
    assert field in str(error.value)
    assert "was expected" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stage1.learning_rat": "1"}, "did you mean stage1.learning_rate?"),
        ({"zzz": "1"}, "unknown field 'zzz'"),
        ({"name": "mine"}, "unknown field 'name'"),
        ({"stage1": "1"}, "unknown field 'stage1'"),
        ({"stage1.batch_size": "0"}, "batch_size is 0; it must be at least 1"),
        ({"stage1.batch_size": "4.5"}, "a value of type whole number was expected"),
        ({"stage1.learning_rate": "nan"}, "a value of type number was expected"),
        ({"stage1.learning_rate": "-1e-4"}, "it must be above 0"),
        ({"dmt.replay_share": "1/0"}, "a value of type number was expected"),
        ({"dmt.replay_share": "-1/3"}, "it must be at least 0"),
        ({"model.load_in_4bit": "1"}, "a value of type true/false was expected"),
        ({"stage1.scheduler": "line"}, "it must be one of linear, cosine, constant, constant_with_warmup"),
        ({"stage2.optimizer": "adam"}, "it must be one of adamw_8bit"),
        ({"stage1.packing": "on"}, "it must be one of isolated, wrapped, off"),
        ({"stage1.packing": "wrapped"}, "goes with loss_on=text only"),
        ({"data.validation_share": "1"}, "it must lie between 0 and 1"),
        ({"data.rows_medqa": "-1"}, "data.rows_medqa is -1; it must be at least 0"),
        ({"model.max_length": "16"}, "it must be at least 32"),
        ({"lora.dropout": "1"}, "it must lie in [0, 1)"),
        ({"lora.target_modules": ","}, "name at least one linear module"),
        ({"consumer.cases": "0"}, "it must be at least 1"),
    ],
)
def test_mistakes_are_one_line(settings, said):
    with pytest.raises(RecipeError) as error:
        get("recommended", settings)
    assert len(lines(error)) == 1
    assert said in str(error.value)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(RecipeError, match="'laptop'; the recipes are cpu, paper, as_released, recommended"):
        get("laptop")


def test_settings_as_text():
    text = "stage2.learning_rate=1e-4; dmt.replay_share = 1/3\n\nmodel.base=a=b"
    assert recipes.parse_settings(text) == {
        "stage2.learning_rate": "1e-4",
        "dmt.replay_share": "1/3",
        "model.base": "a=b",
    }
    assert recipes.parse_settings("") == {}
    for wrong in ("rows", "=1", "rows="):
        with pytest.raises(RecipeError, match="write FIELD=VALUE"):
            recipes.parse_settings(wrong)
    with pytest.raises(RecipeError, match=r"dmt\.k is set twice"):
        recipes.parse_settings("dmt.k=1;dmt.k=2")


def test_numbers_as_people_write_them():
    assert get("paper", {"dmt.notechat_train": "100_000"}).dmt.notechat_train == 100_000
    assert get("paper", {"dmt.replay_share": "1/3"}).dmt.replay_share == 1 / 3
    assert get("paper", {"stage1.learning_rate": "3e-4"}).stage1.learning_rate == 3e-4
    assert get("paper", {"model.load_in_4bit": "True"}).model.load_in_4bit is True


def test_fields_that_only_go_together_may_be_set_in_either_order():
    wanted = {"stage1.packing": "wrapped", "stage1.loss_on": "text"}
    backwards = dict(reversed(wanted.items()))
    assert get("recommended", wanted) == get("recommended", backwards)
    with pytest.raises(RecipeError, match=r"stage1\.packing=wrapped: packing=wrapped .* goes with loss_on"):
        get("recommended", {"stage1.packing": "wrapped"})


@pytest.mark.parametrize(
    "setting",
    [
        "lora.alpha=0",
        "lora.target_modules=q_proj,foo",
        "mcq.max_batch_tokens=0",
        "consumer.batch_size=0",
        "consumer.temperature=-1",
        "consumer.temperature=0",  # and two samples of it
        "consumer.scorer_layers=0",
    ],
)
def test_a_value_that_a_later_notebook_would_stumble_over_is_refused_at_once(setting):
    field, value = setting.split("=")
    with pytest.raises(RecipeError, match=field.replace(".", r"\.")):
        get("cpu", {field: value})


@pytest.mark.parametrize("name", recipes.PRESETS)
def test_a_recipe_comes_back_from_its_json(name):
    from medkit.runs.storage import plain

    assert recipes.from_dict(plain(get(name))) == get(name)
    with pytest.raises(RecipeError, match="does not match this version's"):
        recipes.from_dict(plain(get(name)) | {"stage3": {}})


def test_an_adapter_from_elsewhere_may_sit_on_other_modules():
    from medkit.recipes import LoraSpec

    assert LoraSpec(target_modules=("qkv_proj",)).target_modules == ("qkv_proj",)


def test_settings_are_read_as_text_or_as_a_dictionary():
    text = recipes.get("cpu", "dmt.fill=dialogues; dmt.relearn_steps=10")
    assert text == recipes.get("cpu", {"dmt.fill": "dialogues", "dmt.relearn_steps": "10"})
    assert (text.dmt.fill, text.dmt.relearn_steps, text.dmt.handover) == ("dialogues", 10, "continue")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("dmt.fill=padding", "dmt.fill is 'padding'"),
        ("dmt.handover=mixed", "dmt.handover is 'mixed'; it must be one of continue, merge, joint"),
        ("dmt.relearn_steps=-1", "dmt.relearn_steps is -1"),
        ("dmt.fill=dialogues;dmt.handover=joint", "set dmt.fill=stage1"),
        ("dmt.handover=joint;dmt.optimizer_state=carried", "set dmt.handover=continue"),
    ],
)
def test_arms_that_cannot_be(settings, said):
    with pytest.raises(recipes.RecipeError, match=said):
        recipes.get("cpu", settings)
