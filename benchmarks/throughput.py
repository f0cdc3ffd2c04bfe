"""Tokens a second of a recipe's training, and the hours a full run would take.

    python benchmarks/throughput.py --recipe recommended --shape llama-3.1-8b --steps 12
    python benchmarks/throughput.py --recipe cpu --shape smollm2-135m --steps 30 --against trl

`llama-3.1-8b`: random weights of that shape, quantized to NF4 on loading, and rows of random tokens whose
lengths are those of real rows (token_lengths.json): speed and memory do not depend on the values, and no
loss is reported. `smollm2-135m`: the CPU default's model on the built-in corpus. Both train through
medkit.training. Prints one JSON line last.
"""

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARM = 3  # optimizer steps left out of the timing: kernels are compiled in them
STAGE1_ROWS = {"medqa": 10_178, "medmcqa": 182_822, "pubmedqa": 211_269}  # the paper's Table 1
STAGE2_ROWS = {"notechat": 100_000}  # Table 2, beside the replayed 33,333


def mixture_lengths(recipe, stage: str) -> tuple[dict[str, list], dict[str, float]]:
    """([tokens, supervised tokens] of sample rows, rows of a full run) by source."""
    lengths = json.loads((HERE / "token_lengths.json").read_text())[recipe.model.chat_template]
    exam = sum(STAGE1_ROWS.values())
    if stage == "stage1":
        kept = 1 - recipe.data.validation_share
        return lengths, {name: rows * kept for name, rows in STAGE1_ROWS.items()}
    replayed = recipe.dmt.replay_share * STAGE2_ROWS["notechat"]
    return lengths, {**STAGE2_ROWS, **{name: replayed * rows / exam for name, rows in STAGE1_ROWS.items()}}


def random_rows(recipe, stage: str, count: int, vocabulary: int):
    """A datasets.Dataset of `count` rows of random tokens, lengths drawn as in the full mixture."""
    import numpy as np
    from datasets import Dataset

    lengths, rows = mixture_lengths(recipe, stage)
    rng, names = np.random.default_rng(0), list(rows)
    shares = np.array([rows[name] for name in names])
    table = {"input_ids": [], "labels": [], "length": []}
    for name in rng.choice(names, count, p=shares / shares.sum()):
        tokens, supervised = lengths[name][rng.integers(len(lengths[name]))]
        ids = rng.integers(1000, vocabulary - 1000, tokens).tolist()
        kept = tokens if getattr(recipe, stage).loss_on == "text" else supervised
        table["input_ids"].append(ids)
        table["labels"].append([-100] * (tokens - kept) + ids[tokens - kept :])
        table["length"].append(tokens)
    return Dataset.from_dict(table)


