"""The whole network: parameter counts, causality for every combination of parts, the head's options."""

import functools

import pytest
import torch

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.parts.attention import SDPA, Explicit
from bytelm.parts.block import Parallel, PostNorm, PreNorm
from bytelm.parts.feedforward import ReLU
from bytelm.parts.init import Normal
from bytelm.parts.position import ALiBi, Learned, NoPosition, Rotary, Sinusoidal

CHALLENGE_BASELINE = {
    "d_model": 128,
    "n_heads": 4,
    "n_layers": 4,
    "d_ff": 512,
    "position": Learned,
    "attention": functools.partial(Explicit, dropout=0.1),
    "feedforward": functools.partial(ReLU, dropout=0.1),
    "block": PostNorm,
    "tie_embeddings": False,
    "head_bias": True,
}
CHALLENGE_WINNER = {"d_model": 80, "n_heads": 4, "n_layers": 3, "d_ff": 256}
GPT2_124M = {
    "d_model": 768,
    "n_heads": 12,
    "n_layers": 12,
    "vocab_size": 50257,
    "max_seq_len": 1024,
    "position": Learned,
}


def tiny(**options):
    """A small network with weights so large that every token has an effect."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 32, "max_seq_len": 12}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.3), **options})


def tokens(batch=2, seq_len=12, vocab_size=32):
    return torch.randint(vocab_size, (batch, seq_len), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "count"),
    [(CHALLENGE_BASELINE, 891_904), (CHALLENGE_WINNER, 223_248), (GPT2_124M, 124_439_808)],
    ids=["challenge baseline", "challenge winner", "GPT-2 124M"],
)
def test_parameter_counts_are_the_published_ones(options, count):
    with torch.device("meta"):
        assert GPT(**options).num_params() == count


@pytest.mark.parametrize("position", [NoPosition, Learned, Sinusoidal, Rotary, ALiBi])
@pytest.mark.parametrize("block", [PreNorm, PostNorm, Parallel])
@pytest.mark.parametrize("attention", [SDPA, Explicit])
@torch.no_grad()
def test_tokens_do_not_affect_earlier_logits(position, block, attention):
    gpt = tiny(position=position, block=block, attention=attention).double()
    sequence = tokens(batch=1)
    for t in (0, 5, 11):
        changed = sequence.clone()
        changed[0, t] = (changed[0, t] + 1) % 32
        difference = (gpt(changed) - gpt(sequence)).abs().amax(dim=-1)[0]
        assert difference[:t].max().item() < 1e-12 if t else True
        assert difference[t:].min().item() > 1e-6


@pytest.mark.parametrize("position", [Learned, Sinusoidal, Rotary, ALiBi])
@torch.no_grad()
def test_position_encodings_distinguish_orders(position):
    # One layer without positions sees earlier tokens as a set.
    swapped = torch.tensor([[3, 1, 2, 0], [1, 3, 2, 0]])
    unaware, aware = tiny(position=NoPosition, n_layers=1)(swapped), tiny(position=position, n_layers=1)(swapped)
    torch.testing.assert_close(unaware[0, -1], unaware[1, -1], rtol=0, atol=1e-5)
    assert (aware[0, -1] - aware[1, -1]).abs().max() > 1e-3


def test_logits_do_not_depend_on_the_other_rows_of_a_batch():
    gpt = tiny()
    torch.testing.assert_close(gpt(tokens())[1:], gpt(tokens()[1:]), rtol=0, atol=1e-5)


def test_tied_head_shares_the_embedding_and_its_gradient():
    tied, untied = tiny(), tiny(tie_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    assert tied.head.weight.data_ptr() == tied.embedding.weight.data_ptr()
    assert untied.num_params() - tied.num_params() == 32 * 16
    torch.testing.assert_close(tied(tokens()), untied(tokens()))
    for gpt in (tied, untied):
        gpt(tokens()).square().mean().backward()
    torch.testing.assert_close(tied.head.weight.grad, untied.head.weight.grad + untied.embedding.weight.grad)


def test_head_bias_is_added_to_every_logit():
    gpt, biased = tiny(), tiny(head_bias=True)
    biased.load_state_dict({**gpt.state_dict(), "head.bias": torch.arange(32.0)})
    torch.testing.assert_close(biased(tokens()), gpt(tokens()) + torch.arange(32.0))


def test_logit_softcap_bounds_logits_by_a_scaled_tanh():
    logits, capped = tiny()(tokens()), tiny(logit_softcap=1.5)(tokens())
    assert logits.abs().max() > 2
    assert capped.abs().max() < 1.5
    torch.testing.assert_close(capped, 1.5 * (logits / 1.5).tanh())


def test_logit_softcap_is_computed_in_float32_under_autocast():
    head, plain = tiny(logit_softcap=1.5).head, tiny().head
    with torch.autocast("cpu", torch.bfloat16):
        capped, logits = head(torch.ones(1, 16)), plain(torch.ones(1, 16))
    assert logits.dtype == torch.bfloat16
    assert torch.equal(capped, 1.5 * torch.tanh(logits.float() / 1.5))


@pytest.mark.parametrize(("residual_autocast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_residual_stream_in_autocast_precision(residual_autocast, dtype):
    gpt, seen = tiny(residual_autocast=residual_autocast), []
    gpt.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output.dtype))
    plain = gpt(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gpt(tokens()).float(), plain, rtol=0.05, atol=0.05)
    assert seen == [torch.float32, dtype]


def test_dropout_acts_on_embeddings_and_branches_in_training_only():
    gpt, plain = tiny(dropout=1.0), tiny()
    # All embeddings and branches dropped, only the final norm's bias, which is zero, reaches the head.
    assert gpt(tokens()).abs().max() == 0
    torch.testing.assert_close(gpt.eval()(tokens()), plain(tokens()))


def test_d_ff_is_four_times_d_model_by_default():
    assert tiny().blocks[0].feedforward.up.weight.shape == (64, 16)
    assert tiny(d_ff=24).blocks[0].feedforward.up.weight.shape == (24, 16)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_flops_per_token_of_gpt2_are_six_a_weight_plus_attention(tie_embeddings):
    with torch.device("meta"):
        gpt = GPT(**GPT2_124M, tie_embeddings=tie_embeddings)
    # Either way the head's matrix multiplies once, and the tables of tokens and positions are looked up.
    multiplied = 124_439_808 - 1024 * 768
    assert gpt.flops_per_token(1024) == 6 * multiplied + 12 * 12 * 768 * 1024
    assert gpt.flops_per_token(1024) == pytest.approx(855e6, rel=1e-3)


def test_n_heads_must_divide_d_model():
    with pytest.raises(ConfigError, match=r"n_heads: 3 .*d_model.* 16"):
        tiny(n_heads=3)


def test_sequences_beyond_max_seq_len_are_rejected():
    with pytest.raises(AssertionError, match="13 tokens, max_seq_len is 12"):
        tiny()(tokens(seq_len=13))
