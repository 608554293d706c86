"""Gated value tables, residual scalars and bf16 tables; tests/test_gpu_configs.py has the whole network."""

import copy
import functools

import pytest
import torch

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import param_groups
from bytelm.parts.attention import WindowedSDPA
from bytelm.parts.bf16 import BF16Embedding, BF16Rotary
from bytelm.parts.contract import Run, check
from bytelm.parts.embedding import TokenEmbedding
from bytelm.parts.gated_values import GatedValueAttention
from bytelm.parts.init import Normal
from bytelm.parts.norm import RMSNorm
from bytelm.parts.position import Rotary
from bytelm.parts.residual_scalars import ScaledPreNorm
from bytelm.parts.uniform_init import UniformFanIn


def tiny(**options):
    torch.manual_seed(0)
    attention = functools.partial(GatedValueAttention, gate_dim=4, window=5, qk_norm=RMSNorm, n_kv_heads=2)
    sizes = {"d_model": 16, "n_heads": 4, "n_layers": 4, "vocab_size": 32, "max_seq_len": 12}
    parts = {"attention": attention, "block": ScaledPreNorm, "init": functools.partial(Normal, std=0.3)}
    gpt = GPT(**{**sizes, **parts, "tie_embeddings": False, **options}).eval()
    with torch.no_grad():
        for block in gpt.blocks:
            if getattr(block.attention, "gate", None) is not None:
                block.attention.gate.weight.normal_(std=0.5)
    return gpt


in_bf16 = functools.partial(GatedValueAttention, gate_dim=4, table_dtype="bfloat16")


def tokens():
    return torch.randint(32, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_every_other_layer_has_a_table_and_the_last_one_has(n_layers):
    gpt = tiny(n_layers=n_layers)
    has = [block.attention.value_table is not None for block in gpt.blocks]
    assert has == [(n_layers - 1 - layer) % 2 == 0 for layer in range(n_layers)]
    assert gpt.blocks[-1].attention.value_table.weight.shape == (32, 8)


@torch.no_grad()
def test_tokens_do_not_affect_earlier_logits():
    gpt = tiny().double()
    for t in (0, 5, 11):
        changed = tokens()
        changed[:, t] = (changed[:, t] + 1) % 32
        difference = (gpt(changed) - gpt(tokens())).abs().amax(dim=(0, 2))
        assert difference[:t].sum() < 1e-12
        assert difference[t] > 1e-6


@torch.no_grad()
def test_a_cache_gives_the_logits_of_the_whole_row():
    gpt = tiny(embedding=BF16Embedding, position=BF16Rotary)
    cache, given = gpt.new_cache(), []
    for end in (5, 6, 12):
        given.append(gpt(tokens()[:, :end], cache))
    torch.testing.assert_close(torch.cat(given, dim=1), gpt(tokens()), atol=1e-5, rtol=0)


@torch.no_grad()
def test_zero_tables_and_scalars_are_the_plain_network():
    gpt = tiny()
    windowed = functools.partial(WindowedSDPA, window=5, qk_norm=RMSNorm, n_kv_heads=2)
    plain = tiny(attention=windowed, block=functools.partial(ScaledPreNorm, stream=1.0, first=0.0))
    weights = {name: w for name, w in gpt.state_dict().items() if "value_table" not in name and "gate" not in name}
    plain.load_state_dict(weights)
    for block in gpt.blocks:
        if block.attention.value_table is not None:
            block.attention.value_table.weight.zero_()
    torch.testing.assert_close(gpt(tokens()), plain(tokens()), atol=1e-5, rtol=0)


def test_groups():
    groups = {group["name"]: len(group["params"]) for group in param_groups(tiny())}
    # qkv, out, up, down of each layer and two gates; two norms of each layer and one behind them, …
    assert groups["hidden"] == 4 * 4 + 2
    assert (groups["value_embedding"], groups["stream_scalar"], groups["first_scalar"]) == (2, 4, 4)
    assert (groups["embedding"], groups["head"]) == (1, 1)


def test_windows_are_counted_in_flops():
    attentions = [block.attention for block in tiny().blocks]
    assert [attention.attended_tokens(12) for attention in attentions] == [5, 5, 5, 12]
    assert [attention.attended_tokens(4) for attention in attentions] == [4] * 4
    windows = tiny(attention=functools.partial(WindowedSDPA, window=5))
    whole = tiny(attention=functools.partial(WindowedSDPA, window=12))
    assert whole.flops_per_token(12) - windows.flops_per_token(12) == 12 * 16 * 3 * 7


@pytest.mark.parametrize("gate_dim", [17, 32])
def test_a_gate_reads_at_most_the_whole_input(gate_dim):
    with pytest.raises(ConfigError, match=rf"gate_dim: {gate_dim} .* up to d_model, which is 16"):
        tiny(attention=functools.partial(GatedValueAttention, gate_dim=gate_dim))


@torch.no_grad()
def test_bf16_tables():
    gpt = tiny(embedding=BF16Embedding)
    other = tiny(embedding=TokenEmbedding)
    other.load_state_dict(gpt.state_dict())  # the same values, in float32
    torch.testing.assert_close(gpt(tokens()), other(tokens()), atol=0, rtol=0)
    twin = copy.deepcopy(gpt).to(torch.bfloat16)  # another network than the one that it was copied from
    assert twin(tokens()).dtype == torch.bfloat16
    assert gpt(tokens()).dtype == torch.float32
    exact, rounded = Rotary(16, 2, 12), BF16Rotary(16, 2, 12)
    assert torch.equal(rounded.cos, exact.cos.bfloat16().float())
    assert torch.equal(rounded.sin, exact.sin.bfloat16().float())


def test_bf16_tables_are_rejected_with_a_tied_head_and_with_fsdp():
    with pytest.raises(ConfigError, match=r"model\.gpt\.tie_embeddings: True .* BF16Embedding"):
        tiny(embedding=BF16Embedding, tie_embeddings=True)
    for option, key, accepted in (
        ({"embedding": BF16Embedding}, "embedding: 'BF16Embedding'", "TokenEmbedding"),
        ({"attention": in_bf16}, "attention.table_dtype: 'bfloat16'", "float32"),
    ):
        network = tiny(**option)
        run = Run(network, None, "AdamW", lambda: False, "fsdp", "32-true", torch.device("cpu"))
        with pytest.raises(ConfigError, match=rf"model\.gpt\.{key} .*{accepted}$"):
            check([network], run)


@pytest.mark.parametrize("tied", [True, False])
def test_uniform_fan_in(tied):
    gpt = tiny(
        init=functools.partial(UniformFanIn, embedding_std=0.5, head_std=0.01), tie_embeddings=tied, head_bias=True
    )
    assert gpt.embedding.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert gpt.head.weight.std().item() == pytest.approx(0.5 if tied else 0.01, rel=0.1)
    for name, weight in gpt.named_parameters():
        if name.endswith(("out.weight", "down.weight")) or (name.endswith("bias") and "norm" not in name):
            assert not weight.any(), name
