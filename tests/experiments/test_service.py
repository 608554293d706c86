"""The run service: its rules, the accepted configs, and real services with real runs and real HTTP.

A service takes seconds to start; there are two: one shared by tests, and one that is killed, restarted and ended.
"""

import contextlib
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from run_folders import make_run
from served import Served
from thinned import thinned

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
from fastapi.testclient import TestClient

from bytelm.config.text import BadText, read
from bytelm.config.untrusted_config import check_limit, check_resolved, check_written, shared_config
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.service.api import app
from bytelm.experiments.service.match import Busy, Service, Unusable, UsedUp
from bytelm.experiments.service.validation_time import training_seconds
from bytelm.program import main
from bytelm.runs import validations

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = {
    "model": {
        "gpt": {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32, "max_seq_len": 32},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 3e-3}},
    },
    "data": {"batch_size": 4},
    "trainer": {"accelerator": "cpu", "gradient_clip_val": 1.0},
    "time_budget": {"limit": "3 steps"},
}
ENDLESS = {**CONFIG, "time_budget": {"limit": "100M steps"}}
CORPUS = {
    "class_path": "Bytes",
    "init_args": {"path": "corpus.txt", "batch_size": 4, "seq_len": 32, "eval_bytes": 1024},
}
BASELINE = {**CONFIG, "data": CORPUS, "trainer": {**CONFIG["trainer"], "devices": 1}}


def data(name="Bytes", **options):
    """The resolved corpus, with other options."""
    init_args = {"path": "corpus.txt", "batch_size": 4, "seq_len": 32, "eval_bytes": 1024, "train_fraction": 0.9}
    return {"class_path": f"bytelm.data.corpora.{name}", "init_args": {**init_args, **options}}


RESOLVED = {
    "experiment": None,
    "seed_everything": 42,
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": None, "logger": None, "limit_val_batches": None},
    "model": {"gpt": {"class_path": "bytelm.gpt.GPT", "init_args": {"d_model": 16}}},
    "data": data(),
    "time_budget": {"limit": "3 steps"},
    "lr_schedule": {"class_path": "bytelm.callbacks.Constant", "init_args": {"warmup": "0 steps"}},
    "checkpoint": {"dirpath": None},
}


# Accepted configs


@pytest.mark.parametrize(
    "path", thinned(sorted(PROJECT.glob("configs/autoresearch/*.yaml")), 9), ids=lambda path: path.stem
)
def test_every_config_of_the_challenge_may_be_sent_as_it_is_printed(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bytelm"])
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(path), "--print_config=skip_default"])
    text = capsys.readouterr().out
    check_written(
        read(text, aliases=False),
        {**RESOLVED, "data": {"class_path": "bytelm.data.corpora.Shakespeare", "init_args": {}}},
        Path(),
    )


@pytest.mark.parametrize(
    "text",
    [
        "model: {gpt: {position: Rotary, attention: {class_path: SDPA, init_args: {qk_norm: RMSNorm}}}}",
        "model: {gpt: {position: bytelm.parts.position.Learned, position.std: 0.1}}",
        "model: {optimizer: torch.optim.AdamW, optimizer.betas: [0.9, 0.95]}",
        "model: {optimizer: {class_path: lion_pytorch.Lion, init_args: {lr: 1e-4}}}",
        "model.optimizer: bytelm.optim.MuonAdamW",
        "lr_schedule: {class_path: bytelm.callbacks.Cosine, init_args: {warmup: 5 %, until: .5h}}",
        "lr_schedule: {class_path: WarmupStableDecay, init_args: {decay: 12.5%, decay_shape: 1-sqrt}}",
        "time_budget: {limit: [1h30m, 300 Mtok, 2_000 steps], scope: run}",
        "divergence: {on_divergence: rewind}",
        "trainer: {precision: bf16-mixed, accelerator: cpu, val_check_interval: 0.5, deterministic: true}",
        "trainer.gradient_clip_val: null",
        "data: Bytes",
        "data: {class_path: bytelm.data.corpora.Bytes, init_args: {}}",
        "data: {class_path: Bytes, init_args: {batch_size: 8, order: shuffled, seed: 3}}",
        "data: {seq_len: 32, eval_bytes: 1024, train_fraction: 0.9}",
        "data.init_args.batch_size: 8",
        '{"seed_everything": "7", "model": {"gpt": {"d_model": 1.0e+1}}}',
    ],
)
def test_the_accepted_keys(text):
    check_written(read(text, aliases=False), RESOLVED, Path())


