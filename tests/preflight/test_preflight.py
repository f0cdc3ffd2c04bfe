"""Preflight: a sound mixture passes; one broken in each known way is named, with the fix."""

import copy
import dataclasses
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CHAT_TEMPLATE, make_tiny_llama, make_tokenizer
from tokenizers import normalizers
from transformers import Gemma3Config, LlamaConfig

from medkit import MedkitError, prompts, recipes
from medkit.__main__ import main
from medkit.preflight import checks as preflight
from medkit.preflight import estimate, findings
from medkit.preflight import rows as row_checks
from medkit.preflight.findings import Check
from medkit.records import Dialogue, MCQItem, Turn
from medkit.runs.machine import Memory
from medkit.train import tokenization

RECIPE = recipes.get("recommended")
CPU = recipes.get("cpu")


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def exams(count=40):
    return [
        MCQItem(str(i), "medqa", f"Case {i}: " + "why " * (i % 7) + "?", ("a", "b", "c", "d"), "ABCD"[i % 4])
        for i in range(count)
    ]


TALK = Dialogue("t", "notechat", (Turn("user", "It hurts."), Turn("assistant", "Where? Since when?")))


def prepare(records, tokenizer, folder, recipe=RECIPE, **more):
    settings = {"target": "letter", "loss_on": "answer", "max_length": recipe.model.max_length}
    return tokenization.prepare(records, tokenizer, cache=folder, progress=False, **settings | more)


def by_name(checks):
    return {check.name.removeprefix("stage1: ").removeprefix("stage2: "): check for check in checks}


def look(records, tokenizer, prepared, recipe=RECIPE):
    return by_name(row_checks.rows(recipe, tokenizer, records, prepared))


def only_failure(checks, name):
    """The one check that failed, which must be `name` and bring a fix."""
    assert [c.name for c in findings.failed(list(checks.values()))] == [checks[name].name]
    assert checks[name].fix
    return checks[name].message


def broken(prepared, **columns):
    """The prepared rows with columns made anew, each by a function of a row."""
    return prepared.map(lambda row: {name: make(row) for name, make in columns.items()}, keep_in_memory=True)


def masked(row, keep):
    return [x if keep(i, x) else prompts.IGNORED for i, x in enumerate(row["labels"])]


def test_a_sound_mixture_passes(tokenizer, tmp_path):
    records = exams()
    checks = look(records, tokenizer, prepare(records, tokenizer, tmp_path))
    assert {check.status for check in checks.values()} == {"pass"}
    # Of each row the letter and the end-of-turn token: 2 x 40 = 80.
    assert "80 of" in checks["supervised tokens"].message
    assert "40 questions" in checks["same prompt in training and evaluation"].message


def test_a_consultation_makes_it_stage_2(tokenizer, tmp_path):
    records = [*exams(3), TALK]
    checks = row_checks.rows(RECIPE, tokenizer, records, prepare(records, tokenizer, tmp_path))
    assert {check.name.split(":")[0] for check in checks} == {"stage2"}
    assert not findings.failed(checks)


def test_a_doubled_bos(tokenizer, tmp_path):
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    records = exams()
    said = only_failure(look(records, tokenizer, prepare(records, tokenizer, tmp_path)), "one BOS")
    assert "40 have more than one <|bos|>" in said


def test_no_bos(tokenizer, tmp_path):
    tokenizer.chat_template = CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
    records = exams()
    checks = look(records, tokenizer, prepare(records, tokenizer, tmp_path))
    assert (checks["one BOS"].status, findings.failed(list(checks.values()))) == ("warn", [])  # as Phi-3's
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|bos|> $A", None, [("<|bos|>", 256)])
    checks = look(records, tokenizer, prepare(records, tokenizer, tmp_path))
    assert "40 begin without" in only_failure(checks, "one BOS")


def test_pad_that_is_the_end_token(tokenizer, tmp_path):
    tokenizer.pad_token = tokenizer.eos_token
    records = exams()
    said = only_failure(look(records, tokenizer, prepare(records, tokenizer, tmp_path)), "pad token")
    assert said == "pad is <|eot_id|>, the end token too"


