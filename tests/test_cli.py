"""The command line: accepted configs, the files of a run, and rejections."""

import hashlib
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from added_callback import added_callback
from lightning.pytorch import Callback, seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from thinned import thinned

from bytelm.callbacks import Cosine, Schedules
from bytelm.cli import build
from bytelm.language_model import LanguageModel
from bytelm.lightning_output import quieten
from bytelm.program import main
from bytelm.runs.summaries import LAYOUT

PROJECT = Path(__file__).resolve().parents[1]


def printed(text):
    """The `key: value` lines of standard output."""
    return dict(line.split(": ", 1) for line in text.splitlines())


# Files of a run


def test_a_run_leaves_config_events_checkpoints_and_record(run, capsys):
    run("--trainer.val_check_interval", "2")
    folder = Path("runs/tiny/version_0")
    names = {path.relative_to(folder).as_posix().split(".out.")[0] for path in folder.rglob("*") if path.is_file()}
    files = {
        "config.yaml",
        "events",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "record.json",
        "validations.jsonl",
    }
    assert names == files | {".lock"}

    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "completed"
    assert record["total_steps"] == 4
    assert record["tokens_seen"] == 4 * 4 * 32
    assert record["num_params_M"] == 0.0064
    assert record["seed"] == 42
    assert (record["device"], record["strategy"], record["precision"]) == ("cpu", "SingleDeviceStrategy", "32-true")
    assert record["corpus"]["name"] == "corpus.txt"
    assert record["corpus"]["bytes"] == Path("corpus.txt").stat().st_size
    assert re.fullmatch("[0-9a-f]{64}", record["corpus"]["sha256"])
    assert set(record["versions"]) == {"python", "torch", "lightning", "bytelm"}
    assert 0 < record["training_time_secs"] < record["total_time_secs"]
    assert record["tokens_per_sec"] == pytest.approx(record["tokens_seen"] / record["training_time_secs"], rel=0.1)
    assert record["peak_memory_mb"] > 100
    assert record["git"] is None  # the folder is no repository

    output = printed(capsys.readouterr().out)
    assert output["val_bpb"] == f"{record['val_bpb']:.4f}"
    assert output["train_loss"] == f"{record['train_loss']:.4f}"
    assert output["total_steps"] == "4"
    assert output["run"] == str(folder)


def test_tensorboard_has_every_tag_and_compares_runs_by_val_bpb(run):
    Path("wider.yaml").write_text("base: tiny.yaml\nmodel: {gpt: {d_ff: 48}}\ntrainer: {val_check_interval: 2}\n")
    run("--model.gpt.position", "ALiBi", "--experiment", "tiny", config="wider.yaml")
    events = EventAccumulator("runs/tiny/version_0")
    events.Reload()
    record = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "val/loss", "val/bpb", "lr/hidden", "lr/embedding", "lr/vector"),
        *("throughput/tokens_per_sec", "time_budget/progress", "grad/norm"),
    }
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert len(events.Scalars("val/bpb")) == 2
    assert events.Scalars("val/bpb")[-1].value == pytest.approx(record["val_bpb"], abs=1e-5)
    assert [event.value for event in events.Scalars("time_budget/progress")] == pytest.approx([0.25, 0.5, 0.75, 1.0])

    summaries = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(summaries)
    start = summaries["_hparams_/session_start_info"].plugin_data.content
    for key in (b"gpt.d_model", b"gpt.position", b"ALiBi", b"optimizer.lr", b"time_budget.limit", b"lr_schedule"):
        assert key in start
    shown = HParamsPluginData.FromString(summaries["_hparams_/experiment"].plugin_data.content).experiment
    assert [metric.name.tag for metric in shown.metric_infos] == ["val/bpb"]
    assert {info.name for info in shown.hparam_infos if info.differs} == {"gpt.d_ff", "gpt.position"}
    assert summaries["custom_scalars__config__"].plugin_data.plugin_name == "custom_scalars"
    charts = [tag for category in LAYOUT.values() for _, tags in category.values() for tag in tags]
    assert [tag for tag in charts if not any(re.search(tag, each) for each in events.Tags()["scalars"])] == []


