"""The trainer behind models.fit: TRL's SFTTrainer with whole checkpoints, a meter and loss.csv."""

import contextlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np

from medkit.prompts import IGNORED
from medkit.recipes import TrainSpec
from medkit.train import checkpoints
from medkit.train.cpu import at_once, passes, shares
from medkit.train.metrics import LossLog, Meter, TrainerError, any_process, last_line

# Rows are sorted by length no finer than this many tokens: rows of just one length are of one kind, and
# questions of one kind have one answer.
LENGTH_STEP = 60


def row_order(lengths, stage: TrainSpec) -> np.ndarray:
    """The order in which rows are trained on, all epochs after one another, from the stage's seed alone.

    With `group_by_length` rows of like length share an optimizer step: sorted by length within random blocks
    of 50 steps, steps then shuffled. Drawn up front rather than by a sampler, so that a resumed run has
    nothing to restore.
    """
    lengths, rng = np.asarray(lengths), np.random.default_rng(stage.seed)
    batch = stage.batch_size * stage.accumulation
    epochs = []
    for _ in range(int(np.ceil(stage.epochs))):
        order = rng.permutation(len(lengths))
        if stage.group_by_length:
            blocks = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
            coarse = lengths // LENGTH_STEP
            order = np.concatenate([block[np.argsort(-coarse[block], kind="stable")] for block in blocks])
            whole = len(order) // batch * batch  # a short last batch stays last
            order = np.concatenate([rng.permutation(order[:whole].reshape(-1, batch)).ravel(), order[whole:]])
        epochs.append(order)
    return np.concatenate(epochs)[: round(stage.epochs * len(lengths))]


def as_read(dataset, stage: TrainSpec, max_length: int, packed: bool):
    """The dataset as the trainer reads it: ids and labels, packed into rows of `max_length` where asked.

    Wrapped rows have `samples` too: how many end in the row, as a cut one counts where its last token is.
    """
    rows = dataset.select_columns(["input_ids", "labels"])
    if not packed:
        return rows
    from datasets import Features, List, Value
    from trl import pack_dataset

    if stage.packing == "isolated":
        return pack_dataset(rows, max_length, "bfd")
    marked = Features(rows.features | {"ends": List(Value("int8"))})  # 1 at a sample's last token
    rows = rows.map(lambda row: {"ends": [0] * (len(row["labels"]) - 1) + [1]}, features=marked)
    rows = pack_dataset(rows, max_length, "wrapped")
    return rows.map(lambda row: {"samples": sum(row["ends"])}, remove_columns="ends")


def training_rows(dataset, stage: TrainSpec, max_length: int, packed: bool):
    """The training rows in the order of `row_order`; packed rows are shuffled once more, since best-fit
    packing leaves the long samples first."""
    rows = as_read(dataset.select(row_order(dataset["length"], stage)), stage, max_length, packed)
    return rows.select(np.random.default_rng(stage.seed).permutation(len(rows))) if packed else rows


def subsample(dataset, rows: int, seed: int):
    """`rows` rows drawn by seed, in the dataset's order; 0 or more than there are gives all."""
    if rows == 0 or rows >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).choice(len(dataset), rows, replace=False)))


def with_samples(collate):
    """`collate`, which makes a batch of rows, with how many samples the rows hold (as_read) in the batch."""
    import torch

    def collate_and_count(rows):
        batch = collate(rows)
        if "samples" in rows[0]:
            batch["samples"] = torch.tensor([sum(row["samples"] for row in rows)])
        return batch

    return collate_and_count


class CutShort(Exception):
    """SIGTERM came while the validation rows were computed."""