CLASSES = "parts of bytelm, torch.optim and lion_pytorch"
FOREIGN = {  # words that are rejected at every key
    "a module beside the service": "my_trap.Thing",
    "a function": "os.system",
    "a builtin": "builtins.exec",
    "a class of another package": "lightning.pytorch.callbacks.ModelSummary",
    "what a module of ours has imported": "bytelm.system.files.os.system",
    "a class that a module of ours has imported": "bytelm.experiments.job.subprocess.Popen",
    "the same, named shortly": "bytelm.cli.ModelCheckpoint",
    "a function of ours": "bytelm.cli.main",
    "a module of ours": "bytelm.experiments.job",
    "a class of ours that is no part, and starts processes": "bytelm.experiments.job.Job",
    "another": "bytelm.cli.BytelmCLI",
    "a name that looks like ours": "bytelm_trap.Thing",
    "what torch.optim has imported": "torch.optim.optimizer.torch.load",
    "what ours are made of": "bytelm.gpt.__class__",
    "a config within a text": "{class_path: my_trap.Thing}",
    "a list within a text": "[my_trap.Thing]",
    "an import path in other letters": "ﬁle.Thing",
    "an absolute path": "/etc/passwd",
    "a path from home": "~/secret",
    "a path upwards": "../secret",
    "a folder": "configs/more",
    "a file": "tiny.yaml",
    "a file without a dot": "notes",
    "standard input": "-",
    "an address": "http://localhost/x",
    "an environment variable": "${HOME}",
    "nothing": "",
    "several lines": "a\nb",
}


@pytest.mark.parametrize("key", ["model", "model.gpt.position", "lr_schedule.init_args.function", "data.order"])
@pytest.mark.parametrize("word", FOREIGN.values(), ids=FOREIGN)
def test_words_that_are_paths_are_rejected(word, key, folder):
    Path("notes").touch()
    with pytest.raises(ConfigError) as rejection:
        check_written({key: word}, RESOLVED, Path())
    assert str(rejection.value).startswith(f"{key}: {word!r} cannot be used; ")
    assert CLASSES in str(rejection.value) or "it is a file" in str(rejection.value)
    with pytest.raises(ConfigError):
        check_written({"model": {"gpt": {"norm": {"class_path": word}}}}, RESOLVED, Path())
    with pytest.raises(ConfigError):
        check_written({"time_budget": {"limit": ["3 steps", word]}}, RESOLVED, Path())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experiment: other", ["experiment: 'other'", "accepted here: model,"]),
        ("config: tiny", ["config: 'tiny'"]),
        ("ckpt_path: best", ["ckpt_path"]),
        ("checkpoint: {dirpath: out}", ["checkpoint.dirpath: 'out'"]),
        ("checkpoint: {}", ["checkpoint: {}"]),
        ("last_checkpoint: {every: 1 steps}", ["last_checkpoint.every"]),
        ("throughput.peak_flops: 1.0", ["throughput.peak_flops"]),
        ("unknown: 3", ["unknown: 3"]),
        ("trainer: words", ["trainer: 'words'", "as in the baseline"]),
        ("trainer: {default_root_dir: out}", ["trainer.default_root_dir: 'out'", "accepted of trainer here: prec"]),
        ("trainer: {limit_val_batches: 1}", ["trainer.limit_val_batches: 1"]),
        ("trainer: {callbacks: ModelSummary}", ["trainer.callbacks: 'ModelSummary'"]),
        ("trainer: {callbacks: []}", ["trainer.callbacks: []"]),
        ("trainer: {callbacks: {class_path: ModelSummary}}", ["trainer.callbacks.class_path: 'ModelSummary'"]),
        ("trainer: {logger: {}}", ["trainer.logger: {}"]),
        ("trainer: {logger: false}", ["trainer.logger: False"]),
        ("trainer.strategy: ddp", ["trainer.strategy: 'ddp'"]),
        ("trainer: {devices: 8}", ["trainer.devices: 8"]),
        ("trainer: {num_nodes: 2}", ["trainer.num_nodes: 2"]),
        ("trainer: {plugins: x, profiler: y}", ["trainer.plugins: 'x'"]),
        ("data: {path: words}", ["data.path: 'words'", "as in the baseline, the corpus too"]),
        ("data.init_args.path: words", ["data.init_args.path: 'words'"]),
        ("data: {init_args: {path: [words]}}", ["data.init_args.path: 'words'"]),
        ("data: {dict_kwargs: {path: words}}", ["data.dict_kwargs.path: 'words'"]),
        ("data: {url: words}", ["data.url: 'words'"]),
        ("data: Shakespeare", ["data: 'Shakespeare'", "accepted: Bytes, the baseline's corpus"]),
        ("data: {class_path: PythonSource}", ["data.class_path: 'PythonSource'", "accepted: Bytes"]),
        ("data: null", ["data: None", "accepted: Bytes"]),
        ("model: {__path__: words}", ["model: '__path__'", "a name"]),
        ("model: {3: words}", ["model: 3 ", "a name"]),
        ("model: {gpt: {a b: 3}}", ["model.gpt: 'a b'"]),
        ("trainer: {callbacks+: 3}", ["trainer: 'callbacks+'"]),
        ("model: {gpt: !!binary aGk=}", ["model.gpt: b'hi'"]),
        ("model: {gpt: !!set {a: null}}", ["model.gpt: {'a'}"]),
    ],
)
def test_keys_that_an_untrusted_config_may_not_set_are_rejected(text, said):
    with pytest.raises(ConfigError) as rejection:
        check_written(read(text), RESOLVED, Path())
    assert [part for part in said if part not in str(rejection.value)] == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr_schedule", {"class_path": "lightning.pytorch.callbacks.Timer"}, "lr_schedule.class_path: 'lightning."),
        ("model", {"loss": {"class_path": "bytelm.cli.BytelmCLI"}}, "model.loss.class_path: 'bytelm.cli.B"),
        ("model", {"optimizer": {"class_path": "torch.distributed.optim.X"}}, "model.optimizer.class_path: 'torch.d"),
        ("model", {"gpt": [{"class_path": "os.X"}]}, "model.gpt.class_path: 'os.X'"),
        ("data", data("PythonSource"), "data.class_path: 'bytelm.data.corpora.PythonSource' cannot be used; accepted"),
        ("data", data(eval_bytes=64), "data.eval_bytes: 64 cannot be used; accepted: 1024, as in the baseline"),
        ("data", data(seq_len=16), "data.seq_len: 16 cannot be used; accepted: 32"),
        ("data", data(path="other.txt"), "data.path: 'other.txt' cannot be used; accepted: 'corpus.txt'"),
        ("data", {**data(), "dict_kwargs": {"path": "x"}}, "data.dict_kwargs: {'path': 'x'} cannot be used"),
        ("trainer", {**RESOLVED["trainer"], "accelerator": "gpu"}, "trainer.accelerator: 'gpu' cannot be used; accep"),
    ],
)
def test_resolved_configs_are_checked_too(key, value, said):
    with pytest.raises(ConfigError) as rejection:
        check_resolved({**RESOLVED, key: value}, RESOLVED)
    assert str(rejection.value).startswith(said)


