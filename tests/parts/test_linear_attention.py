"""Linear attentions: chunks equal the recurrences, token by token; the cache, the positions and the kernels' layout."""

import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from contexts import context
from torch.nn import functional as F

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.kernels import linear_attention as kernels
from bytelm.parts.init import Normal
from bytelm.parts.linear_attention import DeltaNet, GatedLinearAttention, Retention, delta, gated
from bytelm.parts.position import ALiBi, Learned, NoPosition, Rotary

PARTS = [Retention, GatedLinearAttention, DeltaNet]
B, H, T, K, V = 2, 3, 37, 4, 5


def naive_gated(q, k, v, log_decay, state):
    """One token after the other; the decay is (B or 1, H, T, K or 1)."""
    outputs = []
    for t in range(q.shape[2]):
        state = log_decay[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, :, None] * state).sum(dim=-2))
    return torch.stack(outputs, dim=2), state


def naive_delta(q, k, v, beta, state):
    outputs = []
    for t in range(q.shape[2]):
        key, value = k[:, :, t, :, None], v[:, :, t, None, :]
        held = (key * state).sum(dim=-2, keepdim=True)
        state = state + beta[:, :, t, None, None] * key * (value - held)
        outputs.append((q[:, :, t, :, None] * state).sum(dim=-2))
    return torch.stack(outputs, dim=2), state


def drawn(seq_len=T):
    generator = torch.Generator().manual_seed(0)
    sizes = [(B, H, seq_len, K), (B, H, seq_len, K), (B, H, seq_len, V), (B, H, K, V), (B, H, seq_len, K)]
    q, k, v, state, rates = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    return q, F.normalize(k, dim=-1), v, state, rates


def rates_of(kind, rates):
    match kind:
        case "by dimension":
            return F.logsigmoid(rates)
        case "by head":
            return F.logsigmoid(rates[:1, :, :1, :1]).expand(1, -1, rates.shape[2], 1)
        case "strong":  # exp(-60) a token: quotients of cumulated decays would overflow
            return -60.0 * rates.abs()
        case "delta":
            return rates[..., 0].sigmoid()


RECURRENCES = pytest.mark.parametrize(
    ("kind", "ours", "naive"),
    [
        ("by dimension", gated, naive_gated),
        ("by head", gated, naive_gated),
        ("strong", gated, naive_gated),
        ("delta", delta, naive_delta),
    ],
)


@RECURRENCES
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])  # 37 tokens are not a multiple
def test_chunks_equal_the_recurrence(kind, ours, naive, chunk):
    q, k, v, state, rates = drawn()
    for start in (None, state):
        expected = naive(q, k, v, rates_of(kind, rates), torch.zeros_like(state) if start is None else start)
        torch.testing.assert_close(ours(q, k, v, rates_of(kind, rates), start, chunk), expected, rtol=1e-9, atol=1e-9)


