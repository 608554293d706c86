"""`serve --protocol challenge`: the challenge's requests, keys and statuses, and the programs that it runs."""

import json
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from reference import REFERENCE, harness_module, needs_reference
from served import Served

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import httpx
from fastapi.testclient import TestClient

from bytelm.errors import ConfigError
from bytelm.experiments.check import Checker
from bytelm.experiments.service import program, supervisor
from bytelm.experiments.service.challenge import ChallengeService
from bytelm.experiments.service.challenge_api import app
from bytelm.experiments.service.program import ProgramJob, Setting, read_result, syntax_error
from bytelm.program import main
from bytelm.runs.record import check
from bytelm.units import Size

linux = pytest.mark.skipif(sys.platform != "linux", reason="programs run on Linux")
DATA = {"path": "corpus.txt", "batch_size": 4, "seq_len": 32, "eval_bytes": 1024}
BASELINE = {
    "seed_everything": 7,
    "model": {"gpt": {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32, "max_seq_len": 32}},
    "data": {"class_path": "Bytes", "init_args": DATA},
    "trainer": {"accelerator": "cpu", "devices": 1},
    "time_budget": {"limit": "0.3s"},
}
CONFIG = {"model": BASELINE["model"], "time_budget": {"limit": ["2 steps", "0.3s"]}}
RESOLVED = {
    **BASELINE,
    "data": {"class_path": "bytelm.data.corpora.Bytes", "init_args": {**DATA, "train_fraction": 0.9, "seed": None}},
}
# Keys of the challenge's answers, as its public service gives them.
RUN = {
    "run_id",
    "status",
    "val_bpb",
    "training_time_secs",
    "error",
    "submitted_at",
    "logs",
    "match_time_remaining_secs",
}
COMPLETED = RUN | {"train_loss", "total_steps", "num_params_M"}
RUNNING = {"run_id", "status", "elapsed_secs", "timeout_secs", "match_time_remaining_secs"}
ACCEPTED = {"run_id", "status", "message", "runs_remaining", "match_time_remaining_secs"}
LIST = {"runs", "active_run", "total_runs", "runs_remaining", "best_val_bpb", "match_time_remaining_secs"}
LISTED = {"run_id", "status", "val_bpb", "training_time_secs", "num_params_M", "error"}
BUSY = {"error", "active_run_id", "status", "match_time_remaining_secs"}
REJECTED = {"error", "status", "runs_remaining", "match_time_remaining_secs"}
USED_UP = {"error", "runs_remaining", "match_time_remaining_secs"}


def padded(code):
    """A program of at least as many characters as the challenge accepts."""
    return code + "\n" + "#" * 50


# The whole exchange


class Client:
    """The challenge's client: it sends a program, asks for its run until that has ended, and lists the runs.

    Attributes:
        calls: Method, path and status of its calls; calls that follow an equal one are left out, as are run numbers.
    """

    def __init__(self, url):
        self.calls = []
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def call(self, method, path, **options):
        answer = self._client.request(method, path, **options)
        self.calls.append((method, path, answer.status_code))
        return answer.json()

    def score(self, body, until):
        sent = self.call("POST", "/run", json=body)
        report = f"/runs/{sent['run_id']}"
        return sent, until(lambda: (run := self.call("GET", report))["status"] != "running" and run, 60)


def without_repetitions(calls):
    named = [(method, re.sub(r"run-\d+", "run-N", path), int(status)) for method, path, status in calls]
    return [call for number, call in enumerate(named) if number == 0 or named[number - 1] != call]


def timeline():
    """The calls of the challenge's client, from the document of the match."""
    (document,) = (REFERENCE / "seeds").glob("000*.txt")
    text = document.read_text().partition("API Call Timeline")[2]
    # Each call is its number, method, path, status and milliseconds, without spaces; the status has three digits.
    return re.findall(r"^\d+(GET|POST)(/runs?(?:/run-\d+?)?)(20\d)\d+ms", text, re.MULTILINE)