def test_a_config_with_options_of_its_own_means_the_same_score():
    trainer = {**RESOLVED["trainer"], "precision": "bf16-mixed"}
    own = {"data": data(batch_size=8, seed=3), "trainer": trainer, "seed_everything": 1}
    check_resolved({**RESOLVED, **own}, RESOLVED)


def test_the_rest_is_as_in_the_baseline():
    rest = shared_config(RESOLVED)
    assert set(rest) == {"experiment", "trainer", "data", "checkpoint"}
    assert rest["trainer"] == {"accelerator": "cpu", "devices": 1, "logger": None, "limit_val_batches": None}
    assert rest["data"]["class_path"] == RESOLVED["data"]["class_path"]
    assert set(rest["data"]["init_args"]) == {"path", "seq_len", "eval_bytes", "train_fraction"}
    assert "batch_size" in RESOLVED["data"]["init_args"]


def test_a_baseline_with_a_base_is_shown_as_one_config_that_may_be_sent(folder):
    Path("runs/s").mkdir(parents=True)
    Path("based.yaml").write_text("base: tiny.yaml\nmodel: {gpt: {n_layers: 2}}\n")
    service = Service("based.yaml", "s", max_runs=1, match_time=60, run_timeout=60)
    service._keep_baseline(RESOLVED)
    shown = read(service.baseline_text)
    assert shown["model"] == RESOLVED["model"]
    assert shown["data"]["init_args"] == {"batch_size": 4, "seq_len": 32, "eval_bytes": 1024, "train_fraction": 0.9}
    assert shown["trainer"] == {"accelerator": "cpu", "precision": None}
    check_written(shown, RESOLVED, Path())

    service.baseline = "tiny.yaml"
    service._keep_baseline(RESOLVED)
    assert service.baseline_text == Path("tiny.yaml").read_text()


def test_an_old_name_of_a_class_may_be_sent(folder):
    Path("runs/s").mkdir(parents=True)
    service = Service("tiny.yaml", "s", max_runs=1, match_time=60, run_timeout=60)
    service._keep_baseline(RESOLVED)
    sent = {"lr_schedule": {"class_path": "callbacks.Cosine"}}
    service._checker = SimpleNamespace(check=lambda *_: (None, Path("runs/s/.sent.yaml").read_text()))
    with pytest.raises(Unusable, match=r"bytelm\.callbacks\.Cosine"):
        service.submit(json.dumps(sent).encode())


@pytest.mark.parametrize(
    ("limit", "baseline", "accepted"),
    [
        *(("210s", "3 steps", None), ("211s", "3 steps", "210s"), (["1h", "60s"], "3 steps", None)),
        *(("5k steps", "3 steps", None), (["4m", "1 steps"], "3 steps", "210s"), ("1 PFLOP", "1 PFLOP", None)),
        *(("1001 TFLOP", "1 PFLOP", "1 PFLOP"), ("9 Mtok", "1 PFLOP", "1 PFLOP")),
        *(("180s", "180s", None), ("181s", "180s", "180s"), ("5k steps", "180s", "180s"), ("1m", ["180s", "1h"], None)),
        (["180s", "4 Mtok"], ["180s", "3 Mtok"], "3 Mtok"),
    ],
    ids=str,
)
def test_a_budget_is_no_larger_than_the_baselines_and_fits_into_the_time_of_a_run(limit, baseline, accepted):
    resolved = {**RESOLVED, "time_budget": {"limit": limit}}
    if accepted is None:
        check_limit(resolved, 210.0, {**RESOLVED, "time_budget": {"limit": baseline}})
        return
    with pytest.raises(ConfigError, match=rf"time_budget.limit: .* cannot be used; accepted: up to {accepted}"):
        check_limit(resolved, 210.0, {**RESOLVED, "time_budget": {"limit": baseline}})


