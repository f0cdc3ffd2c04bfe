"""Tokens a second of a recipe's training, and the hours a full run would take.

    python benchmarks/throughput.py --recipe recommended --shape llama-3.1-8b --steps 12
    python benchmarks/throughput.py --recipe cpu --shape smollm2-135m --steps 30 --against trl

`llama-3.1-8b`: random weights of that shape, quantized to NF4 on loading, and rows of random tokens whose
lengths are those of real rows (token_lengths.json): speed and memory do not depend on the values, and no
loss is reported. `smollm2-135m`: the CPU default's model on the built-in corpus. Both train through
medkit.train.models. Prints one JSON line last.
"""

import argparse
import csv
import json
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


def row_lengths(recipe) -> dict[str, list]:
    """[tokens, supervised tokens] of sample rows by source."""
    lengths = json.loads((HERE / "token_lengths.json").read_text())
    return lengths[recipe.model.chat_template][recipe.data.mcq_target]


def random_rows(recipe, stage: str, count: int, vocabulary: int):
    """A datasets.Dataset of `count` rows of random tokens, lengths drawn as in the full mixture."""
    import full_run
    import numpy as np
    from datasets import Dataset

    lengths, rows = row_lengths(recipe), full_run.rows(recipe, stage)
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
    import full_run

    from medkit.runs import machine
    from medkit.train import fitting, models

    spec = replace(
        getattr(recipe, stage), max_steps=WARM + steps, eval_every=10**6, save_every=10**6, eval_rows=0
    )
    model_spec = replace(recipe.model, base=str(model_folder), chat_template="own")
    model, tokenizer = models.load(model_spec, gradient_checkpointing=spec.gradient_checkpointing)
    model = models.attach_lora(
        model, recipe.lora, seed=spec.seed, gradient_checkpointing=spec.gradient_checkpointing
    )
    per_step = spec.batch_size * spec.accumulation * (8 if spec.packing != "off" else 1)
    train = random_rows(recipe, stage, (WARM + steps) * per_step, 128256)
    validation = random_rows(recipe, stage, 256, 128256)
    folder = Path(tempfile.mkdtemp())
    fit = fitting.fit(
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
        (int(b["tokens"]) - int(a["tokens"])) / float(b["tokens_per_s"])
        for a, b in zip(lines[WARM:], timed, strict=False)
    )
    # The evaluation after the last step; the one at the start compiles.
    evaluation = sum(validation["length"]) / float(lines[-1]["eval_seconds"])
    mean = {name: statistics.mean(row[0] for row in of) for name, of in row_lengths(recipe).items()}
    full = full_run.plan(recipe, stage, mean, machine.hardware())
    speed = tokens / seconds
    return {
        "tokens_per_s": speed,
        "samples_per_s": speed * fit.samples / fit.tokens,
        "padding_share": fit.padding_share,
        "peak_memory_gb": fit.peak_memory_gb,
        "mfu": fit.mfu * speed / fit.tokens_per_s if fit.mfu else None,
        "evaluation_tokens_per_s": evaluation,
        "train_hours": full.tokens / speed / 3600,
        "evaluation_hours": full.evaluated / evaluation / 3600,
        "trainable_parameters": model.get_nb_trainable_parameters()[0],
    }


def small_stage(recipe):
    """Stage 2 as both programs train it: rows in random order, so that their updates are the same ones."""
    return replace(recipe.stage2, group_by_length=False)


def small_rows(recipe, steps: int, tokenizer, cache: Path):
    """(training, validation) rows of the recipe's stage 2 on the built-in corpus, prepared once for both
    programs: consultations and replayed exam questions, a fifth as long."""
    from medkit import dmt as mixture
    from medkit.data import builtin, sources
    from medkit.train import tokenization

    with tempfile.TemporaryDirectory() as folder:
        corpus = builtin.write(folder)

        def load(name):
            limit = getattr(recipe.data, f"rows_{name}", 0)
            return sources.load(name, "train", corpus, limit=limit, progress=False).records

        exams, consultations = {name: load(name) for name in sources.EXAMS}, load("notechat")
    dmt, data, spec = recipe.dmt, recipe.data, recipe.stage2
    asked = dmt.notechat_train, dmt.notechat_validation
    split = mixture.split_notechat(consultations, *asked, deduplicate=True, by_note=True, seed=data.seed)
    first = mixture.mix_exams(exams, data.validation_share, data.seed)
    drawn = mixture.sample_replay(first, dmt.replay_share, len(split.train), len(split.validation))
    settings = {"target": data.mcq_target, "loss_on": spec.loss_on, "progress": False, "cache": cache}
    train, held_out = (
        tokenization.prepare(rows, tokenizer, max_length=recipe.model.max_length, **settings)
        for rows in (split.train + drawn.train, split.validation + drawn.validation)
    )
    count = steps * spec.batch_size * spec.accumulation
    if len(train) < count:
        sys.exit(f"{count} rows are asked for and stage 2 trains on {len(train)}; lower --steps")
    return train.shuffle(seed=0).select(range(count)), held_out


