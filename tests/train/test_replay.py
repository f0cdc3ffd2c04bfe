"""Replayed exam questions among consultations: weighed, validated apart, with stage 1's moments."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit import MedkitError, recipes
from medkit.prompts import IGNORED
from medkit.recipes import ModelSpec, TrainSpec
from medkit.records import MCQItem
from medkit.runs import loss
from medkit.train import batches, checkpoints, config, cpu, fitting, models, tokenization

STAGE = replace(tiny_run.STAGE, max_steps=4, eval_every=2, save_every=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    models.unsloth()
    return tiny_run.write_base(tmp_path_factory.mktemp("base"))


def questions(count: int) -> list[MCQItem]:
    options = ("rest", "water", "aspirin", "sleep")
    return [MCQItem(f"q{i}", "medqa", f"Case {i}?", options, "ABCD"[i % 4]) for i in range(count)]


def tokenized(base, tokenizer, records, loss_on="answer"):
    rows = tokenization.prepare(
        records,
        tokenizer,
        target="letter",
        loss_on=loss_on,
        max_length=tiny_run.MAX_LENGTH,
        cache=base / "cache" / str(os.getpid()),
        progress=False,
    )
    return tokenization.with_exams(rows, records)


def loaded(base, four_bit=True):
    model, tokenizer = models.load(
        ModelSpec(base=str(base), max_length=tiny_run.MAX_LENGTH, load_in_4bit=four_bit)
    )
    return models.attach_lora(model, tiny_run.LORA, seed=0), tokenizer


def fit(base, folder, stage=STAGE, *, marked=True, **more):
    """(Fit, model): 12 consultations and 4 questions, validated on 3 and 3."""
    model, tokenizer = loaded(base)
    rows = [
        tokenized(base, tokenizer, tiny_run.records(*talks) + questions(count))
        for talks, count in (((12, 0), 4), ((3, 1), 3))
    ]
    rows = rows if marked else [one.remove_columns("exam") for one in rows]
    done = fitting.fit(
        model,
        tokenizer,
        *rows,
        stage,
        folder=folder,
        max_length=tiny_run.MAX_LENGTH,
        progress=False,
        **more,
    )
    return done, model


def lines(folder) -> pd.DataFrame:
    """What does not depend on the clock or the machine."""
    rows = loss.read(folder.parent, folder.name)
    return rows[["step", "tokens", "train_loss", "eval_loss", *loss.BY_SOURCE, "batch"]]


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "stage2"
    return folder, *fit(base, folder)


def test_validation_by_source_leaves_every_other_number_as_it_is(unbroken, base, tmp_path):
    folder, _, _ = unbroken
    fit(base, tmp_path / "stage2", marked=False)
    ours, plain = lines(folder), lines(tmp_path / "stage2")
    assert plain[list(loss.BY_SOURCE)].isna().all(axis=None)
    names = ["step", "tokens", "train_loss", "batch"]
    pd.testing.assert_frame_equal(ours[names], plain[names], check_exact=True)
    np.testing.assert_allclose(ours["eval_loss"], plain["eval_loss"], rtol=1e-6)  # summed in another order
    validated = ours["eval_loss"].notna()
    assert (ours[list(loss.BY_SOURCE)].notna().all(axis=1) == validated).all() and validated.sum() == 3


def test_each_sources_loss_is_the_mean_over_its_supervised_tokens(unbroken, base):
    model, tokenizer = loaded(base)
    for records, name in ((tiny_run.records(3, 1), loss.BY_SOURCE[0]), (questions(3), loss.BY_SOURCE[1])):
        summed, tokens = 0.0, 0
        for row in tokenized(base, tokenizer, records):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=ids).logits[0].float()
            summed += torch.nn.functional.cross_entropy(
                logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum"
            ).item()
            tokens += (labels[1:] != IGNORED).sum().item()
        assert lines(unbroken[0])[name][0] == pytest.approx(summed / tokens, rel=5e-3)


def test_the_validation_loss_is_the_mean_over_all_supervised_tokens(unbroken, base):
    """Between those of the two sources, by their tokens: a mean over batches can lie above both."""
    _, tokenizer = loaded(base)
    dialogues, exams = (
        sum(
            sum(label != IGNORED for label in row["labels"][1:])
            for row in tokenized(base, tokenizer, records)
        )
        for records in (tiny_run.records(3, 1), questions(3))
    )
    for row in lines(unbroken[0]).dropna(subset="eval_loss").to_dict("records"):
        total = dialogues * row[loss.BY_SOURCE[0]] + exams * row[loss.BY_SOURCE[1]]
        assert row["eval_loss"] == pytest.approx(total / (dialogues + exams), rel=1e-4)


def test_sigterm_in_a_validation_by_source_is_made_up_for(unbroken, base, tmp_path, monkeypatch):
    from transformers import Trainer

    folder = tmp_path / "stage2"

    def evaluation_loop(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loop(self, *args, **kwargs)

    loop = Trainer.evaluation_loop
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluation_loop", evaluation_loop)
        with pytest.raises(fitting.Stopped):
            fit(base, folder)
    done, _ = fit(base, folder, resume=True)
    assert done.resumed_from == 2
    pd.testing.assert_frame_equal(lines(folder), lines(unbroken[0]), check_exact=True)


def test_rows_of_one_kind_are_not_told_by_source():
    rows = Dataset.from_dict({"exam": [1, 1]})
    assert not batches.is_mixed(rows) and not batches.is_mixed(rows.remove_columns("exam"))
    assert batches.is_mixed(Dataset.from_dict({"exam": [1, 0]}))
    assert batches.replay_weight(rows, 0.25, "answer") == 1


def test_the_weight_makes_the_replay_weigh_its_share():
    """300 and 100 tokens of consultations, 2 of each of 5 questions: 10 w / (10 w + 400) = 1/4, so that
    w = 400 / 30. With the loss on whole rows each row's first token is predicted by none: 398 / 15."""
    rows = Dataset.from_dict({"exam": [0, 0, 1, 1, 1, 1, 1], "supervised": [300, 100, 2, 2, 2, 2, 2]})
    assert batches.replay_weight(rows, 0.25, "answer") == pytest.approx(400 / 30)
    assert batches.replay_weight(rows, 0.25, "text") == pytest.approx(398 / 15)
    assert batches.replay_weight(rows, 0, "answer") == 1


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=30),
    packing=st.sampled_from(["isolated", "wrapped"]),
)
@settings(max_examples=15, deadline=None)
def test_packed_rows_keep_every_tokens_mark(lengths, packing):
    """An exam's tokens are odd numbers here, a consultation's even ones."""
    rows = Dataset.from_dict(
        {
            **{name: [[2 * i + exam] * n for i, (n, exam) in enumerate(lengths)] for name in ("input_ids",)},
            "labels": [[2 * i + exam] * n for i, (n, exam) in enumerate(lengths)],
            "exam": [int(exam) for _, exam in lengths],
            "length": [n for n, _ in lengths],
        }
    )
    stage = TrainSpec(packing=packing, loss_on="text")
    packed = batches.training_rows(rows, stage, 64, packed=True, exams=True)
    assert sum(map(len, packed["exams"])) == sum(n for n, _ in lengths)
    for row in packed:
        assert row["exams"] == [token % 2 for token in row["input_ids"]]


