"""Invalid input ends the program with one line and its own exit status, and leaves no files behind."""

import errno
import importlib.util
import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thinned import thinned

from bytelm.callbacks import Schedules
from bytelm.cli import build
from bytelm.errors import ConfigError, DataError, RunError, StorageError
from bytelm.program import fail

NOBODY = 65_534


@pytest.fixture(autouse=True)
def only_the_input(folder):
    """A rejection creates, changes or removes no file."""

    def content():
        paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
        return {path: path.read_bytes() if path.is_file() else None for path in paths}

    def unchanged():
        assert content() == before

    before = {}
    unchanged.since = lambda: before.update(content())
    return unchanged


@pytest.fixture
def rejects(rejected, only_the_input):
    """Checks that options are rejected, as `rejected` does, with this message, and that no file has changed."""

    def rejects(*options, said, status=ConfigError.exit_status):
        only_the_input.since()
        line = rejected(*options, status=status)
        assert line.startswith("bytelm: error: ")
        assert [part for part in said if part not in line] == [], line
        only_the_input()
        assert not Path("runs").exists()

    return rejects


@pytest.fixture
def as_nobody(folder, monkeypatch):
    """A working folder that everybody can access, and a context in which file permissions apply, also to root."""
    reachable = Path(tempfile.mkdtemp())
    for name in ("tiny.yaml", "corpus.txt"):
        shutil.copy(name, reachable)
    reachable.chmod(0o755)
    monkeypatch.chdir(reachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(reachable))

    @contextmanager
    def as_nobody():
        if os.geteuid() != 0:
            yield
            return
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)

    yield as_nobody
    for path in [reachable, *reachable.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(reachable)


# Configs


@pytest.mark.parametrize(
    ("text", "said"),
    thinned(
        [
            ("a: [1, 2\nb: }\n", ["line 2"]),
            ("time_budget: {limit: 3 steps\n", ["line 2"]),
            ("model: 'gpt\n", ["line 2"]),
            ("model:\n\tgpt: {}\n", ["line 2", r"'\t'"]),
            ("model:\n  gpt: {}\n data: 3\n", ["line 3"]),
            ("model: *missing\n", ["line 1", "alias"]),
            ("model: @gpt\n", ["line 1"]),
            ("model: {}\n---\ndata: {}\n", ["line 2", "document"]),
            ("experiment: a\nexperiment: \x01\n", ["line 2", "0x1"]),
            ("experiment: !!python/object:os.system x\n", ["line 1", "tag"]),
            ("seed_everything: !!int abc\n", ["abc"]),
            (b"experiment: \xff\xfe\n", ["UTF-8"]),
            ("experiment: a\n".encode("utf-16"), ["UTF-8"]),
            # equal keys
            ("experiment: a\nseed_everything: 3\nexperiment: b\n", ["line 3", "'experiment'", "twice"]),
            ("model:\n  gpt:\n    d_model: 16\n    n_heads: 2\n    d_model: 32\n", ["line 5", "'d_model'", "twice"]),
            ("trainer: {callbacks: [{class_path: Timer, class_path: Timer}]}\n", ["line 1", "'class_path'", "twice"]),
            ("experiment: a\n'experiment': b\n", ["line 2", "'experiment'", "twice"]),
            # not a mapping
            ("- model\n- data\n", ["['model', 'data'] is not a mapping"]),
            ("hello\n", ["'hello", "not a mapping"]),
            ("3\n", ["3 is not a mapping"]),
            # structures that cannot be loaded
            ("model: &model {gpt: *model}\n", ["line 1", "'*model' contains itself"]),
            ("model: &model\n  <<: *model\n", ["line 2", "'*model' contains itself"]),
            ("? [1, 2]\n: 3\n", ["line 1", "key"]),
            ("a: " + "[" * 100_000 + "]" * 100_000, ["line 1", "nested too deeply", "50"]),
            ("\n" + "{a: " * 1_000 + "}" * 1_000, ["line 2", "nested too deeply", "50"]),
        ],
        10,
        several=True,
    ),
)
def test_a_file_that_is_no_config_is_rejected_by_file_and_line(rejects, text, said):
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    rejects("--config", "bad.yaml", said=["config: 'bad.yaml' cannot be used", *said])


@pytest.mark.parametrize(
    ("text", "said"),
    thinned(
        [
            ("foo: {}\n", ["foo: unknown key", "trainer"]),
            ("model: {gtp: {}}\n", ["model.gtp: unknown key", "did you mean gpt?"]),
            ("model.gtp: {}\n", ["model.gtp: unknown key"]),
            ("time_budget: {limits: {}}\n", ["time_budget.limits: unknown key", "limit"]),
            ("3: x\n", ["3: unknown key"]),
            ("null: x\n", ["None: unknown key"]),
            ("model: {3: x}\n", ["model.3: unknown key"]),
            ("model: {gpt: {3: x}}\n", ["string", "3"]),
            ("data: {1.5: 3}\n", ["data", "1.5"]),
            ("'': 3\n", ["''"]),
            ("a b: 3\n", ["a b: unknown key"]),
            ("config: {}\n", ["config: unknown key"]),
            ("config: tiny.yaml\n", ["config: unknown key"]),
            ("help: 3\n", ["help: unknown key"]),
            ("print_config: 3\n", ["print_config: unknown key"]),
            ("fit: {model: {}}\n", ["fit: unknown key"]),
            ("model: [1, 2]\n", ["model: [1, 2] cannot be used", "gpt, loss, optimizer"]),
            ("model: nowhere.yaml\n", ["model"]),
            ("model: 3\n", ["model: 3 cannot be used", "gpt, loss, optimizer"]),
            ("time_budget: [3 steps]\n", ["time_budget: ['3 steps'] cannot be used", "limit"]),
            ("trainer: {max_steps: many}\n", ["trainer.max_steps", "'many'", "int"]),
            ("seed_everything: x\n", ["seed_everything", "'x'", "a whole number"]),
            ("data: {class_path: [1]}\n", ["data", "[1]"]),
            ("data: {class_path: Bytes, init_args: [3]}\n", ["data", "Bytes"]),
            ("model: {gpt: {position: {class_path: 3}}}\n", ["model.gpt", "position"]),
            ("time_budget: {limit: {a: 3}}\n", ["time_budget.limit", "180s"]),
        ],
        12,
        several=True,
    ),
)
def test_a_config_with_bad_keys_or_values_is_rejected(rejects, text, said):
    Path("bad.yaml").write_text(text)
    rejects("--config", "bad.yaml", said=said)


NOTHING = ["", "\n\n", "# only a comment\n", "null\n", "---\n", "{}\n", "model: {}\n", "model:\n", "{model, trainer}\n"]
SECTION = (
    "divergence:\n  # on_divergence: rewind\ntrainer:\nlr_schedule:\nlast_checkpoint: {}\nmodel:\n  # compile: true\n"
    "schedules:\n  # weight_decay: Constant\n"
)
OPTIONS = "data:\n  class_path: Bytes\n  init_args:\n    # train_fraction: 0.5\n"


@pytest.mark.parametrize("text", thinned([*NOTHING, SECTION, OPTIONS], 5))
def test_a_config_or_a_section_that_is_empty_changes_nothing(folder, text, capsys):
    Path("empty.yaml").write_text(text)
    cli = build(["--config", "tiny.yaml", "--config", "empty.yaml"], run=False)
    assert cli.model.gpt.d_model == 16
    is_noted = "note: config: 'empty.yaml' is empty and changes nothing" in capsys.readouterr().err
    assert is_noted == (":" not in text and "{m" not in text)


def test_a_config_may_use_anchors_merges_dotted_keys_and_a_byte_order_mark(folder):
    text = """\ufeff
model:
  gpt: {<<: &width {d_ff: 48}, n_layers: 2, dropout: &share 0.5}
  gpt.head_bias: true
data: {train_fraction: *share}
trainer: {callbacks+: {class_path: LambdaCallback}, max_epochs: -1}
"""
    Path("more.yaml").write_text(text)
    cli = build(["--config", "tiny.yaml", "--config", "more.yaml"], run=False)
    assert [len(cli.model.gpt.blocks), cli.model.gpt.blocks[0].feedforward.up.out_features] == [2, 48]
    assert (cli.model.gpt.head.bias is not None, cli.datamodule.train_fraction) == (True, 0.5)
    assert "LambdaCallback" in [type(callback).__name__ for callback in cli.trainer.callbacks]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("nowhere.yaml", ["nowhere.yaml' cannot be used; there is no such file and no shipped config"]),
        ("quikstart", ["'quikstart' cannot be used", "did you mean quickstart?"]),
        (".", ["cannot be used", "it is a directory"]),
        ("dangling.yaml", ["dangling.yaml' cannot be used", "no such file"]),
        pytest.param(
            "/proc/self/mem",  # can be opened, but not read from its beginning
            ["config: '/proc/self/mem' cannot be used", "Input/output error"],
            marks=pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux"),
        ),
        ("", ["config", "empty"]),
        ("{seed_everything: 1, seed_everything: 2}", ["config", "'seed_everything'", "twice"]),
        ("{seed_everything: 1", ["config", "line 1", "'}'"]),
    ],
)
def test_a_config_that_cannot_be_read_is_named(rejects, config, said):
    Path("dangling.yaml").symlink_to("gone.yaml")
    rejects("--config", config, said=said)


