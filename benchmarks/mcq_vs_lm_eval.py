"""Compares letter scoring with lm-evaluation-harness: agreement of the answers, and speed.

    python benchmarks/mcq_vs_lm_eval.py --data-dir DIR --n 400 [--dtype float32|bfloat16] [--out FILE]

Both programs score the first N rows of MedMCQA dev and of MedQA test with the same SmolLM2-135M-Instruct in
memory and the same tokens (checked): with the kit's prompts (instruction and chat template), and with the
harness's own for `medmcqa` and `medqa_4options`. They take turns on parts of the rows, and change the order
after every part, so that other load on the machine affects both. The time includes tokenizing, but not
loading.

The harness runs through its own `loglikelihood` with its default batch size of 1, which is also its fastest
here. It, too, computes each prompt only once for all four letters.

Needs lm-eval (pip install -e '.[bench]'). The last line printed is a JSON object.
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
class PromptStyle:
    name: str
    render: Callable[[MCQItem], str]  # the text before the answer
    space: str  # between the text and the letter


@dataclass
class Answers:
    """The answers of one program, and its seconds for each part of the rows."""

    letters: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rescored: int = 0  # near-ties, medkit only
    flips: int = 0


def harness_prompt(item: MCQItem) -> str:
    """The prompt of the harness's task, made by the task's own code."""
    if item.source == "medmcqa":
        named = zip(("opa", "opb", "opc", "opd"), item.options, strict=True)
        return medmcqa_prompt({"question": item.question, **dict(named)})
    named = zip(("ending0", "ending1", "ending2", "ending3"), item.options, strict=True)
    return medqa_prompt({"sent1": item.question, **dict(named)})


def ask_harness(lm: HFLM, style: PromptStyle, items: list[MCQItem]) -> list[str]:
    pairs = [(style.render(item), style.space + letter) for item in items for letter in LETTERS]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return best([score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)])


def best(scores: list[float]) -> list[str]:
    """The best letter of each item from its four scores; of equal scores the first, as in the harness."""
    return [LETTERS[i] for i in np.array(scores).reshape(-1, 4).argmax(axis=1)]


def ask_kit(
    model, tokenizer, style: PromptStyle, items: list[MCQItem], max_batch_tokens: int, answers=None
) -> list[str]:
    scored = letter_scoring.score(
        model,
        tokenizer,
        items,
        encode=lambda item: tokenizer.encode(style.render(item), add_special_tokens=False),
        letter_tokens=letter_tokens(tokenizer, style),
        max_batch_tokens=max_batch_tokens,
        progress=False,
    )
    if answers:
        answers.rescored += scored.report["rescored"]
        answers.flips += scored.report["flips"]
    return [outcome.predicted for outcome in scored.outcomes]


def letter_tokens(tokenizer, style: PromptStyle) -> list[int]:
    return [tokenizer.encode(style.space + letter, add_special_tokens=False)[-1] for letter in LETTERS]


def check_same_tokens(lm: HFLM, tokenizer, style: PromptStyle, items: list[MCQItem]) -> None:
    """Exit unless the harness encodes text and letter as the same tokens as medkit."""
    for item in items:
        text = style.render(item)
        for letter, token in zip(LETTERS, letter_tokens(tokenizer, style), strict=True):
            context, continuation = lm._encode_pair(text, style.space + letter)
            if context + continuation != [*tokenizer.encode(text, add_special_tokens=False), token]:
                raise SystemExit(
                    f"{style.name}, {item.source} {item.id}: the harness tokenizes it differently"
                )


def compare(data_dir: str, n: int, dtype: str, parts: int, harness_batch: int, max_batch_tokens: int) -> dict:
    folder = smollm2.folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=harness_batch)
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    items = []
    for name in ("medmcqa", "medqa"):
        items += sources.load(name, "eval", data_dir=data_dir, limit=n, progress=False).records
    styles = {
        "kit_prompts": PromptStyle("kit", lambda item: chat.prompt(prompts.messages(item)[:2]), ""),
        "harness_prompts": PromptStyle("harness", harness_prompt, " "),
    }
    for style in styles.values():
        check_same_tokens(lm, tokenizer, style, items)
        ask_harness(lm, style, items[:2])  # warm-up, not timed
        ask_kit(model, tokenizer, style, items[:2], max_batch_tokens)

    item_parts = [items[i::parts] for i in range(parts)]  # each with rows of both data sets
    answers = {(program, name): Answers() for name in styles for program in ("medkit", "lm_eval")}
    bar = tqdm(total=parts * len(answers), desc="parts scored", unit="part")
    for turn, part in enumerate(item_parts):
        for program, name in answers if turn % 2 else reversed(answers):
            result, style = answers[program, name], styles[name]
            start = time.perf_counter()
            if program == "medkit":
                result.letters += ask_kit(model, tokenizer, style, part, max_batch_tokens, result)
            else:
                result.letters += ask_harness(lm, style, part)
            result.seconds.append(time.perf_counter() - start)
            bar.update()
    bar.close()
    gold = [item.answer for part in item_parts for item in part]
    kit_prompts, harness_prompts = (
        summary(answers["medkit", name], answers["lm_eval", name], gold) for name in styles
    )
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
    """speed_ratio: total seconds of the harness over those of medkit. The ratios by part show the noise."""
    return {
        "agreement": share_equal(kit.letters, harness.letters),
        "accuracy_medkit": share_equal(kit.letters, gold),
        "accuracy_lm_eval": share_equal(harness.letters, gold),
        "speed_ratio": sum(harness.seconds) / sum(kit.seconds),
        "speed_ratio_by_part": [b / a for a, b in zip(kit.seconds, harness.seconds, strict=True)],
        "seconds_medkit": sum(kit.seconds),
        "seconds_lm_eval": sum(harness.seconds),
        "rescored": kit.rescored,
        "flips": kit.flips,
    }


def share_equal(first: list[str], second: list[str]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with medmcqa/ and medqa/")
    parser.add_argument("--n", type=int, default=400, help="rows of each data set")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--parts", type=int, default=4, help="number of turns")
    parser.add_argument("--harness-batch-size", type=int, default=1, help="lm-eval's own default is 1")
    parser.add_argument("--max-batch-tokens", type=int, default=768, help="medkit's batches")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    result = compare(
        options.data_dir,
        options.n,
        options.dtype,
        options.parts,
        options.harness_batch_size,
        options.max_batch_tokens,
    )
    if options.out:
        storage.write_json(options.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
