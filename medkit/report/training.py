"""What notebooks 01 and 02 show of a stage: what it found or will find, its rows, its loss."""

import base64
import html
from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML, Markdown, display

from medkit import prompts
from medkit.report import figures
from medkit.report.display import details
from medkit.runs import arms, storage
from medkit.runs import loss as loss_file
from medkit.runs.run_json import Run, may_show

HIDDEN = "not shown: a row of a data set (show_text shows it)"
LOSSES = {
    "train_loss": "training loss",
    "eval_loss": "validation loss",
    "eval_loss_dialogues": "of the consultations",
    "eval_loss_stage1": "of the exam questions",
}
ARMS_OF_FIGURE_12 = ("med-nirvana", "control")  # the relearning probe has no curve of its own


class FirstScreen:
    """The top of a training notebook: what the arm will train on or, once it is trained, what came of it.

    run: the notebook's; arm: its folder ("stage1", "stage2" or "stage2_noreplay"). `update` writes the result
    into the same place when the notebook has got to it.
    """

    def __init__(self, run: Run, arm: str):
        self.run, self.arm = run, arms.of_folder(arm)
        self.shown = display(self._content(), display_id=True)

    def update(self) -> None:
        self.shown.update(self._content())

    def _content(self) -> HTML:
        if not (self.run.folder / self.arm.folder / "loss.csv").is_file():
            return HTML(f"<p>{_planned(self.run, self.arm)}</p>")
        image = base64.b64encode(figure_of_loss(self.run, self.arm.folder)._repr_png_()).decode()
        text = curve_text(self.run, [self.arm.id])
        return HTML(f'<p>{text}</p><img alt="loss of {self.arm.title}" src="data:image/png;base64,{image}">')


def _planned(run: Run, arm: arms.Arm) -> str:
    dmt = run.recipe.dmt
    rows = "questions of MedQA, MedMCQA and PubMedQA"
    if arm.stage == "stage2":
        added = "further ones" if dmt.fill == "dialogues" else "replayed exam questions"
        beside = f"{dmt.replay_share:.3g} {added} for each of them"
        if arm.id == "control":
            beside = "no replayed exam questions"
        elif dmt.handover == "joint":
            beside = "all of stage 1's exam questions, in one stage"
        rows = f"{dmt.notechat_train:,} consultations or fewer, with {beside}"
    return f"This run will train <b>{arm.title}</b> on {rows}; its loss curves will be shown here."


def curve_text(run: Run, models: Sequence[str]) -> str:
    """Where the losses of trained models begin and end, in a sentence a model; ResultsError where one has not
    been trained."""
    sentences = []
    for arm in (arms.ARMS[model] for model in models):
        loss = loss_file.read(run.folder, arm.folder)
        known = {name: loss[column].dropna() for column, name in LOSSES.items()}
        parts = [
            f"{name} {values.iloc[0]:.3f} to {values.iloc[-1]:.3f}"
            for name, values in known.items()
            if len(values)
        ]
        steps = f"{loss['step'].max():,.0f} steps"
        sentences.append(f"{arm.title}: {', '.join([steps, *parts])}.")
    return " ".join(sentences)


def figure_of_loss(run: Run, stage: str, models: Sequence[str] = ARMS_OF_FIGURE_12) -> figures.InlineFigure:
    """Figure 11 of stage 1; of stage 2 Figure 12: those of `models` that are trained over each other, and
    their validation loss by source. stage: "stage1", "stage2" or the folder of one of its arms."""
    stage = arms.of_folder(stage).stage
    if stage == "stage1":
        figure, ax = figures.new()
        figures.loss_curves(ax, loss_file.read(run.folder, stage), "Stage 1")
        return figure
    trained = [arms.ARMS[name] for name in models if arms.ARMS[name].stage == stage]
    curves = {
        arm.id: loss_file.read(run.folder, arm.folder)
        for arm in trained
        if (run.folder / arm.folder / "loss.csv").is_file()
    }
    figure, (left, right) = figures.new(11.0, columns=2)
    figures.loss_arms(left, curves, "Stage 2")
    figures.loss_by_source(right, curves, "Stage 2 by source")
    return figure


def rows(run: Run, records) -> pd.DataFrame:
    """What was read for an arm, what was dropped of it and why, and how many rows train and validate.
    records: stages.Records."""
    builtin = run.info["data"]["origin"] == "builtin"
    counts = {
        name: {"read": loaded.rows, "kept": len(loaded.records)}
        | {"dropped": "; ".join(f"{reason}: {n}" for reason, n in loaded.dropped.items()) or "none"}
        | {"origin": "built-in corpus" if builtin else loaded.origin}
        for name, loaded in records.sources.items()
    }
    nothing = dict.fromkeys(("read", "dropped", "origin"), "")
    counts["all training rows"] = nothing | {"kept": len(records.train)}
    counts["all validation rows"] = nothing | {"kept": len(records.validation)}
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("source")


