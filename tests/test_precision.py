"""FP8: converted layers, their results, unchanged checkpoints, and rejected settings."""

import json
import math
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from thinned import thinned
from torch import nn
from torch.nn import functional as F

from bytelm.cli import build
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.parts.feedforward import GELU, FusedGELU
from bytelm.precision import FP8
from bytelm.strategies import FSDP

RECIPES = ["tensorwise", "rowwise", "rowwise_with_gw_hp"]
ROWWISE = "{recipe: rowwise, emulate: true}"
PLUGIN = ["--trainer.plugins=bytelm.precision.FP8"]


@pytest.fixture
def torchao():
    pytest.importorskip("torchao")


TRAINER = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)


def model(**options):
    torch.manual_seed(0)
    module = LanguageModel(GPT(d_model=32, n_heads=2, n_layers=2, vocab_size=64, max_seq_len=32, **options))
    module.trainer = TRAINER
    return module


def converted(network):
    return [name for name, module in network.named_modules() if type(module).__name__ == "Float8Linear"]


# Converted layers


def test_the_blocks_linear_layers_are_converted_and_nothing_else(torchao):
    plain = model()
    names = set(plain.state_dict())
    weights = {name: id(param) for name, param in plain.named_parameters()}
    fp8 = FP8(emulate=True).convert_module(plain)
    layers = ("attention.qkv", "attention.out", "feedforward.up", "feedforward.down")
    assert converted(fp8.gpt) == [f"blocks.{block}.{layer}" for block in range(2) for layer in layers]
    assert set(fp8.state_dict()) == names
    assert {name: id(param) for name, param in fp8.named_parameters()} == weights


def test_feedforwards_with_their_own_products_are_rejected(torchao):
    trainer = SimpleNamespace(precision_plugin=FP8(emulate=True), strategy=SingleDeviceStrategy("cpu"))
    data = SimpleNamespace(seq_len=8, vocab_size=64)
    model(feedforward=GELU).check(data, trainer)
    with pytest.raises(ConfigError, match=r"model\.gpt\.feedforward: 'FusedGELU' .* such as GELU"):
        model(feedforward=FusedGELU).check(data, trainer)


def test_sizes_not_divisible_by_16_are_not_converted(torchao):
    fp8 = FP8(emulate=True).convert_module(model(d_ff=72))
    assert {name.rpartition(".")[2] for name in converted(fp8.gpt)} == {"qkv", "out"}


def test_layers_with_their_own_forward_are_not_converted(torchao):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = model()
    network.gpt.blocks[0].feedforward.up = Scaled(32, 128)
    FP8(emulate=True).convert_module(network)
    assert type(network.gpt.blocks[0].feedforward.up) is Scaled
    assert len(converted(network.gpt)) == 7


def test_conversion_happens_once(torchao):
    plugin = FP8(emulate=True)
    fp8 = plugin.convert_module(model())
    layer = fp8.gpt.blocks[0].attention.qkv
    assert plugin.convert_module(fp8).gpt.blocks[0].attention.qkv is layer  # as for `validate` after `fit`


# Products


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seq_len", [32, 19])  # with 2 rows the products for weights' gradients sum over 64, over 38
def test_logits_and_gradients_equal_bf16_up_to_rounding(torchao, recipe, seq_len):
    plain = model()
    fp8 = FP8(recipe, emulate=True).convert_module(model())
    tokens = torch.randint(64, (2, seq_len))
    logits = []
    for network in (plain, fp8):
        with FP8(emulate=True).forward_context():
            logits.append(network(tokens))
            F.cross_entropy(logits[-1].float().flatten(0, 1), tokens.flatten()).backward()
    error = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 1e-3 < error < 0.1
    for (name, theirs), ours in zip(plain.named_parameters(), fp8.parameters(), strict=True):
        assert F.cosine_similarity(theirs.grad.flatten(), ours.grad.flatten(), dim=0) > 0.95, name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("gradients", ["e4m3", "e5m2"])
def test_gradients_have_the_format_that_is_named(torchao, recipe, gradients):
    layer = FP8(recipe, gradients, emulate=True).convert_module(model()).gpt.blocks[0].attention.out
    assert layer.config.cast_config_input.target_dtype == torch.float8_e4m3fn
    assert layer.config.cast_config_weight.target_dtype == torch.float8_e4m3fn
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[gradients]
    assert layer.config.cast_config_grad_output.target_dtype == dtype
    if recipe == "rowwise_with_gw_hp":
        return  # the gradient of a weight is in bf16
    # With inputs of one, a weight's gradient sums the rounded gradients of the outputs, scaled to the format's range.
    gradient = torch.zeros(32, 32)
    gradient[0, 0], gradient[0, 1] = 1.0, 0.9140625
    layer(torch.ones(32, 32)).backward(gradient)
    largest = torch.finfo(dtype).max
    scale = largest if recipe == "tensorwise" else 2 ** math.floor(math.log2(largest))
    scaled = (scale * gradient[0, :2]).to(dtype).float() / scale
    assert layer.weight.grad[1, 0].item() == pytest.approx(scaled[1].item(), rel=1e-2)


