"""Parts with kernels for Hopper GPUs: tests without a GPU, and tests that need one."""

import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from contexts import context
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bytelm import kernels
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.parts import attention as attentions
from bytelm.parts import feedforward as feedforwards
from bytelm.parts.attention import SDPA, FlashAttention, WindowedSDPA
from bytelm.parts.feedforward import GELU, FusedGELU
from bytelm.parts.position import Learned, Rotary

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == kernels.HOPPER
ATTENTION = (SDPA, FlashAttention)
FEEDFORWARD = (partial(GELU, bias=False), FusedGELU)


def network(position, attention, feedforward):
    torch.manual_seed(0)
    return GPT(
        d_model=64,
        n_heads=4,
        n_layers=1,
        max_seq_len=32,
        position=position,
        attention=partial(attention, bias=False),
        feedforward=feedforward,
    )


def gradients(gpt, forward):
    tokens = torch.arange(64).view(2, 32)
    F.cross_entropy(forward(tokens).flatten(0, 1), tokens.flatten()).backward()
    return {name: parameter.grad for name, parameter in gpt.named_parameters()}


@pytest.fixture
def stand_ins(monkeypatch):
    """The mathematics of the kernels, on the CPU in any precision, in their place."""
    pytest.importorskip("flash_attn.cute")
    pytest.importorskip("quack")
    from bytelm.kernels import attention, gelu

    def probabilities(q, k, log_sums, window=None):
        unseen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        if window is not None:
            unseen |= torch.ones_like(unseen).tril(-window)
        return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(unseen, -torch.inf).sub(log_sums).exp()

    @attention._forward.register_kernel("cpu")
    def _(q, k, v):
        sums = probabilities(q, k, torch.zeros(())).sum(-1)
        return attention._by_token(probabilities(q, k, sums.log()[..., None]) @ v), sums.log()

    @attention._windowed.register_kernel("cpu")
    def _(q, k, v, window):
        sums = probabilities(q, k, torch.zeros(()), window).sum(-1)
        return attention._by_token(probabilities(q, k, sums.log()[..., None], window) @ v), sums.log()

    @attention._backward.register_kernel("cpu")
    def _(gradient, q, k, v, mixed, log_sums, window=None):
        p = probabilities(q, k, log_sums[..., None], window)
        of_scores = p * (gradient @ v.mT - (gradient * mixed).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        return torch.cat([of_scores @ k, of_scores.mT @ q, p.mT @ gradient], 1).transpose(1, 2).contiguous()

    @gelu._forward.register_kernel("cpu")
    def _(x, up, down):
        before = x @ up.T
        hidden = F.gelu(before)
        return hidden @ down.T, hidden, torch.ops.aten.gelu_backward(torch.ones_like(before), before)

    gelu._down_gradient.register_kernel("cpu")(lambda gradient, down, slope: (gradient @ down) * slope)
    for parts in (attentions, feedforwards):
        monkeypatch.setattr(parts, "on_hopper", lambda device, dtype: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_devices_use_the_plain_parts(dtype):
    plain, fused = (network(Learned, *parts).to(dtype) for parts in zip(ATTENTION, FEEDFORWARD, strict=True))
    expected, ours = (gradients(gpt, gpt) for gpt in (plain, fused))
    assert expected.keys() == ours.keys()
    assert all(torch.equal(expected[name], ours[name]) for name in expected)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"n_kv_heads": 2}])
def test_plain_parts_handle_unsupported_inputs(options, deterministic, with_gradients, stand_ins, monkeypatch):
    from bytelm.kernels import attention, gelu

    called = []
    monkeypatch.setattr(attention, "flash_attention", lambda q, k, v: called.append("attention") or q)
    monkeypatch.setattr(gelu, "gelu_feedforward", lambda x, up, down: called.append("gelu") or x)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    x = torch.randn(2, 8, 64)
    with torch.set_grad_enabled(with_gradients):
        FlashAttention(64, 4, **options)(x, context())
        FusedGELU(64, 128)(x)
    assert ("attention" in called) == (with_gradients and not options and not deterministic)
    assert ("gelu" in called) == with_gradients


@pytest.mark.parametrize("position", [Learned, Rotary])
def test_their_gradients_are_those_of_the_plain_parts(position, stand_ins):
    plain, fused = (network(position, *parts).double() for parts in zip(ATTENTION, FEEDFORWARD, strict=True))
    expected, ours = (gradients(gpt, gpt) for gpt in (plain, fused))
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-6, atol=1e-9)