def validation_loss(model, rows) -> float:
    """Mean loss of a supervised token, row by row, the same way for both programs."""
    import torch

    model.eval()
    total = count = 0
    with torch.inference_mode():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
            logits = model(input_ids=ids).logits[0, :-1].float()
            kept = labels != -100
            total += torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum").item()
            count += int(kept.sum())
    return total / count


def measure_medkit(recipe, steps: int) -> dict:
    """Stage 2 of a small recipe through medkit, on the CPU, from a fresh adapter."""
    from medkit.train import fitting, models

    spec = replace(small_stage(recipe), max_steps=steps, eval_every=10**6, save_every=10**6, eval_rows=1)
    model, tokenizer = models.load(recipe.model)
    model = models.attach_lora(model, recipe.lora, seed=spec.seed)
    with tempfile.TemporaryDirectory() as scratch:
        train, held_out = small_rows(recipe, steps, tokenizer, Path(scratch))
        fit = fitting.fit(
            model,
            tokenizer,
            train,
            held_out,
            spec,
            folder=Path(scratch) / "run",
            max_length=recipe.model.max_length,
            progress=False,
        )
        dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        return vars(fit) | {"loss": validation_loss(model, held_out), "dtype": dtype}


class PlainHead:
    """In the place of the Triton kernel by which TRL computes its loss, and which a CPU has none of: the
    same log-probabilities of the supervised tokens alone, in plain PyTorch."""

    @staticmethod
    def apply(hidden, weight, bias, labels, *_):
        import torch

        logprobs = torch.nn.functional.linear(hidden, weight, bias).float().log_softmax(-1)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        top = logprobs.detach().argmax(-1) == labels
        return logprobs.gather(-1, labels[:, None])[:, 0], entropy, None, None, top


