"""Hyper-connections: several residual streams, with learned connections to each branch (arXiv:2409.19606)."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError
from bytelm.parts.block import TwoBranchBlock
from bytelm.parts.contract import Attention, Context, FeedForward, Norm


class ZeroLinear(nn.Linear):
    """A linear layer without bias whose weights start at zero.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
    """

    initializes_itself = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Connection(nn.Module):
    """Connects n streams H (n, d) with a branch T, for each token: H' = A_r^T H + b T(A_m^T H).

    A_m (n, 1) mixes the streams into the branch's input, A_r (n, n) mixes them with each other, and b (n, 1) weights
    the branch's output in each stream. Each is a learned constant, plus, if dynamic, s tanh(norm(H) W), with a learned
    scalar s that starts at 0.01 and W that starts at zero. At the start A_m selects one stream, A_r is the identity,
    and b is one (Zhu et al. 2024, arXiv:2409.19606, 2.2 and 3.1).

    Args:
        streams: Number of streams n.
        first: Stream that the branch reads at the start.
        dynamic: Width d of the streams and a normalisation over d, for connections that depend on the streams; None:
            only the constants.
    """

    optimizer_groups: ClassVar = {
        "static_mix": "scalar",  # no weight decay
        "static_out": "scalar",
        "scales": "scalar",
        "dynamic": "connection",
    }

    def __init__(self, streams: int, first: int, dynamic: tuple[int, Norm] | None) -> None:
        super().__init__()
        selected = torch.zeros(streams, 1)
        selected[first % streams] = 1.0
        self.static_mix = nn.Parameter(torch.cat([selected, torch.eye(streams)], dim=1))  # [A_m, A_r]
        self.static_out = nn.Parameter(torch.ones(streams))  # b
        width, norm = (None, None) if dynamic is None else dynamic
        self.norm = norm
        self.dynamic = None if width is None else ZeroLinear(width, streams + 2)
        self.scales = None if width is None else nn.Parameter(torch.full((2,), 0.01))  # of the mixtures, of b

    def split(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Streams (B, T, n, d) to the branch's input (B, T, d), A_r^T H (B, T, n, d), and b (B, T, n)."""
        mix: Tensor = self.static_mix
        out: Tensor = self.static_out
        if self.norm is not None and self.dynamic is not None and self.scales is not None:
            moved = torch.tanh(self.dynamic(self.norm(streams)))
            mix = mix + self.scales[0] * moved[..., :-1]
            out = out + self.scales[1] * moved[..., -1]
        with torch.autocast(streams.device.type, enabled=False):  # which would round the streams
            mixed = mix.to(streams.dtype).mT @ streams
        return mixed[..., 0, :], mixed[..., 1:, :], out.to(streams.dtype).expand(streams.shape[:-1])


class HyperConnections(TwoBranchBlock):
    """Pre-norm branches between several residual streams (Zhu et al. 2024, arXiv:2409.19606).

    Each branch is connected by a Connection. The first block copies the residual stream, and the last one returns the
    sum of the streams; between them, a block's input and output are (B, T, streams, d_model). At the start each stream
    equals that of PreNorm. The streams need `streams` times the memory of one.

    Args:
        attention: The block's attention.
        feedforward: The block's feed-forward network.
        norm: Makes a normalisation over d_model.
        dropout: Probability of dropping an element of a branch's output.
        streams: Number of streams.
        dynamic: Whether the connections depend on the streams.
    """

    def __init__(
        self,
        attention: Attention,
        feedforward: FeedForward,
        norm: Callable[[], Norm],
        dropout: float,
        streams: PositiveInt = 4,
        dynamic: bool = True,
        *,
        layer: int,
        n_layers: int,
    ) -> None:
        super().__init__(attention, feedforward, norm, dropout)
        self.streams = streams
        self.is_first, self.is_last = layer == 0, layer == n_layers - 1
        self._layer = layer
        self._connection_norms = [norm(), norm()] if dynamic else None

    def connect(self, network: nn.Module) -> None:
        embedding = network.get_submodule("embedding")
        if hasattr(embedding, "recurring"):
            name = type(embedding).__name__
            accepted = "accepted with HyperConnections: embeddings that add vectors only before the first layer"
            raise ConfigError("model.gpt.embedding", name, accepted)
        d_model: int = network.d_model  # type: ignore[assignment]
        norms, self._connection_norms = self._connection_norms, None
        connections = [
            Connection(self.streams, 2 * self._layer + branch, None if norms is None else (d_model, norms[branch]))
            for branch in (0, 1)
        ]
        self.attention_connection, self.feedforward_connection = connections

    def forward(self, x: Tensor, context: Context) -> Tensor:
        streams = x[:, :, None].expand(-1, -1, self.streams, -1) if self.is_first else x
        inputs, kept, out = self.attention_connection.split(streams)
        branch = self.dropout(self.attention(self.attention_norm(inputs), context))
        streams = kept + out[..., None] * branch[..., None, :]
        inputs, kept, out = self.feedforward_connection.split(streams)
        branch = self.dropout(self.feedforward(self.feedforward_norm(inputs), context))
        streams = kept + out[..., None] * branch[..., None, :]
        return streams.sum(dim=2) if self.is_last else streams
