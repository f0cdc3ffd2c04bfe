"""Recipes: all settings of a run, as small frozen dataclasses, and the four presets.

`paper` follows the paper, and the authors' released notebooks where the paper is silent. `as_released`
follows those notebooks field by field. `recommended` follows the evidence. `cpu` is `recommended` scaled down
to a laptop. report/ledger.py lists where they differ and why.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from medkit import MedkitError

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The released notebooks append `Answer:` to the question and sample without a seed, with the model's
# generation_config, which for Llama 3.1 is this. medkit seeds each answer and omits Transformers' default
# top_k=50, since top_p keeps fewer tokens at nearly every step.
RELEASED: dict = {"max_new_tokens": 128, "temperature": 0.6, "top_p": 0.9}

RULES = {
    "be at least 0": lambda value: value >= 0,
    "be at least 1": lambda value: value >= 1,
    "be at least 32": lambda value: value >= 32,
    "be above 0": lambda value: value > 0,
    "lie in [0, 1)": lambda value: 0 <= value < 1,
    "lie between 0 and 1": lambda value: 0 < value < 1,
}
Count = Annotated[int, "be at least 0"]
Size = Annotated[int, "be at least 1"]
Positive = Annotated[float, "be above 0"]
NotNegative = Annotated[float, "be at least 0"]
Share = Annotated[float, "lie in [0, 1)"]


class RecipeError(MedkitError):
    """An unknown recipe or field, an invalid value, or fields that contradict each other."""


class Spec:
    """A part of a recipe. Field types are validated: Literal lists the values, Annotated names a rule."""

    prefix = ""  # of the fields' full names; empty for a stage's settings, which serve both stages

    def __post_init__(self):
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value, allowed = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in allowed:
                raise RecipeError(f"{self.prefix}{name} is {value!r}; it must be one of {', '.join(allowed)}")
            if get_origin(hint) is Annotated and not RULES[allowed[1]](value):
                raise RecipeError(f"{self.prefix}{name} is {value}; it must {allowed[1]}")


@dataclass(frozen=True)
class ModelSpec(Spec):
    prefix = "model."
    base: str = "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"  # Hub id, folder, or "smollm2" (from PyPI)
    revision: str = "main"  # Hub revision; run.json records its commit
    load_in_4bit: bool = True  # NF4 through bitsandbytes
    # "own": the model's; "chatml": ChatML with EOS instead of <|im_end|>
    chat_template: Literal["own", "chatml"] = "own"
    # tokens per training row; longer rows are truncated, and counted
    max_length: Annotated[int, "be at least 32"] = 2048


@dataclass(frozen=True)
class DataSpec(Spec):
    prefix = "data."
    origin: Literal["hub", "builtin"] = "hub"  # source of the rows without --data-dir
    # evaluation rows of the built-in corpus; "tune": only for choosing settings
    builtin_part: Literal["report", "tune"] = "report"
    seed: Count = 42  # for shuffling, splitting and sampling rows
    # fraction of the stage-1 mixture
    validation_share: Annotated[float, "lie between 0 and 1"] = 0.1
    rows_medqa: Count = 0  # training rows read; 0 = all
    rows_medmcqa: Count = 0
    rows_pubmedqa: Count = 0
    # "letter": `C`; "letter_and_text": `Answer: C) option text`
    mcq_target: Literal["letter", "letter_and_text"] = "letter"
    deduplicate: bool = True  # drop repeated NoteChat conversations
    # "note": conversations of a clinical note are all in training or all in validation; "row": random rows
    notechat_split: Literal["note", "row"] = "note"
    dialogues: Literal["notechat", "mts_dialog"] = "notechat"  # stage-2 consultations
    # "artificial": the machine-labelled rows; "labelled_outside_fold": the 500 expert-labelled rows outside
    # the official test fold, with evaluation on that fold only
    pubmedqa_train: Literal["artificial", "labelled_outside_fold"] = "artificial"

    def source_part(self, name: str, part: str) -> tuple[str, str]:
        """(source, part of it) to read for `part` ("train" or "eval") of `name`, which is a source or
        "dialogues" (the stage-2 consultations)."""
        if name == "dialogues":
            return self.dialogues, part
        if name == "pubmedqa" and self.pubmedqa_train == "labelled_outside_fold":
            return name, {"train": "labelled_outside_fold", "eval": "official_fold"}[part]
        return name, part

    def row_limit(self, name: str, part: str) -> int:
        """Number of rows to read; 0 = all."""
        return getattr(self, f"rows_{name}", 0) if part == "train" else 0


@dataclass(frozen=True)
class LoraSpec(Spec):
    prefix = "lora."
    r: Size = 16
    alpha: Size = 16
    dropout: Share = 0.0
    rslora: bool = True  # scale alpha / sqrt(r) instead of alpha / r
    target_modules: tuple[str, ...] = LINEAR_MODULES


@dataclass(frozen=True)
class TrainSpec(Spec):
    """Optimization of one stage. With packing, a "row" is a row of packed samples."""

    learning_rate: Positive = 3e-4
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Count = 10  # optimizer steps
    weight_decay: NotNegative = 0.01
    optimizer: Literal["adamw_8bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused"] = "adamw_8bit"
    batch_size: Size = 4  # rows per device and batch
    accumulation: Size = 4  # batches per optimizer step
    micro_batch_tokens: Count = 0  # per forward pass on a CPU, rows concatenated; 0 = the whole batch
    epochs: Positive = 1.0
    max_steps: Count = 0  # optimizer steps; 0 = set by epochs
    # "answer": assistant turns only; "text": the whole row including the prompt
    loss_on: Literal["answer", "text"] = "answer"
    # "isolated": best-fit packing without attention across samples; "wrapped": concatenated and cut at length
    packing: Literal["isolated", "wrapped", "off"] = "isolated"
    group_by_length: bool = False  # without packing: an optimizer step takes rows of similar length
    gradient_checkpointing: bool = False
    eval_rows: Count = 1000  # seeded sample of validation rows per evaluation; 0 = all
    eval_every: Size = 360  # optimizer steps
    save_every: Size = 360  # optimizer steps between checkpoints
    seed: Count = 0  # for LoRA initialization and batch order
    # experiment tracker that also logs the losses, in the run's folder
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.packing == "wrapped" and self.loss_on == "answer":
            raise RecipeError("packing=wrapped cuts samples anywhere, so it goes with loss_on=text only")
        if self.group_by_length and self.packing != "off":
            raise RecipeError(
                "packed rows cannot be grouped by length; set packing=off, or group_by_length=false"
            )


@dataclass(frozen=True)
class DmtSpec(Spec):
    """Dual-stage mixed fine-tuning: the training rows of stage 2 and its starting point."""

    prefix = "dmt."
    notechat_train: Size = 100_000  # consultations
    notechat_validation: Size = 10_000
    replay_share: NotNegative = 1 / 3  # stage-1 rows per NoteChat row (the paper's 33,333 per 100,000)
    # Rows added to the consultations. "stage1": the replayed rows; "dialogues": the same number of further
    # consultations, for a control without replay at equal rows and steps
    fill: Literal["stage1", "dialogues"] = "stage1"
    # "continue": train the same adapter; "merge": merge it in 16 bit, quantize, train a new one; "joint": a
    # single stage that trains a new adapter on all stage-1 rows and the consultations
    handover: Literal["continue", "merge", "joint"] = "continue"
    relearn_steps: Count = 0  # optimizer steps on stage-1 rows after stage 2, as a separate arm; 0 = no arm
    # "carried": stage 2 continues with stage 1's optimizer moments
    optimizer_state: Literal["fresh", "carried"] = "fresh"
    # weight of the replayed rows among stage 2's supervised tokens; 0 = unweighted
    replay_token_share: Share = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.handover == "joint" and self.fill != "stage1":
            raise RecipeError("dmt.handover=joint trains on all of stage 1's rows; set dmt.fill=stage1")
        if self.optimizer_state == "carried" and self.handover != "continue":
            raise RecipeError(
                "dmt.optimizer_state=carried belongs to stage 1's adapter, which "
                f"dmt.handover={self.handover} does not continue; set dmt.handover=continue"
            )


@dataclass(frozen=True)
class McqSpec(Spec):
    prefix = "mcq."
    rows: Count = 0  # questions per benchmark, first in file order; 0 = all
    generated_rows: Count = 200  # questions per benchmark also answered in words, by two protocols; 0 = none
    permutations: Count = 0  # questions per benchmark asked in all cyclic option orders; 0 = none
    general: bool = False  # also evaluate the built-in general (non-medical) questions and texts
    lm_eval_tasks: str = ""  # comma-separated lm-evaluation-harness tasks; "" = none
    max_new_tokens: Size = 32
    prefix_cache: bool = True  # compute the shared instruction once
    max_batch_tokens: Size = 8192

    def generation_batch_size(self, longest: int) -> int:
        """Batch size for generating answers to prompts of up to `longest` tokens.

        A decoding step takes little longer for many answers than for one. A prompt's forward pass stores
        nothing for a backward pass, so it needs a fraction of training's memory.
        """
        return max(1, min(32, 16 * self.max_batch_tokens // longest))


@dataclass(frozen=True)
class ConsumerSpec(Spec):
    prefix = "consumer."
    cases: Size = 50  # patient queries, sampled from the undamaged rows of both sources
    seed: int = 42
    max_new_tokens: Size = 512
    batch_size: Size = 8
    samples: Count = 4  # sampled answers in addition to the greedy one; 0 = none
    temperature: NotNegative = 0.7  # for the sampled answers
    scorer: str = "roberta-large"  # BERTScore encoder: Hub id, folder, or "minilm" (from PyPI)
    scorer_layers: Size = 17  # hidden layer whose states are compared

    def __post_init__(self):
        super().__post_init__()
        if self.samples and not self.temperature:
            raise RecipeError(
                "consumer.samples needs a consumer.temperature above 0; greedy decoding has one answer"
            )


@dataclass(frozen=True)
class Recipe:
    name: str
    about: str
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    lora: LoraSpec = field(default_factory=LoraSpec)
    stage1: TrainSpec = field(default_factory=TrainSpec)
    stage2: TrainSpec = field(default_factory=TrainSpec)
    dmt: DmtSpec = field(default_factory=DmtSpec)
    mcq: McqSpec = field(default_factory=McqSpec)
    consumer: ConsumerSpec = field(default_factory=ConsumerSpec)

    def __post_init__(self):
        # Not checked in LoraSpec: an external adapter may use other modules.
        modules = self.lora.target_modules
        if not modules or not set(modules) <= set(LINEAR_MODULES):
            raise RecipeError(
                f"lora.target_modules={','.join(modules)}; name at least one linear module of "
                f"{', '.join(LINEAR_MODULES)}"
            )
        first, second = self.stage1.optimizer, self.stage2.optimizer
        if self.dmt.optimizer_state == "carried" and first != second:
            raise RecipeError(
                "dmt.optimizer_state=carried needs the same optimizer in both stages, not "
                f"stage1.optimizer={first} and stage2.optimizer={second}"
            )


RELEASED_STAGE = TrainSpec(loss_on="text", packing="wrapped", gradient_checkpointing=True, eval_rows=0)
CPU_STAGE = TrainSpec(
    optimizer="adamw_torch", accumulation=1, packing="off", eval_rows=8, eval_every=40, save_every=40
)

RECOMMENDED = Recipe(
    "recommended",
    "what the evidence supports: answer-only loss, own template, packing, clean NoteChat",
    # 200 questions in every order: proportions within 7 points, for a quarter more prompts
    mcq=McqSpec(permutations=200, general=True),
)
AS_RELEASED = Recipe(
    "as_released",
    "the authors' released notebooks, field by field; what still differs is in the ledger",
    model=ModelSpec(chat_template="chatml"),
    data=DataSpec(mcq_target="letter_and_text", deduplicate=False, notechat_split="row"),
    stage1=RELEASED_STAGE,
    stage2=RELEASED_STAGE,
    dmt=DmtSpec(handover="merge"),
    # all questions answered in words, because the notebooks did not score letters
    mcq=McqSpec(generated_rows=4183, max_new_tokens=128),
)
PAPER = replace(
    AS_RELEASED,
    name="paper",
    about="what the paper states; the released notebooks fill what it leaves out",
    data=replace(AS_RELEASED.data, mcq_target="letter"),
    stage1=replace(RELEASED_STAGE, accumulation=1),
    stage2=replace(RELEASED_STAGE, accumulation=1),
    mcq=McqSpec(max_new_tokens=128),
)
CPU = Recipe(
    "cpu",
    "`recommended` at the size of a laptop: SmolLM2-135M-Instruct, built-in corpus",
    model=ModelSpec(base="smollm2"),
    data=DataSpec(origin="builtin", rows_medqa=16, rows_medmcqa=16, rows_pubmedqa=400),
    stage1=replace(CPU_STAGE, learning_rate=6e-4, micro_batch_tokens=1536),
    stage2=replace(
        CPU_STAGE, learning_rate=1e-3, micro_batch_tokens=1024, group_by_length=True, eval_every=12
    ),
    dmt=DmtSpec(notechat_train=96, notechat_validation=24, replay_share=1.0),
    mcq=McqSpec(rows=40, generated_rows=5, permutations=10, max_new_tokens=8, max_batch_tokens=768),
    consumer=ConsumerSpec(
        cases=12, max_new_tokens=192, samples=1, scorer="minilm", scorer_layers=6, batch_size=32
    ),
)
PRESETS = {recipe.name: recipe for recipe in (CPU, PAPER, AS_RELEASED, RECOMMENDED)}


def get(name: str, overrides: dict[str, str] | str = "") -> Recipe:
    """The preset `name` with `overrides` applied, such as {"stage2.learning_rate": "1e-4"} or the same as
    text (see parse_settings).

    Raises RecipeError for an unknown recipe or field, and for invalid values.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown recipe {name!r}; the recipes are {', '.join(PRESETS)}")
    settings = parse_settings(overrides) if isinstance(overrides, str) else overrides
    # The fields of a part are set at once, since some values are valid only together.
    recipe, parts = PRESETS[name], {}
    for path, text in settings.items():
        part, value = _parsed(recipe, path, text)
        parts.setdefault(part, {})[path.partition(".")[2]] = value
    changed = {}
    for part, fields in parts.items():
        try:
            changed[part] = replace(getattr(recipe, part), **fields)
        except RecipeError as error:
            assignments = ", ".join(f"{part}.{field}={settings[f'{part}.{field}']}" for field in fields)
            raise RecipeError(f"{assignments}: {error}") from None
    return replace(recipe, **changed)


