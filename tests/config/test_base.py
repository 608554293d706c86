"""A config with a base means the same as its bases and itself, passed one after another with --config."""

import json
import os
import threading
from pathlib import Path

import pytest
import yaml
from thinned import thinned

from bytelm.config.base import files_of
from bytelm.config.untrusted_config import check_written
from bytelm.errors import CheckpointError, ConfigError, UsageError
from bytelm.experiments.study import Plan
from bytelm.inference.load import load


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


DIFFERENCES = {
    "nested values": "model: {gpt: {d_ff: 48, n_layers: 2}, optimizer: {init_args: {lr: 1e-3}}}",
    "dotted keys": "model.gpt.n_layers: 2\nmodel.optimizer.lr: 1e-3",
    "another class keeps the options of both": "model: {gpt: {norm: RMSNorm}, optimizer: SGD}",
    "another class with options": "lr_schedule: {class_path: Cosine, init_args: {warmup: 5%, min_lr_factor: 0.1}}",
    "a list is replaced": "time_budget: {limit: [3 steps, 1h]}",
    "a list is appended to": "trainer: {callbacks+: LambdaCallback}",
    "nothing": "# a comment",
}


@pytest.mark.parametrize("text", thinned(DIFFERENCES.values(), 3), ids=DIFFERENCES)
def test_a_base_and_differences_are_two_configs_in_order(resolved, text):
    write(
        "sub/base.yaml", "trainer: {callbacks: [{class_path: LambdaCallback}], max_epochs: -1}\nlr_schedule: Linear\n"
    )
    write("sub/plain.yaml", text)
    write("sub/based.yaml", f"base: base.yaml\n{text}\n")
    expected = resolved("--config", "sub/base.yaml", "--config", "sub/plain.yaml")
    assert resolved("--config", "sub/based.yaml") == expected
    assert "base" not in expected


def test_a_base_may_have_a_base_and_paths_are_relative_to_the_file_that_names_them(resolved):
    write("a/first.yaml", "model: {gpt: {d_ff: 40, n_layers: 2, dropout: 0.25}}")
    write("a/b/second.yaml", "base: ../first.yaml\nmodel: {gpt: {n_layers: 3, dropout: 0.5}}")
    write("c/third.yaml", "base: ../a/b/second.yaml\nmodel: {gpt: {dropout: 0.75}}")
    gpt = resolved("--config", "c/third.yaml")["model"]["gpt"]["init_args"]
    assert (gpt["d_ff"], gpt["n_layers"], gpt["dropout"]) == (40, 3, 0.75)


@pytest.mark.parametrize("place", ["absolute", "home"])
def test_a_base_may_be_an_absolute_path_or_one_from_the_home_folder(resolved, folder, monkeypatch, place):
    monkeypatch.setenv("HOME", str(folder / "home"))
    write("home/base.yaml", "seed_everything: 7")
    write("sub/based.yaml", f"base: {folder / 'home/base.yaml' if place == 'absolute' else '~/base.yaml'}")
    assert resolved("--config", "sub/based.yaml")["seed_everything"] == 7


def test_of_several_bases_the_later_wins_and_options_win_over_all(resolved):
    write("one.yaml", "{seed_everything: 1, model: {gpt: {n_layers: 2, d_ff: 40}}}")
    write("two.yaml", "{seed_everything: 2, model: {gpt: {d_ff: 48}}}")
    write("based.yaml", "{base: [one.yaml, two.yaml], model: {gpt: {dropout: 0.5}}}")
    config = resolved("--config", "based.yaml", "--model.gpt.dropout", "0.25")
    gpt = config["model"]["gpt"]["init_args"]
    assert (config["seed_everything"], gpt["n_layers"], gpt["d_ff"], gpt["dropout"]) == (2, 2, 48, 0.25)


def test_a_base_wins_over_an_earlier_config_and_loses_to_a_later_one(resolved):
    write("base.yaml", "{seed_everything: 1, model: {gpt: {n_layers: 2}}}")
    write("based.yaml", "base: base.yaml")
    write("other.yaml", "{seed_everything: 3, model: {gpt: {n_layers: 3}}}")
    assert resolved("--config", "other.yaml", "--config", "based.yaml")["seed_everything"] == 1
    assert resolved("--config", "based.yaml", "--config", "other.yaml")["seed_everything"] == 3


