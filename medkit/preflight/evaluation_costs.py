"""Estimates of notebooks 03 and 04: prompts, answers, hours and memory.

Upper estimates: every answer is as long as allowed. Each token of an answer reads all weights, so that a step
of decoding takes the time of its FLOPs or of its bytes, whichever is longer, at the share of the data sheet's
speed that training is assumed to reach.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medkit import prompts, pubmedqa
from medkit.data.builtin import general as written
from medkit.data.sources import EXAMS, SOURCES
from medkit.preflight import estimate
from medkit.preflight.estimate import GB, Shape
from medkit.recipes import RELEASED, Recipe
from medkit.records import LETTERS
from medkit.runs.arms import required
from medkit.train.metrics import data_sheet

CONSUMER_MODELS = 2  # base, Med-Nirvana
QUERIES = ("icliniq", "healthcaremagic")
SAMPLE = 400  # prompts of each source
CPU_BANDWIDTH = 10e9  # bytes/s, assumed
# In a batch, bitsandbytes unpacks a layer's 4-bit weights into memory and multiplies from there.
UNPACKED_PASSES = 2 * 2  # bytes a weight: written and read in 16 bit
LOGITS = 4  # arrays of float32 logits that sampling keeps at once


@dataclass(frozen=True)
class Pass:
    """One way of asking each model of a notebook."""

    name: str
    models: int
    prompts: int  # of each model
    prompt_tokens: float  # of these prompts; what they share is not counted where it is computed once
    longest: int  # tokens of the longest prompt
    batch: int  # answers decoded at once; of letters, prompts in a pass
    new_tokens: int = 0  # of an answer, at most; 0: letters are read without one

    @property
    def generated(self) -> int:
        """Tokens of all models' answers, at most."""
        return self.models * self.prompts * self.new_tokens

    @property
    def steps(self) -> int:
        """Decoding steps of all models, at most."""
        return self.models * math.ceil(self.prompts / self.batch) * self.new_tokens


def asked(recipe: Recipe, tokenizer, loaded: dict, whole) -> dict[str, list[Pass]]:
    """The passes of notebooks 03 and 04. loaded: evaluation records by (source, "eval"), of which `whole`
    says whether they are all that there are; the first SAMPLE of each are tokenized."""
    chat, ids, there = prompts.ChatFormat.from_tokenizer(tokenizer), {}, {}
    for name in (*EXAMS, *QUERIES):
        records = loaded[name, "eval"]
        ids[name] = [tuple(prompts.prompt_ids(tokenizer, chat, record)) for record in records[:SAMPLE]]
        part = SOURCES[name].parts[recipe.data.source_part(name, "eval")[1]]
        there[name] = len(records) if whole else part.rows
    lengths = {name: [len(one) for one in of] for name, of in ids.items()}
    shared = len(prompts.shared_prefix([one for name in EXAMS for one in ids[name]]))
    general = [len(prompts.prompt_ids(tokenizer, chat, one)) for one in written.questions()]
    counts = {name: there[name] for name in EXAMS}
    queries = [n for name in QUERIES for n in lengths[name]]
    return {
        "03_mcq_eval": exam_passes(recipe, counts, {name: lengths[name] for name in EXAMS}, shared, general),
        "04_consumer_eval": consumer_passes(recipe, sum(there[name] for name in QUERIES), queries),
    }