def test_a_config_is_validated_as_the_baseline_is_unless_it_says_otherwise():
    trainer = {**RESOLVED["trainer"], "val_check_interval": None}
    assert shared_config({**RESOLVED, "trainer": trainer})["trainer"]["val_check_interval"] is None


@pytest.mark.parametrize(
    ("interval", "scope", "most"),
    [(None, "training", 210), ("auto", "training", 180), ("auto", "run", 210), ("5%", "training", 210)],
)
def test_the_time_of_validations_is_part_of_a_run(interval, scope, most):
    resolved = {
        **RESOLVED,
        "trainer": {**RESOLVED["trainer"], "val_check_interval": interval},
        "time_budget": {"limit": "3m", "scope": scope},
    }
    assert training_seconds(resolved, 210.0, None) == most


@pytest.mark.parametrize(
    ("interval", "limit", "batches", "left"),
    [
        ("5%", "3m", 1, 210 - 19),
        ("30s", "3m", 1, 210 - 5),
        ("10 steps", "100 steps", 1, 210 - 9),
        ("64 ktok", "3m", 1, 210 - 2),  # of 180,000 tokens at the baseline's speed
        ("500 steps", "3m", 2, 210 - 2),  # of 1,406 steps of two batches with 64 tokens
        (1000, "3m", 1, 210 - 2),
        (0.5, "3m", 1, 210),
        ("1%", "3m", 1, None),
        ("1 steps", "3m", 1, None),
    ],
)
def test_validations_take_the_time_that_the_baselines_took(tmp_path, interval, limit, batches, left):
    for step in (1, 2):
        validations.append(tmp_path, validations.of(0.5 * step, step, 64 * step, 1.0, {}))
    times = {"total_time_secs": 190.0, "training_time_secs": 180.0, "startup_time_secs": 8.0}
    baseline = SimpleNamespace(folder=tmp_path, record={**times, "tokens_per_sec": 1000.0})  # 1 s for each validation
    resolved = {
        "trainer": {"val_check_interval": interval, "accumulate_grad_batches": batches},
        "time_budget": {"limit": limit, "scope": "training"},
        "data": {"init_args": {"batch_size": 4, "seq_len": 16}},
    }
    if left is not None:
        assert training_seconds(resolved, 210.0, baseline) == left
        return
    with pytest.raises(ConfigError, match=r"val_check_interval: .* validations of about 1s do not fit, .* into 210s"):
        training_seconds(resolved, 210.0, baseline)


def test_a_few_aliases_that_stand_for_endless_values_are_rejected():
    lines = ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 20))]
    with pytest.raises(BadText, match=r"line 2: '\*a0' is an alias"):
        read("\n".join(lines), aliases=False)


# The rules


@pytest.fixture
def make(folder, monkeypatch):
    """Opens services whose Checker accepts every config as equal to the baseline, and which train nothing."""
    made = []
    monkeypatch.setattr(Checker, "check", lambda checker, options, seconds=None: (RESOLVED, ""))

    def make(max_runs=2, match_time=60.0, run_timeout=10.0):
        made.append(Service("tiny.yaml", "s", max_runs, match_time, run_timeout))
        made[-1].open(score_baseline=False)
        return made[-1]

    yield make
    for service in made:
        service.close()


def test_the_match_is_over_when_its_time_is_whoever_runs_it(make):
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/match.json").write_text('{"started_at": "2020-01-01T00:00:00.000+00:00"}')
    service = make()
    assert (service.match_time_remaining, service.runs_remaining) == (0.0, 2)
    with pytest.raises(UsedUp, match="the match is over: its 60s are used up"):
        service.check_free()
    with pytest.raises(UsedUp):
        service.submit(b"seed_everything: 1")


def test_the_match_begins_with_the_first_run(make):
    service = make(match_time=60.0)
    assert service.match_time_remaining == 60.0
    assert service.active is service.best is None
    assert service.runs() == []


def test_runs_that_were_accepted_count_also_if_they_never_began(make):
    Path("runs/s/run-0/version_0").mkdir(parents=True)
    for name in ("run-0.yaml", "run-1.yaml", "run-x.yaml", "baseline.txt"):
        Path("runs/s", name).write_text("{}")
    service = make(max_runs=3)
    assert [run["run_id"] for run in service.runs()] == ["run-0", "run-1"]
    assert {run["status"] for run in service.runs()} == {"interrupted"}
    assert "before the run had begun" in service.report("run-1", log=True)["reason"]
    assert service.runs_remaining == 1
    assert service.report("run-2") is None
    service.max_runs = 2
    with pytest.raises(UsedUp, match="all 2 runs are used up"):
        service.check_free()