def test_no_pad(tokenizer, tmp_path):
    tokenizer.pad_token = None
    records = exams()
    said = only_failure(look(records, tokenizer, prepare(records, tokenizer, tmp_path)), "pad token")
    assert said == "no pad"


def test_an_end_of_turn_that_is_not_learned(tokenizer, tmp_path):
    records = exams()
    rows = broken(
        prepare(records, tokenizer, tmp_path),
        labels=lambda row: masked(row, lambda _, x: x != tokenizer.eos_token_id),
        supervised=lambda row: row["supervised"] - 1,
    )
    said = only_failure(look(records, tokenizer, rows), "end of turn supervised")
    assert said == "of 40 rows 40 do not learn <|eot_id|>"


def test_every_label_ignored(tokenizer, tmp_path):
    records = exams()
    rows = broken(
        prepare(records, tokenizer, tmp_path),
        labels=lambda row: masked(row, lambda *_: False),
        supervised=lambda _: 0,
    )
    checks = look(records, tokenizer, rows)
    assert checks["supervised tokens"].status == "fail"
    assert checks["supervised tokens"].message == "every label is -100"
    assert checks["end of turn supervised"].status == "fail"  # it follows


def test_prompts_that_are_not_masked(tokenizer, tmp_path):
    records = exams()
    rows = prepare(records, tokenizer, tmp_path, loss_on="text")
    checks = look(records, tokenizer, rows)  # the recipe says loss_on=answer
    assert checks["supervised tokens"].status == "fail"
    assert "100.00% of the sample's tokens" in checks["supervised tokens"].message


def test_a_text_loss_that_is_masked(tokenizer, tmp_path):
    records = exams()
    recipe = recipes.get("paper")
    checks = look(records, tokenizer, prepare(records, tokenizer, tmp_path), recipe)
    assert "with the loss on the text" in only_failure(checks, "supervised tokens")
    rows = prepare(records, tokenizer, tmp_path, loss_on="text")
    assert not findings.failed(list(look(records, tokenizer, rows, recipe).values()))


def test_labels_that_are_other_tokens(tokenizer, tmp_path):
    records = exams()
    rows = broken(
        prepare(records, tokenizer, tmp_path),
        labels=lambda row: [
            x if x in (prompts.IGNORED, tokenizer.eos_token_id) else x + 1 for x in row["labels"]
        ],
    )
    said = only_failure(look(records, tokenizer, rows), "supervised tokens")
    assert said == "40 rows have labels that differ from their tokens"


def test_rows_cut_off(tokenizer, tmp_path):
    records = exams()
    whole = prepare(records, tokenizer, tmp_path)
    longest = max(whole["length"])
    # Of every 7 rows the longest alone loses its last tokens: 5 of 40 rows, above a tenth.
    recipe = recipes.get("recommended", {"model.max_length": str(longest - 3)})
    checks = look(records, tokenizer, prepare(records, tokenizer, tmp_path, recipe), recipe)
    cut = sum(n > longest - 3 for n in whole["length"])
    assert f"{cut} of 40 rows lose" in only_failure(checks, "rows cut")
    assert checks["rows cut"].fix == f"--set model.max_length={longest}"
    assert checks["supervised tokens"].status == "warn"  # and the answers stood there


def test_few_rows_cut_off_are_a_warning(tokenizer, tmp_path):
    records = [*exams(39), MCQItem("long", "medqa", "why " * 300 + "?", ("a", "b", "c", "d"), "A")]
    recipe = recipes.get("recommended", {"model.max_length": "1024"})
    checks = look(records, tokenizer, prepare(records, tokenizer, tmp_path, recipe), recipe)
    assert checks["rows cut"].status == "warn"
    assert "1 of 40 rows lose" in checks["rows cut"].message
    assert not findings.failed(list(checks.values()))


def test_an_evaluation_prompt_that_differs(tokenizer, tmp_path):
    records = exams()
    rows = prepare(records, tokenizer, tmp_path)
    evaluated = [
        MCQItem(r.id, r.source, r.question + " Answer:", r.options, r.answer) if r.id == "7" else r
        for r in records
    ]
    name = "same prompt in training and evaluation"
    said = only_failure(look(evaluated, tokenizer, rows), name)
    assert said == "1 of 40 questions differ, first medqa/7"
    chatml = make_tokenizer()
    chatml.chat_template = prompts.CHATML  # trained with one template, scored with another
    assert "40 of 40 questions differ" in look(records, chatml, rows)[name].message


