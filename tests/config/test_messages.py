"""Rejected values and keys: the message names the key, the value and the accepted values."""

from pathlib import Path

import pytest

from bytelm.config.command import CommandParser
from bytelm.config.keys import classes
from bytelm.config.messages import clarify
from bytelm.config.values import PositiveInt
from bytelm.config.written import Written
from bytelm.errors import UsageError
from bytelm.units import LIMITS, Duration, accepted_forms


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
        ("--learning_rate=1", "learning_rate: unknown key; did you mean model.optimizer.lr? "),
        ("--model.optimizer=adamw", "model.optimizer: 'adamw' is not known; did you mean AdamW? "),
        ("--model.optimizer.lr=big", "model.optimizer.lr: 'big' is not accepted; accepted: a number"),
        ("--model.optimizer.betas=0.9", "model.optimizer.betas: '0.9' is not accepted; accepted: a list"),
        ("--lr_schedule.warmup=200%", "lr_schedule.warmup: '200%' is not a duration; accepted: a time"),
        ("--seed=1", "seed: unknown key; did you mean data.seed or seed_everything? "),
        ("--lr=1", "lr: unknown key; did you mean model.optimizer.lr or lr_schedule? "),
        ("--path=x", "path: unknown key; did you mean data.path or ckpt_path? "),
        ("--seq_len=1024", "seq_len: unknown key; did you mean data.seq_len? "),
        ("--block_size=1024", "block_size: unknown key; did you mean data.seq_len? "),
        ("--max_iters=9", "max_iters: unknown key; did you mean time_budget.limit? "),
        ("--DEVICE_BATCH_SIZE=9", "DEVICE_BATCH_SIZE: unknown key; did you mean data.batch_size? "),
        ("--model.optimizer.learning_rate=1", "model.optimizer.learning_rate: unknown key; did you mean lr? "),
        ("--model.gpt.n_embd=64", "model.gpt.n_embd: unknown key; did you mean d_model? "),
        ("--model.gpt.hidden_size=64", "model.gpt.hidden_size: unknown key; did you mean d_model? "),
        ("--optimizer.lr=1", "optimizer: unknown key; did you mean model.optimizer.lr? "),
        ("-trainer.devices=3", "'-trainer.devices=3' is not an option; did you mean --trainer.devices=3? "),
        ("tiny.yaml", "'tiny.yaml' is not an option; did you mean --config tiny.yaml? accepted: --key value, or "),
        ("quickstart", "'quickstart' is not an option; did you mean --config quickstart? "),
        (".", "'.' is not an option; did you mean --ckpt_path .? "),
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
    hint = message(resolved, f"--{option}=3").partition(" accepted: ")[0]
    assert in_config.partition(" accepted: ")[0] == hint
    assert in_config.endswith(" (in typo.yaml)")
    assert "did you mean " in hint


@pytest.mark.parametrize("key", ["groups.hidden.lrr", "groups.hidden.init_args.lrr", "hidden.lr"])
def test_an_option_of_a_group_is_named_with_the_group(resolved, key):
    by_group = "--model.optimizer={class_path: ByGroup, init_args: {groups: {hidden: Muon}}}"
    said = f"model.optimizer.{key.replace('.init_args', '')}: unknown key; "
    assert message(resolved, by_group, f"--model.optimizer.{key}=1").startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model.optimizer=ByGroup", "--model.optimizer.grops=3"],
            "optimizer.grops: unknown key; did you mean groups? ",
        ),
        (["--data=Bytes", "--data.pth=a"], "data.pth: unknown key; did you mean path? accepted: path, batch_size, "),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.x=3"],
            "trainer.callbacks.x: unknown key; accepted: monitor, min_delta, ",
        ),
        (
            ["--model.gpt.feedforward=own_part.Own", "--model.gpt.feedforward.x=3"],
            ".x: unknown key; accepted: size, width",
        ),
        (["--model.gpt.attention=SDPA", "--model.gpt.attention.x=3"], ".x: unknown key; accepted: n_kv_heads, "),
        (["--model.loss=CrossEntropy", "--model.loss.x=3"], ".x: unknown key; accepted: label_smoothing, "),
    ],
)
def test_the_options_of_a_class_include_required_ones_and_none_that_the_network_passes(resolved, options, said):
    Path("own_part.py").write_text(OWN_PART.replace("width", "size: int, width"))
    assert said in message(resolved, *options)


