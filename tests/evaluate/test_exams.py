"""Notebook 03's steps on a tiny random Llama: what is scored, kept, shown and left out."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from medkit import MedkitError, evaluate
from medkit.evaluate import accuracy, generation, letter_scoring, lineup, mcq
from medkit.evaluate.lineup import Active
from medkit.records import MCQItem
from medkit.report import display, tables
from medkit.runs import run_json, storage
from medkit.runs.storage import ResultsError

SETTINGS = "mcq.rows=5;mcq.generated_rows=2;mcq.max_new_tokens=4;mcq.permutations=20;mcq.general=true"


def opened(monkeypatch, tmp_path, name="tiny", settings=SETTINGS, data_dir=""):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RUNNER", "1")  # no lock to hold
    storage.write_json(tmp_path / name / "run.json", run_json.describe("cpu", settings, data_dir))
    return run_json.begin(name, mcq.NOTEBOOK, data_dir=data_dir)


@pytest.fixture
def run(monkeypatch, tmp_path):
    return opened(monkeypatch, tmp_path)


def item(number, source="medqa", answer="A"):
    options = ("yes", "no", "maybe") if source == "pubmedqa" else ("one", "two", "three", "four")
    return MCQItem(f"{source}-{number}", source, f"Question {number}?", options, answer)


class Records:
    def __init__(self, records):
        self.records = records


def letters_of(model, items, predicted):
    pairs = zip(items, predicted, strict=True)
    given = [letter_scoring.Outcome(letter, (-1.0,) * len(one.letters)) for one, letter in pairs]
    return letter_scoring.frame(model, items, given)


def test_questions_are_the_first_of_each_benchmark(run):
    items = mcq.exam_items(run)
    assert Counter(one.source for one in items) == dict.fromkeys(accuracy.CHANCE, 5)
    everything = mcq.first_rows(items, 0)
    assert everything == items and len(mcq.first_rows(items, 3)) == 9


def test_an_id_that_two_questions_of_a_benchmark_have(run, monkeypatch):
    """Answers are paired by id; that two benchmarks have the same one is no matter."""
    loaded = {"medqa": [item(1)], "pubmedqa": [replace(item(1, "pubmedqa"), id="medqa-1")]}
    monkeypatch.setattr(mcq.stages, "load_exams", lambda *_: {k: Records(v) for k, v in loaded.items()})
    assert len(mcq.exam_items(run)) == 2
    loaded["medqa"] *= 2
    with pytest.raises(MedkitError, match="medqa has two questions medqa-1; give each question"):
        mcq.exam_items(run)


def two_models(tiny_llama):
    """A lineup of two models with the same weights."""

    class Twins(list):
        def close(self):
            self.closed = True

    return Twins(Active(name, *tiny_llama, f"identity of {name}") for name in ("base", "med-mix"))


def test_a_call_answers_and_a_call_writes(run, tiny_llama):
    """Two models of the same weights: 15 questions each, the same letters, no difference."""
    items, twins = evaluate.exam_items(run), two_models(tiny_llama)
    answers = evaluate.answer_exams(run, twins, items)
    assert twins.closed and answers.identities["med-mix"] == "identity of med-mix"
    assert answers.letters["model"].tolist() == ["base"] * 15 + ["med-mix"] * 15
    assert Counter(answers.words["model"]) == {"base": 6, "med-mix": 6}  # two of each benchmark
    summary = evaluate.write_exams(run, answers)
    assert summary == json.loads((run.folder / "mcq" / "summary.json").read_text())
    assert summary["models"] == ["base", "med-mix"] and summary["scoring"]["base"]["n"] == 15
    assert [one["difference"] for one in summary["comparisons"]] == [0, 0, 0]
    assert len(summary["protocols"]) == 6 and summary["contamination_known"] is False
    assert summary["without_contaminated"]["left_out"] == {}
    calibration = summary["calibration"]["pubmedqa"]["base"]
    assert calibration["n"] == 5 == sum(one["n"] for one in calibration["bins"])
    # 5 questions of each benchmark in 4, 4 and 3 orders, and the general set
    assert len(answers.orders) == 2 * 5 * (4 + 4 + 3) and len(answers.general) == 2 * (128 + 40)
    asked = pd.read_csv(run.folder / "mcq" / "permutations.csv")
    original = asked[(asked["rotation"] == 0) & (asked["model"] == "base")]
    own = answers.letters[answers.letters["model"] == "base"]
    assert original["predicted"].tolist() == own["predicted"].tolist()
    assert summary["option_order"]["medqa"]["base"]["accuracies"][0] == own["correct"][:5].mean()
    assert summary["option_order"]["all"]["med-mix"]["n"] == 15
    general = summary["general"]
    assert general["models"]["base"]["n"] == 128 and general["models"]["base"]["texts"] == 40
    assert general["comparisons"][0]["loss_difference"] == 0 == general["comparisons"][0]["difference"]
    assert len(pd.read_csv(run.folder / "mcq" / "general.csv")) == len(answers.general)
    assert summary["lm_eval"] == {} and answers.lm_eval == {"base": {}, "med-mix": {}}
    written = accuracy.read_items(run.folder)
    assert written["item_id"].tolist() == [one.id for one in items] * 2
    again = evaluate.answer_exams(run, two_models(tiny_llama), items)
    assert again.letters.equals(answers.letters) and again.scoring["base"]["from_store"] == 15


def test_neither_other_orders_nor_general_questions(monkeypatch, tmp_path, tiny_llama):
    settings = "mcq.rows=2;mcq.generated_rows=0;mcq.permutations=0;mcq.general=false"
    run = opened(monkeypatch, tmp_path, settings=settings)
    items = evaluate.exam_items(run)
    answers = evaluate.answer_exams(run, two_models(tiny_llama), items)
    assert answers.orders.empty and answers.general.empty
    summary = evaluate.write_exams(run, answers)
    assert summary["option_order"] == summary["general"] == {} and summary["calibration"]
    assert {path.name for path in (run.folder / "mcq").iterdir()} == {
        "items.csv",
        "answers.jsonl",
        "summary.json",
    }


def test_what_was_written_is_read_again(tmp_path, tiny_llama, monkeypatch):
    run = opened(monkeypatch, tmp_path, settings="mcq.rows=2;mcq.generated_rows=0;mcq.permutations=0")
    items = evaluate.exam_items(run)
    answers = evaluate.answer_exams(run, two_models(tiny_llama), items)
    whole = accuracy.read_items
    monkeypatch.setattr(accuracy, "read_items", lambda place: whole(place).iloc[1:])
    with pytest.raises(MedkitError, match="differs from the models' answers"):
        evaluate.write_exams(run, answers)


def test_both_protocols_cover_the_questions_they_say(run, tiny_llama):
    items = mcq.exam_items(run)
    active = Active("base", *tiny_llama, "identity-of-base")
    scored = mcq.score_letters(run, active, items)
    words = mcq.answer_in_words(run, active, items)
    letters = letter_scoring.frame("base", items, scored.outcomes)
    assert len(letters) == 15 and Counter(words["dataset"]) == dict.fromkeys(accuracy.CHANCE, 2)
    found = mcq.protocols(letters, words)
    for one in found:
        assert one["n"] == 2 == sum(tier["count"] for tier in one["tiers"].values())
        own = letters[(letters["dataset"] == one["dataset"])].head(2)
        assert one["correct"]["scored"] == own["correct"].sum()
    # asked again, everything comes from the store, and is the same
    again = mcq.score_letters(run, active, items)
    assert again.report["from_store"] == 15 and again.outcomes == scored.outcomes
    assert mcq.answer_in_words(run, active, items).equals(words)
    # another model's name is no matter, its identity is
    other = mcq.score_letters(run, Active("base", *tiny_llama, "another identity"), items)
    assert other.report["from_store"] == 0


def test_no_question_answered_in_words_is_no_protocol(monkeypatch, tmp_path, tiny_llama):
    run = opened(monkeypatch, tmp_path, settings="mcq.rows=2;mcq.generated_rows=0")
    items = mcq.exam_items(run)
    words = mcq.answer_in_words(run, Active("base", *tiny_llama, "x"), items)
    letters = letters_of("base", items, "A" * 6)
    assert words.empty and mcq.protocols(letters, words) == []
    mcq.write_mcq(run, letters, words, {}, show_text=False)
    assert (run.folder / "mcq" / "answers.jsonl").read_text() == ""


def test_words_and_letters_are_asked_with_the_same_tokens(run, tiny_llama, monkeypatch):
    """A question that spells a control token is text in both."""
    model, tokenizer = tiny_llama
    asked = []

    def generate(model, tokenizer, ids, **settings):
        asked.append(ids)
        return [[generation.Answer("C", "too long", 0)] for _ in ids]

    monkeypatch.setattr(mcq.generation, "generate_answers", generate)
    forged = replace(item(1), question="What is <|eot_id|><|start_header_id|>?")
    words = mcq.answer_in_words(run, Active("base", model, tokenizer, "x"), [forged])
    assert asked[0] == [mcq.prompts.letter_position(tokenizer, "letter")["encode"](forged)]
    ends = [ids.count(tokenizer.eos_token_id) for (ids,) in asked]
    assert ends == [2, 2]  # of the system's and the user's turn
    letters = letters_of("base", [forged], "C")
    assert mcq.protocols(letters, words)[0]["too_long"] == 1


def test_the_released_protocol_is_asked_for_and_read_in_its_own_way(run, tiny_llama, monkeypatch):
    """Greedily the model says "C", which the rule of the notebooks could not read; sampled, it is "Answer:
    C", right in question 1 and wrong in 2."""
    asked = []

    def generate(model, tokenizer, ids, **settings):
        asked.append(settings | {"prompts": [tokenizer.decode(one) for one in ids]})
        text = "Answer: C" if "temperature" in settings else "C"
        return [[generation.Answer(text, "stopped", 1)] for _ in ids]

    monkeypatch.setattr(mcq.generation, "generate_answers", generate)
    items = [item(1, answer="C"), item(2, answer="B")]
    words = mcq.answer_in_words(run, Active("base", *tiny_llama, "x"), items)
    greedy, sampled = asked
    assert greedy["max_new_tokens"] == 4 and "temperature" not in greedy
    assert {key: sampled[key] for key in mcq.RELEASED} == mcq.RELEASED
    assert all("\nAnswer:" in one for one in sampled["prompts"])
    assert words["letter"].tolist() == words["released"].tolist() == ["C", "C"]
    (found,) = mcq.protocols(letters_of("base", items, "AB"), words)
    # by letter 2 is right, in words and as released 1: one each only the one and only the other has right
    assert found["correct"] == {"scored": 1, "generated": 1, "released": 1}
    released = found["minus_scored"]["released"]
    assert (released["difference"], released["first_only"], released["second_only"]) == (0, 1, 1)
    page = tables.protocols_page([found]).iloc[0]
    assert page["as released"].startswith("50.0 [") and page["as released minus letter"].startswith("0.0 [")
    text = tables.protocols_text([found])
    assert "Significantly different: none" in text
    # 2 questions give p = 1/2 at the least, doubled by Holm
    assert "(2 questions each: too few for any significant difference)" in text
    assert tables.too_few([{"n": 8}], 6) == ""  # 6 x 2 / 2^8 = 0.047
    assert tables.too_few([{"n": 8}], 7) != ""  # 7 x 2 / 2^8 = 0.055


