"""Attention with a gate for each head, and windows by a kernel that skips what is outside, in place of a mask."""

import functools

import pytest
import torch
from contexts import context
from torch.nn import functional as F

from bytelm.config.classes import parameters_of
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import param_groups
from bytelm.parts import attention as attentions
from bytelm.parts.attention import GatedAttention, WindowedSDPA
from bytelm.parts.gated_values import GatedValueAttention
from bytelm.parts.init import Normal
from bytelm.parts.norm import RMSNorm

OF_LAYER = {"layer": 0, "n_layers": 2}


def both(**options):
    torch.manual_seed(0)
    plain = WindowedSDPA(16, 4, 2, RMSNorm, pattern="L", **OF_LAYER)
    gated = GatedAttention(16, 4, 2, RMSNorm, gate_dim=6, **OF_LAYER)
    gated.load_state_dict({**plain.state_dict(), "gate.weight": gated.gate.weight})
    return plain, gated, torch.randn(2, 9, 16)


def test_each_head_is_multiplied_by_twice_a_sigmoid_of_the_first_inputs():
    plain, gated, x = both()
    heads = []
    plain.out.register_forward_hook(lambda _, inputs, __: heads.append(inputs[0].unflatten(-1, (4, 4))))
    plain(x, context())
    expected = heads[0].clone()
    for row in range(2):
        for t in range(9):
            for head in range(4):
                score = sum(gated.gate.weight[head, i] * x[row, t, i] for i in range(6))
                expected[row, t, head] *= 2 / (1 + torch.exp(-score))
    torch.testing.assert_close(gated(x, context()), plain.out(expected.flatten(2)))


def test_a_new_network_is_the_one_without_gates():
    def network(attention):
        torch.manual_seed(0)
        init = functools.partial(Normal, std=0.3)
        return GPT(16, 4, 2, vocab_size=32, max_seq_len=12, attention=attention, init=init)

    gpt, plain = network(GatedAttention), network(functools.partial(WindowedSDPA, pattern="L"))
    plain.load_state_dict({key: value for key, value in gpt.state_dict().items() if "gate" not in key})
    tokens = torch.randint(32, (2, 12))
    assert torch.equal(gpt(tokens), plain(tokens))
    (group,) = [group for group in param_groups(gpt) if group["name"] == "gate"]
    assert [param.shape for param in group["params"]] == [(4, 16)] * 2


def test_gates_read_at_most_all_inputs():
    with pytest.raises(ConfigError, match=r"gate_dim: 17 .*up to d_model, which is 16"):
        GatedAttention(16, 4, gate_dim=17, **OF_LAYER)


def reference(q, k, v, window):
    time = torch.arange(q.shape[-2])
    distance = time[:, None] - time[None, :]
    inside = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=inside, enable_gqa=True)


def test_the_kernel_replaces_the_mask_of_windowed_layers_without_a_cache(monkeypatch):
    torch.manual_seed(0)
    attention = functools.partial(WindowedSDPA, n_kv_heads=2, window=5, pattern="SSSL")
    gpt = GPT(16, 4, 4, vocab_size=32, max_seq_len=12, attention=attention, init=functools.partial(Normal, std=0.3))
    tokens = torch.randint(32, (2, 12))
    masked = gpt.eval()(tokens)
    windows = []

    def kernel(q, k, v, window):
        windows.append(window)
        return reference(q, k, v, window)

    monkeypatch.setattr(WindowedSDPA, "_has_kernel", lambda *_: True)
    monkeypatch.setattr(attentions, "window_attention", kernel)
    torch.testing.assert_close(gpt(tokens), masked)
    assert windows == [5, 5, 5]
    gpt(tokens[:, :5])  # no longer than the window
    with torch.no_grad():
        cache = gpt.new_cache()
        pieces = [gpt(tokens[:, :8], cache), gpt(tokens, cache)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), masked)
    assert len(windows) == 3


def test_the_kernel_is_for_half_precision_on_gpus():
    part = WindowedSDPA(16, 2, **OF_LAYER)
    assert not part._has_kernel(torch.zeros(1, 2, 3, 8).bfloat16())
    # Public functions have windows only in newer versions of torch.
    schema = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names[:7] == ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"]
    assert names[7:10] == ["dropout_p", "is_causal", "return_debug_mask"]
    assert {"window_size_left", "window_size_right"} < set(names)
    assert schema.returns[0].name == "output"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is for GPUs")
@pytest.mark.parametrize("window", [1, 100, 256])
def test_window_attention_on_a_gpu(window):
    generator = torch.Generator("cuda").manual_seed(0)
    packed = torch.randn(3, 2, 4, 512, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
    exact = packed.detach().double().cpu().requires_grad_()
    ours, theirs = attentions.window_attention(*packed, window), reference(*exact, window)
    torch.testing.assert_close(ours.double().cpu(), theirs, rtol=0, atol=0.02)
    gradient = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0))
    ours.backward(gradient.bfloat16().cuda())
    theirs.backward(gradient.bfloat16().double())
    assert (packed.grad.double().cpu() - exact.grad).norm() / exact.grad.norm() < 0.01


@pytest.mark.parametrize("cls", [WindowedSDPA, GatedAttention, GatedValueAttention])
def test_options_that_a_constructor_passes_on_are_options_of_the_command_line(cls):
    passed_on = {"n_kv_heads", "qk_norm", "dropout", "bias", "window", "pattern"}
    assert passed_on <= set(parameters_of(cls))