def shares(run: Run) -> pd.DataFrame | Markdown:
    """The replay counted four ways, from the manifest."""
    path = run.folder / "data" / "manifest.json"
    stage2 = storage.load(run.folder, "data/manifest.json", ()).get("stage2") if path.is_file() else None
    if not stage2:
        return Markdown("The arm with the replay counts it: it reads the same consultations.")
    names = {
        "rows_per_stage2_row": "replayed rows per consultation (the paper's 1/3)",
        "share_of_stage1": "share of stage 1's training rows (the k of Dong et al.)",
        "share_of_rows": "share of stage 2's training rows",
        "share_of_tokens": "share of their tokens",
        "share_of_supervised_tokens": "share of their supervised tokens",
    }
    return pd.DataFrame({"replay": {text: f"{stage2['replay'][name]:.4f}" for name, text in names.items()}})


def known(run: Run, stage: str) -> HTML:
    """How many evaluation items were found in the stage's training rows, and behind it by which measure."""
    manifest = storage.load(run.folder, "data/manifest.json", ())
    part = manifest if stage == "stage1" else manifest.get("stage2")
    if not part:
        return HTML("<p>The arm with the replay looks for them: it reads the same consultations.</p>")
    count = len(part["overlap"]["contaminated"])
    return details(f"{count:,} evaluation items appear in a training row", found_in_training(part["overlap"]))


def found_in_training(overlap: dict) -> pd.DataFrame | str:
    """Evaluation items found in training rows by source and measure, and how many of them count as known;
    overlap: of a part of the manifest."""
    if not overlap["counts"]:
        return "No evaluation item was found in a training row, by any of the measures."
    counts = pd.DataFrame(overlap["counts"]).T.fillna(0).astype(int)
    sources = pd.Series([name.partition("/")[0] for name in overlap["contaminated"]], dtype=str)
    return counts.assign(known=sources.value_counts().reindex(counts.index, fill_value=0))


def row(run: Run, tokenizer, tokenized: dict, show_text: bool) -> HTML:
    """One row as the model reads it, in bold what it is trained on."""
    supervised = sum(label >= 0 for label in tokenized["labels"])
    line = f"<p>{len(tokenized['labels']):,} tokens, {supervised:,} of them trained on (bold):</p>"
    if not may_show(run, show_text):
        return HTML(f"{line}<p>{HIDDEN}</p>")
    pieces = []
    for token, label in zip(tokenized["input_ids"], tokenized["labels"], strict=True):
        text = html.escape(tokenizer.decode([token])).replace("\n", "<br>")
        pieces.append(text if label == prompts.IGNORED else f"<b>{text}</b>")
    return HTML(f"{line}<p style='text-align:left'>{''.join(pieces)}</p>")


def consultations(run: Run, records) -> HTML:
    """How many consultations were read, kept and used, and the duplicates among them, behind a line."""
    split = records.stage2.split
    counts = conversations(records.sources["dialogues"], split)
    stage2 = storage.load(run.folder, "data/manifest.json", ()).get("stage2")
    parts = [counts, *([duplicates(stage2["notechat"])] if stage2 else [])]
    line = (
        f"{split.rows:,} consultations read; {len(split.train):,} train and {len(split.validation):,} "
        f"validate, where the recipe asks for {split.requested[0]:,} and {split.requested[1]:,}"
    )
    return details(line, *(part.to_frame() for part in parts))


def conversations(loaded, split) -> pd.Series:
    """How many conversations were read, dropped by reason and kept, and where they went; loaded:
    sources.Loaded, split: dmt.Dialogues. Of notes, as far as rows have one."""
    counts = {"read": split.rows}
    counts |= {f"dropped: {reason}": count for reason, count in loaded.dropped.items()}
    counts |= {"kept": split.kept, "different ones": split.distinct}
    counts |= {"for training": len(split.train), "for validation": len(split.validation)}
    counts |= {"validation rows verbatim in training": split.validation_verbatim_in_train}
    counts |= {"rows with a clinical note": split.with_note}
    if split.with_note:
        counts |= {"clinical notes on both sides": split.notes_on_both_sides}
    return pd.Series(counts, name="conversations")


def duplicates(described: dict) -> pd.Series:
    """What occurs twice among stage 2's consultations, from the manifest's description of them."""
    groups = described["duplicate_groups"]
    counts = {
        "files": len(described["files"]),
        "files of the same bytes": described["files_of_the_same_bytes"],
        "conversations that repeat another": groups["rows"] - groups["groups"],
    }
    for how, count in described["validation_found_in_train"].items():
        counts[f"validation rows found in training: {how}"] = count
    return pd.Series(counts, name="duplicates")