def test_accumulated_batches_log_once_a_step(run):
    run("--trainer.accumulate_grad_batches", "3", "--time_budget.limit", "5 steps", "--trainer.log_every_n_steps", "2")
    events = EventAccumulator("runs/tiny/version_0")
    events.Reload()
    for tag in ("train/loss", "grad/norm", "lr/hidden", "throughput/tokens_per_sec", "time_budget/progress"):
        assert [event.step for event in events.Scalars(tag)] == [1, 3], tag


def test_mfu_is_logged_where_the_peak_is_known(run):
    run("--throughput.peak_flops", "1e9")
    events = EventAccumulator("runs/tiny/version_0")
    events.Reload()
    speed, mfu = (events.Scalars(f"throughput/{name}")[-1].value for name in ("tokens_per_sec", "mfu"))
    params = 256 * 16 + (16 * 48 + 48) + (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 3 * 32
    assert mfu == pytest.approx(speed * (6 * params + 12 * 16 * 32) / 1e9, rel=1e-4)
    record = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert record["mfu"] == pytest.approx(record["tokens_per_sec"] * (6 * params + 12 * 16 * 32) / 1e9, rel=1e-2)


def test_every_run_has_its_own_folder(run, trained):
    run()
    run("--experiment", "other")
    assert sorted(path.as_posix() for path in Path("runs").glob("*/*")) == [
        "runs/other/version_0",
        "runs/tiny/version_0",
        "runs/tiny/version_1",
    ]


def test_the_resolved_config_repeats_the_run_exactly(run):
    run("--lr_schedule", "Cosine", "--lr_schedule.warmup", "2 steps", "--data.order", "shuffled")
    run(config="runs/tiny/version_0/config.yaml")
    first, second = (json.loads(Path(f"runs/tiny/version_{n}/record.json").read_text()) for n in (0, 1))
    assert (first["val_bpb"], first["train_loss"]) == (second["val_bpb"], second["train_loss"])


def test_output_does_not_change_training(run):
    run("--trainer.log_every_n_steps", "1", "--experiment", "shown")
    run("--trainer.log_every_n_steps", "1000", "--trainer.enable_progress_bar", "false", "--experiment", "silent")
    shown, silent = (torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("shown", "silent"))
    for name, value in shown["state_dict"].items():
        assert torch.equal(value, silent["state_dict"][name]), name


def test_the_bar_shows_steps_loss_speed_and_time_left_on_standard_error(run, capsys):
    run("--time_budget.limit", "12 steps")
    captured = capsys.readouterr()
    assert re.search(r"step [\d,]+ \| loss \d\.\d+ \| [\d,]+ tok/s \| \d:\d\d left", captured.err)
    assert "tok/s |" not in captured.out


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"],
        ["--trainer.fast_dev_run", "true"],
        ["--trainer.enable_progress_bar", "false"],
    ],
)
def test_loggers_checkpoints_and_bar_can_be_switched_off(run, capsys, options):
    run(*options)
    assert float(printed(capsys.readouterr().out)["val_bpb"]) > 0


# The other subcommands


def test_validate_repeats_the_score_and_test_takes_the_whole_split(run, capsys):
    run()
    fitted = printed(capsys.readouterr().out)
    checkpoint = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    run(*checkpoint, subcommand="validate")
    assert printed(capsys.readouterr().out)["val_bpb"] == fitted["val_bpb"]
    run(*checkpoint, "--data.eval_bytes", "1000000", subcommand="validate")
    whole = printed(capsys.readouterr().out)["val_bpb"]
    assert whole != fitted["val_bpb"]
    run(*checkpoint, subcommand="test")
    captured = capsys.readouterr()
    assert printed(captured.out)["test_bpb"] == whole
    assert "testing: 100%" in captured.err
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_a_score_of_an_untrained_network_is_noted(run, capsys, subcommand):
    run("--data.eval_bytes", "64", subcommand=subcommand)
    line = "bytelm: note: the network is untrained: its weights are those of the seed; --ckpt_path names a trained one"
    assert capsys.readouterr().err.count(line) == 1


@pytest.mark.parametrize("given", ["last", "some.ckpt"])
def test_a_test_of_one_batch_cannot_resume(rejected, given):
    line = rejected("--trainer.fast_dev_run", "true", "--ckpt_path", given)
    assert line.endswith(
        "trainer.fast_dev_run: True cannot be used; it cannot resume a run; accepted: without --ckpt_path"
    )


