"""Newton-Schulz iterations on matrices with known singular values."""

import math

import pytest
import torch

from bytelm.optim.newton_schulz import POLAR_EXPRESS, iterations, orthogonalize


def spread(rows, columns, least=1e-2):
    """A matrix with known singular vectors, and singular values from `least` to 1."""
    generator = torch.Generator().manual_seed(0)
    n = min(rows, columns)
    u, v = (
        torch.linalg.qr(torch.randn(size, n, generator=generator, dtype=torch.float64))[0] for size in (rows, columns)
    )
    return u * torch.logspace(math.log10(least), 0, n, dtype=torch.float64) @ v.T, u, v


@pytest.mark.parametrize("shape", [(12, 12), (30, 12), (12, 30)])
@pytest.mark.parametrize(
    ("name", "n_steps", "tolerance"),
    [("quintic", 5, 0.35), ("quintic", 10, 0.35), ("polar_express", 5, 0.15), ("polar_express", 12, 1e-9)],
)
def test_singular_values_come_near_1_and_singular_vectors_stay(shape, name, n_steps, tolerance):
    matrix, u, v = spread(*shape)
    schedule, scale = iterations(name, n_steps)
    found = orthogonalize(matrix, schedule, scale)
    assert found.shape == matrix.shape
    core = u.T @ found @ v
    torch.testing.assert_close(core, torch.diag(core.diag()), atol=1e-9, rtol=0)
    torch.testing.assert_close(core.diag(), torch.ones_like(core.diag()), atol=tolerance, rtol=0)
    torch.testing.assert_close(u @ core @ v.T, found, atol=1e-9, rtol=0)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found, left @ right, atol=tolerance * 2, rtol=0)


@pytest.mark.parametrize("name", ["quintic", "polar_express"])
def test_the_iterations_are_their_polynomials_of_singular_values(name):
    matrix, u, v = spread(10, 14)
    schedule, scale = iterations(name, 7)
    x = torch.logspace(-2, 0, 10, dtype=torch.float64) / (matrix.norm() * scale)
    for a, b, c in schedule:
        x = a * x + b * x**3 + c * x**5
    torch.testing.assert_close(orthogonalize(matrix, schedule, scale), u * x @ v.T, atol=1e-12, rtol=0)


def test_polar_express_is_the_composition_of_best_polynomials():
    """Each iteration's polynomial is within the same distance of 1 at both ends of the interval and at its extrema.

    That is what makes it the best quintic there (Chebyshev). The first iterations are best for a part of the interval,
    [0.024 u, u], and stretched so that both ends of all of it are as far from 1.
    """
    low, high = 1e-3, 1.0
    for a, b, c in POLAR_EXPRESS[:-1]:
        polynomial = torch.tensor([a, b, c], dtype=torch.float64)

        def value(x, coefficients=polynomial):
            return (coefficients * torch.tensor([x, x**3, x**5], dtype=torch.float64)).sum().item()

        roots = [math.sqrt((-3 * b + sign * math.sqrt(9 * b * b - 20 * a * c)) / (10 * c)) for sign in (-1, 1)]
        ends = (max(low, 0.02407327424182761 * high), high)
        minimum, maximum = value(roots[1]), value(roots[0])
        assert ends[0] < roots[0] < roots[1] < ends[1]
        assert value(ends[0]) == pytest.approx(minimum, rel=1e-6)
        assert value(ends[1]) == pytest.approx(maximum, rel=1e-6)
        assert value(low) + value(high) == pytest.approx(2, rel=1e-9)
        low, high = value(low), value(high)
        low, high = min(low, 2 - high), max(high, 2 - low)
    assert high - low < 1e-3


def test_more_iterations_repeat_the_last_coefficients():
    schedule, scale = iterations("polar_express", 10)
    assert schedule[7:] == [(1.875, -1.25, 0.375)] * 3
    assert schedule[0] == tuple(
        x / 1.01**power
        for x, power in zip((8.28721201814563, -23.595886519098837, 17.300387312530933), (1, 3, 5), strict=True)
    )
    assert scale == 1.01


@pytest.mark.parametrize("name", ["quintic", "polar_express"])
def test_in_bfloat16_singular_values_come_near_1(name):
    schedule, scale = iterations(name, 5)
    found = orthogonalize(spread(64, 48, least=0.1)[0].bfloat16(), schedule, scale)
    values = torch.linalg.svdvals(found.double())
    assert found.dtype == torch.bfloat16
    assert values.min() > 0.6
    assert values.max() < 1.3
