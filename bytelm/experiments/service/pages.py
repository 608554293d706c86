"""The service's pages for people: `GET /`, the match so far, and `GET /docs`, the description of the API.

A page is one file of HTML without scripts. It loads nothing, so it works offline, and its policy forbids the browser to
run or load anything that a run's name, config or log could contain. All text is escaped.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from bytelm.experiments.report.curves import Curves, read_curves
from bytelm.experiments.report.html import CSS
from bytelm.experiments.service.match import Service
from bytelm.experiments.service.match_folder import BASELINE
from bytelm.experiments.service.paths import without_paths
from bytelm.runs.ledger import best_of
from bytelm.runs.read import Run
from bytelm.units import clock

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
REFRESH_SECONDS = 10
COLUMNS = ("run_id", "status", "decision", "score", "total_steps", "num_params_M", "reason")
WIDTH, HEIGHT, MARGIN = 760, 300, 48  # of the picture, in pixels
DRAWN = 20  # most runs with a curve: the baseline, the best, and the newest
OWN_CSS = """
body { max-width: 60rem } .best td { font-weight: 600 }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif }
pre { background: #f2f2f2; padding: .6rem; overflow-x: auto } summary { cursor: pointer } .method { font-weight: 600 }
"""


def add_pages(api: FastAPI, service: Service) -> None:
    """Adds the pages to the service's API, which has no other page of its own.

    Args:
        api: The API; its `docs_url` is None.
        service: The match.
    """

    @api.get("/", include_in_schema=False, response_class=HTMLResponse)
    def match() -> HTMLResponse:
        return _answer(match_page(service), refresh=service.active is not None)

    @api.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs() -> HTMLResponse:
        return _answer(api_page(api.openapi()))


def _answer(page: str, refresh: bool = False) -> HTMLResponse:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    if refresh:
        headers["Refresh"] = str(REFRESH_SECONDS)
    return HTMLResponse(page, headers=headers)


# The match


def match_page(service: Service) -> str:
    """The page of the match: the remaining runs and time, all runs, and their curves."""
    ended, submitted = service.ended, service.best
    best = best_of([*(run for run in ended if run.experiment == BASELINE), *([submitted] if submitted else [])])
    baseline = service.report(BASELINE)
    reports = [*([baseline] if baseline is not None else []), *service.runs()]
    left = f"{service.runs_remaining} runs and {clock(service.match_time_remaining)} are left."
    if (active := service.active) is not None:
        left += f" {active[0]} is being trained, for {active[1]:.0f} s."
    if best is not None:
        left += f" The best run is {_scored(best)}."
    if submitted is not None and best is not submitted:
        left += f" The best submitted run is {_scored(submitted)}."
    rows = [_row(report) for report in reports]
    marked = [best is not None and report["run_id"] == best.experiment for report in reports]
    body = f"<p>{escape(left)} <a href='/docs'>The API</a> takes configs.</p>"
    body += _table(COLUMNS, rows, marked)
    runs = _drawn(ended, submitted)
    if runs and (picture := curves_svg([_curves(run) for run in runs], best)):
        body += f"<h2>Curves</h2>{picture}"
    body += (
        f"<h2>Baseline</h2><details><summary>Its config</summary><pre>{escape(service.baseline_text)}</pre></details>"
    )
    return _page("bytelm: the match", body)


def _scored(run: Run) -> str:
    return f"{'the baseline' if run.experiment == BASELINE else run.experiment}: {run.ranked_by.name} {run.score:.4f}"


def _row(report: Mapping[str, Any]) -> list[str]:
    score = next((report[key] for key in ("val_bpb", "val_loss") if report.get(key) is not None), None)
    shown = {**report, "score": None if score is None else f"{score:.4f}"}
    texts = ["" if shown.get(key) is None else str(shown[key]) for key in COLUMNS]
    return [without_paths(text) for text in texts]


def _drawn(ended: Sequence[Run], best: Run | None) -> list[Run]:
    """The runs with a curve: the newest ones, the best submitted one and the baseline."""
    first = [run for run in ended if run.experiment == BASELINE or (best is not None and run.folder == best.folder)]
    others = [run for run in ended if run not in first]
    return [*first, *others[-(DRAWN - len(first)) :]]


_READ: dict[Path, Curves] = {}  # by the run's folder: a run that has ended does not change


def _curves(run: Run) -> Curves:
    if run.folder not in _READ:
        _READ[run.folder] = read_curves(run, run.ranked_by)
    return _READ[run.folder]


def curves_svg(curves: Sequence[Curves], best: Run | None = None) -> str:
    """Loss and scores of runs over training time, as SVG; empty if there is nothing to draw.

    Args:
        curves: The runs' curves.
        best: The run that is drawn in colour.
    """
    points = [(c, kind) for c in curves for kind in (c.loss, c.scores) if len(kind.values)]
    if not points:
        return ""
    right = max(float(kind.seconds.max()) for _, kind in points) or 1.0
    final = [float(c.scores.values[-1]) for c in curves if len(c.scores.values)]
    low = min(float(kind.values.min()) for _, kind in points)
    high = max([*final, *(float(kind.values[len(kind.values) // 10 :].max()) for _, kind in points)])  # not the start
    high = high if high > low else low + 1.0

    def at(seconds: float, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * seconds / right
        return x, HEIGHT - MARGIN + (2 * MARGIN - HEIGHT) * (min(value, high) - low) / (high - low)

    shapes = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, _), (_, y) = at(share * right, low), at(0, low + share * (high - low))
        shapes.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        shapes.append(
            f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{low + share * (high - low):.2f}</text>'
        )
        shapes.append(f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{share * right:.3g} s</text>')
    for curve in sorted(curves, key=lambda curve: best is not None and curve.run.folder == best.folder):
        is_best = best is not None and curve.run.folder == best.folder
        colour = "#c8501e" if is_best else "#3b6ea5" if curve.run.experiment == BASELINE else "#aaa"
        name = f"<title>{escape(curve.run.experiment)}</title>"
        for kind, style in ((curve.loss, 'opacity="0.6"'), (curve.scores, 'stroke-width="2"')):
            line = [at(*point) for point in zip(kind.seconds.tolist(), kind.values.tolist(), strict=True)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}>{name}</polyline>')
        for x, y in line[-1:]:
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{name}</circle>')
            if is_best or curve.run.experiment == BASELINE:
                label = escape(curve.run.experiment)
                shapes.append(f'<text x="{x - 6:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">{label}</text>')
    title = f"{curves[0].run.ranked_by.name} (thick) and training loss (thin) over training time"
    return f'<p>{escape(title)}</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(shapes)}</svg>'


# The API


def api_page(description: Mapping[str, Any]) -> str:
    """The page of an API.

    Args:
        description: Its OpenAPI description.
    """
    info = description["info"]
    body = f"<p>{escape(info.get('description', ''))}</p>"
    body += "<p>As JSON: <a href='/openapi.json'>/openapi.json</a>. <a href='/'>The match so far</a>.</p>"
    schemas = description.get("components", {}).get("schemas", {})
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            body += _operation(method.upper(), path, operation)
    body += "<h2>Objects</h2>"
    for name, schema in schemas.items():
        body += f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
        rows = [[key, _type(value)] for key, value in schema.get("properties", {}).items()]
        body += _table(("key", "type"), rows)
    return _page(f"{info['title']} {info['version']}: the API", body)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    text = f"<h2><span class=method>{escape(method)}</span> <code>{escape(path)}</code></h2>"
    text += f"<p>{escape(operation.get('summary', ''))}</p>"
    if body := operation.get("requestBody"):
        said = re.sub("`(.*?)`", r"<code>\1</code>", escape(body.get("description", "")))
        text += f"<p>{said}</p>"
        for kind, content in body["content"].items():
            if example := content.get("example"):
                text += f"<p>For example, as <code>{escape(kind)}</code>:</p><pre>{escape(str(example))}</pre>"
    rows = []
    for status, response in operation.get("responses", {}).items():
        contents = response.get("content", {}).values()
        kinds = ", ".join(_type(content.get("schema", {})) for content in contents)
        rows.append([status, response.get("description", ""), kinds])
    return text + _table(("status", "meaning", "body"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any value"))


# HTML


def _table(head: Iterable[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    def row(cells: Iterable[str], tag: str, attribute: str = "") -> str:
        return f"<tr{attribute}>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    best = {number for number, is_best in enumerate(marked) if is_best}
    lines = [row(cells, "td", " class=best" if number in best else "") for number, cells in enumerate(rows)]
    return f"<table><thead>{row(head, 'th')}</thead><tbody>{''.join(lines)}</tbody></table>"


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{CSS}{OWN_CSS}</style>'
    return (
        f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
