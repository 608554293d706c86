"""Contracts: any module with the right forward is a part; constructors and forwards receive the arguments they name."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.parts import contract
from bytelm.parts.attention import SDPA, WindowedSDPA
from bytelm.parts.norm import RMSNorm
from bytelm.parts.position import Rotary


class Doubled(nn.Module):
    """A plain module: a feed-forward without context."""

    def __init__(self, d_model, d_ff):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)

    def forward(self, x):
        return 2 * self.linear(x)


class OfLayer(SDPA):
    def __init__(self, d_model, n_heads, layer, n_layers):
        super().__init__(d_model, n_heads)
        self.of = (layer, n_layers)


class Seeing(nn.Module):
    """A feed-forward that keeps its context."""

    def __init__(self, d_model, d_ff, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, context):
        self.context = context
        return x


def tiny(**options):
    torch.manual_seed(0)
    return GPT(**{"d_model": 16, "n_heads": 2, "n_layers": 3, "vocab_size": 32, "max_seq_len": 12, **options})


def tokens():
    return torch.randint(32, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [contract.Attention, contract.FeedForward, contract.Block, contract.Norm])
def test_any_module_class_with_forward_is_accepted(kind):
    assert issubclass(Doubled, kind)


def test_classes_of_other_kinds_are_rejected():
    assert not issubclass(RMSNorm, contract.Attention)
    assert not issubclass(SDPA, contract.FeedForward)
    assert not issubclass(dict, contract.FeedForward)
    assert not issubclass(Doubled, contract.PositionEncoding)  # it has none of its methods
    assert issubclass(SDPA, contract.Attention)
    assert issubclass(Rotary, contract.PositionEncoding)


def test_parts_can_request_their_layer():
    gpt = tiny(attention=OfLayer)
    assert [block.attention.of for block in gpt.blocks] == [(0, 3), (1, 3), (2, 3)]


def test_parts_can_request_the_context():
    gpt = tiny(feedforward=Seeing)
    gpt(tokens())
    first = gpt.embedding(tokens())
    for layer, block in enumerate(gpt.blocks):
        seen = block.feedforward.context
        assert block.feedforward.layer == layer
        assert torch.equal(seen.tokens, tokens())
        assert torch.equal(seen.first, first)
        assert seen.position is gpt.position
        assert (seen.start, seen.cache, seen.values) == (0, None, None)


def test_deep_copy_of_a_part_without_context():
    gpt = tiny(feedforward=Doubled)
    copied = copy.deepcopy(gpt)
    nn.init.zeros_(copied.blocks[0].feedforward.linear.weight)
    assert not torch.equal(gpt(tokens()), copied(tokens()))
    assert torch.equal(gpt(tokens()), tiny(feedforward=Doubled)(tokens()))


class OldAttention(SDPA):
    def forward(self, x, position):
        return super().forward(x, position)


class OldRotary(Rotary):
    def rotate(self, q, k):
        return super().rotate(q, k)


class OneArgument(nn.Module):
    def __init__(self, d_model):
        super().__init__()


OF_ATTENTION = r"model\.gpt\.attention: 'OldAttention' .*forward\(x, position\); accepted: forward\(x, context\)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": OldAttention}, OF_ATTENTION),
        ({"position": OldRotary}, r"model\.gpt\.position: 'OldRotary' .* called as rotate\(q, k, start\)"),
        ({"feedforward": OneArgument}, r"model\.gpt\.feedforward: 'OneArgument' .*constructor failed: .*positional"),
    ],
)
def test_uncallable_parts_are_rejected_at_construction(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def test_a_tied_head_needs_a_weight_of_its_shape():
    class Factored(nn.Module):
        def __init__(self, vocab_size, d_model):
            super().__init__()
            self.low = nn.Embedding(vocab_size, 4)
            self.high = nn.Linear(4, d_model)

        def forward(self, tokens):
            return self.high(self.low(tokens))

    with pytest.raises(ConfigError, match=r"tie_embeddings: True .* Factored, which has no `weight` .*: false"):
        tiny(embedding=Factored)
    assert tiny(embedding=Factored, tie_embeddings=False)(tokens()).shape == (2, 12, 32)


def test_a_window_is_a_band_of_the_causal_mask():
    torch.manual_seed(0)
    windowed = WindowedSDPA(16, 2, window=3, pattern="S", layer=0, n_layers=2)
    full = SDPA(16, 2)
    full.load_state_dict(windowed.state_dict())
    x = torch.randn(1, 8, 16)
    position = Rotary(16, 2, 8)
    context = contract.Context(torch.zeros(1, 8, dtype=torch.long), position)
    mixed = windowed(x, context)
    for t in range(8):  # as if the text began with the window
        start = max(t - 2, 0)
        seen = full(x[:, start : t + 1], context)[:, -1]
        torch.testing.assert_close(mixed[:, t], seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pattern", "windowed"), [("SSSL", [1, 1, 1, 0, 1, 0]), ("L", [0] * 6), ("S", [1] * 5 + [0])])
def test_window_pattern_with_a_full_last_layer(pattern, windowed):
    layers = [WindowedSDPA(16, 2, pattern=pattern, layer=layer, n_layers=6) for layer in range(6)]
    assert [layer.is_windowed for layer in layers] == windowed


def test_self_initialising_modules_are_not_changed():
    class Zeroed(Doubled):
        initializes_itself = True

        def __init__(self, d_model, d_ff):
            super().__init__(d_model, d_ff)
            nn.init.zeros_(self.linear.weight)

    assert not tiny(feedforward=Zeroed).blocks[1].feedforward.linear.weight.any()
    assert tiny(feedforward=Doubled).blocks[1].feedforward.linear.weight.any()


PARTS = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self, d_model, d_ff, weight: float = 0.5):
        super().__init__()
        self.linear, self.weight = nn.Linear(d_model, d_model), weight

    def forward(self, x):
        self.term = self.weight * self.linear.weight.square().sum()
        return self.linear(x)

    def auxiliary_loss(self):
        return self.term

class Choosy(Noisy):
    def check(self, run):
        from bytelm.errors import ConfigError
        if run.data_order != "shuffled":
            raise ConfigError("data.order", run.data_order, f"accepted with Choosy: shuffled ({run.strategy})")
"""