def test_a_config_without_read_permission_is_named(as_nobody, rejected):
    Path("secret.yaml").write_text("{}")
    Path("secret.yaml").chmod(0)
    with as_nobody():
        line = rejected("--config", "secret.yaml")
    assert "secret.yaml' cannot be used" in line
    assert "not readable" in line


MODULES = {
    "my_syntax": ("def (:\n", "SyntaxError: invalid syntax (my_syntax.py, line 1)"),
    "my_missing": ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "my_import": ("from os import nothing_of_that_name\n", "ImportError: cannot import name 'nothing_of_that_name'"),
    "my_exception": ("raise RuntimeError('out\\n\\nof order')\n", "RuntimeError: out of order"),
    "my_exit": ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    "my_empty": ("", "module 'my_empty' has no attribute 'A'"),
    "my_value": ("A = 3\n", ""),
    "my_packages.inner": ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
}
KEYS = ["model.gpt.position", "model.gpt", "model.loss", "model.optimizer", "data", "lr_schedule", "trainer.callbacks"]


@pytest.mark.parametrize("key", thinned(KEYS, 3))
@pytest.mark.parametrize("module", [name for name in MODULES if name != "my_value"])
def test_a_module_that_fails_while_it_is_imported_is_named_with_key_and_reason(rejects, key, module):
    text, reason = MODULES[module]
    path = Path(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    rejects(f"--{key}", f"{module}.A", said=[f"{key}: '{module}.A' cannot be used", reason, "import path"])


@pytest.mark.parametrize(
    "spec",
    [
        "{class_path: my_exception.A}",
        "{class_path: my_exception.A, init_args: {x: 3}}",
    ],
)
@pytest.mark.parametrize("key", thinned(KEYS[:-1], 3))
def test_a_failing_module_in_a_mapping_is_named(rejects, key, spec):
    Path("my_exception.py").write_text(MODULES["my_exception"][0])
    rejects(f"--{key}", spec, said=[f"{key}: 'my_exception.A' cannot be used", "RuntimeError: out of order"])


@pytest.mark.parametrize("path", ["my_value.A", "my_value.", ".A", "my-value.A"])
def test_an_import_path_that_leads_to_no_part_is_rejected(rejects, path):
    Path("my_value.py").write_text(MODULES["my_value"][0])
    rejects("--model.gpt.position", path, said=["model.gpt.position", f"'{path}'", "Learned"])


def test_import_errors_that_a_module_handles_are_ignored(folder):
    Path("my_fallback.py").write_text(
        "try:\n    import my_exception\nexcept RuntimeError:\n    from bytelm.callbacks import Cosine as A\n"
    )
    Path("my_exception.py").write_text(MODULES["my_exception"][0])
    cli = build(["--config", "tiny.yaml", "--lr_schedule", "my_fallback.A"], run=False)
    assert type(Schedules.of(cli.trainer).schedules["lr"]).__name__ == "Cosine"


# Options of the trainer, and of classes of Lightning's


@pytest.mark.parametrize(
    ("option", "said"),
    thinned(
        [
            ("--trainer.accelerator=gpu", ["trainer.accelerator: 'gpu' ", "gpu backend", "on this machine: auto, cpu"]),
            ("--trainer.accelerator=nothing", ["trainer.accelerator: 'nothing' ", "auto, cpu"]),
            ("--trainer.strategy=nothing", ["trainer.strategy: 'nothing' ", "auto, ddp"]),
            ("--trainer.devices=0", ["trainer.devices: '0' "]),
            ("--trainer.devices=many", ["trainer.devices: 'many' "]),
            ("--trainer.num_nodes=0", ["trainer.num_nodes: 0 "]),
            ("--trainer.max_steps=-3", ["trainer.max_steps: -3 "]),
            ("--trainer.max_time=abc", ["trainer.max_time: 'abc' "]),
            ("--trainer.profiler=foo", ["trainer.profiler: 'foo' ", "simple"]),
            ("--trainer.gradient_clip_algorithm=foo", ["trainer.gradient_clip_algorithm: 'foo' ", "norm"]),
            ("--trainer.val_check_interval=1.5", ["trainer.val_check_interval: 1.5 "]),
            ("--trainer.fast_dev_run=-1", ["trainer.fast_dev_run: -1 "]),
            ("--trainer.limit_val_batches=-1", ["trainer.limit_val_batches: -1 "]),
            ("--trainer.overfit_batches=-1", ["trainer.overfit_batches: -1 "]),
            ("--trainer.barebones=true", ["trainer.barebones: True ", "accepted: false", "--trainer.logger false"]),
            # a callback that every run has once
            ("--trainer.callbacks+=Cosine", ["trainer.callbacks: 'Cosine' ", "the key lr_schedule"]),
            ("--trainer.callbacks+=bytelm.callbacks.Cosine", ["'bytelm.callbacks.Cosine' ", "the key lr_schedule"]),
            ("--trainer.callbacks+=my_schedule.Mine", ["trainer.callbacks: 'my_schedule.Mine' "]),
            ("--trainer.callbacks+=Schedules", ["trainer.callbacks.schedules: Schedules requires it"]),
            ("--trainer.callbacks+=BestCheckpoint", ["trainer.callbacks: 'BestCheckpoint' ", "every run has one"]),
            ("--trainer.callbacks+=TimeBudget", ["trainer.callbacks: 'TimeBudget' ", "the key time_budget"]),
            ("--trainer.callbacks+=Throughput", ["trainer.callbacks: 'Throughput' ", "the key throughput"]),
            (
                "--trainer.callbacks+=LastCheckpoint",
                ["trainer.callbacks: 'LastCheckpoint' ", "the key last_checkpoint"],
            ),
            ("--trainer.callbacks+=Divergence", ["trainer.callbacks: 'Divergence' ", "the key divergence"]),
            ("--trainer.callbacks+=TrainLog", ["trainer.callbacks: 'TrainLog' ", "every run has one"]),
            ("--trainer.callbacks+=RankWatch", ["trainer.callbacks: 'RankWatch' ", "every run has one"]),
            # values that the constructor of a class rejects
            ("--checkpoint.mode=foo", ["checkpoint: 'BestCheckpoint' ", "min, max"]),
            ("--checkpoint.save_top_k=-5", ["checkpoint: 'BestCheckpoint' ", "save_top_k=-5"]),
            (
                "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val/bpb, mode: foo}}",
                ["trainer.callbacks: 'EarlyStopping' ", "min, max"],
            ),
            (
                "--trainer.callbacks+={class_path: Timer, init_args: {duration: abc}}",
                ["trainer.callbacks: 'Timer' ", "abc"],
            ),
        ],
        12,
        several=True,
    ),
)
def test_an_option_of_the_trainer_is_rejected_by_its_name(rejects, option, said):
    Path("my_schedule.py").write_text("from bytelm.callbacks import Linear\n\nclass Mine(Linear): pass\n")
    rejects(option, said=said)


def test_a_logger_whose_package_is_not_installed_is_rejected_by_its_key(rejects):
    if importlib.util.find_spec("comet_ml") is not None:
        pytest.skip("it is installed")
    rejects("--trainer.logger=CometLogger", said=["trainer.logger: 'CometLogger' ", "comet-ml", "pip install"])


# Seeds, names and paths


@pytest.mark.parametrize("key", ["lr_schedule", "model.gpt.feedforward", "trainer.logger"])
def test_an_option_in_dict_kwargs_that_the_class_does_not_take_is_rejected(rejects, key):
    name = {"lr_schedule": "Cosine", "model.gpt.feedforward": "GELU", "trainer.logger": "CSVLogger"}[key]
    said = [f"{key}.dict_kwargs.steep: 2 cannot be used; {name} takes no other options; accepted: "]
    rejects("--config", "tiny.yaml", f"--{key}", name, f"--{key}.dict_kwargs.steep", "2", said=said)


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999"])
def test_a_seed_out_of_range_is_rejected(rejects, seed):
    rejects(f"--seed_everything={seed}", said=[f"seed_everything: {seed} ", "from 0 to 4294967295"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "at most 255 bytes"),
        ("é" * 128, "at most 255 bytes"),
        ("a/" + "x" * 256, "at most 255 bytes"),
        ("", "the name of a folder"),
        (".", "the name of a folder"),
        ("..", "the name of a folder"),
        ("a/../..", "the name of a folder"),
    ],
)
def test_a_name_that_no_folder_can_have_is_rejected(rejects, name, said):
    rejects("--experiment", name, said=["experiment: ", said])


