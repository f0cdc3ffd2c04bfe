"""Letter scoring side by side with lm-evaluation-harness: the same answers, and how much sooner.

    python benchmarks/mcq_vs_lm_eval.py --data-dir DIR --n 400 [--dtype float32|bfloat16] [--out FILE]

Both score the first N rows of MedMCQA dev and of MedQA test, with one SmolLM2-135M-Instruct in memory, from
the same tokens (checked): on the kit's prompts (instruction and chat template), and on the harness's own for
`medmcqa` and `medqa_4options`. They take turns, a part of the rows at a time, and change places every part,
so that what else the machine does falls on both. Time is that of scoring, tokenizing included, loading not.

The harness is asked through its own `loglikelihood`, at its own default batch size of 1, which is also its
fastest here; it too computes each prompt once for all four letters.

Needs lm-eval (pip install medkit[bench]). Prints one JSON line last.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from lm_eval import __version__ as lm_eval_version
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.medmcqa.utils_medmcqa import doc_to_text as medmcqa_prompt
from lm_eval.tasks.medqa.preprocess_medqa import doc_to_text as medqa_prompt
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from medkit import prompts
from medkit.data import sources
from medkit.evaluate import letter_scoring
from medkit.records import LETTERS, MCQItem
from medkit.runs import machine, storage
from medkit.train import smollm2


@dataclass(frozen=True)
class Prompts:
    """One way to ask."""

    name: str
    render: Callable[[MCQItem], str]  # the text up to where the answer begins
    space: str  # between that and the letter


@dataclass
class Answers:
    """What one program answered, part after part of the rows, and in how many seconds each."""

    letters: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rescored: int = 0  # medkit's near-ties
    flips: int = 0


def harness_prompt(item: MCQItem) -> str:
    """The prompt of the harness's own task for the item, made by the task's own code."""
    if item.source == "medmcqa":
        named = zip(("opa", "opb", "opc", "opd"), item.options, strict=True)
        return medmcqa_prompt({"question": item.question, **dict(named)})
    named = zip(("ending0", "ending1", "ending2", "ending3"), item.options, strict=True)
    return medqa_prompt({"sent1": item.question, **dict(named)})


def ask_harness(lm: HFLM, way: Prompts, items: list[MCQItem]) -> list[str]:
    pairs = [(way.render(item), way.space + letter) for item in items for letter in LETTERS]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return best([score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)])


def best(scores: list[float]) -> list[str]:
    """Four scores an item, in order, to its best letter; of equals the first, as the harness takes it."""
    return [LETTERS[i] for i in np.array(scores).reshape(-1, 4).argmax(axis=1)]


def ask_kit(
    model, tokenizer, way: Prompts, items: list[MCQItem], max_batch_tokens: int, answers=None
) -> list[str]:
    scored = letter_scoring.score(
        model,
        tokenizer,
        items,
        encode=lambda item: tokenizer.encode(way.render(item), add_special_tokens=False),
        letter_tokens=letter_tokens(tokenizer, way),
        max_batch_tokens=max_batch_tokens,
        progress=False,
    )
    if answers:
        answers.rescored += scored.report["rescored"]
        answers.flips += scored.report["flips"]
    return [outcome.predicted for outcome in scored.outcomes]


def letter_tokens(tokenizer, way: Prompts) -> list[int]:
    return [tokenizer.encode(way.space + letter, add_special_tokens=False)[-1] for letter in LETTERS]


def check_same_tokens(lm: HFLM, tokenizer, way: Prompts, items: list[MCQItem]) -> None:
    """The harness's own encoding of text and letter is to be the same tokens, else nothing here compares."""
    for item in items:
        text = way.render(item)
        for letter, token in zip(LETTERS, letter_tokens(tokenizer, way), strict=True):
            context, continuation = lm._encode_pair(text, way.space + letter)
            if context + continuation != [*tokenizer.encode(text, add_special_tokens=False), token]:
                raise SystemExit(f"{way.name}, {item.source} {item.id}: the harness tokenizes it otherwise")


