"""The GPT-2 configs are GPT-2, and the changes of docs/gpt2.md work with them."""

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from thinned import thinned
from torch import nn

from bytelm.budget import Progress
from bytelm.callbacks import Schedules
from bytelm.cli import build
from bytelm.data.shard_file import write_shard
from bytelm.data.shards import TokenShards
from bytelm.language_model import LanguageModel
from bytelm.optim import Lion, MuonAdamW
from bytelm.parts.attention import FlashAttention
from bytelm.parts.bigram_hash import BigramHash
from bytelm.parts.bitnet import BitLinear
from bytelm.parts.block import Parallel, ParallelSharedNorm, PostNorm
from bytelm.parts.embedding import HashedNGrams, ValueEmbedding
from bytelm.parts.feedforward import GELU, FusedGELU, GeGLU, ReLUSquared, SwiGLU
from bytelm.parts.hyper_connections import HyperConnections
from bytelm.parts.linear_attention import DeltaNet, GatedLinearAttention, Retention
from bytelm.parts.logit_cap import SigmoidCap
from bytelm.parts.loss import FusedCrossEntropy
from bytelm.parts.norm import LayerNorm, RMSNorm
from bytelm.parts.position import Learned, Rotary
from bytelm.parts.residual_scalars import ScaledPreNorm
from configs import merged

PROJECT = Path(__file__).resolve().parents[1]
DOCS = (PROJECT / "docs/gpt2.md").read_text()
CHANGES = dict(re.findall(r"^\| ([^|]+) \| `(--[^`]+)` \|", DOCS, re.MULTILINE))
BASE = str(PROJECT / "configs/gpt2/124m.yaml")
H200 = str(PROJECT / "configs/devices/h200.yaml")
SCHEDULES = sorted((PROJECT / "configs/schedules").glob("*.yaml"))
CONFIGS = [*sorted((PROJECT / "configs/gpt2").glob("*.yaml")), *SCHEDULES]
STEPS = 5_000

TINY = [
    *("--model.gpt.d_model=32", "--model.gpt.n_heads=2", "--model.gpt.n_layers=2", "--model.gpt.vocab_size=64"),
    *("--model.gpt.max_seq_len=32", "--model.compile=false"),
    *(
        "--data.path=shards",
        "--data.seq_len=32",
        "--data.batch_size=2",
        "--data.vocab_size=61",
        "--data.tokenizer=null",
    ),
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.accumulate_grad_batches=2"),
    *("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"),
    "--time_budget.limit=2 steps",
]


@pytest.fixture
def shards(folder):
    """A folder `shards` with a thousand tokens to train on, and half as many that validate."""
    tokens = np.random.default_rng(0).integers(61, size=1_500).astype(np.uint16)
    Path("shards").mkdir()
    write_shard(Path("shards/tiny_train_000001.bin"), tokens[:1_000])
    write_shard(Path("shards/tiny_val_000000.bin"), tokens[1_000:])


# The configs


def network(config):
    """The network of a config, without memory for its weights."""
    parser = ArgumentParser()
    parser.add_class_arguments(LanguageModel, "model")
    said = parser.parse_object({"model": {"gpt": merged(config)["model"]["gpt"]}})
    with torch.device("meta"):
        return parser.instantiate(said).model.gpt


