"""A training run of seconds: the tiny random Llama through medkit.train.models, in this process or its own.

    python tests/tiny_run.py FOLDER BASE [--resume] [--set FIELD=VALUE ...] [--fault NAME --at STEP]

trains into FOLDER from the model in BASE and prints the Fit as JSON. --fault is what befalls the process
at that step; benchmarks/faults.py says what has to follow.
"""

import argparse
import dataclasses
import json
import os
import random
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from conftest import make_tiny_llama

from medkit.recipes import LoraSpec, ModelSpec, TrainSpec
from medkit.records import Dialogue, Turn

WORDS = "fever cough pain rest fluids aspirin heart lung sleep water".split()
# 40 rows in batches of 2 x 2 are 10 optimizer steps; checkpoints come at 3, 6, 9 and 10.
STAGE = TrainSpec(
    optimizer="adamw_torch",
    batch_size=2,
    accumulation=2,
    packing="off",
    learning_rate=1e-2,
    warmup_steps=2,
    eval_rows=6,
    eval_every=4,
    save_every=3,
)
LORA = LoraSpec(r=4, alpha=4)
MAX_LENGTH = 1024


def write_base(folder: Path) -> Path:
    model, tokenizer = make_tiny_llama()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def records(count: int, seed: int = 0) -> list[Dialogue]:
    """Consultations of one exchange, of unequal length."""
    rng = random.Random(seed)

    def text(least, most):
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    return [
        Dialogue(
            id=f"{seed}-{i}",
            source="notechat",
            turns=(Turn("user", text(3, 40)), Turn("assistant", text(2, 9))),
        )
        for i in range(count)
    ]


def model_and_rows(
    base: Path, *, seed: int = 0, four_bit: bool = True, loss_on: str = "answer", rows_seed: int = 0
):
    from medkit.train import models, tokenization

    model, tokenizer = models.load(ModelSpec(base=str(base), max_length=MAX_LENGTH, load_in_4bit=four_bit))
    model = models.attach_lora(model, LORA, seed=seed)
    prepared = [
        tokenization.prepare(
            rows,
            tokenizer,
            target="letter",
            loss_on=loss_on,
            max_length=MAX_LENGTH,
            cache=base / "cache" / str(os.getpid()),
            progress=False,
        )
        for rows in (records(40, rows_seed), records(6, 1))
    ]
    return model, tokenizer, *prepared


def train(folder: Path, base: Path, stage: TrainSpec = STAGE, *, resume=False, extra=None, rows_seed=0):
    """(Fit, model): one run. Its identity is that of a stage of medkit.train.stages, and `extra`."""
    from medkit.train import fitting, models, tokenization

    model, tokenizer, rows, validation = model_and_rows(base, seed=stage.seed, rows_seed=rows_seed)
    identity = {f"stage1.{name}": value for name, value in dataclasses.asdict(stage).items()}
    identity["training rows"] = tokenization.key(rows)
    identity["base weights"] = models.base_identity(ModelSpec(base=str(base)))
    done = fitting.fit(
        model,
        tokenizer,
        rows,
        validation,
        stage,
        folder=folder,
        max_length=MAX_LENGTH,
        identity=identity | (extra or {}),
        resume=resume,
        progress=False,
    )
    return done, model


