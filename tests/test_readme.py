"""README.md's figures are those of results/, and its files exist."""

import re

import pytest

from medkit import readme
from medkit.runs import storage

RESULTS = readme.README.parent / "results"
COMMITTED = (RESULTS / "cpu" / "run.json").is_file()


@pytest.mark.skipif(not COMMITTED, reason="results/cpu is not there")
def test_the_figures_in_the_readme_are_those_of_the_committed_results():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.rendered(text, RESULTS) == text, "run python -m medkit.readme"


def test_the_figures_are_those_of_committed_runs():
    """A user's own runs, the demo's among them, move nothing in README.md."""
    assert {run for _, run in readme.BLOCKS.values() if run} <= set(storage.COMMITTED)


def test_every_file_the_readme_links_to_is_there():
    text = readme.README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert len(links) > 10
    missing = [link for link in links if not (readme.README.parent / link).exists()]
    assert [link for link in missing if COMMITTED or not link.startswith("results/")] == []


def test_a_block_without_its_marks_or_its_run_is_named(tmp_path):
    with pytest.raises(readme.ReadmeError, match="no block headline"):
        readme.rendered("nothing", tmp_path)
    with pytest.raises(readme.ReadmeError, match="results/cpu is not there"):
        readme.rendered("<!-- headline -->\n<!-- /headline -->", tmp_path)


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
