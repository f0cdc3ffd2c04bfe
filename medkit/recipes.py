"""Recipes: every choice a run makes, as small frozen dataclasses, and the four presets.

`paper` is what the paper states, with the authors' released notebooks filling what it leaves out;
`as_released` is those notebooks, field by field; `recommended` is what the evidence supports; `cpu` is
`recommended` at the size of a laptop. report/ledger.py says, field by field, where they differ and why.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from medkit import MedkitError

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The released notebooks put `Answer:` behind the question and sample, unseeded, as the model's own
# generation_config says, which for Llama 3.1 is this; here each answer has a seed, and Transformers' default
# of looking at the fifty likeliest tokens alone is left out, as top_p keeps fewer at nearly every step.
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
    """An unknown recipe or field, a value of the wrong type, or fields that contradict each other."""


class Spec:
    """A part of a recipe. A field's type says what it may hold: Literal the values, Annotated a rule."""

    part = ""  # what the fields' full names begin with; a stage may be either of two

    def __post_init__(self):
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value, allowed = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in allowed:
                raise RecipeError(f"{self.part}{name} is {value!r}; it must be one of {', '.join(allowed)}")
            if get_origin(hint) is Annotated and not RULES[allowed[1]](value):
                raise RecipeError(f"{self.part}{name} is {value}; it must {allowed[1]}")


@dataclass(frozen=True)
class ModelSpec(Spec):
    part = "model."
    base: str = "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"  # hub id, a folder, or "smollm2" (from PyPI)
    revision: str = "main"  # hub revision; its commit is written to run.json
    load_in_4bit: bool = True  # NF4 through bitsandbytes
    # "own": the model's; "chatml": ChatML whose <|im_end|> stands for EOS
    chat_template: Literal["own", "chatml"] = "own"
    # tokens of a training row; a longer row is cut there and counted
    max_length: Annotated[int, "be at least 32"] = 2048


@dataclass(frozen=True)
class DataSpec(Spec):
    part = "data."
    origin: Literal["hub", "builtin"] = "hub"  # where rows come from without --data-dir
    # of the built-in corpus, what evaluates; "tune": only for choosing settings
    builtin_part: Literal["report", "tune"] = "report"
    seed: Count = 42  # shuffles, splits and every draw of rows
    # of the stage-1 mixture's rows
    validation_share: Annotated[float, "lie between 0 and 1"] = 0.1
    rows_medqa: Count = 0  # training rows read; 0 = all
    rows_medmcqa: Count = 0
    rows_pubmedqa: Count = 0
    # "letter": `C`; "letter_and_text": `Answer: C) option text`
    mcq_target: Literal["letter", "letter_and_text"] = "letter"
    deduplicate: bool = True  # drop NoteChat conversations that repeat an earlier one
    # "note": no clinical note on both sides; "row": rows at random
    notechat_split: Literal["note", "row"] = "note"
    dialogues: Literal["notechat", "mts_dialog"] = "notechat"  # stage 2's consultations
    # "artificial": the machine-labelled rows; "labelled_outside_fold": the 500 expert-labelled rows that are
    # not in the official test fold, and only that fold evaluates
    pubmedqa_train: Literal["artificial", "labelled_outside_fold"] = "artificial"

    def reads(self, name: str, part: str) -> tuple[str, str]:
        """The source, and the part of it, that is read for `part` ("train" or "eval") of `name`: a source's
        name, or "dialogues" for the source of stage 2's consultations."""
        if name == "dialogues":
            return self.dialogues, part
        if name == "pubmedqa" and self.pubmedqa_train == "labelled_outside_fold":
            return name, {"train": "labelled_outside_fold", "eval": "official_fold"}[part]
        return name, part

    def at_most(self, name: str, part: str) -> int:
        """Rows of it that are read; 0 = all."""
        return getattr(self, f"rows_{name}", 0) if part == "train" else 0


@dataclass(frozen=True)
class LoraSpec(Spec):
    part = "lora."
    r: Size = 16
    alpha: Size = 16
    dropout: Share = 0.0
    rslora: bool = True  # scale alpha / sqrt(r) instead of alpha / r
    target_modules: tuple[str, ...] = LINEAR_MODULES


