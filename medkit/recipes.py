"""Recipes: every choice a run makes, as small frozen dataclasses, and the four presets.

`paper` is what the paper states, with the authors' released notebooks filling what it leaves out;
`as_released` is those notebooks, field by field; `recommended` is what the evidence supports; `cpu` is
`recommended` at the size of a laptop. ledger.py says, knob by knob, where they differ and why.
"""

import dataclasses
import typing
from dataclasses import dataclass, field, replace
from fractions import Fraction

from medkit import MedkitError

SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused")
TRACKERS = ("none", "tensorboard", "trackio", "wandb", "mlflow")  # each its package's name, too
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The released notebooks put `Answer:` behind the question and sample, unseeded, as the model's own
# generation_config says, which for Llama 3.1 is this; here each answer has a seed, and Transformers' default
# of looking at the fifty likeliest tokens alone is left out, as top_p keeps fewer at nearly every step.
RELEASED: dict = {"max_new_tokens": 128, "temperature": 0.6, "top_p": 0.9}


class RecipeError(MedkitError):
    """An unknown recipe or field, a value of the wrong type, or fields that contradict each other."""


def _one_of(name, value, allowed):
    if value not in allowed:
        raise RecipeError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _at_least(name, value, least):
    if value < least:
        raise RecipeError(f"{name} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class ModelSpec:
    base: str = "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"  # hub id, a folder, or "smollm2" (from PyPI)
    revision: str = "main"  # hub revision; the commit it stood for is written to run.json
    load_in_4bit: bool = True  # NF4 through bitsandbytes
    chat_template: str = "own"  # "own": the model's; "chatml": ChatML whose <|im_end|> stands for EOS
    max_length: int = 2048  # tokens of a training row; a longer row is cut there and counted

    def __post_init__(self):
        _one_of("model.chat_template", self.chat_template, ("own", "chatml"))
        _at_least("model.max_length", self.max_length, 32)


@dataclass(frozen=True)
class DataSpec:
    origin: str = "hub"  # where rows come from without --data-dir: "hub" or "builtin"
    builtin_part: str = "report"  # of the built-in corpus, what evaluates; "tune": only for choosing settings
    seed: int = 42  # shuffles, splits and every draw of rows
    validation_share: float = 0.1  # of the stage-1 mixture's rows
    rows_medqa: int = 0  # training rows read; 0 = all
    rows_medmcqa: int = 0
    rows_pubmedqa: int = 0
    mcq_target: str = "letter"  # "letter": `C`; "letter_and_text": `Answer: C) option text`
    deduplicate: bool = True  # drop NoteChat conversations that repeat an earlier one
    notechat_split: str = "note"  # "note": no clinical note on both sides; "row": rows at random
    dialogues: str = "notechat"  # stage 2's consultations: "notechat" or "mts_dialog"
    # "artificial": the machine-labelled rows; "labelled_outside_fold": the 500 expert-labelled rows that are
    # not in the official test fold, and only that fold evaluates
    pubmedqa_train: str = "artificial"

    def __post_init__(self):
        _one_of("data.origin", self.origin, ("hub", "builtin"))
        _one_of("data.builtin_part", self.builtin_part, ("report", "tune"))
        _one_of("data.mcq_target", self.mcq_target, ("letter", "letter_and_text"))
        _one_of("data.notechat_split", self.notechat_split, ("note", "row"))
        _one_of("data.dialogues", self.dialogues, ("notechat", "mts_dialog"))
        _one_of("data.pubmedqa_train", self.pubmedqa_train, ("artificial", "labelled_outside_fold"))
        for name in ("rows_medqa", "rows_medmcqa", "rows_pubmedqa", "seed"):
            _at_least(f"data.{name}", getattr(self, name), 0)
        if not 0 < self.validation_share < 1:
            raise RecipeError(
                f"data.validation_share is {self.validation_share}; it must lie between 0 and 1"
            )

    def reads(self, name: str, part: str) -> tuple[str, str]:
        """The source, and the part of it, that is read for `part` ("train" or "eval") of `name`: a source's
        name, or "dialogues" for whichever source has stage 2's consultations."""
        if name == "dialogues":
            return self.dialogues, part
        if name == "pubmedqa" and self.pubmedqa_train == "labelled_outside_fold":
            return name, {"train": "labelled_outside_fold", "eval": "official_fold"}[part]
        return name, part


@dataclass(frozen=True)
class LoraSpec:
    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    rslora: bool = True  # scale alpha / sqrt(r) in place of alpha / r
    target_modules: tuple[str, ...] = LINEAR_MODULES

    def __post_init__(self):
        for name in ("r", "alpha"):
            _at_least(f"lora.{name}", getattr(self, name), 1)
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"lora.dropout is {self.dropout}; it must lie in [0, 1)")
        if not self.target_modules:
            raise RecipeError("lora.target_modules is empty; name at least one linear module")