def test_a_letter_that_is_not_the_token_that_is_scored(tokenizer, tmp_path):
    records = exams()
    rows = prepare(records, tokenizer, tmp_path)
    other = [dataclasses.replace(r, answer="A" if r.id == "6" else r.answer) for r in records]  # 6 is C
    said = only_failure(look(other, tokenizer, rows), "letters")
    assert said == "1 of 40 answers are other tokens, first medqa/6"
    # `Answer: C) text` where C is written as two tokens.
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("C", "Cc")
    with_text = recipes.get("recommended", {"data.mcq_target": "letter_and_text"})
    rows = prepare(records, tokenizer, tmp_path, target="letter_and_text")
    said = only_failure(look(records, tokenizer, rows, with_text), "letters")
    assert said == "the letters are not one token each for this tokenizer"


class Wrapped:
    """A model as `net`, in whose forward something is wrong."""

    def __init__(self, net, forget):
        self.net, self.forget, self.training = net, forget, False

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, **arguments):
        for name in self.forget:
            arguments.pop(name, None)
        return self.net(**arguments)


@pytest.fixture(scope="module")
def net():
    import torch

    model, _ = make_tiny_llama()
    model = copy.deepcopy(model)
    with torch.no_grad():  # fresh weights hardly tell tokens apart: every loss would be log(vocabulary)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 8
    return model.eval()


def test_a_sound_model_passes(net, tokenizer, tmp_path):
    checks = row_checks.model(net, tokenizer, prepare(exams(), tokenizer, tmp_path))
    assert [check.status for check in checks] == ["pass", "pass"]
    assert f"tolerance {row_checks.TOLERANCE_FLOAT32}" in checks[0].message


def test_packed_rows_that_see_one_another(net, tokenizer, tmp_path):
    rows = prepare(exams(), tokenizer, tmp_path)
    checks = by_name(row_checks.model(Wrapped(net, ["position_ids"]), tokenizer, rows))
    assert checks["packed rows isolated"].status == "fail"
    assert "packing=off" in checks["packed rows isolated"].fix


def test_padding_that_is_seen(net, tokenizer, tmp_path):
    rows = prepare(exams(), tokenizer, tmp_path)
    # Without a mask alone, Transformers would tell padding by its positions.
    checks = by_name(row_checks.model(Wrapped(net, ["attention_mask", "position_ids"]), tokenizer, rows))
    assert "logits in a batch" in [check.name for check in findings.failed(list(checks.values()))]


def test_logits_that_are_no_numbers(net, tokenizer, tmp_path):
    import torch

    bad = copy.deepcopy(net)
    with torch.no_grad():
        bad.lm_head.weight[0, 0] = float("nan")
    checks = row_checks.model(bad, tokenizer, prepare(exams(), tokenizer, tmp_path))
    assert [check.status for check in checks] == ["fail", "fail"]


LAPTOP = {"system": "", "processor": "", "cores": 2, "memory_gb": 16.0, "gpus": []}
H100 = {**LAPTOP, "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_gb": 79.6, "driver": "580.1"}]}
SMALL = estimate.Shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)  # SmolLM2-135M's


def machine(monkeypatch, recipe, shape, free=20e9, room=100e9):
    monkeypatch.setattr(preflight.this_machine, "hardware", lambda: LAPTOP)
    monkeypatch.setattr(preflight.this_machine, "memory", lambda: Memory(free, free))
    monkeypatch.setattr(preflight.this_machine.shutil, "disk_usage", lambda _: type("", (), {"free": room}))
    return by_name(preflight.machine(recipe, shape))


def test_a_laptop_suits_the_laptops_recipe(monkeypatch):
    checks = machine(monkeypatch, CPU, SMALL)
    assert {name: c.status for name, c in checks.items() if name != "versions"} == {
        name: "pass" for name in ("model", "device", "memory stage1", "memory stage2", "disk")
    }
    assert "activations" in checks["memory stage1"].message