@pytest.mark.parametrize(
    ("name", "n_layers", "d_model", "millions"),
    [("124m", 12, 768, 124), ("345m", 24, 1024, 355), ("1.5b", 48, 1600, 1557)],
)
def test_a_size_has_gpt2s_parameters(name, n_layers, d_model, millions):
    gpt = network(PROJECT / f"configs/gpt2/{name}.yaml")
    block = 12 * d_model**2 + 2 * d_model  # four matrices of attention and eight of the feed-forward; two norms
    assert gpt.num_params() == (50_304 + 1_024) * d_model + n_layers * block + d_model
    assert round(gpt.num_params() / 1e6) == millions
    assert f"{gpt.num_params() / 1e6:,.1f} million" in DOCS
    assert {block.attention.n_heads for block in gpt.blocks} == {d_model // 64}


def test_sizes_differ_as_documented():
    base, medium, large = (merged(PROJECT / f"configs/gpt2/{n}.yaml") for n in ("124m", "345m", "1.5b"))
    for other in (medium, large):
        for key in ("d_model", "n_heads", "n_layers"):
            other["model"]["gpt"][key] = base["model"]["gpt"][key]
        other["model"]["optimizer"]["init_args"]["lr"] = base["model"]["optimizer"]["init_args"]["lr"]
    assert medium == base
    trainer = large["trainer"]
    rows = large["data"]["init_args"]["batch_size"] * trainer["accumulate_grad_batches"]
    assert rows == base["data"]["init_args"]["batch_size"] * base["trainer"]["accumulate_grad_batches"] == 60
    assert trainer["val_check_interval"] / trainer["accumulate_grad_batches"] == 250
    assert (trainer["devices"], trainer["strategy"]) == (4, "ddp")
    assert large["model"].pop("compile") == "blocks"
    assert base["model"].pop("compile") is True
    assert {**large, "data": 0, "trainer": 0} == {**base, "data": 0, "trainer": 0}


def test_the_devices_config_takes_the_same_steps_of_the_same_network(shards):
    base, fast = (yaml.safe_load(Path(path).read_text()) for path in (BASE, H200))
    for config in (base, fast):
        batches = config["trainer"]["accumulate_grad_batches"]
        assert config["data"]["init_args"]["batch_size"] * batches == 60
        assert config["trainer"]["val_check_interval"] == 250 * batches
    plain, own = (build(["--config", BASE, *more, *TINY], run=False) for more in ([], ["--config", H200]))
    assert isinstance(own.model.loss, FusedCrossEntropy)
    assert own.model.gpt.residual_autocast
    block = own.model.gpt.blocks[0]
    assert (type(block.attention), type(block.feedforward)) == (FlashAttention, FusedGELU)
    weights, theirs = plain.model.state_dict(), own.model.state_dict()
    assert weights.keys() == theirs.keys()
    assert all(torch.equal(weights[key], theirs[key]) for key in weights)


def test_the_base_is_nanogpts_recipe(shards):
    cli = build(["--config", BASE, *TINY], run=False)
    gpt = cli.model.gpt
    assert isinstance(gpt.position, Learned)
    assert gpt.position.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert isinstance(gpt.norm, LayerNorm)
    assert isinstance(gpt.blocks[0].feedforward, GELU)
    assert gpt.blocks[0].feedforward.approximate == "none"
    assert gpt.blocks[0].feedforward.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.1)
    assert gpt.head.weight is gpt.embedding.weight
    assert [name for name, _ in gpt.named_parameters() if "bias" in name] == []
    assert [module.p for module in gpt.modules() if isinstance(module, nn.Dropout) and module.p] == []
    optimizer = cli.model.configure_optimizers()
    assert {group["name"]: (group["weight_decay"], group["betas"]) for group in optimizer.param_groups} == {
        "hidden": (0.1, (0.9, 0.95)),
        "embedding": (0.1, (0.9, 0.95)),
        "vector": (0.0, (0.9, 0.95)),
    }
    assert (cli.trainer.precision, cli.trainer.gradient_clip_val) == ("bf16-mixed", 1.0)
    assert isinstance(cli.datamodule, TokenShards)


@pytest.mark.parametrize("config", thinned(CONFIGS, 6), ids=lambda path: path.stem)
def test_a_config_begins_with_the_command_that_runs_it(shards, monkeypatch, config):
    command = config.read_text().splitlines()[0].removeprefix("# python -m bytelm fit ").split()
    assert command[-1 if config in SCHEDULES else 1] == config.relative_to(PROJECT).as_posix()
    assert all((PROJECT / name).exists() for name in command if name.endswith(".yaml"))
    named = [str(PROJECT / word) if word.endswith(".yaml") else word for word in command]
    cli = build([*named, *TINY, "--trainer.strategy=auto", "--model.gpt.n_heads=2"], run=False)
    assert len(cli.model.gpt.blocks) == 2


SIBLINGS = sorted((PROJECT / "configs/siblings").glob("*.yaml"))


@pytest.mark.parametrize("config", thinned(SIBLINGS, 10), ids=lambda path: path.stem)
def test_a_small_config_is_a_row_of_the_table_and_has_a_network(config):
    lines = config.read_text().splitlines()
    assert lines[0] == f"# python -m bytelm fit --config {config.relative_to(PROJECT).as_posix()}"
    if config.stem != "base":
        assert re.fullmatch(r'# The row "(.*)" of docs/gpt2\.md\.', lines[2])[1] in CHANGES
    assert len(network(config).blocks) == 4