@needs_reference
@linux
def test_the_challenges_client_and_the_winners_program_run_unchanged(tmp_path, until):
    (tmp_path / "mine.py").write_text("print('mine')")
    options = ("--protocol", "challenge", "--allow_code", "--baseline_code", "mine.py", "--max_runs", "3")
    served = Served(tmp_path, *options, baseline=BASELINE, SERVICE_SECRET="open sesame")
    try:
        client = Client(served.url)
        winner = harness_module("run_challenge_script").challenge_script()
        sent, run = client.score({"train_code": winner}, until)
        assert sent.keys() == ACCEPTED
        assert (sent["run_id"], sent["status"], sent["runs_remaining"]) == ("run-0", "running", 2)
        assert run.keys() == COMPLETED
        assert (run["run_id"], run["status"], run["error"]) == ("run-0", "completed", None)
        assert 0 < run["val_bpb"] < 9
        assert run["total_steps"] > 0
        # Its 223,248 parameters depend on neither the length of a row nor the time.
        assert run["num_params_M"] == 0.2232
        assert "Model: 223,248 parameters (RoPE)" in run["logs"]
        record = json.loads((tmp_path / "runs/service/run-0/version_0/record.json").read_text())
        # The whole process, of which training is a part.
        assert run["training_time_secs"] == round(record["total_time_secs"], 2) > record["training_time_secs"] >= 0.3
        assert record["seed"] == 7

        code = padded("import os; raise ValueError(os.environ.get('SERVICE_SECRET'))")
        _, failed = client.score({"train_code": code}, until)
        assert failed.keys() == RUN
        assert (failed["status"], failed["val_bpb"]) == ("error", None)
        assert failed["error"] == "ended with exit status 1: ValueError: None"  # the secret is not there
        assert "Traceback" in failed["logs"]

        _, of_config = client.score(CONFIG, until)
        assert of_config.keys() == COMPLETED
        assert (of_config["status"], of_config["total_steps"]) == ("completed", 2)
        record = json.loads((tmp_path / "runs/service/run-2/version_0/record.json").read_text())
        assert of_config["training_time_secs"] == round(record["total_time_secs"], 2) > record["training_time_secs"]

        state = client.call("GET", "/runs")
        assert state.keys() == LIST
        assert [entry.keys() for entry in state["runs"]] == [LISTED, LISTED, LISTED]
        assert (state["active_run"], state["total_runs"], state["runs_remaining"]) == (None, 3, 0)
        assert state["best_val_bpb"] == min(run["val_bpb"], of_config["val_bpb"])

        theirs, ours = without_repetitions(timeline()), without_repetitions(client.calls)
        assert ours == [*theirs[:6], theirs[-1]]
        assert set(theirs) == set(ours)

        answer = httpx.post(f"{served.url}/run", json={"train_code": winner}, trust_env=False)
        assert (answer.status_code, answer.json().keys(), answer.json()["runs_remaining"]) == (429, USED_UP, 0)
        baseline = served.get("/baseline")
        assert 0 < baseline["baseline_val_bpb"] < 9
    finally:
        assert served.end() == 128 + signal.SIGTERM, served.errors.read_text()
    assert "Traceback" not in served.errors.read_text()


# Each endpoint and status, without a server


@pytest.fixture
def make(folder, monkeypatch):
    """Opens services whose Checker accepts every config."""
    made = []
    monkeypatch.setattr(Checker, "check", lambda checker, options, seconds=None: (RESOLVED, ""))

    def make(max_runs=3, match_time=1000.0, run_timeout=210.0, memory=program.MEMORY, **options):
        options = {"allow_code": True, "program_memory": memory, **options}
        made.append(ChallengeService("tiny.yaml", "s", max_runs, match_time, run_timeout, None, **options))
        made[-1].open(score_baseline=False)
        return made[-1], TestClient(app(made[-1]), base_url="http://127.0.0.1")

    yield make
    for service in made:
        service.close()


