"""Which checkpoint and which run are meant by a path or a name, on every command that takes one."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from bytelm.errors import CheckpointError, ConfigError
from bytelm.inference.load import load
from bytelm.program import main
from bytelm.runs.choice import find_checkpoint, with_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of several experiments, with empty checkpoints: the later in this list, the newer."""
    monkeypatch.chdir(tmp_path)
    files = [
        *("runs/a/version_0/checkpoints/best.ckpt", "runs/a/version_0/checkpoints/last.ckpt"),
        "runs/a/version_2/checkpoints/last.ckpt",
        *("runs/a/version_10/checkpoints/best.ckpt", "runs/a/version_10/checkpoints/last.ckpt"),
        *("runs/study/b/version_0/checkpoints/best.ckpt", "runs/study/b/version_0/checkpoints/last.ckpt"),
        "runs/a/version_1/checkpoints/last.ckpt",
        "elsewhere/c/version_3/checkpoints/best.ckpt",
    ]
    for age, name in enumerate(files):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
        os.utime(name, (1000 + age, 1000 + age))
        Path(name).parent.with_name("config.yaml").touch()
    Path("runs/a/version_11").mkdir()  # it has not come to a checkpoint


@pytest.mark.parametrize(
    ("given", "options", "found"),
    [
        ("runs/a/version_0/checkpoints/last.ckpt", {}, "runs/a/version_0/checkpoints/last.ckpt"),
        ("runs/a/version_0", {}, "runs/a/version_0/checkpoints/best.ckpt"),
        ("runs/a/version_0/", {"order": ("last", "best")}, "runs/a/version_0/checkpoints/last.ckpt"),
        ("runs/a/version_0/checkpoints", {}, "runs/a/version_0/checkpoints/best.ckpt"),
        ("runs/a/version_2", {}, "runs/a/version_2/checkpoints/last.ckpt"),
        ("runs/a", {}, "runs/a/version_10/checkpoints/best.ckpt"),
        ("runs/a", {"order": ("last", "best")}, "runs/a/version_10/checkpoints/last.ckpt"),
        ("elsewhere/c", {}, "elsewhere/c/version_3/checkpoints/best.ckpt"),
        ("last", {}, "runs/a/version_1/checkpoints/last.ckpt"),
        ("best", {}, "runs/study/b/version_0/checkpoints/best.ckpt"),
        ("last", {"experiment": "a"}, "runs/a/version_10/checkpoints/last.ckpt"),
        ("last", {"experiment": "study/b"}, "runs/study/b/version_0/checkpoints/last.ckpt"),
        ("no.ckpt", {}, "no.ckpt"),  # whoever reads it says that it is not there
    ],
)
def test_a_checkpoint_is_found(given, options, found, runs):
    assert find_checkpoint(given, **options) == Path(found)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("last", {"experiment": "x"}, "ckpt_path: no last.ckpt in runs/x; accepted: a path, too"),
        (
            "runs/a/version_11",
            {},
            "ckpt_path: 'runs/a/version_11' is a folder without checkpoints; accepted: a checkpoint, or the folder of "
            "a run with best.ckpt or last.ckpt",
        ),
        ("runs", {}, "ckpt_path: 'runs' is a folder without checkpoints"),
    ],
)
def test_missing_files_are_named(given, options, message, runs):
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(given, **options)
    assert str(error.value).startswith(message)


