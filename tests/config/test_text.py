"""Values that are written as YAML are read back unchanged, by jsonargparse and by PyYAML."""

import math
from enum import Enum
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import get_loader
from thinned import thinned

from bytelm.config import text as module
from bytelm.config.shipped import FOLDER
from bytelm.config.text import dump, read
from bytelm.experiments.task import as_text

LIKE_NUMBERS = [
    *(
        "1e5",
        "1e-3",
        "1E5",
        "+1e5",
        "-1e5",
        "1_0e5",
        "1.e5",
        "1.5e3",
        ".5e3",
        "1.",
        ".5",
        "0.1",
        "1_000",
        "017",
        "0o17",
    ),
    *("0x1f", "0b1", "1:20", "1:20.5", ".inf", "-.INF", ".nan", "nan", "inf", "1e", "e5", "1e5x"),
]
LIKE_OTHERS = ["yes", "no", "on", "true", "null", "~", "", " ", "=", "<<", "-", "2020-01-01", "2020-01-01 10:00:00"]
TEXTS = [
    *LIKE_NUMBERS,
    *LIKE_OTHERS,
    "a: b",
    "a #b",
    "# a",
    "[1, 2]",
    "{a: 1}",
    "*a",
    "&a",
    "!a",
    "%a",
    "'",
    '"',
    "a\nb",
]


def loaders():
    return [get_loader("yaml"), yaml.safe_load]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(text):
    for load in loaders():
        assert load(dump({"key": text, "list": [text]})) == {"key": text, "list": [text]}
    assert get_loader("yaml")(dump([text], in_one_line=True)) == [text]


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # no surrogates, which UTF-8 does not encode
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | KEYS | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_plain_values_come_back(values):
    for load in [*loaders(), read]:
        assert load(dump(values)) == values


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e-300, 1e22, 0.1, -0.0])
def test_numbers_stay_numbers(value):
    for load in loaders():
        assert load(dump({"key": value})) == {"key": value}


def test_the_faster_writer_gives_the_same_text(monkeypatch):
    values = [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.rglob("*.yaml"))]
    values.append(
        {"a": ["é 日本 😀", "x" * 200, "word " * 60, "1e-3", "12:30", "two\nlines", "\t", "", " #", "a: b"], "b": {}}
    )
    fast = [dump(value) for value in values]
    monkeypatch.setattr(module, "_FastDumper", module._Dumper)
    assert [dump(value) for value in values] == fast


def test_an_enumeration_is_written_as_its_value():
    class Interval(str, Enum):
        STEP = "step"

    assert dump({"interval": Interval.STEP}) == "interval: step\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "0.001"),
        (3, "3"),
        ("1e5", "1e5"),
        (None, "null"),
        (True, "true"),
        (["1e5", 1e5], "['1e5', 100000.0]"),
        ({"class_path": "Linear", "init_args": {"warmup": "5%"}}, "{class_path: Linear, init_args: {warmup: 5%}}"),
        (["x" * 200, "y"], f"[{'x' * 200}, y]"),
    ],
)
def test_a_value_as_the_command_line_takes_it_is_in_one_line(value, text):
    assert as_text(value) == text


# Saved configs


OPTIONS = [
    ["--time_budget.limit", "[180s, 5 steps]"],
    ["--time_budget.limit", "[5 steps]"],
    ["--lr_schedule", "{class_path: WarmupStableDecay, init_args: {warmup: 2 steps, decay: 1h}}"],
    ["--experiment", "1e-3"],
    ["--experiment", "1e5/2e5"],
    ["--experiment", "null"],
    ["--experiment", "2020-01-01"],
    ["--experiment", "0x10"],
    ["--data.path", "1e5"],
    ["--data.path", "['1e5', corpus.txt]"],
    ["--checkpoint.dirpath", "1e5"],
    ["--checkpoint.train_time_interval", "0:30:00"],
    ["--trainer.default_root_dir", "1e5"],
    ["--trainer.max_time", "{minutes: 3}"],
    ["--trainer.max_time", "00:01:00:00"],
    ["--trainer.devices", "[0]"],
    ["--trainer.devices", "1"],
    ["--trainer.precision", "16"],
    ["--trainer.overfit_batches", "1"],
    ["--trainer.limit_val_batches", "1.0"],
    ["--trainer.callbacks+=Timer"],
    ["--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val/bpb}}"],
    ["--trainer.logger", "[{class_path: CSVLogger, init_args: {save_dir: '1e5', name: '1e-3', version: 3}}]"],
    ["--trainer.plugins", "bytelm.precision.FP8"],
    ["--model.compile", "blocks"],
    ["--model.optimizer", "{class_path: AdamW, init_args: {betas: [0.9, 0.95], lr: 1e-3}}"],
    ["--model.optimizer", "MuonAdamW"],
    ["--data.development", "[0.9, 1.0]"],
    ["--seed_everything", "true"],
    ["--divergence.on_divergence", "rewind"],
]


@pytest.mark.parametrize("options", thinned((pytest.param(o, id=" ".join(o)) for o in OPTIONS), 5))
def test_a_saved_config_means_the_same(resolved, options):
    config = resolved(*options)
    Path("saved.yaml").write_text(dump(config))
    assert resolved("--config", "saved.yaml") == config
    assert "Duration(" not in dump(config)


def test_two_limits_are_saved_as_two(run):
    run("--time_budget.limit", "[1h, 2 steps]")
    saved = Path("runs/tiny/version_0/config.yaml")
    assert yaml.safe_load(saved.read_text())["time_budget"]["limit"] == ["3600s", "2 steps"]
    run("--experiment", "again", config=str(saved))
    assert Path("runs/again/version_0/record.json").is_file()
