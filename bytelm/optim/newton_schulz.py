"""Newton-Schulz iterations: polynomials that move the singular values of a matrix towards 1, for Muon."""

from collections.abc import Iterable

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
"""a, b and c of an iteration's polynomial a x + b x^3 + c x^5, which acts on the singular values."""

# Amsel et al. 2025 (arXiv:2505.16932): the composition of quintic polynomials that is closest to 1 on [0.001, 1], with
# their "cushion" of 0.024; further iterations repeat the last polynomial.
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# Rounding can raise a singular value above 1, where all polynomials except the last grow fast. They are therefore
# stretched by 1%, and matrices are scaled to a norm of 1 / 1.01.
SAFETY = 1.01
COEFFICIENTS: dict[str, tuple[Coefficients, ...]] = {
    "quintic": ((3.4445, -4.7750, 2.0315),),
    "polar_express": (
        *((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]),
        POLAR_EXPRESS[-1],
    ),
}


def iterations(coefficients: str | Coefficients, steps: int) -> tuple[list[Coefficients], float]:
    """Coefficients of each iteration, and the multiple of its norm that a matrix is divided by."""
    given = COEFFICIENTS[coefficients] if isinstance(coefficients, str) else (coefficients,)
    scale = SAFETY if coefficients == "polar_express" else 1.0
    return [given[min(i, len(given) - 1)] for i in range(steps)], scale


def orthogonalize(matrix: Tensor, schedule: Iterable[Coefficients], scale: float = 1.0, eps: float = 1e-7) -> Tensor:
    """Moves the singular values of a matrix towards 1 and keeps its singular vectors.

    Args:
        matrix: (rows, columns), or several as (matrices, rows, columns).
        schedule: Coefficients of each iteration.
        scale: The matrix is first divided by this multiple of its Frobenius norm.
        eps: Smallest norm that it is divided by.

    Returns:
        A tensor of the same shape and type.
    """
    multiply_add = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x = wide / (frobenius_norms(wide) * scale).clamp(min=eps)
    for a, b, c in schedule:
        gram = x @ x.mT
        polynomial = multiply_add(gram, gram, gram, beta=b, alpha=c)
        x = multiply_add(x, polynomial, x, beta=a)
    return x if wide is matrix else x.mT


def frobenius_norms(matrices: Tensor) -> Tensor:
    """Frobenius norm of each matrix, (..., 1, 1)."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