def test_without_runs_there_is_no_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^ckpt_path: no best\.ckpt in runs; accepted: a path, too"):
        find_checkpoint("best")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    ("given", "run", "checkpoint"),
    [
        ("runs/a/version_0", "runs/a/version_0", "best"),
        ("runs/a", "runs/a/version_10", "best"),
        ("runs/study/b", "runs/study/b/version_0", "best"),
        ("elsewhere/c/version_3", "elsewhere/c/version_3", "best"),
        ("runs/a/version_2", "runs/a/version_2", "last"),
    ],
)
def test_a_run_is_its_config_and_its_checkpoint(command, given, run, checkpoint, runs):
    options = ["--config", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/{checkpoint}.ckpt"]
    assert with_run([command, given, "--ckpt_path", "last"]) == [command, *options, "--ckpt_path", "last"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["validate"], ["validate", "--config", "runs/a"], ["fit", "runs/a"], ["--config", "runs/a", "validate"]],
)
def test_other_command_lines_are_left_as_they_are(arguments, runs):
    assert with_run(arguments) == arguments


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("nowhere", ConfigError, "run: 'nowhere' cannot be used; accepted: the folder of a run, such as runs/my-exp"),
        ("runs/a/version_0/config.yaml", ConfigError, "run: 'runs/a/version_0/config.yaml' cannot be used; accepted"),
        ("runs/a/version_11", CheckpointError, "ckpt_path: 'runs/a/version_11' is a folder without checkpoints"),
    ],
)
def test_folders_that_are_no_run_are_rejected(given, error, message, runs):
    with pytest.raises(error) as rejected:
        with_run(["validate", given])
    assert str(rejected.value).startswith(message)
    Path("elsewhere/c/version_3/config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"version_3 has no config\.yaml; accepted: the folder of a run"):
        with_run(["validate", "elsewhere/c"])


# The commands


@pytest.fixture(scope="module")
def two_runs(train_once):
    """Two runs with different rates, of which the second one is the newest."""
    options = ("--model.gpt.position", "Learned", "--experiment")
    return train_once([*options, "first"], [*options, "second", "--model.optimizer.lr", "1e-2"])


@pytest.fixture
def trained(folder, two_runs):
    """Copies the two runs; returns their scores."""
    shutil.copytree(two_runs, folder / "runs")
    scores = [yaml.safe_load(Path(f"runs/{name}/version_0/record.json").read_text()) for name in ("first", "second")]
    assert scores[0]["val_bpb"] != scores[1]["val_bpb"]
    return [f"{score['val_bpb']:.4f}" for score in scores]


def test_a_run_is_validated_tested_and_predicted_without_further_options(trained, capsys):
    for name, score in zip(("first", "second"), trained, strict=True):
        main(["validate", f"runs/{name}/version_0"])
        assert f"val_bpb: {score}" in capsys.readouterr().out
        main(["validate", f"runs/{name}", "--ckpt_path", "last"])
        assert f"val_bpb: {score}" in capsys.readouterr().out
    main(["test", "runs/first", "--data.eval_bytes", "64"])
    assert "test_bpb: " in capsys.readouterr().out
    main(["generate", "runs/first", "--max_new_tokens", "3"])
    generated = capsys.readouterr()
    main(["generate", "--ckpt_path", "runs/first", "--max_new_tokens", "3"])
    assert capsys.readouterr().out == generated.out
    assert generated.err == ""
    main(["predict", "runs/first"])
    assert list(Path("runs/first/version_0").rglob("*predict*"))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["first", "second"]
    assert [path.name for path in Path("runs/first").iterdir()] == ["version_0"]


@pytest.mark.parametrize("command", ["validate", "generate"])
def test_a_run_that_is_none_is_one_line(folder, capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "nowhere"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bytelm: error: run: 'nowhere' cannot be used; accepted: the folder of a run")


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]["gpt.embedding.weight"]


def test_a_runs_folder_stands_for_its_checkpoint_everywhere(trained, capsys):
    first, second = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("first", "second"))
    assert torch.equal(load("runs/first").gpt.embedding.weight, first)
    assert torch.equal(load("last").gpt.embedding.weight, second)
    main(["validate", "--config", "tiny.yaml", "--model.gpt.position", "Learned", "--ckpt_path", "runs/first"])
    assert f"val_bpb: {trained[0]}" in capsys.readouterr().out
    main(["export", "runs/first/version_0", "there", "--format", "huggingface"])
    main(["import", "there", "back.ckpt"])
    assert torch.equal(weights("back.ckpt"), first)
    capsys.readouterr()
    options = ["--max_new_tokens", "9", "--device", "cpu"]
    texts = []
    for given in (["runs/second/version_0/checkpoints/best.ckpt"], ["runs/second"], ["last"], ["last", "second"]):
        named = ["--experiment", *given[1:]] if given[1:] else []
        main(["generate", "--ckpt_path", given[0], *named, *options])
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    main(["generate", "--ckpt_path", "last", "--experiment", "first", *options])
    assert capsys.readouterr().out != texts[0]


def test_an_experiment_without_a_name_of_a_checkpoint_is_rejected(trained, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--ckpt_path", "runs/second", "--experiment", "second"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(
        "bytelm: error: experiment: 'second' cannot be used; accepted with ckpt_path: best, last; it is 'runs/second'"
    )


def test_fit_resumes_from_the_last_checkpoint_of_a_runs_folder(trained, run):
    cli = run("--model.gpt.position", "Learned", "--ckpt_path", "runs/first", "--time_budget.limit", "6 steps")
    assert cli.config.fit.ckpt_path == "runs/first/version_0/checkpoints/last.ckpt"
    assert yaml.safe_load(Path("runs/tiny/version_0/record.json").read_text())["total_steps"] == 6