def test_predict_writes_the_cost_of_each_byte(run, trained, capsys):
    checkpoint = "runs/tiny/version_0/checkpoints/last.ckpt"
    run("--ckpt_path", checkpoint, "--data.eval_bytes", "1000000", subcommand="validate")
    score = float(printed(capsys.readouterr().out)["val_bpb"])
    run("--ckpt_path", checkpoint, subcommand="predict")
    predictions = torch.load(printed(capsys.readouterr().out)["predictions"])
    text = Path("corpus.txt").read_bytes()
    split = text[int(len(text) * 0.9) :]
    assert bytes(predictions["targets"].flatten().tolist()) == split[: len(split) // 32 * 32]
    assert predictions["bits"].mean().item() == pytest.approx(score, abs=1e-4)


def test_a_checkpoint_rebuilds_its_model_without_the_config(run):
    cli = run("--model.gpt.position", "ALiBi", "--model.gpt.d_model", "24")
    checkpoint = "runs/tiny/version_0/checkpoints/last.ckpt"
    torch.load(checkpoint, weights_only=True)
    model = LanguageModel.load_from_checkpoint(checkpoint, weights_only=True)
    tokens = torch.randint(256, (2, 32))
    torch.testing.assert_close(model.eval()(tokens), cli.model.eval()(tokens))


# Configs


def test_several_configs_merge_in_order_and_options_come_last(folder):
    Path("second.yaml").write_text("model: {gpt: {d_ff: 48, n_layers: 2}}\nlr_schedule: Cosine\n")
    cli = build(
        ["--config", "tiny.yaml", "--config", "second.yaml", "--model.gpt.n_layers=3", "--lr_schedule.warmup=5%"],
        run=False,
    )
    assert [len(cli.model.gpt.blocks), cli.model.gpt.blocks[0].feedforward.up.out_features] == [3, 48]
    assert cli.model.gpt.d_model == 16
    schedule = Schedules.of(cli.trainer).schedules["lr"]
    assert isinstance(schedule, Cosine)
    assert str(schedule.warmup) == "5%"
    assert str(cli.trainer.logger.name) == "tiny+second"


def test_an_option_that_a_later_config_replaces_is_noted(folder, capsys):
    Path("base.yaml").write_text("base: tiny.yaml\nmodel.gpt.feedforward: SwiGLU\n")
    Path("my.yaml").write_text("base: base.yaml\ntrainer: {log_every_n_steps: 2}\n")
    before = ["--model.gpt.feedforward=MLP", "--model.gpt.position", "ALiBi", "--model.gpt.n_layers", "3"]
    before += ["--trainer.log_every_n_steps=5", "--model.optimizer.lr", "1"]
    cli = build(["fit", *before, "-c", "my.yaml", "--model.gpt.n_layers=2", "--time_budget.limit", "1 steps"])
    gpt = cli.model.gpt
    assert [type(part).__name__ for part in (gpt.blocks[0].feedforward, gpt.position)] == ["SwiGLU", "ALiBi"]
    assert len(gpt.blocks) == 2
    noted = re.findall(r"note: --(\S+) has no effect: a --config after it sets this key", capsys.readouterr().err)
    assert noted == ["model.gpt.feedforward", "trainer.log_every_n_steps", "model.optimizer.lr"]


def test_print_config_needs_no_config(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--print_config=skip_default"])
    assert ended.value.code == 0
    assert "lr_schedule" in yaml.safe_load(capsys.readouterr().out)
    assert not Path("runs").exists()


def test_print_config_prints_the_resolved_config(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "tiny.yaml", "--model.gpt.position", "Learned", "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["gpt"]["init_args"]["position"] == {
        "class_path": "bytelm.parts.position.Learned",
        "init_args": {"std": 0.02},
    }
    assert config["time_budget"]["limit"] == "4 steps"
    assert config["lr_schedule"]["class_path"].endswith("Constant")


MY_PARTS = """
from torch import nn
from bytelm.parts.feedforward import MLP
from bytelm.callbacks import LRSchedule

class Tanh(MLP):
    def activation(self, x):
        return x.tanh()

class Halving(LRSchedule):
    def multiplier(self, progress):
        return 0.5 ** (4 * progress.fraction)
"""


@pytest.mark.parametrize("name", ["my_parts.Tanh", "{class_path: my_parts.Tanh, init_args: {dropout: 0.1}}"])
def test_parts_of_the_users_own_are_named_by_import_path(run, folder, name):
    Path("my_parts.py").write_text(MY_PARTS)
    cli = run("--model.gpt.feedforward", name, "--lr_schedule", "my_parts.Halving")
    assert type(cli.model.gpt.blocks[0].feedforward).__name__ == "Tanh"
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-3 * 0.5**3)
    content = hashlib.sha256(MY_PARTS.encode()).hexdigest()
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["code"] == {"my_parts.py": content[:12]}


def test_a_function_of_nanogpts_form_sets_the_rate(run):
    Path("my_schedules.py").write_text(
        "def get_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr):\n"
        "    return learning_rate * (it + 1) / warmup_iters if it < warmup_iters else min_lr\n"
    )
    schedule = "{class_path: FromFunction, init_args: {function: my_schedules.get_lr, warmup_iters: 2, min_lr: 1e-5}}"
    run("--lr_schedule", schedule)
    events = EventAccumulator("runs/tiny/version_0")
    events.Reload()
    rates = [event.value for event in events.Scalars("lr/hidden")]
    assert rates == pytest.approx([1.5e-3, 3e-3, 1e-5, 1e-5])
    assert "function: my_schedules.get_lr" in Path("runs/tiny/version_0/config.yaml").read_text()


def test_a_function_of_nanogpts_form_scales_the_rate_of_each_group(run):
    Path("my_schedules.py").write_text(
        "def get_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr):\n"
        "    return min_lr + (learning_rate - min_lr) * (1 - it / lr_decay_iters)\n"
    )
    schedule = "{class_path: FromFunction, init_args: {function: my_schedules.get_lr, min_lr: 1e-3}}"
    muon = "{class_path: MuonAdamW, init_args: {lr: 2e-2, adamw_lr: 1e-2}}"
    run("--lr_schedule", schedule, "--model.optimizer", muon)
    events = EventAccumulator("runs/tiny/version_0")
    events.Reload()
    # The function sees the higher rate; the floor is 1/20 of the rate of each group.
    for group, peak in (("hidden", 2e-2), ("embedding", 1e-2)):
        rates = [event.value for event in events.Scalars(f"lr/{group}")]
        assert rates == pytest.approx([peak / 20 + peak * 19 / 20 * (1 - it / 4) for it in range(4)])


def test_the_runs_seed_decides_on_the_shuffled_order_unless_the_data_have_one(run):
    batches = []
    for seed, data_seed in (("1", "null"), ("2", "null"), ("1", "7"), ("2", "7")):
        cli = run("--seed_everything", seed, "--data.order", "shuffled", "--data.seed", data_seed)
        _, targets = next(iter(cli.datamodule.train_dataloader()))
        batches.append(bytes(targets.flatten().tolist()))
    assert batches[2] == batches[3]
    assert len(set(batches)) == 3


@pytest.mark.parametrize("by", ["option", "config"])
def test_a_part_in_the_place_of_another_has_its_own_defaults_and_keeps_what_was_given(folder, by):
    Path("swap.yaml").write_text("model: {gpt: {norm: RMSNorm}, optimizer: SGD}\n")
    swap = ["--config", "swap.yaml"] if by == "config" else ["--model.gpt.norm=RMSNorm", "--model.optimizer=SGD"]
    cli = build(["--config", "tiny.yaml", *swap], run=False)
    assert cli.model.gpt.blocks[0].attention_norm.eps == 1e-6  # LayerNorm has 1e-5
    (group, *_) = cli.model.configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-3, 0)  # of tiny.yaml; AdamW has 0.01