@pytest.fixture
def run(until):
    """Runs a program, and returns its run."""

    def run(client, code):
        sent = client.post("/run", json={"train_code": padded(code)})
        assert sent.status_code == 202, sent.text
        path = f"/runs/{sent.json()['run_id']}"
        return until(lambda: (found := client.get(path).json())["status"] != "running" and found, 60)

    return run


def test_responses_before_the_first_run(make):
    _, client = make()
    shared = {"corpus": "corpus.txt", "seed": 7}
    health = client.get("/health").json()
    assert 0 < health.pop("match_time_remaining_secs") < 1000.0 + 1e-9
    assert health == {"status": "ok", **shared}
    baseline = client.get("/baseline").json()
    assert baseline.pop("match_time_remaining_secs") <= 1000.0
    assert baseline == {"train_code": None, "baseline_val_bpb": None, **shared}
    prepare = client.get("/prepare").json()
    assert prepare.keys() == {"source", "match_time_remaining_secs"}
    assert prepare["source"] == (program.ON_PATH / "prepare.py").read_text()
    state = client.get("/runs").json()
    assert (state["runs"], state["active_run"], state["total_runs"]) == ([], None, 0)
    assert (state["runs_remaining"], state["best_val_bpb"]) == (3, None)
    missing = client.get("/runs/run-0")
    assert (missing.status_code, missing.json().keys()) == (404, {"error"})
    assert client.get("/elsewhere").json().keys() == {"error"}
    assert Path("runs/s/match.json").exists()  # the clock runs from the start of the service


def test_the_program_that_clients_get_is_the_baselines_or_the_given_one(make, monkeypatch):
    Path("mine.py").write_text("print('mine')")
    _, client = make(baseline_code="mine.py")
    assert client.get("/baseline").json()["train_code"] == "print('mine')"
    own = ChallengeService("some/configs/autoresearch/00-baseline.yaml", "s", 1, 1.0, 1.0, None)
    assert own.baseline_code == (program.ON_PATH / "baseline.py").read_text()
    with pytest.raises(ConfigError, match=r"baseline_code: 'none.py' cannot be used; accepted: a file"):
        make(baseline_code="none.py")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no train_code"),
        (b"{}", "no train_code"),
        (b"[1]", "no train_code"),
        (b'["train_code"]', "no train_code"),
        (b"hello", "not a mapping"),
        (b'{"code": "print(1)"}', "no train_code"),
        (b'{"train_code": ', ""),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, ""),
        (b'{"train_code": 3}', "is not a text"),
        (b'{"train_code": null}', "is not a text"),
        (json.dumps({"train_code": "#" * 50, "base": "baseline"}).encode(), "base: it cannot be used with train_code"),
        (json.dumps({"train_code": "#" * 50, "model.gpt.d_ff": 8}).encode(), "model.gpt.d_ff: it cannot be used"),
        (json.dumps({"train_code": "#" * 49}).encode(), "has 49 characters"),
        (json.dumps({"train_code": "#" * 100_001}).encode(), "has 100001 characters"),
        pytest.param(b" " * 3_000_000, "larger than 2000000 bytes", id="huge"),
    ],
)
def test_a_body_without_a_program_is_status_400(make, body, said):
    _, client = make()
    answer = client.post("/run", content=body)
    assert (answer.status_code, answer.json().keys()) == (400, {"error"})
    assert said in answer.json()["error"]
    assert client.get("/runs").json()["runs_remaining"] == 3


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("a = 1\nb = = 2", "line 2: invalid syntax"),
        ("def f(:\n  pass", "line 1"),
        ("x = '\ud800'", "surrogate"),
        ("x\0 = 1", "null byte"),
        ("(" * 1000, "line 1"),
        ("-" * 99_000 + "1", ""),  # exhausts the compiler's stack
    ],
    ids=["assignment", "definition", "surrogate", "null", "brackets", "deep"],
)
def test_a_program_that_is_not_python_is_status_422_and_costs_no_run(make, code, said):
    _, client = make()
    answer = client.post("/run", content=json.dumps({"train_code": padded(code)}).encode())
    assert (answer.status_code, answer.json().keys()) == (422, REJECTED)
    told = answer.json()
    assert (told["status"], told["runs_remaining"]) == ("syntax_error", 3)
    assert said in told["error"]
    assert "\n" not in told["error"]


