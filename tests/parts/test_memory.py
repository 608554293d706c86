"""Memories: recall is a causal prediction, and the network starts at it."""

import copy
import functools
import io
import math
import random
import shutil
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from contexts import context
from torch import nn
from torch.nn import functional as F

from bytelm.data.rows import cut_rows
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import param_groups
from bytelm.parts.init import FanIn
from bytelm.parts.memory import NGramMemory, NoMemory

T = 32
LN256 = math.log(256)


def prose(n, seed=0):
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n"]
    rng = random.Random(seed)
    return " ".join(rng.choice(words) for _ in range(n // 3)).encode()[:n]


def tensor(text):
    return torch.tensor(list(text), dtype=torch.uint8)


def folds_of(text):
    return (torch.arange(len(text)) // (4 * T) % 3).to(torch.uint8)


TEXT = prose(6_000)


def filled(text=TEXT, **options):
    torch.manual_seed(0)
    memory = NGramMemory(256, 16, **{"n_symbols": 256, **options})
    memory.fill(tensor(text), folds_of(text), T)
    memory.hold_out(None)
    return memory


def gpt(text=None, memory=None, **options):
    """A network, its memory filled with a text."""
    torch.manual_seed(0)
    memory = functools.partial(NGramMemory, **(memory or {}))
    network = GPT(d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=T, memory=memory, **options)
    if text is not None:
        network.memory.fill(tensor(text), folds_of(text), T)
        network.memory.hold_out(None)
    return network


def randomized(network):
    """With weights so large that every part has an effect."""
    torch.manual_seed(1)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network


def batch(text, n=8):
    return cut_rows(tensor(text), torch.arange(n) * T, T)


def nll(memory, text, n=8):
    """Of the last prediction, in nats per byte."""
    inputs, targets = batch(text, n)
    return F.nll_loss(memory.recall(inputs).log_probs[:, :, -1].flatten(0, 1), memory.symbols[targets].flatten()).item()


ONLY = {
    "orders": {"orders": [1, 2, 4], "words": [], "cache": []},
    "words": {"orders": [1], "words": [1, 2], "cache": []},
    "classes": {"orders": [1], "words": [1], "classes": [2, 3], "cache": []},
    "cache": {"orders": [1], "words": [], "cache": [1, 2, 3]},
    "all": {},
}


# Causality


@pytest.mark.parametrize("options", ONLY.values(), ids=ONLY)
def test_recall_is_causal(options):
    memory = filled(**options)
    inputs, _ = batch(prose(3_000, seed=2), 2)
    before, reacted = memory.recall(inputs), 0
    for t in range(1, T):
        changed = inputs.clone()
        changed[:, t] = torch.tensor(list(b"e\0"))
        after = memory.recall(changed)
        assert torch.equal(after.log_probs[:, :t], before.log_probs[:, :t])
        assert torch.equal(after.counts[:, :t], before.counts[:, :t])
        reacted += not torch.equal(after.log_probs[:, t], before.log_probs[:, t])
    assert reacted > T // 2, "the token itself is meant to matter"


def test_a_network_reads_what_is_above_its_range():
    inputs, _ = batch(prose(3_000, seed=2), 2)
    network, plain = (gpt(TEXT, {"read_range": value}) for value in (4.0, None))
    evidence = network.memory.recall(inputs)
    n = evidence.n_levels * evidence.n_symbols
    reads = evidence.values.clone()
    reads[..., :n] = (reads[..., :n] + 4).clamp(min=0) * 0.2
    own = network.memory.embed(torch.zeros(2, T, 16), evidence)
    assert torch.allclose(own, network.memory.reader(reads), atol=1e-4)
    assert not torch.allclose(own, plain.memory.embed(torch.zeros(2, T, 16), evidence), atol=0.1)


@pytest.mark.parametrize("t", [1, 9, T - 1])
def test_logits_are_causal(t):
    network = randomized(gpt(TEXT)).eval()
    inputs, _ = batch(prose(3_000, seed=2), 2)
    changed = inputs.clone()
    changed[:, t:] = inputs[:, t:].flip(0)
    with torch.no_grad():
        before, after = network(inputs), network(changed)
    assert torch.allclose(after[:, :t], before[:, :t], atol=1e-5)
    assert (after[:, t] - before[:, t]).abs().max() > 1e-2


def test_only_the_cache_uses_the_row():
    memory = NGramMemory(256, 16, orders=[1], words=[], cache=[2], n_symbols=256)  # not filled: there is no text
    inputs, _ = cut_rows(tensor(b"ab1ab2ab"), torch.tensor([0]), 8)
    log_probs = memory.recall(inputs).log_probs[0, :, -1]
    assert torch.allclose(log_probs[:5], torch.tensor(-LN256)), "nothing has come twice yet"
    p = log_probs[5].exp()  # after "ab1ab"
    assert p[ord("1")].item() == pytest.approx(0.5 + 0.5 / 256)
    assert p[ord("2")].item() == pytest.approx(0.5 / 256)
    assert torch.allclose(log_probs[6], torch.tensor(-LN256)), "b2 has not come before"


def test_rows_of_a_batch_do_not_see_each_other():
    memory = filled()
    inputs, _ = batch(prose(3_000, seed=2), 4)
    together = memory.recall(inputs)
    for i in range(4):
        assert torch.allclose(memory.recall(inputs[i : i + 1]).log_probs[0], together.log_probs[i], atol=1e-6)


# Predictions


@pytest.mark.parametrize("options", ONLY.values(), ids=ONLY)
@pytest.mark.parametrize("held_out", [None, 0, 2])
def test_predictions_are_distributions(options, held_out):
    memory = filled(**options)
    memory.hold_out(held_out)
    evidence = memory.recall(batch(TEXT)[0])
    sums = evidence.log_probs.exp().sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    assert evidence.counts.isfinite().all()
    assert (evidence.counts >= 0).all()


def test_predictions_of_lumped_symbols_are_distributions_too():
    sums = filled(n_symbols=9).recall(batch(TEXT)[0]).log_probs.exp().sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def test_interpolation_is_that_of_a_plain_loop():
    """Orders 1 and 3 in the text, order 2 in the row; the weights as they were found, by hand where it is simple."""
    text, row = b"abracadabra abracadabra " * 8, b"abra abra cadabrac"
    memory = NGramMemory(256, 16, orders=[1, 3], words=[], cache=[2], n_symbols=256)
    memory.fill(tensor(text), folds_of(text), T)
    memory.hold_out(None)
    weights = torch.rand(memory.backoff.shape, generator=torch.Generator().manual_seed(3))
    memory.backoff.copy_(weights)
    log_probs = memory.recall(torch.tensor([[0, *row]])).log_probs[0]
    for t in range(len(row) + 1):
        past = row[:t]
        p = [Fraction(1, 256)] * 256
        levels = []
        for kind, (n, seen) in enumerate([(1, text), (3, text), (2, past)]):
            followers = Counter(seen[i] for i in range(n, len(seen)) if len(past) >= n and seen[i - n : i] == past[-n:])
            total, distinct = sum(followers.values()), len(followers)
            if total:
                bucket = 5 * min(23, int(2 * math.log2(total))) + min(4, int(math.log2(distinct)))
                b = Fraction(weights[kind, bucket].item())
                p = [(1 - b) * followers[token] / total + b * p[token] for token in range(256)]
            levels.append([float(value) for value in p])
        expected = torch.tensor([levels[level] for level in memory.levels])
        assert torch.allclose(log_probs[t].exp()[:, memory.symbols], expected, atol=1e-5), t


def test_held_out_folds_are_not_recalled():
    text = bytes(random.Random(4).choices(range(1, 256), k=24 * T))  # there is nothing to learn but by heart
    memory = filled(text)
    memory.backoff.fill_(0.5)
    scores = []
    for fold in (None, 0, 1, None):
        memory.hold_out(fold)
        scores.append(nll(memory, text, 4))  # of fold 0
    assert max(scores[0], scores[2]) < 0.2 * LN256 < 0.8 * LN256 < scores[1]
    assert scores[3] == scores[0]


def test_holding_out_equals_counting_without_the_fold():
    """Whose beginnings alone are lost: fold 2 is the text's end."""
    text = prose(30 * T)
    folds = torch.tensor([0] * 10 * T + [1] * 10 * T + [2] * 10 * T, dtype=torch.uint8)
    memory, shorter = (NGramMemory(256, 16, n_symbols=256) for _ in range(2))
    memory.fill(tensor(text), folds, T)
    shorter.fill(tensor(text[: 20 * T]), folds[: 20 * T], T)
    memory.hold_out(2)
    shorter.hold_out(None)
    shorter.backoff.copy_(memory.backoff)
    inputs = batch(text, 30)[0]
    assert torch.equal(memory.symbols.sort().values, shorter.symbols.sort().values)
    for name in ("log_probs", "counts"):
        one, other = (getattr(m.recall(inputs), name) for m in (memory, shorter))
        if name == "log_probs":  # symbols are dealt by frequency
            one, other = one[..., memory.symbols], other[..., shorter.symbols]
        assert torch.allclose(one, other, atol=1e-5), name


def test_expectation_maximisation_raises_the_likelihood_of_held_out_text():
    text = prose(12_000)
    memory = filled(text)
    memory.hold_out(0)
    rows = [i for i in range(len(text) // T) if folds_of(text)[i * T] == 0]
    inputs, targets = cut_rows(tensor(text), torch.tensor(rows) * T, T)

    def score():
        return F.nll_loss(
            memory.recall(inputs).log_probs[:, :, -1].flatten(0, 1), memory.symbols[targets].flatten()
        ).item()

    learnt, found = score(), memory.backoff.clone()
    memory.backoff.fill_(0.5)
    assert learnt < score() - 0.02
    assert ((found > 0) & (found < 1)).all()
    for other in (found * 0.8, 1 - (1 - found) * 0.8):
        memory.backoff.copy_(other)
        assert learnt < score()


def test_filling_twice_equals_filling_once():
    once, twice = filled(), filled()
    twice.fill(tensor(TEXT), folds_of(TEXT), T)
    assert torch.equal(once.backoff, twice.backoff), "a resumed run fills the memory that its checkpoint had filled"
    assert torch.equal(once.symbols, twice.symbols)


def test_a_maximum_of_pairs_is_shared_by_the_kinds(monkeypatch):
    monkeypatch.setattr("bytelm.parts.ngram_counts.RANGE", 50)
    text = bytes(random.Random(4).choices(range(97, 123), k=5_000))
    unlimited = filled(text, orders=[1, 3, 4, 5, 6], words=[])
    sizes = [table.n_pairs for table in unlimited._tables]
    assert min(sizes[1:]) > 4_000
    limited = filled(text, orders=[1, 3, 4, 5, 6], words=[], max_pairs=10_000)
    shares = [table.n_pairs for table in limited._tables]
    assert 9_000 < sum(shares) < 11_000
    assert 2_800 <= shares[-1] < 3_000, "1.4 times a fifth of the pairs"
    roomy = filled(text, orders=[1, 3, 4, 5, 6], words=[], max_pairs=2 * sum(sizes))
    assert [table.n_pairs for table in roomy._tables] == sizes
    evidence = limited.recall(batch(text)[0])
    assert torch.allclose(evidence.log_probs.exp().sum(-1), torch.ones(()), atol=1e-4)


# Symbols


def test_rare_tokens_share_the_last_symbol():
    text = b"eeeeeeeeeettttttttaaaaaaoooonn" * 20 + b"zqx"
    memory = filled(text, n_symbols=5, words=[])
    assert [memory.symbols[token].item() for token in b"etao"] == [0, 1, 2, 3]
    assert {memory.symbols[token].item() for token in range(256) if token not in b"etao"} == {4}
    assert memory.symbols.shape == (256,)


def test_tokens_with_one_symbol_share_its_log_probability():
    memory = filled(n_symbols=6)
    memory.after_init()
    inputs, _ = batch(prose(3_000, seed=2), 2)
    evidence = memory.recall(inputs)
    logits = memory.mix(torch.zeros(2, T, 256), torch.zeros(2, T, 16), evidence)
    assert torch.allclose(logits, evidence.log_probs[:, :, -1][..., memory.symbols])


def test_no_more_symbols_than_tokens():
    assert NGramMemory(32, 16, n_symbols=128).n_symbols == 32


# The network with it


def test_training_with_an_unfilled_memory():
    network = gpt(memory={"cache": []}, init=FanIn)
    inputs, targets = batch(prose(600))
    evidence = network.memory.recall(inputs)
    assert torch.allclose(evidence.log_probs, torch.tensor(-math.log(128)))
    assert not evidence.counts.any()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(LN256, abs=0.05)
    assert losses[-1] < losses[0] - 0.3


def test_a_network_starts_out_as_the_n_gram_model():
    network = gpt(TEXT, {"n_symbols": 256}, init=FanIn, tie_embeddings=False).eval()
    text = prose(3_000, seed=2)
    inputs, targets = batch(text)
    with torch.no_grad():
        loss = F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(nll(network.memory, text), abs=1e-4)
    assert loss < 0.5 * LN256


def test_gradients_flow_to_reader_and_gates():
    network = randomized(gpt(TEXT))
    inputs, targets = batch(prose(3_000, seed=2))
    F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten()).backward()
    names = {name for name, p in network.memory.named_parameters() if p.grad is not None and p.grad.any()}
    assert names == {"reader.weight", "gate.weight", "gate_counts.weight", "gate_counts.bias"}
    groups = {group["name"]: [id(p) for p in group["params"]] for group in param_groups(network)}
    assert id(network.memory.reader.weight) in groups["hidden"]
    assert id(network.memory.gate.weight) in groups["embedding"]


def test_gates_learn_from_the_first_step_on():
    network = gpt(TEXT, init=FanIn, tie_embeddings=False)
    inputs, targets = batch(prose(3_000, seed=2))
    F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten()).backward()
    assert network.memory.gate.weight.grad.any()
    assert network.memory.gate_counts.weight.grad.any()


@pytest.mark.parametrize("norm_embeddings", [False, True])
def test_without_a_memory_the_network_is_the_one_without_it_to_the_last_bit(norm_embeddings):
    torch.manual_seed(0)
    network = GPT(d_model=16, n_heads=2, n_layers=2, d_ff=32, max_seq_len=T, norm_embeddings=norm_embeddings)
    assert isinstance(network.memory, NoMemory)
    assert not [name for name in network.state_dict() if "memory" in name]
    inputs, _ = batch(prose(600), 2)
    x = network.embedding(inputs)
    if norm_embeddings:
        x = F.layer_norm(x, (16,))
    for block in network.blocks:
        x = block(x, context(network.position))
    assert torch.equal(network(inputs), network.norm(x) @ network.embedding.weight.t())


def test_embeddings_are_normalised_with_what_the_memory_adds():
    network = randomized(gpt(TEXT, norm_embeddings=True))
    seen = []
    network.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    nn.init.ones_(network.embedding_norm.weight)
    nn.init.zeros_(network.embedding_norm.bias)
    network(batch(prose(600))[0])
    assert torch.allclose(seen[0].mean(-1), torch.zeros(8, T), atol=1e-5)
    assert torch.allclose(seen[0].var(-1, correction=0), torch.ones(8, T), atol=1e-2)


# Saving


def test_a_state_dict_brings_the_counts_back():
    network = randomized(gpt(TEXT))
    network.memory.hold_out(1)  # as in the middle of a fit
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    restored = gpt()
    restored.load_state_dict(torch.load(file, weights_only=True))
    for one in (network, restored):
        one.eval().memory.hold_out(None)
    inputs, _ = batch(prose(3_000, seed=2))
    assert torch.equal(network(inputs), restored(inputs))


def test_loading_replaces_earlier_counts():
    network, other = randomized(gpt(TEXT)), gpt(b"something else entirely, " * 100)
    other.load_state_dict(network.state_dict())
    inputs, _ = batch(prose(3_000, seed=2))
    assert torch.equal(network(inputs), other(inputs))


def test_saving_an_unfilled_memory():
    network, other = randomized(gpt()), gpt(TEXT)
    other.load_state_dict(network.state_dict())
    inputs, _ = batch(prose(600))
    assert torch.equal(network(inputs), other(inputs))


def test_no_more_than_the_text_is_saved():
    text = TEXT
    memory = NGramMemory(256, 16)
    memory.fill(tensor(text)[:3_000], folds_of(text)[:3_000], T)  # as the training split of a corpus
    file = io.BytesIO()
    torch.save(memory.get_extra_state(), file)
    assert text[3_000:3_100] not in file.getvalue(), "text beyond the training split is in the checkpoint"


def test_a_copy_recalls_the_same():
    memory = filled()
    inputs, _ = batch(prose(600))
    assert torch.equal(copy.deepcopy(memory).recall(inputs).log_probs, memory.recall(inputs).log_probs)


# Options, precision, compilation


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"orders": [3, 2]}, "orders", "[3, 2]"),
        ({"orders": [2, 2]}, "orders", "[2, 2]"),
        ({"orders": []}, "orders", "[]"),
        ({"words": [2, 1]}, "words", "[2, 1]"),
        ({"cache": [3, 3]}, "cache", "[3, 3]"),
        ({"vocab_size": 257}, "vocab_size", "257"),
    ],
)
def test_invalid_options_are_rejected_with_key_and_value(options, key, value):
    with pytest.raises(ConfigError) as rejection:
        NGramMemory(**{"vocab_size": 256, "d_model": 16, **options})
    assert str(rejection.value).startswith(f"{key}: {value}")
    assert "accepted" in str(rejection.value)


