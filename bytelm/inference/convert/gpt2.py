"""A GPT-2 that bytelm, nanoGPT and Hugging Face can all represent: sizes, options and weights.

The three compute the same function. They differ in names, in the layout of a block's matrices (Hugging Face's are
(in, out)), in the biases, and in the supported activations.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, equal

from bytelm.config.command import CommandParser
from bytelm.errors import CheckpointError
from bytelm.gpt import GPT
from bytelm.parts.attention import SDPA
from bytelm.parts.feedforward import GELU, ReLU, ReLUSquared, SiLU
from bytelm.parts.norm import LayerNorm
from bytelm.parts.position import Learned

GPT2_TOKENS = 50_257  # of the tokenizer called gpt2; the last one ends a text
GPT2_SIZES = (GPT2_TOKENS, 50_304)  # vocabularies of networks over them: as many, or padded to a multiple of 64
# The feed-forward of each activation, by its name in Hugging Face.
FEEDFORWARDS: dict[str, tuple[type, dict[str, Any]]] = {
    "gelu": (GELU, {"approximate": "none"}),
    "gelu_new": (GELU, {"approximate": "tanh"}),
    "relu": (ReLU, {}),
    "silu": (SiLU, {}),
    "relu2": (ReLUSquared, {}),
}
MASK = re.compile(r"\.attn\.(masked_)?bias$")  # the causal mask, which older versions of both keep with the weights


class Parameter(NamedTuple):
    """A tensor of a GPT-2.

    Attributes:
        ours: Its name in bytelm's GPT.
        theirs: Its name in nanoGPT and Hugging Face, without `transformer.`.
        shape: As in an nn.Linear, (out, in).
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]

    @property
    def is_conv1d(self) -> bool:
        """Whether Hugging Face has it transposed, (in, out)."""
        return self.theirs.startswith("h.") and len(self.shape) == 2


