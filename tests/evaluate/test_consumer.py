"""Which cases are drawn, what they are scored with, and what the summary says of them."""

import html
import json
import math
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.evaluate import consumer
from medkit.evaluate.consumer import derangement, draw, evaluate
from medkit.evaluate.generation import Answer
from medkit.evaluate.scorer import Scorer
from medkit.evaluate.style import MARKERS, in_another_script, markers, word_count
from medkit.records import ConsumerQuery
from medkit.report.samples import escape, render, select_cases
from medkit.train import smollm2


def query(n, source="icliniq", reference="Rest and drink water."):
    return ConsumerQuery(f"{source}-{n}", source, f"Question {n}?", reference)


QUERIES = [query(n) for n in range(30)] + [query(n, "healthcaremagic") for n in range(10)]


# --- which cases


def sources(drawn):
    return sorted(case.source for case in drawn)


def test_draw_is_balanced():
    assert sources(draw(QUERIES, 10, 0)) == ["healthcaremagic"] * 5 + ["icliniq"] * 5


def test_a_source_with_too_few_is_made_up_for():
    # 10 + 30 are there: 26 are all 10 and 16
    assert sources(draw(QUERIES, 26, 0)) == ["healthcaremagic"] * 10 + ["icliniq"] * 16


def test_fewer_where_there_are_fewer():
    assert {case.id for case in draw(QUERIES, 50, 0)} == {case.id for case in QUERIES}


def test_draw_depends_on_the_seed_and_not_on_the_order():
    assert draw(QUERIES, 12, 3) == draw(QUERIES[::-1], 12, 3)
    assert draw(QUERIES, 12, 3) != draw(QUERIES, 12, 4)
    assert draw(QUERIES, 12, 3) == draw(QUERIES, 20, 3)[:12]


def test_a_draw_from_one_source_does_not_depend_on_the_other():
    both = [case for case in draw(QUERIES, 10, 0) if case.source == "icliniq"]
    assert both == draw(QUERIES[:30], 5, 0)


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(MedkitError, match="no consumer queries"):
        draw([], 50, 0)


def test_a_doubled_id_is_refused():
    with pytest.raises(MedkitError, match="twice"):
        draw([query(1), query(1)], 2, 0)


@given(st.integers(2, 60), st.integers(0, 1000))
def test_derangement_leaves_nothing_in_place(n, seed):
    order = derangement(n, seed)
    assert sorted(order) == list(range(n))
    assert all(order[i] != i for i in range(n))
    assert order == derangement(n, seed)


# --- style markers

LIST = "Try these:\n- sleep\n- walk"
EXAMPLES = {
    "list": (
        [LIST, "1. Ice it\nfor ten minutes\n2) Raise it", "* one\n\n* two", "• a\n• b", "  3. x\n  4. y"],
        ["- only one", "Take 2. Then 3.", "well-known - so far", "-5 degrees\n-6 degrees", "1.5 mg\n2.5 mg"],
    ),
    "bold": (
        ["This is **urgent**.", "__Never__ do this", "**Note:** drink"],
        ["2 ** 3 ** 4", "**open", "a * b * c", "snake__case__name", "****"],
    ),
    "heading": (
        ["# Causes\ntext", "text\n### What to do", "**Causes**\ntext", "**Causes**:"],
        ["#1 in the list", "the # sign", "Some **bold** inside", "####### seven"],
    ),
    "disclaimer": (
        [
            "As a language model, I think so.",
            "I'm not a doctor, but it looks fine.",
            "I’m not a medical professional.",
            "This is not a substitute for professional advice.",
            "This should not replace a consultation in person.",
            "This is not medical advice.",
            "I cannot provide a medical diagnosis.",
            "For informational purposes only.",
            "Here is some general information on lumps.",
        ],
        [
            "Aim to sleep more.",
            "Air is not a problem.",
            "Replace the dressing daily.",
            "The diagnosis is a sprain.",
            "The substitute for sugar is honey.",
            "I am a doctor.",
        ],
    ),
    "refusal": (
        [
            "I can't provide information on that.",
            "I’m sorry, but I cannot help with this.",
            "I am unable to give a diagnosis.",
            "I'm not able to answer.",
            "I won't be able to assist you.",
            "I must decline.",
            "We cannot offer you any medical advice.",
        ],
        [
            "You can't eat before the test.",
            "I can help with that.",
            "I cannot see a fracture in the picture.",
            "It will not help to wait.",
            "I can't give antibiotics for a virus.",
            "The pill cannot provide relief.",
        ],
    ),
    "referral": (
        [
            "Please see a doctor.",
            "Consult your local GP soon.",
            "I would consult a good orthopedic surgeon.",
            "Make an appointment with your dentist.",
            "Every new lump should be examined, so please make an appointment now.",
            "Drive to the nearest children's emergency department now.",
            "Call an ambulance if it ever happens again.",
            "That must be decided by a doctor who knows you, so book a travel clinic well ahead.",
            "Call whoever prescribed it this week.",
            "Seek medical attention at once.",
            "Call 911.",
            "Go to the nearest emergency room.",
            "You need to be examined by a cardiologist.",
            "Follow up with your healthcare provider.",
            "Talk to your pediatrician.",
            "Follow up with your primary care provider.",
            "Go to the ER tonight.",
        ],
        [
            "I see your doctor has given you a tablet.",
            "Doctors know this well.",
            "My doctor friend laughs.",
            "See below. The doctor is in.",
            "Your physician was right.",
            "Call it a day, rest.",
            "Avoid contact with cats.",
            "Do not go to hospital for this.",
            "You don't need to see a doctor.",
        ],
    ),
}


