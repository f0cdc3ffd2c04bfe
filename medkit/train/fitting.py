"""The training of one stage, from a loaded model and its rows."""

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from medkit.recipes import TrainSpec
from medkit.train import checkpoints, cpu, models, trackers
from medkit.train import config as configuration


class Stopped(SystemExit):
    """Training ended by SIGTERM, with a checkpoint; the exit code is that of the signal."""

    def __init__(self, step: int):
        there = f"checkpoint-{step} is saved, resume goes on from there" if step else "no step was done yet"
        print(f"stopped by SIGTERM; {there}", file=sys.stderr)
        super().__init__(128 + signal.SIGTERM)


@dataclass(frozen=True)
class Fit:
    """The numbers of a finished stage, for run.json."""

    steps: int
    seconds: float
    tokens: int  # non-padding tokens seen
    tokens_per_s: float
    samples_per_s: float
    padding_share: float  # of the positions computed
    padding_share_padded: float  # the same, had every batch been padded to its longest row
    peak_memory_gb: float  # of the GPU, else of the process
    mfu: float | None
    samples: int
    resumed_from: int  # optimizer step; 0 where the run was not resumed
    config: dict  # the SFTConfig's fields that are not TRL's defaults
    replay_weight: float  # of a replayed exam token's loss, 1 for a consultation's


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
    """Train the adapter of `model` for one stage; writes `folder`/loss.csv and whole checkpoints.

    train, validation: of tokenization.prepare. config: of config.sft_config, changed or not; None for that of
    `stage`. identity: what a checkpoint must match to be resumed from, beside the configuration.
    optimizer_state: of stage 1, with whose moments this one begins. Raises TrainerError where a field cannot
    be changed, packing did not stay on, or memory or disk ran out; CheckpointError; Stopped after SIGTERM.
    """
    from medkit.train import trainer  # imports unsloth and trl

    config = configuration.for_fit(config, stage, max_length=max_length, folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = (identity or {}) | configuration.identity(config)
    say = print if models.first_process() else lambda _: None
    start = checkpoints.find_resumable(folder / "checkpoints", identity, say) if resume else None
    at = checkpoints.step_of(start) if start else 0
    began = time.perf_counter()
    kept = trackers.local_tracker(stage.report_to, folder)
    with trainer.Stop() as stop, kept, cpu.training(model, stage.micro_batch_tokens) as engine:
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
            start=start,
            stop=stop,
            replay_token_share=replay_token_share,
            optimizer_state=optimizer_state,
        )
        training.run()
    if stop.asked:
        raise Stopped(training.state.global_step)
    return Fit(
        steps=training.state.global_step or at,
        seconds=time.perf_counter() - began,
        resumed_from=at,
        config=configuration.non_defaults(config),
        replay_weight=training.replay_weight,
        **training.meter.totals(),
    )
