"""The built-in corpus: counts, balance, no leak from training to evaluation, and the loaders."""

import json
import re
import string
from collections import Counter
from itertools import chain, combinations, pairwise
from pathlib import Path

import pytest
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from medkit import recipes
from medkit.data import builtin, contamination, sources
from medkit.data.builtin import abstracts, consultations, exams, queries
from medkit.runs import run_json
from medkit.text_keys import normalize
from medkit.train import stages

REPO = Path(__file__).resolve().parents[2]
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

PARTS = ("tune", "report")  # what evaluates; both stand beside the same training rows
TRAINING = (
    "medqa/train.jsonl",
    "medmcqa/train.jsonl",
    "pubmedqa/pqa_artificial.jsonl",
    "notechat/train.jsonl",
)
EVALUATION = tuple(COLUMNS.keys() - set(TRAINING))
BENCHMARKS = {
    "medqa": ("medqa/train.jsonl", "medqa/test.jsonl"),
    "medmcqa": ("medmcqa/train.jsonl", "medmcqa/validation.jsonl"),
    "pubmedqa": ("pubmedqa/pqa_artificial.jsonl", "pubmedqa/pqa_labeled.jsonl"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {part: builtin.write(tmp_path_factory.mktemp("demo") / part, part=part) for part in PARTS}


@pytest.fixture(scope="module", params=PARTS)
def folder(request, folders) -> Path:
    return folders[request.param]


def read(folder: Path) -> dict[str, list[dict]]:
    return {
        str(path.relative_to(folder)): [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted(folder.rglob("*.jsonl"))
    }


@pytest.fixture(scope="module")
def corpora(folders) -> dict[str, dict[str, list[dict]]]:
    return {part: read(folder) for part, folder in folders.items()}


@pytest.fixture(scope="module", params=PARTS)
def corpus(request, corpora) -> dict[str, list[dict]]:
    return corpora[request.param]


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
    again, other = (builtin.write(tmp_path / str(seed), seed, part=folder.name) for seed in (0, 1))
    for path in folder.rglob("*.jsonl"):
        name = path.relative_to(folder)
        assert (again / name).read_bytes() == path.read_bytes()
        by_hand = name.parts[0] in ("icliniq", "healthcaremagic")  # not drawn, so the same under any seed
        assert ((other / name).read_bytes() == path.read_bytes()) == by_hand


def test_the_parts_share_the_training_rows_and_no_evaluation_row(corpora):
    tune, report = (corpora[part] for part in PARTS)
    assert tune.keys() == report.keys() == COLUMNS.keys()
    for name in COLUMNS:
        if name in TRAINING:
            assert tune[name] == report[name]
        else:
            assert not {json.dumps(row) for row in tune[name]} & {json.dumps(row) for row in report[name]}


def test_what_is_written_by_default_is_what_is_reported(folders, tmp_path):
    path = builtin.write(tmp_path) / "pubmedqa/pqa_labeled.jsonl"
    assert path.read_bytes() == (folders["report"] / "pubmedqa/pqa_labeled.jsonl").read_bytes()


@pytest.mark.parametrize("settings, part", [("", "report"), ("data.builtin_part=tune", "tune")])
def test_a_run_evaluates_on_the_part_that_its_recipe_names(corpora, tmp_path, monkeypatch, settings, part):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    run = run_json.begin("run", "01_stage1", "cpu", settings)
    items = stages.load_source(run, "pubmedqa", "eval", progress=False).records
    assert [item.id for item in items] == [
        str(row["pubid"]) for row in corpora[part]["pubmedqa/pqa_labeled.jsonl"]
    ]
    with pytest.raises(recipes.RecipeError, match=r"builtin_part is 'test'; it must be one of report, tune"):
        recipes.get("cpu", {"data.builtin_part": "test"})


def test_files_columns_and_the_counts_on_the_card(corpora):
    on_card = {
        name: (int(tune), int(report))
        for name, tune, report in re.findall(
            r"^\| `(\S+\.jsonl)` \| (\d+) \| (\d+) \|", CARD.read_text("utf-8"), re.M
        )
    }
    for name, columns in COLUMNS.items():
        rows = [corpora[part][name] for part in PARTS]
        assert all(row.keys() == columns for row in chain(*rows)), name
        assert on_card.pop(name) == tuple(map(len, rows)), name
    assert not on_card


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


def test_every_fact_has_its_own_answer_and_an_evaluation_asks_about_forty_of_those_that_train(corpora):
    assert len(exams.facts()) == len({fact["answer"] for _, fact in exams.facts()}) == 80
    asked = {}
    for part, corpus in corpora.items():
        test = corpus["medqa/test.jsonl"]
        assert {row["meta_info"] for row in test} == {"step1", "step2&3"}
        one_line = {options(row)[row["cop"]] for row in corpus["medmcqa/validation.jsonl"]}
        asked[part] = {row["answer"] for row in test}
        assert asked[part] == one_line and len(one_line) == 40
        assert asked[part] <= {row["answer"] for row in corpus["medqa/train.jsonl"]}  # the same facts ...
    assert not asked["tune"] & asked["report"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_question_stands_twice_or_in_both_parts(corpus, benchmark):
    train, evaluation = (
        [normalize(row["question"]) for row in corpus[name]] for name in BENCHMARKS[benchmark]
    )
    assert len(set(train + evaluation)) == len(train) + len(evaluation)


def test_overlap_between_all_training_and_evaluation_rows_is_slight(folder):
    """No exact or near-duplicate row, and no evaluation row with a fifth of its 13-grams in a training row:
    the options of a group, which happen to come in like order."""

    def records(part):
        return [r for name in BENCHMARKS for r in sources.load(name, part, folder, progress=False).records]

    matches = list(contamination.find(records("train"), records("eval"), progress=False))
    assert {match.method for match in matches} <= {"13-gram"}
    assert max((match.score for match in matches), default=0) < 0.2


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def grams(texts, size: int) -> set[tuple[str, ...]]:
    split = map(words, texts)
    return {tuple(text[i : i + size]) for text in split for i in range(len(text) - size + 1)}


def without_instruction(rows: list[dict]) -> list[str]:
    return [text for row in rows for text in strings(row) if text != queries.INSTRUCTION]


def test_no_eight_words_in_a_row_are_shared_by_training_tune_and_report(corpora):
    """Beyond HealthCareMagic's instruction, which is the same everywhere."""
    assert len(words(queries.INSTRUCTION)) >= 8
    train = grams(chain(*(without_instruction(corpora["report"][name]) for name in TRAINING)), 8)
    tune, report = (
        grams(chain(*(without_instruction(corpora[part][name]) for name in EVALUATION)), 8) for part in PARTS
    )
    for one, other in combinations((train, tune, report), 2):
        assert min(len(one), len(other)) > 1_000 and not one & other


def skeleton(pattern: str) -> str:
    """A sentence pattern without regard to what goes into its slots."""
    return " ".join(re.sub(r"\{\w+\}", " slot ", pattern.lower()).translate(PUNCTUATION).split())


PUNCTUATION = str.maketrans("", "", string.punctuation)


def test_no_two_parts_share_a_sentence_pattern():
    abstract = {
        part: {skeleton(text) for key in PATTERNS for text in strings(words[key])}
        for part, words in abstracts.wordings().items()
    }
    assert [len(patterns) for patterns in abstract.values()] == [32, 28, 28]  # nothing was lost in stripping
    exam = {"train": set(), "tune": set(), "report": set()}
    for group, fact in exams.facts():
        for *others, held_out in (group["case_asks"], group["line_asks"], fact["cases"], fact["clues"]):
            exam["train"].update(map(skeleton, others))
            exam[group["part"]].add(skeleton(held_out))
    for parts in (abstract, exam):
        for one, other in combinations(parts.values(), 2):
            assert not one & other


PATTERNS = ("questions", "methods", "controls", "findings", "conclusions")


def content_words(texts) -> set[str]:
    return {word for text in texts for word in words(text)} - FUNCTION_WORDS


FUNCTION_WORDS = set("a after and at from in of on the to when while with without".split())


def test_no_two_parts_share_a_topic():
    """People, treatments and outcomes of abstracts; groups of exam facts; complaints."""
    areas = {
        part: {area["people"] for area in words["area"]}
        | {text for area in words["area"] for key in ("treatments", "lowers", "raises") for text in area[key]}
        for part, words in abstracts.wordings().items()
    }
    groups = [{group["topic"] for group, _ in exams.facts() if group["part"] == part} for part in PARTS]
    complaints = [
        content_words(
            text for c in consultations.load_texts()["complaint"] for text in (c["name"], c["impression"])
        ),
        *(content_words(p["topic"] for p in chain(*queries.pairs(part).values())) for part in PARTS),
    ]
    for parts in (areas.values(), groups, complaints):
        for one, other in combinations(parts, 2):
            assert one and other and not one & other
    assert [len(group) for group in groups] == [5, 5]


def test_abstracts_name_no_topic_of_another_part(corpora):
    """Neither people nor treatment nor outcome."""
    areas = {part: words["area"] for part, words in abstracts.wordings().items()}
    assert {part: len(own) for part, own in areas.items()} == {"train": 20, "tune": 10, "report": 12}
    files = {"train": corpora["tune"]["pubmedqa/pqa_artificial.jsonl"]}
    files |= {part: corpora[part]["pubmedqa/pqa_labeled.jsonl"] for part in PARTS}
    for part, rows in files.items():
        foreign = {
            text
            for other in areas.keys() - {part}
            for area in areas[other]
            for text in (area["people"], *area["treatments"], *area["lowers"], *area["raises"])
        }
        named = re.compile(rf"\b({'|'.join(map(re.escape, foreign))})\b", re.I)
        for row in rows:
            assert not (found := named.search(row["question"])), found


def test_abstracts_answers_are_balanced_and_conclusions_stay_out_of_the_context(corpora):
    ids = []
    for part, counts in (("train", [134, 133, 133]), ("tune", [50] * 3), ("report", [100] * 3)):
        name = "pqa_artificial" if part == "train" else "pqa_labeled"
        rows = corpora["report" if part == "train" else part][f"pubmedqa/{name}.jsonl"]
        decisions = Counter(row["final_decision"] for row in rows)
        assert [decisions[answer] for answer in ("yes", "no", "maybe")] == counts  # 134 + 133 + 133 = 400
        ids += [row["pubid"] for row in rows]
        for row in rows:
            context = " ".join(row["context"]["contexts"])
            assert row["context"]["labels"] == ["METHODS", "RESULTS"]
            assert row["long_answer"] and row["long_answer"] not in context
            assert 15 <= len(context.split()) <= 45  # about 20-60 tokens
    assert len(set(ids)) == 400 + 150 + 300


@pytest.mark.parametrize("part, areas", [("tune", 10), ("report", 12)])
def test_the_question_alone_does_not_give_the_answer_away(corpora, part, areas):
    """Within one topic all three answers occur, so that the findings must be read."""
    by_people = {}
    people = [area["people"] for area in abstracts.wordings()[part]["area"]]
    for row in corpora[part]["pubmedqa/pqa_labeled.jsonl"]:
        named = next(name for name in people if name in row["question"])
        by_people.setdefault(named, set()).add(row["final_decision"])
    assert len(by_people) == areas
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


def test_consultations_alternate_and_end_with_the_doctor(corpora):
    rows = corpora["report"]["notechat/train.jsonl"]
    for row in rows:
        speakers = [speaker for speaker, _ in turns(row)]
        assert 4 <= len(speakers) <= 14
        assert set(speakers) == {"Doctor", "Patient"} and speakers[-1] == "Doctor"
        assert all(a != b for a, b in pairwise(speakers))
    assert len({row["conversation"] for row in rows}) == 160


def test_a_physician_asks_explains_and_advises_in_full_sentences(corpora):
    """Every turn after a visit's questions has 20 to 60 words; where the patient has told all of it at once,
    the answer has about as many as a physician's letter."""
    history = tuple(
        q for c in consultations.load_texts()["complaint"] for item in c["history"] for q in item[:2]
    )
    greetings = consultations.load_texts()["phrases"]["greetings"]
    visits, told = [], []
    for row in corpora["report"]["notechat/train.jsonl"]:
        patients = [text for speaker, text in turns(row) if speaker == "Patient"]
        doctors = [text for speaker, text in turns(row) if speaker == "Doctor"]
        greeted = doctors[0] in greetings
        (told if len(patients) == 2 else visits).append(doctors[greeted:])
    assert len(visits) == len(told) == 80  # one of each a note
    for questions_and_advice in visits:
        asked = [text for text in questions_and_advice if text.endswith(history)]
        later = questions_and_advice[len(asked) :]
        assert 1 <= len(asked) <= 2 and len(later) in (3, 4)  # findings, advice, perhaps a worry, farewell
        assert all(20 <= len(text.split()) <= 60 for text in later), later
    assert all(80 <= len(first.split()) <= 160 and 20 <= len(second.split()) <= 60 for first, second in told)


def test_answers_in_training_are_about_as_long_as_the_references(corpora):
    """The reply to a patient who has told everything, against the physicians' answers to queries."""
    replies = [
        max(len(text.split()) for speaker, text in turns(row) if speaker == "Doctor")
        for row in corpora["report"]["notechat/train.jsonl"]
        if len(turns(row)) <= 5
    ]
    assert len(replies) == 80
    for part in PARTS:
        answers = [len(pair["answer"].split()) for pair in chain(*queries.pairs(part).values())]
        assert 0.8 < (sum(replies) / len(replies)) / (sum(answers) / len(answers)) < 1.25


def test_two_consultations_a_note_and_every_complaint_four_notes(corpora):
    rows = corpora["report"]["notechat/train.jsonl"]
    notes = Counter(row["data"] for row in rows)
    assert set(notes.values()) == {2} and len(notes) == 80  # 80 x 2 = 160
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
    "name, part",
    [
        (name, part)
        for name, source in sources.SOURCES.items()
        for part in source.parts
        if name != "mts_dialog" and part != "official_fold"  # inputs.check refuses a run that reads these
    ],
)
def test_every_row_goes_through_the_loaders(folder, name, part):
    loaded = sources.load(name, part, data_dir=folder, progress=False)
    assert loaded.rows == len(loaded.records) > 0
    assert not loaded.dropped


def test_no_sentence_of_the_real_rows(corpus, real_data):
    """No run of 13 words is shared with the public rows at hand."""

    ours = grams((text for rows in corpus.values() for text in strings(rows)), 13)
    files = [path for path in real_data.rglob("*") if path.suffix in (".jsonl", ".json")]
    theirs = (line for path in files for line in path.read_text("utf-8").splitlines())
    assert files and not any(ours & grams([line], 13) for line in theirs)
