"""BitNet: ternary weights and 8-bit activations in the linear layers of a block (arXiv:2402.17764)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.errors import ConfigError
from bytelm.parts import contract
from bytelm.parts.block import PreNorm
from bytelm.parts.contract import Attention, Context, FeedForward, MakeBlock, Norm, Run
from bytelm.parts.init import ResidualProjection

SMALLEST = 1e-5  # that weights' mean and activations' maximum are divided by


def ternary(weight: Tensor) -> Tensor:
    """Rounds weights W to -m, 0 or m, where m is the mean of |W|: m clip(round(W / m), -1, 1)."""
    mean = weight.abs().mean().clamp(min=SMALLEST)
    return (weight / mean).round().clamp(-1, 1) * mean


def eight_bits(x: Tensor) -> Tensor:
    """Rounds vectors (..., d) to multiples of a 127th of their largest absolute value."""
    step = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST) / 127
    return (x / step).round().clamp(-128, 127) * step


class BitLinear(nn.Linear):
    """A linear layer with ternary weights and 8-bit inputs: ternary(W) eight_bits(rms_norm(x)) + bias.

    Weights are stored and trained in full precision. Both roundings have the gradient of the identity
    (straight-through: Bengio et al. 2013, arXiv:1308.3432). The normalisation has no weights.

    Products are computed with ordinary kernels. On these, training and generation are not faster than without it.

    Args:
        linear: The layer whose weights it takes over.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x, x.shape[-1:])
        inputs = normed + (eight_bits(normed) - normed).detach()
        weight = self.weight + (ternary(self.weight) - self.weight).detach()
        return F.linear(inputs, weight, self.bias)


class ResidualBitLinear(BitLinear, ResidualProjection):
    """A BitLinear that writes to the residual stream."""


class BitNet(contract.Block):
    """A block whose attention and feed-forward have BitLinear layers (BitNet b1.58: Ma et al. 2024, arXiv:2402.17764).

    It replaces all linear layers of the two parts. Embeddings, norms and the head keep their precision. The names and
    shapes of the parts' weights do not change.

    Args:
        attention: The block's attention.
        feedforward: The block's feed-forward network.
        norm: Makes a normalisation over d_model.
        dropout: Probability of dropping an element of a branch's output.
        order: The block that determines the order of normalisation, attention and feed-forward.
    """

    def __init__(
        self,
        attention: Attention,
        feedforward: FeedForward,
        norm: Callable[[], Norm],
        dropout: float,
        order: MakeBlock = PreNorm,
        *,
        layer: int,
        n_layers: int,
    ) -> None:
        super().__init__()
        for part in (attention, feedforward):
            _replace_linear_layers(part)
        key = "model.gpt.block.order"
        self.order = contract.make(key, order, attention, feedforward, norm, dropout, layer=layer, n_layers=n_layers)
        contract.give_context(key, self.order)

    @property
    def supports_cache(self) -> bool:
        return getattr(self.order, "supports_cache", False)

    def check(self, run: Run) -> None:
        if run.precision.startswith("fp8"):
            raise ConfigError("trainer.plugins", "FP8", "accepted with BitNet: no 8-bit products")

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.order(x, context)


def _replace_linear_layers(part: nn.Module) -> None:
    for module in [*part.modules()]:
        for name, child in [*module.named_children()]:
            # Layers with their own forward compute something else.
            if isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward:
                ours = ResidualBitLinear if isinstance(child, ResidualProjection) else BitLinear
                setattr(module, name, ours(child))
