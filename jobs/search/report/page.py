"""The report's page around its parts: one file, no network, in the reader's light or dark.

A policy in the page names the two scripts by digest, so that a script which came with a trial's
text would not run, even where the text was not escaped; and nothing may be fetched.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

START = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const settings = {displayModeBar: false, responsive: true};
for (const [id, figure] of Object.entries(figures)) {
  Plotly.newPlot(id, figure.data, figure.layout, settings);
}
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1e21; --soft: #59636e;
  --line: #d1d9e0; --card: #f6f8fa; --best: #bc4c00; --link: #0550ae; --bad: #b42318;
  --good: #116329; }
@media (prefers-color-scheme: dark) { :root { --ground: #0f1216; --ink: #e6e9ed; --soft: #9aa4af;
  --line: #323a44; --card: #191e25; --best: #ffa657; --link: #79c0ff; --bad: #ff8f86;
  --good: #6fdd8b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1200px; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Open Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 4px; }
a { color: var(--link); }
p, figcaption, caption, small { color: var(--soft); }
small { display: block; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px;
  margin: 0; }
dl > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; }
.empty { padding: 20px; border: 1px dashed var(--line); border-radius: 8px; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; }
caption { text-align: left; padding: 8px 10px; }
th, td { padding: 5px 6px; text-align: left; white-space: nowrap; vertical-align: top; }
thead th { border-bottom: 1px solid var(--line); color: var(--soft); font-weight: 600; }
tbody { border-bottom: 1px solid var(--line); }
tbody:last-child { border-bottom: 0; }
tbody.best, tbody:target { background: var(--card); }
td, tbody th { max-width: 260px; overflow: hidden; text-overflow: ellipsis; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.why td { padding-top: 0; color: var(--soft); white-space: normal; overflow-wrap: anywhere;
  max-width: 0; }
.place { font-weight: 400; font-size: 12px; color: var(--link); }
.place.best { color: var(--best); font-weight: 700; }
.status.done { color: var(--good); }
.status.failed, .status.rejected { color: var(--bad); }
.js-plotly-plot .main-svg text { fill: var(--ink) !important; }
/* Numbers beside an axis stay readable over the lines that cross them. */
.js-plotly-plot .main-svg .annotation-text { paint-order: stroke; stroke: var(--ground);
  stroke-width: 4px; }
.js-plotly-plot .main-svg .hoverlayer text { fill: #1c1e21 !important; }
@media print { .wide { overflow: visible; } }
"""


@dataclass(frozen=True)
class Section:
    """A figure with its title and what to see in it; without a figure, why there is none."""

    id: str
    title: str
    caption: str
    figure: Any = None


def page(title: str, headline: str, sections: Sequence[Section], table: str) -> str:
    """The whole file. `headline` and `table` are HTML; all else is escaped here."""
    drawn = {part.id: part.figure for part in sections if part.figure is not None}
    library = get_plotlyjs()
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(library, START)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<main><header><h1>{escape(title)}</h1>{headline}</header>",
        *(_section(part) for part in sections),
        f'<section><h2 id="all-trials">All trials</h2>{table}</section></main>',
        f'<script type="application/json" id="figures">{_json(drawn)}</script>',
        f"<script>{library}</script><script>{START}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(part: Section) -> str:
    title = f'<h2 id="{part.id}-title">{escape(part.title)}</h2>'
    if part.figure is None:
        return f'<section>{title}<p class="empty">{escape(part.caption)}</p></section>'
    return (
        f"<section>{title}<figure><figcaption>{escape(part.caption)}</figcaption>"
        f'<div id="{part.id}" role="img" aria-labelledby="{part.id}-title"></div>'
        "</figure></section>"
    )


def _json(figures: Mapping[str, Any]) -> str:
    """Figures by id, with nothing in them that could end the element they stand in."""
    parts = [f'"{name}": {figure.to_json(engine="json")}' for name, figure in figures.items()]
    return ("{" + ", ".join(parts) + "}").replace("<", "\\u003c")


def _policy(*scripts: str) -> str:
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )
