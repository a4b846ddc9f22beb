"""The shared style of all pages and figures."""

from collections.abc import Sequence
from html import escape
import io
import re

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito, colour-blind safe.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GREY, LINE = "#1c2733", "#5b6875", "#d9dee3"
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "text.parse_math": False,  # $ in a name is literal
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": GREY,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color: #1c2733; background: #fbfaf8; font: 17px/1.6 Charter, "Bitstream Charter", Georgia, serif; }}
body {{ max-width: 58rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }}
h1, h2, h3, table, figure, .card, .tag, summary, dt {{
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }}
h1 {{ font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.25rem; letter-spacing: -.01em; margin: 3.5rem 0 .3rem; }}
h3 {{ font-size: .95rem; margin: 2rem 0 0; color: #5b6875; font-weight: 600; }}
p {{ max-width: 42rem; margin: .3rem 0 1rem; }}
.lead, .note {{ color: #5b6875; }}
figure {{ margin: 1rem 0; }}
figure svg {{ display: block; max-width: 100%; height: auto; }}
svg text {{ font-family: inherit !important; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 1rem; margin: 2rem 0; }}
.card {{ flex: 1 1 15rem; padding: 1.1rem 1.3rem; background: #fff; border: 1px solid #e4e2dd; border-radius: 8px; }}
.card b {{ display: block; font-size: 2rem; line-height: 1.25; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }}
.card span {{ display: block; font-size: .82rem; color: #5b6875; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .9rem .35rem 0; text-align: left; border-bottom: 1px solid #e4e2dd; white-space: nowrap; }}
.found td {{ white-space: normal; vertical-align: top; min-width: 15rem; }}
.wide {{ overflow-x: auto; margin-bottom: 1.5rem; }}
summary {{ cursor: pointer; color: #5b6875; font-size: .85rem; margin: 1rem 0; }}
article {{ margin: 1.2rem 0; padding: 1.2rem 1.5rem; background: #fff; border: 1px solid #e4e2dd; border-radius: 8px; }}
article > strong {{ font-size: 1.05rem; }}
.tag {{ float: right; font-size: .75rem; font-weight: 600; padding: .1rem .6rem; border-radius: 1rem; }}
.accepted {{ color: #005c43; background: #e0f3ec; }}
.rejected {{ color: #8f3f00; background: #fbe9dd; }}
dl {{ display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem 1rem; margin: .8rem 0 0; font-size: .92rem; line-height: 1.5; }}
dt {{ color: #5b6875; font-size: .8rem; padding-top: .1rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
@media (max-width: 40rem) {{ dl {{ grid-template-columns: 1fr; gap: .1rem; }} dd {{ margin-bottom: .6rem; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """A self-contained page of these HTML fragments; it loads nothing."""
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls if wider than the page. A cell is bold as in Markdown: **this**."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    plain = escape(text.strip("*"))
    return f"<td><b>{plain}</b></td>" if text.startswith("**") else f"<td>{plain}</td>"


def svg_of(figure: Figure, label: str) -> str:
    """A figure as inline SVG; the same figure gives the same text."""
    stream = io.StringIO()
    # The salt makes the ids of clip paths reproducible, and distinct between the figures of a page.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()[stream.getvalue().index("<svg") :]
    # Ids like "axes_1" repeat in every figure, and nothing uses them.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    return f'<figure role="img" aria-label="{escape(label)}">{svg}</figure>'