def test_where_there_is_no_val_bpb_runs_are_ranked_and_shown_by_val_loss(make):
    losses = {"baseline": 5.5, "run-0": 5.25, "run-1": 5.0, "run-2": 5.125}
    for at, (name, loss) in enumerate(losses.items()):
        make_run(f"s/{name}", None, at=at, val_loss=loss)
        Path(f"runs/s/{name}/version_0/checkpoints").mkdir()
        if name != "baseline":
            Path(f"runs/s/{name}.yaml").write_text("{}")
    service = make(max_runs=5)
    assert (service.best.experiment, service.best.score) == ("run-1", 5.0)
    service._drop_checkpoints()
    assert [path.parts[2] for path in sorted(Path("runs/s").rglob("checkpoints"))] == ["baseline", "run-1"]

    client = TestClient(app(service), base_url="http://127.0.0.1")
    state = client.get("/runs").json()
    assert state["best"] == {"run_id": "run-1", "val_loss": 5.0}
    assert [(run["val_bpb"], run["val_loss"]) for run in state["runs"]] == [(None, 5.25), (None, 5.0), (None, 5.125)]
    assert [run["decision"] for run in state["runs"]] == ["keep", "keep", "discard"]
    assert client.get("/baseline").json()["val_loss"] == 5.5


def test_a_baseline_with_val_loss_alone_has_a_score_and_is_not_trained_again(make):
    make().close()
    make_run("s/baseline", None, val_loss=5.5)
    service = Service("tiny.yaml", "s", 2, 60.0, 10.0)
    with service:
        service.open()
        assert service.active is None


def test_where_there_is_val_bpb_a_list_shows_it_alone(make):
    make_run("s/run-0", 2.0, val_loss=1.4)
    Path("runs/s/run-0.yaml").write_text("{}")
    client = TestClient(app(make()), base_url="http://127.0.0.1")
    state = client.get("/runs").json()
    assert state["best"] == {"run_id": "run-0", "val_bpb": 2.0}
    assert list(state["runs"][0]) == [
        *("run_id", "status", "decision", "val_bpb", "total_steps", "num_params_M", "reason"),
    ]
    assert client.get("/runs/run-0").json()["val_loss"] == 1.4


def test_a_service_waits_for_a_run_of_one_that_was_killed(make, at_work):
    process = at_work(Path("runs/s/run-0/log.txt"))
    ended = []

    def end():
        ended.append(True)
        process.kill()

    threading.Timer(1.0, end).start()
    make()
    assert ended


def test_a_study_has_one_service_and_one_baseline(make, monkeypatch):
    service = make()
    with pytest.raises(StorageError, match="another service works there"):
        make()
    service.close()
    monkeypatch.setattr(
        Checker, "check", lambda checker, options, seconds=None: ({**RESOLVED, "seed_everything": 1}, "")
    )
    with pytest.raises(ConfigError, match=r"baseline: 'tiny.yaml' cannot be used; the study began with"):
        make()


def test_of_two_configs_that_come_at_once_one_is_looked_at(make, monkeypatch):
    service = make()
    looking, go_on = threading.Event(), threading.Event()

    def check(checker, options, seconds=None):
        looking.set()
        go_on.wait(10)
        return None, "it cannot run"

    monkeypatch.setattr(Checker, "check", check)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.submit, b"seed_everything: 1")
        assert looking.wait(10)
        with pytest.raises(Busy, match="another config is being checked"):
            service.submit(b"seed_everything: 2")
        go_on.set()
        with pytest.raises(Unusable, match="it cannot run"):
            first.result()
    service.check_free()
    assert (service.runs_remaining, service.match_time_remaining) == (2, 60.0)


def test_a_config_that_cannot_be_built_in_time_is_rejected(make, monkeypatch):
    service = make()
    monkeypatch.setattr(
        Checker, "check", lambda checker, options, seconds=None: (None, f"it takes more than {seconds} s")
    )
    with pytest.raises(Unusable, match=r"it takes more than 60.0 s"):
        service.submit(b"model: {gpt: {n_layers: 1_000_000}}")
    service.check_free()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--host", "0.0.0.0"], 2, ["host: '0.0.0.0'", "127.0.0.1", "BYTELM_TOKEN"]),
        (["--port", "70000"], 2, ["port: 70000"]),
        (["--match_time", "3 steps"], 2, ["match_time: '3 steps'", "a time"]),
        (["--run_timeout", "0s"], 2, ["run_timeout: '0s'", "a time"]),
        (["--max_runs", "0"], 2, ["max_runs", "above 0"]),
        (["--study", "../s"], 2, ["study: '../s'", "runs/"]),
        (["--unknown", "3"], 2, ["unknown: unknown key"]),
        (["--study", "in_the_way"], 5, ["study: 'runs/in_the_way' cannot be used"]),
    ],
)
def test_options_that_cannot_work_are_rejected_in_one_line(options, status, said, folder, capsys, monkeypatch):
    monkeypatch.delenv("BYTELM_TOKEN", raising=False)
    Path("runs").mkdir()
    Path("runs/in_the_way").touch()
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--baseline", "tiny.yaml", "--port", "0", *options])
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bytelm: error: ")
    assert [part for part in said if part not in line] == [], line