def test_a_name_of_many_configs_that_is_too_long_for_a_folder_is_rejected(rejects):
    options = []
    for letter in "abc":
        Path(f"{letter * 100}.yaml").write_text("{seed_everything: 1}")
        options += ["--config", f"{letter * 100}.yaml"]
    rejects(*options, said=["experiment: 'tiny+aaa", "at most 255 bytes"])


def test_a_config_on_the_command_line_does_not_name_the_run(run):
    run("--config", "{time_budget: {limit: 1 steps}}")
    assert Path("runs/tiny/version_0").is_dir()


@pytest.mark.parametrize(
    "key", ["experiment", "data.path", "trainer.default_root_dir", "checkpoint.dirpath", "ckpt_path"]
)
def test_a_nul_in_a_name_is_rejected(rejects, key):
    Path("nul.yaml").write_text(f'{key}: "a\\0b"\n')
    rejects("--config", "nul.yaml", said=[f"{key}: 'a\\x00b' ", "NUL"])


@pytest.mark.parametrize("options", [["--data.path", "~nosuchuser/x"], ["--data.path", "[corpus.txt, ~nosuchuser]"]])
def test_the_home_folder_of_nobody_is_rejected(rejects, options):
    rejects(*options, said=["data.path: '~nosuchuser", "no user 'nosuchuser'"], status=DataError.exit_status)