def test_a_base_that_two_bases_share_is_applied_once_before_them(resolved):
    write("root.yaml", "seed_everything: 1\nmodel: {gpt: {n_layers: 2}}\ntrainer: {callbacks+: LambdaCallback}")
    write("left.yaml", "base: root.yaml\nmodel: {gpt: {n_layers: 3}}")
    write("right.yaml", "base: root.yaml\nseed_everything: 5")
    write("based.yaml", "base: [left.yaml, right.yaml]")
    config = resolved("--config", "based.yaml")
    assert (config["seed_everything"], config["model"]["gpt"]["init_args"]["n_layers"]) == (5, 3)
    assert len(config["trainer"]["callbacks"]) == 1
    assert [path.name for path in files_of("based.yaml")] == ["root.yaml", "left.yaml", "right.yaml", "based.yaml"]


def test_a_config_on_the_command_line_has_bases_relative_to_the_working_directory(resolved):
    write("sub/base.yaml", "seed_everything: 7")
    assert resolved("--config", "{base: sub/base.yaml}")["seed_everything"] == 7


def test_a_base_of_the_position_encoding_is_an_option_of_it(resolved):
    write("rotary.yaml", "model: {gpt: {position: {class_path: Rotary, init_args: {base: 500}}}}")
    config = resolved("--config", "rotary.yaml")
    assert config["model"]["gpt"]["init_args"]["position"]["init_args"] == {"base": 500.0}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_config_with_a_base_is_read_once(resolved):
    """A pipe, such as bash's <(…), can be read only once."""
    write("base.yaml", "seed_everything: 7")
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("base: base.yaml\nmodel: {gpt: {n_layers: 2}}",))
    writer.start()
    config = resolved("--config", "pipe")
    writer.join(10)
    assert (config["seed_everything"], config["model"]["gpt"]["init_args"]["n_layers"]) == (7, 2)


# Errors


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.yaml": "base: a.yaml"}, ["config: 'a.yaml' ", "base: a.yaml -> a.yaml is a cycle"]),
        (
            {"a.yaml": "base: sub/b.yaml", "sub/b.yaml": "base: [c.yaml]", "sub/c.yaml": "base: ../a.yaml"},
            ["config: 'sub/c.yaml' ", "base: a.yaml -> sub/b.yaml -> sub/c.yaml -> a.yaml is a cycle"],
        ),
        (
            {"a.yaml": "base: gone.yaml"},
            ["config: 'a.yaml' ", "base: 'gone.yaml': there is no file", "no shipped config of this name", "relative"],
        ),
        ({"a.yaml": "base: quikstart"}, ["base: 'quikstart': there is no file", "did you mean quickstart?"]),
        ({"a.yaml": "base: b.yaml", "b.yaml": "base: gone.yaml"}, ["config: 'b.yaml' ", "base: 'gone.yaml'"]),
        ({"a.yaml": "base: ."}, ["config: 'a.yaml' ", "base: '.': there is no file"]),
        ({"a.yaml": "base: ~nosuchuser/b.yaml"}, ["config: 'a.yaml' ", "'~nosuchuser/b.yaml'"]),
        ({"a.yaml": f"base: {'x' * 300}.yaml"}, ["config: 'a.yaml' ", "there is no file"]),
        ({"a.yaml": 'base: "b\\0.yaml"'}, ["config: 'a.yaml' ", r"'b\x00.yaml'", "there is no file"]),
        ({"a.yaml": "base: 3"}, ["config: 'a.yaml' ", "base: 3 is not accepted", "a list of these"]),
        ({"a.yaml": "base:"}, ["config: 'a.yaml' ", "base: None is not accepted"]),
        ({"a.yaml": "base: ''"}, ["config: 'a.yaml' ", "base: '' is not accepted"]),
        ({"a.yaml": "base: []"}, ["config: 'a.yaml' ", "base: [] is not accepted"]),
        ({"a.yaml": "base: {b.yaml: 1}"}, ["config: 'a.yaml' ", "base: {'b.yaml': 1} is not accepted"]),
        ({"a.yaml": "base: [tiny.yaml, 3]"}, ["config: 'a.yaml' ", "base: ['tiny.yaml', 3] is not accepted"]),
        # in a base
        ({"a.yaml": "base: b.yaml", "b.yaml": "seed_everything: 3\nmodel: [1"}, ["config: 'b.yaml' ", "line 2"]),
        ({"a.yaml": "base: b.yaml", "b.yaml": "- 3"}, ["config: 'b.yaml' ", "[3] is not a mapping"]),
        ({"a.yaml": "base: sub/b.yaml", "sub/b.yaml": "model: {gtp: 3}"}, ["model.gtp: unknown", "(in sub/b.yaml)"]),
        ({"a.yaml": "base: b.yaml", "b.yaml": "model: 3"}, ["model: 3 cannot be used", "(in b.yaml)"]),
        (
            {"a.yaml": "base: b.yaml", "b.yaml": "model: {gpt: {d_model: x}}"},
            ["model.gpt.d_model: 'x' is not accepted", "(in b.yaml)"],
        ),
        ({"a.yaml": "base: b.yaml\nmodle: 3", "b.yaml": "{}"}, ["modle: unknown key", "mean model?", "(in a.yaml)"]),
        # elsewhere it is an unknown key
        ({"a.yaml": "model: {base: b.yaml}"}, ["model.base: unknown key"]),
        ({"a.yaml": "base.yaml: 3"}, ["base: unknown key"]),
    ],
)
def test_a_wrong_base_is_rejected_in_one_line_that_names_the_file(resolved, files, said):
    for path, text in files.items():
        write(path, text)
    with pytest.raises((ConfigError, UsageError)) as error:
        resolved("--config", "a.yaml")
    assert [part for part in said if part not in str(error.value)] == [], error.value
    assert "\n" not in str(error.value)


