"""The ledger against the recipes: nothing left out, nothing claimed that a preset contradicts."""

import re

import pytest

from medkit import MedkitError, recipes
from medkit.report import ledger
from medkit.runs import run_json, storage

FIELDS = [name for name in recipes.flat(recipes.PRESETS["paper"]) if "." in name]


def rows(recipe, settings="", data_dir=""):
    return ledger.ledger(run_json.describe(recipe, settings, data_dir)).set_index("knob")


def test_every_field_is_in_the_ledger_or_listed_as_ours():
    said = [knob.field for knob in ledger.KNOBS]
    assert len(said) == len(set(said))
    assert not set(said) & set(ledger.OURS)
    assert sorted(FIELDS) == sorted([*said, *ledger.OURS])


@pytest.mark.parametrize(("recipe", "side"), [("paper", "paper"), ("as_released", "release")])
def test_the_presets_do_what_the_ledger_says_of_their_source(recipe, side):
    fields = recipes.flat(recipes.PRESETS[recipe])
    for knob in ledger.KNOBS:
        said = getattr(knob, side)
        if said not in ledger.NOT_STATED:
            assert ledger._equal(fields[knob.field], said), knob.field


def test_the_paper_preset_fills_silence_from_the_release():
    fields = recipes.flat(recipes.PRESETS["paper"])
    for knob in ledger.KNOBS:
        if knob.paper == ledger.SILENT and knob.release not in ledger.NOT_STATED:
            assert ledger._equal(fields[knob.field], knob.release), knob.field


@pytest.mark.parametrize("recipe", list(recipes.PRESETS))
def test_every_row_has_a_reason_and_shows_the_runs_own_value(recipe):
    table = rows(recipe)
    assert list(table.index[: len(FIELDS)]) == FIELDS
    assert (table.loc[FIELDS, "why"] != "").all()
    fields = recipes.flat(recipes.PRESETS[recipe])
    assert table.loc["lora.r", "run"] == str(fields["lora.r"])
    assert table.loc["dmt.handover", "run"] == fields["dmt.handover"]
    assert table.loc["data.deduplicate", "run"] == str(fields["data.deduplicate"]).lower()


def test_reasons_name_whom_a_value_follows():
    paper, released, recommended, cpu = (
        rows(name)["why"] for name in ("paper", "as_released", "recommended", "cpu")
    )
    assert paper["lora.r"] == "as the paper and the release"
    assert paper["stage1.accumulation"] == "as the paper"
    assert released["stage1.accumulation"] == "as the release, against the paper"
    assert paper["stage1.loss_on"] == "as the release"  # the paper is silent
    assert "byte-identical" in recommended["data.deduplicate"]
    assert cpu["data.deduplicate"] == recommended["data.deduplicate"]
    assert cpu["model.base"] == "the size of a laptop"
    assert paper["stage1.gradient_checkpointing"] == ledger.CHOSEN  # the argument for off is not its own


def test_silence_is_written_as_silence():
    table = rows("paper")
    assert table.loc["stage1.packing", "paper"] == "silent"
    assert table.loc["consumer.scorer", "paper"] == "silent: BERTScore; the encoder is not named"
    assert table.loc["consumer.cases", "release"] == "not released"
    assert table.loc["mcq.prefix_cache", ["paper", "release"]].tolist() == ["silent", "silent"]


def test_zero_that_stands_for_all_is_written_so():
    table = rows("paper")
    assert table.loc["data.rows_medqa", ["paper", "run"]].tolist() == ["all (10,178)", "all"]
    assert table.loc["lora.dropout", "run"] == "0"


def test_what_was_set_by_hand_says_so():
    table = rows("cpu", "stage2.learning_rate=3e-4; lora.r=8", "somewhere")
    assert table.loc["lora.r", ["run", "why"]].tolist() == ["8", "set for this run"]
    assert table.loc["stage2.learning_rate", "why"] == "set for this run"
    assert table.loc["data.origin", ["run", "why"]].tolist() == ["folder", "set for this run"]


def test_write(tmp_path):
    storage.write_json(tmp_path / "run.json", run_json.describe("cpu"))
    page = ledger.write(tmp_path).read_text()
    assert page.startswith("# Ledger of a `cpu` run\n")
    for field in FIELDS:
        assert f"| {field} " in page
    assert page.count("\n|") == len(FIELDS) + len(ledger.FIXED) + 2  # the header and its rule
    # ChatML's tokens have bars in them, which would end a cell: every line has the same six
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert r"<\|im_start\|>" in page
    with pytest.raises(MedkitError, match="run notebook 01_stage1 first"):
        ledger.write(tmp_path / "absent")


def test_a_ledger_read_from_run_json_is_that_of_the_recipe(tmp_path):
    # tuples become lists in JSON, and shares lose nothing
    info = run_json.describe("recommended")
    storage.write_json(tmp_path / "run.json", info)
    assert ledger.ledger(run_json.read(tmp_path)).equals(ledger.ledger(info))