PATHS = ["trainer.default_root_dir", "checkpoint.dirpath", "ckpt_path", "init_from"]


@pytest.mark.parametrize("key", PATHS)
def test_other_paths_in_the_home_folder_of_nobody_are_rejected(rejects, key):
    rejects(f"--{key}", "~nosuchuser/x", said=[f"{key}: '~nosuchuser/x' ", "no user 'nosuchuser'"])


@pytest.mark.parametrize("key", PATHS)
def test_a_path_with_a_name_that_no_file_can_have_is_rejected(rejects, key):
    rejects(f"--{key}", f"a/{'x' * 256}", said=[f"{key}: 'a/xxx", "at most 255 bytes"])


# Corpora


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


CORPORA = {
    "nowhere.txt": (lambda path: None, ["not found in /", "a file, a folder"]),
    "hollow": (os.mkdir, ["a folder without files", "a file, a folder"]),
    "dangling.txt": (lambda path: os.symlink("gone.txt", path), ["a broken link"]),
    "fifo": (make_fifo, ["neither a file nor a folder"]),
    "socket": (make_socket, ["neither a file nor a folder"]),
    "no*thing": (lambda path: None, ["not found", "glob"]),
}


@pytest.mark.parametrize("path", CORPORA)
def test_a_corpus_that_is_not_there_is_a_data_error(rejects, path):
    make, said = CORPORA[path]
    make(path)
    rejects("--data.path", path, said=[f"path: '{path}' cannot be used", *said], status=DataError.exit_status)