def test_after_an_error_the_parser_takes_other_configs(resolved):
    write("a.yaml", "base: a.yaml")
    with pytest.raises(ConfigError):
        resolved("--config", "a.yaml")
    write("a.yaml", "seed_everything: 5")
    assert resolved("--config", "a.yaml")["seed_everything"] == 5


def test_a_base_that_may_not_be_read_is_named(folder, parser):
    if os.geteuid() == 0:
        pytest.skip("everything may be read by root")
    write("secret.yaml", "{}")
    Path("secret.yaml").chmod(0)
    write("a.yaml", "base: secret.yaml")
    with pytest.raises(ConfigError, match=r"secret\.yaml"):
        parser.parse_args(["--config", "tiny.yaml", "--config", "a.yaml"])


# Users of configs


def test_a_run_is_named_after_the_file_on_the_command_line_and_saves_the_resolved_config(run, capsys):
    write("sub/based.yaml", "base: ../tiny.yaml\ntime_budget: {limit: 2 steps}\nmodel: {gpt: {norm: RMSNorm}}\n")
    run(config="sub/based.yaml")
    saved = Path("runs/based/version_0/config.yaml")
    config = yaml.safe_load(saved.read_text())
    assert "base" not in config
    assert config["model"]["gpt"]["init_args"]["d_model"] == 16
    assert config["model"]["gpt"]["init_args"]["norm"]["class_path"] == "bytelm.parts.norm.RMSNorm"

    first = json.loads(Path("runs/based/version_0/record.json").read_text())
    run("--experiment", "again", config=str(saved))
    again = json.loads(Path("runs/again/version_0/record.json").read_text())
    assert (first["val_bpb"], first["train_loss"]) == (again["val_bpb"], again["train_loss"])

    checkpoint = "runs/based/version_0/checkpoints/last.ckpt"
    assert load(checkpoint, ["sub/based.yaml"]).gpt.d_model == 16
    write("wide.yaml", "base: sub/based.yaml\nmodel: {gpt: {d_model: 24}}\n")
    with pytest.raises(CheckpointError, match=r"model\.gpt\.d_model: 16 in the checkpoint, 24 now"):
        load(checkpoint, ["wide.yaml"])
    capsys.readouterr()
    run("--ckpt_path", checkpoint, subcommand="validate", config="sub/based.yaml")
    assert f"val_bpb: {first['val_bpb']:.4f}" in capsys.readouterr().out


def test_for_a_study_another_base_is_another_run(folder):
    def content():
        return Plan(["a.yaml"]).grid()[0].content

    write("a.yaml", "base: b.yaml\nseed_everything: 3")
    write("b.yaml", "base: c.yaml")
    write("c.yaml", "model: {gpt: {n_layers: 2}}")
    first = content()
    assert content() == first
    write("c.yaml", "model: {gpt: {n_layers: 3}}")
    assert content() != first
    write("c.yaml", "# a comment\nmodel: {gpt: {n_layers: 2}}")
    assert content() == first
    write("c.yaml", "base: a.yaml")  # the check of c.yaml reports the cycle
    assert content() != first


@pytest.mark.parametrize("text", [{"base": "rest.yaml"}, {"base": []}, {"model": {}, "base": "baseline.yaml"}])
def test_an_untrusted_config_has_no_base(text):
    resolved = {"data": {"class_path": "bytelm.data.corpora.Bytes", "init_args": {}}}
    with pytest.raises(ConfigError, match=r"^base: .*names a file.*--print_config=skip_default"):
        check_written(text, resolved, Path())