@dataclass(frozen=True)
class TrainSpec(Spec):
    """One stage's optimization. A "row" is a sample, or with packing a row of packed samples."""

    learning_rate: Positive = 3e-4
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Count = 10  # optimizer steps
    weight_decay: NotNegative = 0.01
    optimizer: Literal["adamw_8bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused"] = "adamw_8bit"
    batch_size: Size = 4  # rows per device and batch
    accumulation: Size = 4  # batches per optimizer step
    micro_batch_tokens: Count = 0  # of a CPU's forward pass, rows laid end to end; 0 = the whole batch
    epochs: Positive = 1.0
    max_steps: Count = 0  # optimizer steps; 0 = as many as the epochs take
    # "answer": the assistant's turns; "text": the whole row, prompt included
    loss_on: Literal["answer", "text"] = "answer"
    # "isolated": best fit, samples blind to each other; "wrapped": cut at length
    packing: Literal["isolated", "wrapped", "off"] = "isolated"
    group_by_length: bool = False  # where rows are not packed: rows of similar length share an optimizer step
    gradient_checkpointing: bool = False
    eval_rows: Count = 1000  # validation rows scored at each evaluation, drawn by seed; 0 = all
    eval_every: Size = 360  # optimizer steps
    save_every: Size = 360  # optimizer steps between checkpoints
    seed: Count = 0  # LoRA's initial weights and the order of batches
    # experiment tracker that gets the losses too, in the run's folder
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.packing == "wrapped" and self.loss_on == "answer":
            raise RecipeError("packing=wrapped cuts samples anywhere and goes with loss_on=text only")
        if self.group_by_length and self.packing != "off":
            raise RecipeError(
                "packed rows cannot be grouped by length; set packing=off, or group_by_length=false"
            )


@dataclass(frozen=True)
class DmtSpec(Spec):
    """Dual-stage mixed fine-tuning: what stage 2 trains on besides, and from where it starts."""

    part = "dmt."
    notechat_train: Size = 100_000  # consultations
    notechat_validation: Size = 10_000
    replay_share: NotNegative = 1 / 3  # stage-1 rows per NoteChat row (the paper's 33,333 per 100,000)
    # What stage 2 has beside the consultations asked for. "stage1": the replayed rows; "dialogues": as many
    # further consultations, which is the same number of rows and steps without a replay
    fill: Literal["stage1", "dialogues"] = "stage1"
    # "continue": the same adapter; "merge": into 16 bit, quantized, new adapter; "joint": one stage, in which
    # a fresh adapter on the base learns all of stage 1's training rows beside the consultations
    handover: Literal["continue", "merge", "joint"] = "continue"
    relearn_steps: Count = 0  # optimizer steps on stage 1's rows after stage 2, as an arm of its own; 0: none
    # "carried": stage 2 continues with the moments of stage 1's optimizer
    optimizer_state: Literal["fresh", "carried"] = "fresh"
    # What replayed exam rows weigh of stage 2's supervised tokens; 0 = as many as there are, unweighted
    replay_token_share: Share = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.handover == "joint" and self.fill != "stage1":
            raise RecipeError("dmt.handover=joint trains on all of stage 1's rows; set dmt.fill=stage1")
        if self.optimizer_state == "carried" and self.handover != "continue":
            raise RecipeError(
                "dmt.optimizer_state=carried belongs to stage 1's adapter, which "
                f"dmt.handover={self.handover} does not go on with; set dmt.handover=continue"
            )