def test_a_corpus_whose_name_no_file_can_have_is_a_data_error(rejects):
    rejects("--data.path", "x" * 300, said=["cannot be read", "File name too long"], status=DataError.exit_status)


@pytest.mark.parametrize(
    ("size", "fraction", "said", "smaller"),
    [
        (0, 0.9, "its train split has 0 bytes", ""),
        (31, 0.9, "its train split has 27 bytes", ", or data.seq_len up to 4"),
        (310, 0.9, "its validation split has 31 bytes", ", or data.seq_len up to 31"),
        (1_000, 0.01, "its train split has 10 bytes", ", or data.seq_len up to 10"),
        (1_000, 1.0, "its validation split has 0 bytes", ""),
    ],
)
def test_a_corpus_shorter_than_a_row_is_a_data_error(rejects, size, fraction, said, smaller):
    Path("short.txt").write_bytes(b"x" * size)
    options = ["--data.path", "short.txt", "--data.train_fraction", str(fraction)]
    end = f"fewer than a row of 32; accepted: a longer text{smaller}"
    rejects(*options, said=["data: 'short.txt' cannot be used; ", said, end], status=DataError.exit_status)


@pytest.mark.parametrize("path", ["secret.txt", "locked", "locked/corpus.txt", "open", "corpus.txt+secret.txt"])
def test_a_corpus_without_read_permission_is_named(as_nobody, rejected, path):
    for name in ("secret.txt", "locked/corpus.txt", "open/corpus.txt", "open/inner/corpus.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("corpus.txt", name)
    for name in ("secret.txt", "locked", "open/inner"):
        Path(name).chmod(0)
    with as_nobody():
        line = rejected("--data.path", str(path.split("+")), status=DataError.exit_status)
    assert "Permission denied" in line
    assert path.split("+")[-1].split("/")[0] in line


@pytest.mark.parametrize("how", ["vanishes", "shrinks"])
@pytest.mark.parametrize("files", [1, 2])
def test_a_file_that_is_lost_between_listing_and_reading_is_a_data_error(rejected, monkeypatch, how, files):
    for i in range(files):
        Path(f"{i}.bin").write_bytes(b"text " * 1_000)
    listed = Path.is_file

    def list_and_lose(path):
        found = listed(path)
        if found and path.suffix == ".bin":
            path.unlink() if how == "vanishes" else path.write_bytes(b"")
        return found

    monkeypatch.setattr(Path, "is_file", list_and_lose)
    line = rejected("--data.path", "*.bin", status=DataError.exit_status)
    assert ("0.bin" if how == "vanishes" else "has 0 bytes") in line


@pytest.mark.parametrize("files", [1, 2])
def test_bytes_that_are_no_text_train(run, files):
    Path("any").mkdir()
    for i in range(files):
        Path("any", f"{i}.bin").write_bytes(bytes(range(256)) * 8 + b"\xc3\x28\xff\xfe\x00")
    cli = run("--data.path", "any/*")
    assert cli.trainer.global_step == 4
    assert set(cli.datamodule.corpus.stream.tolist()) == set(range(256))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere", ["'nowhere'", "not a directory", "unset it"]),
        ("corpus.txt", ["'corpus.txt'", "not a directory", "unset it"]),
    ],
)
def test_a_bytelm_data_that_is_no_folder_is_reported_with_a_remedy(rejects, monkeypatch, value, said):
    monkeypatch.setenv("BYTELM_DATA", value)
    Path("shakespeare.yaml").write_text("data: {class_path: Shakespeare, init_args: {seq_len: 32}}\n")
    rejects("--config", "shakespeare.yaml", said=["BYTELM_DATA", *said], status=DataError.exit_status)


