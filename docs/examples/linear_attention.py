"""Linear attention with a decay by head, without positions and without a cache of keys and values.

    python -m bytelm fit --config my.yaml --model.gpt.attention linear_attention.Retention \
        --model.gpt.position NoPosition

Retention (Sun et al. 2023, arXiv:2307.08621), in its parallel form: (Q K^T * D) V with D_ts = decay^(t - s) for s <= t.
Generation works, and computes all tokens again for each new one, since the part declares no cache.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Retention(nn.Module):
    """Attention whose weights are products of queries and keys, without a softmax.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; head h has the decay 1 - 2^(-5 - h).
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** (-5 - torch.arange(n_heads)))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq_len, d_model = x.shape
        q, k, v = self.qkv(x).view(batch, seq_len, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        time = torch.arange(seq_len, device=x.device)
        distance = (time[:, None] - time[None, :]).clamp(min=0)
        decay = (distance * self.log_decay[:, None, None]).exp().tril()
        mixed = (q @ k.mT / q.shape[-1] ** 0.5 * decay.to(q.dtype)) @ v
        mixed = F.rms_norm(mixed, mixed.shape[-1:])  # by head
        return self.out(F.silu(self.gate(x)) * mixed.transpose(1, 2).reshape(batch, seq_len, d_model))
