"""Numbers from users are checked at the edge, and plain afterwards."""

import pytest
import torch
from torch import nn

from bytelm.cli import build
from bytelm.config.values import PositiveInt, UnitInterval

OPTIONS = [
    "--model.gpt.norm=RMSNorm",
    "--model.gpt.norm.eps=1e-5",
    "--model.gpt.attention.qk_norm=LayerNorm",
    "--model.gpt.attention.dropout=0.1",
    "--model.gpt.position=Sinusoidal",
    "--model.gpt.position.base=100",
    "--model.gpt.logit_softcap=15",
    "--model.gpt.d_ff=24",
    "--model.loss.label_smoothing=0.1",
    "--model.loss.z_loss=1e-4",
]


def numbers(value):
    """Yields all numbers in a value, at any depth."""
    if isinstance(value, list | tuple):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture
def model(folder):
    return build(["--config", "tiny.yaml", *OPTIONS], run=False).model


def test_modules_keep_plain_numbers_of_the_command_line(model):
    kept = [number for module in model.modules() for value in vars(module).values() for number in numbers(value)]
    assert {1e-5, 0.1, 15.0, 24} <= set(kept)  # includes the options above
    assert {type(number) for number in kept} == {int, float, bool}


def test_a_network_of_the_command_line_is_one_graph_to_torch_compile(model):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    tokens = torch.randint(256, (2, 32))
    compiled = torch.compile(lambda x, y: model.loss(model.gpt(x), y), backend=count, fullgraph=True)
    compiled(tokens, tokens).backward()
    assert len(graphs) == 1
    assert all(isinstance(p.grad, torch.Tensor) for p in model.gpt.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.gpt.norm.eps=0", "model.gpt.norm.eps"),
        ("--model.gpt.d_model=-1", "model.gpt.d_model"),
        ("--model.gpt.dropout=1.5", "model.gpt.dropout"),
        ("--model.gpt.n_layers=1.5", "model.gpt.n_layers"),
        ("--model.gpt.n_layers=true", "model.gpt.n_layers"),
    ],
)
def test_numbers_out_of_range_are_rejected(rejected, option, said):
    assert said in rejected("--model.gpt.norm=RMSNorm", option)


def test_numbers_are_plain_in_a_saved_config(run):
    cli = run("--model.gpt.norm=RMSNorm", "--model.gpt.norm.eps=1e-5")
    assert cli.plain_config["model"]["gpt"]["init_args"]["norm"]["init_args"]["eps"] == 1e-5
    assert isinstance(cli.model.gpt.norm, nn.Module)


def test_they_check_and_are_plain_where_they_are_called_too():  # like argparse's `type`
    assert [type(PositiveInt("8")), type(UnitInterval("0.5"))] == [int, float]
    for checked, value in ((PositiveInt, "0"), (PositiveInt, "many"), (UnitInterval, "1.5")):
        with pytest.raises(ValueError, match=value):
            checked(value)