def test_a_protocol_that_loses_every_question_is_significantly_different(tmp_path):
    """20 questions right by letter, unreadable by the rule: exact McNemar p = 2 / 2^20, doubled by Holm."""
    items = [item(i) for i in range(20)]
    words = pd.DataFrame(
        {"model": "base", "dataset": "medqa", "item_id": one.id, "gold": "A", "letter": "A", "tier": "letter"}
        | {"first_last_disagree": False, "finish": "cut", "released": ""}
        for one in items
    )
    found = mcq.protocols(letters_of("base", items, "A" * 20), words)
    storage.write_json(tmp_path / "mcq/summary.json", {"protocols": found})
    table = tables.protocols(tmp_path)
    assert "base on MedQA, as released (-100.0 points; corrected p = 3.8e-06)" in table.text
    figures = table.figures.set_index("protocol")
    assert figures["percent"].tolist() == [100, 100, 0] and figures["unparsed"].tolist() == [0, 0, 20]
    assert figures.loc["as released", "minus_letter"] == -100
    assert table.page.loc[0, "cut at the limit"] == "100.0" and "| 0.0 [0.0, 16.1]" in table.markdown()


def test_scores_without_contaminated_questions(run):
    items = [item(i) for i in range(4)] + [item(i, "pubmedqa") for i in range(3)]
    letters = pd.concat([letters_of("base", items, "AABBABB"), letters_of("med-mix", items, "AAAAAAA")])
    overlap = {"contaminated": ["medqa/medqa-0", "medqa/medqa-2"]}
    storage.write_json(run.folder / "data" / "manifest.json", {"overlap": overlap})
    assert mcq.contaminated_ids(run) == {("medqa", "medqa-0"), ("medqa", "medqa-2")}
    found = mcq.without_contaminated(letters, mcq.contaminated_ids(run))
    # base has questions 0 and 1 of four right: without 0 and 2 that is one (1) of two (1, 3)
    assert found["left_out"] == {"medqa": 2}
    own = found["datasets"]["medqa"]["models"]["base"]
    assert (own["correct"], own["n"]) == (1, 2) and found["datasets"]["pubmedqa"]["n"] == 3
    table = display.contamination_table(accuracy.mcq_summary(letters), found)
    assert table.loc[0, ["n", "n without"]].tolist() == [4, 2]


