"""README.md's figures are those of results/, and its files exist."""

import re

import pytest

from medkit import readme

RESULTS = readme.README.parent / "results"
COMMITTED = (RESULTS / "cpu" / "run.json").is_file()


@pytest.mark.skipif(not COMMITTED, reason="results/cpu is not there: make demo")
def test_the_figures_in_the_readme_are_those_of_the_committed_results():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.rendered(text, RESULTS) == text, "run python -m medkit.readme"


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