@dataclass(frozen=True)
class McqSpec(Spec):
    part = "mcq."
    rows: Count = 0  # questions per benchmark, the first by file order; 0 = all
    generated_rows: Count = 200  # questions per benchmark answered in words too, in two ways; 0 = none
    permutations: Count = 0  # questions per benchmark asked in every cyclic order of their options; 0 = none
    general: bool = False  # the built-in general questions and texts, too: what medicine did not train
    lm_eval_tasks: str = ""  # lm-evaluation-harness's tasks by name, separated by commas; "" = none
    max_new_tokens: Size = 32
    prefix_cache: bool = True  # compute the shared instruction once
    max_batch_tokens: Size = 8192

    def answers_at_once(self, longest: int) -> int:
        """Answers in words that are generated in one batch, to prompts of up to `longest` tokens.

        A step of decoding takes little longer for many answers than for one; a prompt's pass keeps nothing
        for a backward one, and takes a fraction of training's memory.
        """
        return max(1, min(32, 16 * self.max_batch_tokens // longest))


@dataclass(frozen=True)
class ConsumerSpec(Spec):
    part = "consumer."
    cases: Size = 50  # patients' queries, drawn from the undamaged rows of both sources
    seed: int = 42
    max_new_tokens: Size = 512
    batch_size: Size = 8
    samples: Count = 4  # sampled answers beside the greedy one; 0 = none
    temperature: NotNegative = 0.7  # of the sampled answers
    scorer: str = "roberta-large"  # BERTScore encoder: hub id, folder, or "minilm" (from PyPI)
    scorer_layers: Size = 17  # hidden layer whose states are compared

    def __post_init__(self):
        super().__post_init__()
        if self.samples and not self.temperature:
            raise RecipeError(
                "consumer.samples goes with a consumer.temperature above 0; greedy has one answer"
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
        # Only for what is trained here: an adapter from elsewhere may sit on other modules (LoraSpec).
        modules = self.lora.target_modules
        if not modules or not set(modules) <= set(LINEAR_MODULES):
            known = ", ".join(LINEAR_MODULES)
            raise RecipeError(
                f"lora.target_modules={','.join(modules)}; name at least one linear module of {known}"
            )
        if self.dmt.optimizer_state == "carried" and self.stage1.optimizer != self.stage2.optimizer:
            both = f"stage1.optimizer={self.stage1.optimizer} and stage2.optimizer={self.stage2.optimizer}"
            raise RecipeError(f"dmt.optimizer_state=carried needs one optimizer for both stages, not {both}")


RELEASED_STAGE = TrainSpec(loss_on="text", packing="wrapped", gradient_checkpointing=True, eval_rows=0)
CPU_STAGE = TrainSpec(
    optimizer="adamw_torch", accumulation=1, packing="off", eval_rows=8, eval_every=40, save_every=40
)

RECOMMENDED = Recipe(
    "recommended",
    "what the evidence supports: answer-only loss, own template, packing, clean NoteChat",
    # 200 in every order: a share of questions within 7 points, at a quarter more prompts
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
    # every question of every benchmark in words: the letter was not what they scored by
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
    """The preset `name`, with `overrides` such as {"stage2.learning_rate": "1e-4"} applied; or the same as
    text (parse_settings).

    Raises RecipeError, in one line, for an unknown recipe or field and for a value of the wrong type.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown recipe {name!r}; the recipes are {', '.join(PRESETS)}")
    settings = parse_settings(overrides) if isinstance(overrides, str) else overrides
    # Fields of one part are set together: two that only go together may come in either order.
    recipe, parts = PRESETS[name], {}
    for path, text in settings.items():
        part, value = _parsed(recipe, path, text)
        parts.setdefault(part, {})[path.partition(".")[2]] = value
    changed = {}
    for part, fields in parts.items():
        try:
            changed[part] = replace(getattr(recipe, part), **fields)
        except RecipeError as error:
            asked = ", ".join(f"{part}.{field}={settings[f'{part}.{field}']}" for field in fields)
            raise RecipeError(f"{asked}: {error}") from None
    return replace(recipe, **changed)


def from_dict(fields: dict) -> Recipe:
    """The recipe that run.json holds, whatever its preset has become since. RecipeError where it is none."""
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
        raise RecipeError(f"the recipe in run.json is not one of this version's ({error})") from None


def parse_settings(text: str) -> dict[str, str]:
    """`FIELD=VALUE` assignments, one a line or separated by ';', as a dict; RecipeError where one is not."""
    assignments = {}
    for part in filter(None, (p.strip() for p in text.replace(";", "\n").splitlines())):
        path, _, value = (piece.strip() for piece in part.partition("="))
        if not path or not value:
            raise RecipeError(f"{part!r} is no setting; write FIELD=VALUE, e.g. stage2.learning_rate=1e-4")
        if path in assignments:
            raise RecipeError(f"{path} is set twice; give it once")
        assignments[path] = value
    return assignments


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every resolved field by its dotted name, in the order of declaration."""
    fields = {}
    for part, value in dataclasses.asdict(recipe).items():
        fields |= {f"{part}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {part: value}
    return fields


def _parsed(recipe: Recipe, path: str, text: str) -> tuple[str, Any]:
    """(part of the recipe, value) of a setting."""
    known = [name for name in flat(recipe) if "." in name]
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`medkit recipes` lists them"
        raise RecipeError(f"unknown field {path!r}; {hint}")
    part, name = path.split(".")
    kind = get_type_hints(type(getattr(recipe, part)))[name]
    says, parse = PARSERS.get(kind, PARSERS[str])  # choices are text
    try:
        return part, parse(text)
    except (ValueError, KeyError, ZeroDivisionError):
        raise RecipeError(f"{path}={text}: a value of type {says} was expected") from None


def _number(text: str) -> float:
    value = float(Fraction(text)) if "/" in text else float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


# Of a field's type: what a message calls it, and how its text is read.
PARSERS: dict = {
    bool: ("true/false", lambda text: {"true": True, "false": False}[text.lower()]),
    int: ("whole number", lambda text: int(text.replace("_", "").replace(",", ""))),
    float: ("number", _number),
    str: ("text", str),
    tuple[str, ...]: (
        "a,b,c list",
        lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
    ),
}