def test_a_padded_batch_has_a_mark_for_every_label():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [{"input_ids": [1, 2, 3], "exams": [1, 1, 1]}, {"input_ids": [4, 5], "exams": [0, 0]}]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    for free, marks in ((False, [[1, 1, 1], [0, 0, 0]]), (True, [[1, 1, 1, 0, 0]])):
        collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=free)
        batch = batches.collate_with_marks(collator.torch_call)(rows)
        assert batch["exams"].tolist() == marks and batch["exams"].shape == batch["labels"].shape


def gradient(base, folder, stage, share, weight=None, steps=1):
    """(summed loss, gradient) of the first optimizer steps, their batches and passes added up, in float32;
    the mean of several steps."""
    from medkit.train import trainer

    model, tokenizer = loaded(base, four_bit=False)
    model.float()
    for name, weights in model.named_parameters():
        if "lora_B" in name:  # which begins as zero, so that A would get no gradient
            torch.nn.init.normal_(weights, generator=torch.manual_seed(1))
    rows = tokenized(base, tokenizer, tiny_run.records(4, 0) + questions(4))
    plain = config.sft_config(stage, max_length=tiny_run.MAX_LENGTH)
    plain.bf16 = False
    made = config.for_fit(plain, stage, max_length=tiny_run.MAX_LENGTH, folder=folder)
    with trainer.Stop() as stop, cpu.training(model, stage.micro_batch_tokens) as engine:
        training = trainer.StageTrainer(
            model,
            made,
            tokenizer,
            rows,
            rows,
            stage,
            engine=engine,
            progress=False,
            identity={},
            checkpoint=None,
            stop=stop,
            replay_token_share=share,
        )
        training.replay_weight = weight or training.replay_weight
        loader, total = iter(training.get_train_dataloader()), 0
        for _ in range(steps):
            found, items = training.get_batch_samples(loader, stage.accumulation, made.device)
            training.current_gradient_accumulation_steps = stage.accumulation
            total += sum(training.training_step(model, batch, items) for batch in found)
    grad = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])
    return total.item() / steps, grad / steps, model, rows, training.replay_weight