PARTS = {
    "position": ["Learned", "Rotary", "Sinusoidal", "ALiBi", "NoPosition"],
    "embedding": ["TokenEmbedding", "ScaledEmbedding"],
    "attention": ["SDPA", "Explicit", "{class_path: SDPA, init_args: {qk_norm: RMSNorm, n_kv_heads: 1}}"],
    "feedforward": ["ReLU", "GELU", "SiLU", "ReLUSquared", "SwiGLU", "GeGLU"],
    "norm": ["LayerNorm", "RMSNorm", "{class_path: RMSNorm, init_args: {weight: false}}"],
    "block": ["PreNorm", "PostNorm", "Parallel"],
}


@pytest.mark.parametrize(
    ("key", "name"), thinned([(key, name) for key, names in PARTS.items() for name in names], 8, several=True)
)
def test_every_part_is_one_option_away(run, capsys, key, name):
    run(f"--model.gpt.{key}", name, "--time_budget.limit", "2 steps", "--trainer.logger", "false")
    assert float(printed(capsys.readouterr().out)["val_bpb"]) < 9


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "Lion", "MuonAdamW", "SGD"])
def test_every_optimizer_is_one_option_away(run, optimizer):
    cli = run("--model.optimizer", optimizer, "--time_budget.limit", "2 steps", "--trainer.logger", "false")
    assert type(cli.trainer.optimizers[0]).__name__ == optimizer