# Runs


@pytest.mark.parametrize(
    "options",
    [
        [*PLUGIN, "--trainer.plugins.recipe=rowwise", "--trainer.plugins.emulate=true"],
        [
            PLUGIN[0],
            "--trainer.plugins=[{class_path: bytelm.precision.FP8, init_args: {recipe: rowwise, emulate: true}}]",
        ],
    ],
)
def test_named_on_the_command_line_and_in_a_list(torchao, folder, options):
    cli = build(["--config", "tiny.yaml", *options], run=False)
    plugin = cli.trainer.precision_plugin
    assert isinstance(plugin, FP8)
    assert plugin.config.emulate
    assert plugin.config.cast_config_input.scaling_granularity.value == "axiswise"


def test_named_in_a_config(torchao, folder):
    Path("fp8.yaml").write_text("trainer: {plugins: {class_path: bytelm.precision.FP8, init_args: {emulate: true}}}\n")
    cli = build(["--config", "tiny.yaml", "--trainer.precision=bf16-mixed", "--config", "fp8.yaml"], run=False)
    assert isinstance(cli.trainer.precision_plugin, FP8)


def test_resuming_and_scoring_with_or_without_it(torchao, run):
    fp8 = [*PLUGIN, "--trainer.plugins.emulate=true"]
    scores = [run(*fp8).trainer.callback_metrics["val/bpb"]]
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["precision"] == "fp8-tensorwise"
    checkpoint = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    for options in (fp8, []):
        cli = run(*checkpoint, *options, subcommand="validate")
        scores.append(cli.trainer.callback_metrics["val/bpb"])
        assert bool(converted(cli.model.gpt)) == bool(options)
    assert scores[0] == scores[1]
    assert 0 < abs(scores[2] - scores[0]) < 0.01
    assert run(*checkpoint, "--time_budget.limit=6 steps").trainer.global_step == 6


@pytest.mark.parametrize(("recipe", "gradients"), thinned(product(RECIPES, ["e4m3", "e5m2"]), 4, several=True))
def test_each_recipe_trains(torchao, recipe, gradients, run):
    options = {"recipe": recipe, "gradients": gradients, "emulate": "true"}
    cli = run(*PLUGIN, *(f"--trainer.plugins.{key}={value}" for key, value in options.items()))
    assert cli.trainer.callback_metrics["val/bpb"] < 8.1
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["precision"] == f"fp8-{recipe}"


# Rejections


def test_without_a_gpu_it_is_rejected(rejected):
    line = rejected(*PLUGIN)
    assert line.startswith("bytelm: error: trainer.plugins: 'FP8' cannot be used; it needs a GPU")
    assert "there is none" in line
    assert not Path("runs").exists()


def test_older_gpus_are_rejected_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    with pytest.raises(ConfigError, match=r"8\.9 or higher .*this one is NVIDIA A100"):
        FP8()


def test_without_torchao_it_is_rejected(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r"trainer\.plugins: 'FP8' .*needs torchao .*\[fp8\]"):
        FP8(emulate=True)


def test_sharded_models_are_rejected(torchao):
    with pytest.raises(ConfigError, match=r"trainer\.strategy: 'fsdp' cannot be used; accepted with FP8: auto, ddp"):
        FP8(emulate=True).check(FSDP())


def test_fsdp_is_rejected_before_the_folder_exists(torchao, rejected):
    line = rejected(*PLUGIN, "--trainer.plugins.emulate=true", "--trainer.strategy=fsdp")
    assert line == "bytelm: error: trainer.strategy: 'fsdp' cannot be used; accepted with FP8: auto, ddp"
    assert not Path("runs").exists()


def test_feedforwards_with_their_own_products_are_rejected_before_the_folder_exists(torchao, rejected):
    line = rejected(*PLUGIN, "--trainer.plugins.emulate=true", "--model.gpt.feedforward=FusedGELU")
    assert line.startswith("bytelm: error: model.gpt.feedforward: 'FusedGELU' cannot be used; accepted with FP8")
    assert not Path("runs").exists()