@pytest.mark.parametrize("name", MARKERS)
def test_markers(name):
    shown, not_shown = EXAMPLES[name]
    assert [text for text in shown if not markers(text)[name]] == []
    assert [text for text in not_shown if markers(text)[name]] == []


def test_every_line_end_counts():
    assert markers(LIST.replace("\n", "\r\n"))["list"] and markers(LIST.replace("\n", "\r"))["list"]


def test_words_and_scripts():
    assert word_count("  two\n words ") == 2 and word_count("") == 0
    assert in_another_script("无法提供帮助 ok") and not in_another_script("fièvre à 39 °C")
    assert not in_another_script("Bạn nên đến bệnh viện")
    assert not in_another_script("") and not in_another_script("123")


@pytest.mark.parametrize(
    "unit",
    ["a", " ", "\n", "- ", "- x\n", "**", "**a", "__", "not a ", "see a ", "consult", "i can't ", "1. "],
)
def test_a_hundred_thousand_characters_take_no_time(unit):
    start = time.process_time()
    markers(unit * (100_000 // len(unit)))
    assert time.process_time() - start < 2


@given(st.text())
def test_no_text_breaks_the_markers(text):
    assert set(markers(text)) == set(MARKERS)


# --- the scorer


def write_encoder(folder: Path, kind: str = "bert", save_limit: bool = True) -> Path:
    """A random BERT or RoBERTa of three layers that reads 62 (BERT: 64) tokens, one a character."""
    from tokenizers import pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        RobertaConfig,
        RobertaModel,
        RobertaTokenizer,
    )

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    size = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    if kind == "bert":
        letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?'-"
        vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
        (folder / "vocab.txt").write_text("\n".join(vocab))
        tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})
        model = BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=64, **size))
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"]
        tokenizer = RobertaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
        special = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)
        model = RobertaModel(
            RobertaConfig(vocab_size=len(tokens), max_position_embeddings=64, **special, **size)
        )
    if save_limit:
        tokenizer.model_max_length = 64 if kind == "bert" else 62
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "tiny-encoder")


@pytest.fixture(scope="module")
def scorer(encoder):
    return Scorer(encoder, layers=2)


def test_hash_and_name_hold_no_path(scorer, encoder):
    assert scorer.name == "tiny-encoder"
    assert scorer.hash.startswith("tiny-encoder_L2_no-idf_version=")
    assert "/" not in scorer.hash and not scorer.baseline


def test_equal_texts_score_one_and_empty_ones_nothing(scorer):
    scores = scorer.score(["rest well", "", " \n ", "rest"], ["rest well", "rest", "rest", "walk"])
    assert scores.loc[0, ["precision", "recall", "f1", "rouge_l"]].tolist() == pytest.approx(
        [1] * 4, abs=1e-5
    )
    assert (scores.loc[1:2, ["precision", "recall", "f1", "rouge_l"]] == 0).all(axis=None)
    assert 0 < scores.loc[3, "f1"] < 1