def test_an_unreadable_bytelm_data_is_reported_with_a_remedy(as_nobody, rejected, monkeypatch):
    Path("locked").mkdir(mode=0)
    monkeypatch.setenv("BYTELM_DATA", "locked")
    Path("shakespeare.yaml").write_text("data: {class_path: Shakespeare, init_args: {seq_len: 32}}\n")
    with as_nobody():
        line = rejected("--config", "shakespeare.yaml", status=DataError.exit_status)
    assert "Permission denied: 'locked/shakespeare.txt'" in line
    assert "set BYTELM_DATA to a folder" in line


# The run's folder


@pytest.mark.parametrize("in_the_way", ["runs", "runs/tiny"])
def test_a_file_in_the_way_of_the_runs_folder_is_a_storage_error(rejected, in_the_way):
    Path(in_the_way).parent.mkdir(exist_ok=True)
    Path(in_the_way).write_text("kept")
    line = rejected(status=StorageError.exit_status)
    assert "the run's folder 'runs/tiny' cannot be created (" in line
    assert Path(in_the_way).read_text() == "kept"


def test_a_folder_that_cannot_be_written_to_is_a_storage_error(as_nobody, rejected):
    with as_nobody():
        line = rejected(status=StorageError.exit_status)
    assert "the run's folder 'runs/tiny' cannot be created (" in line
    assert "Permission denied" in line
    assert not Path("runs").exists()


