"""The book's look: readable, told apart without colour, the same bytes in every run."""

import base64
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from imm_lib import plotting


@pytest.fixture
def styled():
    with matplotlib.rc_context():
        plotting.use_style()
        yield matplotlib.rcParams


def test_style_is_opaque_white_and_large_enough(styled):
    for key in ("figure.facecolor", "axes.facecolor", "savefig.facecolor"):
        assert to_rgba(styled[key]) == (1, 1, 1, 1)
    assert not styled["savefig.transparent"]
    sizes = [
        styled[k]
        for k in (
            "font.size",
            "axes.labelsize",
            "legend.fontsize",
            "xtick.labelsize",
            "ytick.labelsize",
        )
    ]
    assert min(sizes) >= 10


def test_cycle_pairs_each_colour_with_its_own_marker(styled):
    cycle = list(styled["axes.prop_cycle"])
    assert len({c["color"] for c in cycle}) == len({c["marker"] for c in cycle}) == len(cycle) >= 6


def test_methods_differ_without_colour_and_stand_out_from_white():
    styles = plotting.METHOD_STYLE.values()
    assert len({s.color for s in styles}) == len({s.marker for s in styles}) == len(styles)
    assert max(np.mean(to_rgb(s.color)) for s in styles) < 0.75


def test_svg_is_the_same_in_every_run(styled):
    def draw():
        figure = Figure()
        plotting.band(figure.subplots(), [1, 2], [0, 1], [1, 2], [2, 3], "noising")
        with io.BytesIO() as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
            return file.getvalue()

    assert draw() == draw()


def test_band_draws_line_and_interval_in_the_methods_style():
    ax = Figure().subplots()
    plotting.band(ax, [1, 2], [0, 1], [1, 2], [2, 3], "IMM sampled")
    (line,), (area,) = ax.lines, ax.collections
    style = plotting.METHOD_STYLE["IMM sampled"]
    assert (line.get_color(), line.get_marker(), line.get_label()) == (
        style.color,
        style.marker,
        "IMM sampled",
    )
    assert area.get_paths()[0].get_extents().extents.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("x", "method", "message"),
    [
        ([1, 2], "magic", r"method must be one of baseline.*'magic'"),
        ([1], "noising", r"one length, got .*'x': 1"),
    ],
)
def test_band_names_the_bad_argument_and_draws_nothing(x, method, message):
    ax = Figure().subplots()
    with pytest.raises(ValueError, match=message):
        plotting.band(ax, x, [0, 1], [1, 2], [2, 3], method)
    assert not ax.lines
    assert not ax.collections


def test_without_matplotlib_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None; "
        "from imm_lib import plotting; plotting.use_style()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'imm_lib[plot]'" in done.stderr.splitlines()[-1]


def draw(value):
    figure = Figure()
    figure.subplots().plot([0, value])
    return figure


def test_a_slider_holds_every_frame_and_shows_one():
    slider = plotting.Slider(
        draw, [0.5, 1.0, 2.0], "λ < {:g}", "A line turns.", 'A line with "quotes"', start=1
    )
    page = BeautifulSoup(slider._repr_html_(), "html.parser")
    images = page.find_all("img")
    assert [image["data-label"] for image in images] == ["λ < 0.5", "λ < 1", "λ < 2"]
    assert [image.has_attr("hidden") for image in images] == [True, False, True]
    assert (
        len({image["src"] for image in images}) == 3
        and images[0]["alt"] == 'A line with "quotes", λ < 0.5'
    )
    assert base64.b64decode(images[0]["src"].partition(",")[2]).startswith(b"\x89PNG")
    assert page.button.text == "Play"
    assert page.output.text == "λ < 1" and page.input["value"] == "1" and page.input["max"] == "2"
    assert "http" not in slider._repr_html_()
    assert (
        plotting.Slider(draw, [0.5, 1.0], "{}", "c", "a")._repr_html_()
        == plotting.Slider(draw, [0.5, 1.0], "{}", "c", "a")._repr_html_()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1]}, "values must hold at least two, got 1"),
        ({"start": 2}, "start must be an index of values, 0 to 1, got 2"),
        ({"alt": " "}, "caption and alt must say"),
    ],
)
def test_a_slider_refuses_what_it_cannot_show(change, message):
    options = {
        "draw": draw,
        "values": [1, 2],
        "label": "{}",
        "caption": "c",
        "alt": "a",
        "start": 0,
    }
    with pytest.raises(ValueError, match=message):
        plotting.Slider(**{**options, **change})