@RECURRENCES
def test_chunks_have_the_gradients_of_the_recurrence(kind, ours, naive):
    inputs = [tensor.requires_grad_() for tensor in drawn(11)]
    q, k, v, state, rates = inputs
    gradients = []
    for mixed, last in (ours(q, k, v, rates_of(kind, rates), state, 4), naive(q, k, v, rates_of(kind, rates), state)):
        gradients.append(torch.autograd.grad(mixed.sin().sum() + last.square().sum(), inputs))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def written_out(part, x, position):
    """The attention of x (B, T, d_model) by its formulas, with the naive recurrence."""
    heads = F.linear(x, part.qkv.weight)
    if isinstance(part, DeltaNet):
        size = part.conv.kernel_size[0]
        taps = part.conv.weight[:, 0]  # (channels, size): the last one belongs to the token itself
        rows = [
            sum(heads[:, t - i] * taps[:, size - 1 - i] for i in range(min(size, t + 1))) for t in range(x.shape[1])
        ]
        heads = F.silu(torch.stack(rows, dim=1))
    split = heads.split([part.d_key, part.d_key, part.d_value], dim=-1)
    q, k, v = (each.unflatten(-1, (part.n_heads, -1)).transpose(1, 2) for each in split)
    q, k = position.rotate(q, k)
    state = x.new_zeros(len(x), part.n_heads, q.shape[-1], v.shape[-1])
    match part:
        case DeltaNet():
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            mixed, _ = naive_delta(q, k, v, torch.sigmoid(x @ part.beta.weight.T).transpose(1, 2), state)
        case Retention():
            decays = [1 - 2.0 ** (-5 - head) for head in range(part.n_heads)]
            by_head = torch.tensor(decays, dtype=x.dtype).log()[None, :, None, None].expand(1, -1, x.shape[1], 1)
            mixed, _ = naive_gated(q / q.shape[-1] ** 0.5, k, v, by_head, state)
        case GatedLinearAttention():
            low = x @ part.decay[0].weight.T @ part.decay[1].weight.T + part.decay[1].bias
            decays = torch.sigmoid(low).pow(1 / 16).log().unflatten(-1, (part.n_heads, -1)).transpose(1, 2)
            mixed, _ = naive_gated(q / q.shape[-1] ** 0.5, k, v, decays, state)
    mixed = mixed / (mixed.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * part.norm.weight
    mixed = mixed.transpose(1, 2).flatten(2)
    if not isinstance(part, DeltaNet):
        gate = x @ part.gate.weight.T
        mixed = gate * torch.sigmoid(gate) * mixed
    return mixed @ part.out.weight.T


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("position", [NoPosition, Rotary])
def test_a_part_is_its_formula(part, position):
    torch.manual_seed(0)
    module = part(16, 4, d_value=24).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    encoding = position(16, 4, T).double()
    x = torch.randn(B, T, 16, dtype=torch.float64)
    expected = written_out(module, x, encoding)
    torch.testing.assert_close(module(x, context(encoding)), expected, rtol=1e-6, atol=1e-7)


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 24}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.3), **options}).eval()


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("position", [NoPosition, Learned, Rotary])
def test_generation_from_the_state_equals_the_whole_row(part, position):
    gpt = tiny(attention=part, position=position)
    tokens = torch.randint(64, (2, 24))
    cache = gpt.new_cache()
    pieces = [gpt(tokens[:, :end], cache) for end in (2, 3, 4, 20, 24)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), gpt(tokens), rtol=0, atol=1e-5)
    assert [layer.length for layer in cache.layers] == [24, 24]
    changed = tokens.clone()
    changed[:, 1] += 1 - 2 * (tokens[:, 1] == 63).long()
    assert (gpt(changed) - gpt(tokens))[:, 20:].abs().max() > 1e-4  # the state reaches back
    torch.testing.assert_close(gpt(changed)[:, :1], gpt(tokens)[:, :1])  # and not forward