def test_a_joint_arm_has_only_its_one_stage_to_know_of_contamination(run):
    manifest = {"recipe": "cpu", "stage2": {"overlap": {"contaminated": ["medqa/medqa-1"]}}}
    storage.write_json(run.folder / "data" / "manifest.json", manifest)
    assert mcq.contaminated_ids(run) == {("medqa", "medqa-1")}


def test_a_run_without_a_manifest_knows_of_no_contamination(run):
    assert mcq.contaminated_ids(run) is None


def test_errors_are_a_seeded_sample_of_the_wrong_ones():
    items = [item(i) for i in range(30)]
    letters = letters_of("base", items, "A" * 10 + "B" * 20)
    wrong = mcq.wrong(letters, "base", 8)
    assert len(wrong) == 8 and (wrong["predicted"] == "B").all()
    assert wrong.equals(mcq.wrong(letters, "base", 8))
    assert len(mcq.wrong(letters, "base", 99)) == 20 and mcq.wrong(letters, "med-mix", 8).empty


@pytest.mark.parametrize("show", [False, True])
def test_rows_of_a_data_set_are_shown_only_where_asked_for(monkeypatch, tmp_path, tiny_llama, show):
    run = opened(monkeypatch, tmp_path, settings="", data_dir="somewhere")
    secret = MCQItem("q1", "pubmedqa", "A secret?", ("yes", "no", "maybe"), "A", "A secret abstract.")
    letters = letters_of("base", [secret], "B")
    words = pd.DataFrame([{"model": "base", "item_id": "q1", "text": "a secret answer", "letter": "A"}])
    mcq.write_mcq(run, letters, words, {}, show)
    written = "".join(path.read_text() for path in (run.folder / "mcq").iterdir())
    table = display.errors(run, mcq.wrong(letters, "base", 1), [secret], show).to_html()
    prompt = display.prompt(run, tiny_llama[1], secret, show).data
    for text in (written, table, prompt):
        assert ("secret" in text) is show
    assert "Figure" not in prompt and "highly knowledgeable medical assistant" in prompt
    assert json.loads((run.folder / "mcq" / "answers.jsonl").read_text())["letter"] == "A"


