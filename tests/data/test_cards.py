"""The data cards say what the declarations say."""

import re
from pathlib import Path

import pytest
import yaml

from medkit.data.sources import SOURCES

REPO = Path(__file__).resolve().parents[2]
SIZES = {"1K<n<10K": (1_000, 10_000), "10K<n<100K": (10_000, 100_000), "100K<n<1M": (100_000, 1_000_000)}


def card(source) -> tuple[dict, str]:
    """Front matter and body of the source's card."""
    _, front, body = (REPO / source.card).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_front_matter_is_the_declaration(source):
    front, _ = card(source)
    assert front["pretty_name"] == source.title
    assert front["license"] == source.licence
    assert front["language"] == ["en"]
    assert (front["dataset_id"], front["revision"], front["pinned"]) == (
        source.hub_id,
        source.revision,
        source.pinned,
    )
    assert front["splits"] == {
        key: {"config": part.config, "split": part.split, "rows": part.rows}
        for key, part in source.parts.items()
    }
    assert front.get("home", "") == source.home
    low, high = SIZES[front["size_categories"][0]]
    assert low <= sum(part.rows for part in source.parts.values()) < high


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_body_names_every_column_read_and_the_defects(source):
    _, body = card(source)
    assert f"# {source.title}" in body and "## Known defects" in body
    for form in source.forms:
        for column in (*form.columns, *form.optional):
            # Inside a range (opa to opd), or a column that is only refused.
            if column in ("opb", "opc", "ending1", "ending2", "ending4"):
                continue
            assert re.search(rf"`{column}[`.]", body), f"{source.card} does not name the column {column}"
    assert ("Not pinned" in body) == (not source.pinned)


def test_every_source_has_a_card_and_no_card_is_left_over():
    cards = {path.stem for path in (REPO / "data_cards").glob("*.md")}
    assert cards - {"demo"} == set(SOURCES)
