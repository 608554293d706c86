"""The program to beat: the network and training of configs/autoresearch/00-baseline.yaml, in plain PyTorch.

It trains until TIME_BUDGET is over, and prints its result as a line of JSON. The log is on standard error.
"""

import json
import math
import os
import sys
import time

import torch
from prepare import MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE, evaluate_bpb, make_dataloader
from torch import Tensor, nn
from torch.nn import functional as F

D_MODEL, N_HEADS, N_LAYERS, D_FF = 128, 4, 4, 512
DROPOUT = 0.1
BATCH_SIZE = 16
LEARNING_RATE = 1e-3
DEVICE = "cpu"


class Attention(nn.Module):
    """Causal attention, with the (T, T) scores written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL)
        self.out = nn.Linear(D_MODEL, D_MODEL)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part.view(b, t, N_HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(D_MODEL // N_HEADS)
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = self.dropout(scores.masked_fill(later, -math.inf).softmax(-1))
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, D_MODEL))


class Block(nn.Module):
    """Post-norm: a normalization after each residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.feedforward = nn.Sequential(
            nn.Linear(D_MODEL, D_FF), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(D_FF, D_MODEL)
        )
        self.attention_norm = nn.LayerNorm(D_MODEL)
        self.feedforward_norm = nn.LayerNorm(D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        return self.feedforward_norm(x + self.feedforward(x))


class GPT(nn.Module):
    """Tokens and learned positions, blocks, and a head that is not tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, D_MODEL)
        self.positions = nn.Embedding(MAX_SEQ_LEN, D_MODEL)
        self.blocks = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.norm = nn.LayerNorm(D_MODEL)
        self.head = nn.Linear(D_MODEL, VOCAB_SIZE)
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Returns the logits, or, with targets, the mean cross-entropy in nats."""
        hidden = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(self.norm(hidden))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    torch.manual_seed(int(os.environ.get("TORCH_SEED", "42")))
    model = GPT().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = make_dataloader(BATCH_SIZE, MAX_SEQ_LEN, "train", DEVICE)
    start, step, loss = time.time(), 0, torch.tensor(math.nan)
    while time.time() - start < TIME_BUDGET:
        loss = model(*next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}, {time.time() - start:.1f} s", file=sys.stderr)
    seconds = time.time() - start
    result = {
        "val_bpb": round(evaluate_bpb(model, BATCH_SIZE, DEVICE), 6),
        "train_loss": round(loss.item(), 6),
        "total_steps": step,
        "training_time_secs": round(seconds, 2),
        "num_params_M": round(sum(p.numel() for p in model.parameters()) / 1e6, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
