"""The ledger: each knob, what the paper says, what its authors released, what this run does, and why.

Paper: the text of "Multi-Stage QLoRA with Augmented Structured Dialogue Corpora". Release: the two notebooks
its authors published in December 2024. Where one of them says nothing, the ledger says that it is silent.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medkit import MedkitError, recipes
from medkit.report import markdown
from medkit.runs import run_json, storage

SILENT = "silent"
NOT_RELEASED = "not released"
UNRECORDED = "not recorded"  # the notebooks may say; what is known of them does not
CHOSEN = "this kit's choice: neither says"
UNSAID = (SILENT, NOT_RELEASED, UNRECORDED)


class LedgerError(MedkitError):
    """A run without a readable run.json; one line."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A recipe's field beside the paper and the release.

    paper, release: the value in the recipe's own terms, or one of UNSAID.
    why: the reason of `recommended`'s value where that is neither's; small: of `cpu`'s own.
    words, release_words: what they say, where that is not the value. zero: what 0 stands for.
    """

    field: str
    paper: Any = SILENT
    release: Any = SILENT
    why: str = ""
    small: str = "the size of a laptop"
    words: str = ""
    release_words: str = ""
    zero: str = ""


def _both(field: str, value: Any, **reasons) -> Knob:
    return Knob(field, value, value, **reasons)


def _stages(name: str, paper: Any, release: Any, **reasons) -> tuple[Knob, ...]:
    """The paper: stage 2's hyperparameters are stage 1's."""
    return tuple(Knob(f"{stage}.{name}", paper, release, **reasons) for stage in ("stage1", "stage2"))


_LLAMA = "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"
KNOBS = (
    _both("model.base", _LLAMA, words="LLaMA 3.1 8B Instruct, a pre-quantized 4-bit variation"),
    _both("model.load_in_4bit", True),
    Knob(
        "model.chat_template",
        release="chatml",
        why="the format the model was instructed in; in ChatML one <|im_start|> costs 6 of Llama 3's tokens",
    ),
    _both("model.max_length", 2048),
    Knob("data.origin", "hub", "hub", words="public datasets", small="runs without a network"),
    Knob("data.seed", release=42),
    _both("data.validation_share", 0.1),
    _both("data.rows_medqa", 0, words="10,178", zero="all"),
    _both("data.rows_medmcqa", 0, words="182,822", zero="all"),
    _both("data.rows_pubmedqa", 0, words="211,269", zero="all"),
    Knob("data.mcq_target", "letter", "letter_and_text", words="only the correct answer key"),
    Knob("data.deduplicate", release=False, why="four of NoteChat's five files are byte-identical"),
    _both(
        "data.notechat_split",
        "row",
        words="randomly selected samples",
        why="a draw of rows leaves validation conversations verbatim in the training rows",
    ),
    _both("data.dialogues", "notechat", words="NoteChat"),
    _both("data.pubmedqa_train", "artificial", words="all 211,269 artificially created samples"),
    _both("lora.r", 16),
    _both("lora.alpha", 16),
    _both("lora.dropout", 0.0),
    _both("lora.rslora", True),
    _both("lora.target_modules", recipes.LINEAR_MODULES, words="every linear module"),
    *_stages(
        "learning_rate",
        3e-4,
        3e-4,
        small="in some dozen steps the paper's rate learns too little (DECISIONS.md)",
    ),
    *_stages("scheduler", "linear", "linear"),
    *_stages("warmup_steps", 10, 10),
    *_stages("weight_decay", 0.01, 0.01),
    *_stages("optimizer", "adamw_8bit", "adamw_8bit", small="8-bit optimizer states are for GPUs"),
    *_stages("batch_size", 4, 4),
    *_stages("accumulation", 1, 4, words="a batch size of 4, with no word of accumulation"),
    *_stages("epochs", 1.0, 1.0),
    *_stages("loss_on", SILENT, "text", why="the prompt is not to be learnt, and is most of the tokens"),
    *_stages(
        "packing",
        SILENT,
        "wrapped",
        why="wrapped packing cuts samples anywhere and lets them attend to one another",
        small="Unsloth's CPU backend does not pack",
    ),
    *_stages(
        "group_by_length",
        SILENT,
        False,
        small="replayed questions in updates of their own; among consultations their two tokens hardly count",
    ),
    *_stages(
        "gradient_checkpointing",
        SILENT,
        UNRECORDED,
        why="46% more FLOPs for memory that a large GPU has; switch on where it is short",
        small="nothing to save at this size",
    ),
    *_stages(
        "eval_rows",
        SILENT,
        0,
        zero="all",
        why="scoring all validation rows each time is about a quarter of all FLOPs",
    ),
    *_stages("eval_every", SILENT, 360, words="Figures 11 and 12 show a curve, not its steps"),
    *_stages("seed", SILENT, 0),
    _both("dmt.notechat_train", 100_000),
    _both("dmt.notechat_validation", 10_000),
    _both(
        "dmt.replay_share",
        1 / 3,
        words="33,333 stage-1 rows to 100,000",
        small="chosen so that the arms with and without replay differ significantly (DECISIONS.md)",
    ),
    _both("dmt.fill", "stage1", words="rows of stage 1"),
    Knob(
        "dmt.handover",
        release="merge",
        words='"again applied QLoRA to the Med-Mix model"',
        why="an adapter merged in 16 bit and quantized again is worse than the adapter on its 4-bit base",
    ),
    Knob("mcq.rows", 0, UNRECORDED, words="all of Table 1's test samples", zero="all"),
    Knob("mcq.max_new_tokens", release=128, why="an answer and a few words; unparsed ones are counted"),
    Knob("consumer.cases", 50, NOT_RELEASED, small="as many as the built-in corpus and the time allow"),
    Knob("consumer.samples", SILENT, NOT_RELEASED, words="several answers, the best picked by hand"),
    Knob("consumer.scorer", SILENT, NOT_RELEASED, words="BERTScore; the encoder is not named"),
)

# What neither the paper nor the release has a word for, and what it decides.
OURS = {
    "data.builtin_part": "settings are chosen on `tune`, results come from `report`",
    "model.revision": "which commit of the base model; the one it stood for is in run.json",
    **dict.fromkeys(("stage1.max_steps", "stage2.max_steps"), "stop early; 0 is the whole epoch"),
    **dict.fromkeys(("stage1.save_every", "stage2.save_every"), "how much a crash can cost"),
    **dict.fromkeys(
        ("stage1.micro_batch_tokens", "stage2.micro_batch_tokens"),
        "memory: on a CPU the rows of a step in several passes, the update is the same",
    ),
    **dict.fromkeys(("stage1.report_to", "stage2.report_to"), "who is told the losses; none unless asked"),
    "dmt.optimizer_state": "whether stage 2 begins with the moments of stage 1's optimizer",
    "dmt.replay_token_share": "what replayed rows weigh in stage 2's loss; 0 is unweighted",
    "dmt.relearn_steps": "a few steps on stage 1's rows after stage 2: is its skill gone, or hidden",
    "mcq.generated_rows": "questions answered in words too, to compare the protocols",
    "mcq.permutations": "questions asked in every order of their options, to see what the order is worth",
    "mcq.general": "the built-in general questions and texts, to see what medicine has cost",
    "mcq.lm_eval_tasks": "further tasks of lm-evaluation-harness",
    "mcq.prefix_cache": "speed; the predictions are the same",
    "mcq.max_batch_tokens": "speed; the predictions are the same",
    "consumer.seed": "which cases are drawn",
    "consumer.max_new_tokens": "where an answer is cut; cut ones are counted",
    "consumer.batch_size": "speed",
    "consumer.temperature": "spread of the sampled answers beside the greedy one",
    "consumer.scorer_layers": "which encoder layer is compared; 17 is bert-score's own for roberta-large",
}

# What no recipe can change: knob, paper, release, every run of this kit, why.
FIXED = (
    ("instruction", "Figure 2", "Figure 2", "Figure 2", ""),
    ("LoRA bias", "none", "none", "none", ""),
    (
        "weights a merge adds to (hand-over `merge`)",
        SILENT,
        "left to Unsloth's merge in 16 bit",
        "the 4-bit weights trained against, unpacked: dequantize_4bit(W) + scaling * B A, rounded once",
        "Unsloth 2026.10.9's save_pretrained_merged adds the adapter to the original 16-bit model: 16 GB to "
        "download, and not what it was trained against",
    ),
    (
        "exam question",
        SILENT,
        "`Question:`, `Options:`, `A) ...`; PubMedQA `Context:` first; only evaluation appends `Answer:`",
        "the same lines; `Answer:` is appended for the release's own protocol alone",
        "the scored prompt is token for token the trained one",
    ),
    (
        "exam scoring",
        SILENT,
        "samples up to 128 tokens; `Answer: X` anywhere in prompt or output; two letters are wrong",
        "the most likely letter where the answer begins, in one forward pass",
        "exact, repeatable; greedy answers in words, and the release's way with a seed, stand beside it",
    ),
    (
        "unusable rows",
        SILENT,
        "none is dropped",
        "dropped after the draw and counted: the rows that train are the drawn ones without them",
        "a row without an answer, a patient or a physician teaches nothing that is meant",
    ),
    (
        "turns of a consultation",
        SILENT,
        "`Doctor:` lines are the assistant, every other line the user",
        "speakers by their labels; preambles and stage lines are cut; rows with unknown speakers are dropped",
        "a stage line, or a nurse's, is not what a patient says",
    ),
    (
        "end of a packed sample",
        SILENT,
        "TRL below 0.9 puts an EOS token behind the template's own end",
        "the template's own end alone",
        "TRL 1 adds none",
    ),
    ("exam runs", "Table 3", "base model and Med-Nirvana: not released", "every arm, item by item", ""),
    (
        "consumer answers",
        "several tried, the best picked by hand",
        NOT_RELEASED,
        "the greedy answer",
        "what picking the best adds is reported as a number of its own",
    ),
)


def ledger(info: dict) -> pd.DataFrame:
    """One row a knob, from a run's run.json: columns knob, paper, release, run, why (strings)."""
    name, settings = info["recipe"]["name"], info.get("settings", {})
    fields = {
        f"{part}.{field}": value
        for part, values in info["recipe"].items()
        if isinstance(values, dict)
        for field, value in values.items()
    }
    if info.get("data", {}).get("origin") == "folder":
        fields["data.origin"], settings = "folder", settings | {"data.origin": "--data-dir"}
    by_field = {knob.field: knob for knob in KNOBS}
    rows = []
    for field, value in fields.items():
        knob = by_field.get(field, Knob(field))
        sides = _said(knob.paper, knob.words, knob.zero), _said(knob.release, knob.release_words, knob.zero)
        reason = "set for this run" if field in settings else _reason(knob, value, name)
        rows.append((field, *sides, _shown(value, knob.zero), reason))
    return pd.DataFrame([*rows, *FIXED], columns=["knob", "paper", "release", "run", "why"])