def test_every_change_has_a_small_config_and_a_score():
    names = [re.search(r'The row "(.*)" of', path.read_text()) for path in SIBLINGS]
    table = DOCS.partition("| change | mean |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|*]+) \| \d\.\d{3} \|", table, re.MULTILINE)
    changes = sorted(set(CHANGES) - {"float32"})  # the precision of all small configs but FP8's
    assert sorted(name[1] for name in names if name) == changes
    assert sorted(rows) == changes


# The schedules


def schedule(*options):
    cli = build(["--config", BASE, *TINY, *options], run=False)
    return Schedules.of(cli.trainer).schedules["lr"]


def multipliers(*options):
    """The multiplier of the rates at each of the run's steps."""
    multiplier = schedule(*options).multiplier
    return [
        multiplier(Progress(it / STEPS, {"steps": it, "seconds": 0, "tokens": 0}, {"steps": 1}, {"steps": STEPS}))
        for it in range(STEPS)
    ]


def linear_warmup(it, warmup):
    return (it + 1) / (warmup + 1)


def decayed(shape, fallen):
    """Multiplier at a share of the decay, down to a tenth."""
    return 0.1 + 0.9 * shape(fallen)


def straight(x):
    return 1 - x


def half_cosine(x):
    return 0.5 * (1 + math.cos(math.pi * x))


def inverse_sqrt(x):
    floor = 1 / math.sqrt(10)
    return (1 / math.sqrt(1 + 9 * x) - floor) / (1 - floor)


def late_decay(shape, warmup, last):
    """Multipliers of a run that warms up for `warmup` steps and decays over the last `last` ones."""
    begin = STEPS - last
    return [
        linear_warmup(it, warmup) if it < warmup else decayed(shape, max(it - begin, 0) / last) for it in range(STEPS)
    ]


def benchmarks_wsc():
    rises = [0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * (it + 1) / 251)) for it in range(250)]
    return rises + [decayed(half_cosine, max(it - 3_600, 0) / 1_400) for it in range(250, STEPS)]


# The first five are the benchmark's, the others bytelm's own. By the numbers of steps in a run of 5,000.
RATES = {
    "cosine": late_decay(half_cosine, 200, 4_800),
    "trapezoidal": late_decay(straight, 200, 2_000),
    "wsd": late_decay(straight, 200, 1_000),
    "wsd-sqrt": late_decay(inverse_sqrt, 300, 1_000),
    "wsc": benchmarks_wsc(),
    "constant": late_decay(lambda x: 1, 250, 1_000),
    "late-linear": late_decay(straight, 250, 1_000),
    "late-cosine": late_decay(half_cosine, 250, 1_000),
    "late-1-sqrt": late_decay(lambda x: 1 - math.sqrt(x), 250, 1_000),
}


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda path: path.stem)
def test_a_schedule_equals_its_formula_at_every_step(shards, config):
    # The root makes 1e-8 of a rounding error of 1e-16 where the decay begins.
    accuracy = 1e-7 if config.stem == "late-1-sqrt" else 1e-12
    assert multipliers("--config", str(config)) == pytest.approx(RATES[config.stem], rel=0, abs=accuracy)


def test_the_base_has_the_benchmarks_default_schedule(shards):
    assert multipliers() == multipliers("--config", str(PROJECT / "configs/schedules/cosine.yaml"))


def test_all_schedules_are_one_study(shards, monkeypatch):
    pytest.importorskip("optuna")
    from bytelm.experiments.task import Plan

    (space,) = re.findall(r"--space '(\{config:.*?\})'", DOCS, re.DOTALL)
    tiny = [*TINY, f"--data.path={Path('shards').absolute()}"]
    plan = Plan([BASE], tiny, space=yaml.safe_load(space))
    assert sorted(value for task in plan.grid() for _, value in task.point) == [
        path.relative_to(PROJECT).as_posix() for path in SCHEDULES
    ]
    monkeypatch.chdir(PROJECT)
    shapes = {type(schedule(*task.fit_options[2:])).__name__ for task in plan.grid()}
    assert shapes == {"Constant", "Cosine", "WarmupStableDecay"}


