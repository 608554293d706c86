"""Attentions: all variants compute softmax(Q K^T / sqrt(head_dim)) V, causally, per head."""

import functools
import math

import pytest
import torch
from contexts import context

from bytelm.errors import ConfigError
from bytelm.parts.attention import SDPA, Explicit, MatmulAttention
from bytelm.parts.norm import LayerNorm, RMSNorm
from bytelm.parts.position import ALiBi, NoPosition, Rotary

D_MODEL, N_HEADS, SEQ_LEN = 16, 4, 10
WEIGHTLESS = functools.partial(RMSNorm, weight=False)
VARIANTS = pytest.mark.parametrize(
    ("n_kv_heads", "qk_norm", "position"),
    [
        (n_kv_heads, qk_norm, position)
        for n_kv_heads in (None, 4, 2, 1)
        for qk_norm in (None, RMSNorm, WEIGHTLESS, LayerNorm)
        for position in (NoPosition, Rotary, ALiBi)
    ],
)


def randomized(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def written_out(attention, x, position):
    """Attention for one sequence (T, d_model), one head and one query at a time."""
    d = D_MODEL // N_HEADS
    n_kv_heads = attention.n_kv_heads
    q, k, v = (attention.qkv.weight @ x.T).T.add(attention.qkv.bias).split([16, n_kv_heads * d, n_kv_heads * d], dim=1)
    mixed = torch.zeros(len(x), D_MODEL)
    for head in range(N_HEADS):
        shared = head * n_kv_heads // N_HEADS
        q_head = attention.q_norm(q[:, head * d : (head + 1) * d])[None, None]
        k_head = attention.k_norm(k[:, shared * d : (shared + 1) * d])[None, None]
        q_head, k_head = (heads[0, 0] for heads in position.rotate(q_head, k_head))
        for t in range(len(x)):
            scores = (k_head[: t + 1] * q_head[t]).sum(dim=1) / math.sqrt(d)
            if position.scores(len(x)) is not None:
                scores = scores + position.scores(len(x))[head, t, : t + 1]
            weights = scores.exp() / scores.exp().sum()
            mixed[t, head * d : (head + 1) * d] = weights @ v[: t + 1, shared * d : (shared + 1) * d]
    return (attention.out.weight @ mixed.T).T + attention.out.bias


@VARIANTS
def test_attentions_are_the_formula(n_kv_heads, qk_norm, position):
    torch.manual_seed(0)
    encoding = position(D_MODEL, N_HEADS, SEQ_LEN + 3)
    explicit = randomized(Explicit(D_MODEL, N_HEADS, n_kv_heads, qk_norm))
    x = torch.randn(2, SEQ_LEN, D_MODEL)
    expected = torch.stack([written_out(explicit, row, encoding) for row in x])
    for attention in (explicit, *(kind(D_MODEL, N_HEADS, n_kv_heads, qk_norm) for kind in (SDPA, MatmulAttention))):
        attention.load_state_dict(explicit.state_dict())
        torch.testing.assert_close(attention(x, context(encoding)), expected, rtol=0, atol=1e-5)


@VARIANTS
def test_attentions_have_the_same_gradients(n_kv_heads, qk_norm, position):
    torch.manual_seed(0)
    encoding = position(D_MODEL, N_HEADS, SEQ_LEN)
    explicit = randomized(Explicit(D_MODEL, N_HEADS, n_kv_heads, qk_norm))
    x = torch.randn(2, SEQ_LEN, D_MODEL)
    explicit(x, context(encoding)).square().mean().backward()
    for attention in (kind(D_MODEL, N_HEADS, n_kv_heads, qk_norm) for kind in (SDPA, MatmulAttention)):
        attention.load_state_dict(explicit.state_dict())
        attention(x, context(encoding)).square().mean().backward()
        for (name, p), q in zip(explicit.named_parameters(), attention.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("attention", [SDPA, Explicit, MatmulAttention])
@pytest.mark.parametrize("qk_norm", [None, RMSNorm, LayerNorm])
@pytest.mark.parametrize("position", [NoPosition, Rotary, ALiBi])
def test_attention_under_bf16_autocast_stays_near_float32(attention, qk_norm, position):
    torch.manual_seed(0)
    encoding = position(D_MODEL, N_HEADS, SEQ_LEN)
    module = attention(D_MODEL, N_HEADS, 2, qk_norm)
    x = torch.randn(2, SEQ_LEN, D_MODEL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(x, context(encoding))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), module(x, context(encoding)), rtol=0, atol=0.02)


@pytest.mark.parametrize("attention", [SDPA, Explicit, MatmulAttention])
@pytest.mark.parametrize("position", [NoPosition, Rotary, ALiBi])
def test_bf16_attention_takes_float32_position_tables(attention, position):
    # As under sharding with mixed precision, which casts parameters and leaves buffers.
    torch.manual_seed(0)
    encoding = position(D_MODEL, N_HEADS, SEQ_LEN)
    module = attention(D_MODEL, N_HEADS, 2)
    x = torch.randn(2, SEQ_LEN, D_MODEL)
    expected = module(x, context(encoding))
    low = module.bfloat16()(x.bfloat16(), context(encoding))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("attention", [SDPA, Explicit, MatmulAttention])
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_gqa_equals_full_attention_with_repeated_key_and_value_weights(attention, n_kv_heads):
    torch.manual_seed(0)
    d = D_MODEL // N_HEADS
    grouped = randomized(attention(D_MODEL, N_HEADS, n_kv_heads))
    full = attention(D_MODEL, N_HEADS)
    state = grouped.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        q, k, v = state[name].split([D_MODEL, n_kv_heads * d, n_kv_heads * d])
        repeated = [
            torch.cat([kv[h * d : (h + 1) * d] for h in range(n_kv_heads) for _ in range(N_HEADS // n_kv_heads)])
            for kv in (k, v)
        ]
        state[name] = torch.cat([q, *repeated])
    full.load_state_dict(state)
    x, position = torch.randn(2, SEQ_LEN, D_MODEL), Rotary(D_MODEL, N_HEADS, SEQ_LEN)
    torch.testing.assert_close(grouped(x, context(position)), full(x, context(position)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", [SDPA, Explicit, MatmulAttention])
def test_dropout_drops_attention_weights_in_training_only(attention):
    torch.manual_seed(0)
    kept = randomized(attention(D_MODEL, N_HEADS))
    dropped = attention(D_MODEL, N_HEADS, dropout=0.5)
    dropped.load_state_dict(kept.state_dict())
    x, position = torch.randn(1, SEQ_LEN, D_MODEL), NoPosition(D_MODEL, N_HEADS, SEQ_LEN)
    torch.testing.assert_close(dropped.eval()(x, context(position)), kept(x, context(position)))
    # The first token has one weight a head, 1, which dropout makes 0 or 2.
    d = D_MODEL // N_HEADS
    value = (x[0, 0] @ kept.qkv.weight[2 * D_MODEL :].T + kept.qkv.bias[2 * D_MODEL :]).view(N_HEADS, d)
    drawn = torch.stack([dropped.train()(x, context(position))[0, 0] for _ in range(64)])
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * N_HEADS)
    possible = (masks[:, :, None] * value).flatten(1) @ kept.out.weight.T + kept.out.bias
    nearest = (drawn[:, None] - possible).abs().amax(dim=2).min(dim=1)
    assert nearest.values.max() < 1e-4
    assert len(nearest.indices.unique()) > 8  # of 16


def test_normalised_queries_without_weights_have_length_sqrt_head_dim_after_rotation():
    torch.manual_seed(0)
    attention = randomized(SDPA(D_MODEL, N_HEADS, qk_norm=WEIGHTLESS))
    assert [name for name, _ in attention.named_parameters() if "norm" in name] == []
    seen = []
    attention.attend = lambda q, k, v, scores: seen.append((q, k)) or v
    attention(torch.randn(2, SEQ_LEN, D_MODEL), context(Rotary(D_MODEL, N_HEADS, SEQ_LEN)))
    for part in seen[0]:
        torch.testing.assert_close(part.norm(dim=-1), torch.full(part.shape[:-1], 2.0), rtol=1e-4, atol=0)


def test_bias_false_leaves_out_every_bias():
    assert {name for name, _ in SDPA(D_MODEL, N_HEADS, bias=False).named_parameters()} == {"qkv.weight", "out.weight"}


def test_n_kv_heads_must_divide_n_heads():
    with pytest.raises(ConfigError, match=r"n_kv_heads: 3 .*n_heads.* 4"):
        SDPA(D_MODEL, N_HEADS, n_kv_heads=3)
