"""What notebooks 01 and 02 show, and what they keep to themselves."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import chat_templates
import pandas as pd
import pytest
from conftest import make_tokenizer

from medkit import dmt, prompts, recipes, report
from medkit.data.sources import Loaded
from medkit.records import Dialogue, MCQItem, Turn
from medkit.report import display, training
from medkit.runs import run_json

ITEM = MCQItem("7", "medqa", "Is <b>iron</b> a metal?", ("yes it is", "no", "at night", "never"), "A")


def run(origin):
    return SimpleNamespace(recipe=recipes.get("cpu"), info={"data": {"origin": origin}})


@pytest.mark.parametrize("show_text", [False, True])
@pytest.mark.parametrize("origin", ["builtin", "hub", "folder"])
def test_rows_of_a_data_set_are_shown_only_on_request(origin, show_text):
    tokenizer, allowed = make_tokenizer(), origin == "builtin" or show_text
    tokenized = {"input_ids": tokenizer("Is <b>iron</b> a metal?")["input_ids"]}
    tokenized["labels"] = [prompts.IGNORED] * len(tokenized["input_ids"])
    shown = training.example_row(run(origin), tokenizer, tokenized, show_text).data
    assert ("iron" in shown) == allowed and ("not shown" in shown) != allowed
    assert "<b>" not in shown  # escaped, whatever a row holds
    answers = {"base": "Is <i>iron</i>\na metal?", "Med-Mix": "A"}
    shown = display.before_and_after(run(origin), ITEM, answers, show_text).data
    assert ("iron" in shown) == allowed and (
        "<td style='text-align:left'>4 words, not shown" in shown
    ) != allowed
    assert "<i>" not in shown and ("&lt;/i&gt;<br>a metal?" in shown) == allowed
    assert "<th>Med-Mix</th>" in shown and "<th>right answer</th><td style='text-align:left'>A</td>" in shown


def test_settings_show_what_differs_from_the_paper_and_the_rest_behind_a_line():
    """A paper run with one field changed differs in one of all its fields."""
    of_recipe = recipes.get("paper", {"stage2.learning_rate": "1e-4"})
    info = run_json.describe("paper", "stage2.learning_rate=1e-4")
    shown = report.settings(SimpleNamespace(recipe=of_recipe, info=info)).data
    fields = len(recipes.flat(of_recipe)) - 2  # without the preset's name and its description
    first, everything = shown.split("</details>")[:2]
    assert f"<summary>Settings: 1 of {fields} differ from recipe paper&#x27;s (this is recipe paper;" in first
    assert first.count("<tr>") == 1 and "stage2.learning_rate" in first and "stage1" not in first
    paper = recipes.get("paper").stage2.learning_rate
    assert f"<td>{paper}</td>" in first and "<td>0.0001</td>" in first
    assert "stage1.learning_rate" in everything and everything.startswith("<details>")


def test_settings_of_a_run_that_was_gone_on_with_are_those_of_where_it_was():
    info = run_json.describe("cpu")
    again = {
        "started": run_json.utc_now(),
        "git": {},
        "versions": {"torch": "9.9"},
        "hardware": {"cores": 64},
    }
    info["continued"] = [again]
    shown = report.settings(SimpleNamespace(recipe=recipes.get("cpu"), info=info)).data
    assert "9.9" in shown and "<td>64</td>" in shown
    assert "builtin" in shown


def test_bold_are_the_tokens_the_loss_is_taken_on():
    tokenizer = make_tokenizer()
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    ids, labels = prompts.training_ids(tokenizer, chat, [prompts.messages(ITEM)])
    html = training.example_row(
        run("builtin"), tokenizer, {"input_ids": ids[0], "labels": labels[0]}, False
    ).data
    assert html.count("<b>") == 1  # the letter and the end of the turn
    assert "<b>A&lt;|eot_id|&gt;</b>" in html


def test_what_was_found_in_training_is_counted_and_nothing_is_said_in_words():
    found = {"counts": {"medqa": {"verbatim": 2, "any 13-gram": 3}}, "contaminated": ["medqa/1", "medqa/2"]}
    table = training.overlap_counts(found)
    assert table.loc["medqa"].to_dict() == {"verbatim": 2, "any 13-gram": 3, "known": 2}
    none = training.overlap_counts({"counts": {}, "contaminated": []})
    assert none.startswith("No evaluation item")


def test_conversations_are_counted_as_read_dropped_and_kept():
    """Four rows: one dropped, two equal, none with a note; then one with a note."""
    talks = [
        Dialogue(str(i), "notechat", (Turn("user", "It hurts."), Turn("assistant", f"Rest {i // 2}.")))
        for i in range(3)
    ]
    for note in ("", "A note."):
        rows = [replace(talks[0], note=note), None, *talks[1:]]
        split = dmt.split_notechat(rows, 2, 2, deduplicate=False, by_note=False, seed=0)
        loaded = Loaded(
            dropped=Counter({"no patient turn": 1}), notes=Counter({"rows cut at a stage line": 2})
        )
        shown = training.split_counts(loaded, split)
        assert shown["rows cut at a stage line"] == 2
        assert shown[["read", "dropped: no patient turn", "kept", "distinct"]].tolist() == [4, 1, 3, 2]
        assert shown["rows with a clinical note"] == bool(note)
        assert ("clinical notes in both splits" in shown) == bool(note)


def test_contamination_is_a_line_and_a_table_where_there_is_any():
    own = {"n": 10, "models": {"base": {"n": 10, "correct": 5, "accuracy": 0.5, "low": 0.2, "high": 0.8}}}
    fewer = {"n": 8, "models": {"base": {"n": 8, "correct": 4, "accuracy": 0.5, "low": 0.2, "high": 0.8}}}
    summary = {"models": ["base"], "datasets": {"medqa": own}, "contamination_known": True}
    found = summary | {"without_contaminated": {"left_out": {"medqa": 2}, "datasets": {"medqa": fewer}}}
    shown = display.contamination(found).data
    assert "2 of 10 questions appear in a training row: accuracy without them</summary><table" in shown
    none = summary | {"without_contaminated": {"left_out": {}, "datasets": {"medqa": own}}}
    assert "0 of 10 questions" in display.contamination(none).data
    unknown = display.contamination(none | {"contamination_known": False}).data
    assert "no training rows to search" in unknown and "<table" not in unknown


def test_groups_are_a_line_a_benchmark_and_the_largest_first():
    rows = [
        {"model": "base", "dataset": "medmcqa", "group": group, "n": n, "accuracy": 0.5, "low": 0, "high": 1}
        for group, n in (("Anatomy", 4), ("Surgery", 9), ("", 1))
    ]
    shown = display.groups({"models": ["base"], "groups": rows}).data
    assert "<summary>MedMCQA by subject: 3, with 1 to 9 questions</summary>" in shown and "MedQA" not in shown
    assert shown.index("Surgery") < shown.index("Anatomy") < shown.index("not given")


def test_queries_are_a_line_and_the_skipped_rows_behind_it():
    cases = [SimpleNamespace(source=name) for name in ("icliniq", "icliniq", "healthcaremagic")]
    row_counts = {"passed_over": {"damaged": 1_200, "too short": 34}, "notes": {"references cut": 5}}
    shown = display.queries(run("builtin"), cases, row_counts).data
    assert (
        f"3 of the {recipes.get('cpu').consumer.cases} cases that the recipe asks for: 2 from iCliniq"
        in shown
    )
    assert "1 from HealthCareMagic; 1,234 rows skipped</summary>" in shown
    assert "damaged" in shown and "references cut" in shown


def test_details_escape_the_line_and_show_whole_tables_and_markdown():
    long = "x" * 200
    shown = display.details("a < b", pd.DataFrame({"c": [long]}), "**bold** & plain").data
    assert shown.startswith("<details><summary>a &lt; b</summary><table")
    assert long in shown and "<strong>bold</strong>" in shown and shown.endswith("</details>")


def test_a_row_keeps_its_spaces_with_any_tokenizer():
    """SentencePiece's decoders drop a text's first space: tokens decoded one by one would be joined."""
    tokenizer = chat_templates.make("mistral-v0.3")
    ids = tokenizer("You are kind", add_special_tokens=False).input_ids
    row = {"input_ids": ids, "labels": [prompts.IGNORED] * len(ids)}
    assert "You are kind" in training.example_row(run("builtin"), tokenizer, row, False).data


def test_the_comparisons_count_in_the_order_of_their_names():
    row = {"dataset": "medqa", "first": "base", "second": "med-mix", "shows": "stage 1", "difference": 0.3}
    row |= {"low": 0.1, "high": 0.5, "first_only": 2, "second_only": 14, "p": 0.01, "p_holm": 0.02}
    shown = display.comparisons({"comparisons": [row]}).iloc[0]
    assert shown["difference"] == "Med-Mix minus base"
    assert (shown["right only by the first-named"], shown["only by the other"]) == (14, 2)