def test_rouge_l_by_hand(scorer):
    """Common subsequence `rest at home` of 3 words; 3 of the answer's 4, 3 of the reference's 5:
    2 * 3/4 * 3/5 / (3/4 + 3/5) = 2/3."""
    scores = scorer.score(["rest quietly at home"], ["rest for now at home"])
    assert scores.loc[0, "rouge_l"] == pytest.approx(2 / 3)


def test_scores_are_the_librarys(scorer, encoder):
    from bert_score import BERTScorer

    answers, references = ["rest well", "see a doctor"], ["sleep well", "drink water"]
    theirs = BERTScorer(model_type=str(encoder), num_layers=2).score(answers, references)
    ours = scorer.score(answers, references)
    for part, expected in zip(["precision", "recall", "f1"], theirs, strict=True):
        assert ours[part].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_more_pairs_than_go_at_once(scorer, monkeypatch):
    answers, references = [f"take {n}" for n in range(7)], [f"give {n} now" for n in range(7)]
    whole = scorer.score(answers, references)
    monkeypatch.setattr("medkit.evaluate.scorer.PAIRS_AT_ONCE", 3)
    pd.testing.assert_frame_equal(scorer.score(answers, references), whole, atol=1e-5)


def test_too_long_answers_are_counted_and_scored_by_their_beginning(scorer):
    # 64 tokens less [CLS] and [SEP]: 62 letters fit
    scores = scorer.score(["a" * 62, "a " * 63, "a " * 62 + "z"], ["a"] * 3)
    assert scores["truncated"].tolist() == [False, True, True]
    assert scores.loc[1, "f1"] == pytest.approx(scores.loc[2, "f1"])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_answers_that_say_nothing_score_zero(tmp_path, kind):
    scorer = Scorer(write_encoder(tmp_path / kind, kind), layers=2)
    start, end = ("[CLS]", "[SEP]") if kind == "bert" else ("<s>", "</s>")
    nothing = [
        "",
        " \n\t",
        end,
        f"{end} {end}",
        f"{start}{end}",
        f" {end}. ",
        "...",
        "?!",
        "**",
        "\u200b",
        "\ufeff\u00ad",
    ]
    nothing += ["\x00", "🙂", "\u00a0", end * 100 + " rest"]  # the limit of 62 tokens ends before "rest"
    scores = scorer.score([*nothing, f"rest {end}"], ["rest and water"] * (len(nothing) + 1))
    parts = ["precision", "recall", "f1", "rouge_l"]
    assert (scores.loc[: len(nothing) - 1, parts] == 0).all(axis=None)
    assert (scores.loc[len(nothing), parts] > 0).all()
    # a reference that says nothing is like nothing
    assert (scorer.score(["rest", "rest"], [end, "..."])[parts] == 0).all(axis=None)


@pytest.mark.parametrize("text", ["无法提供帮助", "🙂", "\u200b", "\x00", "ا" * 40, "x" * 100_000])
def test_strange_answers_are_scored(scorer, text):
    scores = scorer.score([text], ["rest and water"])
    assert all(0 <= value <= 1.001 for value in scores.iloc[0, :4])


def test_an_encoder_saved_without_its_limit(tmp_path):
    """bert-score then hands the tokenizer a limit of 10**30, and falls over."""
    assert Scorer(write_encoder(tmp_path / "bert", save_limit=False), 2).limit == 64
    roberta = Scorer(write_encoder(tmp_path / "roberta", "roberta", save_limit=False), 2)
    assert roberta.limit == 62  # 64 places, of which two lie before the first token
    assert roberta.score(["a" * 500], ["a"])["truncated"].tolist() == [True]


def test_robertas_first_word_is_a_word(tmp_path):
    """RoBERTa marks a word by the blank before it: `pain` at the beginning and within must be one token."""
    scorer = Scorer(write_encoder(tmp_path / "roberta", "roberta"), 2)
    tokens = scorer._tokenizer.convert_ids_to_tokens(scorer._tokenizer("ab").input_ids)
    assert tokens == ["<s>", "Ġ", "a", "b", "</s>"]


def test_t5_in_a_path_is_no_t5(tmp_path):
    """bert-score would load any folder with these two letters in its path as a T5."""
    scorer = Scorer(write_encoder(tmp_path / "part5" / "tiny"), 2)
    assert scorer.name == "tiny" and scorer.hash.startswith("tiny_L2")


def test_a_layer_that_is_not_there(encoder):
    with pytest.raises(MedkitError, match="layer 9"):
        Scorer(encoder, 9)


