"""Steps that several threads compute, each with a part of the rows."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.optim.muon import Muon
from bytelm.parts.memory import NGramMemory
from bytelm.row_threads import RowThreads


def network(**options):
    torch.manual_seed(0)
    return GPT(d_model=16, n_heads=2, n_layers=2, max_seq_len=16, **options)


def rows(n=5):
    torch.manual_seed(1)
    return torch.randint(256, (n, 16)), torch.randint(256, (n, 16))


def computed(threads, gpt, bf16):
    def loss(inputs, targets):
        return F.cross_entropy(gpt(inputs).float().flatten(0, 1), targets.flatten())

    params = list(gpt.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        mean = loss(*rows()) if threads is None else RowThreads(threads).loss(loss, *rows(), params)
    return [mean, *torch.autograd.grad(2 * mean, params)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 8])  # 8: more threads than rows
def test_the_same_loss_and_gradients(threads, bf16):
    gpt = network(memory=functools.partial(NGramMemory, n_symbols=8))
    for own, other in zip(computed(threads, gpt, bf16), computed(None, gpt, bf16), strict=True):
        assert (own - other).norm() <= (2e-2 if bf16 else 1e-5) * other.norm().clamp(min=1e-3)


def test_repeatable():
    gpt = network()
    one, other = (computed(3, gpt, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_threads_of_the_caller_stay():
    before = torch.get_num_threads()
    computed(2, network(), False)
    assert torch.get_num_threads() == before


def test_a_training_step_uses_them(monkeypatch):
    model = LanguageModel(network(), row_threads=2)
    used = []
    gradients = RowThreads.gradients
    monkeypatch.setattr(RowThreads, "gradients", lambda self, *given: used.append(self) or gradients(self, *given))
    model.training_step(rows(), 0).backward()
    assert used == [model.row_threads]
    alone = LanguageModel(network())
    alone.training_step(rows(), 0).backward()
    for own, other in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "given", "device", "accepted"),
    [
        ({}, {}, "cuda", "accepted on cuda: null"),
        ({}, {"compile": True}, "cpu", "accepted with model.compile: True: null"),
        ({"dropout": 0.1}, {}, "cpu", "accepted with dropout: null"),
    ],
)
def test_rejected(options, given, device, accepted):
    model = LanguageModel(network(**options), row_threads=2, **given)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    with pytest.raises(ConfigError, match=accepted) as raised:
        model._check_row_threads(trainer)
    assert "model.row_threads" in str(raised.value)


def test_small_matrices_are_stepped_side_by_side(monkeypatch):
    def stepped(threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (8, 24), (8, 8))]
        optimizer = Muon(params)
        for _ in range(2):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        return params

    on_threads = []
    step = Muon._step_on_threads
    monkeypatch.setattr(Muon, "_step_on_threads", lambda self, *given: on_threads.append(given) or step(self, *given))
    alone = stepped(1)
    assert not on_threads
    assert all(torch.equal(one, other) for one, other in zip(stepped(2), alone, strict=True))
    assert len(on_threads) == 2