def test_benchmark_function_runs_unchanged(shards):
    Path("my_schedules.py").write_text(
        "def get_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr):\n"
        "    return learning_rate if it < warmup_iters else min_lr\n"
    )
    (options,) = re.findall(r"^    (--lr_schedule FromFunction .*)$", DOCS, re.MULTILINE)
    cli = build(["fit", "--config", BASE, *TINY, *options.split(), "--lr_schedule.warmup_iters=1"])
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 6e-5


def test_the_benchmarks_overrides_have_the_keys_of_the_table(shards):
    Path("my_rates.py").write_text(
        "def get_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr):\n"
        "    return learning_rate * warmup_iters + min_lr\n"
    )
    # CONFIG_OVERRIDES = {"learning_rate": 3e-4, "weight_decay": 0.2, "warmup_iters": int(max_iters * 0.05),
    #                     "min_lr": 3e-5, "grad_clip": 0.5}
    overrides = {
        "model.optimizer.lr": "3e-4",
        "model.optimizer.weight_decay": "0.2",
        "lr_schedule.warmup_iters": "5%",
        "lr_schedule.min_lr": "3e-5",
        "trainer.gradient_clip_val": "0.5",
    }
    table = DOCS.partition("| override | key |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [
        "learning_rate",
        "weight_decay",
        "warmup_iters",
        "min_lr",
        "grad_clip",
    ]
    assert all(f"`{key}`" in table for key in overrides)
    changed = [f"--{key}={value}" for key, value in overrides.items()]
    function = [
        "--lr_schedule",
        "FromFunction",
        "--lr_schedule.function=my_rates.get_lr",
        "--lr_schedule.max_iters=100",
    ]
    cli = build(["fit", "--config", BASE, *TINY, *function, *changed])
    groups = {group["name"]: group for group in cli.trainer.optimizers[0].param_groups}
    assert groups["hidden"]["initial_lr"] == 3e-4
    assert groups["hidden"]["weight_decay"] == 0.2
    assert groups["hidden"]["lr"] == pytest.approx(3e-4 * 5 + 3e-5)
    assert cli.trainer.gradient_clip_val == 0.5


# The changes of docs/gpt2.md

IS_THERE = {
    "RoPE": lambda cli, gpt: isinstance(gpt.position, Rotary),
    "QK-norm": lambda cli, gpt: all(isinstance(block.attention.q_norm, RMSNorm) for block in gpt.blocks),
    "QK-norm without weights": lambda cli, gpt: weightless(gpt),
    "RoPE and QK-norm without weights": lambda cli, gpt: weightless(gpt) and isinstance(gpt.position, Rotary),
    "Windowed attention": lambda cli, gpt: [block.attention.is_windowed for block in gpt.blocks] == [True, False],
    "Retention": lambda cli, gpt: all(isinstance(block.attention, Retention) for block in gpt.blocks),
    "Gated linear attention": lambda cli, gpt: isinstance(gpt.blocks[1].attention, GatedLinearAttention),
    "Delta rule": lambda cli, gpt: all(isinstance(block.attention, DeltaNet) for block in gpt.blocks),
    "Hashed bigrams": lambda cli, gpt: isinstance(gpt.embedding, HashedNGrams) and gpt.embedding.orders == [2],
    "Bigram hash": lambda cli, gpt: isinstance(gpt.embedding, BigramHash) and gpt.embedding.table.num_embeddings == 320,
    "Value embeddings": lambda cli, gpt: isinstance(gpt.embedding, ValueEmbedding),
    "Value embeddings, first and last block": lambda cli, gpt: gpt.embedding.value_layers == {0, len(gpt.blocks) - 1},
    "Untied head": lambda cli, gpt: gpt.head.weight is not gpt.embedding.weight,
    "SwiGLU": lambda cli, gpt: all(isinstance(block.feedforward, SwiGLU) for block in gpt.blocks),
    "GeGLU": lambda cli, gpt: all(isinstance(block.feedforward, GeGLU) for block in gpt.blocks),
    "ReLU squared": lambda cli, gpt: all(isinstance(block.feedforward, ReLUSquared) for block in gpt.blocks),
    "RMSNorm": lambda cli, gpt: isinstance(gpt.norm, RMSNorm) and isinstance(gpt.blocks[1].attention_norm, RMSNorm),
    "Parallel blocks": lambda cli, gpt: all(isinstance(block, Parallel) for block in gpt.blocks),
    "Parallel blocks, one norm": lambda cli, gpt: all(isinstance(block, ParallelSharedNorm) for block in gpt.blocks),
    "Post-norm": lambda cli, gpt: all(isinstance(block, PostNorm) for block in gpt.blocks),
    "Learned residual scalars": lambda cli, gpt: all(isinstance(block, ScaledPreNorm) for block in gpt.blocks),
    "Hyper-connections": lambda cli, gpt: all(isinstance(block, HyperConnections) for block in gpt.blocks),
    "BitNet": lambda cli, gpt: isinstance(gpt.blocks[1].order.attention.qkv, BitLinear),
    "Lion": lambda cli, gpt: options(cli, Lion, "betas", "weight_decay") == (6e-5, (0.9, 0.99), 1.0),
    "Nesterov AdamW": lambda cli, gpt: (
        options(cli, torch.optim.NAdam, "betas", "weight_decay", "decoupled_weight_decay")
        == (6e-4, (0.9, 0.95), 0.1, True)
    ),
    "Muon": lambda cli, gpt: (
        options(cli, MuonAdamW, "adjust_lr_fn", "weight_decay") == (6e-4, "match_rms_adamw", 0.1)
        and cli.trainer.optimizers[0].param_groups[1]["initial_lr"] == 6e-4
    ),
    "Muon, queries, keys and values apart": lambda cli, gpt: options(cli, MuonAdamW, "split_qkv") == (6e-4, True),
    "Label smoothing": lambda cli, gpt: cli.model.loss.label_smoothing == 0.1,
    "Soft-capped logits": lambda cli, gpt: gpt.head.softcap == 30,
    "Soft-capped cross-entropy": lambda cli, gpt: isinstance(gpt.head.cap, SigmoidCap),
    "z-loss": lambda cli, gpt: cli.model.loss.z_loss == 1e-4,
    "float32": lambda cli, gpt: cli.trainer.precision == "32-true",
    "FP8": lambda cli, gpt: type(gpt.blocks[1].feedforward.down).__name__ == "Float8Linear",
    "FP8, asymmetric formats": lambda cli, gpt: (
        gpt.blocks[1].feedforward.down.config.cast_config_grad_output.target_dtype == torch.float8_e5m2
    ),
}