def test_what_a_laptop_lacks(monkeypatch):
    assert "8.0e9 parameters need one" in machine(monkeypatch, RECIPE, estimate.LLAMA_8B)["device"].message
    eight_bit = recipes.get("cpu", {"stage2.optimizer": "adamw_8bit"})
    assert machine(monkeypatch, eight_bit, SMALL)["device"].fix == "--set stage2.optimizer=adamw_torch"
    assert machine(monkeypatch, CPU, SMALL, free=2e9)["memory stage1"].status == "fail"
    needed = sum(estimate.memory(SMALL, CPU, CPU.stage1, gpu=False).values())
    assert machine(monkeypatch, CPU, SMALL, free=needed * 1.05e9)["memory stage1"].status == "warn"
    assert machine(monkeypatch, CPU, SMALL, room=1e7)["disk"].status == "fail"


def torch_sees(monkeypatch, name):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(name))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


def test_only_a_gpu_that_torch_can_use_counts(monkeypatch):
    """With CPU wheels or an old driver the laptop's recipe trains on the CPU, and an 8B recipe is refused."""
    other = {"name": "NVIDIA T1000", "memory_gb": 4.0, "driver": "580.1"}
    both = {**LAPTOP, "gpus": [other, *H100["gpus"]]}
    monkeypatch.setattr(preflight.this_machine, "hardware", lambda: both)
    torch_sees(monkeypatch, "")
    assert preflight.usable_hardware()["gpus"] == []
    small = preflight._device(CPU, SMALL, both)
    assert small.status == "warn" and "cannot use it: the CPU is used" in small.message
    large = preflight._device(RECIPE, estimate.LLAMA_8B, both)
    assert large.status == "fail" and large.fix == "install a torch built for CUDA, or a newer driver"
    torch_sees(monkeypatch, "NVIDIA H100 80GB HBM3")
    assert [gpu["name"] for gpu in preflight.usable_hardware()["gpus"]] == [
        "NVIDIA H100 80GB HBM3",  # the one that trains, whatever nvidia-smi lists first
        "NVIDIA T1000",
    ]


def test_what_the_process_has_already_counts_as_free(monkeypatch):
    """A notebook checks the memory after the model is loaded, which the estimate contains."""
    import psutil

    machine(monkeypatch, CPU, SMALL)
    monkeypatch.setattr(preflight, "base_shape", lambda model: SMALL)
    needed = sum(estimate.memory(SMALL, CPU, CPU.stage1, gpu=False, longest=100).values())
    memory = preflight.this_machine.Memory(10**12, int((needed - 1) * 1e9))
    monkeypatch.setattr(preflight.this_machine, "memory", lambda: memory)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=2 * 10**9))
    _, check = preflight.course(CPU, "stage1", {"length": [100]}, {"length": [90]})
    assert check.status == "pass" or check.status == "warn"
    assert f"{needed + 1:.1f} GB of memory free" in check.message


def test_more_steps_than_the_epochs_have_repeat_the_rows():
    stage = replace(CPU.stage1, max_steps=200)
    plan = estimate.plan(replace(CPU, stage1=stage), "stage1", SMALL, 400, 40_000.0, 8, LAPTOP)
    assert (plan.steps, plan.tokens) == (200, 80_000.0)  # 400 rows in batches of 4 are 100 steps
    # 8 rows of 100 tokens are validated before, every 40 of the 200 steps, and at the end
    assert plan.evaluated == 8 * 100 * (1 + 5 + 1)


def test_the_sizes_of_another_base_are_its_own(tmp_path):
    config = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    shape = preflight.base_shape(recipes.ModelSpec(base=str(tmp_path)))
    assert (shape.hidden_size, shape.num_key_value_heads, shape.tie_word_embeddings) == (64, 4, True)
    assert preflight.base_shape(recipes.ModelSpec(base=str(tmp_path / "none"))) is None
    images = Gemma3Config()  # a model that also reads images has its sizes in a part of its configuration
    assert estimate.Shape.of(images).hidden_size == images.text_config.hidden_size