def _reason(knob: Knob, value: Any, recipe: str) -> str:
    if knob.field in OURS:
        return OURS[knob.field]
    paper, release = _same(value, knob.paper), _same(value, knob.release)
    if paper or release:
        against = "" if paper or knob.paper == SILENT else ", against the paper"
        sides = ("the paper",) * paper + ("the release",) * release
        return f"as {' and '.join(sides)}{against}"
    if knob.why and _same(value, recipes.flat(recipes.PRESETS["recommended"])[knob.field]):
        return knob.why
    return knob.small if recipe == "cpu" else CHOSEN


def _same(value: Any, said: Any) -> bool:
    if isinstance(said, str) and said in UNSAID:
        return False
    if isinstance(said, tuple):
        return tuple(value) == said
    if isinstance(said, float):
        return math.isclose(value, said)
    return value == said


def _said(said: Any, words: str, zero: str) -> str:
    if isinstance(said, str) and said in UNSAID:
        return f"{said}: {words}" if words else said
    return f"{_shown(said, zero)} ({words})" if words else _shown(said, zero)


def _shown(value: Any, zero: str) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if zero and value == 0:
        return zero
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def render(info: dict) -> str:
    """The ledger of a run as Markdown."""
    table = ledger(info).rename(columns={"paper": "the paper", "release": "the release", "run": "this run"})
    about = __doc__.partition("\n")[2].strip()
    return f"# Ledger of a `{info['recipe']['name']}` run\n\n{about}\n\n{markdown.grid(table)}\n"


def write(run_dir: str | Path) -> Path:
    """Write ledger.md into a run's folder, from its run.json; LedgerError where that is missing."""
    info = run_json.read(Path(run_dir))
    if info is None:
        raise LedgerError(f"{Path(run_dir) / 'run.json'} is missing; run notebook 01_stage1 first")
    return storage.write_text(Path(run_dir) / "ledger.md", render(info))
