"""Tiny models of several families with their family's template and kind of tokenizer: each passes `check`,
answers by letter and in words, and trains on rows that begin as it is asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chat_templates
import pytest
import torch

from medkit import prompts, recipes
from medkit.__main__ import main
from medkit.evaluate import mcq
from medkit.evaluate.lineup import Active
from medkit.preflight import inputs
from medkit.records import MCQItem
from medkit.runs import run_json, storage

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
}  # fmt: skip
MODELS = {
    "qwen3": ("qwen3", {}),
    "gemma-2": ("gemma2", {"sliding_window": 64, "query_pre_attn_scalar": 8}),
    "mistral-v0.3": ("mistral", {"sliding_window": 64}),
    "phi-3": ("phi3", {"original_max_position_embeddings": 4096}),
    "r1-distill": ("llama", {}),
}


def write_model(name: str, place: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, more = MODELS[name]
    tokenizer = chat_templates.make(name)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **ids, **more, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).float().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp("model"))


def test_check_passes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path))
    options = (f"model.base={folder}", "model.max_length=4096", "mcq.max_new_tokens=16")
    code = main(["check", "cpu", *(word for one in options for word in ("--set", one))])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "pass  context" in said and "pass  stage2: same prompt" in said
    assert "pass  logits in a batch" in said and "pass  packed rows isolated" in said


def test_letters_and_words(folder, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "results"))
    settings = f"model.base={folder}; mcq.max_new_tokens=16"
    run = run_json.begin("results/families", "03_mcq_eval", "cpu", settings)
    inputs.check_chat(run.recipe, trains=True)
    from medkit.train import models

    tokenizer = models.load_tokenizer(run.recipe.model)
    active = Active("base", AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, "id")
    items = [MCQItem(str(i), "medqa", f"Case {i}?", ("a", "b", "c", "d"), "ABCD"[i % 4]) for i in range(5)]
    scored = mcq.score_letters(run, active, items)
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    for item, outcome in zip(items, scored.outcomes, strict=True):
        # The prompt as a training row has it, and the model's own logits there.
        (row,), (labels,) = prompts.training_ids(tokenizer, chat, [prompts.messages(item)])
        start = next(i for i, label in enumerate(labels) if label != prompts.IGNORED)
        with torch.no_grad():
            logits = active.model(torch.tensor([row[:start]])).logits[0, -1]
        letters = logits[prompts.letter_position(tokenizer, "letter")["letter_tokens"]].log_softmax(0)
        assert outcome.logprobs == pytest.approx(letters.tolist(), abs=2e-3)
    words = mcq.answer_in_words(run, active, items)
    assert len(words) == 5 and set(words["finish"]) <= {"stopped", "cut"}
    run.finish()


@pytest.mark.slow
def test_the_whole_study_of_each_family_by_its_folder_alone(tmp_path):
    """Notebooks 01 to 05 of recipe cpu with model.base=FOLDER, and sizes that end in seconds."""
    names = ["qwen3", "gemma-2", "mistral-v0.3", "phi-3"]
    bases = [f"{name}={write_model(name, tmp_path / 'models' / name)}" for name in names]
    own = {"MEDKIT_RESULTS": str(tmp_path / "results"), "MEDKIT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("one_process.py"), *bases]
    ended = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name in names:
        run = tmp_path / "results" / name
        info = json.loads((run / "run.json").read_text())
        assert info["status"] == "complete" and len(info["notebooks"]) == 6
        # 4 questions of each of 3 benchmarks by base, Med-Mix, Med-Nirvana and the control
        assert len((run / "mcq" / "items.csv").read_text().splitlines()) == 1 + 4 * 3 * 4
        assert {path.stem for path in (run / "tables").glob("table?.md")} == {
            f"table{i}" for i in range(1, 5)
        }


def test_a_run_keeps_its_date(tmp_path, monkeypatch):
    """Resumed after midnight, or by a later notebook, its prompts show the day on which it began."""
    from medkit import chat_template

    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    monkeypatch.setattr(chat_template, "_date", None)  # and what it is set to goes with this test
    tokenizer = chat_templates.make("llama-3.2")
    run = run_json.begin("results/dated", "01_stage1", "cpu")
    assert run.info["date"] == run_json.read(run.folder)["date"]
    storage.write_json(run.folder / "run.json", run.info | {"date": "2024-02-29"})
    chat_template.use_date("2026-01-01")
    again = run_json.begin("results/dated", "01_stage1", "cpu")
    assert again.info["date"] == "2024-02-29"
    form = prompts.ChatFormat.from_tokenizer(tokenizer)
    assert "Today Date: 29 Feb 2024" in form.text(
        prompts.messages(MCQItem("1", "medqa", "?", ("a",) * 4, "A"))
    )
    older = {key: value for key, value in again.info.items() if key != "date"}
    storage.write_json(run.folder / "run.json", older)  # of a run from before the field
    assert run_json.read(run.folder)["date"] == older["started"][:10]


REFUSING = "{{ raise_exception('tools\nonly') }}"


def test_a_template_that_cannot_be_used_is_refused_before_a_kernel_starts(
    folder, tmp_path, monkeypatch, capsys
):
    import json
    import shutil

    model = shutil.copytree(folder, tmp_path / "model")
    for place in (model / "chat_template.jinja", model / "tokenizer_config.json"):
        if place.name.endswith("jinja"):
            place.write_text(REFUSING)
        elif "chat_template" in (config := json.loads(place.read_text())):
            place.write_text(json.dumps(config | {"chat_template": REFUSING}))
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "results"))
    for command in (["mcq", str(model)], ["run", "cpu", "--set", f"model.base={model}"]):
        assert main([*command, "--set", "data.origin=builtin"] if command[0] == "mcq" else command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "the chat template refuses a conversation of" in said
        assert "(tools)" in said
    assert not (tmp_path / "results").exists()
    assert main(["check", "cpu", "--set", f"model.base={model}"]) == 2
    out = capsys.readouterr().out
    assert "fail  rows " in out and "the chat template refuses a conversation of" in out, out
    recipe = recipes.get("cpu", {"model.base": str(model)})
    with pytest.raises(prompts.PromptError):
        inputs.check_chat(recipe, trains=False)
