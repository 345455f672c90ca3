"""The generated pages: the rule of the verdicts, and that each page is what the stored measurements
make.
"""

import re
from collections import Counter

import nbformat
import pages
import pytest
from pages import execution, headline, reproduction
from pages.reproduction import Number

from imm_lib import experiments, results


def number(printed, ours, error=0.0):
    return Number("Table 0", "a number", printed, "kneser-ney", ours, error)


@pytest.mark.parametrize(
    ("printed", "ours", "error", "verdict"),
    [
        ("185.71", 185.714, 0.0, "inside"),  # rounds to it
        ("185.71", 185.716, 0.0, "outside"),
        ("30", 30.5, 0.0, "inside"),  # on the border
        ("30", 32.0, 0.7, "outside"),
        ("30", 32.0, 0.8, "inside"),  # 1.96 errors and half a unit
        ("-1.1", -1.098, 0.0, "inside"),
        ("66", None, 0.0, "not run"),
    ],
)
def test_verdict(printed, ours, error, verdict):
    assert number(printed, ours, error).verdict == verdict


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_is_what_the_results_make(name):
    stored = (results.folder().parent / name).read_text(encoding="utf-8")
    assert stored == pages.PAGES[name](), "run make pages"


def test_every_chapter_and_experiment_has_its_row_of_costs():
    page, book = execution.page(), results.folder().parent
    assert [name for name in experiments.registry() if page.count(f"| `{name}` |") != 1] == []
    assert [path.stem for path in book.glob("[0-9]*.ipynb") if f"({path.name})" not in page] == []
    assert [execution.duration(s) for s in (7.4, 99, 3000, 7200)] == [
        "7 s",
        "99 s",
        "50 min",
        "2.0 h",
    ]


def rows(page):
    """The table rows that carry a verdict in their second column."""
    cells = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [row for row in cells if len(row) == 5 and row[1] in reproduction.VERDICTS]


def test_every_number_has_a_row_with_its_verdict_in_the_second_column():
    found, page = reproduction.numbers(), reproduction.page()
    assert Counter(row[1] for row in rows(page)) == Counter(number.verdict for number in found)
    assert {number.place for number in found} >= {"Table 1", "Table 2", "Table 4", "Table 5"}
    assert {number.verdict for number in found if number.place == "Table 4"} == {
        "inside",
        "outside",
    }


def test_means_come_first_and_bars_are_folded_and_counted_apart():
    found, page = reproduction.numbers(), reproduction.page()
    bars = [number for number in found if number.bar]
    assert len(bars) == 42
    before, fold, after = page.partition(":::{dropdown}")
    assert fold and " bar |" not in before
    assert sum(row[0].endswith("bar") for row in rows(after)) == 42
    agree = sum(number.verdict == "inside" for number in found if not number.bar)
    assert f"and {agree} of these agree" in page
    assert reproduction.counts(found)["Table 4, percentile bars"].total() == 42


def test_a_command_is_told_once_a_section():
    for section in reproduction.page().split("\n## ")[1:]:
        commands = re.findall(r"^- `(.+?)`", section, re.MULTILINE)
        assert commands and len(set(commands)) == len(commands)
        assert all(section.count(command) == 1 for command in commands)


def test_without_results_nothing_has_run(tmp_path, monkeypatch):
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path / "results"))
    ran = [number for number in reproduction.numbers() if number.ours is not None]
    assert [number.place for number in ran] == ["Proposition 6.1"]
    missing = [row for row in rows(reproduction.page()) if row[1] == "not run"]
    assert len(missing) == len(reproduction.numbers()) - 1
    assert "Does not hold" in headline.page()


def chapter_text(name):
    """What a chapter says and prints."""
    cells = nbformat.read(results.folder().parent / f"{name}.ipynb", as_version=4).cells
    printed = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    return "\n".join([cell.source for cell in cells] + printed)


def test_every_number_of_the_front_page_is_printed_in_its_chapter():
    told = re.findall(r"^- (.*) \[Chapter \d+\]\((.*)\.ipynb\)", headline.page(), re.MULTILINE)
    assert len(told) > 7
    for text, chapter in told:
        printed = set(re.findall(r"\d+\.\d+|\d+(?= ?%)", chapter_text(chapter)))
        numbers = set(re.findall(r"\d+\.\d+|\d+(?= ?%)", text))
        assert numbers and numbers <= printed, (chapter, numbers - printed)


def test_the_maps_counts_are_printed_in_its_chapter():
    page, printed = headline.page(), chapter_text("09-what-to-use")
    counts = re.findall(r"^- (.* beside .*: .* better, .* worse, .* level)$", page, re.MULTILINE)
    assert len(counts) == 4 and all(line in printed for line in counts)


def test_every_source_of_the_map_has_its_row():
    page = headline.page()
    assert all(page.count(f"- {what}, ") == 1 for what in headline.LEADING.values())


def test_a_comparison_holds_only_where_both_intervals_exclude_zero():
    line = headline.Line("", "", (-1.0, 0.5), (-1.0, 0.5))
    assert line.holds
    assert not line._replace(rival=(-1.0, 1.5)).holds
    assert not line._replace(none=(1.0, 0.5)).holds


def test_a_damaged_result_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path))
    (tmp_path / "logistic-plane.json").write_text("{")
    with pytest.raises(results.ResultError, match=r"logistic-plane\.json"):
        reproduction.numbers()


def test_language_models_are_read_at_two_seeds(tmp_path, monkeypatch):
    stored = results.load("language-methods")
    config = {**stored["config"], "sizes": [[1262, 2]]}
    units = [e for e in stored["units"] if e["unit"]["seed"] < 2]
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path))
    results.save(
        {**stored, "experiment": "language-paper", "config": config, "units": units},
        "language-paper",
    )
    baseline = [e["numbers"]["valid"] for e in units if e["unit"]["arm"] == "baseline"]
    first = next(number for number in reproduction.numbers() if number.place == "Table 1")
    assert (first.what, first.runs) == ("perplexity, valid, none", 2)
    assert first.ours == pytest.approx(sum(baseline) / 2)
    assert first.half_width == pytest.approx(1.96 * abs(baseline[0] - baseline[1]) / 2, rel=1e-3)


def test_a_page_names_every_device_that_a_result_was_computed_on():
    cpu, gpu = "cpu, 1 threads", "NVIDIA H100"
    alike = {"device": cpu, "units": [{}, {}]}
    mixed = {"device": gpu, "units": [{}, {"made": {"device": cpu}}, {}]}
    assert execution.devices(alike) == "cpu, 1 thread"
    assert execution.devices(mixed) == "NVIDIA H100: 2 units; cpu, 1 thread: 1 units"
    whole = {"device": gpu, "units": [{}]}
    assert execution._where([alike, alike]).startswith("All 2 stored results")
    assert "Of 3 stored results 1 were computed on a GPU and 1 in part" in execution._where(
        [alike, mixed, whole]
    )
