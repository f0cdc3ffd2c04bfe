"""Training on the tiny random Llama: what is learned from, in what order, and resumed bit for bit."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import chat_templates
import numpy as np
import pytest
import tiny_run
import torch
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.prompts import IGNORED
from medkit.recipes import LoraSpec, ModelSpec, TrainSpec
from medkit.train import adapters, checkpoints, cpu, fitting, models
from medkit.train.batches import collate_with_marks, row_order, subsample, trainer_rows, training_rows
from medkit.train.cpu import ROW_BY_ROW, padding_free, row_lengths, split_passes

# Everything of a line of loss.csv that does not depend on the clock or the machine.
SAME = ("step", "epoch", "tokens", "train_loss", "eval_loss", "learning_rate", "padding_share", "batch")


def lines(folder: Path) -> list[dict]:
    with (folder / "loss.csv").open(newline="", encoding="utf-8") as file:
        return [{name: line[name] for name in SAME} for line in csv.DictReader(file)]


def adapter(model) -> dict:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    models.unsloth()  # before transformers, as it asks
    return tiny_run.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory):
    """(folder, Fit, model) of a run of 10 steps that keeps every checkpoint: 3, 6, 9 and 10."""
    folder = tmp_path_factory.mktemp("unbroken") / "stage1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "prune", lambda *_: None)
        return folder, *tiny_run.train(folder, base)


def test_a_run_writes_a_line_a_step(unbroken):
    folder, done, _ = unbroken
    log = lines(folder)
    assert [int(line["step"]) for line in log] == list(range(11))  # step 0 is the evaluation before training
    assert [line["step"] for line in log if line["eval_loss"]] == [
        "0",
        "4",
        "8",
        "10",
    ]  # each 4, and the last
    # Warmup over 2 steps to 0.01, then linearly to 0 over the other 8.
    rates = [0, 0.005, 0.01, *(0.01 * (8 - i) / 8 for i in range(1, 8))]
    assert [float(line["learning_rate"]) for line in log[1:]] == pytest.approx(rates)
    assert (done.steps, done.samples, done.resumed_from) == (10, 40, 0)
    assert int(log[-1]["tokens"]) == done.tokens
    assert len({line["batch"] for line in log[1:]}) == 10


def assert_is_the_unbroken(ended: Path, resumed, again, unbroken) -> None:
    """Bit for bit: loss.csv, what the meter counted, and the adapter."""
    folder, done, model = unbroken
    assert (resumed.tokens, resumed.samples) == (done.tokens, done.samples)
    assert lines(ended) == lines(folder)
    want = adapter(model)
    assert all(torch.equal(value, want[name]) for name, value in adapter(again).items())


@pytest.mark.parametrize("step", [3, 6, 10])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(unbroken, base, tmp_path, step):
    folder, _, _ = unbroken
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if checkpoints.step_of(path) <= step:
            shutil.copytree(path, tmp_path / "checkpoints" / path.name)
    resumed, again = tiny_run.train(tmp_path, base, resume=True)
    assert resumed.resumed_from == step
    assert_is_the_unbroken(tmp_path, resumed, again, unbroken)


def test_a_checkpoint_is_read_as_data_and_never_as_code(unbroken, base, tmp_path, monkeypatch):
    shutil.copytree(unbroken[0] / "checkpoints" / "checkpoint-9", tmp_path / "checkpoints" / "checkpoint-9")
    inner, asked = torch.load, []

    def load(*args, weights_only=None, **kwargs):
        asked.append(weights_only)
        return inner(*args, weights_only=weights_only, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    resumed, _ = tiny_run.train(tmp_path, base, resume=True)
    assert resumed.resumed_from == 9
    assert len(asked) >= 3 and all(asked)  # optimizer, scheduler and random numbers


def test_packing_that_did_not_stay_on_is_refused(base, tmp_path, monkeypatch):
    """As on a GPU, where rows are packed: here Unsloth turns it off."""
    loaded, stage = tiny_run.model_and_rows(base), replace(tiny_run.STAGE, packing="isolated")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MedkitError, match="the libraries turned packing off"):
        fitting.fit(*loaded, stage, folder=tmp_path, max_length=tiny_run.MAX_LENGTH, progress=False)


def test_a_stage_of_max_steps_that_was_killed_after_its_last_checkpoint_trains_no_further(base, tmp_path):
    stage = replace(tiny_run.STAGE, max_steps=4)  # of the 10 that 40 rows would give
    first, _ = tiny_run.train(tmp_path, base, stage)
    log = lines(tmp_path)
    again, _ = tiny_run.train(tmp_path, base, stage, resume=True)
    assert (first.steps, again.steps, again.resumed_from) == (4, 4, 4)
    assert lines(tmp_path) == log


def at_step(monkeypatch, step: int, act) -> None:
    from transformers import Trainer

    inner = Trainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step - 1:
            act()
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)


def test_sigterm_saves_a_checkpoint_and_ends(unbroken, base, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(fitting.Stopped) as stopped:
        tiny_run.train(tmp_path, base)
    assert stopped.value.code == 143  # 128 + 15, as after the signal itself
    assert "checkpoint-5 is saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.undo()
    resumed, _ = tiny_run.train(tmp_path, base, resume=True)
    assert resumed.resumed_from == 5
    assert lines(tmp_path) == lines(unbroken[0])


def in_validation(monkeypatch, step: int, act) -> None:
    from transformers import Trainer

    inner = Trainer.evaluation_loop

    def evaluation_loop(self, *args, **kwargs):
        if self.state.global_step == step:
            act()
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "evaluation_loop", evaluation_loop)


@pytest.mark.parametrize("step", [4, 10])
def test_sigterm_cuts_a_validation_short_and_the_resumed_run_makes_up_for_it(
    unbroken, base, tmp_path, monkeypatch, step
):
    folder, _, _ = unbroken
    with monkeypatch.context() as patch:
        in_validation(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        for resume in (False, True):  # the second time in the validation that is made up for
            with pytest.raises(fitting.Stopped):
                tiny_run.train(tmp_path, base, resume=resume)
            last = lines(tmp_path / "checkpoints" / f"checkpoint-{step}")[-1]
            assert (last["step"], last["eval_loss"]) == (str(step), "")
            assert last["train_loss"] == lines(folder)[step]["train_loss"]
    resumed, again = tiny_run.train(tmp_path, base, resume=True)
    assert resumed.resumed_from == step
    assert_is_the_unbroken(tmp_path, resumed, again, unbroken)


def test_sigterm_in_the_validation_before_the_first_step_leaves_nothing(
    unbroken, base, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        in_validation(patch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(fitting.Stopped):
            tiny_run.train(tmp_path, base)
    assert "stopped by SIGTERM; no step was done yet" in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))
    again, _ = tiny_run.train(tmp_path, base, resume=True)
    assert again.resumed_from == 0
    assert lines(tmp_path) == lines(unbroken[0])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_out_of_memory_is_told_and_the_batch_is_left_alone(base, tmp_path, monkeypatch, error):
    def act():
        raise error

    at_step(monkeypatch, 2, act)
    with pytest.raises(
        MedkitError, match=r"out of memory at step 2: 2 rows of up to 1024 tokens.*halve batch_size"
    ):
        tiny_run.train(tmp_path, base)


def test_another_setting_is_refused_by_name(unbroken, base):
    folder, _, _ = unbroken
    other = replace(tiny_run.STAGE, learning_rate=2e-2)
    with pytest.raises(MedkitError, match=r"learning_rate=0\.01, this run has 0\.02"):
        tiny_run.train(folder, base, other, resume=True)


def test_processes_that_cannot_share_the_batch_are_refused(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MedkitError, match="3 processes cannot share accumulation=2 evenly"):
        tiny_run.train(tmp_path, base)


def test_the_adapter_of_a_4_bit_model_stays_in_float32(unbroken):
    """TRL casts it to bfloat16, where an update below 1/256 of a weight is lost."""
    _, _, model = unbroken
    assert model.get_base_model().is_loaded_in_4bit
    assert {str(weight.dtype) for weight in adapter(model).values()} == {"torch.float32"}


def test_a_saved_adapter_gives_the_same_logits(unbroken, base, tmp_path):
    _, _, model = unbroken
    fresh, tokenizer, _, _ = tiny_run.model_and_rows(base)
    ids = torch.arange(20).reshape(2, 10)

    def logits(net):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # the trainer left it on one of the two
            return net.eval()(input_ids=ids).logits.float()

    before = logits(fresh)
    models.save_adapter(model, tokenizer, tmp_path / "adapter")
    models.use_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh), logits(model))
    assert not torch.equal(logits(fresh), before)
    config = adapters.read_config(tmp_path / "adapter")
    assert (config.r, config.lora_alpha) == (tiny_run.LORA.r, tiny_run.LORA.alpha)
    assert config.target_modules == set(tiny_run.LORA.target_modules)
    names = {path.suffix for path in (tmp_path / "adapter").iterdir()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pth", ".pkl"}


def test_an_adapter_of_another_shape_is_refused(unbroken, base, tmp_path):
    from safetensors.torch import load_file, save_file

    _, _, model = unbroken
    fresh, tokenizer, _, _ = tiny_run.model_and_rows(base)
    models.save_adapter(model, tokenizer, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = load_file(weights)
    kept.pop(next(name for name in kept if "layers.1" in name))
    save_file(kept, weights)
    with pytest.raises(MedkitError, match="does not fit this model"):
        models.use_adapter(fresh, tmp_path / "adapter")
    weights.unlink()
    with pytest.raises(adapters.AdapterError, match="is not an adapter folder"):
        models.use_adapter(fresh, tmp_path / "adapter")


PAD = "<|pad|>"
SPARE = ["<|reserved_0|>", "<|my_pad|>"]


@pytest.mark.parametrize(
    ("pad", "specials", "rows", "chosen"),
    [
        (PAD, [], 261, PAD),  # a good one is kept: ids 0 to 255 are bytes, 256 to 260 special
        (None, [], 261, PAD),  # one of those known
        ("<|eot_id|>", [], 261, PAD),
        ("<|my_pad|>", SPARE, 261, PAD),  # its id, 262, is beyond the embeddings
        ("<|my_pad|>", SPARE, 263, "<|my_pad|>"),
        ("<|eot_id|>", SPARE, 258, "<|bos|>"),  # <|pad|> is 258: only BOS (256) is left that ends nothing
        ("<|eot_id|>", [], 256, "<|eot_id|>"),  # none; preflight refuses it for training
    ],
)
def test_pad_ends_nothing_and_is_one_of_the_embeddings(pad, specials, rows, chosen):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPARE} if specials else {})
    tokenizer.pad_token = pad
    models.set_pad_token(tokenizer, rows)
    assert tokenizer.pad_token == chosen


@pytest.mark.parametrize(
    ("family", "pad"),
    [
        ("llama-3.2", "<|finetune_right_pad_id|>"),
        ("mistral-v0.1", "<unk>"),
        ("mistral-v0.3", "<unk>"),
        ("qwen2.5", "<|endoftext|>"),
        ("phi-3", "<unk>"),
        ("phi-4", "<|endoftext|>"),
        ("olmo-2", "<|pad|>"),
        ("r1-distill", "<|vision_pad|>"),
    ],
)
def test_the_pad_token_of_public_models(family, pad):
    tokenizer = chat_templates.make(family)
    models.set_pad_token(tokenizer, len(tokenizer))
    assert tokenizer.pad_token == pad


def test_a_tokenizer_is_read_as_its_file_says(tmp_path, tiny_llama):
    """R1's models name a class for which Transformers 5 would build a tokenizer that loses spaces."""
    tiny_llama[0].save_pretrained(tmp_path)
    chat_templates.make("r1-distill").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"})
    )
    tokenizer = models.load_tokenizer(ModelSpec(base=str(tmp_path)))
    text = "It hurts, and  has done so.\n\n7 mg"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert models.context_length(ModelSpec(base=str(tmp_path))) == 4096


