"""TRL's SFTTrainer with whole checkpoints, a meter and loss.csv. Imports unsloth and trl: import it late."""

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

from medkit import first_line
from medkit.prompts import IGNORED
from medkit.recipes import TrainSpec
from medkit.runs import loss, storage
from medkit.train import batches, checkpoints, cpu, models
from medkit.train.metrics import Meter, TrainerError, any_process

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

    engine: how the model computes; identity: what a checkpoint is marked with; start: the
    checkpoint to go on from, or None; stop: says that SIGTERM came; replay_token_share, optimizer_state: see
    fitting.fit. Raises TrainerError where packing was asked for and did not stay on.
    """

    _signature_columns: list[str]  # the Trainer's own: the columns that are passed on

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
        start: Path | None,
        stop: Stop,
        replay_token_share: float = 0.0,
        optimizer_state: Path | None = None,
    ):
        self.stage, self.engine, self.meter = stage, engine, Meter(model)
        self.identity, self.start, self.stop = identity, start, stop
        self.saved, self.optimizer_state = Path(config.output_dir).parent, optimizer_state
        self.replay_weight = batches.replay_weight(train, replay_token_share, stage.loss_on)
        if self.replay_weight != 1 and (config.loss_type != "nll" or config.label_smoothing_factor):
            raise TrainerError(
                "dmt.replay_token_share weighs the plain loss; leave config.loss_type and "
                "config.label_smoothing_factor as they are"
            )
        earlier = ""
        if start:
            self.meter.total = json.loads((start / "meter.json").read_text())
            earlier = (start / "loss.csv").read_text(encoding="utf-8")
        self.loss_log = StepLog(self.saved.with_name("loss.csv"), progress, self.meter, stop, earlier)
        config.eval_on_start = self._unvalidated(earlier, config.eval_steps)
        # TRL casts a 4-bit model's adapter to bfloat16, which loses updates smaller than 1/256 of a weight,
        # and PEFT reads it back from a checkpoint as float32, so that a resumed run would differ from an
        # unbroken one. It stays in float32; the products are computed in bfloat16 all the same.
        adapter = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
        packed = cpu.on_gpu() and stage.packing != "off"
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
            train_dataset=batches.training_rows(train, batch, most, packed, self.replay_weight != 1),
            eval_dataset=batches.trainer_rows(held_out, stage, most, packed, batches.is_mixed(held_out)),
            processing_class=tokenizer,
            callbacks=[self.loss_log],
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
        return due and not loss.parse_last_row(earlier)["eval_loss"]

    def _check_packing(self, packed: bool) -> None:
        # Unsloth may turn it off in the configuration already.
        if packed and not (self.args.packing and self.data_collator.padding_free):
            raise TrainerError("packing was asked for and the libraries turned it off; set packing=off")
        self.data_collator.torch_call = batches.collate_with_marks(self.data_collator.torch_call)
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
            told = any(words in str(error) for words in ("out of memory", "allocate memory"))
            if not (told or isinstance(error, MemoryError | torch.OutOfMemoryError)):
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
        total = 0
        for part in parts:
            last = part is parts[-1]  # the processes' gradients are exchanged once
            with contextlib.nullcontext() if last else self.accelerator.no_sync(net):
                total += super().training_step(net, part, num_items_in_batch)
        return total

    def get_batch_samples(self, *args, **kwargs):
        """An optimizer step's batches and what its summed loss is divided by: the supervised tokens of all
        processes, with weighted replay the sum of their weights."""
        found, items = super().get_batch_samples(*args, **kwargs)
        if found and "exams" in found[0]:
            items = sum(self._weights(batch)[batch["labels"][:, 1:] != IGNORED].sum() for batch in found)
            items = self.accelerator.reduce(items.to(self.args.device), "sum")
        return found, items

    def _weights(self, batch) -> torch.Tensor:
        """Of the tokens that are predicted, all but a batch's first: (rows, tokens - 1)."""
        return torch.where(batch["exams"][:, 1:], self.replay_weight, 1.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's; in a batch that tells exam questions from the rest, each token's loss by its weight."""
        if "exams" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        summed = (self._weights(inputs) * self._token_losses(model, inputs)).sum()
        return summed / num_items_in_batch * self.accelerator.num_processes  # whose gradients are averaged

    @staticmethod
    def _token_losses(model, batch) -> torch.Tensor:
        """The cross-entropy of each predicted token in float32, 0 where none is learnt from: (rows, tokens -
        1). By TRL's fused head, chunk by chunk."""
        known = {name: value for name, value in batch.items() if name not in batches.MARKS}
        return -model(**known, use_cache=False, fused_lm_head=True).log_probs

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *batches.MARKS])]

    def evaluate(self, *args, **kwargs):
        """Ends with SIGTERM, as the whole of the paper's validation rows takes an hour and more. Before the
        first step there is nothing to save; after another one, the run that resumes validates it."""
        self.by_source = torch.zeros(2, 2, device=self.args.device)  # consultations, exams: loss, tokens
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
        """The mean loss of a batch's supervised tokens; adds it up by source, where the batch tells it."""
        inputs.pop("samples", None)
        if any_process(self.stop.asked):
            raise CutShort
        by_source = "exams" in inputs
        if not (by_source or self.engine.lays_rows_end_to_end):
            return super().prediction_step(net, inputs, *args, **kwargs)
        total, tokens = 0, torch.zeros((), dtype=torch.long, device=self.args.device)
        for part in self.engine.passes(self._prepare_inputs(inputs)):
            learnt = part["labels"][:, 1:] != IGNORED
            with torch.no_grad(), self.compute_loss_context_manager():
                if by_source:
                    mean = self._mean_by_source(self._token_losses(net, part), part["exams"][:, 1:], learnt)
                else:
                    mean = self.compute_loss(net, part)
            total, tokens = total + mean * learnt.sum(), tokens + learnt.sum()
        return total / tokens.clamp(min=1), None, None

    def _mean_by_source(self, losses, exams, learnt) -> torch.Tensor:
        """The mean over all tokens, of which `by_source` takes the sums."""
        for source, own in enumerate((learnt & ~exams, learnt & exams)):
            self.by_source[source] += torch.stack([losses[own].sum(), own.sum()])
        return losses.sum() / learnt.sum().clamp(min=1)

    def log(self, logs, start_time=None):
        """With the validation loss by source, where there are two."""
        if "eval_loss" in logs:
            sums = self.accelerator.reduce(self.by_source, "sum").tolist()
            pairs = zip(loss.BY_SOURCE, sums, strict=True)
            logs |= {name: total / tokens for name, (total, tokens) in pairs if tokens}
        super().log(logs, start_time)

    def create_optimizer(self, *args, **kwargs):
        """Where another stage's optimizer is handed over, with its moments and step counts; learning rate and
        weight decay are this stage's own."""
        super().create_optimizer(*args, **kwargs)
        if self.optimizer_state:
            carry_over(self.optimizer, self.optimizer_state)
        return self.optimizer

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
                (written / "meter.json").write_text(json.dumps(self.meter.total))
                checkpoints.publish(written, self.saved / name, self.identity)
                checkpoints.prune(self.saved, self.state.global_step, 2)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            before = checkpoints.newest_complete(self.saved)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise TrainerError(
                f"{name} could not be written ({reason}); free space and resume"
                + (f" from {before.name}, which is still there" if before else "")
            ) from error
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args, **kwargs):
        """None: its text carries paths of the machine."""


