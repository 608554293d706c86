"""Rejected values and keys: the message names the key, the value and the accepted values."""

from pathlib import Path

import pytest

from bytelm.config.command import CommandParser
from bytelm.errors import UsageError


def message(resolved, *options):
    with pytest.raises(UsageError) as error:
        resolved(*options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trainr.devices=3", "trainr: unknown key; did you mean trainer? accepted: experiment, init_from, seed_"),
        ("--trainer.acelerator=cpu", "trainer.acelerator: unknown key; did you mean accelerator? accepted: "),
        ("--trainer.devicess", "trainer.devicess: unknown key; did you mean devices? "),
        ("--model.optimzer.lr=3", "model.optimzer: unknown key; did you mean optimizer? accepted: gpt, loss, "),
        ("--data.batchsize=3", "data.batchsize: unknown key; did you mean batch_size? "),
        ("--time_budgt.limit=3s", "time_budgt: unknown key; did you mean time_budget? "),
        ("--seed_everythin=3", "seed_everythin: unknown key; did you mean seed_everything? "),
        ("--lr_schedul=Cosine", "lr_schedul: unknown key; did you mean lr_schedule? "),
        ("--conf=tiny.yaml", "conf: unknown key; did you mean config? "),
        ("--n_layers=3", "n_layers: unknown key; did you mean model.gpt.n_layers? accepted: experiment, "),
        ("--model.n_layers=3", "model.n_layers: unknown key; did you mean model.gpt.n_layers? accepted: gpt, "),
        ("--gpt.n_layers=3", "gpt: unknown key; did you mean model.gpt.n_layers? "),
        ("--model.gpt.n_layer=3", "model.gpt.n_layer: unknown key; did you mean n_layers? "),
        ("--model.gpt.n_layers.x=3", "model.gpt.n_layers: it has no keys below it; accepted: a whole number above 0"),
        ("--time_budget.limit.x=3", "time_budget.limit: {x: 3} is not a duration; accepted: a time"),
        ("--trainer.max_step=3", "trainer.max_step: unknown key; did you mean max_steps? "),
        ("--limit=3m", "limit: unknown key; did you mean time_budget.limit? "),
        ("--warmup=5%", "warmup: unknown key; did you mean lr_schedule.warmup? "),
        ("--seed=1", "seed: unknown key; did you mean seed_everything or data.seed? "),
        ("--optimizer.lr=1", "optimizer: unknown key; did you mean model.optimizer.lr? "),
        ("-trainer.devices=3", "'-trainer.devices=3' is not an option; did you mean --trainer.devices=3? "),
        ("tiny.yaml", "'tiny.yaml' is not an option; accepted: --key value, or --key=value"),
        ("--trainer.devices.x=3", "trainer.devices: '{x: 3}' is not accepted; accepted: "),
    ],
)
def test_an_unknown_option_is_named_with_similar_ones(resolved, option, said):
    assert said in message(resolved, option)


@pytest.mark.parametrize(
    "option", ["trainer.acelerator", "model.optimzer", "data.batchsize", "time_budgt", "divergance"]
)
def test_an_unknown_key_has_the_same_suggestion_in_a_config_and_on_the_command_line(resolved, option):
    Path("typo.yaml").write_text(f"{option}: 3\n")
    in_config = message(resolved, "--config", "typo.yaml")
    assert in_config == message(resolved, f"--{option}=3") + " (in typo.yaml)"
    assert "did you mean " in in_config


def test_an_unknown_option_of_another_command_is_named_with_similar_ones():
    parser = CommandParser("experiments")
    parser.add_argument("--max_runs", type=int)
    with pytest.raises(UsageError, match=r"^max_rns: unknown key; did you mean max_runs\? accepted: h, help, max_runs"):
        parser.parse_args(["--max_rns", "3"])
    with pytest.raises(UsageError, match=r"^max_run: unknown key"):
        parser.parse_args(["--max_run", "3"])


@pytest.mark.parametrize("precision", ["fp16", "fp8", "17"])
def test_a_precision_is_rejected_with_those_that_are_accepted(resolved, precision):
    accepted = "64, 32, 16, transformer-engine, transformer-engine-float16, 16-true, 16-mixed, bf16-true, bf16-mixed, "
    accepted += "32-true, 64-true, bf16, null; 8-bit layers are a plugin: --trainer.plugins bytelm.precision.FP8"
    expected = f"trainer.precision: '{precision}' is not accepted; accepted: {accepted}"
    assert message(resolved, f"--trainer.precision={precision}") == expected