def test_the_quickstart_builds_and_says_how_it_is_run(folder):
    config = "configs/quickstart.yaml"
    cli = build(["--config", str(PROJECT / config)], run=False)
    assert cli.model.gpt.num_params() == 626_048 + 7 * 32 * (32_768 + 128)  # the network, tables and their projection
    assert (PROJECT / config).read_text().startswith(f"# python -m bytelm fit --config {config}\n")


# Rejections


@pytest.mark.parametrize(
    ("option", "said"),
    thinned(
        [
            # unknown keys
            ("--model.gpt.d_modell=3", ["model.gpt.d_modell", "did you mean d_model?"]),
            ("--data.batchsize=3", ["data.batchsize", "did you mean batch_size?"]),
            ("--lr_schedule.warmpu=3%", ["lr_schedule.warmpu", "accepted: warmup"]),
            (
                "--model.gpt.position={class_path: Rotary, init_args: {bse: 3}}",
                ["model.gpt.position.bse", "base"],
            ),
            ("--model.optimizer.weight_decy=0.1", ["model.optimizer.weight_decy", "did you mean weight_decay?"]),
            # unknown classes
            ("--model.gpt.position=Rotray", ["model.gpt.position", "'Rotray'", "did you mean Rotary?", "ALiBi"]),
            (
                "--model.gpt.position=nowhere.Mine",
                ["model.gpt.position", "'nowhere.Mine'", "No module named 'nowhere'"],
            ),
            ("--model.gpt.position=torch.nn.Linear", ["model.gpt.position", "'torch.nn.Linear'", "Learned"]),
            ("--model.gpt.norm=Rotary", ["model.gpt.norm", "'Rotary'", "LayerNorm, RMSNorm"]),
            ("--model.optimizer=AdamX", ["model.optimizer", "'AdamX'", "MuonAdamW"]),
            ("--lr_schedule=Cosin", ["lr_schedule", "'Cosin'", "did you mean Cosine?"]),
            ("--data=Shakespear", ["data", "'Shakespear'", "did you mean Shakespeare?"]),
            ("--trainer.callbacks=[Thrughput]", ["trainer.callbacks", "'Thrughput'"]),
            # wrong types and values out of range
            ("--model.gpt.d_model=abc", ["model.gpt.d_model", "'abc'", "a whole number above 0"]),
            ("--model.gpt.n_layers=0", ["model.gpt.n_layers", "0", "a whole number above 0"]),
            ("--model.gpt.dropout=1.5", ["model.gpt.dropout", "1.5", "a number from 0 to 1"]),
            ("--data.order=random", ["data.order", "'random'", "'sequential', 'shuffled'"]),
            ("--trainer.gradient_clip_val=abc", ["trainer.gradient_clip_val", "'abc'", "float"]),
            ("--time_budget.limit=-3s", ["time_budget.limit", "'-3s'", "180s, 3m"]),
            ("--time_budget.limit=180", ["time_budget.limit", "180", "180s, 3m"]),
            ("--time_budget.limit=[60s, 3 stops]", ["time_budget.limit", "'3 stops'", "500 steps"]),
            ("--time_budget.limit=0s", ["time_budget.limit", "'0s'", "above 0"]),
            ("--time_budget.scope=all", ["time_budget.scope", "'all'", "'training', 'run'"]),
            ("--lr_schedule.warmup=9 stops", ["lr_schedule.warmup", "'9 stops'", "500 steps"]),
            # values that do not fit together
            ("--model.gpt.n_heads=3", ["n_heads", "3", "divisors of d_model, which is 16"]),
            ("--model.gpt.n_heads=16", ["d_model", "16", "even head dimension"]),
            (
                "--model.gpt.attention={class_path: SDPA, init_args: {n_kv_heads: 4}}",
                ["n_kv_heads", "4", "divisors of"],
            ),
            ("--trainer.accelerator=nothing", ["trainer", "'nothing'"]),
            ("--trainer.strategy=nothing", ["trainer", "'nothing'"]),
            ("--experiment=../elsewhere", ["experiment", "'../elsewhere'", "runs/"]),
            ("--experiment=/elsewhere", ["experiment", "'/elsewhere'"]),
            ("--divergence.max_rewinds=-1", ["divergence.max_rewinds", "-1"]),
            ("--last_checkpoint.every=0s", ["last_checkpoint.every", "'0s'", "more than 0"]),
            ("--data.seq_len=64", ["seq_len", "64", "up to max_seq_len, which is 32"]),
            ("--model.gpt.vocab_size=100", ["vocab_size", "100", "from 256"]),
            ("--model.optimizer.lr=-1", ["model.optimizer", "AdamW", "-1"]),
            (
                "--lr_schedule={class_path: WarmupStableDecay, init_args: {warmup: 60%, decay: 50%}}",
                ["decay", "50%"],
            ),
        ],
        16,
        several=True,
    ),
)
def test_a_bad_value_is_rejected_in_one_line_before_anything_is_made(rejected, option, said):
    line = rejected(option)
    assert line.startswith("bytelm: error: ")
    assert [part for part in said if part not in line] == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("foo: 3\n", "foo"),
        ("trainer: {acelerator: cpu}\n", "trainer.acelerator"),
        ("model: {gtp: {d_model: 3}}\n", "model.gtp"),
    ],
)
def test_an_unknown_key_of_a_config_is_named(rejected, text, key):
    Path("more.yaml").write_text(text)
    assert f"{key}: unknown key" in rejected("--config", "more.yaml")