def test_windows_are_those_of_the_masks(stand_ins, monkeypatch):
    attention = partial(WindowedSDPA, window=5, pattern="S")
    gpt = GPT(64, 4, 2, vocab_size=64, max_seq_len=32, attention=attention).double()
    expected = gradients(gpt, gpt)
    gpt.zero_grad()
    monkeypatch.setattr(WindowedSDPA, "_has_kernel", lambda *_: True)
    monkeypatch.setattr(attentions, "optional_on_hopper", lambda *_: True)
    ours = gradients(gpt, gpt)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-6, atol=1e-9)


def test_kernels_that_only_save_time_are_optional(monkeypatch):
    monkeypatch.setattr(kernels, "on_hopper", lambda device, dtype: True)
    errors = iter([ModuleNotFoundError("No module named 'flash_attn'"), AttributeError("module 'cutlass' has no ...")])

    def missing(module):
        raise next(errors)

    monkeypatch.setattr(kernels, "import_module", missing)
    for expected in (nullcontext(), pytest.warns(UserWarning, match=r"attention\.py do not work .* has no \.\.\.")):
        kernels._loaded_for_hopper.cache_clear()
        with expected:
            assert not kernels.optional_on_hopper("attention", torch.device("cuda"), torch.bfloat16)
            assert not kernels.optional_on_hopper("attention", torch.device("cuda"), torch.bfloat16)
    kernels._loaded_for_hopper.cache_clear()


@pytest.mark.slow
def test_compiled_in_one_graph_the_gradients_of_queries_keys_and_values_are_not_copied(stand_ins):
    from torch._dynamo.utils import counters
    from torch._inductor.utils import run_and_get_code

    counters.clear()
    plain, fused = (network(Learned, *parts) for parts in zip(ATTENTION, FEEDFORWARD, strict=True))
    expected = gradients(plain, plain)
    ours, code = run_and_get_code(gradients, fused, torch.compile(fused, fullgraph=True))
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6)
    (backward,) = (graph for graph in code if "bytelm.flash_attention_backward.default(" in graph)
    after = backward.split("bytelm.flash_attention_backward.default(")[1]
    together = re.escape("(2, 32, 12, 16)")  # what comes out, the queries, keys and values of 4 heads
    assert re.search(together, after)
    copies = [name for name in re.findall(r"cpp_fused\w+", after) if re.search("cat|clone", name)]
    assert copies == []
    assert counters["aot_autograd"]["autograd_cache_bypass"] == 0  # else every start would trace the graph again


@pytest.fixture
def compiled_ahead(monkeypatch):
    """What would be compiled in other processes."""
    pytest.importorskip("flash_attn.cute")
    pytest.importorskip("quack")
    from bytelm.kernels import ahead

    commands = []
    monkeypatch.setattr(ahead, "_processes", {})
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda command, **_: commands.append(command[1:]))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return commands


def traced(device="cuda", seq_len=2048, window=None):
    """The operators of a backward pass, without data."""
    from bytelm.kernels import attention, gelu

    with FakeTensorMode():
        q, gradient, down = (
            torch.empty(shape, dtype=torch.bfloat16, device=device)
            for shape in ((4, 2, seq_len, 64), (8, 64), (64, 64))
        )
        attention._backward(q, q, q, q, q, torch.empty(q.shape[:-1], device=device), window)
        gelu._down_gradient(gradient, down, gradient)


def test_a_trace_of_the_backward_pass_compiles_each_kernel_once_in_another_process(compiled_ahead):
    for window in (None, None, 257):
        traced(window=window)
    traced(seq_len=1024)  # for any sequence of several blocks
    assert compiled_ahead == [
        ["-m", "bytelm.kernels.ahead", f"[{what}]"]
        for what in (
            '"attention", 512, 64, "bfloat16", null',
            '"gelu", "bfloat16"',
            '"attention", 512, 64, "bfloat16", 257',
        )
    ]


