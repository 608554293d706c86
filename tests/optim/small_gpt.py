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


def assert_trained_alike(one, optimizers, other, others, start):
    """Asserts that two equal networks stay equal, bit for bit, under falling rates, and that all weights change."""
    for step in range(5):
        for optimizer in (*optimizers, *others):
            for group in optimizer.param_groups:
                group["lr"] *= 0.9  # as a schedule does
        backward(one, step)
        backward(other, step)
        for optimizer in (*optimizers, *others):
            optimizer.step()
    assert_same_weights(one, other)
    for (name, p), before in zip(one.named_parameters(), start.parameters(), strict=True):
        assert not torch.equal(p, before), name