def test_the_value_of_an_option_of_the_users_class_is_named(resolved):
    Path("own_part.py").write_text(OWN_PART)
    options = ("--model.gpt.feedforward=own_part.Own", "--model.gpt.feedforward.width=big")
    said = "model.gpt.feedforward.width: 'big' is not accepted; accepted: "
    assert message(resolved, *options).startswith(said)


OWN_PART = """
import torch

class Own(torch.nn.Identity):
    def __init__(self, d_model: int, d_ff: int, width: int = 3) -> None:
        super().__init__()
"""


def test_an_option_of_another_command_has_other_programs_names():
    parser = CommandParser("generate")
    parser.add_argument("--max_new_tokens", type=int)
    with pytest.raises(UsageError, match=r"^length: unknown key; did you mean max_new_tokens\? "):
        parser.parse_args(["--length", "3"])


def test_an_unknown_option_of_another_command_is_named_with_similar_ones():
    parser = CommandParser("experiments")
    parser.add_argument("--max_runs", type=int)
    with pytest.raises(UsageError, match=r"^max_rns: unknown key; did you mean max_runs\? accepted: max_runs$"):
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
        (
            "model: {gpt: {attention: {class_path: Attention, init_args: {x: 3}}}}",
            ["model.gpt.attention: Attention does"],
        ),
        ("model: {gpt: {feedforward: json.loads}}", ["nor a function that is declared to return a FeedForward)"]),
        ("model: {gpt: {norm: null}}", ["model.gpt.norm: null is not accepted; accepted: LayerNorm, RMSNorm"]),
        ("model: {gpt: {d_model: }}", ["model.gpt.d_model: null is not accepted; leave the key out for its default"]),
        (
            "divergence: {max_rewinds: }",
            ["divergence.max_rewinds: null is not accepted; leave the key out for its default"],
        ),
        ("time_budget: {limit: }", ["time_budget.limit: null is not accepted"]),
        ("trainer: {accelerator: null}", ["trainer.accelerator: null is not accepted"]),
        ("lr_schedule: {class_path: Cosine, init_args: {warmup: }}", ["lr_schedule.warmup: null is not accepted"]),
        # text that looks like something else
        (
            "experiment: 1e-3",
            ["experiment: '0.001' is not accepted; accepted: str (text that looks like a number needs"],
        ),
        ("data: {class_path: Bytes, init_args: {path: 1e5}}", ["data.path: '100000.0' ", "needs quotes), a list"]),
        (
            "trainer: {logger: [{class_path: CSVLogger, init_args: {save_dir: 1e5}}]}",
            ["trainer.logger.save_dir: '100000.0' is not accepted; accepted: str (text", "quotes), Path"],
        ),
        # required
        (
            "trainer: {callbacks: EarlyStopping}",
            ["trainer.callbacks.monitor: EarlyStopping requires it: {class_path: EarlyStopping, init_args: {monitor:"],
        ),
        # options beside class_path
        (
            "model: {optimizer: {class_path: MuonAdamW, lr: 0.01}}",
            ["model.optimizer.lr: it belongs under init_args: {class_path: MuonAdamW, init_args: {lr: …}} (in "],
        ),
        (
            "model: {gpt: {attention: {class_path: SDPA, qk_norm: RMSNorm}}}",
            ["model.gpt.attention.qk_norm: it belongs under init_args: {class_path: SDPA, "],
        ),
        ("model.optimizer: {class_path: AdamW, lr: 3}", ["model.optimizer.lr: it belongs under init_args: "]),
        ("lr_schedule: {class_path: Cosine, warmup: 5%}", ["lr_schedule.warmup: it belongs under init_args: "]),
        (
            "trainer: {callbacks: [{class_path: EarlyStopping, monitor: val/bpb}]}",
            ["trainer.callbacks.monitor: it belongs under init_args: {class_path: EarlyStopping, "],
        ),
        ("trainer: {logger: {class_path: CSVLogger, save_dir: x}}", ["trainer.logger.save_dir: it belongs under "]),
        ("data: {class_path: Bytes, path: x}", ["data.path: it belongs under init_args: {class_path: Bytes, "]),
        # durations
        (
            "time_budget: {limit: 1:30}",
            ["time_budget.limit: 1:30 is not a duration (YAML reads it as 90); accepted: a "],
        ),
        (
            "time_budget: {limit: [500 steps, 1:30]}",
            ["time_budget.limit: 1:30 is not a duration (YAML reads it as 90)"],
        ),
        ("time_budget: {limit: 90}", ["time_budget.limit: 90 is not a duration; accepted: a time"]),
        (
            "lr_schedule: {class_path: Cosine, init_args: {warmup: 1:30}}",
            ["1:30 is not a duration (YAML reads it as 90)"],
        ),
        # names without their section
        (
            "n_heads: 5",
            ["n_heads: unknown key; did you mean model.gpt.n_heads? accepted: experiment, ", "samples, base ("],
        ),
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
        (
            "--trainer.callbacks+=collections.OrderedDict",
            "trainer.callbacks: 'collections.OrderedDict' is not a subclass of Callback; accepted: ",
        ),
        (
            "--trainer.callbacks+=Cosine",
            "trainer.callbacks: 'Cosine' is not known; it is given with the key lr_schedule",
        ),
        (
            "--model.gpt.feedforward=collections.OrderedDict",
            "'collections.OrderedDict' is not a subclass of FeedForward; accepted: ",
        ),
        ("--data=corpus.txt", "data: 'corpus.txt' "),
        ("--data=corpus.txt", "accepted: Bytes, Documents, "),
        ("--data=corpus.txt", "; for your own text: --data Bytes --data.path FILE"),
        ("--data=/no/where.txt", "; for your own text: --data Bytes --data.path FILE"),
        ("--data=null", "; for your own text: --data Bytes --data.path FILE"),
        ("--lr_schedule=callbacks.Cosine", "did you mean bytelm.callbacks.Cosine?"),
    ],
)
def test_a_rejected_option_is_named_with_the_accepted_ones(resolved, option, said):
    assert said in message(resolved, option)