@pytest.mark.parametrize(("device", "rank"), [("cpu", "0"), ("cuda", "1")])
def test_nothing_is_compiled_ahead_for_a_cpu_or_by_a_further_process(compiled_ahead, monkeypatch, device, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    traced(device)
    assert compiled_ahead == []


def test_a_compilation_that_does_not_end_is_given_up(monkeypatch):
    from bytelm.kernels import ahead

    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(ahead, "_processes", {"": running})
    monkeypatch.setattr(ahead, "PATIENCE", 0.0)
    ahead.wait()
    assert running.wait() < 0  # killed
    ahead.wait()
    running.stdin.close()


COMPILE = """
from bytelm.kernels import attention, gelu
from quack.gemm_runtime import host

host.get_max_active_clusters = lambda *args, **kwargs: 66  # which it asks the driver for
for window in (None, 257):
    attention.compile_kernels(512, 64, "bfloat16", window)
gelu.compile_kernels("bfloat16")
"""


@pytest.mark.slow
def test_the_kernels_compile_for_hopper_without_one(monkeypatch):
    pytest.importorskip("flash_attn.cute")
    pytest.importorskip("quack")
    for library in ("QUACK_ARCH", "FLASH_ATTENTION_ARCH"):
        monkeypatch.setenv(library, "90")
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")
    monkeypatch.setenv("FLASH_ATTENTION_NUM_SMS", "132")
    monkeypatch.setenv("QUACK_CACHE_ENABLED", "0")
    subprocess.run([sys.executable, "-c", COMPILE], check=True)


def test_cudnn_attention_accepts_the_inputs():
    # No public function hands out the sums of the exponentials.
    schema = torch.ops.aten._scaled_dot_product_cudnn_attention.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names[:7] == ["query", "key", "value", "attn_bias", "compute_log_sumexp", "dropout_p", "is_causal"]
    assert [result.name for result in schema.returns][:2] == ["output", "logsumexp"]


@pytest.mark.parametrize("part", [partial(FlashAttention, 64, 4), partial(FusedGELU, 64, 128)])
def test_missing_kernels_on_hopper_are_reported_with_the_install_command(part, monkeypatch):
    def missing(module):
        raise ModuleNotFoundError("No module named 'quack'")

    monkeypatch.setattr(kernels, "import_module", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: kernels.HOPPER)
    with pytest.raises(ConfigError, match=r"(attention|feedforward): .*'quack'.* pip install -e .\.\[hopper\]"):
        part()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 0))
    part()


@pytest.mark.parametrize(("d_model", "d_ff", "key"), [(60, 128, "d_model"), (64, 100, "d_ff")])
def test_unsupported_sizes_are_rejected(d_model, d_ff, key):
    with pytest.raises(ConfigError, match=f"{key}: .* multiples of 8"):
        FusedGELU(d_model, d_ff)


@pytest.mark.skipif(not HAS_HOPPER, reason="the kernels are for Hopper GPUs")
@pytest.mark.parametrize(("seq_len", "head_dim"), [(1024, 64), (1000, 64), (77, 128), (256, 32)])
def test_attention_on_hopper(seq_len, head_dim):
    from bytelm.kernels.attention import flash_attention

    generator = torch.Generator("cuda").manual_seed(0)
    heads = torch.randn(2, seq_len, 12, head_dim, device="cuda", generator=generator).bfloat16().requires_grad_()
    exact = heads.detach().double().requires_grad_()
    plain = partial(F.scaled_dot_product_attention, is_causal=True)
    ours, theirs = (
        function(*(part.transpose(1, 2) for part in packed.split(4, dim=2)))
        for function, packed in ((flash_attention, heads), (plain, exact))
    )
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=0.02)
    gradient = torch.randn(theirs.shape, device="cuda", generator=generator)
    ours.backward(gradient.bfloat16())
    theirs.backward(gradient.bfloat16().double())
    error = (heads.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 0.01


@pytest.mark.skipif(not HAS_HOPPER, reason="the kernels are for Hopper GPUs")
@pytest.mark.parametrize(("tokens", "d_model", "d_ff"), [(4096, 768, 3072), (1000, 200, 328)])
def test_gelu_on_hopper(tokens, d_model, d_ff):
    from bytelm.kernels.gelu import gelu_feedforward

    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((tokens, d_model), (d_ff, d_model), (d_model, d_ff))
    ours = [torch.randn(shape, device="cuda", generator=generator).bfloat16() for shape in shapes]
    ours = [(tensor / shape[1] ** 0.5 * 4).requires_grad_() for tensor, shape in zip(ours, shapes, strict=True)]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    result, exact = gelu_feedforward(*ours), F.linear(F.gelu(F.linear(theirs[0], theirs[1])), theirs[2])
    assert (result.double() - exact).norm() / exact.norm() < 0.01
    gradient = torch.randn(exact.shape, device="cuda", generator=generator).bfloat16()
    result.backward(gradient)
    exact.backward(gradient.double())
    for tensor, like in zip(ours, theirs, strict=True):
        assert (tensor.grad.double() - like.grad).norm() / like.grad.norm() < 0.01