def test_a_missing_config_is_named(rejected):
    assert "nowhere.yaml" in rejected("--config", "nowhere.yaml")


def test_runs_of_one_process_use_one_parser_and_do_not_change_it(run):
    first = run("--trainer.enable_checkpointing", "false")
    second = run()
    assert first._subcommand_parsers["fit"] is second._subcommand_parsers["fit"]
    assert not list(first.folder.path.rglob("*.ckpt"))
    assert {path.name for path in second.folder.path.rglob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    assert first.parser is not second.parser


def test_hints_of_lightning_are_left_out_where_logging_is_configured_too(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.fabric"), "propagate", True)  # as if the root logger had a handler
    monkeypatch.setattr(logging.getLogger("lightning.fabric"), "handlers", [])
    (console,) = logging.getLogger("lightning").handlers
    monkeypatch.setattr(console, "stream", sys.stderr)
    monkeypatch.setattr(console, "filters", [])
    seed_everything(42)
    assert "Seed" in capsys.readouterr().err
    quieten()
    seed_everything(42)
    assert "Seed" not in capsys.readouterr().err


def test_a_new_run_is_not_resumed_from_what_a_failed_one_has_left(run, rejected, capsys):
    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 2:
                raise ValueError("failed")

    keeping = ("--trainer.callbacks+=OnExceptionCheckpoint", "--trainer.callbacks.dirpath", "failed")
    with added_callback(Fail()), pytest.raises(ValueError, match="failed"):
        run(*keeping, "--time_budget.limit", "3 steps")
    capsys.readouterr()
    line = rejected(*keeping, "--time_budget.limit", "3 steps", "--experiment", "new")
    assert "trainer.callbacks.dirpath: 'failed' cannot be used; failed/on_exception.ckpt is there" in line
    assert not Path("runs/new").exists()
    run(*keeping, "--time_budget.limit", "3 steps", "--ckpt_path", "failed/on_exception.ckpt")
    assert "resume  after step 2, with 1 steps left" in capsys.readouterr().err
