"""A recipe's stage as TRL's SFTConfig, whose fields can be changed before training.

Changes of fields that `fit` depends on (for prepared rows, checkpoints, loss.csv) raise an error.
"""

import copy
import json
from pathlib import Path

from medkit import MedkitError
from medkit.recipes import TrainSpec
from medkit.train import cpu
from medkit.train.metrics import processes

WRITING = ".writing"  # in a stage's checkpoints/: where Transformers writes a checkpoint before `publish`
STRATEGIES = {"isolated": "bfd", "wrapped": "wrapped", "off": "bfd"}  # TrainSpec.packing -> TRL's name

# Field -> why it cannot be changed.
FIXED = {
    name: reason
    for reason, names in {
        "checkpoints are in the run's folder": "output_dir",
        "set model.max_length": "max_length",
        "set packing": "packing packing_strategy padding_free eval_packing",
        "set report_to": "report_to",
        "the recipe determines the order of rows, see the stage's seed, epochs and group_by_length": """
            num_train_epochs seed data_seed train_sampling_strategy shuffle_dataset ignore_data_skip
            auto_find_batch_size""",
        "the recipe determines the rows, see data, model.max_length and loss_on": """
            dataset_kwargs dataset_text_field truncation_mode completion_only_loss
            assistant_only_loss chat_template_path eos_token pad_token pad_to_multiple_of
            remove_unused_columns""",
        "loss.csv and checkpoints depend on it": """
            eval_strategy save_strategy logging_strategy logging_steps save_only_model save_total_limit
            load_best_model_at_end eval_on_start prediction_loss_only resume_from_checkpoint""",
        "a run writes only into its own folder": """
            push_to_hub hub_model_id trackio_space_id trackio_bucket_id trackio_static_space_id""",
    }.items()
    for name in names.split()
}
_MASKED = ("eos_token", "pad_token")  # to_dict masks every field whose name ends in _token
# Prefixes of the fields that may change between a checkpoint and the run that resumes from it.
_OUTSIDE_TRAINING = (
    *("output_dir", "eval_", "per_device_eval_", "prediction_loss_only", "save_", "logging_", "log_"),
    "dataset_num_proc",  # Unsloth sets it by the memory that is free at the time; prepared rows do not use it
    *("report_to", "run_name", "project", "trackio_", "hub_", "dataloader_", "disable_tqdm"),
)


def sft_config(spec: TrainSpec, *, max_length: int, folder: Path | None = None):
    """The trl.SFTConfig of one stage, for `fit`. Fields that are not in FIXED may be changed.

    max_length: tokens per row, the recipe's model.max_length. folder: the stage's folder in the run; `fit`
    sets it otherwise. Raises MedkitError if the processes cannot divide the recipe's batch evenly.
    """
    from medkit.train.models import unsloth

    unsloth()
    from trl import SFTConfig

    world_size = processes()
    if spec.accumulation % world_size:
        raise MedkitError(
            f"{world_size} processes cannot share accumulation={spec.accumulation} evenly; start a number "
            "that divides it, or set batch_size and accumulation to values with the same product"
        )
    return SFTConfig(
        output_dir=str((folder or Path()) / "checkpoints" / WRITING),
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulation // world_size,
        num_train_epochs=1,  # row_order concatenates the epochs
        max_steps=spec.max_steps or -1,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.scheduler,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        optim=spec.optimizer,
        seed=spec.seed,
        data_seed=spec.seed,
        train_sampling_strategy="sequential",
        packing=cpu.on_gpu() and spec.packing != "off",
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
    """A copy of `config`, or of the recipe's config if it is None, that writes into `folder`.

    Raises MedkitError if a field in FIXED was changed.
    """
    default = sft_config(spec, max_length=max_length)
    config = copy.copy(default if config is None else config)
    for name, (expected, value) in _differences(default, config).items():
        if name in FIXED and not (name == "output_dir" and Path(value).parent == folder / "checkpoints"):
            raise MedkitError(f"config.{name} was changed from {expected!r} to {value!r}: {FIXED[name]}")
    config.output_dir = str(folder / "checkpoints" / WRITING)
    config.run_name = config.run_name or f"{folder.parent.name}-{folder.name}"  # for a tracker
    if config.world_size != processes():
        raise MedkitError(f"WORLD_SIZE is {processes()} and {config.world_size} processes train; unset it")
    return config


def non_defaults(config) -> dict:
    """The fields in which `config` differs from TRL's defaults, in JSON types, without output_dir."""
    from trl import SFTConfig

    fields = _differences(SFTConfig(output_dir=config.output_dir, report_to="none"), config)
    return {name: value for name, (_, value) in fields.items()}


def identity(config) -> dict:
    """The non-default fields that training depends on, and the number of processes, since each process saves
    its own random state. The prefix sorts after the recipe's fields, which are reported first."""
    fields = {
        f"trainer.{name}": value
        for name, value in non_defaults(config).items()
        if not name.startswith(_OUTSIDE_TRAINING)
    }
    return fields | {"processes": processes()}


def _differences(first, second) -> dict[str, tuple]:
    """The fields in which two configurations differ: name -> (first value, second value)."""
    before, after = (
        json.loads(
            json.dumps(config.to_dict() | {name: getattr(config, name) for name in _MASKED}, default=str)
        )
        for config in (first, second)
    )
    return {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}