# Real services


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A service whose baseline has a score; `early` is its answer to a config that arrived before the score."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "my_trap.py").write_text("open('trapped', 'w').close()\n\n\nclass Thing:\n    pass\n")
    (folder / "notes").write_text("{}")
    served = Served(folder, baseline=BASELINE)
    served.early = served.post(CONFIG)
    served.record("baseline")
    yield served
    assert served.end() == 128 + signal.SIGTERM


@pytest.fixture
def idle(shared):
    """The same service, while it trains nothing."""
    shared.wait_until(lambda: shared.get("/runs")["active"] is None)
    return shared


def test_the_baseline_is_trained_first_and_costs_no_run(shared):
    assert shared.early.status_code == 409
    assert shared.early.json() == {"detail": "baseline is being trained"}
    baseline = shared.get("/baseline")
    assert yaml.safe_load(baseline["text"]) == BASELINE
    assert baseline["config"]["data"] == CORPUS
    assert (baseline["run_id"], baseline["status"], baseline["total_steps"]) == ("baseline", "completed", 3)
    assert baseline["val_bpb"] > 0
    assert baseline["num_params_M"] > 0
    assert "baseline" not in [run["run_id"] for run in shared.get("/runs")["runs"]]


@pytest.mark.parametrize("form", ["YAML, whole", "JSON, a difference from the baseline"])
def test_a_config_is_trained_while_others_wait(idle, form):
    before = idle.get("/runs")
    answer = idle.post(yaml.safe_dump(CONFIG) if "whole" in form else {"base": "baseline", "seed_everything": 42})
    assert answer.status_code == 202
    run_id = f"run-{len(before['runs'])}"
    remaining = before["runs_remaining"] - 1
    told = answer.json()
    assert (told["run_id"], told["status"], told["runs_remaining"]) == (run_id, "running", remaining)
    assert 0 < told["match_time_remaining_secs"] <= 10_800

    other = idle.post(CONFIG)
    assert (other.status_code, other.json()) == (409, {"detail": f"{run_id} is being trained"})
    during = idle.get("/runs")
    assert during["active"]["run_id"] == run_id
    assert during["runs"][-1]["status"] == "running"
    now = idle.get(f"/runs/{run_id}")
    assert (now["status"], now["val_bpb"]) == ("running", None)
    assert now["elapsed_secs"] > 0

    record = idle.record(run_id)
    assert record["status"] == "completed"
    assert record["decision"] in ("keep", "discard")
    assert record["val_bpb"] == pytest.approx(idle.get("/baseline")["val_bpb"], abs=1e-3)  # the experiment is the same
    assert "val_bpb: " in record["log"]
    folder = idle.folder / "runs" / "service"
    kept = json.loads((folder / run_id / "version_0" / "record.json").read_text())
    checkpoint = kept.pop("checkpoint")
    assert {key: record[key] for key in kept} == kept
    is_best = idle.get("/runs")["best"]["run_id"] == run_id
    assert record["checkpoint"] == (checkpoint if is_best else None)  # only the weights of the best run are kept
    assert (idle.folder / checkpoint).exists() == is_best
    assert yaml.safe_load((folder / f"{run_id}.yaml").read_text())["data"]["init_args"]["path"] == "corpus.txt"
    assert f"/{run_id}/version_0" in (idle.folder / "runs" / "ledger.csv").read_text()
    after = idle.get("/runs")
    assert (after["active"], after["runs_remaining"], len(after["runs"])) == (None, remaining, len(before["runs"]) + 1)
    assert after["best"]["val_bpb"] == min(run["val_bpb"] for run in after["runs"])


