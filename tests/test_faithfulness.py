"""bytelm computes what the challenge's winning script and protocol compute: logits, loss, gradients and score."""

import functools
import math

import pytest
import torch
from reference import CORPUS, harness_module, needs_reference, winning_script
from torch import nn
from torch.nn import functional as F

from bytelm.data.bytes import read_bytes
from bytelm.data.rows import EvalBatches
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.parts.init import Normal

pytestmark = needs_reference

# bytelm's names of parameters and the script's; norms, biases and the rest follow.
RENAMED = {
    "embedding.": "tok_emb.",
    "attention_norm.": "ln1.",
    "feedforward_norm.": "ln2.",
    "attention.": "attn.",
    "out.": "out_proj.",
    "feedforward.": "mlp.",
    "up.": "fc1.",
    "down.": "fc2.",
    "norm.": "ln_f.",
}


def script_name(name):
    prefix, *parts = name.split(".")
    renamed = "".join(RENAMED.get(f"{part}.", f"{part}.") for part in (prefix, *parts[:-1]))
    return renamed + parts[-1]


@pytest.fixture(scope="module")
def networks():
    """The script's network and bytelm's with the same weights, large enough that every part matters."""
    torch.manual_seed(0)
    theirs = winning_script()["GPT"]()
    for p in theirs.parameters():
        nn.init.normal_(p, mean=1.0 if p.ndim == 1 else 0.0, std=0.1)
    ours = GPT(d_model=80, n_heads=4, n_layers=3, d_ff=256)
    ours.load_state_dict({name: theirs.state_dict()[script_name(name)] for name in ours.state_dict()})
    return ours, theirs


@pytest.fixture(scope="module")
def corpus():
    return read_bytes(CORPUS.read_bytes())


@pytest.fixture(scope="module")
def rows(corpus):
    inputs, targets = next(iter(EvalBatches(corpus[1_000_000:], batch_size=4, seq_len=256)))
    return inputs[:4], targets[:4]


def test_parameters_are_the_scripts_one_for_one(networks):
    ours, theirs = networks
    names = {script_name(name): p.shape for name, p in ours.named_parameters()}
    assert names == {name: p.shape for name, p in theirs.named_parameters()}


def test_initial_weights_have_the_scripts_distribution():
    torch.manual_seed(0)
    ours, theirs = GPT(d_model=80, n_heads=4, n_layers=3, d_ff=256), winning_script()["GPT"]()
    for name, p in ours.named_parameters():
        q = theirs.get_parameter(script_name(name))
        assert p.mean().item() == pytest.approx(q.mean().item(), abs=1e-3), name
        assert p.std().item() == pytest.approx(q.std().item(), rel=0.05), name


@torch.no_grad()
def test_logits_and_loss_are_the_scripts(networks, rows):
    ours, theirs = networks
    inputs, targets = rows
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=0, atol=1e-5)
    loss = LanguageModel(ours).training_step((inputs, targets), 0)
    torch.testing.assert_close(loss, theirs(inputs, targets), rtol=0, atol=1e-5)
    assert ours(inputs).std() > 0.5


def test_gradients_are_the_scripts(networks, rows):
    ours, theirs = networks
    inputs, targets = rows
    ours.zero_grad()
    theirs.zero_grad()
    LanguageModel(ours).training_step((inputs, targets), 0).backward()
    theirs(inputs, targets).backward()
    for name, p in ours.named_parameters():
        expected = theirs.get_parameter(script_name(name)).grad
        assert expected.abs().max() > 1e-4, name
        torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_val_bpb_is_the_protocols(corpus, monkeypatch):
    monkeypatch.setenv("HARNESS_CORPUS", str(CORPUS))
    torch.manual_seed(0)
    gpt = GPT(d_model=8, n_heads=2, n_layers=1, d_ff=8, init=functools.partial(Normal, std=0.5))

    class MeanCrossEntropy(nn.Module):
        def forward(self, inputs, targets):
            return F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten())

    expected = harness_module("prepare").evaluate_bpb(MeanCrossEntropy(), batch_size=16)
    model = LanguageModel(gpt)
    validation = corpus[int(len(corpus) * 0.9) :][:131_072]
    with torch.no_grad():
        for i, batch in enumerate(EvalBatches(validation, batch_size=16, seq_len=256)):
            model.validation_step(batch, i)
    assert model.val_bpb.compute().item() == pytest.approx(expected, abs=1e-6)
    assert model.val_loss.compute().item() / math.log(2) == pytest.approx(expected, abs=1e-5)