def test_plain_user_module_by_import_path(run):
    Path("my_parts.py").write_text(PARTS)
    cli = run("--model.gpt.feedforward", "my_parts.Noisy", "--model.gpt.feedforward.weight", "0.25")
    assert cli.model.gpt.blocks[0].feedforward.weight == 0.25
    record = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert record["status"] == "completed"


def test_the_terms_that_parts_declare_are_added_to_the_training_loss(run):
    Path("my_parts.py").write_text(PARTS)
    model = run("--model.gpt.feedforward", "my_parts.Noisy").model
    batch = (torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))
    loss = model.training_step(batch, 0)
    part = model.gpt.blocks[0].feedforward
    expected = model.loss(model.gpt(batch[0]), batch[1]) + 0.5 * part.linear.weight.square().sum()
    torch.testing.assert_close(loss, expected)
    part.weight = 0.0
    assert model.training_step(batch, 0) < loss


def test_parts_reject_unsupported_runs(run, rejected):
    Path("my_parts.py").write_text(PARTS)
    line = rejected("--model.gpt.feedforward", "my_parts.Choosy")
    assert line == ("bytelm: error: data.order: 'sequential' cannot be used; accepted with Choosy: shuffled (single)")
    assert not Path("runs").exists()
    run("--model.gpt.feedforward", "my_parts.Choosy", "--data.order", "shuffled")


def test_arguments_from_the_network_cannot_be_set_in_a_config(rejected):
    line = rejected("--model.gpt.attention", "{class_path: WindowedSDPA, init_args: {layer: 1}}")
    assert "model.gpt.attention.layer: unknown key; accepted: " in line
    assert "window" in line