def test_mixed_precision_changes_little():
    network = randomized(gpt(TEXT)).eval()
    inputs, _ = batch(prose(3_000, seed=2))
    with torch.no_grad():
        exact = network(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(inputs)
            evidence = network.memory.recall(inputs)
    assert (mixed.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert torch.allclose(evidence.log_probs.float(), network.memory.recall(inputs).log_probs, rtol=2**-8, atol=1e-3)


def test_mixed_precision_rounds_only_the_logarithms_of_counts():
    memory = NGramMemory(256, 16, orders=[1], words=[], cache=[1], n_symbols=256)
    inputs = torch.full((1, 600), ord("a"))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = memory.recall(inputs).counts
    assert torch.allclose(mixed.float(), memory.recall(inputs).counts, rtol=2**-8, atol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile builds C++ on the CPU")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_compiled_network_is_the_same():
    network = randomized(gpt(TEXT)).eval()
    inputs, _ = batch(prose(3_000, seed=2), 2)
    with torch.no_grad():
        expected = network(inputs)
        network.compile()
        assert torch.allclose(network(inputs), expected, atol=1e-5, rtol=1e-5)


def test_loaded_memory_must_be_filled_before_folds_are_held_out():
    memory, text = filled(), prose(6_000)
    data = SimpleNamespace(train_split=tensor(text), folds=lambda: folds_of(text), seq_len=T, fold=3)
    counted = []
    memory.fill = lambda *arguments: (counted.append(len(arguments[0])), NGramMemory.fill(memory, *arguments))
    memory.on_train_batch_start(data)
    assert counted == []
    memory.load_state_dict(filled().state_dict())
    memory.on_train_batch_start(data)
    assert counted == [len(text)]
    memory.on_train_batch_start(data)
    assert counted == [len(text)]
    assert {table.held_out for table in memory._tables} == {3}
    memory.on_evaluation_start()
    assert {table.held_out for table in memory._tables} == {None}
