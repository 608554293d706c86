"""A GPT that optimizers are tested on, and its gradients."""

import functools
import io

import torch
from torch import nn

from bytelm.gpt import GPT
from bytelm.parts.embedding import HashedNGrams
from bytelm.parts.position import Learned

N_GRAMS = functools.partial(HashedNGrams, buckets=64, dim=4)


def tiny(**options):
    torch.manual_seed(0)
    options = {"n_layers": 2, **options}
    return GPT(d_model=16, n_heads=2, vocab_size=32, max_seq_len=8, position=Learned, **options)


def backward(gpt, step):
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(step))
    gpt.zero_grad()
    loss = nn.functional.cross_entropy(gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss


def train(gpt, optimizer, steps):
    for step in steps:
        backward(gpt, step)
        optimizer.step()


def saved(optimizer):
    """An optimizer's state as a checkpoint returns it."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_weights(one, other):
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