def test_a_disk_that_is_full_when_the_folder_is_made_is_a_storage_error(rejects, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    rejects(
        said=["the run's folder 'runs/tiny' cannot be created (", "No space left on device"],
        status=StorageError.exit_status,
    )


# Anything


@pytest.fixture
def parse(folder, capsys):
    """Parses tiny.yaml and another config: it is accepted, or rejected with one line and status 2 or 3."""
    parser = build(["--config", "tiny.yaml"], run=False).parser

    def parse(content):
        Path("fuzz.yaml").write_bytes(content)
        capsys.readouterr()
        try:
            parser.parse_args(["--config", "tiny.yaml", "--config", "fuzz.yaml"])
        except RunError as error:
            with pytest.raises(SystemExit) as ended:
                fail(str(error), error.exit_status)
        except SystemExit as error:
            ended = pytest.ExceptionInfo.from_exception(error)
        else:
            return
        assert ended.value.code in (ConfigError.exit_status, DataError.exit_status)
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("bytelm: error: ")

    return parse


NAMES = st.sampled_from(
    [
        *("model", "gpt", "position", "class_path", "init_args", "dict_kwargs", "d_model", "dropout", "optimizer"),
        *("loss", "data", "path", "order", "trainer", "devices", "callbacks", "logger", "time_budget", "limit"),
        *("lr_schedule", "warmup", "checkpoint", "seed_everything", "experiment", "config"),
    ]
)
WORDS = st.sampled_from(
    ["Rotary", "Bytes", "corpus.txt", "AdamW", "3 steps", "5%", "Timer", "bytelm.callbacks.Cosine", "tiny.yaml"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
CONFIGS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | SCALARS, inner, max_size=4),
    max_leaves=12,
)
YAML_TEXT = st.text("abgmopt:{}[]-&*<>!'\"#,|?\n\t 0123.%@`", max_size=40)
fuzzed = settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzzed
@given(st.binary(max_size=20) | (st.text() | YAML_TEXT).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_as_a_config_are_accepted_or_rejected_in_one_line(parse, content):
    parse(content)


@fuzzed
@given(st.dictionaries(NAMES, CONFIGS, max_size=4) | CONFIGS)
def test_any_structure_as_a_config_is_accepted_or_rejected_in_one_line(parse, config):
    parse(yaml.safe_dump(config, allow_unicode=True).encode(errors="replace"))
