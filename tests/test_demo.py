"""The built-in corpus: counts, balance, no leak from training to evaluation, and the loaders."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from medkit import demo, overlap, sources
from medkit.demo import abstracts, consultations, exams

REPO = Path(__file__).resolve().parents[1]
CARD = REPO / "data_cards" / "demo.md"

COLUMNS = {  # the hub's own, in its order where order shows
    "medqa/train.jsonl": {"question", "answer", "options", "answer_idx", "meta_info"},
    "medmcqa/train.jsonl": {"id", "question", "opa", "opb", "opc", "opd", "cop", "choice_type", "exp"}
    | {"subject_name", "topic_name"},
    "pubmedqa/pqa_labeled.jsonl": {"pubid", "question", "context", "long_answer", "final_decision"},
    "notechat/train.jsonl": {"data", "conversation"},
    "icliniq/train.jsonl": {"input", "answer_icliniq", "answer_chatgpt", "answer_chatdoctor"},
    "healthcaremagic/train.jsonl": {"instruction", "input", "output"},
}
COLUMNS["medqa/test.jsonl"] = COLUMNS["medqa/train.jsonl"]
COLUMNS["medmcqa/validation.jsonl"] = COLUMNS["medmcqa/train.jsonl"]
COLUMNS["pubmedqa/pqa_artificial.jsonl"] = COLUMNS["pubmedqa/pqa_labeled.jsonl"]

BENCHMARKS = {
    "medqa": ("medqa/train.jsonl", "medqa/test.jsonl"),
    "medmcqa": ("medmcqa/train.jsonl", "medmcqa/validation.jsonl"),
    "pubmedqa": ("pubmedqa/pqa_artificial.jsonl", "pubmedqa/pqa_labeled.jsonl"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return demo.write(tmp_path_factory.mktemp("demo") / "corpus")


@pytest.fixture(scope="module")
def corpus(folder) -> dict[str, list[dict]]:
    return {
        str(path.relative_to(folder)): [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted(folder.rglob("*.jsonl"))
    }


def strings(value) -> list[str]:
    if isinstance(value, dict | list):
        return [s for part in (value.values() if isinstance(value, dict) else value) for s in strings(part)]
    return [value] if isinstance(value, str) else []


def options(row: dict) -> list[str]:
    return [row[f"op{letter}"] for letter in "abcd"] if "opa" in row else list(row["options"].values())


def turns(row: dict) -> list[tuple[str, str]]:
    lines = [line for line in row["conversation"].split("\n") if line]
    return [tuple(line.split(": ", 1)) for line in lines]


def test_the_seed_decides_every_byte(folder, tmp_path):
    again, other = demo.write(tmp_path / "again"), demo.write(tmp_path / "other", seed=1)
    for path in folder.rglob("*.jsonl"):
        name = path.relative_to(folder)
        assert (again / name).read_bytes() == path.read_bytes()
        by_hand = name.parts[0] in ("icliniq", "healthcaremagic")  # not drawn, so the same under any seed
        assert ((other / name).read_bytes() == path.read_bytes()) == by_hand


def test_files_columns_and_the_counts_on_the_card(corpus):
    assert corpus.keys() == COLUMNS.keys()
    for name, rows in corpus.items():
        assert all(row.keys() == COLUMNS[name] for row in rows), name
    on_card = {
        name: int(rows)
        for name, rows in re.findall(r"^\| `(\S+\.jsonl)` \| (\d+) \|", CARD.read_text("utf-8"), re.M)
    }
    assert on_card == {name: len(rows) for name, rows in corpus.items()}


def test_front_matter_of_the_card(corpus):
    front = yaml.safe_load(CARD.read_text("utf-8").split("---\n")[1])
    assert (front["license"], front["language"]) == ("apache-2.0", ["en"])
    assert front["size_categories"] == ["1K<n<10K"]
    assert 1_000 <= sum(map(len, corpus.values())) < 10_000


def test_text_is_plain_and_no_slot_is_left_open(corpus):
    for name, rows in corpus.items():
        for text in strings(rows):
            assert text.isascii(), (name, text)
            assert not re.search(r"[{}]|  | [,.?]|\.\.|\b(\w+) \1\b", text), (name, text)


def test_question_and_article_agree(corpus):
    """'An 8-', 'an 11-', 'an 18-', 'an 80-year-old', 'a' with every other age."""
    for name in (*BENCHMARKS["medqa"], *BENCHMARKS["medmcqa"]):
        for row in corpus[name]:
            for article, age in re.findall(r"\b([Aa]n?) (\d+)-", row["question"]):
                assert (article.lower() == "an") == (age in ("8", "11", "18") or age.startswith("8")), row


@pytest.mark.parametrize("name", BENCHMARKS["medqa"] + BENCHMARKS["medmcqa"])
def test_exam_rows_have_one_right_answer_and_balanced_letters(corpus, name):
    answers = {fact["answer"]: group for group, fact in exams.facts()}
    letters = Counter()
    for row in corpus[name]:
        four = options(row)
        assert len(set(four)) == 4
        place = row["cop"] if "cop" in row else "ABCD".index(row["answer_idx"])
        letters[place] += 1
        assert row.get("answer", four[place]) == four[place]
        assert all(
            answers[option] is answers[four[place]] for option in four
        )  # wrong options are of its kind
        assert row["exp"] is None or four[place] in row["exp"] if "cop" in row else row["meta_info"]
    assert set(letters.values()) == {len(corpus[name]) // 4}  # 240 = 4 x 60, 40 = 4 x 10


def test_every_fact_has_its_own_answer_and_both_steps_occur(corpus):
    assert len(exams.facts()) == len({fact["answer"] for _, fact in exams.facts()}) == 80
    assert {row["meta_info"] for row in corpus["medqa/test.jsonl"]} == {"step1", "step2&3"}
    asked = {row["answer"] for row in corpus["medqa/train.jsonl"]}
    assert {row["answer"] for row in corpus["medqa/test.jsonl"]} <= asked  # the same knowledge, other words


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_question_stands_twice_or_in_both_parts(corpus, benchmark):
    train, evaluation = (
        [overlap.normalize(row["question"]) for row in corpus[name]] for name in BENCHMARKS[benchmark]
    )
    assert len(set(train + evaluation)) == len(train) + len(evaluation)


def test_overlap_between_all_training_and_evaluation_rows_is_slight(folder):
    """No exact or near-duplicate row, and no evaluation row with 15% of its 13-grams in a training row."""

    def records(part):
        return [r for name in BENCHMARKS for r in sources.load(name, part, folder, progress=False).records]

    matches = list(overlap.find(records("train"), records("eval"), progress=False))
    assert {match.method for match in matches} <= {"13-gram"}
    assert max((match.score for match in matches), default=0) < 0.15


def test_abstracts_answers_are_balanced_and_conclusions_stay_out_of_the_context(corpus):
    for name, counts in (("pqa_artificial", [134, 133, 133]), ("pqa_labeled", [50, 50, 50])):
        rows = corpus[f"pubmedqa/{name}.jsonl"]
        decisions = Counter(row["final_decision"] for row in rows)
        assert [decisions[answer] for answer in ("yes", "no", "maybe")] == counts  # 134 + 133 + 133 = 400
        for row in rows:
            context = " ".join(row["context"]["contexts"])
            assert row["context"]["labels"] == ["METHODS", "RESULTS"]
            assert row["long_answer"] and row["long_answer"] not in context
            assert 15 <= len(context.split()) <= 45  # about 20-60 tokens
    ids = [row["pubid"] for name in BENCHMARKS["pubmedqa"] for row in corpus[name]]
    assert len(set(ids)) == 400 + 150


def test_abstract_topics_of_training_and_evaluation_are_disjoint(corpus):
    """Neither people nor treatment nor outcome of one part is named in the other."""
    train, evaluation = (abstracts.areas()[part] for part in ("train", "eval"))
    assert (len(train), len(evaluation)) == (20, 10)
    for areas, name in ((evaluation, "pqa_artificial"), (train, "pqa_labeled")):
        foreign = {area["people"] for area in areas}
        foreign |= {
            text for area in areas for key in ("treatments", "lowers", "raises") for text in area[key]
        }
        words = re.compile(rf"\b({'|'.join(map(re.escape, foreign))})\b", re.I)
        for row in corpus[f"pubmedqa/{name}.jsonl"]:
            assert not (found := words.search(row["question"])), found


def test_the_question_alone_does_not_give_the_answer_away(corpus):
    """Within one topic all three answers occur, so that the findings must be read."""
    by_people = {}
    for row in corpus["pubmedqa/pqa_labeled.jsonl"]:
        people = next(a["people"] for a in abstracts.areas()["eval"] if a["people"] in row["question"])
        by_people.setdefault(people, set()).add(row["final_decision"])
    assert len(by_people) == 10
    assert all(answers == {"yes", "no", "maybe"} for answers in by_people.values())


def test_the_findings_carry_the_answer_to_new_topics_and_the_question_does_not(corpus):
    """A bag of words learns the answers from the abstracts, as the card says, but not from the questions."""
    train, evaluation = (corpus[name] for name in BENCHMARKS["pubmedqa"])

    def accuracy(text) -> float:
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10))
        model.fit([text(row) for row in train], [row["final_decision"] for row in train])
        return model.score([text(row) for row in evaluation], [row["final_decision"] for row in evaluation])

    assert accuracy(lambda row: " ".join(row["context"]["contexts"])) > 0.9
    assert accuracy(lambda row: row["question"]) < 0.45  # chance is 1/3, its standard error 0.04


def test_consultations_alternate_end_with_the_doctor_and_are_6_to_16_short_turns(corpus):
    rows = corpus["notechat/train.jsonl"]
    for row in rows:
        speakers = [speaker for speaker, _ in turns(row)]
        assert 6 <= len(speakers) <= 16
        assert set(speakers) == {"Doctor", "Patient"} and speakers[-1] == "Doctor"
        assert all(a != b for a, b in pairwise(speakers))
        assert all(4 <= len(text.split()) <= 30 for _, text in turns(row))
    assert len({row["conversation"] for row in rows}) == 160


def test_two_consultations_a_note_and_every_complaint_four_notes(corpus):
    rows = corpus["notechat/train.jsonl"]
    notes = Counter(row["data"] for row in rows)
    assert set(notes.values()) == {consultations.CONSULTATIONS_PER_NOTE} and len(notes) == 80  # 80 x 2 = 160
    complaints = Counter(re.search(r"Impression: (.*?)\. Plan", note)[1] for note in notes)
    assert len(complaints) == 20 and set(complaints.values()) == {4}  # 20 x 4 = 80


def test_a_consultation_tells_what_its_note_tells(corpus):
    """The duration in the note is the one the patient gives."""
    for row in corpus["notechat/train.jsonl"]:
        duration = re.search(r"duration ([\w ]+)\.", row["data"])[1]
        assert any(duration in text for speaker, text in turns(row) if speaker == "Patient"), row


def test_upstream_features_of_the_consultations_occur_and_are_on_the_card(corpus):
    rows = corpus["notechat/train.jsonl"]
    for feature in (str.startswith, lambda text, mark: mark + mark in text):
        with_it = sum(feature(row["conversation"], "\n") for row in rows)
        assert 0 < with_it < len(rows)
    first = {row["conversation"].strip().split(":")[0] for row in rows}
    assert first == {"Doctor", "Patient"}
    card = " ".join(CARD.read_text("utf-8").split())
    assert "leading newline" in card and "blank line" in card


@pytest.mark.parametrize(
    "name, query, answer", [("icliniq", "input", "answer_icliniq"), ("healthcaremagic", "input", "output")]
)
def test_consumer_queries_are_at_least_eight_each_with_a_full_answer(corpus, name, query, answer):
    rows = corpus[f"{name}/train.jsonl"]
    assert len({row[query] for row in rows}) == len(rows) >= 8
    assert all(len(row[query].split()) >= 30 and len(row[answer].split()) >= 70 for row in rows)


@pytest.mark.parametrize(
    "name, part", [(name, part) for name, source in sources.SOURCES.items() for part in source.parts]
)
def test_every_row_goes_through_the_loaders(folder, name, part):
    loaded = sources.load(name, part, data_dir=folder, progress=False)
    assert loaded.rows == len(loaded.records) > 0
    assert not loaded.dropped


def test_no_sentence_of_the_real_rows(corpus, real_data):
    """No run of 13 words is shared with the public rows at hand."""

    def grams(texts):
        for text in texts:
            words = re.findall(r"[a-z0-9]+", text.lower())
            yield from (tuple(words[i : i + 13]) for i in range(len(words) - 12))

    ours = set(grams(text for rows in corpus.values() for text in strings(rows)))
    files = [path for path in real_data.rglob("*") if path.suffix in (".jsonl", ".json")]
    theirs = (line for path in files for line in path.read_text("utf-8").splitlines())
    assert files and not [gram for gram in grams(theirs) if gram in ours]
