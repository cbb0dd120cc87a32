"""Draw with matplotlib and turn it into SVG that a page can theme: text as text, colours as variables."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#1d2420", "#66706b", "#dfe3dd", "#fefefe"
BASE = "#757f8d"
# Okabe and Ito's colours, which the colour-blind tell apart; a page in the dark replaces them by lighter ones
SERIES = ("#009e73", "#d55e00", "#0072b2", "#aa4499", "#c98a00", "#3d9fd6")
# light tints, dark text stays readable on them in the light and in the dark
PARTS = ("#86c5ea", "#f2b96b", "#86d3b7", "#d3a8dd", "#c3c9c5", "#f0a59b", "#dfd77f")
VARIABLES: Mapping[str, str] = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    BASE: "--base",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
}
MARKERS = {"torch": "o", "onnxruntime": "s", "openvino": "^"}
OTHER_MARKERS = "DvP*X"
STANDALONE_FONT = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "niwaki",  # the same drawing gives the same bytes
    "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
    "text.hinting": "none",  # a text is as wide in a small drawing as in a large one
    "font.size": 10,
    "font.family": ["DejaVu Sans"],
    "figure.dpi": 72,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style; everything between making a figure and writing it belongs inside.

    Raises:
        NiwakiError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise NiwakiError(
            "the plots of a report need matplotlib, which is not installed",
            expected="the extra named report",
            fix='pip install "niwaki[report]"',
        ) from error
    with rc_context(STYLE), warnings.catch_warnings():
        # a name in a script that the layout font lacks is drawn by the reader's fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure_of(width: float, height: float, padding: float = 0.04) -> Figure:
    """Return an empty figure of this size in points (padding in inches), outside of any window system."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=padding, h_pad=padding)
    return Figure(figsize=(width / 72, height / 72), layout=layout)


def inline_svg(figure: Figure, name: str, title: str, description: str, tips: Mapping[str, str] | None = None) -> str:
    """Return a figure as an element for an HTML page.

    Args:
        figure: the figure.
        name: unlike any other figure's on the page; all ids begin with it.
        title: what it is, for a screen reader.
        description: what it shows, for a screen reader.
        tips: text to show over an artist, by the artist's gid.
    """
    text = _bare_svg(figure, f"{name}-")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    for gid, tip in (tips or {}).items():
        text = text.replace(f'<g id="{name}-{gid}">', f'<g id="{name}-{gid}"><title>{escape(tip)}</title>')
    box = re.search(r'viewBox="[^"]*"', text)
    head = (
        f'<svg {box.group() if box else ""} role="img" aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda match: head, text, count=1)


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written, before the work that it is to show."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise NiwakiError(f"no picture can be written as {path.name}", expected="a name ending in .svg or .png")
    with style():
        pass  # matplotlib is there


def write_picture(figure: Figure, path: Path, title: str) -> Path:
    """Write a figure as a file of its own, SVG or PNG by its ending."""
    check_picture(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    if path.suffix.lower() == ".png":
        figure.savefig(aside, format="png", dpi=200, facecolor=PAPER, metadata={"Title": title})
    else:
        text = re.sub(r"'DejaVu Sans'[^;\"]*", STANDALONE_FONT, _bare_svg(figure, ""))
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
        paper = f'<rect width="{box[1]}" height="{box[2]}" rx="8" fill="{PAPER}"/>' if box else ""
        head = f'role="img"><title>{escape(title)}</title>{paper}'
        aside.write_text(re.sub(r"(<svg[^>]*)>", lambda match: f"{match[1]} {head}", text, count=1), encoding="utf-8")
    aside.replace(path)
    return path


def _bare_svg(figure: Figure, prefix: str) -> str:
    """Return a figure's `svg` element without prologue, metadata, comments and ids that nothing refers to."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    text = re.sub(r'(<g) id="[A-Za-z0-9.]+_\d+"', r"\1", text)
    numbers: dict[str, int] = {}

    def renamed(match: re.Match[str]) -> str:
        # matplotlib's names are hashes of all digits of a layout, and the last digits are not always the same
        place, name = match.groups()
        if re.fullmatch(r"[A-Za-z]?[0-9a-f]{10}", name):
            name = f"shape-{numbers.setdefault(name, len(numbers))}"
        return f"{place}{prefix}{name}"

    text = re.sub(r'(\bid="|\bhref="#|url\(#)([^")]+)', renamed, text)
    return re.sub(r">\s+<", "><", text).strip()