def test_programs_up_to_the_largest_size_compile():
    assert syntax_error("é" * 10 + " = 1\n" + "#" * 99_000) is None
    assert syntax_error("import prepare") is None


def test_a_run_has_more_time_than_programs_train_for(make):
    with pytest.raises(ConfigError, match=r"^run_timeout: '0.2s' cannot be used; programs train for 0.3s, the base"):
        make(run_timeout=0.2)


def test_people_get_pages_that_load_nothing(make):
    _, client = make()
    for path in ("/", "/docs"):
        assert client.get(path).headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_program_where_none_is_allowed_is_status_422(make):
    _, client = make(allow_code=False)
    answer = client.post("/run", json={"train_code": padded("print(1)")})
    assert (answer.status_code, answer.json().keys()) == (422, REJECTED)
    assert answer.json()["status"] == "rejected"
    assert "--allow_code" in answer.json()["error"]
    assert not Path("runs/s/run-0.py").exists()


@pytest.mark.parametrize(
    ("config", "resolved", "said"),
    [
        (
            {"seed_everything": 8},
            {"seed_everything": 8},
            "seed_everything: 8 cannot be used; accepted: 7, which is fixed",
        ),
        (
            {"data": {"seed": 3}},
            {"data": {**RESOLVED["data"], "init_args": {**RESOLVED["data"]["init_args"], "seed": 3}}},
            "data.seed: 3 cannot be used; accepted: None, which is fixed",
        ),
        ({"model": "os.system"}, {}, "model: 'os.system' cannot be used"),
        ({"model.gpt.d_model": 8}, {"time_budget": {"limit": "1s"}}, "time_budget.limit: '1s' cannot be used"),
    ],
)
def test_a_config_that_cannot_run_is_status_422(make, monkeypatch, config, resolved, said):
    _, client = make()
    monkeypatch.setattr(Checker, "check", lambda checker, options, seconds=None: ({**RESOLVED, **resolved}, ""))
    answer = client.post("/run", json=config)
    assert (answer.status_code, answer.json().keys()) == (422, REJECTED)
    assert answer.json()["error"].startswith(said)
    assert (answer.json()["status"], answer.json()["runs_remaining"]) == ("rejected", 3)


def test_a_config_without_a_seed_gets_the_services(make, monkeypatch):
    _service, client = make()
    monkeypatch.setattr(
        Checker, "check", lambda checker, options, seconds=None: (None, Path("runs/s/.sent.yaml").read_text())
    )
    told = client.post("/run", content="time_budget: {limit: 2 steps}").json()
    assert json.loads(told["error"]) == {"seed_everything": 7, "time_budget": {"limit": "2 steps"}}


def test_the_run_of_a_config_has_the_same_keys_as_that_of_a_program(make, until, monkeypatch):
    service, client = make()
    record = {
        **{"status": "completed", "reason": None, "val_bpb": 2.5, "train_loss": 1.75, "total_steps": 12},
        **{"training_time_secs": 3.0, "total_time_secs": 9.876, "num_params_M": 0.25, "seed": 7},
        **{"started_at": "2026-01-01T00:00:00.000+00:00", "ended_at": "2026-01-01T00:00:10.000+00:00"},
    }

    class Job:
        """A job that ends as soon as it is waited for."""

        elapsed = 1.0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def wait(self):
            Path("runs/s/run-0/version_0").mkdir(parents=True)
            Path("runs/s/run-0/log.txt").write_text("said in /home/someone/secret.txt\n")
            Path("runs/s/run-0/version_0/record.json").write_text(json.dumps(record))
            return SimpleNamespace(folder="there")

    monkeypatch.setattr(service, "_config_job", lambda run_id, timeout: Job())
    assert client.post("/run", json=CONFIG).json().keys() == ACCEPTED
    found = until(lambda: (run := client.get("/runs/run-0").json())["status"] != "running" and run)
    assert found.pop("match_time_remaining_secs") > 0
    assert found == {
        **{"run_id": "run-0", "status": "completed", "val_bpb": 2.5, "train_loss": 1.75, "total_steps": 12},
        **{"training_time_secs": 9.88, "num_params_M": 0.25, "error": None, "submitted_at": 1767225610.0},
        "logs": "said in …/secret.txt\n",
    }
    assert found.keys() | {"match_time_remaining_secs"} == COMPLETED