MODEL = "model:\n  gpt: {d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 32}\n"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("model: {gpt", 400, ["line 1"]),
        ("model: {}\nmodel: {}\n", 400, ["line 2", "'model'", "twice"]),
        ("- model\n- data\n", 400, ["not a mapping"]),
        ("hello", 400, ["not a mapping"]),
        ("# nothing\n", 400, ["empty"]),
        (b"experiment: \xff\xfe", 400, ["UTF-8"]),
        ("model: &m {gpt: {}}\ndata: *m\n", 400, ["line 2", "alias"]),
        ("a: " + "[" * 100 + "]" * 100, 400, ["nested too deeply"]),
        pytest.param("#" * 100_001, 413, ["100000 bytes"], id="large"),
        pytest.param("#" * 3_000_000, 413, ["100000 bytes"], id="huge"),
        pytest.param("#" * 100_000, 400, ["empty"], id="as large as may be"),
        ("model.gpt: {d_model: 16, n_heads: 3}", 422, ["n_heads: 3 cannot be used", "divisors of d_model"]),
        ("model: {gpt: {d_modle: 16}}", 422, ["d_modle", "unknown key"]),
        ("model: {gpt: {max_seq_len: 16}}", 422, ["seq_len"]),
        (f"{MODEL}  optimizer: {{class_path: AdamW, init_args: {{lr: -1.0}}}}", 422, ["model.optimizer", "-1.0"]),
        ("lr_schedule: {class_path: FromFunction, init_args: {function: os.system}}", 422, ["'os.system'", CLASSES]),
        ("lr_schedule: {class_path: FromFunction, init_args: {function: print}}", 422, ["print"]),
        ("lr_schedule: lightning.pytorch.callbacks.Timer", 422, ["lr_schedule", CLASSES]),
        ("lr_schedule: ModelSummary", 422, ["ModelSummary"]),
        ("model: {loss: exit}", 422, ["exit"]),
        ("trainer: {callbacks: [ModelSummary]}", 422, ["trainer.callbacks"]),
        ("trainer: {callbacks: my_trap.Thing}", 422, ["trainer.callbacks"]),
        ("model: {gpt: {position: my_trap.Thing}}", 422, ["'my_trap.Thing'"]),
        ("model: {gpt: {norm: {class_path: my_trap.Thing}}}", 422, ["'my_trap.Thing'"]),
        ("model: {gpt: '{norm: my_trap.Thing}'}", 422, [CLASSES]),
        ("lr_schedule: {class_path: FromFunction, init_args: {function: my_trap.Thing}}", 422, ["'my_trap.Thing'"]),
        ("model: {optimizer: {class_path: AdamW, dict_kwargs: {x: my_trap.Thing}}}", 422, ["'my_trap.Thing'"]),
        ("data: my_trap.Thing", 422, ["'my_trap.Thing'"]),
        (
            f"{MODEL}  optimizer: {{class_path: torch.optim.Optimizer, init_args: {{defaults: {{a: "
            "{class_path: bytelm.experiments.job.Job, init_args: {options: [], experiment: a0}}}}}",
            422,
            ["'bytelm.experiments.job.Job'"],
        ),
        ("a: !!timestamp b", 400, ["not of its type"]),
        ("seed_everything: 0x" + "f" * 4_000, 400, ["digits"]),
        (f"{MODEL}trainer: {{accumulate_grad_batches: 0}}", 422, ["trainer.accumulate_grad_batches: 0"]),
        (f"{MODEL}trainer: {{val_check_interval: 0}}", 422, ["trainer.val_check_interval: 0"]),
        ("model: /tmp/x.yaml", 422, ["model: '/tmp/x.yaml'", CLASSES]),
        ("model: notes", 422, ["model"]),
        ("data: {class_path: Bytes, init_args: {path: corpus.txt}}", 422, ["data.init_args.path", "the corpus too"]),
        (MODEL + "data: {eval_bytes: 64}", 422, ["data.eval_bytes: 64", "accepted: 1024"]),
        (MODEL + "data: {seq_len: 16}", 422, ["data.seq_len: 16", "accepted: 32"]),
        ("data: Shakespeare", 422, ["accepted: Bytes"]),
        (MODEL + "trainer: {accelerator: gpu}", 422, ["trainer"]),
        ("trainer: {limit_val_batches: 1}", 422, ["trainer.limit_val_batches"]),
        ("checkpoint: {dirpath: out}", 422, ["checkpoint.dirpath"]),
        ("experiment: other", 422, ["experiment: 'other'"]),
        ("base: tiny.yaml", 422, ["base: 'tiny.yaml'", "`base: baseline`"]),
        ("base: baseline\nmodel: {gpt: {d_modle: 16}}", 422, ["d_modle: unknown key; did you mean d_model?"]),
        ("base: baseline\ncheckpoint: {dirpath: out}", 422, ["checkpoint.dirpath"]),
        ("model.optimizer.lr: 0.1", 422, ["model.gpt: it is required; accepted here: a whole", "`base: baseline`"]),
        (MODEL + "time_budget: {limit: 400s}", 422, ["time_budget.limit: '400s'", "up to 180s"]),
        (MODEL + "time_budget: {limit: 0s}", 422, ["time_budget.limit"]),
    ],
)
def test_invalid_configs_are_rejected_in_one_line_and_cost_no_run(idle, body, status, said):
    before = idle.get("/runs")
    answer = idle.post(body)
    assert answer.status_code == status, answer.text
    line = answer.json()["detail"]
    assert [part for part in said if part not in line] == [], line
    assert "\n" not in line
    assert ".sent.yaml" not in line
    after = idle.get("/runs")
    assert (after["runs"], after["runs_remaining"]) == (before["runs"], before["runs_remaining"])
    assert not (idle.folder / "trapped").exists()


