"""Which printed percentages a whole count of questions can give, and what the audit says of Table 3."""

from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.report import published


def printed(k, n, decimals, rounding):
    return (Decimal(100 * k) / Decimal(n)).quantize(Decimal(1).scaleb(-decimals), rounding=rounding)


def test_attainable_shows_its_arithmetic():
    # 724 / 1273 = 56.8735...: prints as 56.87 rounded and truncated
    assert published.attainable("56.87", 1273) == [724]
    # 2293 / 4183 = 54.8171...: 54.82 when rounded, 54.81 when truncated
    assert published.attainable("54.82", 4183) == [2293]
    assert published.attainable("54.82", 4183, rules=("truncated",)) == []
    assert published.attainable("54.81", 4183, rules=("truncated",)) == [2293]
    # 2/3 = 66.66...: rounded 66.67, truncated 66.66
    assert published.attainable("66.67", 3) == published.attainable("66.66", 3) == [2]
    # 1/8 = 12.5: to no decimals half goes either way, 12 or 13
    assert published.attainable("12", 8) == published.attainable("13", 8) == [1]


def test_a_dropped_zero_is_read_back_by_decimals():
    # to one decimal 732 (57.502) and, truncated, 733 (57.580) print as 57.5; to two only 732 prints as 57.50
    assert published.attainable("57.5", 1273) == [732, 733]
    assert published.attainable("57.5", 1273, decimals=2) == [732]
    # 75 as whole percent: rounded 74.5-75.5, truncated up to 75.9, so 745-759; as 75.00 only 750
    assert published.attainable("75", 1000) == list(range(745, 760))
    assert published.attainable("75", 1000, decimals=2) == [750]
    assert published.attainable("75.00", 1000) == [750]


def test_attainable_at_the_ends():
    assert published.attainable("0", 10) == [0]
    assert published.attainable("100", 10) == [10]
    assert published.attainable("50", 1) == []  # one question is right or wrong
    with pytest.raises(MedkitError, match="0 questions"):
        published.attainable("50", 0)


@pytest.mark.parametrize("bad", ["", "abc", "101", "-1", "nan", "12,5", None])
def test_no_percentage_is_refused_in_one_line(bad):
    with pytest.raises(MedkitError) as refusal:
        published.attainable(bad, 100)
    assert "\n" not in str(refusal.value) and repr(bad) in str(refusal.value)


def test_more_decimals_than_the_table_prints_is_refused():
    with pytest.raises(MedkitError, match="with 1 decimals"):
        published.attainable("57.55", 1273, decimals=1)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(0, 4))
def test_every_count_is_found_from_its_own_printed_figure(case, decimals):
    k, n = case
    for rounding in (ROUND_HALF_UP, ROUND_HALF_EVEN, "ROUND_DOWN"):
        assert k in published.attainable(str(printed(k, n, decimals, rounding)), n, decimals)


@given(st.integers(1, 400), st.integers(0, 1000))
def test_attainable_agrees_with_trying_every_count(n, tenths):
    percent = f"{tenths // 10}.{tenths % 10}"
    tried = [
        k
        for k in range(n + 1)
        if Decimal(percent)
        in {printed(k, n, 1, r) for r in (ROUND_HALF_UP, ROUND_HALF_EVEN, "ROUND_HALF_DOWN", "ROUND_DOWN")}
    ]
    assert published.attainable(percent, n) == tried


def test_audit_of_the_papers_own_rows():
    table = published.audit()
    own = table[table["first_hand"]].set_index(["model", "benchmark"])
    counts = {
        model: [own.loc[(model, benchmark), "counts"] for benchmark in published.SIZES]
        for model in (published.BASE, published.MED_MIX, published.MED_NIRVANA)
    }
    assert counts[published.BASE] == [[724], [2293], [750]]
    assert counts[published.MED_MIX] == [[732], [2357], [791]]
    assert counts[published.MED_NIRVANA] == [[], [], []]
    assert len(own) == 9 and (own["n"] > 0).all()