SOURCE = "data.path: unknown key; it is an option of Bytes, Documents, TokenShards (--data Bytes --data.path …); "


def test_an_option_of_another_class_is_named_with_the_class(resolved):
    assert SOURCE in message(resolved, "--config=quickstart", "--data=PythonSource", "--data.path=x")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--time_budget.limit"], f"time_budget.limit: its value is missing; {accepted_forms(*LIMITS)}"),
        (["--time_budget.limit", "-5s"], f"time_budget.limit: '-5s' is not accepted; {accepted_forms(*LIMITS)}"),
        (["--time_budget.limit", "--trainer.devices=1"], "time_budget.limit: its value is missing; "),
        (["--config"], "config: its value is missing; accepted: a YAML file, or a shipped config such as quickstart"),
        (["--trainer.devices"], "trainer.devices: its value is missing; accepted: --trainer.devices VALUE"),
        # what a key accepts
        (["--time_budget.limit=30"], f"time_budget.limit: '30' is not a duration; {accepted_forms(*LIMITS)}"),
        (["--time_budget.limit=10 epochs"], f"'10 epochs' is not a duration; {accepted_forms(*LIMITS)}"),
        (["--time_budget.reserve=30"], f"'30' is not a duration; {accepted_forms('seconds', 'fraction')}"),
        (["--lr_schedule.warmup=30"], f"lr_schedule.warmup: '30' is not a duration; {accepted_forms()}"),
    ],
)
def test_a_missing_or_invalid_value_is_named_with_what_its_key_accepts(resolved, options, said):
    assert said in message(resolved, *options)