@pytest.mark.parametrize("part", PARTS)
def test_bf16_autocast_stays_near_float32(part):
    gpt = tiny(attention=part)
    tokens = torch.randint(64, (2, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gpt(tokens)
    assert (low - gpt(tokens)).norm() / gpt(tokens).norm() < 0.05


def test_settings_that_do_not_fit_are_rejected():
    with pytest.raises(ConfigError, match=r"model\.gpt\.position: 'ALiBi' .* which has no scores: NoPosition"):
        tiny(attention=Retention, position=ALiBi)
    narrow = functools.partial(GatedLinearAttention, d_key=8)
    with pytest.raises(ConfigError, match=r"attention\.d_key: 8 .*accepted with Rotary: d_model, which is 16"):
        tiny(attention=narrow, position=Rotary)
    assert tiny(attention=narrow, position=NoPosition)(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 64)
    with pytest.raises(ConfigError, match=r"d_value: 10 .*multiples of n_heads, which is 4"):
        tiny(attention=functools.partial(DeltaNet, d_value=10))


@pytest.mark.parametrize("part", PARTS)
def test_flops_do_not_depend_on_the_length_of_a_row(part):
    gpt = tiny(attention=part)
    assert gpt.flops_per_token(8) == gpt.flops_per_token(24)
    # Two products of (key_dim, value_dim) in each of 4 heads, 2 FLOPs an element, three times with the backward pass.
    wide = tiny(attention=functools.partial(part, d_value=32))
    assert [gpt_.blocks[0].attention.attended_tokens(24) * 12 * 16 for gpt_ in (gpt, wide)] == [
        3 * 2 * 2 * 4 * 4 * value_dim for value_dim in (4, 8)
    ]


# The kernels


def ours(q, k, v, rates, recurrence, scale):
    mixed, state = recurrence(*(each.transpose(1, 2) for each in (q * scale, k, v, rates)), None, 16)
    return mixed.transpose(1, 2), state


def as_the_library(monkeypatch):
    """Puts plain functions with the library's signatures and layout, (B, T, H, dim), in its place."""

    def chunk_retention(q, k, v, scale):
        decays = (1 - 2.0 ** (-5 - torch.arange(q.shape[2]))).log()
        return ours(q, k, v, decays[None, None, :, None].expand(1, q.shape[1], -1, 1), gated, scale)

    def chunk_gla(q, k, v, g, scale):
        return ours(q, k, v, g, gated, scale)

    def chunk_delta_rule(q, k, v, beta, scale):
        return ours(q, k, v, beta, delta, scale)

    functions = {f.__name__: f for f in (chunk_retention, chunk_gla, chunk_delta_rule)}
    monkeypatch.setattr(kernels, "library", lambda: SimpleNamespace(**functions))
    monkeypatch.setattr(kernels, "support", lambda q: True)


@pytest.mark.parametrize("part", PARTS)
def test_kernels_get_the_inputs_of_the_plain_form(part, monkeypatch):
    gpt, tokens = tiny(attention=part), torch.randint(64, (2, 24))
    plain = gpt(tokens)
    as_the_library(monkeypatch)
    calls = []
    monkeypatch.setattr(kernels, "_outputs", lambda returned: calls.append(1) or returned[0].transpose(1, 2))
    torch.testing.assert_close(gpt(tokens), plain, rtol=0, atol=1e-5)
    assert len(calls) == 2
    with torch.no_grad():
        torch.testing.assert_close(gpt(tokens, gpt.new_cache()), plain, rtol=0, atol=1e-5)
    assert len(calls) == 2  # with a cache the plain form keeps the state


@pytest.mark.parametrize("error", [ImportError("no module named fla"), ValueError("key contains names")])
def test_kernels_that_cannot_be_imported_are_noted_once(monkeypatch, capsys, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "fla":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "fla"]:
        monkeypatch.delitem(sys.modules, name)
    kernels.library.cache_clear()
    assert (kernels.library(), kernels.library()) == (None, None)
    line = capsys.readouterr().err.strip()
    assert line.startswith(
        "bytelm: note: linear attentions run in plain PyTorch, because flash-linear-attention cannot"
    )
    assert str(error) in line
    assert line.count("note:") == 1
    kernels.library.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are for GPUs")
@pytest.mark.parametrize("part", PARTS)
def test_kernels_on_a_gpu_equal_the_plain_form(part, monkeypatch):
    pytest.importorskip("fla")
    torch.manual_seed(0)
    gpt = GPT(d_model=128, n_heads=2, n_layers=2, attention=part, init=functools.partial(Normal, std=0.1)).cuda()
    tokens = torch.randint(256, (2, 256), device="cuda")
    results = []
    for is_used in (True, False):
        if not is_used:
            monkeypatch.setattr(kernels, "support", lambda q: False)
        gpt.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert kernels.support(gpt.embedding.weight) == is_used
            logits = gpt(tokens)
        F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()
        results.append((logits.detach().float(), {name: p.grad for name, p in gpt.named_parameters()}))
    (fast, fast_gradients), (plain, gradients) = results
    assert (fast - plain).norm() / plain.norm() < 0.02
    for name, gradient in gradients.items():
        assert F.cosine_similarity(gradient.flatten(), fast_gradients[name].flatten(), dim=0) > 0.99, name
