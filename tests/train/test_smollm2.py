"""SmolLM2 and MiniLM from their wheels: whole folders, the right special tokens, upstream's tokens."""

import json

import pytest

from medkit import MedkitError
from medkit.train import smollm2

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        return smollm2.folder(tmp_path_factory.mktemp("cache"))
    except MedkitError as missing:
        pytest.skip(str(missing))


def test_second_call_uses_the_first_ones_folder(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.folder(folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing left aside


def test_model_answers_in_its_own_chat_format(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # as upstream's checkpoint
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token == "<|endoftext|>" != tokenizer.eos_token
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (1, 2, 0)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>")


def test_chat_template_is_upstreams(folder):
    """Rendered by hand from the published template: a default system turn, `\\n` after each turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    ) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tokens_are_upstreams(folder):
    """Digits one by one and, before them, a run of spaces whole: Transformers' GGUF reader errs here."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("in  2024 it isn't")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["in", "ĠĠ", "2", "0", "2", "4", "Ġit", "Ġisn", "'t"]
    assert tokenizer("<|im_end|>")["input_ids"] == [2]  # one special token, and no bos is put before it
    for text in ("café – 中 ▁ €🙂\n\n", "  A) 5.5 mg/dL"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_minilm_embeds(folder):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(smollm2.minilm_folder())
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)


def test_missing_wheel_is_one_line_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    for call in (lambda: smollm2.folder(tmp_path), smollm2.minilm_folder):
        with pytest.raises(MedkitError, match=r"^\w+ is not installed: pip install") as error:
            call()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_failed_conversion_leaves_nothing_behind(monkeypatch, tmp_path):
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "model.gguf").write_bytes(b"not a model")
    monkeypatch.setattr(smollm2, "_package_folder", lambda *_: tmp_path / "wheel")

    def fails(gguf_file, into):
        (into / "config.json").write_text("{}")
        raise RuntimeError("stopped half way")

    monkeypatch.setattr(smollm2, "_convert", fails)
    with pytest.raises(RuntimeError, match="half way"):
        smollm2.folder(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