class Stop:
    """While it lasts, SIGTERM does not end the process but asks for a checkpoint, and an end after it."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._before = None
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_):
        self.asked = True


def make_trainer(
    model,
    tokenizer,
    train,
    validation,
    stage: TrainSpec,
    *,
    folder: Path,
    max_length: int,
    identity: dict | None,
    start: Path | None,
    stop: Stop,
    progress: bool,
):
    """(trainer, meter) for one stage, to be started from the checkpoint `start`.

    Raises TrainerError where packing did not stay on, or the processes cannot share the recipe's batch.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import PrinterCallback, TrainerCallback, TrainerState
    from trl import SFTConfig, SFTTrainer

    workers = int(os.environ.get("WORLD_SIZE", 1))  # as torchrun and accelerate launch tell it
    if stage.accumulation % workers:
        raise TrainerError(
            f"{workers} processes cannot share accumulation={stage.accumulation} evenly; start as many "
            "as divide it, or set batch_size and accumulation to another pair of the same product"
        )
    gpu = torch.cuda.is_available()
    packed = gpu and stage.packing != "off"
    most = at_once(model, stage.micro_batch_tokens)
    sharing = shares(model)
    meter = Meter(model)
    saved = folder / "checkpoints"
    log = LossLog(folder / "loss.csv", progress)
    earlier, unvalidated = "", True
    if start:
        meter.restore(json.loads((start / "meter.json").read_text()))
        earlier = (start / "loss.csv").read_text(encoding="utf-8")
        due = checkpoints.finished(start) or checkpoints.step_of(start) % stage.eval_every == 0
        unvalidated = due and not last_line(earlier)["eval_loss"]

    class Trainer(SFTTrainer):
        def training_step(self, net, inputs, num_items_in_batch=None):
            """The loss is a sum over the optimizer step's supervised tokens, divided by their number, so
            that it adds up over the passes."""
            parts = [inputs] if gpu else passes(inputs, most, sharing)
            meter.count(inputs)
            loss = 0
            for part in parts:
                last = part is parts[-1]  # the processes' gradients are exchanged once
                with contextlib.nullcontext() if last else self.accelerator.no_sync(net):
                    loss += super().training_step(net, part, num_items_in_batch)
            return loss

        def evaluate(self, *args, **kwargs):
            """Ends with SIGTERM, as the whole of the paper's validation rows takes an hour and more. Before
            the first step there is nothing to save; after another one, the run that resumes validates it."""
            try:
                return super().evaluate(*args, **kwargs)
            except CutShort:
                stop.asked = True
                if not self.control.should_evaluate:
                    raise
                self.control.should_save = self.control.should_training_stop = True
                return {}

        def validate_last_step(self):
            """Of a training that was stopped while it validated its last step."""
            self.state = TrainerState.load_from_json(str(start / "trainer_state.json"))
            self.callback_handler.on_train_begin(self.args, self.state, self.control)
            self.evaluate()
            self.callback_handler.on_train_end(self.args, self.state, self.control)

        def prediction_step(self, net, inputs, *args, **kwargs):
            """The mean loss of a batch's supervised tokens, on a CPU pass by pass."""
            inputs.pop("samples", None)
            if any_process(stop.asked):
                raise CutShort
            if gpu:
                return super().prediction_step(net, inputs, *args, **kwargs)
            parts = passes(inputs, most, sharing)
            learnt = [(part["labels"] != IGNORED).sum() for part in parts]
            with torch.no_grad():
                means = [self.compute_loss(net, part) for part in parts]
            loss = sum(mean * count for mean, count in zip(means, learnt, strict=True))
            return loss / sum(learnt).clamp(min=1), None, None

        def _get_output_dir(self, trial):
            return str(saved / ".writing")

        def _save_checkpoint(self, net, trial):
            """Aside, all processes' parts; then the first one publishes it."""
            name = f"checkpoint-{self.state.global_step}"
            written = saved / ".writing" / name
            if self.args.should_save:
                shutil.rmtree(written.parent, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            try:
                super()._save_checkpoint(net, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    log.write()
                    shutil.copy(log.path, written / "loss.csv")
                    (written / "meter.json").write_text(json.dumps(meter.state()))
                    checkpoints.publish(written, saved / name, identity)
                    checkpoints.keep(saved, self.state.global_step, 2)
            except (OSError, RuntimeError, SafetensorError) as error:
                shutil.rmtree(written.parent, ignore_errors=True)
                before = checkpoints.last_whole(saved)
                raise TrainerError(
                    f"{name} could not be written ({_first_line(error)}); free space and resume"
                    + (f" from {before.name}, which is still there" if before else "")
                ) from error
            self.accelerator.wait_for_everyone()

        def create_model_card(self, *args, **kwargs):
            """None: its text carries paths of the machine."""

    class Log(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                log.begin(state.global_step, state.max_steps, earlier)

        def on_step_begin(self, args, state, control, **kwargs):
            meter.begin_step()

        def on_step_end(self, args, state, control, **kwargs):
            if gpu:
                torch.cuda.synchronize()
            log.measured = meter.end_step()
            control.should_evaluate |= state.global_step >= state.max_steps
            if any_process(stop.asked):  # all of them have to end at the same step
                stop.asked = control.should_save = control.should_training_stop = True

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
        gradient_accumulation_steps=stage.accumulation // workers,
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
        eval_on_start=unvalidated,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=stage.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
    )
    if config.world_size != workers:
        raise TrainerError(f"WORLD_SIZE is {workers} and {config.world_size} processes train; unset it")
    # TRL casts a 4-bit model's adapter to bfloat16, which loses updates smaller than 1/256 of a weight, and
    # PEFT reads it back from a checkpoint as float32, so that a resumed run would differ from an unbroken
    # one. It stays in float32; the products are computed in bfloat16 all the same.
    adapter = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=training_rows(train, stage, max_length, packed),
        eval_dataset=as_read(subsample(validation, stage.eval_rows, stage.seed), stage, max_length, packed),
        processing_class=tokenizer,
        callbacks=[Log()],
    )
    for weight, data in adapter:
        weight.data = data
    trainer.remove_callback(PrinterCallback)
    if packed and not (trainer.args.packing and trainer.data_collator.padding_free):
        raise TrainerError("packing was asked for and the libraries turned it off; set packing=off")
    if packed:
        trainer.data_collator.torch_call = with_samples(trainer.data_collator.torch_call)
    if not gpu:  # Unsloth turned it off, for want of an attention that keeps rows apart (cpu_passes has it)
        trainer.data_collator.padding_free = True
    return trainer, meter


def _first_line(error: BaseException) -> str:
    """What the system says of the cause where it says anything, without the libraries' locations."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the machine's memory ran out; only the GPU's has an exception of its own."""
    import torch

    told = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(t in str(error) for t in told)
