"""The trainer behind training.fit: TRL's SFTTrainer with whole checkpoints, a meter and loss.csv."""

import csv
import hashlib
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np

from medkit import MedkitError, checkpoints
from medkit.recipes import TrainSpec

# Dense bf16 FLOP/s by the vendors' data sheets, for MFU; a device that is not listed gets none.
PEAK_FLOPS = {"H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
COLUMNS = ["step", "epoch", "tokens", "train_loss", "eval_loss", "learning_rate"]
COLUMNS += ["tokens_per_s", "padding_share", "peak_memory_gb", "batch", "eval_seconds"]


class TrainerError(MedkitError):
    """Settings the libraries did not keep, or a loss that is no number."""


def row_order(lengths, stage: TrainSpec, group: bool) -> np.ndarray:
    """The order in which rows are trained on, all epochs after one another, from the stage's seed alone.

    `group`: rows of like length share a batch (sorted within random blocks of 50 batches, batches then
    shuffled). Drawn up front rather than by a sampler, so that a resumed run has nothing to restore.
    """
    lengths, rng = np.asarray(lengths), np.random.default_rng(stage.seed)
    batch = stage.batch_size * stage.accumulation
    epochs = []
    for _ in range(int(np.ceil(stage.epochs))):
        order = rng.permutation(len(lengths))
        if group:
            blocks = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
            order = np.concatenate([block[np.argsort(-lengths[block], kind="stable")] for block in blocks])
            whole = len(order) // batch * batch  # a short last batch stays last
            order = np.concatenate([rng.permutation(order[:whole].reshape(-1, batch)).ravel(), order[whole:]])
        epochs.append(order)
    return np.concatenate(epochs)[: round(stage.epochs * len(lengths))]


def as_read(dataset, stage: TrainSpec, max_length: int, packed: bool):
    """The dataset as the trainer reads it: ids and labels, packed into rows of `max_length` where asked."""
    rows = dataset.select_columns(["input_ids", "labels"])
    if not packed:
        return rows
    from trl import pack_dataset

    return pack_dataset(rows, max_length, {"isolated": "bfd", "wrapped": "wrapped"}[stage.packing])


def training_rows(dataset, stage: TrainSpec, max_length: int, packed: bool):
    """The training rows in the order of `row_order`; packed rows are shuffled once more, since best-fit
    packing leaves the long samples first."""
    rows = as_read(dataset.select(row_order(dataset["length"], stage, not packed)), stage, max_length, packed)
    return rows.select(np.random.default_rng(stage.seed).permutation(len(rows))) if packed else rows


def subsample(dataset, rows: int, seed: int):
    """`rows` rows drawn by seed, in the dataset's order; 0 or more than there are gives all."""
    if rows == 0 or rows >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).choice(len(dataset), rows, replace=False)))


def flops_per_token(model) -> float:
    """Floating-point operations a trained token needs with frozen weights: 2 a weight forward, 2 backward
    to the activations, 6 a LoRA weight; attention's own products and any recomputation are left out."""
    c = model.config
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    attention = c.hidden_size * head * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    body = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 4.0 * (body + c.vocab_size * c.hidden_size) + 6.0 * lora


class Meter:
    """Counts what each optimizer step computed, and the wall time it took, evaluation left out."""

    def __init__(self, model):
        self.flops = flops_per_token(model)
        self.tokens, self.positions, self.samples, self.seconds = 0, 0, 0, 0.0
        self.begin_step()

    def begin_step(self) -> None:
        self.began, self.before, self.digest = (
            time.perf_counter(),
            (self.tokens, self.positions),
            hashlib.sha256(),
        )

    def count(self, inputs) -> None:
        """One forward pass; packed rows carry no padding and so no mask."""
        ids, mask, lengths = (
            inputs["input_ids"],
            inputs.get("attention_mask"),
            inputs.get("packed_seq_lengths"),
        )
        self.tokens += ids.numel() if mask is None else int(mask.sum())
        self.positions += ids.numel()
        self.samples += len(ids) if lengths is None else len(lengths)
        self.digest.update(ids.cpu().numpy().tobytes())

    def end_step(self) -> dict:
        """What the step just done adds to its line of loss.csv."""
        seconds = time.perf_counter() - self.began
        self.seconds += seconds
        tokens, positions = self.tokens - self.before[0], self.positions - self.before[1]
        return {
            "tokens": self.tokens,
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
            "padding_share": round(1 - tokens / max(positions, 1), 4),
            "peak_memory_gb": peak_memory_gb(),
            "batch": self.digest.hexdigest()[:12],
        }

    def totals(self) -> dict:
        peak = peak_flops()
        speed = self.tokens / max(self.seconds, 1e-9)
        return {
            "tokens": self.tokens,
            "samples": self.samples,
            "tokens_per_s": speed,
            "samples_per_s": self.samples / max(self.seconds, 1e-9),
            "padding_share": 1 - self.tokens / max(self.positions, 1),
            "peak_memory_gb": peak_memory_gb(),
            "mfu": speed * self.flops / peak if peak else None,
        }