class StepLog(TrainerCallback):
    """Writes loss.csv, a line a step, shows the progress bar, and asks for a checkpoint after SIGTERM."""

    def __init__(self, path: Path, progress: bool, meter: Meter, stop: Stop, earlier: str):
        """earlier: loss.csv of the checkpoint that training is resumed from."""
        self.path, self.progress, self.meter, self.stop = path, progress, meter, stop
        self.earlier = earlier
        self.line: dict = {}  # held back, not yet in the file
        self.measured: dict = {}  # of the step just done, from the meter

    def on_train_begin(self, args, state, control, **kwargs):
        """The last line of `earlier` is held back, since that step's validation may still come."""
        if state.is_world_process_zero:
            written = self.earlier.splitlines(keepends=True)[:-1] or [",".join(loss.COLUMNS) + "\n"]
            storage.write_text(self.path, "".join(written))
            self.line = loss.parse_last_row(self.earlier) if self.earlier else {}
            steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step"}
            self.bar = tqdm(desc="training", disable=not self.progress, **steps)

    def on_step_begin(self, args, state, control, **kwargs):
        self.meter.begin_step()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # until the step is computed
        self.measured = self.meter.end_step()
        control.should_evaluate |= state.global_step >= state.max_steps
        if any_process(self.stop.asked):  # all of them have to end at the same step
            self.stop.asked = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Training and evaluation are logged separately: a line is written when the next one begins."""
        step = state.global_step
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise TrainerError(f"the loss of step {step} is {logs['loss']}; lower the learning rate")
            self.write()
            self.line = {"step": step, "epoch": logs["epoch"], "train_loss": logs["loss"]}
            self.line |= {"learning_rate": logs["learning_rate"], **self.measured}
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", tokens_per_s=f"{self.line['tokens_per_s']:.0f}")
            self.bar.update(step - self.bar.n)
        elif "eval_loss" in logs:
            self.line = self.line or {"step": step, "epoch": logs.get("epoch", 0), "tokens": 0}
            self.line |= {"eval_loss": logs["eval_loss"], "eval_seconds": logs["eval_runtime"]}
            self.line |= {name: logs[name] for name in loss.BY_SOURCE if name in logs}

    def write(self) -> None:
        """Write the line held back."""
        if self.line:
            try:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    file.write(loss.format_row(self.line))
            except OSError as error:
                raise TrainerError(f"cannot write {self.path.name} ({error.strerror}); free space") from error
        self.line = {}

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write()
            self.bar.close()


def carry_over(optimizer, file: Path) -> None:
    """Put the moments in `file`, a checkpoint's optimizer.pt, into `optimizer`.

    Raises TrainerError where they are another model's or another kind of optimizer's.
    """
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)["state"]
        sizes = {i: state.get("exp_avg", state.get("state1")).numel() for i, state in saved.items()}
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise TrainerError(f"{file} cannot be read ({first_line(error)}); train stage 1 again") from None
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    if sizes != {i: weight.numel() for i, weight in enumerate(weights)}:
        raise TrainerError(f"{file} is the state of another adapter's optimizer; train stage 1 again")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": saved})