def test_a_folder_that_is_not_there_or_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(MedkitError) as error:
            Scorer(folder, 2)
        assert "\n" not in str(error.value) and folder.name in str(error.value)


def test_rescaling(scorer):
    """Baseline 0.8: 0.9 is half the way to 1, 0.8 is 0, 0.6 is one way below."""
    other = Scorer.__new__(Scorer)
    other.baseline = {"f1": 0.8}
    assert [other.rescale("f1", x) for x in (0.9, 0.8, 0.6)] == pytest.approx([0.5, 0, -1])


def test_minilm_knows_what_is_alike():
    try:
        smollm2.minilm_folder()
    except MedkitError as error:
        pytest.skip(str(error))
    scorer = Scorer("minilm", 6)
    assert (scorer.name, scorer.limit) == ("all-MiniLM-L6-v2", 512)
    assert scorer.hash.startswith("all-MiniLM-L6-v2_L6")
    reference = "Please drink more water and rest at home."
    near, far = scorer.score(
        ["Rest at home and drink plenty of fluids.", "The train leaves from platform nine."], [reference] * 2
    )["f1"]
    assert near > far + 0.2


# --- the evaluation

CASES = [
    query(1, reference="rest at home and drink warm water for three days"),
    query(2, reference="see a doctor if the pain goes on"),
    query(3, "healthcaremagic", reference="take the tablet after food twice a day"),
    query(4, "healthcaremagic", reference="cold milk helps"),
]


def said(*texts, finish="stopped"):
    return [Answer(text, finish, len(text)) for text in texts]


def alone(greedy):
    """Per case a greedy answer and no sampled one."""
    return [[answer] for answer in greedy]


BASE = said("rest", "", "I cannot help with that.", "**milk**\n- warm\n- cold")
TUNED = said(*(case.reference for case in CASES[:3]), "hot tea", finish="cut")
SAMPLED = {
    "base": [said("rest", "walk"), said("pain", "see a doctor"), said("no", "food"), said("milk", "ice")],
    "tuned": [said("rest at home", "x"), said("pain", "y"), said("tablet", "z"), said("cold milk", "w")],
}
ANSWERS = {
    model: [[greedy, *sampled] for greedy, sampled in zip(own, SAMPLED[model], strict=True)]
    for model, own in (("base", BASE), ("tuned", TUNED))
}


@pytest.fixture(scope="module")
def evaluated(scorer):
    return evaluate(
        CASES,
        ANSWERS,
        scorer,
        decoding={"max_new_tokens": 64},
        skipped={"damaged reference": 7},
        seed=5,
    )


def test_summary_counts(evaluated, scorer):
    summary, _ = evaluated
    assert summary["n"] == 4 and summary["sources"] == {"icliniq": 2, "healthcaremagic": 2}
    assert summary["passed_over"] == {"damaged reference": 7}
    assert summary["decoding"] == {"max_new_tokens": 64}
    assert summary["scorer"]["hash"] == scorer.hash and summary["scorer"]["rescaled"] is False
    base, tuned = summary["models"]["base"], summary["models"]["tuned"]
    assert (base["empty"], base["cut"], tuned["empty"], tuned["cut"]) == (1, 0, 0, 4)
    # words: 1, 0, 5, 5 ("**milk**", "-", "warm", "-", "cold")
    assert (base["words"]["mean"], base["words"]["median"], base["words"]["max"]) == (11 / 4, 3, 5)
    assert base["style"] | {"referral": 0} == {
        "list": 1 / 4,
        "bold": 1 / 4,
        "heading": 1 / 4,
        "disclaimer": 0,
        "refusal": 1 / 4,
        "referral": 0,
    }
    assert summary["reference"]["style"]["referral"] == 1 / 4
    # 10, 8, 8 and 3 words
    assert summary["reference"]["words"]["mean"] == 29 / 4


def test_an_empty_answer_stays_in_the_mean(evaluated):
    summary, scores = evaluated
    f1 = scores.query("model == 'base' and sample == 0")["f1"]
    assert len(f1) == 4 and (f1 == 0).sum() == 1
    assert summary["models"]["base"]["f1"]["mean"] == pytest.approx(f1.sum() / 4)