CLASS = "does not name a class; accepted: "
WITH_OPTIONS = ", or an import path, with options as {class_path: …, init_args: {…}}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # options without their class
        (
            "model: {optimizer: {init_args: {momentu: 3}}}",
            ["model.optimizer.momentu: unknown key; accepted: lr, betas"],
        ),
        ("model: {optimizer: {class_path: null}}", [f"model.optimizer: null {CLASS}", "AdamW", WITH_OPTIONS]),
        (
            "model: {gpt: {attention: {qk_norm: {eps: 3}}}}",
            ["model.gpt.attention.qk_norm: {'eps': 3} ", CLASS, "LayerNorm, RMSNorm" + WITH_OPTIONS],
        ),
        (
            "trainer: {callbacks: {every: 3}}",
            ["trainer.callbacks: {'every': 3} ", CLASS, "EarlyStopping", WITH_OPTIONS],
        ),
        ("trainer: {callbacks: [{every: 3}]}", ["trainer.callbacks: [{'every': 3}] ", CLASS, WITH_OPTIONS]),
        ("trainer: {logger: {save_dir: x}}", ["trainer.logger: {'save_dir': 'x'} ", CLASS, "CSVLogger", WITH_OPTIONS]),
        ("trainer: {profiler: {a: 3}}", ["trainer.profiler: {'a': 3} ", CLASS, "SimpleProfiler", WITH_OPTIONS]),
        ("trainer: {plugins: {a: 3}}", ["trainer.plugins: {'a': 3} ", CLASS, "FP8", WITH_OPTIONS]),
        ("data: {class_path: ByteData}", ["data: ", CLASS, "Bytes"]),
        # null
        ("model: {gpt: {position: }}", ["model.gpt.position: null is not accepted; accepted: ALiBi, BF16Rotary, "]),
        ("model: {gpt: {norm: null}}", ["model.gpt.norm: null is not accepted; accepted: LayerNorm, RMSNorm"]),
        ("model: {gpt: {d_model: }}", ["model.gpt.d_model: null is not accepted; without this key its default"]),
        ("divergence: {max_rewinds: }", ["divergence.max_rewinds: null is not accepted; without this key its default"]),
        ("time_budget: {limit: }", ["time_budget.limit: null is not accepted"]),
        ("trainer: {accelerator: null}", ["trainer.accelerator: null is not accepted"]),
        ("lr_schedule: {class_path: Cosine, init_args: {warmup: }}", ["lr_schedule.warmup: null is not accepted"]),
        # text that looks like something else
        (
            "experiment: 1e-3",
            ["experiment: '0.001' is not accepted; accepted: str (text that looks like a number needs"],
        ),
        ("data: {class_path: Bytes, init_args: {path: 1e5}}", ["data.path: '100000.0' ", "needs quotes), list"]),
        (
            "trainer: {logger: [{class_path: CSVLogger, init_args: {save_dir: 1e5}}]}",
            ["trainer.logger.save_dir: '100000.0' is not accepted; accepted: str (text", "quotes), Path"],
        ),
        # required
        ("trainer: {callbacks: EarlyStopping}", ["trainer.callbacks.monitor: it is required"]),
        ("checkpoint: {train_time_interval: 3}", ["checkpoint.train_time_interval: '3' ", "a time like 0:30:00, null"]),
    ],
)
def test_a_rejected_value_is_named_with_the_accepted_values(resolved, text, said):
    Path("bad.yaml").write_text(text)
    line = message(resolved, "--config", "bad.yaml")
    assert [part for part in said if part not in line] == [], line


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model=null", "model: 'null' is neither a mapping of options nor a file with one; accepted: gpt, loss, "),
        ("--divergence=gone.yaml", "divergence: 'gone.yaml' is neither a mapping of options nor a file with one; "),
        ("--model.gpt=null", "model.gpt: null does not name a class; accepted: a mapping of d_model, n_heads, "),
        (
            "--trainer.logger=Wandb",
            "trainer.logger: 'Wandb' is not known; did you mean WandbLogger? accepted: CSVLogger",
        ),
        ("--trainer.callbacks+={every: 3}", f"trainer.callbacks: {{'every': 3}} {CLASS}"),
        ("--trainer.callbacks+=Cosin", "trainer.callbacks: 'Cosin' is not known; accepted: "),
        ("--lr_schedule=callbacks.Cosine", "did you mean bytelm.callbacks.Cosine?"),
    ],
)
def test_a_rejected_option_is_named_with_the_accepted_ones(resolved, option, said):
    assert said in message(resolved, option)


def test_null_is_accepted_for_optional_values(resolved):
    Path("nulls.yaml").write_text(
        "trainer: {logger: null, precision: null, max_time: null}\ncheckpoint: {monitor: null}\nexperiment: null\n"
        "model: {gpt: {d_ff: null, attention: {class_path: SDPA, init_args: {n_kv_heads: null, qk_norm: null}}}}\n"
    )
    assert resolved("--config", "nulls.yaml")["model"]["gpt"]["init_args"]["d_ff"] is None


@pytest.mark.parametrize("key", ["trainer.callbacks", "trainer.logger"])
def test_callbacks_and_loggers_that_are_rejected_are_not_suggested(resolved, key):
    line = message(resolved, f"--{key}=Nothing")
    suggested = line.partition("accepted: ")[2].split(", ")
    of_every_run = {"Cosine", "LRSchedule", "TimeBudget", "Throughput", "RunRecord", "Resume", "RunConfig", "RunLogger"}
    assert of_every_run.isdisjoint(suggested)


@pytest.mark.parametrize(("options", "key"), [([], "model.gpt"), (["--model.gpt.d_model=8"], "data")])
def test_missing_settings_are_named(parser, folder, options, key):
    with pytest.raises(UsageError, match=rf"^{key}: it is required, in a --config for example .*; accepted: "):
        parser.parse_args(options)


def test_data_of_another_kind_are_rejected_with_the_function_that_takes_them(rejected):
    code = "from lightning.pytorch import LightningDataModule\n\n\nclass Mine(LightningDataModule): ..."
    Path("my_data.py").write_text(code)
    line = rejected("--data", "my_data.Mine")
    assert "data: 'my_data.Mine' is not one of its classes; accepted: Bytes, " in line
    assert line.endswith(" of a subclass of TokenData; bytelm.fit(model=…, data=…) takes any LightningDataModule")
