"""Trains one stage, from a loaded model and its rows."""

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from medkit.recipes import TrainSpec
from medkit.train import checkpoints, cpu, models, trackers
from medkit.train import config as configuration


class Stopped(SystemExit):
    """Training was stopped by SIGTERM, after saving a checkpoint. Exits with the signal's code."""

    def __init__(self, step: int):
        progress = f"checkpoint-{step} is saved, resume to continue" if step else "no step was done yet"
        print(f"stopped by SIGTERM; {progress}", file=sys.stderr)
        super().__init__(128 + signal.SIGTERM)


@dataclass(frozen=True)
class Fit:
    """The numbers of a finished stage, for run.json."""

    steps: int
    seconds: float
    tokens: int  # without padding
    tokens_per_s: float
    samples_per_s: float
    padding_share: float  # share of the computed positions
    padding_share_padded: float  # the share if every batch were padded to its longest row
    peak_memory_gb: float  # of the GPU, or of the process without one
    mfu: float | None
    samples: int
    resumed_from: int  # optimizer step; 0 if the run was not resumed
    config: dict  # the SFTConfig fields that differ from TRL's defaults
    replay_weight: float  # loss weight of a replayed exam token; consultations have 1


def fit(
    model,
    tokenizer,
    train,
    validation,
    stage: TrainSpec,
    *,
    folder: Path,
    max_length: int,
    config=None,
    identity: dict | None = None,
    resume: bool = False,
    progress: bool = True,
    replay_token_share: float = 0.0,
    optimizer_state: Path | None = None,
) -> Fit:
    """Train the adapter of `model` for one stage; writes `folder`/loss.csv and checkpoints.

    train, validation: datasets of tokenization.prepare. config: from config.sft_config, possibly changed;
    None for the stage's. identity: fields that a checkpoint must match to be resumed from, in addition to the
    configuration. optimizer_state: stage 1's optimizer.pt, to start with its moments. Raises MedkitError
    (fixed field changed, packing off, out of memory or disk, no usable checkpoint) and Stopped after SIGTERM.
    """
    from medkit.train import trainer  # imports unsloth and trl

    config = configuration.for_fit(config, stage, max_length=max_length, folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = (identity or {}) | configuration.identity(config)
    report = print if models.first_process() else lambda _: None
    checkpoint = checkpoints.find_resumable(folder / "checkpoints", identity, report) if resume else None
    first_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    started = time.perf_counter()
    tracker = trackers.local_tracker(stage.report_to, folder)
    with trainer.Stop() as stop, tracker, cpu.training(model, stage.micro_batch_tokens) as engine:
        training = trainer.StageTrainer(
            model,
            config,
            tokenizer,
            train,
            validation,
            stage,
            engine=engine,
            progress=progress,
            identity=identity,
            checkpoint=checkpoint,
            stop=stop,
            replay_token_share=replay_token_share,
            optimizer_state=optimizer_state,
        )
        training.run()
    if stop.requested:
        raise Stopped(training.state.global_step)
    return Fit(
        steps=training.state.global_step or first_step,
        seconds=time.perf_counter() - started,
        resumed_from=first_step,
        config=configuration.non_defaults(config),
        replay_weight=training.replay_weight,
        **training.meter.totals(),
    )