def test_differences_are_paired_and_have_a_direction(evaluated):
    summary, scores = evaluated
    f1 = scores[scores["sample"] == 0].pivot(index="case", columns="model", values="f1")
    found = summary["differences"]["tuned"]
    assert found["minus"] == "base"
    assert found["f1"]["mean"] == pytest.approx((f1["tuned"] - f1["base"]).mean())
    assert found["f1"]["low"] <= found["f1"]["mean"] <= found["f1"]["high"]
    # words 10 + 8 + 8 + 2 = 28 against 11, over 4 cases
    assert found["words"]["mean"] == 17 / 4


def test_length_matched_cuts_both_to_the_shorter(scorer, evaluated):
    assert consumer._cut_to_shorter("one two  three", "four five") == ("one two", "four five")
    matched = evaluated[0]["differences"]["tuned"]["length_matched"]
    assert matched["n"] == 3  # without the empty answer
    pairs = [
        ("rest", "rest", 0),
        ("I cannot help with that.", "take the tablet after food", 2),
        ("**milk** -", "hot tea", 3),
    ]
    base, tuned = (
        scorer.score([pair[k] for pair in pairs], [CASES[pair[2]].reference for pair in pairs])["f1"]
        for k in (0, 1)
    )
    assert matched["f1"]["mean"] == pytest.approx((tuned - base).mean(), abs=1e-5)


def test_a_longer_copy_gains_nothing_when_lengths_match(scorer):
    cases = CASES[:3]
    short = said(*(" ".join(case.reference.split()[:3]) for case in cases))
    whole = said(*(case.reference for case in cases))
    summary, _ = evaluate(
        cases, {"short": alone(short), "whole": alone(whole)}, scorer, decoding={}, skipped={}
    )
    assert summary["differences"]["whole"]["f1"]["mean"] > 0.01
    assert summary["differences"]["whole"]["length_matched"]["f1"]["mean"] == pytest.approx(0, abs=1e-6)


def test_control_scores_other_cases_references(evaluated, scorer):
    summary, scores = evaluated
    order = derangement(4, 5)
    shuffled = scorer.score([a.text for a in TUNED], [CASES[i].reference for i in order])["f1"]
    control = summary["control"]["tuned"]
    assert control["f1"]["mean"] == pytest.approx(shuffled.mean(), abs=1e-6)
    own = scores.query("model == 'tuned' and sample == 0")["f1"].mean()
    assert control["gap"]["mean"] == pytest.approx(own - shuffled.mean(), abs=1e-6)
    assert control["gap"]["mean"] > 0  # three of the four answers are their own reference


def test_best_of_n_is_the_oracle_and_never_below_the_mean(evaluated):
    summary, scores = evaluated
    sampling = summary["sampling"]
    assert sampling["samples"] == 2
    f1 = scores.query("model == 'tuned' and sample > 0").pivot(index="case", columns="sample", values="f1")
    assert sampling["models"]["tuned"]["best"]["mean"] == pytest.approx(f1.max(axis=1).mean())
    assert sampling["models"]["tuned"]["mean"]["mean"] == pytest.approx(f1.to_numpy().mean())
    greedy = summary["models"]["tuned"]["f1"]["mean"]
    assert sampling["models"]["tuned"]["greedy"]["mean"] == pytest.approx(greedy)
    for model in sampling["models"].values():
        assert model["best"]["mean"] >= model["mean"]["mean"]
        assert model["gain_of_best"]["mean"] == pytest.approx(model["best"]["mean"] - model["mean"]["mean"])
    difference = sampling["differences"]["tuned"]["greedy"]["mean"]
    assert difference == pytest.approx(summary["differences"]["tuned"]["f1"]["mean"])


def test_scores_hold_no_text(evaluated):
    _, scores = evaluated
    assert len(scores) == 2 * 4 * (1 + 2)
    written = scores.to_csv()
    assert not any(case.reference in written or case.query in written for case in CASES)


def test_summary_is_json_and_the_same_again(evaluated, scorer):
    again, _ = evaluate(
        CASES,
        ANSWERS,
        scorer,
        decoding={"max_new_tokens": 64},
        skipped={"damaged reference": 7},
        seed=5,
    )
    assert json.dumps(again, allow_nan=False) == json.dumps(evaluated[0], allow_nan=False)


def test_one_case_has_no_interval_and_no_control(scorer):
    summary, _ = evaluate(CASES[:1], {"only": alone(BASE[:1])}, scorer, decoding={}, skipped={})
    assert summary["models"]["only"]["f1"]["low"] is None and summary["control"] is None
    assert not math.isnan(summary["models"]["only"]["f1"]["mean"])
    assert summary["differences"] == {} and summary["sampling"] is None
    json.dumps(summary, allow_nan=False)