@dataclass
class GPT2:
    """A GPT-2.

    Attributes:
        d_model: Width of the residual stream.
        n_heads: Number of attention heads.
        n_layers: Number of blocks.
        d_ff: Width of the feed-forward's hidden layer.
        vocab_size: Number of tokens, padding included.
        max_seq_len: Longest sequence, in tokens.
        attention_bias: Whether the attention's projections have biases.
        feedforward_bias: Whether the feed-forward's projections have biases.
        norm_bias: Whether the normalisations have biases.
        activation: The feed-forward's activation, one of FEEDFORWARDS.
        eps: Added to the variance by the normalisations.
        tied: Whether the head's weights are the token embedding's.
        weights: Tensors by their names in bytelm's GPT, in float32, without a tied head's.
        tokenizer: Its tokenizer, as for TokenShards; None: not known.
    """

    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    vocab_size: int
    max_seq_len: int
    attention_bias: bool = True
    feedforward_bias: bool = True
    norm_bias: bool = True
    activation: str = "gelu"
    eps: float = 1e-5
    tied: bool = True
    weights: dict[str, Tensor] = field(default_factory=dict)
    tokenizer: str | None = None

    def parameters(self) -> Iterator[Parameter]:
        """All tensors of a network of these sizes, without the head."""
        for ours, theirs, shape, bias in self._modules():
            yield Parameter(f"{ours}.weight", f"{theirs}.weight", shape)
            if bias:
                yield Parameter(f"{ours}.bias", f"{theirs}.bias", shape[:1])

    def _modules(self) -> Iterator[tuple[str, str, tuple[int, ...], bool]]:
        d_model, d_ff = self.d_model, self.d_ff
        yield "embedding", "wte", (self.vocab_size, d_model), False
        yield "position", "wpe", (self.max_seq_len, d_model), False
        for i in range(self.n_layers):
            for ours, theirs, shape, bias in (
                ("attention_norm", "ln_1", (d_model,), self.norm_bias),
                ("attention.qkv", "attn.c_attn", (3 * d_model, d_model), self.attention_bias),
                ("attention.out", "attn.c_proj", (d_model, d_model), self.attention_bias),
                ("feedforward_norm", "ln_2", (d_model,), self.norm_bias),
                ("feedforward.up", "mlp.c_fc", (d_ff, d_model), self.feedforward_bias),
                ("feedforward.down", "mlp.c_proj", (d_model, d_ff), self.feedforward_bias),
            ):
                yield f"blocks.{i}.{ours}", f"h.{i}.{theirs}", shape, bias
        yield "norm", "ln_f", (d_model,), self.norm_bias

    @property
    def head(self) -> Tensor:
        """The head's weights, (vocab_size, d_model)."""
        return self.weights["embedding.weight" if self.tied else "head.weight"]

    def state_dict(self) -> dict[str, Tensor]:
        """The weights as bytelm's LanguageModel names them."""
        return {f"gpt.{name}": tensor for name, tensor in {**self.weights, "head.weight": self.head}.items()}

    def model_config(self) -> dict[str, Any]:
        """The config of a LanguageModel with this network and defaults otherwise, as plain values."""
        from bytelm.language_model import LanguageModel  # here, because it needs Lightning

        feedforward, options = FEEDFORWARDS[self.activation]
        network = spec(
            GPT,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            d_ff=None if self.d_ff == 4 * self.d_model else self.d_ff,
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            position=spec(Learned),
            attention=spec(SDPA, bias=self.attention_bias),
            feedforward=spec(feedforward, bias=self.feedforward_bias, **options),
            norm=spec(LayerNorm, bias=self.norm_bias, eps=self.eps),
            tie_embeddings=self.tied,
        )
        parser = CommandParser()
        parser.add_class_arguments(LanguageModel, "model", fail_untyped=False)
        config = parser.parse_object({"model": {"gpt": network}})
        plain: dict[str, Any] = json.loads(parser.dump(config, skip_unset=False, format="json"))
        return plain["model"]

    def filled(
        self,
        source: Path,
        tensors: Mapping[str, Any],
        name_of: Callable[[Parameter], str],
        head: str,
        conv1d: bool = False,
    ) -> "GPT2":
        """A copy with its weights.

        Args:
            source: Source of the weights, for messages.
            tensors: The source's tensors.
            name_of: Returns the source's name of a tensor.
            head: The source's name of the head's weights.
            conv1d: Whether the source's matrices of blocks are (in, out).

        Raises:
            CheckpointError: A tensor is missing, unknown, of another shape, or differs from the one it is tied to.
        """
        if self.d_model % self.n_heads:
            raise CheckpointError(f"{source}: {self.n_heads} heads do not divide the width, which is {self.d_model}")
        left = {name: tensor for name, tensor in tensors.items() if not MASK.search(name)}

        def take(name: str, shape: tuple[int, ...]) -> Tensor:
            tensor = left.pop(name, None)
            if not isinstance(tensor, Tensor):
                raise CheckpointError(f"{source} lacks {name}")
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{source}: {name} has the shape {tuple(tensor.shape)}, and its config needs {shape}"
                )
            return tensor

        weights = {}
        for parameter in self.parameters():
            turned = conv1d and parameter.is_conv1d
            tensor = take(name_of(parameter), parameter.shape[::-1] if turned else parameter.shape)
            weights[parameter.ours] = (tensor.t() if turned else tensor).float().contiguous()
        if head in left or not self.tied:
            weights["head.weight"] = take(head, (self.vocab_size, self.d_model)).float().contiguous()
        if self.tied and not equal(
            weights.pop("head.weight", weights["embedding.weight"]), weights["embedding.weight"]
        ):
            raise CheckpointError(f"{source}: {head} differs from the token embedding, and its config ties them")
        if left:
            raise CheckpointError(f"{source}: {min(left)} is unknown in a GPT-2 of its config")
        return replace(self, weights=weights)


def spec(cls: type, **options: Any) -> dict[str, Any]:
    """A class and its options as a config names them."""
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": options}


def size(path: Path, config: Mapping[str, Any], key: str) -> int:
    """A size in a config.

    Raises:
        CheckpointError: It is not a positive whole number.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path}: {key}: {value!r} cannot be used; accepted: a whole number above 0")
    return value