@pytest.mark.parametrize(
    ("status", "seconds", "shown", "time"),
    [("timeout", 211.5, "timeout", 210.0), ("diverged", 3.0, "error", 3.0), ("interrupted", 3.0, "error", 3.0)],
)
def test_runs_that_were_not_completed_have_the_challenges_statuses_and_no_score(make, status, seconds, shown, time):
    folder = Path("runs/s/run-0/version_0")
    folder.mkdir(parents=True)
    Path("runs/s/run-0.yaml").write_text("{}")
    record = {"status": status, "reason": "why", "val_bpb": 1.0, "total_time_secs": seconds, "ended_at": "2026-01-01"}
    (folder / "record.json").write_text(json.dumps({**record, "ended_at": "2026-01-01T00:00:10.000+00:00"}))
    _, client = make()
    run = client.get("/runs/run-0").json()
    assert run.keys() == RUN
    assert (run["status"], run["val_bpb"], run["error"], run["training_time_secs"]) == (shown, None, "why", time)
    assert client.get("/runs").json()["best_val_bpb"] is None


def test_pages_of_other_hosts_and_requests_without_the_token_get_an_error(make):
    service, client = make()
    answer = client.post("/run", json={}, headers={"Origin": "http://evil.example"})
    assert (answer.status_code, answer.json().keys()) == (403, {"error"})
    guarded = TestClient(app(service, "open sesame"), base_url="http://elsewhere")
    assert (guarded.get("/runs").status_code, guarded.get("/runs").json().keys()) == (401, {"error"})
    assert guarded.get("/runs", headers={"Authorization": "Bearer open sesame"}).status_code == 200


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ({"time_budget": {"limit": "3 steps"}}, r"time_budget.limit: '3 steps' cannot be used; accepted in the"),
        ({"seed_everything": True}, r"seed_everything: True cannot be used"),
        ({"data": {"class_path": "bytelm.data.shards.TokenShards"}}, r"data: 'TokenShards' cannot be used"),
    ],
)
def test_a_baseline_that_programs_cannot_share_is_rejected(make, monkeypatch, baseline, said):
    monkeypatch.setattr(Checker, "check", lambda checker, options, seconds=None: ({**RESOLVED, **baseline}, ""))
    with pytest.raises(ConfigError, match=said):
        make()
    assert not Path("runs/s/baseline.yaml").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allow_code"], "allow_code: True cannot be used; accepted with --protocol challenge"),
        (["--baseline_code", "x.py"], "baseline_code: 'x.py' cannot be used; accepted with --protocol challenge"),
        (["--protocol", "other"], "protocol: 'other'"),
        (
            ["--protocol", "challenge", "--allow_code"],
            "baseline: 'tiny.yaml' cannot be used; accepted with --allow_code: configs/autoresearch/00-baseline.yaml, "
            "or --baseline_code FILE",
        ),
        (
            ["--protocol", "challenge", "--allow_code", "--baseline_code", "x.py", "--host", "0.0.0.0"],
            "host: '0.0.0.0' cannot be used",
        ),
        (["--protocol", "challenge", "--allow_code", "maybe"], "allow_code: 'maybe'"),
    ],
)
def test_options_that_cannot_work_are_rejected_in_one_line(options, said, folder, capsys, monkeypatch):
    monkeypatch.delenv("BYTELM_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--baseline", "tiny.yaml", "--port", "0", *options])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


