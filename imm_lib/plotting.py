"""One look for every picture of the book: a colour and a marker per method, an opaque ground,
readable on a phone.
"""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart with every common colour blindness.
COLORS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Style(NamedTuple):
    """Colour, marker and line of a method; ``ax.plot(x, y, **style._asdict())`` takes it."""

    color: str
    marker: str
    linestyle: str


#: The same method looks the same in every chapter, and differs in marker or line as well as colour.
METHOD_STYLE = {
    "baseline": Style(COLORS["black"], "o", "--"),
    "noising": Style(COLORS["vermillion"], "s", "-"),
    "reverse-KD": Style(COLORS["orange"], "v", "-."),
    "interpolation": Style(COLORS["purple"], "D", ":"),
    "IMM exact": Style(COLORS["blue"], "^", "-"),
    "IMM sampled": Style(COLORS["sky"], "P", "-"),
    "IMM serialized": Style(COLORS["green"], "X", "-."),
    "IMM moving average": Style("#661100", "*", ":"),
    "target": Style("#777777", "d", "--"),
}


def use_style() -> None:
    """Set matplotlib's defaults to the book's look, for the rest of the session.

    Lines cycle through colour and marker together; text is at least 10 points; the ground is opaque
    white, so that a picture reads in the dark theme; an SVG file has the same bytes in every run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from cycler import cycler
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'imm_lib[plot]'") from error
    colors = [c for name, c in COLORS.items() if name != "yellow"]
    matplotlib.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=colors, marker=_MARKERS[: len(colors)]),
            "axes.facecolor": "white",
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 12,
            "axes.labelsize": 12,
            "figure.constrained_layout.use": True,
            "figure.dpi": 120,
            "figure.facecolor": "white",
            "figure.figsize": (5.0, 3.3),
            "font.size": 11,
            "grid.color": "#dddddd",
            "legend.fontsize": 10,
            "legend.framealpha": 0.9,
            "lines.linewidth": 2,
            "lines.markersize": 6,
            "savefig.dpi": 160,
            "savefig.facecolor": "white",
            "savefig.transparent": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "imm",
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
        }
    )


def band(
    ax: Axes,
    x: Sequence[float],
    low: Sequence[float],
    mid: Sequence[float],
    high: Sequence[float],
    method: str,
) -> None:
    """Draw ``mid`` over ``x`` as a line in the method's style, and the interval from ``low`` to
    ``high`` as a band.

    The four sequences have one length, (n,). ``method`` is a key of :data:`METHOD_STYLE`; it
    becomes the line's label. Raises ValueError for another name, or for sequences of different
    lengths.

    >>> import matplotlib.figure
    >>> ax = matplotlib.figure.Figure().subplots()
    >>> band(ax, [1, 2], [0, 1], [1, 2], [2, 3], "IMM exact")
    >>> ax.lines[0].get_label()
    'IMM exact'
    """
    if method not in METHOD_STYLE:
        raise ValueError(f"method must be one of {', '.join(METHOD_STYLE)}; got {method!r}")
    lengths = {
        name: len(values) for name, values in (("x", x), ("low", low), ("mid", mid), ("high", high))
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(f"x, low, mid and high must have one length, got {lengths}")
    style = METHOD_STYLE[method]
    ax.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0)
    ax.plot(x, mid, label=method, **style._asdict())


def size_axis(ax: Axes, sizes: Sequence[float], label: str = "data points n") -> None:
    """Make x a logarithmic axis of data sizes with ticks at ``sizes`` alone; raises ValueError if
    there are none.

    >>> import matplotlib.figure
    >>> ax = matplotlib.figure.Figure().subplots()
    >>> size_axis(ax, [2, 5, 10])
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['2', '5', '10']
    """
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one data size, got none")
    ax.set_xscale("log")
    ax.set_xticks(list(sizes), [f"{size:g}" for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel(label)


class Slider:
    """One figure for each of several values, behind a slider; the last expression of a notebook's
    cell.

    Every frame is drawn beforehand and stored in the page, so that nothing has to run for the
    reader: no kernel, no server, no script from elsewhere. A button plays the frames in order, the
    arrow keys step. Where scripts are off the frame at
    ``start`` stands alone.

    Args:
        draw: value -> the figure to show, which is closed afterwards.
        values: at least two, in the slider's order.
        label: what the slider sets, with a place for the value, e.g. ``"λ = {:g}"``.
        caption: the claim of the figure, in a sentence.
        alt: what a frame shows, in words; the label's text is added to it.
        start: index of the value shown at first.

    Raises:
        ValueError: fewer than two values, ``start`` outside of them, or an empty caption or alt.
        ImportError: matplotlib is not installed.

    >>> from matplotlib.figure import Figure
    >>> Slider(lambda x: Figure(), [1, 2], "x = {}", "Nothing changes.", "An empty figure")
    Slider(x = 1, x = 2)
    """

    def __init__(
        self,
        draw: Callable[[Any], Figure],
        values: Sequence,
        label: str,
        caption: str,
        alt: str,
        start: int = 0,
    ):
        if len(values) < 2:
            raise ValueError(f"values must hold at least two, got {len(values)}")
        if not 0 <= start < len(values):
            raise ValueError(
                f"start must be an index of values, 0 to {len(values) - 1}, got {start}"
            )
        if not (caption.strip() and alt.strip()):
            raise ValueError("caption and alt must say what is seen, got an empty one")
        self.labels = [label.format(value) for value in values]
        self.caption, self.alt, self.start = caption, alt, start
        self.frames = [_png(draw(value)) for value in values]

    def __repr__(self) -> str:
        return f"Slider({', '.join(self.labels)})"

    def _repr_html_(self) -> str:
        pictures = ""
        for i, (label, frame) in enumerate(zip(self.labels, self.frames, strict=True)):
            words = html.escape(f"{self.alt}, {label}")
            hidden = "" if i == self.start else " hidden"
            source = f"data:image/png;base64,{frame}"
            pictures += (
                f'<img alt="{words}" data-label="{html.escape(label)}" src="{source}"{hidden}>'
            )
        shown = html.escape(self.labels[self.start])
        return (
            f'<figure class="imm-slider">{pictures}<div>'
            f'<input type="range" min="0" max="{len(self.labels) - 1}" value="{self.start}" '
            f'aria-label="{html.escape(self.caption)}" aria-valuetext="{shown}" '
            f'oninput="{_MOVE}"> <output>{shown}</output> '
            f'<button type="button" onclick="{_PLAY}">Play</button></div>'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


_MOVE = (
    "const figure = this.closest('figure'), frames = figure.querySelectorAll('img'), "
    "chosen = frames[this.value]; "
    "frames.forEach(frame => frame.hidden = frame !== chosen); "
    "this.ariaValueText = figure.querySelector('output').value = chosen.dataset.label"
)
_PLAY = (
    "const button = this, figure = button.closest('figure'), "
    "input = figure.querySelector('input'); "
    "const stop = () => { clearInterval(figure.timer); figure.timer = 0; "
    "button.textContent = 'Play' }; "
    "if (figure.timer) { stop(); return } "
    "if (input.value === input.max) { input.value = 0; input.dispatchEvent(new Event('input')) } "
    "button.textContent = 'Stop'; "
    "const step = () => { input.stepUp(); input.dispatchEvent(new Event('input')); "
    "if (input.value === input.max) stop() }; "
    "figure.timer = setInterval(step, 700)"
)


def _png(figure: Figure) -> str:
    """In 64 colours, which a chart does with, at a third of the bytes."""
    from matplotlib import pyplot
    from PIL import Image  # matplotlib's own dependency

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=90)
    pyplot.close(figure)
    Image.open(whole).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()