def write_run(place: Path, base: Path, settings: str, arms=("stage1", "stage2")):
    """place/tiny: an opened run of recipe `cpu` in 16 bit, with a random adapter of each of `arms`."""
    import pytest
    import torch

    from medkit.runs import run_json, storage
    from medkit.train import models

    settings = f"model.base={base};model.load_in_4bit=false;{settings}"
    storage.write_json(place / "tiny" / "run.json", run_json.describe("cpu", settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKIT_RESULTS", str(place))
        run = run_json.for_reading("tiny")
    model, tokenizer = models.load(run.recipe.model)
    model = models.attach_lora(model, run.recipe.lora, seed=0)
    for seed, arm in enumerate(arms):
        torch.manual_seed(seed)
        for name, weights in model.named_parameters():
            if "lora_B" in name:  # zero at first: such an adapter changes nothing
                weights.data.normal_(0, 0.5)
        models.save_adapter(model, tokenizer, run.folder / arm / "adapter")
    return run


def befall(fault: str, at: int) -> None:
    """Arrange for `fault` to happen at optimizer step `at`."""
    import torch
    from transformers import Trainer

    from medkit.train import checkpoints

    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_a_state_file(content, path, *args, **kwargs):
        Path(path).write_bytes(b"PK\3\4" + bytes(5000))
        kill()

    def when_saving(name, instead, place=Trainer):
        inner = getattr(place, name)
        save = Trainer._save_checkpoint

        def checked(self, *args, **kwargs):
            if self.state.global_step == at:
                setattr(place, name, instead)
            try:
                save(self, *args, **kwargs)
            finally:
                setattr(place, name, inner)

        Trainer._save_checkpoint = checked

    def kill_before_rename():
        inner = checkpoints._rename
        name = f"checkpoint-{at}"
        checkpoints._rename = lambda aside, to: kill() if to.name == name else inner(aside, to)

    def at_step(act):
        inner = Trainer.training_step

        def step(self, *args, **kwargs):
            if self.state.global_step == at - 1:
                act()
            return inner(self, *args, **kwargs)

        Trainer.training_step = step

    def in_validation(act):
        inner = Trainer.evaluation_loop

        def loop(self, *args, **kwargs):
            if self.state.global_step == at:
                act()
            return inner(self, *args, **kwargs)

        Trainer.evaluation_loop = loop

    def limit(what, value):
        return lambda: resource.setrlimit(what, (value, resource.getrlimit(what)[1]))

    def no_more_memory():
        """Address space for 64 MB beside what is mapped, and a request for more."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit(resource.RLIMIT_AS, pages * resource.getpagesize() + (64 << 20))()
        torch.ones(64 << 20)

    {
        "kill at a step": lambda: at_step(kill),
        "kill between weights and optimizer": lambda: when_saving("_save_optimizer_and_scheduler", kill),
        "kill in the state file": lambda: when_saving("save", half_a_state_file, torch),
        "kill before the checkpoint's new name": kill_before_rename,
        "disk full while saving": lambda: at_step(limit(resource.RLIMIT_FSIZE, 20_000)),
        "disk full in loss.csv": lambda: at_step(limit(resource.RLIMIT_FSIZE, 100)),
        "out of memory": lambda: at_step(no_more_memory),
        "a slow step": lambda: at_step(lambda: time.sleep(5)),
        "SIGTERM": lambda: at_step(lambda: os.kill(os.getpid(), signal.SIGTERM)),
        "SIGTERM in validation": lambda: in_validation(lambda: os.kill(os.getpid(), signal.SIGTERM)),
    }[fault]()


def main() -> int:
    from medkit import MedkitError
    from medkit.train import models

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--extra", type=json.loads, default={}, help="more of the identity, as JSON")
    parser.add_argument("--rows-seed", type=int, default=0)
    parser.add_argument("--fault")
    parser.add_argument("--at", type=int, default=0)
    options = parser.parse_args()
    fields = dict(item.split("=") for item in options.set)
    kinds = {field.name: field.type for field in dataclasses.fields(TrainSpec)}
    stage = replace(STAGE, **{name: kinds[name](value) for name, value in fields.items()})
    models.unsloth()
    if options.fault:
        befall(options.fault, options.at)
    try:
        done, _ = train(
            options.folder,
            options.base,
            stage,
            resume=options.resume,
            extra=options.extra,
            rows_seed=options.rows_seed,
        )
    except MedkitError as error:
        print(f"medkit: {error}", file=sys.stderr)
        return 2
    # In one piece: two processes write to the same pipe, and print would send the line's end by itself.
    sys.stdout.write(json.dumps(dataclasses.asdict(done)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
