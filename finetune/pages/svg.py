"""How figures of the pages look: SVG text in the page's own light and dark colours, without outside references."""

from __future__ import annotations

import html
import io
import re
import warnings
import zlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Written into the drawing, then replaced: a page may set --series-0..3 (once for light, once for dark); alone they are
# the colours behind the comma. Blue, vermilion, green, purple after Okabe and Ito, safe for colour-blind readers.
SERIES = {"#010100": "#0072b2", "#010101": "#d55e00", "#010102": "#009e73", "#010103": "#a6559d"}
INK = "#010110"
MARKS = ("o", "s", "^", "D")
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "finetune",  # the same figure is the same file
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
}
MAX_POINTS = 300  # of a curve; more cannot be seen


def styled(draw: Callable[..., str]) -> Callable[..., str]:
    """The style holds while a figure is drawn, and no longer."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> str:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches at 72 px; the axes take the room that their labels leave."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def square_axes() -> tuple[Figure, Axes]:
    """Small axes of equal sides, always in the same place, so that figures side by side line up."""
    figure = Figure(figsize=(2.85, 2.6))
    return figure, figure.add_axes((0.225, 0.175, 0.74, 0.8))


def finish(axes: Axes, x_label: str, y_label: str, end: float = 1.0) -> None:
    margin = 0.02 * end
    axes.set(xlim=(-margin, end + margin), ylim=(-margin, end + margin), xlabel=x_label, ylabel=y_label)
    axes.set_aspect("equal")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))


def color(number: int) -> str:
    return list(SERIES)[number % len(SERIES)]


def short(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def as_svg(figure: Figure, label: str) -> str:
    """The drawing as one <svg> element for a page: colours as variables, ids of its own, a text for screen readers."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # the browser has the letters that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, count=1, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)  # the page's own
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)  # the same as matplotlib < 3.10 writes it
    svg = re.sub(r'(?<= )(d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    prefix = f"f{zlib.crc32((label + svg).encode()):08x}-"  # figures of one page must not share ids
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for number, (mark, alone) in enumerate(SERIES.items()):
        svg = svg.replace(mark, f"var(--series-{number}, {alone})")
    svg = svg.replace(INK, "currentColor")
    width, height = figure.get_size_inches() * 72
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {1.25 * width:.0f}px; stroke-linejoin: round">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
