"""What notebooks 01 and 02 show of a stage: what it found or will find, its rows, its loss."""

import base64

import pandas as pd
from IPython.display import HTML, Markdown, display

from medkit.report import display as views
from medkit.report import figures
from medkit.runs import arms, storage
from medkit.runs import loss as loss_file
from medkit.runs.run_json import Run


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
        found = _found(self.run, self.arm)
        return HTML(f'<p>{found}</p><img alt="loss of {self.arm.title}" src="data:image/png;base64,{image}">')


def _planned(run: Run, arm: arms.Arm) -> str:
    recipe, dmt = run.recipe, run.recipe.dmt
    if arm.stage == "stage1":
        return (
            f"This run will train <b>{arm.title}</b> on questions of MedQA, MedMCQA and PubMedQA, and "
            f"hold out {recipe.data.validation_share:.0%} of them; its loss curve will stand here."
        )
    beside = f"{dmt.replay_share:.3g} replayed exam questions for each of them"
    if arm.id == "control":
        beside = "no replayed exam questions"
    elif dmt.handover == "joint":
        beside = "all of stage 1's exam questions, in one stage"
    elif dmt.fill == "dialogues":
        beside = f"{dmt.replay_share:.3g} further ones for each in place of a replay"
    return (
        f"This run will train <b>{arm.title}</b> on {dmt.notechat_train:,} consultations or fewer, with "
        f"{beside}; "
        "its loss curves, beside those of the arms that are trained already, will stand here."
    )


def _found(run: Run, arm: arms.Arm) -> str:
    """Where the arm's losses began and ended, in a sentence or two."""
    loss = loss_file.read(run.folder, arm.folder)
    text = f"<b>{arm.title}</b>: {int(loss['step'].max()):,} optimizer steps."
    names = {"eval_loss": "Validation loss"}
    names |= {"eval_loss_dialogues": "of the consultations", "eval_loss_stage1": "of the exam questions"}
    parts = []
    for column, name in names.items():
        values = loss[column].dropna()
        if len(values):
            parts.append(f"{name} {values.iloc[0]:.3f} to {values.iloc[-1]:.3f}")
    return f"{text} {', '.join(parts)}." if parts else text


def trained_arms(run: Run, arm: str) -> dict[str, pd.DataFrame]:
    """loss.csv of the arms of a folder's stage that have one, by the arm's id."""
    stage = arms.of_folder(arm).stage
    return {
        one.id: loss_file.read(run.folder, one.folder)
        for one in arms.ARMS.values()
        if one.stage == stage and (run.folder / one.folder / "loss.csv").is_file()
    }


def figure_of_loss(run: Run, arm: str):
    """Figure 11 of stage 1; of stage 2 Figure 12: its arms over each other, and validation loss by source."""
    if arms.of_folder(arm).stage == "stage1":
        figure, ax = figures.new()
        figures.loss_curves(ax, loss_file.read(run.folder, arm), "Stage 1")
        return figure
    curves = {name: loss for name, loss in trained_arms(run, arm).items() if name != "relearned"}
    figure, (left, right) = figures.new(11.0, columns=2)
    figures.loss_arms(left, curves, "Stage 2")
    figures.loss_by_source(right, curves, "Stage 2 by source")
    return figure


def rows(run: Run, records) -> pd.DataFrame:
    """What was read for an arm and what of it trains and validates. records: stages.Records."""
    counts = views.sources(run, records.sources, {}).droplevel("part")
    totals = {"read": "", "kept": len(records.train), "dropped": "", "origin": ""}
    counts.loc["all training rows"] = totals
    counts.loc["all validation rows"] = totals | {"kept": len(records.validation)}
    return counts


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
    found = views.found_in_training(part)
    text = found if isinstance(found, pd.DataFrame) else found.data
    return views.details(f"{count:,} evaluation items appear in a training row", text)


def row(run: Run, tokenizer, tokenized: dict, show_text: bool) -> HTML:
    """One row as the model reads it, in bold what it is trained on."""
    supervised = sum(label >= 0 for label in tokenized["labels"])
    shown = views.tokens(run, tokenizer, tokenized, show_text).data
    return HTML(
        f"<p>{len(tokenized['labels']):,} tokens, {supervised:,} of them trained on (bold):</p>{shown}"
    )


def consultations(run: Run, records) -> HTML:
    """How many consultations were read, kept and used, and the duplicates among them, behind a line."""
    loaded, split = records.sources["dialogues"], records.second.split
    counts = views.conversations(loaded, split).to_frame()
    parts = [counts]
    stage2 = storage.load(run.folder, "data/manifest.json", ()).get("stage2")
    if stage2:
        parts.append(views.duplicates(stage2).to_frame())
    used, asked = (len(split.train), len(split.validation)), split.asked
    summary = f"{split.rows:,} consultations read; {used[0]:,} train and {used[1]:,} validate"
    return views.details(f"{summary}, where the recipe asks for {asked[0]:,} and {asked[1]:,}", *parts)


def answer(model, tokenizer, item) -> str:
    """The model's greedy answer to an exam question."""
    from medkit.evaluate import mcq

    return mcq.answer(model, tokenizer, item)
