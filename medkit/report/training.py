"""What notebooks 01 and 02 display: the plan or result of a stage, its rows and its loss."""

import base64
import html
import itertools
from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML, Markdown, display

from medkit import prompts
from medkit.report import figures
from medkit.report.display import details
from medkit.runs import arms, storage
from medkit.runs import loss as loss_file
from medkit.runs.run_json import Run, may_show

HIDDEN = "not shown: a row of a data set (set show_text to display it)"
LOSSES = {  # of validation; a single step's training loss says little
    "eval_loss": "in all",
    "eval_loss_dialogues": "consultations",
    "eval_loss_stage1": "exam questions",
}
ARMS_OF_FIGURE_12 = ("med-nirvana", "control")  # the relearning probe has no loss curve


class FirstScreen:
    """The first output of a training notebook: the plan of the arm or, once it is trained, its loss curves.

    arm: the arm's folder ("stage1", "stage2" or "stage2_noreplay"). `update` replaces the plan by the result.
    """

    def __init__(self, run: Run, arm: str):
        self.run, self.arm = run, arms.of_folder(arm)
        self.output = display(self._content(), display_id=True)

    def update(self) -> None:
        self.output.update(self._content())

    def _content(self) -> HTML:
        if not (self.run.folder / self.arm.folder / "loss.csv").is_file():
            return HTML(f"<p>{_plan(self.run, self.arm)}</p>")
        image = base64.b64encode(loss_figure(self.run, self.arm.folder)._repr_png_()).decode()
        text = loss_text(self.run, [self.arm.id])
        return HTML(f'<p>{text}</p><img alt="loss of {self.arm.title}" src="data:image/png;base64,{image}">')


def _plan(run: Run, arm: arms.Arm) -> str:
    dmt = run.recipe.dmt
    rows = "questions of MedQA, MedMCQA and PubMedQA"
    if arm.stage == "stage2":
        added = "further ones" if dmt.fill == "dialogues" else "replayed exam questions"
        replay = f"{dmt.replay_share:.3g} {added} for each of them"
        if arm.id == "control":
            replay = "no replayed exam questions"
        elif dmt.handover == "joint":
            replay = "all of stage 1's exam questions, in one stage"
        rows = f"at most {dmt.notechat_train:,} consultations, with {replay}"
    return f"This run will train <b>{arm.title}</b> on {rows}. Its loss curves will appear here."


def loss_text(run: Run, models: Sequence[str]) -> str:
    """First and last validation loss, a sentence per model; ResultsError if a model has not been trained."""
    sentences = []
    for arm in (arms.ARMS[model] for model in models):
        loss = loss_file.read(run.folder, arm.folder)
        values = {name: loss[column].dropna() for column, name in LOSSES.items()}
        parts = [f"{name} {v.iloc[0]:.3f} to {v.iloc[-1]:.3f}" for name, v in values.items() if len(v)]
        sentences.append(
            f"{arm.title}, {loss['step'].max():,.0f} steps. Validation loss, nats per trained token: "
            f"{', '.join(parts) or 'not measured'}."
        )
    return " ".join(sentences)


def loss_figure(run: Run, folder: str, models: Sequence[str] = ARMS_OF_FIGURE_12) -> figures.InlineFigure:
    """Figure 11 for stage 1, Figure 12 for an arm of stage 2.

    Figure 12 compares those of `models` that are trained: their losses, and validation loss by source.
    """
    stage = arms.of_folder(folder).stage
    if stage == "stage1":
        figure, ax = figures.new()
        figures.loss_curves(ax, loss_file.read(run.folder, stage), "Stage 1")
        return figure
    curves = {
        arm.id: loss_file.read(run.folder, arm.folder)
        for arm in (arms.ARMS[name] for name in models)
        if arm.stage == stage and (run.folder / arm.folder / "loss.csv").is_file()
    }
    figure, (left, right) = figures.new(11.0, columns=2)
    figures.loss_arms(left, curves, "Stage 2")
    figures.loss_by_source(right, curves, "Stage 2 by source")
    return figure


def row_counts(run: Run, records) -> pd.DataFrame:
    """Rows read, kept and dropped per source, the sizes of the two splits, and how many validation rows are
    used for the loss. records: stages.Records."""
    builtin = run.info["data"]["origin"] == "builtin"
    counts = {
        name: {"read": loaded.rows, "kept": len(loaded.records)}
        | {"dropped": "; ".join(f"{reason}: {n}" for reason, n in loaded.dropped.items()) or "none"}
        | {"origin": "built-in corpus" if builtin else loaded.origin}
        for name, loaded in records.sources.items()
    }
    blank = dict.fromkeys(("read", "dropped", "origin"), "")
    counts["all training rows"] = blank | {"kept": len(records.train)}
    counts["all validation rows"] = blank | {"kept": len(records.validation)}
    used = getattr(run.recipe, records.stage).eval_rows or len(records.validation)
    counts["of these in the validation loss"] = blank | {"kept": min(used, len(records.validation))}
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("source")


