"""TRL's SFTTrainer with atomic checkpoints, a meter and loss.csv. Imports unsloth and trl: import it late."""

import contextlib
import json
import math
import pickle
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm

from medkit import MedkitError, first_line
from medkit.prompts import IGNORED
from medkit.recipes import TrainSpec
from medkit.runs import loss, storage
from medkit.train import batches, checkpoints, cpu, models
from medkit.train.metrics import Meter, any_process

models.unsloth()  # must precede transformers and trl
from transformers import PrinterCallback, TrainerCallback, TrainerState  # noqa: E402
from trl import SFTTrainer  # noqa: E402

EIGHT_BIT = "__bnb_optimizer_quant_state__"  # of a parameter's saved state


class CutShort(Exception):
    """SIGTERM arrived during validation."""


class Stop:
    """A context in which SIGTERM requests a checkpoint and an orderly end of training."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._previous_handler = None
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._previous_handler = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_):
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _request(self, *_):
        self.requested = True


class StageTrainer(SFTTrainer):
    """Trains one stage; `run` starts or resumes it.

    engine: splits batches into passes; identity: saved in checkpoints; checkpoint: the checkpoint to resume
    from, or None; stop: whether SIGTERM has arrived; replay_token_share, optimizer_state: see fitting.fit.
    Raises MedkitError if the libraries turned packing off.
    """

    _signature_columns: list[str]  # defined by Trainer: the dataset columns to keep

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
        progress: bool,
        identity: dict,
        checkpoint: Path | None,
        stop: Stop,
        replay_token_share: float = 0.0,
        optimizer_state: Path | None = None,
    ):
        self.stage, self.engine, self.meter = stage, engine, Meter(model)
        self.identity, self.checkpoint, self.stop = identity, checkpoint, stop
        self.checkpoints_folder, self.optimizer_state = Path(config.output_dir).parent, optimizer_state
        self._weigh_replay(train, replay_token_share, config)
        earlier = ""
        if checkpoint:
            self.meter.total = json.loads((checkpoint / "meter.json").read_text())
            earlier = (checkpoint / "loss.csv").read_text(encoding="utf-8")
        loss_file = self.checkpoints_folder.with_name("loss.csv")
        self.loss_log = StepLog(loss_file, progress, self.meter, stop, earlier, stage.epochs)
        config.eval_on_start = self._validation_is_due(earlier, config.eval_steps)
        # TRL casts a 4-bit model's adapter to bfloat16, which loses updates smaller than 1/256 of a weight.
        # PEFT loads it from a checkpoint as float32, so a resumed run would also differ from an uninterrupted
        # one. Keep it in float32; the products are still computed in bfloat16.
        adapter = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
        packed = cpu.on_gpu() and stage.packing != "off"
        batch = replace(
            stage,
            batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps * config.world_size,
        )
        held_out = batches.subsample(validation, stage.eval_rows, stage.seed)
        super().__init__(
            model=model,
            args=config,
            train_dataset=batches.training_rows(
                train, batch, config.max_length, packed, self.replay_weight != 1
            ),
            eval_dataset=batches.trainer_rows(
                held_out, stage, config.max_length, packed, batches.is_mixed(held_out)
            ),
            processing_class=tokenizer,
            callbacks=[self.loss_log],
        )
        for weight, data in adapter:
            weight.data = data
        self.remove_callback(PrinterCallback)
        self._check_packing(packed)

    def _weigh_replay(self, train, share: float, config) -> None:
        """Set the loss weight of replayed tokens and what `_mean_weight` needs."""
        self.replay_weight = batches.replay_weight(train, share, self.stage.loss_on)
        if self.replay_weight == 1:
            return
        if config.loss_type != "nll" or config.label_smoothing_factor:
            raise MedkitError(
                "dmt.replay_token_share requires the default loss; do not change config.loss_type or "
                "config.label_smoothing_factor"
            )
        self.supervised_tokens = batches.supervised_tokens(train, self.stage.loss_on)

    def _validation_is_due(self, earlier: str, every: int) -> bool:
        """Whether to validate before the next step: at the start, and if SIGTERM interrupted a validation."""
        if not self.checkpoint:
            return True
        due = checkpoints.finished(self.checkpoint) or checkpoints.step_of(self.checkpoint) % every == 0
        return due and not loss.parse_last_row(earlier)["eval_loss"]

    def _check_packing(self, packed: bool) -> None:
        # Unsloth may have turned it off in the configuration.
        if packed and not (self.args.packing and self.data_collator.padding_free):
            raise MedkitError("the libraries turned packing off; set packing=off")
        self.data_collator.torch_call = batches.collate_with_marks(self.data_collator.torch_call)
        if self.engine.padding_free:  # Unsloth turned it off
            self.data_collator.padding_free = True

    def run(self) -> None:
        """Train to the end, or to a checkpoint after SIGTERM. Raises MedkitError if memory runs out."""
        checkpoint = self.checkpoint
        try:
            if checkpoint and checkpoints.finished(checkpoint):  # the trainer would do one more step
                models.use_adapter(self.model, checkpoint)
                shutil.copy(checkpoint / "loss.csv", self.loss_log.path)
                if self.args.eval_on_start:
                    self._validate_last_step()
            else:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except CutShort:
            pass  # during the validation before the first step, when there is nothing to save
        except (RuntimeError, MemoryError) as error:
            out_of_memory = any(text in str(error) for text in ("out of memory", "allocate memory"))
            if not (out_of_memory or isinstance(error, MemoryError | torch.OutOfMemoryError)):
                raise
            rows = self.args.per_device_train_batch_size
            pass_size, fix = self.engine.out_of_memory(rows, self.args.max_length)
            raise MedkitError(
                f"out of memory at step {self.state.global_step + 1}: {pass_size} per pass; {fix} (the same "
                "updates), or set gradient_checkpointing=true"
            ) from error

    def training_step(self, net, inputs, num_items_in_batch=None):
        """Sum the loss over the engine's passes. The sum is exact, because each pass's loss is divided by the
        supervised tokens of the whole optimizer step."""
        passes = self.engine.passes(self.meter.count(inputs))
        total = 0
        for batch in passes:
            is_last = batch is passes[-1]  # synchronize the processes' gradients only once
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(net):
                total += super().training_step(net, batch, num_items_in_batch)
        return total

    def get_batch_samples(self, *args, **kwargs):
        """An optimizer step's batches, and the divisor of its loss: the supervised tokens of all processes
        or, with weighted replay, `_mean_weight`."""
        step_batches, divisor = super().get_batch_samples(*args, **kwargs)
        if step_batches and "exams" in step_batches[0]:
            divisor = torch.tensor(self._mean_weight(), device=self.args.device)
        return step_batches, divisor

    def _mean_weight(self) -> float:
        """The mean over all optimizer steps of the sum of a step's loss weights.

        Divided by its own weights, a step of exam questions only would count as much as without weights.
        """
        others, replayed = self.supervised_tokens
        args = self.args
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        total = self.stage.epochs * (others + self.replay_weight * replayed)
        return total * rows / len(self.train_dataset)

    def _weights(self, batch) -> torch.Tensor:
        """The loss weights of the predicted tokens, all but the first: (rows, tokens - 1)."""
        return torch.where(batch["exams"][:, 1:], self.replay_weight, 1.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss; for batches with `exams`, the weighted sum of the token losses."""
        if "exams" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total = (self._weights(inputs) * self._token_losses(model, inputs)).sum()
        return total / num_items_in_batch * self.accelerator.num_processes  # gradients are averaged over them

    @staticmethod
    def _token_losses(model, batch) -> torch.Tensor:
        """The cross-entropy of each predicted token in float32, 0 for unsupervised ones: (rows, tokens - 1).
        Computed in chunks by TRL's fused head."""
        inputs = {name: value for name, value in batch.items() if name not in batches.MARKS}
        return -model(**inputs, use_cache=False, fused_lm_head=True).log_probs

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *batches.MARKS])]

    def evaluate(self, *args, **kwargs):
        """Validate. SIGTERM interrupts it, since the paper's validation rows take over an hour; the resumed
        run validates again. Before the first step there is nothing to save."""
        # Rows: consultations, exams. Columns: summed loss, tokens.
        self.by_source = torch.zeros(2, 2, device=self.args.device)
        try:
            return super().evaluate(*args, **kwargs)
        except CutShort:
            self.stop.requested = True
            if not self.control.should_evaluate:
                raise
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _validate_last_step(self) -> None:
        """Validate the last step of a training that was stopped during that validation."""
        assert self.checkpoint is not None
        self.state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.evaluate()
        self.callback_handler.on_train_end(self.args, self.state, self.control)

    def prediction_step(self, net, inputs, *args, **kwargs):
        """The mean loss of a batch's supervised tokens. Adds up the sums by source (batches without `exams`
        have one source)."""
        inputs.pop("samples", None)
        if any_process(self.stop.requested):
            raise CutShort
        before = self.by_source.sum(dim=0)
        for batch in self.engine.passes(self._prepare_inputs(inputs)):
            supervised = batch["labels"][:, 1:] != IGNORED
            with torch.no_grad(), self.compute_loss_context_manager():
                if "exams" in batch:
                    losses, exams = self._token_losses(net, batch), batch["exams"][:, 1:]
                    for source, mask in enumerate((supervised & ~exams, supervised & exams)):
                        self.by_source[source] += torch.stack([losses[mask].sum(), mask.sum()])
                else:
                    tokens = supervised.sum()
                    self.by_source[0] += torch.stack([self.compute_loss(net, batch) * tokens, tokens])
        total, tokens = self.by_source.sum(dim=0) - before
        return total / tokens.clamp(min=1), None, None

    def log(self, logs, start_time=None):
        """Replace the mean of the batches' validation losses by the mean over all supervised tokens, and add
        that of each source if there are two."""
        if "eval_loss" in logs:
            sums = self.accelerator.reduce(self.by_source, "sum").tolist()
            total, tokens = (sum(column) for column in zip(*sums, strict=True))
            logs["eval_loss"] = total / max(tokens, 1)
            if all(tokens for _, tokens in sums):
                pairs = zip(loss.BY_SOURCE, sums, strict=True)
                logs |= {name: total / tokens for name, (total, tokens) in pairs}
        super().log(logs, start_time)

    def create_optimizer(self, *args, **kwargs):
        """Start with the moments and step counts of `optimizer_state`, if given; learning rate and weight
        decay are this stage's."""
        super().create_optimizer(*args, **kwargs)
        if self.optimizer_state:
            carry_over(self.optimizer, self.optimizer_state)
        return self.optimizer

    def _get_output_dir(self, trial):
        return self.args.output_dir

    def _save_checkpoint(self, net, trial):
        """All processes write into a temporary folder; then the first one publishes it."""
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
                (written / "meter.json").write_text(json.dumps(self.meter.total))
                checkpoints.publish(written, self.checkpoints_folder / name, self.identity)
                checkpoints.prune(self.checkpoints_folder, self.state.global_step, 2)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            last = checkpoints.newest_complete(self.checkpoints_folder)
            reason = getattr(error, "strerror", None) or first_line(error)
            fix = "free space and resume" + (f" from {last.name}" if last else "")
            raise MedkitError(f"{name} could not be written ({reason}); {fix}") from error
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args, **kwargs):
        """Write no model card, since it would contain local paths."""


