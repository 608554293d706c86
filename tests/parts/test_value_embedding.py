"""Value embeddings: the added values, their width, and causality."""

import functools

import pytest
import torch
from contexts import context
from torch import nn

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import param_groups
from bytelm.parts.attention import SDPA, Explicit
from bytelm.parts.block import Parallel, PostNorm, PreNorm
from bytelm.parts.embedding import TokenEmbedding, ValueEmbedding
from bytelm.parts.init import FanIn, Normal
from bytelm.parts.position import Rotary

NAME = "embedding.token_values.weight"


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 4, "n_layers": 2, "vocab_size": 32, "max_seq_len": 12}
    init = functools.partial(Normal, std=0.3)
    return GPT(**{**sizes, "embedding": ValueEmbedding, "init": init, **options}).eval()


def tokens(batch=2):
    return torch.randint(32, (batch, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", [SDPA, Explicit])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_attention_adds_token_values(attention, n_kv_heads):
    torch.manual_seed(0)
    module, position = attention(16, 4, n_kv_heads), Rotary(16, 4, 12)
    x, values = torch.randn(2, 12, 16), torch.randn(n_kv_heads * 4)
    width = n_kv_heads * 4
    biased = attention(16, 4, n_kv_heads)  # the same value for every token is a bias
    biased.load_state_dict(module.state_dict())
    with torch.no_grad():
        biased.qkv.bias[-width:] += values
    given = module(x, context(position, values=values.expand(2, 12, width)))
    torch.testing.assert_close(given, biased(x, context(position)), rtol=0, atol=1e-5)


def test_every_head_has_a_value_for_each_token():
    # One token sees itself alone, so that attention gives its value back; `out` is the identity.
    attention = SDPA(16, 4, bias=False)
    nn.init.zeros_(attention.qkv.weight)
    nn.init.eye_(attention.out.weight)
    embedding = ValueEmbedding(32, 16)
    embedding.connect(attention)
    alone = tokens().view(-1, 1)
    mixed = attention(torch.randn(24, 1, 16), context(values=embedding.values(alone)))
    torch.testing.assert_close(mixed[:, 0], embedding.token_values.weight[alone[:, 0]])


@pytest.mark.parametrize("block", [PreNorm, PostNorm, Parallel])
@pytest.mark.parametrize("options", [{}, {"attention": functools.partial(Explicit, n_kv_heads=2)}])
@torch.no_grad()
def test_values_do_not_affect_earlier_logits(block, options):
    gpt = tiny(block=block, **options).double()
    sequence = torch.arange(12)[None]
    for t in (0, 5, 11):
        before = gpt(sequence)
        gpt.embedding.token_values.weight[t] += 1.0  # of the token that stands there alone
        difference = (gpt(sequence) - before).abs().amax(dim=-1)[0]
        assert difference[:t].max().item() < 1e-12 if t else True
        assert difference[t:].min().item() > 1e-6


def test_every_block_receives_values():
    gpt, given = tiny(n_layers=3), []
    for block in gpt.blocks:
        block.attention.register_forward_pre_hook(lambda module, args: given.append(args[1].values))
    gpt(tokens())
    assert len(given) == 3
    assert all(torch.equal(values, gpt.embedding.token_values(tokens())) for values in given)


@pytest.mark.parametrize(("layers", "chosen"), [((0, -1), [0, 3]), ((2,), [2]), ((1, -3, 0), [0, 1])])
def test_chosen_blocks_receive_values(layers, chosen):
    gpt, given = tiny(n_layers=4, embedding=functools.partial(ValueEmbedding, layers=layers)), []
    for block in gpt.blocks:
        block.attention.register_forward_pre_hook(lambda module, args: given.append(args[1].values))
    logits = gpt(tokens())
    assert [layer for layer, values in enumerate(given) if values is not None] == chosen
    values = gpt.embedding.token_values(tokens())
    assert all(torch.equal(given[layer], values) for layer in chosen)
    with torch.no_grad():
        cache = gpt.new_cache()
        parts = [gpt(tokens()[:, :end], cache) for end in (5, 12)]  # with a cache, the same blocks
    torch.testing.assert_close(torch.cat(parts, dim=1), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [(), (2,), (-3,), (0, 5)])
def test_blocks_that_do_not_exist_are_rejected(layers):
    said = r"model\.gpt\.embedding\.layers: \[.*\] cannot be used; accepted: one or more of -2 to 1, as n_layers is 2"
    with pytest.raises(ConfigError, match=said):
        tiny(embedding=functools.partial(ValueEmbedding, layers=layers))


def test_zero_values_are_the_plain_embedding():
    gpt, plain = tiny(), tiny(embedding=TokenEmbedding)
    nn.init.zeros_(gpt.embedding.token_values.weight)
    missing = gpt.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == [NAME]
    torch.testing.assert_close(gpt(tokens()), plain(tokens()), rtol=0, atol=0)


@pytest.mark.parametrize(("n_kv_heads", "width"), [(None, 16), (4, 16), (2, 8), (1, 4)])
def test_the_table_is_as_wide_as_the_values(n_kv_heads, width):
    gpt = tiny(attention=functools.partial(SDPA, n_kv_heads=n_kv_heads))
    assert gpt.state_dict()[NAME].shape == (32, width)
    assert gpt(tokens()).isfinite().all()


@pytest.mark.parametrize("init", [functools.partial(Normal, std=0.5), functools.partial(FanIn, embedding_std=0.5)])
def test_value_table_is_initialised_like_embeddings(init):
    weight = tiny(vocab_size=512, init=init).state_dict()[NAME]
    assert weight.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_lookup_costs_no_flops(tie_embeddings):
    gpt, plain = (tiny(embedding=e, tie_embeddings=tie_embeddings) for e in (ValueEmbedding, TokenEmbedding))
    assert gpt.num_params() == plain.num_params() + 32 * 16
    assert gpt.flops_per_token(12) == plain.flops_per_token(12)


def test_value_table_is_in_the_embedding_group():
    gpt = tiny()
    gpt(tokens()).square().mean().backward()
    weight = gpt.get_parameter(NAME)
    assert weight.grad.abs().sum(dim=1).count_nonzero() == len(tokens().unique())
    (group,) = [group["name"] for group in param_groups(gpt) if any(p is weight for p in group["params"])]
    assert group == "embedding"


@pytest.mark.parametrize("attention", [SDPA, Explicit])
def test_it_stays_near_float32_under_bf16(attention):
    gpt = tiny(attention=attention, init=Normal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gpt(tokens())
    torch.testing.assert_close(low.float(), gpt(tokens()), rtol=0, atol=0.02)


def test_attentions_without_values_are_rejected():
    class Own(nn.Module):
        def __init__(self, d_model, n_heads):
            super().__init__()

        def forward(self, x):
            return x

    with pytest.raises(ConfigError, match=r"model\.gpt\.embedding: 'ValueEmbedding' .* these take none"):
        tiny(attention=Own)
    tiny(embedding=TokenEmbedding, attention=Own)(tokens())


def test_training_with_one_line(run):
    options = ("--model.gpt.embedding", "ValueEmbedding", "--model.gpt.embedding.layers", "[-1]")
    cli = run(*options, "--model.gpt.attention.n_kv_heads", "1")
    assert cli.model.gpt.embedding.value_layers == {len(cli.model.gpt.blocks) - 1}
    assert cli.model.gpt.embedding.token_values.weight.shape == (256, 8)
    assert cli.model.trainer.callback_metrics["val/bpb"] > 0