def test_a_positional_argument_is_given_without_its_name():
    parser = CommandParser("completion")
    parser.add_argument("shell", choices=["bash", "zsh"])
    for given, said in (
        (["--shell", "zsh"], "shell: it is given without its name; accepted: completion zsh"),
        (["--shell=zsh"], "shell: it is given without its name; accepted: completion zsh"),
        (["fish"], "shell: 'fish' is not accepted; accepted: 'bash', 'zsh'"),
    ):
        with pytest.raises(UsageError) as error:
            parser.parse_args(given)
        assert str(error.value) == said


def test_choices_and_exclusive_options_of_a_script_are_reported_like_others():
    parser = CommandParser(prog="script.py")
    parser.add_argument("--pattern", choices=["gpt2", "gpt4"])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--val_tokens", type=PositiveInt)
    group.add_argument("--val_fraction", type=float)
    for given, said in (
        (["--pattern", "gpt5"], "pattern: 'gpt5' is not accepted; accepted: 'gpt2', 'gpt4'"),
        (["--val_tokens", "-1"], "val_tokens: '-1' is not accepted; accepted: a whole number above 0"),
        (
            ["--val_fraction", "0.1", "--val_tokens", "1"],
            "val_tokens: it is given beside val_fraction; accepted: one of the two",
        ),
    ):
        with pytest.raises(UsageError) as error:
            parser.parse_args(given)
        assert str(error.value) == said


def test_each_time_limit_of_a_command_accepts_times_alone():
    parser = CommandParser("experiments")
    parser.add_argument("--total_time", type=Duration)
    for given in ("60", "5 epochs"):
        with pytest.raises(UsageError) as error:
            parser.parse_args([f"--total_time={given}"])
        assert str(error.value) == f"total_time: {given!r} is not a duration; accepted: a time (180s, 3m, 1h30m, 250ms)"


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
    rejected = {"Timer", "ModelPruning", "BatchSizeFinder", "LearningRateFinder", "StochasticWeightAveraging"}
    rejected |= {"GradientAccumulationScheduler", "SpikeDetection", "Checkpoint", "ProgressBar"}
    assert (of_every_run | rejected).isdisjoint(suggested)


@pytest.mark.parametrize(("options", "key"), [([], "model.gpt"), (["--model.gpt.d_model=8"], "data")])
def test_missing_settings_are_named(parser, folder, options, key):
    with pytest.raises(UsageError, match=rf"^{key}: it is required, in a --config for example .*; accepted: "):
        parser.parse_args(options)


def test_a_checkpoint_without_its_config_is_answered_with_the_config_of_its_run(folder):
    config = Path("runs/x/version_0/config.yaml")
    config.parent.mkdir(parents=True)
    config.touch()
    report = "the following arguments are required: model.gpt, data"
    said = f"model.gpt: it is required; did you mean --config {config} --ckpt_path runs/x?"
    assert clarify(report, classes(), written=Written(["--ckpt_path", "runs/x"])) == said


def test_data_of_another_kind_are_rejected_with_the_function_that_takes_them(rejected):
    code = "from lightning.pytorch import LightningDataModule\n\n\nclass Mine(LightningDataModule): ..."
    Path("my_data.py").write_text(code)
    line = rejected("--data", "my_data.Mine")
    assert "data: 'my_data.Mine' is not a subclass of TokenData; accepted: Bytes, " in line
    assert line.endswith(" of a subclass of TokenData; bytelm.fit(model=…, data=…) takes any LightningDataModule")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.gpt.n_heads=3"], "model.gpt.n_heads: 3 cannot be used; accepted: divisors of d_model"),
        (["--model.gpt.attention.n_kv_heads=7"], "model.gpt.attention.n_kv_heads: 7 cannot be used; "),
    ],
)
def test_an_error_of_a_constructor_names_the_whole_key(rejected, options, said):
    assert f"bytelm: error: {said}" in rejected(*options)


def test_a_folder_in_place_of_a_config_is_answered_with_its_config(rejected):
    Path("runs/x/version_0").mkdir(parents=True)
    assert "config: 'runs' cannot be used; it is a directory; accepted: a YAML file" in rejected("--config", "runs")
    own = Path("runs/x/version_0/config.yaml")
    own.touch()
    assert f"it is a directory; did you mean {own}? accepted" in rejected("--config", str(own.parent))
