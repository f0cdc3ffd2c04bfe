"""A recipe's stage as TRL's SFTConfig, whose fields a researcher may change before training.

A change of a field that `fit` depends on (prepared rows, whole checkpoints, loss.csv) is refused by its name.
"""

import copy
import json
from pathlib import Path

from medkit.recipes import TrainSpec
from medkit.train import cpu
from medkit.train.metrics import TrainerError, processes

WRITING = ".writing"  # in a stage's checkpoints/: where Transformers writes, before a checkpoint is published
STRATEGIES = {"isolated": "bfd", "wrapped": "wrapped", "off": "bfd"}  # TRL's names of TrainSpec.packing

# Why a field cannot be changed -> the fields.
FIXED = {
    name: why
    for why, names in {
        "checkpoints lie in the run's folder": "output_dir",
        "set model.max_length": "max_length",
        "set packing": "packing packing_strategy padding_free eval_packing",
        "set report_to": "report_to",
        "the order of rows is drawn by the recipe, see the stage's seed, epochs and group_by_length": """
            num_train_epochs seed data_seed train_sampling_strategy shuffle_dataset ignore_data_skip
            auto_find_batch_size""",
        "the rows are prepared by the recipe, see data, model.max_length and loss_on": """
            dataset_kwargs dataset_text_field dataset_num_proc truncation_mode completion_only_loss
            assistant_only_loss chat_template_path eos_token pad_token pad_to_multiple_of
            remove_unused_columns""",
        "loss.csv and whole checkpoints depend on it": """
            eval_strategy save_strategy logging_strategy logging_steps save_only_model save_total_limit
            load_best_model_at_end eval_on_start prediction_loss_only resume_from_checkpoint""",
        "a run leaves nothing but its own folder": """
            push_to_hub hub_model_id trackio_space_id trackio_bucket_id trackio_static_space_id""",
    }.items()
    for name in names.split()
}
# What a checkpoint may differ in from the run that resumes from it: the beginnings of fields' names.
_MASKED = ("eos_token", "pad_token")  # what to_dict hides, as it does every name that ends in _token
_OUTSIDE_TRAINING = (
    *("output_dir", "eval_", "per_device_eval_", "prediction_loss_only", "save_", "logging_", "log_"),
    *("report_to", "run_name", "project", "trackio_", "hub_", "dataloader_", "disable_tqdm"),
)


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


def non_defaults(config) -> dict:
    """The fields in which `config` differs from TRL's defaults, in JSON's types; paths are left out."""
    from trl import SFTConfig

    fields = _differing(SFTConfig(output_dir=config.output_dir, report_to="none"), config)
    return {name: value for name, (_, value) in fields.items()}


def identity(config) -> dict:
    """The non-default fields that training depends on, and the number of processes, each of which saves its
    own random state. The prefix sorts them after the recipe's fields, which are compared first."""
    kept = {
        name: value for name, value in non_defaults(config).items() if not name.startswith(_OUTSIDE_TRAINING)
    }
    return {f"trainer.{name}": value for name, value in kept.items()} | {"processes": processes()}


def _differing(one, other) -> dict[str, tuple]:
    """The fields in which two configurations differ: name -> (value in `one`, value in `other`)."""
    before, now = (
        json.loads(
            json.dumps(config.to_dict() | {name: getattr(config, name) for name in _MASKED}, default=str)
        )
        for config in (one, other)
    )
    return {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}
