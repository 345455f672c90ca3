"""What is read off a stored result, against sums by hand and SciPy's own t-test."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import imm_lib as imm
from imm_lib import experiments
from imm_lib.__main__ import main
from imm_lib.experiments import reading
from imm_lib.experiments.table import Table, aligned, rows

RUNS = {
    ("plain", 0): 0.5,
    ("plain", 1): 0.75,
    ("plain", 2): 0.25,
    ("IMM", 0): 0.25,
    ("IMM", 2): 0.125,
    ("IMM", 1): 0.375,
}


def stored(runs=RUNS, **numbers):
    units = [
        {"unit": {"arm": arm, "n": 20, "seed": seed}, "numbers": {"loss": loss, **numbers}}
        for (arm, seed), loss in runs.items()
    ]
    return {"units": units, "config": {}}


def test_changes_are_paired_by_run_whatever_their_order():
    found = reading.paired(stored(), "loss", ["n", "arm"], "plain")
    changes = [0.25 - 0.5, 0.375 - 0.75, 0.125 - 0.25]
    interval = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    change = found[20, "IMM"].change
    assert (change.low, change.high) == pytest.approx((interval.low, interval.high))
    assert (change.mean, change.runs) == (-0.25, 3)
    assert found[20, "plain"].change == (0.0, 0.0, 3)
    assert found[20, "IMM"].value == reading.spread([0.25, 0.375, 0.125])
    assert reading.paired(stored(), "loss", ["arm"])["IMM",].change is None


def test_a_run_that_is_missing_is_left_out_of_the_pairs_only():
    runs = RUNS | {("noising", 1): 0.5}
    result = stored(runs)
    result["units"].append({"unit": {"arm": "IMM", "n": 20, "seed": 3}, "numbers": {"diverged": 7}})
    found = reading.paired(result, "loss", ["arm"], "noising")
    assert found["IMM",].value.runs == 3
    assert found["IMM",].change[::2] == (-0.125, 1) and math.isnan(found["IMM",].change.half)
    del result["units"][1]  # plain's second
    assert reading.paired(result, "loss", ["arm"], "noising")["plain",].change is None


def test_a_columns_function_reads_the_row():
    doubled = reading.paired(stored(), lambda row: 2 * row["loss"], ["arm"])
    assert doubled["IMM",].value.mean == 0.5


def test_a_summary_is_shown_with_the_interval_of_its_own_runs(capsys):
    cells = {"plain": {"mean": 0.5, "se": 0.1}, "IMM": {"mean": 0.25, "se": 0.2}}
    result = {"units": [{"unit": {"n": 20, "seed": 0}, "numbers": {"cells": cells}}]}

    def risk(row):
        return reading.summary(row["mean"], row["se"], 30)

    found = reading.show(result, {"risk": risk}, ["n", "arm"], where="cells/{arm}")
    interval = stats.t(29, 0.25, 0.2).interval(0.95)
    value = found[20, "IMM", "risk"].value
    assert (value.low, value.high) == pytest.approx(interval) and value.runs == 30
    assert capsys.readouterr().out.splitlines() == [
        "n   plain        IMM",
        "20  0.50 ± 0.20  0.25 ± 0.41",
        "30 runs in each; ± is half of a 95 % interval",
    ]
    assert reading.paired(result, risk, ["n", "arm"], "plain", "cells/{arm}")[20, "IMM"][1] is None
    with pytest.raises(ValueError, match="by must tell summaries apart, got 2 in one case"):
        reading.paired(result, risk, ["n"], where="cells/{arm}")
    with pytest.raises(ValueError, match="runs must be at least 2, got 1"):
        reading.summary(0.5, 0.1, 1)


def test_a_column_that_lies_deeper_is_pointed_to():
    test = {"plain": {"loss": 0.5}, "IMM": {"loss": 0.4}}
    numbers = {"decay": 0.1, "test": test, "target": {"loss": 0.3}}
    result = {"units": [{"unit": {"n": 20, "seed": 0}, "numbers": numbers}]}
    said = "got 'loss'; other rows lie under where, such as test/{case}"
    with pytest.raises(ValueError, match=re.escape(said) + "$"):
        reading.paired(result, "loss")
    with pytest.raises(ValueError, match=r"got 'accuracy'$"):
        reading.paired(result, "accuracy")
    assert len(reading.paired(result, "loss", where="test/{case}")) == 2
    said = "2 of 3 rows have no loss; other rows lie under where, such as test/{case}"
    assert reading.lacking(result, "loss", "{method}") == said
    assert reading.lacking(result, "loss", "test/{case}") == ""
    del test["IMM"]["loss"]
    assert reading.lacking(result, "loss", "test/{case}") == "1 of 2 rows have no loss"
    numbers.pop("test")
    with pytest.raises(ValueError, match=r"such as target$"):
        reading.paired(result, "loss")


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_a_spread_is_students_interval(values):
    found = reading.spread(values)
    assert found[:2] == pytest.approx(imm.results.mean_interval(values))
    assert found.runs == len(values) and found.low <= found.mean <= found.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "los"}, "column must be of loss, got 'los'"),
        ({"by": ["arms"]}, "by must be of arm, n, seed, got 'arms'"),
        ({"against": "MLM"}, "against must be one of plain, IMM, got 'MLM'"),
        ({"result": {"units": []}}, "result must have a unit, got none"),
        ({"result": {"units": stored()["units"] * 2}}, "rows must differ in .*, got two alike"),
    ],
)
def test_what_cannot_be_read_is_named(change, message):
    call = {"result": stored(), "column": "loss", "by": ["arm"], **change}
    with pytest.raises(ValueError, match=message):
        reading.paired(**call)


def test_rows_are_of_the_path_and_what_stands_beside_it():
    numbers = {"by": {"a": {"x": 1, "in": {"y": 2}}, "b": {"x": 3}}, "beside": {"z": 4}, "w": 5}
    result = {"units": [{"unit": {"n": 2}, "numbers": numbers}], "config": {"names": ["p", "q"]}}
    assert rows(result, "by/{key}") == [
        {"n": 2, "key": "a", "beside/z": 4, "w": 5, "x": 1, "in/y": 2},
        {"n": 2, "key": "b", "beside/z": 4, "w": 5, "x": 3},
    ]
    assert [row["by/a/in/y"] for row in rows(result)] == [2]
    result["units"][0]["numbers"] = {"list": [7, 8]}
    assert [(row["i"], row["value"]) for row in rows(result, "list/{i}")] == [(0, 7), (1, 8)]
    assert [row["i"] for row in rows(result, "list/{i=names}")] == ["p", "q"]
    with pytest.raises(KeyError):
        rows(result, "lists/{i}")


def test_a_table_lays_fields_down_and_across():
    table = Table("", {"arm": "{arm}"}, ("seed {seed}", "{loss:.2f}"), lambda row: row["seed"] < 2)
    assert table(stored()) == [
        ["arm", "seed 0", "seed 1"],
        ["plain", "0.50", "0.75"],
        ["IMM", "0.25", "0.38"],
    ]
    assert aligned(table(stored()))[1] == "plain  0.50    0.75"
    assert Table("", {"unit": "{unit}"})(stored())[1] == ["arm plain, n 20"]


def test_show_prints_what_it_returns(capsys):
    found = reading.show(stored(), ["loss"], ["n", "arm"], "plain", digits=2)
    half = found[20, "IMM", "loss"].change.half
    assert capsys.readouterr().out.splitlines() == [
        "n   plain: loss  IMM less plain",
        f"20  0.50         -0.25 ± {half:.2f}",
        "3 runs in each, paired; ± is half of a 95 % interval",
    ]
    reading.show(stored(more=1.0), ["loss", "more"], ["arm"], among=["IMM"], digits=1)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "arm  loss       more",
        "IMM  0.2 ± 0.3  1.0 ± 0.0",
    ]


WIDE = [
    ("sensors", ["loss", "accuracy"], "test/{method}", "baseline"),
    ("side-shift", ["change", "lead"], "shifts/{shift}", "0.0"),
    ("side-tuning", ["loss", "lam"], "rules/{rule}", "plug-in"),
]


@pytest.mark.parametrize(("name", "columns", "where", "against"), WIDE)
def test_show_keeps_to_the_page_and_to_the_stored_numbers(name, columns, where, against, capsys):
    result = imm.results.load(name)
    found = reading.show(result, columns, against=against, where=where)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 78 and lines[-1].startswith("20 runs in each, paired")
    *case, last, column = next(key for key in found if key[-2] != against)
    method = where[where.index("{") + 1 : -1]

    def of(wanted):
        read = (row for row in rows(result, where) if row[method] == wanted)
        return [row[column] for row in read if list(row.values())[: len(case)] == case]

    changes = [a - b for a, b in zip(of(last), of(against), strict=True)]
    assert found[*case, last, column].change.mean == pytest.approx(sum(changes) / 20)


def test_the_command_line_shows_the_same(capsys):
    words = ["show", "side-tuning", "--columns", "loss", "--where", "rules/{rule}"]
    assert main([*words, "--by", "data,n,rule", "--against", "none"]) == 0
    said = capsys.readouterr().out
    reading.show(imm.results.load("side-tuning"), ["loss"], against="none", where="rules/{rule}")
    assert capsys.readouterr().out == said
    assert main(["show", "side-tuning", "--by", "n"]) == 2
    assert "--by, --against and --where need --columns" in capsys.readouterr().err
    assert main(["show", "side-tuning", "--columns", "loss", "--where", "rule/{rule}"]) == 2
    assert "--where: no 'rule' in side-tuning's numbers" in capsys.readouterr().err
    for deeper in ("rules/{rule}/{a}/{b}", "rules/none/loss/more"):  # below a number
        assert main(["show", "side-tuning", "--columns", "loss", "--where", deeper]) == 2
        assert "error: --where: no '" in capsys.readouterr().err


def test_an_experiments_table_is_the_readings(capsys):
    table = experiments.find("sensors").table(imm.results.load("sensors"))
    found = reading.paired(
        imm.results.load("sensors"), "loss", against="baseline", where="test/{method}"
    )
    (row,) = (row for row in table if row[:3] == ["worst radius", "20", "IMM"])
    assert row[4].startswith(f"{found['worst radius', 20, 'IMM'].change.mean:+.4f}")
