"""A mixture of experts: each token goes to the `top_k` of `n_experts` feed-forwards that a router chooses.

    python -m bytelm fit --config my.yaml --model.gpt.feedforward mixture_of_experts.MixtureOfExperts

The router's auxiliary losses keep experts equally busy and its logits small (Fedus et al. 2021, arXiv:2101.03961;
Zoph et al. 2022, arXiv:2202.08906).
"""

import torch
from torch import Tensor, nn


class MixtureOfExperts(nn.Module):
    """Sum of the chosen experts' outputs, each times the router's probability.

    Args:
        d_model: Width of the residual stream.
        d_ff: Width of an expert's hidden layer.
        n_experts: Number of experts.
        top_k: Number of experts that a token goes to.
        balance: Weight of the load-balancing loss.
        z_loss: Weight of the router's z-loss.
    """

    def __init__(
        self, d_model: int, d_ff: int, n_experts: int = 4, top_k: int = 2, balance: float = 0.01, z_loss: float = 0.001
    ) -> None:
        super().__init__()
        self.top_k, self.balance, self.z_loss = top_k, balance, z_loss
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(torch.randn(n_experts, d_model, d_ff) / d_model**0.5)
        self.down = nn.Parameter(torch.randn(n_experts, d_ff, d_model) / d_ff**0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x).float()
        probabilities = logits.softmax(dim=-1)
        chosen = probabilities.topk(self.top_k, dim=-1).indices
        mask = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
        balance = (mask.mean(dim=(0, 1)) * probabilities.mean(dim=(0, 1))).sum() * len(self.up) / self.top_k
        self.auxiliary = self.balance * balance + self.z_loss * logits.logsumexp(dim=-1).square().mean()
        # All experts compute all tokens here, which is short; a fast one would gather each expert's tokens.
        hidden = torch.einsum("btd,edf->betf", x, self.up).relu().square()
        outputs = torch.einsum("betf,efd->betd", hidden, self.down)
        return torch.einsum("betd,bte->btd", outputs, (mask * probabilities).to(outputs.dtype))

    def auxiliary_loss(self) -> Tensor:
        """Added to the training loss."""
        return self.auxiliary
