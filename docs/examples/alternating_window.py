"""Sliding windows that alternate by layer: even layers see the last `window` tokens, odd layers and the last see all.

    python -m bytelm fit --config my.yaml --model.gpt.attention alternating_window.AlternatingWindow

As in Mistral 7B (arXiv:2310.06825) and Gemma 2 (arXiv:2408.00118). `window` can be scheduled, as `attention.window`.
"""

import torch
from torch import Tensor

from bytelm.parts.attention import SDPA
from bytelm.parts.contract import PositionEncoding


class AlternatingWindow(SDPA):
    """SDPA with a window in every other layer.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads.
        window: How many tokens a query sees in even layers, its own included.
        layer: Number of the layer; given by the network.
        n_layers: Number of layers; given by the network.
    """

    schedulable = ("window",)

    def __init__(self, d_model: int, n_heads: int, window: int = 64, *, layer: int, n_layers: int) -> None:
        super().__init__(d_model, n_heads, bias=False)
        self.window = window
        self.sees_all = layer % 2 == 1 or layer == n_layers - 1

    def scores(self, position: PositionEncoding, seq_len: int, device: torch.device) -> Tensor | None:
        """Added to the attention scores: -inf for later tokens and for those before the window."""
        if self.sees_all:
            return super().scores(position, seq_len, device)
        ones = torch.ones(1, seq_len, seq_len, dtype=torch.bool, device=device)
        inside = ones.tril() & ones.triu(1 - self.window)
        return torch.zeros(1, seq_len, seq_len, device=device).masked_fill(~inside, -torch.inf)