def weightless(gpt):
    """Whether queries and keys of all blocks are normalised without weights."""
    return all(isinstance(b.attention.q_norm, RMSNorm) and b.attention.k_norm.weight is None for b in gpt.blocks)


def options(cli, optimizer, *names):
    """Rate and options of the hidden matrices, where the optimizer is of that class."""
    assert isinstance(cli.trainer.optimizers[0], optimizer)
    group = cli.trainer.optimizers[0].param_groups[0]
    return (group["initial_lr"], *(group[name] for name in names))


def test_every_change_is_tested():
    assert list(CHANGES) == list(IS_THERE)


@pytest.mark.parametrize("name", thinned(CHANGES, 8))
def test_a_change_is_one_line_and_trains(shards, name):
    line = shlex.split(CHANGES[name])
    if name.startswith("FP8"):
        pytest.importorskip("torchao")
        line.append("--trainer.plugins.emulate=true")
    cli = build(["--config", BASE, *TINY, *line], run=False)
    before = {key: param.clone() for key, param in cli.model.named_parameters()}
    cli.trainer.fit(cli.model, cli.datamodule)
    assert IS_THERE[name](cli, cli.model.gpt)
    assert cli.trainer.global_step == 2
    assert math.isfinite(cli.trainer.callback_metrics["val/loss"])
    assert {*before} == {key for key, _ in cli.model.named_parameters()}
    assert [key for key, param in cli.model.named_parameters() if torch.equal(param, before[key])] == []
    assert [
        key for key in before if "bias" in key and "decay.1" not in key
    ] == []  # what is not named stays as the config has it


def test_a_part_does_not_keep_the_options_of_the_part_that_it_replaces(shards):
    Path("spread.yaml").write_text("model: {gpt: {position: {class_path: Learned, init_args: {std: 0.1}}}}\n")
    cli = build(["--config", BASE, *TINY, "--config", "spread.yaml", *shlex.split(CHANGES["RoPE"])], run=False)
    said = cli.config.model.gpt.init_args.position
    assert (said.class_path, dict(said.init_args)) == ("bytelm.parts.position.Rotary", {"base": 10_000.0})