def test_loss_on_answer_learns_the_answers_and_their_end_only(base):
    _, tokenizer, answer, _ = tiny_run.model_and_rows(base)
    _, _, text, _ = tiny_run.model_and_rows(base, loss_on="text")
    end = tokenizer.eos_token_id
    for record, one, whole in zip(tiny_run.records(40), answer, text, strict=True):
        assert one["input_ids"] == whole["input_ids"]
        assert whole["labels"] == whole["input_ids"]  # every token, prompt included
        learned = [label for label in one["labels"] if label != IGNORED]
        # One token a byte, and the end of the turn.
        assert tokenizer.decode(learned[:-1]) == record.turns[1].text
        assert learned[-1] == end
        assert one["supervised"] == len(record.turns[1].text) + 1
        assert whole["supervised"] == whole["length"]


def test_trainable_parameters_of_llama_8b():
    """Per layer r (in + out) for q, k, v, o, gate, up, down:
    16 x (8192 + 5120 + 5120 + 8192 + 18432 + 18432 + 18432) = 1,310,720; 32 layers give 41,943,040."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    lora = LoraSpec()
    shape = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = get_peft_model(
            LlamaForCausalLM(shape), LoraConfig(r=lora.r, target_modules=list(lora.target_modules))
        )
    assert model.get_nb_trainable_parameters()[0] == 41_943_040


@given(
    lengths=st.lists(st.integers(1, 2048), min_size=1, max_size=400),
    batch=st.integers(1, 8),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    group=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_row_order_takes_every_row_once_an_epoch(lengths, batch, accumulation, epochs, seed, group):
    stage = TrainSpec(batch_size=batch, accumulation=accumulation, epochs=epochs, seed=seed)
    stage = replace(stage, packing="off", group_by_length=group)
    order = row_order(lengths, stage)
    assert len(order) == epochs * len(lengths)
    for epoch in np.split(order, epochs):
        assert sorted(epoch) == list(range(len(lengths)))
    assert (order == row_order(lengths, stage)).all()


def test_row_order_of_half_an_epoch():
    assert len(row_order([5] * 40, TrainSpec(epochs=0.5))) == 20


def test_grouping_by_length_lowers_the_padding_share():
    lengths = np.random.default_rng(0).integers(10, 500, 2000)
    stage = TrainSpec(batch_size=4, accumulation=1, packing="off")

    def padding(order):
        batches = lengths[order].reshape(-1, 4)
        return 1 - batches.sum() / (4 * batches.max(axis=1).sum())

    # Four draws from 10..500 have a mean of 255 and a longest of about 402: 37% padding.
    assert padding(row_order(lengths, stage)) == pytest.approx(0.37, abs=0.03)
    # Four draws from one of the buckets of 60, 255 the mean of all: the longest is 4/5 of 60 above the
    # bucket's start, the mean half; 18 of some 273 positions.
    assert padding(row_order(lengths, replace(stage, group_by_length=True))) == pytest.approx(0.066, abs=0.01)


def laid_end_to_end(lengths, begin=0) -> dict:
    """A batch as the collator makes it: row i holds the token i + 1, after up to `begin` zeros unlearnt."""
    ids = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths, 1)])[None]
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    begun = places < begin
    return {
        "input_ids": ids.where(~begun, 0),
        "labels": ids.where(~begun, IGNORED),
        "position_ids": places,
    }


@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=9),
    most=st.integers(0, 2000),
    begin=st.integers(0, 200),
    sharing=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_passes_hold_every_row_once_and_whole_within_the_budget(lengths, most, begin, sharing):
    batch = laid_end_to_end(lengths, begin)
    parts = split_passes(batch, most, sharing)
    ids, labels, shared = [], [], set()
    for part in parts:
        rows = row_lengths(part["position_ids"])
        assert not most or part["input_ids"].numel() <= most or len(rows) == 1
        first, *others = part["input_ids"][0].split(rows)
        places = part["position_ids"][0].split(rows)
        shared |= {place[0].item() for place in places[1:]}
        ids += [first, *(torch.cat([first[: p[0]], row]) for row, p in zip(others, places[1:], strict=True))]
        labels += part["labels"][0].tolist()
    assert torch.equal(torch.cat(ids)[None], batch["input_ids"])
    assert [n for n in labels if n != IGNORED] == [n for n in batch["labels"][0].tolist() if n != IGNORED]
    # The last token of the beginning predicts each row's own: it is not shared. Nor is a row's last token.
    same = max(0, min(begin, *lengths) - 1) if sharing else 0
    assert shared <= {same}
    if most == 0:
        assert len(parts) == 1 and parts[0]["input_ids"].numel() == sum(lengths) - same * (len(lengths) - 1)


def test_passes_of_four_rows():
    # 180 + 400 = 580; + 170 = 750; + 380 would be 1,130 > 768
    parts = split_passes(laid_end_to_end([180, 400, 170, 380]), 768, share_prefix=False)
    assert [row_lengths(part["position_ids"]) for part in parts] == [[180, 400, 170], [380]]


def test_four_rows_share_what_they_begin_with():
    """81 tokens that none learns, of which the last predicts each row's own: 80 are shared. A pass of 768
    holds 180 + (400 - 80) + (170 - 80) = 590, and no 300 more; the next begins with a whole row."""
    batch = laid_end_to_end([180, 400, 170, 380], begin=81)
    parts = split_passes(batch, 768, share_prefix=True)
    assert [row_lengths(part["position_ids"]) for part in parts] == [[180, 320, 90], [380]]
    assert [part["position_ids"][0, n].item() for part, n in ((parts[0], 180), (parts[1], 0))] == [80, 0]


@pytest.mark.parametrize("fused_from", [1, 512])
def test_rows_that_share_their_beginning_give_the_losses_and_gradients_of_rows_alone(
    base, monkeypatch, fused_from
):
    """Three rows of 9 common tokens and 11, 3 and 24 of their own, which they learn from the second on, in
    float32. One pass computes 9 + 11 + 3 + 24 = 47 tokens instead of 65; by either kind of attention."""
    monkeypatch.setattr(cpu, "FUSED_FROM", fused_from)
    model, tokenizer, *_ = tiny_run.model_and_rows(base, four_bit=False)
    model.float().train()
    for name, weight in model.named_parameters():  # B begins as zero, and A would get no gradient
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.manual_seed(1))
    tokens = torch.arange(3, len(tokenizer))
    rows = [torch.cat([tokens[:9], tokens[9 + n : 9 + n + n]]) for n in (11, 3, 24)]
    learnt = [torch.cat([torch.full((10,), IGNORED), row[10:]]) for row in rows]

    def gradient(pieces):
        model.zero_grad()
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=ids[None], **more).logits[0, :-1], labels[1:], reduction="sum"
            )
            for ids, labels, more in pieces
        ]
        sum(losses).backward()
        grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        return sum(losses).item(), grad

    loss, expected = gradient((ids, labels, {}) for ids, labels in zip(rows, learnt, strict=True))
    batch = {
        "input_ids": torch.cat(rows)[None],
        "labels": torch.cat(learnt)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
    }
    (part,) = split_passes(batch, 0, share_prefix=True)
    assert part["input_ids"].numel() == 47
    with padding_free(model):
        places = {"position_ids": part["position_ids"]}
        together, found = gradient([(part["input_ids"][0], part["labels"][0], places)])
    assert together == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert expected.abs().max() > 0.01  # else nothing was compared


def test_rows_end_to_end_give_the_losses_and_gradients_of_rows_alone(base):
    """Three rows of 20, 7 and 31 tokens, in float32: every logit, and the gradient of their summed loss."""
    model, tokenizer, *_ = tiny_run.model_and_rows(base, four_bit=False)
    rows = [torch.randint(3, len(tokenizer), (1, n), generator=torch.manual_seed(n)) for n in (20, 7, 31)]
    model.float().train()

    def gradient(logits) -> torch.Tensor:
        losses = (
            torch.nn.functional.cross_entropy(one[0, :-1], row[0, 1:], reduction="sum")
            for one, row in zip(logits, rows, strict=True)
        )
        model.zero_grad()
        sum(losses).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    for name, weight in model.named_parameters():  # B begins as zero, and A would get no gradient
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.manual_seed(1))
    alone = [model(input_ids=row).logits for row in rows]
    expected = gradient(alone)
    places = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with padding_free(model):
        assert model.get_base_model().config._attn_implementation == ROW_BY_ROW
        laid = model(input_ids=torch.cat(rows, dim=1), position_ids=places).logits
        together = laid.split([20, 7, 31], dim=1)
        found = gradient(together)
    assert model.get_base_model().config._attn_implementation != ROW_BY_ROW
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)  # sums in another order
    assert expected.abs().max() > 0.01  # else nothing was compared


def test_every_4_bit_layer_of_a_loaded_model_computes_unpacked(base):
    """Seven linear modules in each of two layers."""
    model, *_ = tiny_run.model_and_rows(base)
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14 and all("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_an_unpacked_layer_computes_what_bitsandbytes_computes(computed, given):
    """Output and gradient, in whatever dtype the input comes."""
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False, compute_dtype=computed, quant_type="nf4").to("cpu")
    x = torch.randn(2, 5, 64).to(given)

    def passed() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.float().square().sum().backward()
        return out, leaf.grad

    theirs = passed()
    cpu.compute_unpacked(layer)
    ours = passed()
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype == given
        assert torch.equal(one, other)


def test_4_bit_weights_of_more_than_a_gigabyte_stay_packed(base, monkeypatch):
    monkeypatch.setattr(cpu, "UNPACKED_GB", 1e-6)
    model, *_ = tiny_run.model_and_rows(base)
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert layers and not any("forward" in vars(layer) for layer in layers)


def test_lora_in_one_product_is_pefts_sum_and_the_base_where_it_is_switched_off(base):
    model, tokenizer, *_ = tiny_run.model_and_rows(base, four_bit=False)
    model.float().eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.manual_seed(1))
    ids = torch.randint(3, len(tokenizer), (2, 9), generator=torch.manual_seed(2))

    @torch.no_grad()
    def logits() -> tuple[torch.Tensor, torch.Tensor]:
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            return adapted, model(input_ids=ids).logits

    theirs = logits()
    with cpu.fused_lora(model):
        with cpu.fused_lora(model):  # a check of a model while it answers
            pass
        ours = logits()
    assert torch.equal(logits()[0], theirs[0])  # PEFT's own again
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*ours, atol=0.1)


def test_a_model_with_a_window_keeps_transformers_own_attention(base):
    """Its layers do not attend to all tokens before, which row_by_row would have them do."""
    model, *_ = tiny_run.model_and_rows(base, four_bit=False)
    model.get_base_model().config.sliding_window = 4
    with padding_free(model):
        assert model.get_base_model().config._attn_implementation == "eager"


def test_an_update_in_several_passes_is_the_same_update(base, tmp_path, unbroken):
    """10 tokens hold no two rows: every row is a pass of its own, in float32 products of another shape."""
    divided, _ = tiny_run.train(tmp_path, base, replace(tiny_run.STAGE, micro_batch_tokens=10))
    assert divided.padding_share == 0 < divided.padding_share_padded
    for ours, theirs in zip(lines(tmp_path), lines(unbroken[0]), strict=True):
        for name in ("step", "tokens", "learning_rate", "batch"):
            assert ours[name] == theirs[name]
        for name in ("train_loss", "eval_loss"):
            assert bool(ours[name]) == bool(theirs[name])
            if ours[name]:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=5e-3)


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    most=st.integers(32, 128),
    seed=st.integers(0, 9),
)
@settings(max_examples=15, deadline=None)
def test_wrapped_rows_hold_every_sample_once(lengths, most, seed):
    """A sample that is cut counts in the row of its last token; no token is lost."""
    from datasets import Dataset

    rows = Dataset.from_dict({name: [[n] * n for n in lengths] for name in ("input_ids", "labels")})
    rows = rows.add_column("length", lengths)
    stage = TrainSpec(packing="wrapped", loss_on="text", seed=seed)
    packed = training_rows(rows, stage, most, packed=True)
    assert sum(packed["samples"]) == len(lengths)
    assert sum(map(len, packed["input_ids"])) == sum(lengths)
    assert set(packed.column_names) == {"input_ids", "labels", "samples"}


def test_the_samples_of_wrapped_rows_reach_the_meter_and_not_the_model(base):
    """Samples of 30, 50, 20, 100 and 7 tokens in rows of 64: 207 tokens in 64 + 64 + 64 + 15. The first row
    holds the end of one, the second the ends of two (80 and 100), the third none (the fourth sample ends at
    200), the last two."""
    from datasets import Dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from medkit.train.metrics import Meter

    ids = [[n] * n for n in (30, 50, 20, 100, 7)]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    packed = trainer_rows(rows, TrainSpec(packing="wrapped", loss_on="text"), 64, packed=True)
    assert [len(row) for row in packed["input_ids"]] == [64, 64, 64, 15]
    assert list(packed["samples"]) == [1, 2, 0, 2]
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    collator.torch_call = collate_with_marks(collator.torch_call)
    model, *_ = tiny_run.model_and_rows(base)
    meter = Meter(model)
    for pair in ([0, 1], [2, 3]):
        batch = collator([packed[i] for i in pair])
        meter.count(batch)
        assert "samples" not in batch
    line = meter.end_step()
    assert (line["tokens"], meter.total["samples"]) == (207, 5)  # and not 4, the rows
    assert line["samples_per_s"] == pytest.approx(5 / meter.total["seconds"], rel=0.01)
    meter.begin_step()
    meter.count(collator([{"input_ids": ids[0], "labels": ids[0]}]))  # of a row without the count, itself
    meter.end_step()
    assert meter.total["samples"] == 6


def test_a_subsample_is_drawn_by_seed():
    from datasets import Dataset

    rows = Dataset.from_dict({"n": list(range(100))})
    drawn = subsample(rows, 10, seed=3)["n"]
    assert len(set(drawn)) == 10
    assert list(drawn) == sorted(drawn)
    assert list(drawn) == list(subsample(rows, 10, seed=3)["n"])
    assert list(drawn) != list(subsample(rows, 10, seed=4)["n"])
    assert len(subsample(rows, 0, 3)) == len(subsample(rows, 500, 3)) == 100


def test_a_loss_that_is_no_number_ends_the_run(base, tmp_path):
    from medkit.train.trainer import StepLog

    log = StepLog(tmp_path / "loss.csv", False, None, None, "")
    state = SimpleNamespace(is_world_process_zero=True, global_step=4)
    with pytest.raises(MedkitError, match="the loss of step 4 is nan"):
        log.on_log(None, state, None, {"loss": float("nan")})


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(MedkitError, match=r"is not a model folder \(no config.json\)"):
        models.base_folder(str(tmp_path))


def test_float32_takes_half_as_many_tokens_at_once(base):
    from medkit.train.cpu import tokens_per_pass

    model, *_ = tiny_run.model_and_rows(base, four_bit=False)
    assert tokens_per_pass(model.float(), 1536) == 768 and tokens_per_pass(model.bfloat16(), 1536) == 1536
    assert tokens_per_pass(model.float(), 0) == 0