def test_a_body_that_is_too_large_is_not_read_to_its_end(idle):
    parts = iter([b"#" * 10_000] * 10_000)
    # The connection may be closed while the rest is being sent, and the answer may be lost.
    with contextlib.suppress(httpx.TransportError):
        assert idle.post(parts).status_code == 413
    assert len(list(parts)) > 5_000
    assert idle.client.get("/health").status_code == 200


def test_unknown_paths_are_not_found(shared):
    assert shared.client.get("/runs/run-1000").status_code == 404
    assert shared.client.get("/runs/..%2f..%2fcorpus.txt").status_code == 404
    assert shared.client.get("/elsewhere").status_code == 404


def test_the_service_describes_itself(shared):
    assert shared.get("/health")["status"] == "ok"
    assert shared.client.get("/docs").status_code == 200
    described = shared.get("/openapi.json")
    endpoints = {(path, method): page for path, pages in described["paths"].items() for method, page in pages.items()}
    assert set(endpoints) == {
        *(("/health", "get"), ("/baseline", "get"), ("/run", "post"), ("/runs", "get"), ("/runs/{run_id}", "get"))
    }
    assert all(page["summary"] for page in endpoints.values())
    post = endpoints["/run", "post"]
    assert set(post["requestBody"]["content"]) == {"application/yaml", "application/json"}
    assert set(post["responses"]) == {"202", "400", "408", "409", "413", "422", "429", "507"}


def test_pages_of_other_hosts_cannot_use_it(idle):
    assert idle.client.get("/runs", headers={"Host": "evil.example"}).status_code == 400
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert idle.post(CONFIG, headers={"Origin": origin}).status_code == 403
    assert idle.post("hello", headers={"Origin": idle.url}).status_code == 400
    assert idle.get("/runs", headers={"Host": "localhost"})["active"] is None


def test_a_second_service_in_its_folder_is_rejected(shared, monkeypatch, capsys):
    monkeypatch.chdir(shared.folder)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--baseline", "baseline.yaml", "--port", "0"])
    assert ended.value.code == StorageError.exit_status
    assert "another service works there" in capsys.readouterr().err


@pytest.fixture
def start(tmp_path):
    """Starts services of three runs, one after another, in the same folder, with a token."""
    started = []

    def start(*options):
        options = ["--score_baseline", "false", "--max_runs", "3", *options]
        started.append(Served(tmp_path, *options, baseline=BASELINE, BYTELM_TOKEN="open sesame"))
        return started[-1]

    yield start
    for served in started:
        served.end(signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.slow
def test_a_service_that_is_killed_leaves_no_process_and_continues_where_it_was(start, tmp_path, alive, until):
    served = start()

    # the token
    for path in ("/runs", "/baseline", "/runs/run-0", "/docs", "/openapi.json", "/elsewhere"):
        for shown in ("", "Bearer wrong", "Basic open sesame", "open sesame"):
            answer = httpx.get(served.url + path, headers={"Authorization": shown} if shown else {}, trust_env=False)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert httpx.post(f"{served.url}/run", content="hello", trust_env=False).status_code == 401
    assert httpx.get(f"{served.url}/health", trust_env=False).status_code == 200
    assert served.get("/baseline")["status"] == "not scored"
    assert served.get("/baseline")["val_bpb"] is None

    # killed
    assert served.post(ENDLESS).status_code == 202
    folder = tmp_path / "runs" / "service"
    served.wait_until((folder / "run-0" / "version_0" / "config.yaml").exists)
    processes = served.children()
    assert len(processes) >= 2  # the run and the Checker
    served.end(signal.SIGKILL)
    until(lambda: not any(map(alive, processes)), 40)
    began = json.loads((folder / "match.json").read_text())

    # resumed
    served = start("--run_timeout", "6s")
    state = served.get("/runs")
    assert [(run["run_id"], run["status"]) for run in state["runs"]] == [("run-0", "interrupted")]
    assert (state["active"], state["best"], state["runs_remaining"]) == (None, None, 2)
    assert 0 < state["match_time_remaining_secs"] < 10_800
    assert served.get("/runs/run-0")["decision"] == "discard"

    # a run that hangs
    answer = served.post(ENDLESS)
    assert (answer.status_code, answer.json()["run_id"]) == (202, "run-1")
    record = served.record("run-1", 60)
    assert (record["status"], record["reason"]) == ("timeout", "not done after 6 s")
    assert json.loads((folder / "run-1" / "version_0" / "record.json").read_text())["status"] == "timeout"

    # the last one, and the end
    assert served.post(ENDLESS).json()["run_id"] == "run-2"
    answer = served.post(CONFIG)
    assert (answer.status_code, answer.json()) == (429, {"detail": "all 3 runs are used up"})
    processes = served.children()
    assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM
    until(lambda: not any(map(alive, processes)))
    assert json.loads((folder / "run-2" / "version_0" / "record.json").read_text())["status"] == "interrupted"
    assert json.loads((folder / "match.json").read_text()) == began
    said = served.errors.read_text()
    assert "Traceback" not in said, said
    assert "interrupted by SIGTERM" in said