# Programs and their limits


@linux
def test_while_a_program_runs_others_get_status_409_and_the_end_of_the_service_ends_it(make, until):
    service, client = make(max_runs=1)
    assert client.post("/run", json={"train_code": padded("import time\ntime.sleep(600)")}).status_code == 202
    for body in ({"train_code": padded("print(1)")}, CONFIG, {}):
        answer = client.post("/run", json=body)
        assert (answer.status_code, answer.json().keys()) == (409, BUSY)
        assert (answer.json()["active_run_id"], answer.json()["status"]) == ("run-0", "running")
    running = client.get("/runs/run-0").json()
    assert running.keys() == RUNNING
    assert (running["status"], running["timeout_secs"]) == ("running", 210)
    state = client.get("/runs").json()
    assert state["active_run"].keys() == {"run_id", "status", "elapsed_secs"}
    assert (state["runs"], state["total_runs"], state["runs_remaining"]) == ([], 1, 0)
    service.close()
    run = client.get("/runs/run-0").json()
    assert (run["status"], run["error"]) == ("error", "interrupted")
    answer = client.post("/run", json=CONFIG)
    assert (answer.status_code, answer.json().keys()) == (429, USED_UP)


@linux
def test_a_program_finds_a_temporary_folder_the_seed_and_no_secrets(make, run, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    service, client = make()
    code = (
        "import json, os, sys\n"
        "json.dump({'cwd': os.getcwd(), 'files': sorted(os.listdir()), 'env': dict(os.environ),\n"
        "    'size': os.path.getsize('data/val.bin')}, sys.stderr)\n"
        'print(json.dumps({"val_bpb": 2.0, "total_steps": 3}))\n'
    )
    found = run(client, code)
    assert (found["status"], found["val_bpb"], found["total_steps"]) == ("completed", 2.0, 3)
    seen = json.loads(Path("runs/s/run-0/log.txt").read_text())
    assert seen["files"] == ["data", "prepare.py", "train.py"]
    assert not Path(seen["cwd"]).exists()
    assert seen["size"] == len(service.setting.data.val_split)
    assert "secret" not in json.dumps(seen["env"])
    place = seen["cwd"]
    expected = {"TORCH_SEED": "7", "MAX_SEQ_LEN": "32", "EVAL_TOKENS": "1024", "TIME_BUDGET": "0.3"}
    expected |= {"HOME": place, "TMPDIR": place, "DATA_DIR": f"{place}/data"}
    assert {name: seen["env"][name] for name in expected} == expected
    known = {*expected, *program.VARIABLES, "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
    others = {name for name in seen["env"] if not name.startswith(program.VARIABLES_OF)}
    assert others <= known | {"LC_CTYPE", "PWD", "SHLVL", "_"}
    check(json.loads(Path("runs/s/run-0/version_0/record.json").read_text()))
    assert "/run-0/version_0,s,run-0,completed" in Path("runs/ledger.csv").read_text()


SPAWN = """
import subprocess, sys
# A grandchild in a session of its own, whose parent has ended.
code = (
    "import subprocess; null = subprocess.DEVNULL;"
    "print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=null, stderr=null).pid)"
)
print(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout.decode(), file=sys.stderr)
"""


@linux
def test_all_that_a_program_has_started_ends_with_it(make, run, alive):
    _, client = make()
    found = run(client, SPAWN + "print('{\"val_bpb\": 2}')")
    assert found["status"] == "completed"
    assert not alive(int(found["logs"]))


@linux
@pytest.mark.parametrize("how", ["end", "close"])
def test_all_that_a_program_has_started_ends_with_the_service(folder, until, alive, how):
    job = ProgramJob(SPAWN + "import time; time.sleep(600)", folder / "run-0", Setting.of(RESOLVED), 600.0)
    pid = until(lambda: int(job.tail().strip() or 0))
    assert alive(pid)
    assert pid in supervisor.descendants(job.process.pid)
    getattr(job, how)()  # a service that is killed closes the lifeline, as `close` does
    assert job.process.wait(20) == 128 + signal.SIGKILL
    assert not alive(pid)
    if how == "end":
        assert job.wait().status == "interrupted"
        job.close()
    assert not job._place.exists()


@linux
@pytest.mark.parametrize(
    ("code", "limits", "status", "error"),
    [
        ("import time\ntime.sleep(600)", {"run_timeout": 0.4}, "timeout", "not done after 0.4 s"),
        (
            "import time\nx = bytearray(2**26)\ntime.sleep(600)",
            {"memory": Size(2**25)},
            "error",
            "it used more than 32MiB of memory, the limit of a run here",
        ),
        (
            "import subprocess\nwhile True: subprocess.Popen(['sleep', '600'])",
            {},
            "error",
            "it had more than 64 processes, the limit of a run here",
        ),
        (
            "n = 0\nwhile True:\n  open(f'{n % 20}.bin', 'ab').write(bytes(2**20)); n += n < 2000",
            {},
            "error",
            "its files had more than 256MiB, the limit of a run here",
        ),
        ("open('x', 'wb', 0).truncate(2**28 + 1)", {}, "error", "File too large"),
        ("x = [open('train.py') for _ in range(300)]", {}, "error", "Too many open files"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", {}, "error", "ended with exit status 137"),
        ("print('{\"val_bpb\": NaN}')", {}, "error", "the program printed no number as val_bpb: NaN"),
        ("print('done')", {}, "error", "the program printed no JSON object with val_bpb"),
        ("import sys\nprint('{\"val_bpb\": 2}')\nsys.exit(1)", {}, "completed", None),  # as in the challenge
    ],
    ids=["time", "memory", "processes", "folder", "file", "open files", "killed", "nan", "no result", "exit status"],
)
def test_the_limits_of_programs(make, run, monkeypatch, code, limits, status, error):
    monkeypatch.setattr(program, "SEARCH_SECONDS", 0.05)
    _, client = make(**limits)
    found = run(client, code)
    assert found["status"] == status
    assert found["error"] == error or error in found["error"]
    assert found["val_bpb"] == (2 if status == "completed" else None)
    assert found.keys() == (COMPLETED if status == "completed" else RUN)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ('log\n{"val_bpb": 2.5, "train_loss": 1.0, "total_steps": 9, "num_params_M": 0.1}\nmore', (2.5, 1.0, 9, 0.1)),
        ('{"val_bpb": 3}\n{"val_bpb": 2}\n{"loss": 1}\n[2]\n3', (2, None, None, None)),
        ('{"val_bpb": 2, "train_loss": "low", "total_steps": 3.0, "num_params_M": Infinity}', (2, None, 3, None)),
        ('{"val_bpb": "low"}', None),
        ('{"val_bpb": true}', None),
        ('{"val_bpb": 1e999}', None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_the_last_result_that_a_program_prints_counts(printed, expected):
    result, reason = read_result(printed)
    keys = ("val_bpb", "train_loss", "total_steps", "num_params_M")
    assert (None if result is None else tuple(result.get(key) for key in keys)) == expected
    assert bool(reason) == (expected is None)


def test_a_long_log_is_shortened_to_its_end(tmp_path):
    file = tmp_path / "log.txt"
    file.write_bytes(b"a" * program.KEPT_LOG_BYTES + b"end")
    program._shorten(file)
    assert (file.stat().st_size, file.read_bytes()[-3:]) == (program.KEPT_LOG_BYTES, b"end")


@linux
def test_an_interrupted_program_counts_when_the_service_starts_again(make):
    Path("runs/s/run-0").mkdir(parents=True)
    Path("runs/s/run-0.py").write_text("print(1)")
    service, client = make()
    run = client.get("/runs/run-0").json()
    assert (run["status"], run["error"]) == ("error", "the service ended while the program ran")
    assert (service.runs_remaining, service.next_run_id) == (2, "run-1")
