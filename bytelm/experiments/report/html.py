"""The report as one HTML file, which requires no other file and no network.

Its one script (interactive.js) sorts tables and draws curves whose values can be read. Without scripts, pictures are
shown instead of the curves.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from markdown import Markdown

from bytelm.experiments.report.text import ESCAPED, printable

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 84rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem }
table { border-collapse: collapse; font-size: 13.5px; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999 } th, td:nth-child(-n+3) { white-space: nowrap }
table:has(th:nth-child(5)) td:first-child:not([style]) {  /* long names of runs */
  white-space: normal; overflow-wrap: anywhere; min-width: 20rem
}
tr:hover td { background: #f6f6f6 }
td[style*="right"], th[style*="right"] { font-variant-numeric: tabular-nums }
code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px; font-size: 90% }
img { max-width: 100% }
.sortable { cursor: pointer } .sortable:hover { background: #f2f2f2 }
th[aria-sort=ascending]::after { content: " \\25B2" } th[aria-sort=descending]::after { content: " \\25BC" }
.chart > svg { width: 100%; height: auto; touch-action: pan-y } .chart svg text { font-size: 12px; fill: #333 }
.grid { stroke: #e6e6e6 } .cursor { stroke: #888; stroke-dasharray: 4 3 }
.chart button { font: inherit; font-size: 13px; border: 1px solid #ccc; border-radius: 3px; background: #fff }
.chart button { cursor: pointer; margin: 0 .3rem .3rem 0; padding: .15rem .5rem }
.chart button[aria-pressed=true] { background: #e8eef6; border-color: #7a9cc6 } .chart .off { opacity: .4 }
.mark { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em }
.value { margin-left: .6em; font-variant-numeric: tabular-nums; font-weight: 600 }
.hint { font-size: 13px; color: #666 }
"""
SCRIPT = Path(__file__).with_name("interactive.js").read_text(encoding="utf-8")
# Nothing is loaded, and nothing but the script is run, whatever the text contains.
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'"


def to_html(text: str, title: str, folder: Path, charts: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Returns the page.

    Args:
        text: Markdown.
        title: Title of the browser window.
        folder: Folder of its pictures.
        charts: For pictures of curves, by file name, the data of the chart that replaces the picture: `data`, and the
            quantity on its horizontal axis, `over`. Charts with the same data share them.
    """
    charts = charts or {}
    converter = Markdown(extensions=["tables", "sane_lists", "toc"])
    converter.ESCAPED_CHARS = list({*converter.ESCAPED_CHARS, *ESCAPED})  # as in CommonMark

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode(folder.joinpath(match[1]).read_bytes()).decode()
        chart = charts.get(match[1])
        about = "" if chart is None else f' data-chart="{chart["name"]}" data-over="{chart["over"]}"'
        return f'src="data:image/svg+xml;base64,{data}"{about}'

    body = re.sub(r'src="([\w-]+\.svg)"', inline, converter.convert(text))
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = f'<meta charset="utf-8">{policy}<title>{escape(printable(title))}</title><style>{CSS}</style>'
    curves = json.dumps({chart["name"]: chart["data"] for chart in charts.values()}, separators=(",", ":"))
    curves = curves.replace("<", "\\u003c")  # no name ends the element
    scripts = f'<script type="application/json" id="charts">{curves}</script>\n<script>{SCRIPT}</script>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n{scripts}\n</body></html>\n"