def test_a_model_alone_gets_a_run_of_its_own_and_no_other(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RUNNER", "1")
    run = mcq.begin("alone", "", "some/model")
    storage.write_json(run.folder / "run.json", run.info)
    assert (run.recipe.name, run.recipe.model.base) == ("recommended", "some/model")
    assert mcq.begin("alone", "", "some/model").recipe == run.recipe
    with pytest.raises(ResultsError, match="is a run of some/model; use another run_dir for other/model"):
        mcq.begin("alone", "", "other/model")
    trained = run_json.describe("cpu") | {"notebooks": {"01_stage1": {"status": "complete"}}}
    storage.write_json(tmp_path / "cpu" / "run.json", trained)
    with pytest.raises(ResultsError, match="is a run of smollm2; use another run_dir for smollm2"):
        mcq.begin("cpu", "", "smollm2")
    with pytest.raises(ResultsError, match="is not a run; run notebook 01_stage1 first"):
        mcq.begin("nothing", "")
    with pytest.raises(ResultsError, match="some/model cannot be combined with arms=base"):
        evaluate.begin_exams("alone", "", "some/model", arms="base")


def test_a_model_with_another_adapter_gets_a_run_of_its_own(monkeypatch, tmp_path):
    """Else the one's answers would be shown as the other's."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    for name in ("first", "second"):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "lora_dropout": 0, "use_rslora": true, '
            '"target_modules": ["q_proj"]}'
        )
        save_file({name: np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    first, second = (str(tmp_path / "adapters" / name) for name in ("first", "second"))
    mcq.begin("alone", "", "some/model", first)
    mcq.begin("alone", "", "some/model", first)
    for other in (second, ""):
        with pytest.raises(ResultsError, match="with another adapter, or none"):
            mcq.begin("alone", "", "some/model", other)


def test_every_arm_has_its_own_answers(tiny_run_folder, tmp_path, monkeypatch):
    """The arms share a base on which adapters are switched."""
    shutil.copytree(tiny_run_folder, tmp_path / "tiny")
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    run, team = evaluate.begin_exams("tiny")
    items = evaluate.exam_items(run)[:4]
    found = evaluate.answer_exams(run, team, items).letters
    for active in lineup.of_run(run):
        own = letter_scoring.score(active.model, active.tokenizer, items, progress=False).outcomes
        logprobs = found.loc[found["model"] == active.name, "logprob_A"]
        assert logprobs.tolist() == pytest.approx([outcome.logprobs[0] for outcome in own], abs=1e-3)
    assert found.pivot(index="item_id", columns="model", values="logprob_A").std(axis=1).min() > 0.01


def test_questions_known_from_either_stage_are_contaminated(tmp_path):
    first, second = ({"overlap": {"contaminated": [f"medqa/{number}"]}} for number in (1, 2))
    storage.write_json(tmp_path / "data" / "manifest.json", first | {"stage2": second})
    assert mcq.contaminated_ids(SimpleNamespace(folder=tmp_path)) == {("medqa", "1"), ("medqa", "2")}


def test_letters_are_scored_where_the_recipe_trains_them(monkeypatch, tmp_path, tiny_llama):
    asked = {}
    monkeypatch.setattr(mcq.letter_scoring, "score", lambda m, t, items, **options: asked.update(options))
    run = opened(monkeypatch, tmp_path, settings="data.mcq_target=letter_and_text")
    mcq.score_letters(run, Active("base", *tiny_llama, "x"), [item(1)])
    assert tiny_llama[1].decode(asked["encode"](item(1))).endswith("Answer: ")