@dataclass(frozen=True)
class TrainSpec:
    """One stage's optimization. A "row" is a sample, or with packing a row of packed samples."""

    learning_rate: float = 3e-4
    scheduler: str = "linear"
    warmup_steps: int = 10  # optimizer steps
    weight_decay: float = 0.01
    optimizer: str = "adamw_8bit"
    batch_size: int = 4  # rows per device and batch
    accumulation: int = 4  # batches per optimizer step
    micro_batch_tokens: int = 0  # of a CPU's forward pass, rows laid end to end; 0 = the whole batch
    epochs: float = 1.0
    max_steps: int = 0  # optimizer steps; 0 = as many as the epochs take
    loss_on: str = "answer"  # "answer": the assistant's turns; "text": the whole row, prompt included
    packing: str = (
        "isolated"  # "isolated": best fit, samples blind to each other; "wrapped": cut at length; "off"
    )
    group_by_length: bool = False  # where rows are not packed: rows of like length share an optimizer step
    gradient_checkpointing: bool = False
    eval_rows: int = 1000  # validation rows scored at each evaluation, drawn by seed; 0 = all
    eval_every: int = 360  # optimizer steps
    save_every: int = 360  # optimizer steps between checkpoints
    seed: int = 0  # LoRA's initial weights and the order of batches
    report_to: str = "none"  # experiment tracker that gets the losses too, in the run's folder

    def __post_init__(self):
        _one_of("scheduler", self.scheduler, SCHEDULERS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("loss_on", self.loss_on, ("answer", "text"))
        _one_of("packing", self.packing, ("isolated", "wrapped", "off"))
        _one_of("report_to", self.report_to, TRACKERS)
        if self.packing == "wrapped" and self.loss_on == "answer":
            raise RecipeError("packing=wrapped cuts samples anywhere and goes with loss_on=text only")
        if self.group_by_length and self.packing != "off":
            raise RecipeError(
                "packed rows cannot be grouped by length; set packing=off, or group_by_length=false"
            )
        for name in ("learning_rate", "batch_size", "accumulation", "epochs", "eval_every", "save_every"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in (
            "warmup_steps",
            "max_steps",
            "micro_batch_tokens",
            "eval_rows",
            "weight_decay",
            "seed",
        ):
            _at_least(name, getattr(self, name), 0)


@dataclass(frozen=True)
class DmtSpec:
    """Dual-stage mixed fine-tuning: what stage 2 trains on besides, and from where it starts."""

    notechat_train: int = 100_000  # consultations
    notechat_validation: int = 10_000
    replay_share: float = 1 / 3  # stage-1 rows per NoteChat row (the paper's 33,333 per 100,000)
    # What stage 2 has beside the consultations asked for. "stage1": the replayed rows; "dialogues": as many
    # further consultations, which is the same number of rows and steps without a replay
    fill: str = "stage1"
    # "continue": the same adapter; "merge": into 16 bit, quantized, new adapter; "joint": one stage, in which
    # a fresh adapter on the base learns all of stage 1's training rows beside the consultations
    handover: str = "continue"
    relearn_steps: int = 0  # optimizer steps on stage 1's rows after stage 2, as an arm of its own; 0: none
    optimizer_state: str = "fresh"  # "carried": stage 2 goes on with the moments of stage 1's optimizer
    # What replayed exam rows weigh of stage 2's supervised tokens; 0 = as many as there are, unweighted
    replay_token_share: float = 0.0

    def __post_init__(self):
        _one_of("dmt.fill", self.fill, ("stage1", "dialogues"))
        _one_of("dmt.handover", self.handover, ("continue", "merge", "joint"))
        _at_least("dmt.relearn_steps", self.relearn_steps, 0)
        if self.handover == "joint" and self.fill != "stage1":
            raise RecipeError("dmt.handover=joint trains on all of stage 1's rows; set dmt.fill=stage1")
        _one_of("dmt.optimizer_state", self.optimizer_state, ("fresh", "carried"))
        if self.optimizer_state == "carried" and self.handover != "continue":
            raise RecipeError(
                "dmt.optimizer_state=carried belongs to stage 1's adapter, which "
                f"dmt.handover={self.handover} does not go on with; set dmt.handover=continue"
            )
        if not 0 <= self.replay_token_share < 1:
            raise RecipeError(f"dmt.replay_token_share is {self.replay_token_share}; it must lie in [0, 1)")
        _at_least("dmt.notechat_train", self.notechat_train, 1)
        _at_least("dmt.notechat_validation", self.notechat_validation, 1)
        _at_least("dmt.replay_share", self.replay_share, 0)


@dataclass(frozen=True)
class McqSpec:
    rows: int = 0  # questions per benchmark, the first by file order; 0 = all
    generated_rows: int = 200  # questions per benchmark answered in words too, in two ways; 0 = none
    permutations: int = 0  # questions per benchmark asked in every cyclic order of their options; 0 = none
    general: bool = False  # the built-in general questions and texts, too: what medicine did not train
    lm_eval_tasks: str = ""  # lm-evaluation-harness's tasks by name, separated by commas; "" = none
    max_new_tokens: int = 32
    prefix_cache: bool = True  # compute the shared instruction once
    max_batch_tokens: int = 8192

    def __post_init__(self):
        for name in ("rows", "generated_rows", "permutations"):
            _at_least(f"mcq.{name}", getattr(self, name), 0)
        for name in ("max_new_tokens", "max_batch_tokens"):
            _at_least(f"mcq.{name}", getattr(self, name), 1)

    def answers_at_once(self, longest: int) -> int:
        """Answers in words that are generated in one batch, to prompts of up to `longest` tokens.

        A step of decoding takes little longer for many answers than for one; a prompt's pass keeps nothing
        for a backward one, and takes a fraction of training's memory.
        """
        return max(1, min(32, 16 * self.max_batch_tokens // longest))


@dataclass(frozen=True)
class ConsumerSpec:
    cases: int = 50  # patients' queries, drawn from the undamaged rows of both sources
    seed: int = 42
    max_new_tokens: int = 512
    batch_size: int = 8
    samples: int = 4  # sampled answers beside the greedy one; 0 = none
    temperature: float = 0.7  # of the sampled answers
    scorer: str = "roberta-large"  # BERTScore encoder: hub id, folder, or "minilm" (from PyPI)
    scorer_layers: int = 17  # hidden layer whose states are compared

    def __post_init__(self):
        for name in ("cases", "max_new_tokens", "batch_size", "scorer_layers"):
            _at_least(f"consumer.{name}", getattr(self, name), 1)
        for name in ("samples", "temperature"):
            _at_least(f"consumer.{name}", getattr(self, name), 0)
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
        # Of what is trained here only: an adapter from elsewhere may sit on other modules (LoraSpec).
        for module in self.lora.target_modules:
            _one_of("lora.target_modules", module, LINEAR_MODULES)
        if self.dmt.optimizer_state == "carried" and self.stage1.optimizer != self.stage2.optimizer:
            both = f"stage1.optimizer={self.stage1.optimizer} and stage2.optimizer={self.stage2.optimizer}"
            raise RecipeError(f"dmt.optimizer_state=carried needs one optimizer for both stages, not {both}")


_RELEASED_STAGE = TrainSpec(loss_on="text", packing="wrapped", gradient_checkpointing=True, eval_rows=0)
_PAPER_STAGE = replace(_RELEASED_STAGE, accumulation=1)
_CPU_STAGE = TrainSpec(
    optimizer="adamw_torch",
    accumulation=1,
    micro_batch_tokens=1536,
    packing="off",
    eval_rows=8,
    eval_every=40,
    save_every=40,
)

PRESETS = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="cpu",
            about="`recommended` at the size of a laptop: SmolLM2-135M-Instruct, built-in corpus",
            model=ModelSpec(base="smollm2"),
            data=DataSpec(origin="builtin", rows_medqa=16, rows_medmcqa=16, rows_pubmedqa=400),
            stage1=replace(_CPU_STAGE, learning_rate=6e-4),
            stage2=replace(
                _CPU_STAGE,
                learning_rate=1e-3,
                micro_batch_tokens=1024,
                group_by_length=True,
                eval_every=12,
            ),
            dmt=DmtSpec(notechat_train=96, notechat_validation=24, replay_share=1.0),
            mcq=McqSpec(
                rows=40,
                generated_rows=5,
                permutations=10,
                max_new_tokens=8,
                max_batch_tokens=768,
            ),
            consumer=ConsumerSpec(
                cases=12, max_new_tokens=192, samples=1, scorer="minilm", scorer_layers=6, batch_size=32
            ),
        ),
        Recipe(
            name="paper",
            about="what the paper states; the released notebooks fill what it leaves out",
            model=ModelSpec(chat_template="chatml"),
            data=DataSpec(deduplicate=False, notechat_split="row"),
            stage1=_PAPER_STAGE,
            stage2=_PAPER_STAGE,
            dmt=DmtSpec(handover="merge"),
            mcq=McqSpec(max_new_tokens=128),
        ),
        Recipe(
            name="as_released",
            about="the authors' released notebooks, field by field; what still differs is in the ledger",
            model=ModelSpec(chat_template="chatml"),
            data=DataSpec(mcq_target="letter_and_text", deduplicate=False, notechat_split="row"),
            stage1=_RELEASED_STAGE,
            stage2=_RELEASED_STAGE,
            dmt=DmtSpec(handover="merge"),
            # every question of every benchmark in words: the letter was not what they scored by
            mcq=McqSpec(generated_rows=4183, max_new_tokens=128),
        ),
        Recipe(
            name="recommended",
            about="what the evidence supports: answer-only loss, own template, packing, clean NoteChat",
            # 200 in every order: a share of questions within 7 points, at a quarter more prompts
            mcq=McqSpec(permutations=200, general=True),
        ),
    )
}


def get(name: str, overrides: dict[str, str] | str | None = None) -> Recipe:
    """The preset `name`, with `overrides` such as {"stage2.learning_rate": "1e-4"} applied; or the same as
    text (parse_settings).

    Raises RecipeError, in one line, for an unknown recipe or field and for a value of the wrong type.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown recipe {name!r}; the recipes are {', '.join(PRESETS)}")
    return _overridden(
        PRESETS[name], parse_settings(overrides) if isinstance(overrides, str) else overrides or {}
    )


def from_dict(fields: dict) -> Recipe:
    """The recipe that run.json holds, whatever its preset has become since. RecipeError where it is none."""
    hints = typing.get_type_hints(Recipe)
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
        path, equals, value = part.partition("=")
        if not equals or not path.strip() or not value.strip():
            raise RecipeError(f"{part!r} is no setting; write FIELD=VALUE, e.g. stage2.learning_rate=1e-4")
        if path.strip() in assignments:
            raise RecipeError(f"{path.strip()} is set twice; give it once")
        assignments[path.strip()] = value.strip()
    return assignments


def flat(recipe: Recipe) -> dict[str, typing.Any]:
    """Every resolved field by its dotted name, in the order of declaration."""
    fields = {}
    for part, value in dataclasses.asdict(recipe).items():
        if isinstance(value, dict):
            fields.update({f"{part}.{name}": v for name, v in value.items()})
        else:
            fields[part] = value
    return fields


def _overridden(recipe: Recipe, overrides: dict[str, str]) -> Recipe:
    """All fields are put in together: two that only go together may come in either order."""
    known = [name for name in flat(recipe) if "." in name]
    parts: dict[str, dict] = {}
    for path, text in overrides.items():
        if path not in known:
            import difflib

            near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "`medkit recipes` lists them"
            raise RecipeError(f"unknown field {path!r}; {hint}")
        part, name = path.split(".")
        wanted = typing.get_type_hints(type(getattr(recipe, part)))[name]
        try:
            parts.setdefault(part, {})[name] = _parse(wanted, text)
        except (ValueError, ZeroDivisionError):
            raise RecipeError(f"{path}={text}: a value of type {_type_name(wanted)} was expected") from None
    whole = {}
    for part, fields in parts.items():
        try:
            whole[part] = replace(getattr(recipe, part), **fields)
        except RecipeError as error:
            given = ", ".join(f"{part}.{name}={overrides[f'{part}.{name}']}" for name in fields)
            raise RecipeError(f"{given}: {error}") from None
    return replace(recipe, **whole)


def _parse(wanted, text: str):
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if wanted is int:
        return int(text.replace("_", "").replace(",", ""))
    if wanted is float:
        value = float(Fraction(text)) if "/" in text else float(text)
        if value != value or abs(value) == float("inf"):
            raise ValueError(text)
        return value
    if wanted is str:
        return text
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _type_name(wanted) -> str:
    return {bool: "true/false", int: "whole number", float: "number", str: "text"}.get(wanted, "a,b,c list")
