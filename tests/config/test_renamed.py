"""Configs and checkpoints of earlier versions are read, or rejected with the version that wrote them.

The run in tests/version_0_1 was trained by bytelm 0.1.0, with the schedule `callbacks.Cosine`.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import bytelm
from bytelm.config.parser import written_by
from bytelm.config.renamed import RENAMED, current_names
from bytelm.errors import CheckpointError
from bytelm.inference.load import load
from bytelm.language_model import LanguageModel
from bytelm.program import main
from bytelm.runs.checkpoints import read

OLD = Path(__file__).resolve().parents[1] / "version_0_1"


@pytest.fixture
def old(folder):
    """The old run, copied to old/ in the working folder."""
    shutil.copytree(OLD, "old")
    return Path("old")


@pytest.fixture
def callbacks(folder, monkeypatch):
    """Creates a user's module `callbacks` in the working folder, or reports that there is none."""

    def make(text):
        if text is not None:
            Path("callbacks.py").write_text(text)
        monkeypatch.delitem(importlib.import_module("sys").modules, "callbacks", raising=False)
        importlib.invalidate_caches()

    yield make
    importlib.import_module("sys").modules.pop("callbacks", None)


@pytest.mark.parametrize("path", sorted({*RENAMED.values()}))
def test_a_new_path_leads_to_a_class(path):
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_old_paths_are_replaced_wherever_they_are_and_nothing_else_is(callbacks):
    callbacks(None)
    config = {
        "lr_schedule": {"class_path": "callbacks.Cosine", "init_args": {"warmup": "callbacks"}},
        "trainer": {"callbacks": ["callbacks.Mine", {"class_path": "callbacks.lr_schedule.Linear"}, "callbacks.py"]},
        "model": {"optimizer": "bytelm.row_adagrad.RowAdagrad", "gpt": {"class_path": "bytelm.gpt.GPT"}},
        "callbacks.Cosine": 3,
    }
    assert current_names(config) == {
        "lr_schedule": {"class_path": "bytelm.callbacks.Cosine", "init_args": {"warmup": "callbacks"}},
        "trainer": {"callbacks": ["callbacks.Mine", {"class_path": "bytelm.callbacks.Linear"}, "callbacks.py"]},
        "model": {"optimizer": "bytelm.optim.row_adagrad.RowAdagrad", "gpt": {"class_path": "bytelm.gpt.GPT"}},
        "callbacks.Cosine": 3,
    }


@pytest.mark.parametrize(
    ("text", "cosine"),
    [
        (None, "bytelm.callbacks.Cosine"),
        ("class Mine: pass\n", "bytelm.callbacks.Cosine"),
        ("class Cosine: pass\n", "callbacks.Cosine"),
        ("import nowhere_at_all\n", "callbacks.Cosine"),  # must be reported
        ("raise RuntimeError\n", "callbacks.Cosine"),
    ],
)
def test_a_class_of_the_users_own_keeps_its_name(callbacks, text, cosine):
    callbacks(text)
    assert current_names(["callbacks.Cosine", "callbacks.Mine"]) == [cosine, "callbacks.Mine"]


def test_a_config_that_is_not_trusted_imports_nothing(callbacks):
    callbacks("open('imported', 'w')\nclass Cosine: pass\n")
    assert current_names("callbacks.Cosine", trusted=False) == "bytelm.callbacks.Cosine"
    assert not Path("imported").exists()


def test_the_old_config_trains_under_the_new_names(old, run):
    run("--experiment", "new", config=str(old / "config.yaml"))
    saved = yaml.safe_load(Path("runs/new/version_0/config.yaml").read_text())
    assert saved["lr_schedule"]["class_path"] == "bytelm.callbacks.Cosine"
    record = json.loads(Path("runs/new/version_0/record.json").read_text())
    assert record["val_bpb"] == pytest.approx(7.836753, abs=1e-4)  # the score of the old run
    assert record["train_loss"] == pytest.approx(5.441727, abs=1e-4)


def test_the_old_checkpoint_continues_is_scored_and_writes(old, run, capsys):
    config, checkpoint = str(old / "config.yaml"), str(old / "checkpoints/last.ckpt")
    cli = run("--ckpt_path", checkpoint, "--time_budget.limit", "8 steps", "--experiment", "on", config=config)
    states = read(checkpoint)["callbacks"]
    assert states[cli.trainer.checkpoint_callback.state_key]["best_model_score"].shape == ()  # it is loaded
    record = json.loads(Path("runs/on/version_0/record.json").read_text())
    assert record["total_steps"] == 8
    assert record["val_bpb"] == pytest.approx(7.7614, abs=2e-4)  # the score of version 0.1.0 after resuming it
    assert "written with other values" not in capsys.readouterr().err

    run("--ckpt_path", checkpoint, subcommand="validate", config=config)
    assert "val_bpb: 7.8368" in capsys.readouterr().out

    for options in ([], ["--config", config]):
        main(["generate", "--ckpt_path", checkpoint, "--prompt", "to be", "--max_new_tokens", "12", *options])
        assert capsys.readouterr().out.startswith("to be")
    assert LanguageModel.load_from_checkpoint(checkpoint, weights_only=True).gpt.d_model == 8


def test_a_rejection_of_the_old_checkpoint_names_its_version(old, folder, run):
    checkpoint = str(old / "checkpoints/last.ckpt")
    told = rf"\(written by bytelm 0\.1\.0 or earlier; this is {bytelm.__version__}\)"
    with pytest.raises(CheckpointError, match=r"model\.gpt\.d_model: 8 in the checkpoint, 16 now" + ".*" + told):
        run("--ckpt_path", checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["model"]["gpt"]["init_args"]["position"] = {"class_path": "bytelm.parts.position.Gone"}
    torch.save(content, "gone.ckpt")
    with pytest.raises(CheckpointError, match=r"'bytelm\.parts\.position\.Gone'.*" + told):
        load("gone.ckpt")


def test_a_rejection_of_the_old_config_names_its_version(old, rejected):
    config = yaml.safe_load((old / "config.yaml").read_text())
    config["model"]["gpt"]["init_args"]["gone"] = 3
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    line = rejected("--config", "old/config.yaml")
    assert "model.gpt.gone: unknown key" in line
    assert line.endswith(f"(in old/config.yaml, written by bytelm 0.1.0; this is {bytelm.__version__})")


def test_files_of_this_version_state_the_version(trained, capsys):
    assert read("runs/tiny/version_0/checkpoints/last.ckpt")["bytelm_version"] == bytelm.__version__
    assert written_by(Path("runs/tiny/version_0/config.yaml")) == bytelm.__version__
    with pytest.raises(SystemExit):
        main(["fit", "--config", "tiny.yaml", "--print_config"])
    assert f"# bytelm=={bytelm.__version__}\n" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "model: {}\n", "# bytelm\n", None])
def test_a_written_config_has_no_version(folder, text):
    if text is not None:
        Path("my.yaml").write_text(text)
    assert written_by(Path("my.yaml")) is None