def by_hand(model, rows, weight):
    """The weighted mean over all supervised tokens, row by row."""
    model.zero_grad()
    losses, weights = 0.0, 0.0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        own = weight if row["exam"] else 1.0
        logits = model(input_ids=ids).logits[0]
        losses = losses + own * torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum"
        )
        weights += own * (labels[1:] != IGNORED).sum().item()
    (losses / weights).backward()
    grad = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])
    return (losses / weights).item(), grad


def apart(one, other) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "micro_batch_tokens"), [(8, 1, 0), (2, 4, 0), (8, 1, 400), (4, 2, 1)]
)
def test_the_weighted_loss_is_the_weighted_mean_however_a_step_is_divided(
    base, tmp_path, batch_size, accumulation, micro_batch_tokens
):
    stage = replace(
        STAGE,
        batch_size=batch_size,
        accumulation=accumulation,
        micro_batch_tokens=micro_batch_tokens,
        max_steps=1,
    )
    found, grad, model, rows, weight = gradient(base, tmp_path, stage, 0.75)
    assert weight > 5  # else it would hardly be seen
    expected, wanted = by_hand(model, rows, weight)
    plain, unweighted = by_hand(model, rows, 1.0)
    assert found == pytest.approx(expected, rel=1e-5) and abs(plain - expected) > 8e-3
    assert apart(grad, wanted) < 1e-4 < 0.1 < apart(unweighted, wanted)
    if accumulation == 2:
        return
    ones, same, *_ = gradient(base, tmp_path, stage, 0.75, weight=1.0 + 1e-9)
    none, usual, *_ = gradient(base, tmp_path, stage, 0.0)
    assert ones == pytest.approx(none, rel=1e-6) and apart(same, usual) < 1e-4


@pytest.mark.parametrize("group_by_length", [False, True])
def test_the_share_holds_over_steps_of_one_kind(base, tmp_path, group_by_length):
    """Grouped by length, questions and consultations hardly meet in a step. Divided by its own weights, a
    step of questions would count like any other."""
    stage = replace(STAGE, batch_size=2, accumulation=1, group_by_length=group_by_length, max_steps=4)
    found, grad, model, rows, weight = gradient(base, tmp_path, stage, 0.75, steps=4)  # 8 rows, 2 a step
    expected, wanted = by_hand(model, rows, weight)
    assert found == pytest.approx(expected, rel=1e-5) and apart(grad, wanted) < 1e-4


def test_a_weighted_run_says_its_weight_and_trains_otherwise(unbroken, base, tmp_path):
    _, plain, _ = unbroken
    done, _ = fit(base, tmp_path / "stage2", replay_token_share=0.5)
    assert plain.replay_weight == 1 and done.replay_weight > 1
    ours, theirs = lines(tmp_path / "stage2"), lines(unbroken[0])
    assert (ours["tokens"] == theirs["tokens"]).all() and (ours["batch"][1:] == theirs["batch"][1:]).all()
    assert ours["eval_loss"][0] == theirs["eval_loss"][0]  # validation is not weighted
    assert ours["train_loss"][4] != theirs["train_loss"][4]


def test_another_loss_cannot_be_weighted(base, tmp_path):
    changed = config.sft_config(STAGE, max_length=tiny_run.MAX_LENGTH)
    changed.loss_type = "dft"
    with pytest.raises(MedkitError, match=r"requires the default loss; do not change config\.loss_type"):
        fit(base, tmp_path / "stage2", replay_token_share=0.5, config=changed)


@pytest.fixture
def at_first_step(monkeypatch):
    """The optimizer's state as the first step begins, the learning rate, and the file it was read from."""
    from transformers import Trainer

    seen, inner = {}, Trainer.training_step

    def training_step(self, *args, **kwargs):
        if not seen:
            seen["state"] = {
                i: {name: torch.as_tensor(value).clone() for name, value in state.items()}
                for i, state in self.optimizer.state_dict()["state"].items()
            }
            seen["rates"] = [group["lr"] for group in self.optimizer.param_groups]
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    return seen


def test_a_carried_optimizer_begins_with_the_moments_of_the_other_and_its_own_schedule(
    unbroken, base, tmp_path, at_first_step
):
    folder, done, _ = unbroken
    shutil.copytree(folder, tmp_path / "stage1")
    checkpoints.keep_optimizer(tmp_path / "stage1")
    file = tmp_path / "stage1" / "optimizer.pt"
    saved = torch.load(file, weights_only=True)["state"]
    stage = replace(STAGE, learning_rate=5e-3, warmup_steps=0)
    carried, _ = fit(base, tmp_path / "stage2", stage, optimizer_state=file)
    begun = at_first_step["state"]
    assert len(begun) == len(saved) == 28  # A and B of seven modules in two layers
    for i, state in saved.items():
        assert int(begun[i]["step"]) == done.steps == 4
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(begun[i][moment], state[moment]) and state[moment].abs().sum() > 0
    assert set(at_first_step["rates"]) == {5e-3} and carried.steps == 4