def replay_shares(run: Run) -> pd.DataFrame | Markdown:
    """The share of replayed rows by five definitions, from the manifest."""
    path = run.folder / "data" / "manifest.json"
    stage2 = storage.load(run.folder, "data/manifest.json", ()).get("stage2") if path.is_file() else None
    if not stage2:
        return Markdown("See the arm with replay, which reads the same consultations.")
    titles = {
        "rows_per_stage2_row": "replayed rows per consultation (the paper's 1/3)",
        "share_of_stage1": "share of stage 1's training rows (the k of Dong et al.)",
        "share_of_rows": "share of stage 2's training rows",
        "share_of_tokens": "share of their tokens",
        "share_of_supervised_tokens": "share of their supervised tokens",
    }
    return pd.DataFrame({"replay": {title: f"{stage2['replay'][key]:.4f}" for key, title in titles.items()}})


def contamination(run: Run, stage: str) -> HTML:
    """How many evaluation items appear in the stage's training rows, with the counts by measure."""
    manifest = storage.load(run.folder, "data/manifest.json", ())
    section = manifest if stage == "stage1" else manifest.get("stage2")
    if not section:
        return HTML("<p>See the arm with replay for evaluation items in the training rows.</p>")
    overlap = section["overlap"]
    summary = f"{len(overlap['contaminated']):,} evaluation items appear in a training row"
    return details(summary, overlap_counts(overlap))


def overlap_counts(overlap: dict) -> pd.DataFrame | str:
    """Evaluation items found in training rows by source and measure, and how many count as known.

    overlap: from data/manifest.json.
    """
    if not overlap["counts"]:
        return "No evaluation item was found in a training row by any measure."
    counts = pd.DataFrame(overlap["counts"]).T.fillna(0).astype(int)
    sources = pd.Series([name.partition("/")[0] for name in overlap["contaminated"]], dtype=str)
    return counts.assign(known=sources.value_counts().reindex(counts.index, fill_value=0))


def example_row(run: Run, tokenizer, tokenized: dict, show_text: bool) -> HTML:
    """One training row as the model reads it, with the supervised tokens in bold."""
    supervised = sum(label >= 0 for label in tokenized["labels"])
    line = f"<p>{len(tokenized['labels']):,} tokens, {supervised:,} of them trained on (bold):</p>"
    if not may_show(run, show_text):
        return HTML(f"{line}<p>{HIDDEN}</p>")
    pairs, pieces = zip(tokenized["input_ids"], tokenized["labels"], strict=True), []
    # Decoded in runs, since some tokenizers drop the space before a text's first word.
    for is_supervised, run_of_pairs in itertools.groupby(pairs, lambda pair: pair[1] != prompts.IGNORED):
        text = html.escape(tokenizer.decode([token for token, _ in run_of_pairs])).replace("\n", "<br>")
        pieces.append(f"<b>{text}</b>" if is_supervised else text)
    return HTML(f"{line}<p style='text-align:left'>{''.join(pieces)}</p>")


def consultations(run: Run, records) -> HTML:
    """How many consultations were read, kept and used, and their duplicates. records: stages.Records."""
    split = records.stage2.split
    tables = [split_counts(records.sources["dialogues"], split)]
    summary = (
        f"{split.rows:,} consultations read: {len(split.train):,} for training and "
        f"{len(split.validation):,} for validation; the recipe asks for {split.requested[0]:,} and "
        f"{split.requested[1]:,}"
    )
    if stage2 := storage.load(run.folder, "data/manifest.json", ()).get("stage2"):
        tables.append(duplicate_counts(stage2["notechat"]))
        similar = stage2["notechat"]["validation_found_in_train"].get("near-duplicate", 0)
        summary += f"; {similar:,} of those for validation are near-duplicates of training rows"
    return details(summary, *(table.to_frame() for table in tables))


def split_counts(loaded, split) -> pd.Series:
    """Conversations read, dropped by reason, kept and split. loaded: sources.Loaded, split: dmt.Dialogues."""
    counts = {"read": split.rows}
    counts |= {f"dropped: {reason}": count for reason, count in loaded.dropped.items()}
    counts |= {"kept": split.kept, "distinct": split.distinct, **loaded.notes}
    counts |= {"for training": len(split.train), "for validation": len(split.validation)}
    counts |= {"validation rows verbatim in training": split.validation_verbatim_in_train}
    counts |= {"rows with a clinical note": split.with_note}
    if split.with_note:
        counts |= {"clinical notes in both splits": split.notes_on_both_sides}
    return pd.Series(counts, name="conversations")


def duplicate_counts(consultations: dict) -> pd.Series:
    """Duplicates among stage 2's consultations, from data/manifest.json."""
    groups = consultations["duplicate_groups"]
    counts = {
        "files": len(consultations["files"]),
        "files of the same bytes": consultations["files_of_the_same_bytes"],
        "conversations that repeat another": groups["rows"] - groups["groups"],
    }
    for measure, count in consultations["validation_found_in_train"].items():
        counts[f"validation rows found in training: {measure}"] = count
    return pd.Series(counts, name="duplicates")