def from_dict(fields: dict) -> Recipe:
    """The recipe stored in run.json, independent of the current presets. Raises RecipeError if it does not
    match this version's fields."""
    hints = get_type_hints(Recipe)
    try:
        parts = {
            name: hints[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
            if isinstance(value, dict)
            else value
            for name, value in fields.items()
        }
        return Recipe(**parts)
    except (TypeError, KeyError) as error:
        raise RecipeError(f"the recipe in run.json does not match this version's fields ({error})") from None


def parse_settings(text: str) -> dict[str, str]:
    """Parse `FIELD=VALUE` assignments, separated by newlines or ';', into a dict.

    Raises RecipeError for anything else, and for a field that is set twice.
    """
    assignments = {}
    for line in filter(None, (line.strip() for line in text.replace(";", "\n").splitlines())):
        path, _, value = (side.strip() for side in line.partition("="))
        if not path or not value:
            raise RecipeError(f"{line!r} is not a setting; write FIELD=VALUE, e.g. stage2.learning_rate=1e-4")
        if path in assignments:
            raise RecipeError(f"{path} is set twice; give it once")
        assignments[path] = value
    return assignments


def flat(recipe: Recipe) -> dict[str, Any]:
    """All fields by dotted name, in order of declaration."""
    fields = {}
    for part, value in dataclasses.asdict(recipe).items():
        fields |= {f"{part}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {part: value}
    return fields


def _parsed(recipe: Recipe, path: str, text: str) -> tuple[str, Any]:
    """(part of the recipe, parsed value) of a setting."""
    names = [name for name in flat(recipe) if "." in name]
    if path not in names:
        matches = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
        hint = f"did you mean {matches[0]}?" if matches else "`medkit recipes` lists them"
        raise RecipeError(f"unknown field {path!r}; {hint}")
    part, name = path.split(".")
    field_type = get_type_hints(type(getattr(recipe, part)))[name]
    type_name, parse = PARSERS.get(field_type, PARSERS[str])  # Literal values are text
    try:
        return part, parse(text)
    except (ValueError, KeyError, ZeroDivisionError):
        raise RecipeError(f"{path}={text}: a value of type {type_name} was expected") from None


def _number(text: str) -> float:
    value = float(Fraction(text)) if "/" in text else float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


# Field type -> (name in error messages, parser)
PARSERS: dict = {
    bool: ("true/false", lambda text: {"true": True, "false": False}[text.lower()]),
    int: ("whole number", lambda text: int(text.replace("_", "").replace(",", ""))),
    float: ("number", _number),
    str: ("text", str),
    tuple[str, ...]: (
        "a,b,c list",
        lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
    ),
}