def test_a_cpus_memory_goes_by_the_rows_there_are(monkeypatch):
    """A pass holds 768 tokens in float32, or one longer row. A token takes 2.6 x 30 layers x 4 bytes x
    (6 x 576 + 2 x 192 + 3 x 1,536) = 2.636 MB, so that 1,500 take (1,500 - 768) x 2.636 MB = 1.93 GB more."""
    machine(monkeypatch, CPU, SMALL)
    monkeypatch.setattr(preflight, "base_shape", lambda base: SMALL)

    def needed(longest):
        return sum(estimate.memory(SMALL, CPU, CPU.stage1, gpu=False, longest=longest).values())

    assert needed(120) == needed(768) == sum(estimate.memory(SMALL, CPU, CPU.stage1, gpu=False).values())
    assert needed(1500) - needed(120) == pytest.approx(1.93, abs=0.01)
    _, memory = preflight.course(CPU, "stage1", {"length": [100, 1500]}, {"length": [90]})
    assert memory.name == "stage1: memory of rows up to 1,500 tokens"
    assert memory.message.startswith(f"{needed(1500):.1f} GB (")
    machine(monkeypatch, CPU, SMALL, free=needed(1500) * 0.9e9)
    assert preflight.course(CPU, "stage1", {"length": [1500]}, {"length": [90]})[1].status == "fail"
    monkeypatch.setattr(preflight.this_machine, "hardware", lambda: H100)  # packed rows are always full
    torch_sees(monkeypatch, "NVIDIA H100 80GB HBM3")
    assert len(preflight.course(RECIPE, "stage1", {"length": [100]}, {"length": [90]})) == 1


def test_versions(monkeypatch):
    assert machine(monkeypatch, CPU, SMALL)["versions"].status == "pass"
    real = preflight.this_machine.importlib.metadata.version

    def version(name):
        if name == "peft":
            raise preflight.this_machine.importlib.metadata.PackageNotFoundError
        return "0.9.1" if name == "trl" else real(name)

    monkeypatch.setattr(preflight.this_machine.importlib.metadata, "version", version)
    check = machine(monkeypatch, CPU, SMALL)["versions"]
    assert (check.status, check.message) == ("fail", "not installed: peft")
    monkeypatch.setattr(
        preflight.this_machine.importlib.metadata,
        "version",
        lambda name: "0.9.1" if name == "trl" else real(name),
    )
    check = machine(monkeypatch, CPU, SMALL)["versions"]
    assert check.status == "warn"
    assert "trl 0.9.1 (tested: ==1.15.0)" in check.message


def test_llama_8bs_arithmetic():
    shape = estimate.LLAMA_8B
    assert shape.lora(16, RECIPE.lora.target_modules) == 41_943_040
    # 32 layers of 218,103,808 linear weights, and two tables of 128,256 x 4,096
    assert shape.body == 32 * 218_103_808
    assert shape.parameters == 6_979_321_856 + 2 * 525_336_576
    # 4 bytes of 4.127 bits a weight: 6.979e9 * 0.5159 + 1.0507e9 * 2 = 5.70e9
    assert estimate.memory(shape, RECIPE, RECIPE.stage1, gpu=True)["weights"] == pytest.approx(5.70, abs=0.01)
    # 4 x (6.979e9 + 0.525e9) + 6 x 41.9e6 = 30.27e9; the layers' forward pass, not the output layer's, done
    # once more is 2 x (6.979e9 + 41.9e6) = 14.04e9
    assert shape.flops_per_token(41_943_040, False) == pytest.approx(30.27e9, rel=1e-3)
    assert shape.flops_per_token(41_943_040, True) == pytest.approx(44.31e9, rel=1e-3)


def test_checkpointing_and_merging_show_in_the_estimates():
    lean = recipes.get("recommended", {"stage1.gradient_checkpointing": "true"})
    parts = [estimate.memory(estimate.LLAMA_8B, r, r.stage1, gpu=True) for r in (RECIPE, lean)]
    assert parts[1]["activations"] < parts[0]["activations"] / 5
    assert estimate.disk(estimate.LLAMA_8B, RECIPE, 1e8)["merged model"] == 0
    assert estimate.disk(estimate.LLAMA_8B, recipes.get("paper"), 1e8)["merged model"] == pytest.approx(
        16.1, abs=0.1
    )