def full_run(recipe, stage: str) -> dict[str, float]:
    """Training and evaluation tokens of the whole stage at the paper's sizes."""
    lengths, rows = mixture_lengths(recipe, stage)
    mean = {name: statistics.mean(pair[0] for pair in lengths[name]) for name in rows}
    train = sum(mean[name] * count for name, count in rows.items())
    spec = getattr(recipe, stage)
    validation = sum(rows.values()) / 9 if stage == "stage1" else 13_333
    evaluated = min(spec.eval_rows or math.inf, validation) * train / sum(rows.values())
    per_step = (
        spec.batch_size * spec.accumulation * recipe.model.max_length * 0.98
    )  # packed rows are nearly full
    return {"train": train * spec.epochs, "evaluation": (train / per_step // spec.eval_every + 2) * evaluated}


def make_llama(folder: Path) -> None:
    """A model folder of Llama 3.1 8B's shape with random bfloat16 weights, made on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(HERE.parent / "tests"))
    from conftest import make_tokenizer

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    tokenizer = make_tokenizer()
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure_llama(recipe, stage: str, steps: int, model_folder: Path) -> dict:
    """One stage of an 8B recipe in this process."""
    from medkit import training

    spec = replace(
        getattr(recipe, stage), max_steps=WARM + steps, eval_every=10**6, save_every=10**6, eval_rows=0
    )
    model_spec = replace(recipe.model, base=str(model_folder), chat_template="own")
    model, tokenizer = training.load(model_spec, gradient_checkpointing=spec.gradient_checkpointing)
    model = training.attach_lora(
        model, recipe.lora, seed=spec.seed, gradient_checkpointing=spec.gradient_checkpointing
    )
    per_step = spec.batch_size * spec.accumulation * (8 if spec.packing != "off" else 1)
    train = random_rows(recipe, stage, (WARM + steps) * per_step, 128256)
    validation = random_rows(recipe, stage, 256, 128256)
    folder = Path(tempfile.mkdtemp())
    fit = training.fit(
        model,
        tokenizer,
        train,
        validation,
        spec,
        folder=folder,
        max_length=recipe.model.max_length,
        progress=False,
    )
    with (folder / "loss.csv").open() as file:
        lines = list(csv.DictReader(file))
    shutil.rmtree(folder)
    timed = [line for line in lines if int(line["step"]) > WARM]
    tokens = int(timed[-1]["tokens"]) - int(lines[WARM]["tokens"])
    seconds = sum(
        (int(b["tokens"]) - int(a["tokens"])) / float(b["tokens_per_s"]) for a, b in zip(lines[WARM:], timed)
    )
    # The evaluation after the last step; the one at the start compiles.
    evaluation = sum(validation["length"]) / float(lines[-1]["eval_seconds"])
    full = full_run(recipe, stage)
    speed = tokens / seconds
    return {
        "tokens_per_s": speed,
        "samples_per_s": speed * fit.samples / fit.tokens,
        "padding_share": fit.padding_share,
        "peak_memory_gb": fit.peak_memory_gb,
        "mfu": fit.mfu * speed / fit.tokens_per_s if fit.mfu else None,
        "evaluation_tokens_per_s": evaluation,
        "train_hours": full["train"] / speed / 3600,
        "evaluation_hours": full["evaluation"] / evaluation / 3600,
        "trainable_parameters": training.trainable_parameters(model),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--shape", choices=("llama-3.1-8b", "smollm2-135m"), default="llama-3.1-8b")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--model-folder", type=Path, help="where the random model is kept between calls")
    parser.add_argument("--stage", choices=("stage1", "stage2"), help=argparse.SUPPRESS)
    args = parser.parse_args()

    from medkit import recipes

    recipe = recipes.get(args.recipe, recipes.parse_settings(";".join(args.set)))
    if args.stage:
        print(json.dumps(measure_llama(recipe, args.stage, args.steps, args.model_folder)))
        return
    import torch

    if args.shape == "llama-3.1-8b" and not torch.cuda.is_available():
        sys.exit("llama-3.1-8b needs a CUDA device; --shape smollm2-135m runs without one")
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = args.model_folder or Path(tempfile.mkdtemp(dir=shm))
    try:
        if not (folder / "config.json").is_file():
            make_llama(folder)
            torch.cuda.empty_cache()
        stages = {}
        for stage in ("stage1", "stage2"):
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--stage",
                stage,
                "--model-folder",
                str(folder),
            ]
            began = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"{stage} failed with exit code {done.returncode}")
            stages[stage] = json.loads(done.stdout.strip().splitlines()[-1])
            stages[stage]["wall_s"] = time.perf_counter() - began
    finally:
        if not args.model_folder:
            shutil.rmtree(folder, ignore_errors=True)
    first = stages["stage1"]
    line = {key: first[key] for key in ("tokens_per_s", "samples_per_s", "padding_share", "mfu")}
    line["peak_memory_gb"] = max(stage["peak_memory_gb"] for stage in stages.values())
    for name, stage in stages.items():
        line[f"projected_hours_{name}"] = stage["train_hours"] + stage["evaluation_hours"]
    line |= {"device": torch.cuda.get_device_name(), "recipe": args.recipe, "set": args.set, "stages": stages}
    line |= {"torch": torch.__version__, "steps": args.steps}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