def exam_passes(
    recipe: Recipe,
    counts: dict[str, int],
    lengths: Mapping[str, Sequence[int]],
    shared: int,
    general: Sequence[int] = (1,),
) -> list[Pass]:
    """Notebook 03's. counts: evaluation questions there are, by benchmark; lengths: tokens of the prompts of
    some of each; shared: tokens that all begin with; general: tokens of the general questions. The texts for
    perplexity are shorter and fewer, and left out.
    """
    spec, models = recipe.mcq, len({*required(recipe), "med-mix", "control"})
    spared = shared if spec.prefix_cache else 0

    def one(name: str, questions: dict[str, int], of: Mapping = lengths, new_tokens: int = 0) -> Pass:
        longest = max(max(of[source]) for source in questions)
        batch = (
            spec.generation_batch_size(longest) if new_tokens else max(1, spec.max_batch_tokens // longest)
        )
        less = 0 if new_tokens else spared
        tokens = sum(n * (sum(of[source]) / len(of[source]) - less) for source, n in questions.items())
        return Pass(name, models, sum(questions.values()), tokens, longest, batch, new_tokens)

    def at_most(rows: int) -> dict[str, int]:
        return {source: min(rows or count, count) for source, count in counts.items()}

    found = [one("questions by letter", at_most(spec.rows))]
    if spec.generated_rows:
        spoken = at_most(spec.generated_rows)
        found.append(one("answers in words", spoken, new_tokens=spec.max_new_tokens))
        found.append(one("answers as released", spoken, new_tokens=RELEASED["max_new_tokens"]))
    if spec.permutations:
        others = {s: len(pubmedqa.OPTIONS if s == "pubmedqa" else LETTERS) - 1 for s in counts}
        found.append(
            one("in other orders", {s: others[s] * n for s, n in at_most(spec.permutations).items()})
        )
    if spec.general:
        found.append(one("general questions", {"general": len(general)}, {"general": general}))
    return found


def consumer_passes(recipe: Recipe, count: int, lengths: Sequence[int]) -> list[Pass]:
    """Notebook 04's. count: undamaged queries there are; lengths: tokens of the prompts of some of them."""
    spec, models = recipe.consumer, CONSUMER_MODELS
    cases, mean = min(spec.cases, count), sum(lengths) / len(lengths)
    ways = {"greedy answers": 1, "sampled answers": spec.samples}
    return [
        Pass(name, models, n * cases, n * cases * mean, max(lengths), spec.batch_size, spec.max_new_tokens)
        for name, n in ways.items()
        if n
    ]


def course(recipe: Recipe, shape: Shape, passes: Sequence[Pass], hardware: dict) -> str:
    """Prompts, tokens and hours in a line."""
    took, basis = hours(recipe, shape, passes, hardware)
    ways = ", ".join(
        f"{one.prompts:,} {one.name}" + (f" of up to {one.new_tokens} tokens" if one.new_tokens else "")
        for one in passes
    )
    read = sum(one.models * one.prompt_tokens for one in passes) / 1e6
    written = sum(one.generated for one in passes) / 1e6
    lasting = "hours unknown" if took is None else f"{took:.2g} h of computing them all"
    return (
        f"{passes[0].models} models, each {ways}; {read:.3g}M prompt tokens, at most {written:.3g}M new "
        f"ones, {lasting} ({basis})"
    )


def hours(recipe: Recipe, shape: Shape, passes: Sequence[Pass], hardware: dict) -> tuple[float | None, str]:
    """(hours of all passes, at most; what they rest on); None where the device's speed is not known."""
    speed, basis = estimate.flop_rate(hardware)
    if speed is None:
        return None, basis
    gpu = bool(hardware["gpus"])
    bandwidth, read = CPU_BANDWIDTH, estimate.memory(shape, recipe, recipe.stage1, gpu)
    if gpu:
        bandwidth = estimate.GPU_MFU * data_sheet(hardware["gpus"][0]["name"])[1]
    moved = (read["unpacked weights"] or read["weights"]) * GB
    if gpu and recipe.model.load_in_4bit:
        moved += UNPACKED_PASSES * shape.body
    body = 2.0 * (shape.body + shape.lora(recipe.lora.r, recipe.lora.target_modules))
    head = 2.0 * shape.vocab_size * shape.hidden_size
    seconds = 0.0
    for one in passes:
        seconds += one.models * (one.prompt_tokens * body + one.prompts * head) / speed
        at_once = min(one.batch, one.prompts)
        cache = at_once * (one.longest + one.new_tokens) * kv_bytes(shape, gpu)
        seconds += one.steps * max(at_once * (body + head) / speed, (moved + cache) / bandwidth)
    return seconds / 3600, basis


def kv_bytes(shape: Shape, gpu: bool) -> int:
    """Bytes of keys and values a token: in bfloat16 on a GPU, in float32 on a CPU."""
    return shape.num_hidden_layers * 2 * shape.linears["k_proj"][1] * (2 if gpu else 4)


def memory(recipe: Recipe, shape: Shape, passes: Sequence[Pass], gpu: bool) -> dict[str, float]:
    """10^9 bytes by part, at the largest of the passes."""
    return max((_memory(recipe, shape, one, gpu) for one in passes), key=lambda parts: sum(parts.values()))


def _memory(recipe: Recipe, shape: Shape, one: Pass, gpu: bool) -> dict[str, float]:
    loaded, wide = estimate.memory(shape, recipe, recipe.stage1, gpu), 2 if gpu else 4
    rows = min(one.batch, one.prompts)
    a_layer = 6 * shape.hidden_size + 2 * shape.linears["k_proj"][1] + 3 * shape.intermediate_size
    parts = {
        "key-value cache": rows * (one.longest + one.new_tokens) * kv_bytes(shape, gpu),
        "activations": rows * one.longest * a_layer * wide,  # of one layer, of the prompts
        "logits": rows * shape.vocab_size * 4 * (LOGITS if one.new_tokens else 1),
    }
    kept = {name: loaded[name] for name in ("weights", "unpacked weights", "libraries")}
    return kept | {name: size / GB for name, size in parts.items()}