def test_nothing_but_empty_answers(scorer):
    empty = said("", "", "", "")
    summary, _ = evaluate(CASES, {"a": alone(empty), "b": alone(empty)}, scorer, decoding={}, skipped={})
    assert summary["models"]["a"]["f1"] == {"mean": 0, "low": 0, "high": 0}
    assert summary["differences"]["b"]["length_matched"] == {
        "n": 0,
        "f1": {"mean": None, "low": None, "high": None, "p": None},
    }


def test_rescaled_means_where_a_baseline_exists(scorer, monkeypatch):
    monkeypatch.setattr(scorer, "baseline", {"precision": 0.5, "recall": 0.5, "f1": 0.5})
    summary, _ = evaluate(CASES, {"tuned": alone(TUNED)}, scorer, decoding={}, skipped={})
    model = summary["models"]["tuned"]
    for bound in ("mean", "low", "high"):
        assert model["rescaled"]["f1"][bound] == pytest.approx(2 * model["f1"][bound] - 1)
    assert summary["scorer"]["rescaled"] is True


# --- samples.md


def page(evaluated, cases=CASES, tuned=TUNED, **settings):
    settings = {"include_text": True} | settings
    return render(
        cases, {"base": BASE, "tuned": tuned}, evaluated[1], first="base", second="tuned", **settings
    )


def test_best_median_worst_by_gain():
    # 9 gains, 2 of each: 9 8 | 7 | 6 5 | 4 3 | 2 1, where 5 is the median
    gains = [5, 9, 1, 4, 8, 2, 7, 3, 6]
    picked = select_cases(gains, 2)
    assert {title: [gains[i] for i in where] for title, where in picked.items()} == {
        "Best": [9, 8],
        "Median": [5, 4],
        "Worst": [2, 1],
    }


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.integers(1, 5))
def test_no_case_is_chosen_twice(gains, each):
    picked = [i for where in select_cases(gains, each).values() for i in where]
    assert len(picked) == len(set(picked)) <= 3 * each
    assert [gains[i] for i in picked] == sorted((gains[i] for i in picked), reverse=True)


def test_samples_show_the_texts_side_by_side(evaluated):
    text = page(evaluated)
    assert "## Best" in text and "## Worst" in text
    assert "rest at home and drink warm water for three days" in text
    assert "<i>nothing</i>" in text  # the empty answer
    assert "cut off" in text


def test_without_text_only_numbers_are_there(evaluated):
    text = page(evaluated, include_text=False)
    assert "icliniq-1" in text.replace("&#45;", "-")
    everything = (
        [c.query for c in CASES] + [c.reference for c in CASES] + [a.text for a in BASE if a.text[1:]]
    )
    assert not any(part in text for part in everything if part != "rest")
    assert "| physician " in text


HOSTILE = [
    "<script>alert(1)</script>",
    "</td></tr></table>\n\n# Heading\n",
    "[link](javascript:alert)",
    "![pixel](http://example.org/x.png)",
    "| a | b |",
    "$x^2$ and \\(y\\)",
    "**bold** `code` ~~x~~ @someone",
    "a\r\n\r\nb\rc",
    "\u202eesrever\x1b[31m",
]


def test_no_answer_becomes_markup(evaluated):
    import mistune  # comes with jupyterlab

    render = mistune.create_markdown(escape=False, plugins=["strikethrough", "table", "url", "math"])
    for text in HOSTILE:
        shown = page(evaluated, tuned=said(*[text] * 4))
        rendered = render(shown)
        for tag in ("<script", "<a ", "<img", "<strong", "<code", "<del>", "<em", "math"):
            assert tag not in rendered, (text, tag)
        assert rendered.count("<h1") == 1 and rendered.count("<table>") == rendered.count("</table>") == 4 - 1
        assert "$" not in shown and "\u202e" not in shown and "\x1b" not in shown


def test_escaped_text_reads_as_it_was():
    text = "a <b> & \"c\" 'd' *e* _f_ [g](h) #1 | ~ $2$ `i` \\ j:k @l"
    assert html.unescape(escape(text)) == text
    assert escape("one\n\ntwo\r\nthree") == "one<br><br>two<br>three"


def test_a_very_long_answer_is_cut_and_says_so():
    assert html.unescape(escape("x" * 100_000)).endswith("x [96,000 more characters]")
