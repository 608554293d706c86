"""Hyper-connections against their formulas, token by token, and their start as a pre-norm network."""

import functools

import pytest
import torch
from torch import nn

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import param_groups
from bytelm.parts.bigram_hash import BigramHash
from bytelm.parts.block import PreNorm
from bytelm.parts.hyper_connections import Connection, HyperConnections
from bytelm.parts.init import Normal
from bytelm.parts.norm import RMSNorm


def tiny(block, **options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 3, "vocab_size": 64, "max_seq_len": 24}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.3), "block": block, **options}).eval()


def moved(gpt):
    """With connections that are far from their start."""
    for connection in (module for module in gpt.modules() if isinstance(module, Connection)):
        for parameter in connection.parameters():
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return gpt


def tokens():
    return torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_connection_is_its_formula(dynamic):
    torch.manual_seed(0)
    n, d = 3, 5
    connection = Connection(n, 1, (d, RMSNorm(d)) if dynamic else None).double()
    for parameter in connection.parameters():
        nn.init.normal_(parameter)
    streams, branch = torch.randn(2, 4, n, d, dtype=torch.float64), torch.randn(2, 4, d, dtype=torch.float64)
    inputs, kept, out = connection.split(streams)
    for row in range(2):
        for t in range(4):
            h = streams[row, t]
            mix, b = connection.static_mix, connection.static_out
            if dynamic:
                normed = h / (h.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * connection.norm.weight
                change = torch.tanh(normed @ connection.dynamic.weight.T)
                mix = mix + connection.scales[0] * change[:, : n + 1]
                b = b + connection.scales[1] * change[:, n + 1]
            a_m, a_r = mix[:, :1], mix[:, 1:]
            torch.testing.assert_close(inputs[row, t], (a_m.T @ h)[0])
            ours = kept[row, t] + out[row, t][:, None] * branch[row, t]
            torch.testing.assert_close(ours, a_r.T @ h + b[:, None] * branch[row, t])


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("dynamic", [True, False])
def test_at_the_start_each_stream_is_that_of_pre_norm(streams, dynamic):
    gpt, plain = tiny(functools.partial(HyperConnections, streams=streams, dynamic=dynamic)), tiny(PreNorm)
    ends = []
    for network in (gpt, plain):
        network.blocks[-1].register_forward_hook(lambda _, inputs, output: ends.append(output))
        network(tokens())
    torch.testing.assert_close(ends[0], streams * ends[1], rtol=1e-4, atol=1e-4)
    first = [
        connection.static_mix[:, 0].argmax().item() for connection in gpt.modules() if type(connection) is Connection
    ]
    assert first == [branch % streams for branch in range(6)]


@torch.no_grad()
def test_generation_from_the_cache_equals_the_whole_row():
    gpt = moved(tiny(HyperConnections))
    cache = gpt.new_cache()
    pieces = [gpt(tokens()[:, :end], cache) for end in (2, 3, 4, 20, 24)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), gpt(tokens()), rtol=0, atol=1e-4)


def test_constants_do_not_decay_and_every_parameter_learns():
    gpt = moved(tiny(HyperConnections))
    groups = {group["name"]: group for group in param_groups(gpt)}
    assert len(groups["scalar"]["params"]) == 3 * 2 * 3
    assert groups["scalar"]["weight_decay"] == 0.0
    assert {tuple(p.shape) for p in groups["connection"]["params"]} == {(6, 16)}
    gpt(tokens()).logsumexp(dim=-1).mean().backward()
    assert [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_autocast_does_not_round_the_streams():
    gpt, ends = moved(tiny(HyperConnections)), []
    gpt.blocks[1].register_forward_hook(lambda _, inputs, output: ends.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gpt(tokens())
    assert ends == [(torch.float32, torch.float32)]


def test_embeddings_that_add_to_one_stream_in_every_layer_are_rejected():
    with pytest.raises(ConfigError, match=r"model\.gpt\.embedding: 'BigramHash' .*accepted with HyperConnections"):
        tiny(HyperConnections, embedding=BigramHash)