def test_a_resumed_run_goes_on_with_its_own_moments(unbroken, base, tmp_path):
    checkpoints.keep_optimizer(unbroken[0])
    file = unbroken[0] / "optimizer.pt"
    whole = tmp_path / "whole" / "stage2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "prune", lambda *_: None)
        fit(base, whole, optimizer_state=file)
    part = tmp_path / "part" / "stage2"
    shutil.copytree(whole / "checkpoints" / "checkpoint-2", part / "checkpoints" / "checkpoint-2")
    assert fit(base, part, optimizer_state=file, resume=True)[0].resumed_from == 2
    pd.testing.assert_frame_equal(lines(part), lines(whole), check_exact=True)


def test_the_moments_of_an_8bit_optimizer_are_carried_too(base, tmp_path):
    from bitsandbytes.optim import AdamW8bit

    from medkit.train import trainer

    def optimizer():
        weight = torch.nn.Parameter(torch.zeros(8192))  # smaller ones keep 32-bit moments
        return weight, AdamW8bit([weight], lr=1e-3)

    weight, first = optimizer()
    weight.grad = torch.linspace(-1, 1, 8192)
    first.step()
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    weight, second = optimizer()
    trainer.carry_over(second, tmp_path / "optimizer.pt")
    (ours,), (theirs,) = second.state.values(), first.state.values()
    assert ours["state1"].dtype == torch.uint8 and torch.equal(ours["state1"], theirs["state1"])
    assert int(ours["step"]) == 1


def test_another_adapters_moments_are_refused(unbroken, base, tmp_path):
    checkpoints.keep_optimizer(unbroken[0])
    saved = torch.load(unbroken[0] / "optimizer.pt", weights_only=True)
    other = tmp_path / "optimizer.pt"
    for spoiled in (
        saved | {"state": {i: state for i, state in saved["state"].items() if i}},
        saved | {"state": saved["state"] | {0: {"step": 1.0, "exp_avg": torch.zeros(3)}}},
    ):
        torch.save(spoiled, other)
        with pytest.raises(MedkitError, match="is the state of another adapter's optimizer"):
            fit(base, tmp_path / "stage2", optimizer_state=other)
    Path(other).write_bytes(b"PK\3\4 half a file")
    with pytest.raises(MedkitError, match=r"optimizer\.pt cannot be read .*; train stage 1 again"):
        fit(base, tmp_path / "stage2", optimizer_state=other)


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"dmt.optimizer_state": "carried", "dmt.handover": "merge"}, "set dmt.handover=continue"),
        (
            {"dmt.optimizer_state": "carried", "stage2.optimizer": "adamw_8bit"},
            "the same optimizer in both stages, not stage1.optimizer=adamw_torch and stage2.optimizer=adamw",
        ),
        ({"dmt.replay_token_share": "1"}, r"must lie in \[0, 1\)"),
        ({"dmt.replay_token_share": "-0.1"}, r"must lie in \[0, 1\)"),
        ({"dmt.optimizer_state": "kept"}, "must be one of fresh, carried"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_the_recipe(given, refused):
    with pytest.raises(recipes.RecipeError, match=refused):
        recipes.get("cpu", given)


def test_two_stages_may_have_another_optimizer_in_whatever_order_it_is_set():
    fields = {
        "dmt.optimizer_state": "carried",
        **{f"stage{n}.optimizer": "adamw_torch_fused" for n in (1, 2)},
    }
    for overrides in (fields, dict(reversed(fields.items()))):
        assert recipes.get("cpu", overrides).dmt.optimizer_state == "carried"


def test_exam_rows_are_marked_by_what_the_record_is(base):
    _, tokenizer = loaded(base)
    rows = tokenized(base, tokenizer, [*tiny_run.records(2), *questions(1), *tiny_run.records(1, 5)])
    assert list(rows["exam"]) == [0, 0, 1, 0]
    assert len(tokenization.key(rows)) == 32 and np.array(rows["supervised"]).all()


def test_the_weights_of_two_epochs_are_those_of_one(base, tmp_path):
    stage = replace(STAGE, batch_size=2, accumulation=1, epochs=2, max_steps=8)
    found, slope, model, rows, weight = gradient(base, tmp_path, stage, 0.75, steps=8)
    expected, wanted = by_hand(model, rows, weight)
    assert found == pytest.approx(expected, rel=1e-5) and apart(slope, wanted) < 1e-4
