"""What a run reads is refused before anything is written."""

import json

import pytest

from medkit import MedkitError, inputs, recipes

QUESTION = {
    "question": "Which?",
    "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
    "answer_idx": "B",
    "answer": "two",
}


def medqa(folder, *rows):
    (folder / "medqa").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "medqa" / "test.jsonl").write_text(text)
    return str(folder)


def test_a_folder_of_rows_that_can_be_read(tmp_path):
    inputs.check(recipes.get("cpu"), medqa(tmp_path, QUESTION), ["medqa eval", "medqa eval"])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["medqa eval", "medmcqa eval"], "no folder medmcqa"),
        (["medqa train"], "expected a file of the train split"),
    ],
)
def test_rows_that_are_not_there(tmp_path, parts, said):
    with pytest.raises(MedkitError) as refused:
        inputs.check(recipes.get("cpu"), medqa(tmp_path, QUESTION), parts)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_data_folder_that_is_none(tmp_path):
    inputs.check_data_dir("")
    inputs.check_data_dir(str(tmp_path))
    with pytest.raises(MedkitError, match="no folder; name one that holds a folder per source"):
        inputs.check_data_dir(str(tmp_path / "nowhere"))


def test_rows_that_are_not_what_they_should_be(tmp_path):
    five = QUESTION | {"options": QUESTION["options"] | {"E": "five"}}
    with pytest.raises(MedkitError, match=r"test\.jsonl"):
        inputs.check(recipes.get("cpu"), medqa(tmp_path, QUESTION, five), ["medqa eval"])


def test_models_that_are_none(tmp_path):
    inputs.check_model("smollm2")
    (tmp_path / "model").mkdir()
    for base in (str(tmp_path / "model"), "./nowhere", "~/no such model"):
        with pytest.raises(MedkitError, match="is no model folder"):
            inputs.check_model(base)
    (tmp_path / "model" / "config.json").write_text("{}")
    inputs.check_model(str(tmp_path / "model"))


def test_a_hub_that_cannot_be_reached():
    # tests/conftest.py puts the hub out of reach.
    with pytest.raises(
        MedkitError, match=r"some/model cannot be had from the hub .*--set model\.base=DIR"
    ) as refused:
        inputs.check_model("some/model")
    assert "\n" not in str(refused.value)
    with pytest.raises(MedkitError, match="cannot be had from the hub"):
        inputs.check_scorer("some/encoder", offline=False)


def test_an_encoder_that_a_private_run_does_not_have(tmp_path):
    inputs.check_scorer("minilm", offline=True)
    with pytest.raises(MedkitError, match=r"stays offline; take --set consumer\.scorer=minilm"):
        inputs.check_scorer("some/encoder", offline=True)
    # Only the notebook that scores answers needs it.
    recipe = recipes.get("cpu", {"consumer.scorer": "some/encoder"})
    inputs.check(recipe, "", ["medqa train"])
    with pytest.raises(MedkitError, match="some/encoder"):
        inputs.check(recipe, "", ["icliniq eval"])


def test_private_runs_are_those_without_a_hub(tmp_path):
    here = str(tmp_path)
    assert inputs.private(recipes.get("cpu"), "")
    assert inputs.private(recipes.get("cpu"), here)
    assert inputs.private(recipes.get("recommended", {"model.base": here}), here)
    assert not inputs.private(recipes.get("cpu", {"data.origin": "hub"}), "")
    assert not inputs.private(recipes.get("recommended"), here)
    assert not inputs.private(recipes.get("recommended", {"model.base": here}), "")