def test_audit_differences_from_the_base():
    table = published.audit().set_index(["model", "benchmark"])
    medqa, medmcqa, pubmedqa = (table.loc[(published.MED_MIX, name)] for name in published.SIZES)
    assert medqa["difference"] == pytest.approx(0.63)
    # standard error of a difference near one half of 1,273: sqrt(2 * 0.57 * 0.43 / 1273) = 1.96 points
    assert medqa["difference_high"] - medqa["difference_low"] == pytest.approx(2 * 1.96 * 1.96, abs=0.1)
    assert medqa["difference_low"] < 0 < medqa["difference_high"]
    assert medmcqa["difference_low"] < 0 < medmcqa["difference_high"]
    assert pubmedqa["difference_low"] > 0
    assert pd.isna(table.loc[(published.BASE, "medqa"), "difference"])
    sft = table.loc[("Llama-3.1-8B-Instruct, SFT on exam data", "medqa")]
    assert sft["difference"] == pytest.approx(60.0 - 58.7)  # against the base of its own source


def test_every_row_names_source_protocol_and_an_existing_base():
    names = {row.model for row in published.ROWS}
    assert len(published.ROWS) == 15 + 7  # Table 3, and what was transcribed beside it
    for row in published.ROWS:
        assert row.source and row.protocol and (not row.base or row.base in names)
        assert set(row.percents) <= {*published.SIZES, "average"}
        assert row.people or set(published.SIZES) <= set(row.percents)
        assert row.first_hand == (row.source == published.PAPER)


def test_printed_averages_belong_to_their_rows():
    # a slip of a digit in a transcribed row would show here: the average of three printed figures
    for row in published.ROWS:
        figures = [float(row.percents[name]) for name in published.SIZES if name in row.percents]
        if "average" in row.percents:
            assert float(row.percents["average"]) == pytest.approx(sum(figures) / 3, abs=0.0101), row.model


def test_rows_agree_with_the_papers_text(real_data):
    paper = real_data.parent / "paper" / "med-nirvana.txt"
    if not paper.exists():
        pytest.skip("the paper's text is not beside this checkout")
    lines = paper.read_text(encoding="utf-8").splitlines()
    table = [line.split("\t")[2:] for line in lines if line.count("\t") == 5]
    printed_rows = {tuple("-" if cell == "–" else cell for cell in cells) for cells in table}
    for row in published.ROWS:
        if row.source in (published.PAPER, published.REPRINTED):
            cells = row.printed.split()
            assert tuple(cells + ["-"] * (4 - len(cells))) in printed_rows, row.model
    scores = [line.split("\t")[1:] for line in lines if line.count("\t") == 3]
    for model in published.BERTSCORE.values():
        assert list(model.values()) in scores


def test_what_else_could_give_an_unattainable_row():
    percents = published.ROWS[14].percents
    percents.pop("average")
    # 43 / 60 = 71.666...; 999 is one question short of Table 1: 716 / 999 = 71.6717
    sizes = published.fitting_sizes(["71.67"], 1000)
    assert (sizes[0], sizes[-1]) == (60, 999)
    assert published.fitting_sizes(list(percents.values()), 1000) == []
    # three runs: 2045 / 3819 = 53.548, 6622 / 12549 = 52.769, 2150 / 3000 = 71.667; two runs give no 71.67
    assert published.fitting_runs(percents)[0] == 3
    assert published.attainable("71.67", 2000) == []
    assert published.fitting_runs({"medqa": "56.87"})[0] == 1


def test_audit_text_and_markdown_carry_the_findings():
    text = published.audit_text()
    assert "Med-Nirvana (4-bit quantized): not attainable on Table 1's test sizes" in text
    for count in ("724 of 1,273", "2,293 of 4,183", "750 of 1,000", "732 of", "2,357 of", "791 of"):
        assert count in text
    page = published.render_audit()
    assert page.count("**no**") == int(
        (~published.audit().dropna(subset="n")["attainable"].astype(bool)).sum()
    )
    assert page.count("| transcribed |") + page.count("| first-hand ") == len(published.audit())
    assert text in page
