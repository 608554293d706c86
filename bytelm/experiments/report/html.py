"""The report as one HTML file, which requires no other file and no network."""

import base64
import re
from html import escape
from pathlib import Path

from markdown import Markdown

from bytelm.experiments.report.text import ESCAPED, printable

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 84rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem }
table { border-collapse: collapse; font-size: 13.5px; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999 } th, td:nth-child(-n+3) { white-space: nowrap } tr:hover td { background: #f6f6f6 }
td[style*="right"], th[style*="right"] { font-variant-numeric: tabular-nums }
code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px; font-size: 90% }
img { max-width: 100% }
"""
# Nothing is loaded or run, whatever the text contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_html(text: str, title: str, folder: Path) -> str:
    """Returns the page.

    Args:
        text: Markdown.
        title: Title of the browser window.
        folder: Folder of its pictures.
    """
    converter = Markdown(extensions=["tables", "sane_lists"])
    converter.ESCAPED_CHARS = list({*converter.ESCAPED_CHARS, *ESCAPED})  # as in CommonMark

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode(folder.joinpath(match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{data}"'

    body = re.sub(r'src="([\w-]+\.svg)"', inline, converter.convert(text))
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = f'<meta charset="utf-8">{policy}<title>{escape(printable(title))}</title><style>{CSS}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"