class StepLog(TrainerCallback):
    """Writes loss.csv, one line per step, shows the progress bar, and requests a checkpoint after SIGTERM."""

    def __init__(
        self, path: Path, progress: bool, meter: Meter, stop: Stop, earlier: str, epochs: float = 1.0
    ):
        """earlier: the content of loss.csv in the checkpoint to resume from, or ""."""
        self.path, self.progress, self.meter, self.stop = path, progress, meter, stop
        self.earlier, self.epochs = earlier, epochs
        self.row: dict = {}  # the last step's row, not yet written
        self.metrics: dict = {}  # the finished step's columns from the meter

    def on_train_begin(self, args, state, control, **kwargs):
        """Rewrite `earlier` except for its last row, since that step's validation may still follow."""
        if state.is_world_process_zero:
            written = self.earlier.splitlines(keepends=True)[:-1] or [",".join(loss.COLUMNS) + "\n"]
            storage.write_text(self.path, "".join(written))
            self.row = loss.parse_last_row(self.earlier) if self.earlier else {}
            steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step"}
            self.bar = tqdm(desc="training", disable=not self.progress, **steps)

    def on_step_begin(self, args, state, control, **kwargs):
        self.meter.begin_step()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # wait until the step is computed
        self.metrics = self.meter.end_step()
        control.should_evaluate |= state.global_step >= state.max_steps
        if any_process(self.stop.requested):  # all must stop at the same step
            self.stop.requested = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Collect a step's row, which training and evaluation log separately. It is written when the next
        begins."""
        step = state.global_step
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise MedkitError(f"the loss of step {step} is {logs['loss']}; lower the learning rate")
            self.write()
            epoch = logs["epoch"] * self.epochs  # the trainer takes all of them for one
            self.row = {"step": step, "epoch": epoch, "train_loss": logs["loss"]}
            self.row |= {"learning_rate": logs["learning_rate"], **self.metrics}
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", tokens_per_s=f"{self.row['tokens_per_s']:.0f}")
            self.bar.update(step - self.bar.n)
        elif "eval_loss" in logs:
            self.row = self.row or {"step": step, "epoch": logs.get("epoch", 0), "tokens": 0}
            self.row |= {"eval_loss": logs["eval_loss"], "eval_seconds": logs["eval_runtime"]}
            self.row |= {name: logs[name] for name in loss.BY_SOURCE if name in logs}

    def write(self) -> None:
        """Write the last step's row."""
        if self.row:
            try:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    file.write(loss.format_row(self.row))
            except OSError as error:
                raise MedkitError(f"cannot write {self.path.name} ({error.strerror}); free space") from error
        self.row = {}

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write()
            self.bar.close()


def carry_over(optimizer, file: Path) -> None:
    """Load the moments in `file`, a checkpoint's optimizer.pt, into `optimizer`.

    Raises MedkitError if they belong to another model or type of optimizer.
    """
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)["state"]
        # bitsandbytes' 8-bit optimizers save `state1`, wrapped by a name of their own.
        states = {i: state.get(EIGHT_BIT, state) for i, state in saved.items()}
        sizes = {i: state.get("exp_avg", state.get("state1")).numel() for i, state in states.items()}
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise MedkitError(f"{file} cannot be read ({first_line(error)}); train stage 1 again") from None
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    if sizes != {i: weight.numel() for i, weight in enumerate(weights)}:
        raise MedkitError(f"{file} is the state of another adapter's optimizer; train stage 1 again")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": saved})
