"""Position encodings against their papers' formulas."""

import math

import pytest
import torch

from bytelm.errors import ConfigError
from bytelm.parts.position import ALiBi, Learned, NoPosition, Rotary, Sinusoidal


def test_rotary_scores_depend_only_on_distance():
    rotary = Rotary(d_model=16, n_heads=2, max_seq_len=64)
    q, k = torch.randn(2, 1, 2, 1, 8, generator=torch.Generator().manual_seed(0))
    rotated_q, rotated_k = rotary.rotate(q.expand(1, 2, 64, 8), k.expand(1, 2, 64, 8))
    scores = rotated_q @ rotated_k.transpose(-2, -1)
    for distance in (-40, -1, 0, 7, 63):
        diagonal = scores.diagonal(distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert scores[0, 0, :, 0].std() > 0.1  # so the distance does matter


def test_rotary_preserves_norms():
    q, k = torch.randn(2, 3, 2, 64, 8)
    for before, after in zip((q, k), Rotary(16, 2, 64).rotate(q, k), strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
        assert not torch.allclose(before[..., 1:, :], after[..., 1:, :], atol=0.1)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotary_multiplies_complex_numbers_by_unit_phases(base):
    head_dim, seq_len = 8, 30
    q, k = torch.randn(2, 2, 4, seq_len, head_dim)[0], torch.randn(2, 1, seq_len, head_dim)  # fewer key heads
    theta = base ** (-2 * torch.arange(head_dim // 2, dtype=torch.float64) / head_dim)
    phases = torch.exp(1j * torch.arange(seq_len, dtype=torch.float64)[:, None] * theta)
    for x, rotated in zip((q, k), Rotary(32, 4, 50, base=base).rotate(q, k), strict=True):
        turned = torch.complex(x[..., :4].double(), x[..., 4:].double()) * phases
        torch.testing.assert_close(rotated.double(), torch.cat([turned.real, turned.imag], dim=-1), rtol=0, atol=1e-5)


def test_rotary_keeps_the_dtype_of_queries_and_keys():
    q, k = Rotary(16, 2, 8).rotate(*torch.randn(2, 1, 2, 8, 8, dtype=torch.bfloat16))
    assert q.dtype == k.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("base", "pos", "dim", "expected"),
    [
        (10_000.0, 0, 0, 0.0),
        (10_000.0, 0, 1, 1.0),
        (10_000.0, 5, 0, math.sin(5)),
        (10_000.0, 5, 1, math.cos(5)),
        (10_000.0, 9, 6, math.sin(9 / 10_000 ** (6 / 8))),
        (10_000.0, 9, 7, math.cos(9 / 10_000 ** (6 / 8))),
        (100.0, 9, 4, math.sin(9 / 100 ** (4 / 8))),
    ],
)
def test_sinusoidal_adds_sines_at_even_and_cosines_at_odd_dimensions(base, pos, dim, expected):
    x = torch.randn(2, 10, 8)
    added = Sinusoidal(d_model=8, n_heads=2, max_seq_len=12, base=base).embed(x) - x
    torch.testing.assert_close(added[:, pos, dim], torch.full((2,), expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_heads", [8, 4, 6])
def test_alibi_subtracts_slope_times_distance_and_hides_the_future(n_heads):
    scores = ALiBi(d_model=48, n_heads=n_heads, max_seq_len=9).scores(7)
    expected = torch.tensor(
        [
            [[-(2 ** (-8 * (h + 1) / n_heads)) * (i - j) if j <= i else -math.inf for j in range(7)] for i in range(7)]
            for h in range(n_heads)
        ]
    )
    torch.testing.assert_close(scores, expected)


def test_learned_adds_one_trained_vector_a_position():
    learned = Learned(d_model=64, n_heads=2, max_seq_len=100, std=0.5)
    x = torch.randn(3, 40, 64)
    torch.testing.assert_close(learned.embed(x), x + learned.weight[None, :40])
    assert learned.weight.requires_grad
    assert learned.weight.shape == (100, 64)
    assert learned.weight.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("encoding", "acts_on"),
    [(NoPosition, set()), (Learned, {"embed"}), (Sinusoidal, {"embed"}), (Rotary, {"rotate"}), (ALiBi, {"scores"})],
)
def test_encodings_act_in_one_place(encoding, acts_on):
    position = encoding(16, 2, 8)
    x, (q, k) = torch.randn(2, 8, 16), torch.randn(2, 2, 2, 8, 8)
    same_q, same_k = position.rotate(q, k)
    acted = {
        "embed": not torch.equal(position.embed(x), x),
        "rotate": not (torch.equal(same_q, q) and torch.equal(same_k, k)),
        "scores": position.scores(8) is not None,
    }
    assert {place for place, changed in acted.items() if changed} == acts_on


@pytest.mark.parametrize("encoding", [NoPosition, Sinusoidal, Rotary, ALiBi])
def test_fixed_encodings_neither_train_nor_enter_checkpoints(encoding):
    position = encoding(16, 2, 8)
    assert list(position.parameters()) == []
    assert position.state_dict() == {}


def test_rotary_rejects_odd_head_dimensions():
    with pytest.raises(ConfigError, match=r"d_model: 12 .*head dimension.* 3"):
        Rotary(d_model=12, n_heads=4, max_seq_len=8)


def test_sinusoidal_rejects_odd_widths():
    with pytest.raises(ConfigError, match=r"d_model: 15 .*even"):
        Sinusoidal(d_model=15, n_heads=3, max_seq_len=8)


def test_rotation_in_bf16_and_its_gradient_are_those_in_float32():
    torch.manual_seed(0)
    rotary = Rotary(32, 4, 16)
    q, k = torch.randn(2, 3, 4, 9, 8).bfloat16()
    weights = torch.randn(3, 4, 9, 8)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [each.to(dtype).requires_grad_() for each in (q, k)]
        turned = rotary.rotate(*leaves, start=5)
        gradients = torch.autograd.grad(sum((each * weights).sum() for each in turned), leaves)
        results.append([each.float() for each in (*turned, *gradients)])
    for exact, low in zip(*results, strict=True):
        torch.testing.assert_close(low, exact, rtol=0, atol=0.05)