def measure_trl(recipe, steps: int, dtype: str) -> dict:
    """The same updates of the same recipe through a plain TRL + PEFT script, without Unsloth: the rows of an
    update in one padded batch. `dtype`: what medkit computed in, as a processor without bfloat16 emulates it
    many times more slowly than it computes in float32."""
    import torch
    import trl.trainer.utils
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from medkit.train import smollm2
    from medkit.train.batches import row_order
    from medkit.train.metrics import peak_memory_gb

    trl.trainer.utils._ChunkedLogProbFunction = trl.trainer.utils._ChunkedLogProbFunction or PlainHead
    spec, folder, compute = small_stage(recipe), smollm2.folder(), getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantized, dtype=compute)
    scratch = Path(tempfile.mkdtemp())
    train, held_out = small_rows(recipe, steps, tokenizer, scratch)
    seen = {"tokens": 0, "positions": 0, "seconds": 0.0}

    class Meter(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seen["seconds"] += time.perf_counter() - self.began

    class Trainer(SFTTrainer):
        def training_step(self, net, inputs, *args, **kwargs):
            seen["tokens"] += int(inputs["attention_mask"].sum())
            seen["positions"] += inputs["input_ids"].numel()
            return super().training_step(net, inputs, *args, **kwargs)

    trainer = Trainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=spec.batch_size * spec.accumulation,
            max_steps=steps,
            learning_rate=spec.learning_rate,
            lr_scheduler_type=spec.scheduler,
            warmup_steps=spec.warmup_steps,
            weight_decay=spec.weight_decay,
            optim=spec.optimizer,
            gradient_checkpointing=spec.gradient_checkpointing,
            max_length=recipe.model.max_length,
            seed=spec.seed,
            train_sampling_strategy="sequential",
            use_cpu=True,
            bf16=compute is torch.bfloat16,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=train.select(row_order(train["length"], spec)).select_columns(["input_ids", "labels"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.lora.r,
            lora_alpha=recipe.lora.alpha,
            use_rslora=recipe.lora.rslora,
            target_modules=list(recipe.lora.target_modules),
            task_type="CAUSAL_LM",
        ),
        callbacks=[Meter()],
    )
    for weight in trainer.model.parameters():
        if weight.requires_grad:  # TRL has made the adapter bfloat16, whatever the model computes in
            weight.data = weight.data.to(compute)
    trainer.train()
    measured = {
        "tokens_per_s": seen["tokens"] / seen["seconds"],
        "samples_per_s": len(train) / seen["seconds"],
        "padding_share": 1 - seen["tokens"] / seen["positions"],
        "peak_memory_gb": peak_memory_gb(),
        "samples": len(train),
        "loss": validation_loss(trainer.model, held_out),
    }
    shutil.rmtree(scratch)
    return measured


def in_turn(arms: tuple[str, ...], rounds: int) -> dict[str, list[dict]]:
    """Each arm in a process of its own, in turn, `rounds` times."""
    found = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            dtype = found["medkit"][-1]["dtype"] if found["medkit"] else ""
            found[arm].append(child("--arm", arm, "--dtype", dtype))
    return found


def child(*more: str) -> dict:
    """This script once more with further arguments; the JSON line it prints last."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], *more], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(more)} failed with exit code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def small(args) -> dict:
    """smollm2-135m: medkit alone, or medkit and TRL in turn; medians of the rounds."""
    import platform

    arms = ("medkit", "trl") if args.against else ("medkit",)
    found = in_turn(arms, args.rounds)
    keys = ("tokens_per_s", "samples_per_s", "padding_share", "peak_memory_gb", "samples", "loss")
    line = {key: statistics.median(run[key] for run in found["medkit"]) for key in keys}
    line |= {
        "dtype": found["medkit"][0]["dtype"],
        "mfu": None,
        "projected_hours_stage1": None,
        "projected_hours_stage2": None,
    }
    if args.against:
        line["trl"] = {key: statistics.median(run[key] for run in found["trl"]) for key in keys}
        pairs = zip(found["medkit"], found["trl"], strict=True)
        ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs]
        line |= {"ratio": statistics.median(ratios), "ratios": ratios}
    return line | {"device": f"CPU, {os.cpu_count()} cores, {platform.machine()}"}


def large(args, recipe) -> dict:
    """llama-3.1-8b on the GPU: both stages, each in a process of its own."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("llama-3.1-8b needs a CUDA device; --shape smollm2-135m runs without one")
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = args.model_folder or Path(tempfile.mkdtemp(dir=shm))
    try:
        if not (folder / "config.json").is_file():
            make_llama(folder)
            torch.cuda.empty_cache()
        stages = {
            stage: child("--stage", stage, "--model-folder", str(folder)) for stage in ("stage1", "stage2")
        }
    finally:
        if not args.model_folder:
            shutil.rmtree(folder, ignore_errors=True)
    first = stages["stage1"]
    line = {key: first[key] for key in ("tokens_per_s", "samples_per_s", "padding_share", "mfu")}
    line["peak_memory_gb"] = max(stage["peak_memory_gb"] for stage in stages.values())
    for name, stage in stages.items():
        line[f"projected_hours_{name}"] = stage["train_hours"] + stage["evaluation_hours"]
    return line | {"device": torch.cuda.get_device_name(), "stages": stages}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--shape", choices=("llama-3.1-8b", "smollm2-135m"), default="llama-3.1-8b")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps timed")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--against", choices=("trl",), help="a plain TRL + PEFT script (smollm2-135m)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program (smollm2-135m)")
    parser.add_argument("--model-folder", type=Path, help="where the random model is kept between calls")
    parser.add_argument("--stage", choices=("stage1", "stage2"), help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=("medkit", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)  # of the other arm
    args = parser.parse_args()
    if args.against and args.shape != "smollm2-135m":
        parser.error("--against goes with --shape smollm2-135m")

    from medkit import recipes
    from medkit.runs import machine

    recipe = recipes.get(args.recipe, recipes.parse_settings(";".join(args.set)))
    if args.stage:
        print(json.dumps(measure_llama(recipe, args.stage, args.steps, args.model_folder)))
    elif args.arm == "medkit":
        print(json.dumps(measure_medkit(recipe, args.steps)))
    elif args.arm == "trl":
        print(json.dumps(measure_trl(recipe, args.steps, args.dtype)))
    else:
        import torch

        line = small(args) if args.shape == "smollm2-135m" else large(args, recipe)
        about = {"recipe": args.recipe, "set": args.set, "shape": args.shape, "steps": args.steps}
        about |= {"hardware": machine.hardware()}
        print(json.dumps(line | about | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
