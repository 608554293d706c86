"""The service's pages for people: what they show, that nothing in them is read as HTML, and that they load nothing."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import config, make_run, write_curve

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from bytelm.experiments.service.api import app
from bytelm.runs.read import read_run

EVIL = "<script>alert('1')</script>"


@pytest.fixture
def service(folder):
    """A match with a baseline, a better run, and a run that failed for a reason that looks like HTML."""
    ended = []
    settings = config()
    for at, (name, bpb, status) in enumerate(
        [("baseline", 2.5, "completed"), ("run-0", 2.25, "completed"), ("run-1", None, "error")]
    ):
        more = {"reason": EVIL + " in /home/someone/secret.txt"} if status == "error" else {}
        make_run(f"s/{name}", bpb, at=at, status=status, settings=settings, **more)
        ended.append(read_run(Path(f"runs/s/{name}/version_0")))

    write_curve(Path("runs/s/run-0/version_0"))

    def report(run_id, log=False):
        found = [run for run in ended if run.experiment == run_id]
        return {"run_id": run_id, **found[0].record, "decision": found[0].decision} if found else None

    return SimpleNamespace(
        report=report,
        runs=lambda: [report("run-0"), report("run-1")],
        ended=ended,
        best=ended[1],
        active=None,
        runs_remaining=48,
        match_time_remaining=3600.0,
        baseline_text=f"# {EVIL}\nmodel: {{}}\n",
    )


@pytest.fixture
def client(service):
    return TestClient(app(service), base_url="http://127.0.0.1")


def test_the_match_is_shown_with_its_runs_scores_and_curves(client):
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    assert "48 runs and 1:00:00 are left. The best run is run-0: val_bpb 2.2500." in page
    rows = re.findall(r"<tr(.*?)>(.*?)</tr>", page)
    cells = [re.findall(r"<td>(.*?)</td>", row) for _, row in rows[1:]]
    assert [row[:4] for row in cells] == [
        ["baseline", "completed", "", "2.5000"],
        ["run-0", "completed", "", "2.2500"],
        ["run-1", "error", "", ""],
    ]
    assert [attribute for attribute, _ in rows] == ["", "", " class=best", ""]
    assert page.count("<polyline") >= 2
    assert "refresh" not in answer.headers


def test_a_baseline_that_is_better_than_all_runs_is_the_best(client, service):
    make_run("s/run-2", 2.75, at=2, settings=config())
    worse = read_run(Path("runs/s/run-2/version_0"))
    service.ended, service.best = [service.ended[0], worse], worse
    service.runs = lambda: [{"run_id": "run-2", **worse.record}]
    page = client.get("/").text
    assert "The best run is the baseline: val_bpb 2.5000. The best submitted run is run-2: val_bpb 2.7500." in page
    assert re.findall(r"<tr class=best><td>(.*?)</td>", page) == ["baseline"]

    service.ended, service.best = service.ended[:1], None
    page = client.get("/").text
    assert "The best run is the baseline: val_bpb 2.5000." in page
    assert "submitted" not in page


def test_nothing_in_a_page_is_read_as_html_and_no_path_is_shown(client):
    page = client.get("/").text
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2
    assert "someone" not in page
    for path in ("/", "/docs"):
        assert "default-src 'none'" in client.get(path).headers["content-security-policy"]


def test_a_page_is_loaded_again_while_a_run_is_trained(client, service):
    service.active = ("run-2", 12.0)
    answer = client.get("/")
    assert "run-2 is being trained, for 12 s." in answer.text
    assert answer.headers["refresh"] == "10"


def test_a_match_without_runs_has_a_page(client, service):
    service.runs, service.ended, service.best, service.report = list, [], None, lambda *_: None
    assert "<svg" not in client.get("/").text


def test_the_description_of_the_api_needs_no_other_host(client):
    page = client.get("/docs").text
    described = client.get("/openapi.json").json()
    for path in described["paths"]:
        assert f"<code>{path}</code>" in page
    assert "POST" in page
    assert "time_budget: {limit: 180s}" in page
    assert "No runs are left, or no time." in page
    for name in described["components"]["schemas"]:
        assert f"<h3 id='{name}'>" in page
    assert re.findall(r"https?://|src=|<script|<link", page) == []


def test_a_browser_shows_the_token_as_a_password(service):
    client = TestClient(app(service, token="secret"), base_url="http://host")
    rejected = client.get("/", headers={"Accept": "text/html"})
    assert (rejected.status_code, rejected.headers["www-authenticate"].split()[0]) == (401, "Basic")
    assert client.get("/", auth=("anyone", "secret")).status_code == 200
    assert client.get("/", auth=("secret", "wrong")).status_code == 401
    assert client.get("/", headers={"Authorization": "Basic no base64"}).status_code == 401
    # A browser adds the password to requests of other pages, too.
    assert client.post("/run", auth=("a", "secret"), headers={"Origin": "http://evil.example"}).status_code == 403