def test_the_course_of_the_papers_stage_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, tokens = 363_842, 114.7e6
    made = estimate.plan(RECIPE, "stage1", estimate.LLAMA_8B, rows, tokens, 40_427, H100)
    # 114.7e6 / (0.98 x 2,048) = 57,149 packed rows, 16 a step: 3,572 steps
    assert made.steps == 3_572
    # 114.7e6 x 30.3e9 FLOPs / (0.35 x 989e12) = 2.8 h, and 11 evaluations of 1,000 rows
    assert made.hours == pytest.approx(2.9, abs=0.15)
    assert "assumed 35% of 989 TFLOP/s" in made.basis
    paper = estimate.plan(recipes.get("paper"), "stage1", estimate.LLAMA_8B, rows, tokens, 40_427, LAPTOP)
    assert paper.steps == 90_961  # 363,842 / 4, as a CPU does not pack
    unknown = {**LAPTOP, "gpus": [{"name": "Some GPU", "memory_gb": 8.0, "driver": "1"}]}
    assert estimate.plan(RECIPE, "stage1", estimate.LLAMA_8B, rows, tokens, 40_427, unknown).hours is None


def test_a_measured_speed_goes_before_an_assumed_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "benchmarks"
    folder.mkdir(parents=True)
    device = H100["gpus"][0]["name"]
    line = {
        "recipe": "recommended",
        "set": [],
        "device": device,
        "stages": {"stage1": {"tokens_per_s": 20_000}},
    }
    (folder / "broken.json").write_text("{")
    (folder / "throughput.json").write_text(json.dumps(line))
    made = estimate.plan(RECIPE, "stage1", estimate.LLAMA_8B, 100, 72e6, 0, H100)
    assert made.hours == pytest.approx(1.0)  # 72e6 / 20,000 = 3,600 s
    assert made.basis == "measured (throughput.json)"


