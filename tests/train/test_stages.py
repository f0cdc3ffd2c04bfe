"""A run's stages on the tiny random Llama: what training leaves, and what it will not go on from."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from medkit import MedkitError, recipes
from medkit.data import builtin
from medkit.evaluate import lineup, mcq
from medkit.pipeline import runner
from medkit.preflight import inputs
from medkit.pubmedqa import OFFICIAL_TEST_PMIDS
from medkit.records import MCQItem
from medkit.report import ledger, tables
from medkit.runs import loss, run_json, storage
from medkit.train import adapters, checkpoints, manifest, stages

SETTINGS = {
    "data.rows_medqa": 8,
    "data.rows_medmcqa": 8,
    "data.rows_pubmedqa": 16,
    "model.max_length": 4096,  # the tiny tokenizer has a token a byte
    "stage1.max_steps": 2,
    "stage1.save_every": 1,
    "stage1.eval_rows": 2,
    "dmt.notechat_train": 6,
    "dmt.notechat_validation": 2,
}


def settings_of(base, **more) -> str:
    settings = SETTINGS | {"model.base": base} | {name.replace("__", "."): v for name, v in more.items()}
    return "\n".join(f"{name}={value}" for name, value in settings.items())


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results" / "try"


def stage1(settings: str):
    """(run, fit) of a first stage, up to where notebook 01 has yet to draw and to finish."""
    run = run_json.begin("try", "01_stage1", "cpu", settings)
    mixed = stages.read_records(run, "stage1").stage1
    model, tokenizer = stages.load_for_stage(run, "stage1")
    rows = [
        stages.tokenize(run.recipe, "stage1", tokenizer, mixed.part(part)) for part in ("train", "validation")
    ]
    return run, stages.fit(run, "stage1", "stage1", model, tokenizer, *rows)


def test_a_notebook_that_fails_after_training_does_not_train_again(place, tiny_llama_folder):
    run, done = stage1(settings_of(tiny_llama_folder))
    assert done.steps == 2 and run.info["data"]["hashes"]["base model"]
    saved = (place / "stage1" / "adapter" / "adapter_model.safetensors").read_bytes()
    log = (place / "stage1" / "loss.csv").read_text()
    # the notebook dies here, drawing a figure, say; then it is run once more
    _, again = stage1(settings_of(tiny_llama_folder))
    assert again.resumed_from == again.steps == 2 and again.tokens == done.tokens
    assert (place / "stage1" / "adapter" / "adapter_model.safetensors").read_bytes() == saved
    assert (place / "stage1" / "loss.csv").read_text() == log
    stages.finish(run, "stage1", again)
    assert not list((place / "stage1").glob("*checkpoints*"))
    assert run_json.read(place)["notebooks"]["01_stage1"]["status"] == "complete"


def test_stage_1_keeps_its_optimizer_for_stage_2_where_the_recipe_says_so(place, tiny_llama_folder):
    stage1(settings_of(tiny_llama_folder))
    assert not (place / "stage1" / "optimizer.pt").exists()
    shutil.rmtree(place)
    carried = settings_of(tiny_llama_folder, dmt__optimizer_state="carried")
    run, done = stage1(carried)
    stages.finish(run, "stage1", done)
    state = torch.load(place / "stage1" / "optimizer.pt", weights_only=True)["state"]
    assert {int(one["step"]) for one in state.values()} == {2}
    run = run_json.begin("try", "02_stage2", "cpu", carried)
    mixed = stages.read_records(run, "stage1").stage1
    second = stages.mix_stage2(run.recipe, mixed, stages.load_source(run, "dialogues", "train").by_row())
    split, drawn = second.split, second.replay
    model, tokenizer = stages.load_for_stage(run, "stage2")
    sides = (split.train + drawn.train, split.validation + drawn.validation)
    rows = [stages.tokenize(run.recipe, "stage2", tokenizer, records) for records in sides]
    assert [sum(one["exam"]) for one in rows] == [len(drawn.train), len(drawn.validation)]
    stages.fit(run, "stage2", "stage2", model, tokenizer, *rows)
    marker = checkpoints.newest_complete(place / "stage2" / "checkpoints") / checkpoints.MARKER
    assert "stage 1's optimizer" in json.loads(marker.read_text())["identity"]
    last = loss.read(place, "stage2").iloc[-1]
    assert last[["eval_loss", *loss.BY_SOURCE]].notna().all()
    (place / "stage1" / "optimizer.pt").unlink()
    with pytest.raises(storage.ResultsError, match=r"optimizer\.pt is missing; run notebook 01_stage1 first"):
        stages.load_for_stage(run, "stage2")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"stage1__learning_rate": 1e-3}, "stage1.learning_rate"),
        ({"stage1__seed": 7}, "stage1.seed"),
        ({"dmt__replay_share": 0.25}, "dmt.replay_share"),
        ({"data__seed": 7}, "data.seed"),
    ],
)
def test_checkpoints_of_other_settings_are_refused_by_the_fields_name(place, tiny_llama_folder, more, named):
    """As after a run.json that was put in the place of another: the checkpoints know better."""
    stage1(settings_of(tiny_llama_folder))
    kept = place.rename(place.with_name("kept"))
    (place / "stage1").mkdir(parents=True)
    (kept / "stage1" / "checkpoints").rename(place / "stage1" / "checkpoints")
    with pytest.raises(MedkitError, match=rf"was written with .*{named}="):
        stage1(settings_of(tiny_llama_folder, **more))


def test_a_checkpoint_of_several_processes_is_not_taken_up_by_one(place, tiny_llama_folder, monkeypatch):
    stage1(settings_of(tiny_llama_folder))
    found = checkpoints.newest_complete(place / "stage1" / "checkpoints")
    marker = found / checkpoints.MARKER
    marker.write_text(marker.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(MedkitError, match="processes=2, this run has 1"):
        stage1(settings_of(tiny_llama_folder))


def test_arms_are_told_by_a_truth_value():
    assert [run_json.stage2_arm(replay) for replay in (True, False)] == ["stage2", "stage2_noreplay"]
    with pytest.raises(ValueError, match="replay='no' is not a bool"):
        run_json.stage2_arm("no")  # what papermill makes of `-p replay no`


@pytest.fixture
def files(place, tmp_path):
    """The built-in exams, six labelled abstracts of which three are in the official fold, and MTS-Dialog."""
    folder = builtin.write(tmp_path / "files")
    for path in (folder / "pubmedqa").iterdir():
        path.unlink()
    fold = sorted(OFFICIAL_TEST_PMIDS)[:3]
    labelled = [
        {
            "pubid": pmid,
            "question": f"Does tea help group {pmid}?",
            "context": {"contexts": [f"Adults of group {pmid} drank tea."]},
            "final_decision": "maybe",
        }
        for pmid in (*fold, 1, 2, 3)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in labelled)
    (folder / "pubmedqa" / "pqa_labeled.jsonl").write_text(lines)
    (folder / "mts_dialog").mkdir()
    with (folder / "mts_dialog" / "TrainingSet.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "section_header", "section_text", "dialogue"])
        for i in range(8):
            rows.writerow([i, "CC", f"Cough {i}.", f"Doctor: Well?\nPatient: I cough {i}.\nDoctor: Drink."])
    return str(folder)


SWAPPED = "data.dialogues=mts_dialog\ndata.pubmedqa_train=labelled_outside_fold\ndata.rows_pubmedqa=0"


def test_other_rows_serve_both_stages_by_two_fields(place, files, tiny_llama_folder):
    settings = f"model.base={tiny_llama_folder}\n{SWAPPED}\ndmt.notechat_train=6\ndmt.notechat_validation=2"
    run = run_json.begin("try", "01_stage1", "cpu", settings, files)
    train, evaluation = (stages.load_exams(run, part) for part in ("train", "eval"))
    assert [item.id for item in train["pubmedqa"].records] == ["1", "2", "3"]
    assert {item.group for item in evaluation["pubmedqa"].records} == {"fold"}
    mixed = stages.mix_stage1(run.recipe, {name: one.by_row() for name, one in train.items()})
    talks = stages.load_source(run, "dialogues", "train")
    second = stages.mix_stage2(run.recipe, mixed, talks.by_row())
    split, drawn = second.split, second.replay
    assert {record.source for record in split.train + split.validation} == {"mts_dialog"}
    assert (len(split.train), len(split.validation)) == (6, 2)
    # the same consultation on both sides would be found as such, whatever its source
    twice = replace(split, validation=[*split.validation, split.train[0]])
    second = replace(second, split=twice, replay=replace(drawn, train=drawn.train[:2]))
    found, of_validation = manifest.find_overlaps(second, mixed, evaluation["pubmedqa"].records, [])
    assert {match.eval_source for match in of_validation} == {"mts_dialog"} and not found
    # A question that is one of stage 1's rows: notebook 01 has seen it; of a joint arm there is none.
    known = [mixed.part("train")[0]]
    assert not manifest.find_overlaps(second, mixed, known, [])[0]
    of_joint, _ = manifest.find_overlaps(second, mixed, known, [], joint=True)
    assert {(match.eval_source, match.eval_id) for match in of_joint} == {(known[0].source, known[0].id)}
    rows = {"length": [9] * 8, "supervised": [2] * 8}
    records = stages.Records("stage2", {"dialogues": talks}, mixed, second)
    described = manifest.describe_stage2(records, rows, found, of_validation)
    assert described["notechat"]["source"] == "mts_dialog"
    assert described["notechat"]["notes"] == talks.notes == {}
    assert described["notechat"]["validation_found_in_train"]["exact"] == 1
    manifest.update_manifest(run, {"stage2": described})
    assert "MTS-Dialog: 8 rows" in tables.table2(place).text
    changed = ledger.ledger(run.info).set_index("knob").loc[["data.dialogues", "data.pubmedqa_train"]]
    assert list(changed["run"]) == ["mts_dialog", "labelled_outside_fold"]


def test_an_adapter_that_saw_the_labelled_rows_is_asked_the_fold_alone(place, files, tiny_llama_folder):
    trained = run_json.begin(
        "trained", "01_stage1", "cpu", f"model.base={tiny_llama_folder}\n{SWAPPED}", files
    )
    adapter = trained.folder / "stage1" / "adapter"
    LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(adapter)
    save_file({}, adapter / "adapter_model.safetensors")
    for given, count in (("", 6), (str(adapter), 3)):
        run = mcq.begin(f"alone{count}", files, str(tiny_llama_folder), given)
        assert sum(item.source == "pubmedqa" for item in mcq.exam_items(run)) == count


def test_the_built_in_corpus_has_neither(tiny_llama_folder):
    for setting in ("dialogues=mts_dialog", "pubmedqa_train=labelled_outside_fold"):
        name, value = setting.split("=")
        recipe = recipes.get("cpu", {"model.base": str(tiny_llama_folder), f"data.{name}": value})
        with pytest.raises(inputs.InputError, match=r"the built-in corpus has neither .*; give --data-dir"):
            inputs.check(recipe, "", ["medqa train"])


@pytest.mark.slow
def test_several_processes_train_a_run_and_write_it_once(place, tiny_llama_folder, tmp_path):
    """`torchrun -m medkit.distributed`, both stages; and the runner finds what it needs to evaluate."""
    settings = SETTINGS | {"model.base": tiny_llama_folder, "stage2.max_steps": 1, "stage2.eval_rows": 2}
    settings |= {f"stage{n}.{name}": 2 for n in (1, 2) for name in ("batch_size", "accumulation")}
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "unsloth")}
    environment["PYTHONPATH"] = str(runner.machine.CHECKOUT)
    for arm in ("stage1", "stage2"):
        command = [*launcher, "-m", "medkit.distributed", "try", arm, "--recipe", "cpu", *options]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert adapters.read_config(place / arm / "adapter").r == recipes.get("cpu").lora.r
        steps = pd.read_csv(place / arm / "loss.csv")["step"].tolist()
        assert steps == sorted(set(steps))  # one process wrote it
    info = run_json.read(place)
    assert {name: entry["status"] for name, entry in info["notebooks"].items()} == {
        "01_stage1": "complete",
        "02_stage2": "complete",
    }
    assert info["data"]["hashes"]["base model"]
    manifest = (place / "data" / "manifest.json").read_text()
    assert '"stage1"' in manifest and '"stage2"' in manifest
    assert (place / "data" / "overlap_stage2.csv").is_file() and (place / "stage2" / "replay.csv").is_file()
    assert not list(place.glob("stage*/*checkpoints*"))


def test_rows_are_drawn_as_released_and_dropped_afterwards(place, tmp_path):
    """Rows 3 and 7 of 20 conversations and row 2 of an exam's file cannot be used. The others that train and
    validate are those that `datasets` draws from the whole files."""
    folder = builtin.write(tmp_path / "files")
    for path in (folder / "notechat").iterdir():
        path.unlink()
    talks = [f"Doctor: Well?\nPatient: I cough, {i}.\nDoctor: Drink." for i in range(20)]
    talks[3] = talks[7] = "Doctor: Nobody is here."
    lines = "".join(json.dumps({"conversation": text, "data": None}) + "\n" for text in talks)
    (folder / "notechat" / "train.jsonl").write_text(lines)
    (exam,) = (path for path in (folder / "medqa").iterdir() if "train" in path.name)
    rows_of_exam = exam.read_text().splitlines(keepends=True)
    rows_of_exam[2] = json.dumps(json.loads(rows_of_exam[2]) | {"answer_idx": "E"}) + "\n"
    exam.write_text("".join(rows_of_exam))
    settings = "data.notechat_split=row\ndata.deduplicate=false\ndmt.notechat_train=10\n"
    settings += "dmt.notechat_validation=5\ndmt.replay_share=1\ndata.rows_medqa=0\ndata.rows_medmcqa=0"
    run = run_json.begin("try", "01_stage1", "cpu", settings, str(folder))
    loaded = stages.load_exams(run, "train")
    assert sum(loaded["medqa"].dropped.values()) == 1
    mixed = stages.mix_stage1(run.recipe, {name: one.by_row() for name, one in loaded.items()})
    second = stages.mix_stage2(run.recipe, mixed, stages.load_source(run, "dialogues", "train").by_row())
    split, drawn = second.split, second.replay
    order = Dataset.from_dict({"row": list(range(20))}).shuffle(seed=42)["row"][:]
    for side, wanted in ((split.train, order[:10]), (split.validation, order[10:15])):
        assert [int(d.id[-6:]) for d in side] == [i for i in wanted if i not in (3, 7)]
    assert len(split.train) + len(split.validation) < 15, "no dropped row was drawn, which would show nothing"
    whole = [(name, place) for name, one in loaded.items() for place in range(one.rows)]
    parts = Dataset.from_dict({"row": list(range(len(whole)))}).train_test_split(test_size=0.1, seed=42)
    kept = {
        (name, place): record
        for name, one in loaded.items()
        for place, record in zip(one.row_numbers, one.records, strict=True)
    }
    for part, theirs, replayed in (("train", "train", drawn.train), ("validation", "test", drawn.validation)):
        places = [whole[i] for i in parts[theirs]["row"][:]]
        assert mixed.part(part) == [kept[one] for one in places if one in kept]
        count = len(split.train if part == "train" else split.validation)
        chosen = Dataset.from_dict({"row": list(range(len(places)))}).shuffle(seed=42)["row"][:count]
        assert replayed == [kept[places[i]] for i in chosen if places[i] in kept]


def train_arm(arm: str, settings: str):
    """(run, records) of an arm of stage 2, trained and written as notebook 02 does."""
    run = run_json.begin("try", f"02_{arm}", "cpu", settings)
    records = stages.read_records(run, arm)
    model, tokenizer = stages.load_for_stage(run, "stage2")
    rows = [
        stages.tokenize(run.recipe, "stage2", tokenizer, part) for part in (records.train, records.validation)
    ]
    stages.write_manifest(run, records, rows[0])
    done = stages.fit(run, "stage2", arm, model, tokenizer, *rows)
    stages.relearn(run, records, model, tokenizer)
    stages.finish(run, arm, done)
    return run, records


STAGE2 = {"stage2__max_steps": 1, "stage2__eval_rows": 2, "stage2__eval_every": 1}


def test_joint_needs_no_stage_1_and_relearning_is_an_arm_of_its_own(place, tiny_llama_folder):
    more = STAGE2 | {"dmt__handover": "joint", "dmt__relearn_steps": 2}
    run, records = train_arm("stage2", settings_of(tiny_llama_folder, **more))
    assert not (place / "stage1").exists()
    assert len(records.train) == 6 + len(records.stage1.train)
    manifest = json.loads((place / "data" / "manifest.json").read_text())["stage2"]
    assert manifest["replay"]["train"] == len(records.stage1.train)
    assert manifest["replay"]["share_of_stage1"] == 1
    written = pd.read_csv(place / "stage2" / "replay.csv")["part"].value_counts()
    assert written["train"] == len(records.stage1.train)
    # two steps on stage 1's rows, from stage 2's adapter, which stays as it was
    own, probe = (
        load_file(place / folder / "adapter" / "adapter_model.safetensors")
        for folder in ("stage2", "stage2_relearned")
    )
    assert own.keys() == probe.keys() and any(not own[name].equal(probe[name]) for name in own)
    assert loss.read(place, "stage2_relearned")["step"].max() == 2
    assert not (place / "stage2_relearned" / "checkpoints").exists()
    assert list(lineup.of_run(run).members) == ["base", "med-nirvana", "relearned"]


def test_pad_is_in_the_manifest_and_trains_as_many_rows(place, tiny_llama_folder):
    run = run_json.begin("try", "01_stage1", "cpu", settings_of(tiny_llama_folder, dmt__fill="dialogues"))
    records = stages.read_records(run, "stage2")
    assert (len(records.train), len(records.stage2.further), records.stage2.replay.train) == (12, 6, [])
    described = stages.write_manifest(run, records, {"length": [9] * 12, "supervised": [2] * 12})
    assert (described["notechat"]["train"], described["notechat"]["further"]) == (6, 6)
    assert (described["replay"]["train"], described["replay"]["share_of_supervised_tokens"]) == (0, 0)
    assert described["replay"]["validation"] == 2
    knobs = ledger.ledger(run.info).set_index("knob")
    assert knobs.loc["dmt.fill", "run"] == "dialogues" and "rows of stage 1" in knobs.loc["dmt.fill", "paper"]
    assert "hidden" in knobs.loc["dmt.relearn_steps", "why"]


def test_no_probe_where_none_is_asked_for(place, tiny_llama_folder):
    run = run_json.begin("try", "01_stage1", "cpu", settings_of(tiny_llama_folder))
    records = stages.Records("stage2", {}, None)
    assert stages.relearn(run, records, None, None) is None
    asked = run_json.begin("other", "01_stage1", "cpu", settings_of(tiny_llama_folder, dmt__relearn_steps=2))
    assert stages.relearn(asked, replace(records, arm="stage2_noreplay"), None, None) is None


def test_relearning_takes_stage_1s_rows_at_a_constant_rate(place, tiny_llama_folder, tiny_llama, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        stages.fitting, "fit", lambda m, t, train, v, spec, **_: asked.update(train=train, spec=spec)
    )
    for name in ("save_adapter", "remove_checkpoints"):
        monkeypatch.setattr(stages.models, name, lambda *_: None)
    run = run_json.begin("try", "01_stage1", "cpu", settings_of(tiny_llama_folder, dmt__relearn_steps=2))
    records = stages.read_records(run, "stage2")
    stages.relearn(run, records, None, tiny_llama[1])
    own = stages.tokenize(run.recipe, "stage1", tiny_llama[1], records.stage1.part("train"))
    assert asked["train"]["input_ids"][:] == own["input_ids"][:]
    spec = asked["spec"]
    assert (spec.learning_rate, spec.max_steps, spec.warmup_steps, spec.scheduler) == (6e-4, 2, 0, "constant")


def test_the_recipes_target_and_each_stages_loss_reach_the_rows(place, tiny_llama_folder, tiny_llama):
    tokenizer = tiny_llama[1]
    lines = settings_of(tiny_llama_folder, data__mcq_target="letter_and_text", stage2__loss_on="text")
    recipe = recipes.get("cpu", lines)
    question = MCQItem("1", "medqa", "Which?", ("w", "x", "y", "z"), "C")
    first, second = (
        stages.tokenize(recipe, stage, tokenizer, [question])[0] for stage in ("stage1", "stage2")
    )
    assert tokenizer.decode([label for label in first["labels"] if label >= 0]) == "Answer: C) y<|eot_id|>"
    assert second["supervised"] == second["length"]


def test_a_stage_2_is_that_of_its_stage_1_and_its_base(place, tiny_llama_folder, monkeypatch):
    """A checkpoint of stage 2 is not resumed after stage 1 was trained again, or with another base."""
    run, done = stage1(settings_of(tiny_llama_folder))
    stages.finish(run, "stage1", done)
    run = run_json.begin("try", "02_stage2", "cpu", settings_of(tiny_llama_folder))
    monkeypatch.setattr(stages.tokenization, "key", lambda rows: rows)
    before = stages._identity(run, "stage2", "train", "validation")
    weights = place / "stage1" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(stages.models, "base_identity", lambda model: "another")
    after = stages._identity(run, "stage2", "train", "validation")
    assert {name for name in before if before[name] != after[name]} == {"stage 1's adapter", "base weights"}
