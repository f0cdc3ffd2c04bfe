"""The tables in README.md and docs/ are those of results/, and the files that pages link to exist."""

import io
import re

import pandas as pd
import pytest
import readme

from medkit import MedkitError
from medkit.report import study, study_page, tables
from medkit.report.table3 import table3
from medkit.runs import machine, storage

RESULTS = machine.CHECKOUT / "results"
LINKING = (*readme.PAGES, machine.CHECKOUT / "CONTRIBUTING.md")
COMMITTED = (RESULTS / "cpu" / "run.json").is_file()


@pytest.mark.skipif(not COMMITTED, reason="results/cpu is not there")
def test_the_tables_on_the_pages_are_those_of_the_committed_results():
    pages = readme.texts()
    assert readme.rendered(pages, RESULTS) == pages, "run python benchmarks/readme.py"


def test_the_figures_are_those_of_committed_runs():
    """A user's own runs, the demo's among them, move nothing in README.md."""
    assert {run for _, run in readme.BLOCKS.values() if run} <= set(storage.COMMITTED)


def anchors(page):
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    links = [(page.parent / name if name else page, at) for name, at in links if "://" not in name]
    places = [(place.resolve(), at) for place, at in links]
    assert [
        place for place, _ in places if not place.exists() and (COMMITTED or RESULTS not in place.parents)
    ] == []
    to_sections = [(place, at) for place, at in places if at and place.suffix == ".md" and place.exists()]
    assert [(place, at) for place, at in to_sections if at not in anchors(place)] == []
    assert places or page.parent.name == "docs"


def test_a_block_without_its_marks_or_its_run_is_named(tmp_path):
    page, marks = tmp_path / "page.md", "<!-- headline -->\n<!-- /headline -->"
    with pytest.raises(MedkitError, match="0 pages have a block headline"):
        readme.rendered({page: "nothing"}, tmp_path)
    with pytest.raises(MedkitError, match="2 pages have a block headline"):
        readme.rendered({page: marks, tmp_path / "other.md": marks}, tmp_path)
    with pytest.raises(MedkitError, match="results/cpu is missing"):
        readme.rendered({page: marks}, tmp_path)


def test_the_layout_in_the_readme_is_that_of_the_library():
    """Every file and folder directly in medkit/ has its line in the tree."""
    tree = re.search(r"^medkit/ .*?(?=^docs/)", (machine.CHECKOUT / "README.md").read_text(), re.M | re.S)[0]
    named = set(re.findall(r"^  (\S+)", tree, re.M))
    package = machine.CHECKOUT / "medkit"
    there = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    there |= {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert named == there


def test_the_readme_leads_to_every_page_and_notebook():
    text = (machine.CHECKOUT / "README.md").read_text()
    pages = [f"docs/{page.name}" for page in readme.PAGES if page.parent.name == "docs"]
    notebooks = [f"notebooks/{path.name}" for path in (machine.CHECKOUT / "notebooks").glob("*.ipynb")]
    assert [page for page in (*pages, *notebooks) if f"]({page})" not in text] == []


def test_the_full_runs_rest_on_lengths_of_each_recipes_own_rows():
    """`as_released` learns letter and text: more tokens than the letter alone that `paper` learns, in the
    same template; and the table says on how many rows its hours rest."""
    block = readme.full(RESULTS)
    rows = [[cell.strip() for cell in line.split("|")] for line in block.splitlines() if line.startswith("|")]
    tokens = {(row[1], row[2]): int(row[5].removesuffix("M")) for row in rows[2:]}
    # 363,842 rows whose letter is now `Answer: C) option text`: 4 tokens more for an abstract, 8 for MedMCQA
    assert 1 <= tokens["as_released", "1"] - tokens["paper", "1"] <= 4
    assert tokens["as_released", "2"] >= tokens["paper", "2"]
    assert re.search(r"of 1,424 real exam\s+rows and, for stage 2, of 11 NoteChat rows", block)


@pytest.mark.parametrize("sweep", ["replay-cpu", "replay-real"])
def test_a_replay_study_is_shown_as_notebook_06_wrote_it(tmp_path, sweep):
    block = readme.replay(sweep)
    assert block(tmp_path).startswith("The study is not run yet")
    assert (machine.CHECKOUT / re.search("`medkit sweep (.*) --resume`", block(tmp_path))[1]).is_file()
    outcomes = tmp_path / sweep / "outcomes"
    storage.write_json(outcomes / "sweep.json", {"trials": [{"name": "k0-s0"}, {"name": "k0-s1"}]})
    storage.write_json(outcomes / "k0-s1" / "run.json", {})
    assert "under way (1 of 2 runs), and nothing is reported" in block(tmp_path)
    page = "# Replay study\n\n**Found**: a.\n\n**Not found**: b.\n\n**Scope**: c.\n\nIntervals are so.\n"
    storage.write_text(tmp_path / sweep / "tables" / "replay_study.md", page)
    shown = block(tmp_path)
    assert shown.split("\n\n")[1:] == ["**Found**: a.", "**Not found**: b.", "**Scope**: c."]
    assert f"(results/{sweep}/figures/figure13.png)" in shown


@pytest.mark.skipif(not COMMITTED, reason="results/cpu is not there")
@pytest.mark.parametrize("build", [tables.table1, tables.table2, table3, tables.table4])
def test_the_committed_tables_are_what_the_results_give(build):
    committed = pd.read_csv(RESULTS / "cpu" / "tables" / f"{build.__name__}.csv")
    made = pd.read_csv(io.StringIO(build(RESULTS / "cpu").figures.to_csv(index=False)))
    pd.testing.assert_frame_equal(made, committed)


@pytest.mark.skipif(not COMMITTED, reason="the studies' results are not there")
@pytest.mark.parametrize("sweep", ["replay-cpu", "replay-real"])
def test_the_committed_study_is_what_its_outcomes_give(sweep, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(RESULTS))
    found = study.read(sweep)
    comparisons = study.comparisons(found)
    made = study_page.table(found, comparisons).figures.reset_index(drop=True)
    kept = pd.read_csv(RESULTS / sweep / "tables" / "replay_study.csv")
    pd.testing.assert_frame_equal(made, kept, check_dtype=False, rtol=1e-6)
    page = (RESULTS / sweep / "tables" / "replay_study.md").read_text(encoding="utf-8")
    assert all(sentence in page for sentence in study_page.sentences(found, comparisons))