def test_the_command_on_the_built_in_corpus(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    few = ["--set", f"model.base={tiny_llama_folder}", "--set", "model.max_length=4096"]
    assert main(["check", "cpu", *few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"] == "cpu"
    assert found["failed"] is False
    said = {check["name"]: check["message"] for check in found["checks"]}
    assert {"model", "data medqa train", "stage1: course", "stage2: one BOS", "logits in a batch"} <= set(
        said
    )
    assert said["03_mcq_eval: course"].startswith(
        "4 models, each 120 questions by letter, 15 answers in words"
    )
    assert "15 answers as released of up to 128 tokens" in said["03_mcq_eval: course"]
    # 12 cases, each with a greedy answer and two sampled ones
    assert "2 models, each 12 greedy answers" in said["04_consumer_eval: course"]
    assert "12 sampled answers of up to" in said["04_consumer_eval: course"]
    assert all("key-value cache" in said[f"{name}: memory"] for name in ("03_mcq_eval", "04_consumer_eval"))
    assert not list(tmp_path.iterdir())  # nothing written


def test_the_command_names_what_fails(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    assert main(["check", "cpu", "--set", f"model.base={tiny_llama_folder}", "--data-dir", str(data)]) == 2
    out = capsys.readouterr().out
    assert "fail  data medqa train" in out
    assert "warn  rows" in out
    assert main(["check", "cpu", "--set", "model.base=./nowhere", "--data-dir", str(data)]) == 2
    assert "fail  model " in capsys.readouterr().out


def test_the_command_names_rows_that_cannot_be_made(tiny_llama, tmp_path, monkeypatch, capsys):
    model, _ = tiny_llama
    bare = make_tokenizer()
    bare.chat_template = None
    model.save_pretrained(tmp_path / "bare")
    bare.save_pretrained(tmp_path / "bare")
    assert main(["check", "cpu", "--set", f"model.base={tmp_path / 'bare'}"]) == 2
    assert "fail  rows " in (out := capsys.readouterr().out)
    assert "the tokenizer has no chat template; use an instruct model" in out


TEMPLATE = make_tokenizer().chat_template
NO_END = TEMPLATE.replace("<|eot_id|>", "")
TWO_BOS = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
OTHER_HEADER = TEMPLATE.replace(
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}", "assistant: {% endif %}"
)
BROKEN = {
    "two BOS": ({"chat_template": TWO_BOS}, {}, "fail  stage1: one BOS"),
    "no end of turn": ({"chat_template": NO_END}, {}, "ends an answer with '', not with a special token"),
    "no template": ({"chat_template": None}, {}, "the tokenizer has no chat template"),
    "another prompt in evaluation": (
        {"chat_template": OTHER_HEADER},
        {},
        "the chat template's generation prompt ends in",
    ),
    "rows cut off": ({}, {"model.max_length": 300}, "fail  stage1: rows cut"),
    "rows longer than the context": (
        {},
        {"model.max_length": 4097},
        "rows have up to 4,097 tokens, and the model",
    ),
    "more replay than there is": ({}, {"dmt.replay_share": 100}, "dmt.replay_share asks for 9600"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_the_command_names_a_broken_mixture(name, tiny_llama, tmp_path, monkeypatch, capsys):
    change, settings, line = BROKEN[name]
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    tokenizer = make_tokenizer()
    for key, value in change.items():
        setattr(tokenizer, key, value)
    tiny_llama[0].save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = {"model.base": tmp_path / "model", "model.max_length": 4096} | settings
    options = [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
    assert main(["check", "cpu", *options]) == 2
    assert line in capsys.readouterr().out


def test_the_command_names_a_model_that_gives_no_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    model, tokenizer = make_tiny_llama()
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    base = f"model.base={tmp_path / 'model'}"
    assert main(["check", "cpu", "--set", base, "--set", "model.max_length=4096"]) == 2
    assert re.search(r"fail  .*(isolation|logits)", capsys.readouterr().out)


def test_real_rows(real_data, tokenizer, tmp_path):
    from medkit.data import sources

    records = sources.load("pubmedqa", "train", real_data, progress=False).records
    records += sources.load("medqa", "train", real_data, progress=False).records
    recipe = recipes.get("recommended", {"model.max_length": "20000"})  # one byte a token here
    assert not findings.failed(
        list(look(records, tokenizer, prepare(records, tokenizer, tmp_path, recipe), recipe).values())
    )


def test_show_raises_what_failed_in_one_line(capsys):
    checks = [Check("one", "pass", "fine"), Check("two", "fail", "it is broken", "fix it")]
    with pytest.raises(MedkitError, match=r"^two: it is broken; fix it$"):
        findings.show(checks)
    findings.show(checks[:1])
    assert "fine" in capsys.readouterr().out
    assert findings.text(checks).splitlines() == ["pass  one  fine", "fail  two  it is broken; fix it"]


def test_a_sample_stands_for_many_rows(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(row_checks, "SAMPLE", 10)
    records = exams(60)
    rows = prepare(records, tokenizer, tmp_path)
    checks = look(records, tokenizer, rows)
    assert "10 questions" in checks["same prompt in training and evaluation"].message
    assert f"{np.sum(rows['length']):,} in all" in checks["supervised tokens"].message


def test_questions_that_are_too_long_are_counted_with_the_way_out(tiny_llama, tokenizer, tmp_path):
    """A prompt takes what it takes and an answer 128 tokens; 10 of 40 prompts do not fit."""
    model, _ = tiny_llama
    items = exams()
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    lengths = sorted(len(prompts.prompt_ids(tokenizer, chat, item)) for item in items)
    for places, room in ((lengths[30] - 1 + 128, lengths[30] - 1 + 128 - lengths[-1]), (lengths[-1] - 1, 0)):
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": places}))
        changes = {"model.base": str(tmp_path), "model.max_length": str(places), "mcq.max_new_tokens": "128"}
        check = preflight._context(recipes.get("cpu", changes), tokenizer, items)
        assert check.status == "warn"
        too_long = sum(length + 128 > places for length in lengths)
        assert f"; {too_long} are too long and count as wrong" in check.message
        way_out = f"--set mcq.max_new_tokens={room}" if room else "take a model with a longer context"
        assert check.fix == way_out
