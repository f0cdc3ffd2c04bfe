"""TRL's SFTTrainer with whole checkpoints, a meter and loss.csv. Imports unsloth and trl: import it late."""

import contextlib
import json
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from medkit.prompts import IGNORED
from medkit.recipes import TrainSpec
from medkit.train import batches, checkpoints, cpu, models
from medkit.train.metrics import LossLog, Meter, TrainerError, any_process, last_line

models.unsloth()  # before transformers and trl, as it asks
from transformers import PrinterCallback, TrainerCallback, TrainerState  # noqa: E402
from trl import SFTTrainer  # noqa: E402


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


class StageTrainer(SFTTrainer):
    """One stage's training, to be started or resumed by `run`.

    engine: how the model computes; log: loss.csv; identity: what a checkpoint is marked with; start: the
    checkpoint to go on from, or None; stop: says that SIGTERM came. Raises TrainerError where packing was
    asked for and did not stay on.
    """

    def __init__(
        self,
        model,
        config,
        tokenizer,
        train,
        validation,
        stage: TrainSpec,
        *,
        engine: cpu.Engine,
        log: LossLog,
        identity: dict,
        start: Path | None,
        stop: Stop,
    ):
        self.stage, self.engine, self.meter, self.loss_log = stage, engine, Meter(model), log
        self.identity, self.start, self.stop = identity, start, stop
        self.saved = Path(config.output_dir).parent
        earlier = ""
        if start:
            self.meter.restore(json.loads((start / "meter.json").read_text()))
            earlier = (start / "loss.csv").read_text(encoding="utf-8")
        config.eval_on_start = self._unvalidated(earlier, config.eval_steps)
        # TRL casts a 4-bit model's adapter to bfloat16, which loses updates smaller than 1/256 of a weight,
        # and PEFT reads it back from a checkpoint as float32, so that a resumed run would differ from an
        # unbroken one. It stays in float32; the products are computed in bfloat16 all the same.
        adapter = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
        packed = cpu.packs() and stage.packing != "off"
        most = config.max_length
        batch = replace(
            stage,
            batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps * config.world_size,
        )
        held_out = batches.subsample(validation, stage.eval_rows, stage.seed)
        super().__init__(
            model=model,
            args=config,
            train_dataset=batches.training_rows(train, batch, most, packed),
            eval_dataset=batches.as_read(held_out, stage, most, packed),
            processing_class=tokenizer,
            callbacks=[StepLog(self, earlier)],
        )
        for weight, data in adapter:
            weight.data = data
        self.remove_callback(PrinterCallback)
        self._check_packing(packed)

    def _unvalidated(self, earlier: str, every: int) -> bool:
        """Whether validation comes before the next step: at the start, and where it was cut short."""
        if not self.start:
            return True
        due = checkpoints.finished(self.start) or checkpoints.step_of(self.start) % every == 0
        return due and not last_line(earlier)["eval_loss"]

    def _check_packing(self, packed: bool) -> None:
        # Unsloth may turn it off in the configuration already.
        if packed and not (self.args.packing and self.data_collator.padding_free):
            raise TrainerError("packing was asked for and the libraries turned it off; set packing=off")
        if packed:
            self.data_collator.torch_call = batches.with_samples(self.data_collator.torch_call)
        if self.engine.lays_rows_end_to_end:  # which Unsloth turned off
            self.data_collator.padding_free = True

    def run(self) -> None:
        """Train to the end, or to a checkpoint after SIGTERM. Raises TrainerError where memory ran out."""
        start = self.start
        try:
            if start and checkpoints.finished(start):  # the trainer would take one step more
                models.use_adapter(self.model, start)
                shutil.copy(start / "loss.csv", self.loss_log.path)
                if self.args.eval_on_start:
                    self._validate_last_step()
            else:
                self.train(resume_from_checkpoint=str(start) if start else None)
        except CutShort:
            pass  # in a validation before this process's first step: nothing is to be saved
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            rows = self.args.per_device_train_batch_size
            at_once, fix = self.engine.out_of_memory(rows, self.args.max_length)
            raise TrainerError(
                f"out of memory at step {self.state.global_step + 1}: {at_once} at once; {fix} (the same "
                "updates), or set gradient_checkpointing=true"
            ) from error

    def training_step(self, net, inputs, num_items_in_batch=None):
        """The loss is a sum over the optimizer step's supervised tokens, divided by their number, so that it
        adds up over the passes."""
        parts = self.engine.passes(self.meter.count(inputs))
        loss = 0
        for part in parts:
            last = part is parts[-1]  # the processes' gradients are exchanged once
            with contextlib.nullcontext() if last else self.accelerator.no_sync(net):
                loss += super().training_step(net, part, num_items_in_batch)
        return loss

    def evaluate(self, *args, **kwargs):
        """Ends with SIGTERM, as the whole of the paper's validation rows takes an hour and more. Before the
        first step there is nothing to save; after another one, the run that resumes validates it."""
        try:
            return super().evaluate(*args, **kwargs)
        except CutShort:
            self.stop.asked = True
            if not self.control.should_evaluate:
                raise
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _validate_last_step(self) -> None:
        """Of a training that was stopped while it validated its last step."""
        assert self.start is not None
        self.state = TrainerState.load_from_json(str(self.start / "trainer_state.json"))
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.evaluate()
        self.callback_handler.on_train_end(self.args, self.state, self.control)

    def prediction_step(self, net, inputs, *args, **kwargs):
        """The mean loss of a batch's supervised tokens."""
        inputs.pop("samples", None)
        if any_process(self.stop.asked):
            raise CutShort
        if not self.engine.lays_rows_end_to_end:
            return super().prediction_step(net, inputs, *args, **kwargs)
        parts = self.engine.passes(inputs)
        learnt = [(part["labels"] != IGNORED).sum() for part in parts]
        with torch.no_grad():
            means = [self.compute_loss(net, part) for part in parts]
        loss = sum(mean * count for mean, count in zip(means, learnt, strict=True))
        return loss / sum(learnt).clamp(min=1), None, None

    def _get_output_dir(self, trial):
        return self.args.output_dir

    def _save_checkpoint(self, net, trial):
        """Aside, all processes' parts; then the first one publishes it."""
        name = f"checkpoint-{self.state.global_step}"
        written = Path(self.args.output_dir) / name
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(net, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.loss_log.write()
                shutil.copy(self.loss_log.path, written / "loss.csv")
                (written / "meter.json").write_text(json.dumps(self.meter.state()))
                checkpoints.publish(written, self.saved / name, self.identity)
                checkpoints.keep(self.saved, self.state.global_step, 2)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            before = checkpoints.last_whole(self.saved)
            raise TrainerError(
                f"{name} could not be written ({_first_line(error)}); free space and resume"
                + (f" from {before.name}, which is still there" if before else "")
            ) from error
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args, **kwargs):
        """None: its text carries paths of the machine."""


class StepLog(TrainerCallback):
    """After each step: the meter's count, a line of loss.csv, and a checkpoint where SIGTERM asked for it."""

    def __init__(self, trainer: StageTrainer, earlier: str):
        """earlier: loss.csv as it was at the checkpoint that training goes on from."""
        self.meter, self.log, self.engine = trainer.meter, trainer.loss_log, trainer.engine
        self.stop, self.earlier = trainer.stop, earlier

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.log.begin(state.global_step, state.max_steps, self.earlier)

    def on_step_begin(self, args, state, control, **kwargs):
        self.meter.begin_step()

    def on_step_end(self, args, state, control, **kwargs):
        self.engine.wait()
        self.log.measured = self.meter.end_step()
        control.should_evaluate |= state.global_step >= state.max_steps
        if any_process(self.stop.asked):  # all of them have to end at the same step
            self.stop.asked = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self.log.add(state.global_step, logs)

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.log.end()


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