def peak_memory_gb() -> float:
    """Of the GPU where there is one, else of this process, in 10^9 bytes."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def peak_flops() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)


class LossLog:
    """loss.csv, a line a step, and the progress bar."""

    def __init__(self, path: Path, progress: bool):
        self.path, self.progress, self.line, self.bar = path, progress, None, None
        self.measured = {}  # of the step just done, from the meter

    def begin(self, step: int, steps: int) -> None:
        """Keep the lines up to `step`, from which training goes on, and no later ones."""
        from tqdm.auto import tqdm

        kept = []
        if step and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = [line for line in csv.DictReader(file) if int(line["step"]) <= step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self.bar = tqdm(total=steps, initial=step, desc="training", unit="step", disable=not self.progress)

    def add(self, step: int, logs: dict) -> None:
        """Training and evaluation report separately: a line is written when the next step's begins."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise TrainerError(f"the loss of step {step} is {logs['loss']}; lower the learning rate")
            self._write()
            self.line = {"step": step, "epoch": logs["epoch"], "train_loss": logs["loss"]}
            self.line |= {"learning_rate": logs["learning_rate"], **self.measured}
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", tokens_per_s=f"{self.line['tokens_per_s']:.0f}")
            self.bar.update(step - self.bar.n)
        elif "eval_loss" in logs:
            self.line = self.line or {"step": step, "epoch": logs.get("epoch", 0), "tokens": 0}
            self.line |= {"eval_loss": logs["eval_loss"], "eval_seconds": logs["eval_runtime"]}

    def end(self) -> None:
        self._write()
        self.bar.close()

    def _write(self) -> None:
        if self.line:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow(self.line)
        self.line = None


def make_trainer(
    model, tokenizer, train, validation, stage: TrainSpec, folder: Path, max_length: int, identity, progress
):
    """(trainer, meter) for one stage. Raises TrainerError where packing did not stay on."""
    import torch
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    packed = gpu and stage.packing != "off"
    meter = Meter(model)
    saved = folder / "checkpoints"

    class Trainer(SFTTrainer):
        def training_step(self, net, inputs, *args, **kwargs):
            meter.count(inputs)
            return super().training_step(net, inputs, *args, **kwargs)

        def _get_output_dir(self, trial):
            return str(saved / ".writing")

        def _save_checkpoint(self, net, trial):
            super()._save_checkpoint(net, trial)
            name = f"checkpoint-{self.state.global_step}"
            if self.args.should_save:
                checkpoints.publish(saved / ".writing" / name, saved / name, identity)
                checkpoints.keep(saved, 2)
            self.accelerator.wait_for_everyone()

        def create_model_card(self, *args, **kwargs):
            """None: its text carries paths of the machine."""

    log = LossLog(folder / "loss.csv", progress)

    class Log(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                log.begin(state.global_step, state.max_steps)

        def on_step_begin(self, args, state, control, **kwargs):
            meter.begin_step()

        def on_step_end(self, args, state, control, **kwargs):
            if gpu:
                torch.cuda.synchronize()
            log.measured = meter.end_step()
            control.should_evaluate |= state.global_step >= state.max_steps

        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.is_world_process_zero:
                log.add(state.global_step, logs)

        def on_train_end(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                log.end()

    config = SFTConfig(
        output_dir=str(saved / ".writing"),
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulation,
        num_train_epochs=1,  # row_order has laid the epochs after one another
        max_steps=stage.max_steps or -1,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.scheduler,
        warmup_steps=stage.warmup_steps,
        weight_decay=stage.weight_decay,
        optim=stage.optimizer,
        seed=stage.seed,
        data_seed=stage.seed,
        train_sampling_strategy="sequential",
        packing=packed,
        packing_strategy={"isolated": "bfd", "wrapped": "wrapped"}.get(stage.packing, "bfd"),
        max_length=max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=stage.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=stage.eval_every,
        eval_on_start=True,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=stage.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=0,
    )
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=training_rows(train, stage, max_length, packed),
        eval_dataset=as_read(subsample(validation, stage.eval_rows, stage.seed), stage, max_length, packed),
        processing_class=tokenizer,
        callbacks=[Log()],
    )
    trainer.remove_callback(PrinterCallback)
    if packed and not (trainer.args.packing and trainer.data_collator.padding_free):
        raise TrainerError("packing was asked for and the libraries turned it off; set packing=off")
    return trainer, meter