def compare(data_dir: str, n: int, dtype: str, parts: int, harness_batch: int, max_batch_tokens: int) -> dict:
    folder = smollm2.folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=harness_batch)
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    items = []
    for name in ("medmcqa", "medqa"):
        items += sources.load(name, "eval", data_dir=data_dir, limit=n, progress=False).records
    ways = {
        "kit_prompts": Prompts("kit", lambda item: chat.prompt(prompts.messages(item)[:2]), ""),
        "harness_prompts": Prompts("harness", harness_prompt, " "),
    }
    for way in ways.values():
        check_same_tokens(lm, tokenizer, way, items)
        ask_harness(lm, way, items[:2])  # what a first call sets up is not to count
        ask_kit(model, tokenizer, way, items[:2], max_batch_tokens)

    shares = [items[i::parts] for i in range(parts)]  # of both data sets alike
    found = {(who, name): Answers() for name in ways for who in ("medkit", "lm_eval")}
    bar = tqdm(total=parts * len(found), desc="parts scored", unit="part")
    for turn, share in enumerate(shares):
        for who, name in found if turn % 2 else reversed(found):
            answers = found[who, name]
            start = time.perf_counter()
            if who == "medkit":
                answers.letters += ask_kit(model, tokenizer, ways[name], share, max_batch_tokens, answers)
            else:
                answers.letters += ask_harness(lm, ways[name], share)
            answers.seconds.append(time.perf_counter() - start)
            bar.update()
    bar.close()
    gold = [item.answer for share in shares for item in share]
    kit_prompts = summary(found["medkit", "kit_prompts"], found["lm_eval", "kit_prompts"], gold)
    harness_prompts = summary(found["medkit", "harness_prompts"], found["lm_eval", "harness_prompts"], gold)
    return {
        "n": n,
        "dtype": dtype,
        **kit_prompts,
        **{f"{key}_harness_prompts": value for key, value in harness_prompts.items()},
        "agreement": min(kit_prompts["agreement"], harness_prompts["agreement"]),
        "agreement_kit_prompts": kit_prompts["agreement"],
        "lm_eval": lm_eval_version,
        "lm_eval_batch_size": harness_batch,
        "max_batch_tokens": max_batch_tokens,
        "parts": parts,
        "threads": torch.get_num_threads(),
        "hardware": machine.hardware(),
    }


def summary(kit: Answers, harness: Answers, gold: list[str]) -> dict:
    """The ratio is of total seconds, above 1 where medkit is sooner; that of each part shows the noise."""
    return {
        "agreement": same(kit.letters, harness.letters),
        "accuracy_medkit": same(kit.letters, gold),
        "accuracy_lm_eval": same(harness.letters, gold),
        "speed_ratio": sum(harness.seconds) / sum(kit.seconds),
        "speed_ratio_by_part": [b / a for a, b in zip(kit.seconds, harness.seconds, strict=True)],
        "seconds_medkit": sum(kit.seconds),
        "seconds_lm_eval": sum(harness.seconds),
        "rescored": kit.rescored,
        "flips": kit.flips,
    }


def same(first: list[str], second: list[str]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with medmcqa/ and medqa/")
    parser.add_argument("--n", type=int, default=400, help="rows of each data set")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--parts", type=int, default=4, help="turns the two take")
    parser.add_argument("--harness-batch-size", type=int, default=1, help="lm-eval's own default is 1")
    parser.add_argument("--max-batch-tokens", type=int, default=768, help="medkit's batches")
    parser.add_argument("--out", type=Path, help="write the line to this file too")
    options = parser.parse_args()
    found = compare(
        options.data_dir,
        options.n,
        options.dtype,
        options.parts,
        options.harness_batch_size,
        options.max_batch_tokens,
    )
    if options.out:
        storage.write_json(options.out, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
