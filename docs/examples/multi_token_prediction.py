"""A loss that also predicts the tokens after the next one, from the same hidden states.

    python -m bytelm fit --config my.yaml --model.loss multi_token_prediction.MultiTokenPrediction

Gloeckle et al. 2024, arXiv:2404.19737: further predictions share the head; here each has its own matrix between
the hidden states and the head, which belongs to the loss and is not part of the network that is used later.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class MultiTokenPrediction(nn.Module):
    """Cross-entropy of the next token plus `weight` times the mean of those of the `n_ahead` tokens after it.

    Args:
        d_model: Width of the hidden states; given by the network.
        n_ahead: How many further tokens are predicted.
        weight: Weight of their loss.
    """

    takes_hidden = True

    def __init__(self, *, d_model: int, n_ahead: int = 2, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = weight
        self.projections = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(n_ahead))
        for projection in self.projections:
            nn.init.eye_(projection.weight)

    def forward(self, hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
        loss = self.cross_entropy(head(hidden), targets)
        for ahead, projection in enumerate(self.projections, start=1):
            logits = head(projection(hidden[:, :-ahead]))
            loss = loss + self.weight / len(self.projections) * self.cross_entropy(logits, targets[:, ahead:])
        return loss

    @staticmethod
    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
