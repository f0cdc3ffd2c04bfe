"""A recipe's stage as TRL's SFTConfig, of which a researcher may change any field before training.

What `fit` itself depends on (the rows as they were prepared, whole checkpoints, loss.csv) cannot be changed
there; such a change is refused by the field's name and never undone in silence.
"""

import copy
import dataclasses
import os
from pathlib import Path

from medkit.recipes import TrainSpec
from medkit.train import cpu
from medkit.train.metrics import TrainerError

WRITING = ".writing"  # in a stage's checkpoints/: where Transformers writes, before a checkpoint is published
STRATEGIES = {"isolated": "bfd", "wrapped": "wrapped", "off": "bfd"}  # TRL's names of TrainSpec.packing

_ROWS = "the rows are prepared by the recipe, see data, model.max_length and loss_on"
_ORDER = "the order of rows is drawn by the recipe, see the stage's seed, epochs and group_by_length"
_FILES = "loss.csv and whole checkpoints depend on it"
_LOCAL = "a run leaves nothing but its own folder"
FIXED = {
    "output_dir": "checkpoints lie in the run's folder",
    "max_length": "set model.max_length",
    **dict.fromkeys(("packing", "packing_strategy", "padding_free", "eval_packing"), "set packing"),
    **dict.fromkeys(("num_train_epochs", "seed", "data_seed", "train_sampling_strategy"), _ORDER),
    **dict.fromkeys(("shuffle_dataset", "ignore_data_skip", "auto_find_batch_size"), _ORDER),
    **dict.fromkeys(("dataset_kwargs", "dataset_text_field", "dataset_num_proc", "truncation_mode"), _ROWS),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss", "chat_template_path"), _ROWS),
    **dict.fromkeys(("eos_token", "pad_token", "pad_to_multiple_of", "remove_unused_columns"), _ROWS),
    **dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy", "logging_steps"), _FILES),
    **dict.fromkeys(("save_only_model", "save_total_limit", "load_best_model_at_end"), _FILES),
    **dict.fromkeys(("eval_on_start", "prediction_loss_only", "resume_from_checkpoint"), _FILES),
    "report_to": "set report_to",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "trackio_space_id", "trackio_bucket_id"), _LOCAL),
    "trackio_static_space_id": _LOCAL,
}
# What a checkpoint may differ in from the run that resumes from it.
_OUTSIDE_TRAINING = ("output_dir", "eval_", "per_device_eval_", "save_", "logging_", "log_", "report_to")
_OUTSIDE_TRAINING += (
    "run_name",
    "project",
    "trackio_",
    "hub_",
    "dataloader_",
    "disable_tqdm",
    "prediction_loss_only",
)


def processes() -> int:
    """How many were launched to train together, as torchrun and accelerate tell it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def sft_config(spec: TrainSpec, *, max_length: int, folder: Path | None = None):
    """The trl.SFTConfig of one stage, for `fit`; any field that is not in FIXED may be changed.

    max_length: tokens of a row, the recipe's model.max_length. folder: the stage's in the run (`fit` puts it
    in). Raises TrainerError where the processes that train together cannot share the recipe's batch.
    """
    from medkit.train.models import unsloth

    unsloth()
    from trl import SFTConfig

    workers = processes()
    if spec.accumulation % workers:
        raise TrainerError(
            f"{workers} processes cannot share accumulation={spec.accumulation} evenly; start as many "
            "as divide it, or set batch_size and accumulation to another pair of the same product"
        )
    return SFTConfig(
        output_dir=str((folder or Path()) / "checkpoints" / WRITING),
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulation // workers,
        num_train_epochs=1,  # row_order lays the epochs after one another
        max_steps=spec.max_steps or -1,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.scheduler,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        optim=spec.optimizer,
        seed=spec.seed,
        data_seed=spec.seed,
        train_sampling_strategy="sequential",
        packing=cpu.packs() and spec.packing != "off",
        packing_strategy=STRATEGIES[spec.packing],
        max_length=max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=spec.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=spec.eval_every,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=spec.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=spec.report_to,
        **({"trackio_static_space_id": False} if spec.report_to == "trackio" else {}),
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
    )


def for_fit(config, spec: TrainSpec, *, max_length: int, folder: Path):
    """`config`, or for None that of the recipe, as the trainer takes it: a copy that writes into `folder`.

    Raises TrainerError, by the field's name, for a changed field that `fit` depends on.
    """
    recipe = sft_config(spec, max_length=max_length)
    if config is None:
        config = recipe
    for name, (before, now) in _differing(recipe, config).items():
        if name in FIXED and not (name == "output_dir" and Path(now).parent == folder / "checkpoints"):
            raise TrainerError(f"config.{name} was changed from {before!r} to {now!r}: {FIXED[name]}")
    config = copy.copy(config)
    config.output_dir = str(folder / "checkpoints" / WRITING)
    config.run_name = config.run_name or f"{folder.parent.name}-{folder.name}"  # in a tracker
    if config.world_size != processes():
        raise TrainerError(f"WORLD_SIZE is {processes()} and {config.world_size} processes train; unset it")
    return config


def used(config) -> dict:
    """The fields in which `config` differs from TRL's defaults, in JSON's types; paths are left out."""
    from trl import SFTConfig

    fields = _differing(SFTConfig(output_dir=config.output_dir, report_to="none"), config)
    return {name: _plain(value) for name, (_, value) in fields.items()}


def identity(config) -> dict:
    """Of `used`, what training depends on, named so that a recipe's own field is refused before it."""
    return {
        f"trainer.{name}": value
        for name, value in used(config).items()
        if not name.startswith(_OUTSIDE_TRAINING)
    }


def _differing(one, other) -> dict[str, tuple]:
    """The fields in which two configurations differ: name -> (value in `one`, value in `other`)."""
    names = [field.name for field in dataclasses.fields(other) if hasattr(one, field.name)]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if _plain(a) != _plain(b)}


def _plain(value):
    """In JSON's types: enumerations by their value, objects by their text."""
    value = getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)
