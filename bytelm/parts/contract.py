"""The contract of each kind of part: its inputs, its outputs, and its declarations.

A part is a `torch.nn.Module` with the `forward` of its kind. Inheriting from a class in this file is optional: any
module class is accepted under its import path. Subclasses of these classes can also be named by their class name alone.

    Embedding        (tokens) -> x                     Attention      (x, context) -> x
    PositionEncoding embed, rotate, scores             FeedForward    (x, context) -> x
    Memory           recall, embed, mix                Block          (x, context) -> x
    Norm             (x) -> x                          Loss           (logits, targets) -> loss
    LogitCap         (logits) -> logits                Initialization (network, n_layers), in place

The shapes are (B, T, d_model) for x, (B, T) for tokens and targets, (B, T, vocab_size) for logits.

Three rules make a part short:

- A part that needs neither token ids nor positions leaves `context` out: `forward(self, x)`.
- A constructor requests arguments by name: `layer` (0-based) and `n_layers` in an attention, a feed-forward or a block;
  `d_model` and `vocab_size` in a loss. GPT passes them; a config cannot set them.
- A part declares an attribute or a method with one of these names, on itself or on any module inside it:

| declaration | meaning |
| --- | --- |
| `optimizer_groups` | mapping of a parameter's or child module's name to its optimizer group (optim/groups.py) |
| `row_splits` | rows of the matrices that a fused weight consists of, and of their heads (optim/groups.py) |
| `check(run)` | raises ConfigError if the part cannot work with a `Run` |
| `supports_cache` | of an attention or a block: whether it can compute only new tokens, with `context.cache` |
| `new_cache(max_seq_len)` | of an attention with `supports_cache`: makes its `context.cache` |
| `values(tokens)` | of an embedding: its addition for tokens (B, T) to the values of attentions, (B, T, value_dim) |
| `value_layers` | of an embedding with `values`: numbers of the blocks that get them; None: all |
| `recurring(tokens)` | of an embedding: vectors (B, T, d_model) for tokens (B, T), computed once for all layers |
| `add(x, vectors, layer)` | of an embedding with `recurring`: adds its vectors to the residual stream before a layer |
| `value_dim` | width of the values that an attention takes from `context.values`, if it uses them |
| `attended_tokens(seq_len)` | of an attention: the tokens that a query sees, for FLOPs; default seq_len |
| `auxiliary_loss()` | a term, (), that training adds to the loss of the last forward pass |
| `schedulable` | names of the options that `schedules` may change during a run |
| `gpt2_activation` | of a feed-forward: Hugging Face's name of f, if it computes down(f(up(x))) as GPT-2 does |
| `gpt2_attention` | of an attention: whether it computes the same as GPT-2's, with the matrices `qkv` and `out` |
| `connect(network)` | called after all blocks exist, before the initialisation |
| `initializes_itself` | whether initialisations leave the module's parameters alone |
| `after_init()` | called after the initialisation, to set values that it must not change |
| `memory_bytes(data)` | memory that its preparation takes, in bytes, for MemoryLimit's estimate |
| `prepare_in_pieces(data)` | called before the first step, on the budget's clock: an iterator of pieces of work |
| `on_train_start(data)`, `on_train_batch_start(data)`, `on_evaluation_start()` | called at these moments of a run |

The two about GPT-2 apply to the class that declares them, not to its subclasses, which may compute something else.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from bytelm.config.untrusted_config import nameable
from bytelm.errors import ConfigError


@dataclass
class Context:
    """The inputs of a part besides x.

    Attributes:
        tokens: Ids of all tokens so far, (B, S). A part's input x belongs to the last T of them.
        position: The network's position encoding.
        start: Number of tokens before the first token of x, S - T. It is above 0 only with a cache.
        first: The residual stream before the first block, (B, T, d_model): the first embedding.
        values: The embedding's addition to the values of this block's attention, (B, T, value_dim); None: no addition.
        cache: Object in which this layer's attention keeps its state of earlier tokens; None in training.
    """

    tokens: Tensor
    position: "PositionEncoding"
    start: int = 0
    first: Tensor | None = None
    values: Tensor | None = None
    cache: Any = None


@dataclass(frozen=True)
class Run:
    """Properties of a run that a part may not support.

    Attributes:
        network: The GPT.
        data_order: Order of the training data (`data.order`); None if the data have no order.
        optimizer: Name of the optimizer's class.
        takes_sparse_gradients: Returns whether the optimizer takes sparse gradients.
        strategy: `single`, `ddp`, `fsdp`, or the name of another strategy's class.
        precision: The trainer's, such as `32-true`, `bf16-mixed` or `fp8-tensorwise`.
        device: Where the network is trained.
    """

    network: nn.Module
    data_order: str | None
    optimizer: str
    takes_sparse_gradients: Callable[[], bool]
    strategy: str
    precision: str
    device: torch.device


class Contract(nn.Module, ABC):
    """Base of the contracts: a module class fulfils a contract unless it was written for another kind of part."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        if Contract not in cls.__bases__ or nn.Module not in other.__mro__:
            return NotImplemented
        kinds = [kind for kind in other.__mro__ if Contract in kind.__bases__]
        methods = [name for name in vars(cls) if callable(getattr(cls, name)) and not name.startswith("_")]
        return cls in kinds or (not kinds and all(hasattr(other, name) for name in methods))


class Embedding(Contract):
    """Makes vectors from token ids. The constructor takes vocab_size and d_model.

    A tied head computes logits from its `weight`, (vocab_size, d_model).
    """

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, d_model)."""


class PositionEncoding(Contract):
    """Gives the network the order of its tokens; shared by all blocks. It acts in up to three places.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads.
        max_seq_len: Longest sequence, in tokens.
    """

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__()

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        """Maps embeddings (B, T, d_model) to the same shape, at the positions from `start` on."""
        return x

    def rotate(self, q: Tensor, k: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Maps queries (B, n_heads, T, head_dim) and keys (B, n_kv_heads, T, head_dim) to the same, from `start` on."""
        return q, k

    def scores(self, seq_len: int) -> Tensor | None:
        """Returns the term added to attention scores, with causal mask, (n_heads or 1, T, T); None: only the mask."""
        return None


class Memory(Contract):
    """Gives the network the continuations of the same context elsewhere. The constructor takes vocab_size and d_model.

    Attributes:
        changes_logits: Whether `mix` changes logits. A loss that takes hidden states cannot be combined with such a
            memory.
    """

    changes_logits = True

    @abstractmethod
    def recall(self, tokens: Tensor, start: int = 0) -> Any:
        """Returns evidence for the positions of (B, T) tokens from `start` on; position t depends on tokens 0 to t."""

    @abstractmethod
    def embed(self, x: Tensor, evidence: Any) -> Tensor:
        """Adds evidence to embeddings (B, T, d_model)."""

    @abstractmethod
    def mix(self, logits: Tensor, x: Tensor, evidence: Any) -> Tensor:
        """Mixes evidence into logits (B, T, vocab_size), given the network's output x (B, T, d_model)."""


class Attention(Contract):
    """Moves information from earlier tokens to later ones. The constructor takes d_model and n_heads."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Maps (B, T, d_model) to the same shape; token t depends on tokens 0 to t.

        If the attention declares `supports_cache` and there is a `context.cache`, x contains only the new tokens.
        """


class FeedForward(Contract):
    """Computes on each token separately. The constructor takes d_model and d_ff."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, d_model) to the same shape."""


class Norm(Contract):
    """Normalises over the last dimension. The constructor takes its size."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""


class LogitCap(Contract):
    """Limits logits; a part of the network, in training, validation and generation. The constructor takes options."""

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """(..., vocab_size) to the same shape; each logit is changed by itself."""


class Block(Contract):
    """One layer. The constructor takes an attention, a feed-forward, a function that makes norms, and a dropout."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The residual stream (B, T, d_model) to the same shape."""


class Initialization(ABC):
    """Sets the initial weights."""

    @abstractmethod
    def __call__(self, network: nn.Module, n_layers: int) -> None:
        """Initialises a network of `n_layers` blocks, in place."""


class Loss(Contract):
    """The loss that training minimises. Validation always reports plain cross-entropy.

    Attributes:
        takes_hidden: Whether it receives hidden states and the head, and computes the logits itself:
            `forward(hidden, head, targets)`, with hidden (B, T, d_model), head a module from (..., d_model) to (...,
            vocab_size), and targets (B, T).
    """

    takes_hidden = False

    @abstractmethod
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Maps logits (B, T, vocab_size) and targets (B, T) to one number, in nats per token."""


KEY = "config_key"  # attribute of a part that `make` has made: its key
KINDS = (Embedding, PositionEncoding, Memory, Attention, FeedForward, Norm, LogitCap, Block, Initialization, Loss)
for kind in KINDS:
    nameable(kind)

# Factories: the functions with which GPT makes parts. Positional arguments are passed by position; a constructor
# without one of the keyword arguments does not receive it (see `make`).
if TYPE_CHECKING:
    MakeAttention = Callable[..., Attention]
    MakeFeedForward = Callable[..., FeedForward]
    MakeBlock = Callable[..., Block]
    MakeLoss = Callable[..., Loss]
else:

    class MakeAttention(Protocol):
        """Makes an attention."""

        def __call__(self, d_model: int, n_heads: int, /, *, layer: int, n_layers: int) -> Attention: ...

    class MakeFeedForward(Protocol):
        """Makes a feed-forward."""

        def __call__(self, d_model: int, d_ff: int, /, *, layer: int, n_layers: int) -> FeedForward: ...

    class MakeBlock(Protocol):
        """Makes a block."""

        def __call__(
            self,
            attention: Attention,
            feedforward: FeedForward,
            norm: Callable[[], Norm],
            dropout: float,
            /,
            *,
            layer: int,
            n_layers: int,
        ) -> Block: ...

    class MakeLoss(Protocol):
        """Makes a loss."""

        def __call__(self, *, d_model: int, vocab_size: int) -> Loss: ...


def make(key: str, factory: Callable[..., Any], *arguments: Any, **offered: Any) -> Any:
    """Makes a part.

    Args:
        key: The part's key in a config, such as `model.gpt.attention`, for messages.
        factory: The part's class, or a partial of it.
        arguments: Passed by position.
        offered: Passed by name to a constructor that has these parameters.

    Raises:
        ConfigError: The constructor does not take these arguments, or the part is made already.
    """
    if isinstance(factory, nn.Module):
        accepted = "it is an object, which cannot be made for this network; accepted: the class, or a partial of it"
        raise ConfigError(key, type(factory).__name__, accepted)
    cls = class_of(factory)
    asked = inspect.signature(cls).parameters
    try:
        part = factory(*arguments, **{name: value for name, value in offered.items() if name in asked})
    except TypeError as error:
        raise ConfigError(key, cls.__name__, f"its constructor failed: {error}") from error
    setattr(part, KEY, key)
    return part


def give_context(key: str, part: nn.Module) -> None:
    """Makes a part callable as `part(x, context)`, also if its forward is `forward(x)`.

    Raises:
        ConfigError: Its forward has another signature.
    """
    parameters = inspect.signature(part.forward).parameters.values()
    if any(p.name == "context" or p.kind is p.VAR_POSITIONAL for p in parameters):
        return expect(key, part, "forward", "x", "context")
    if not accepts(part.forward, "x"):
        has = f"forward{inspect.signature(part.forward)}"
        raise ConfigError(key, type(part).__name__, f"it has {has}; accepted: forward(x, context) or forward(x)")
    part.register_forward_pre_hook(_without_context)


def expect(key: str, part: nn.Module, method: str, *arguments: str) -> None:
    """Checks that a method of a part can be called with these arguments, by position.

    Raises:
        ConfigError: It cannot.
    """
    function = getattr(part, method)
    if not accepts(function, *arguments):
        has, called = f"{method}{inspect.signature(function)}", f"{method}({', '.join(arguments)})"
        raise ConfigError(key, type(part).__name__, f"it has {has}; accepted: parts that can be called as {called}")


def accepts(function: Callable[..., Any], *arguments: str) -> bool:
    """Returns whether a function can be called with these arguments, by position."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def _without_context(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments[:1]  # a hook, not a wrapper: in a deep copy, a wrapped method would still be the original's


def class_of(factory: Callable[..., Any]) -> type:
    """Returns the class that a factory creates: itself, or the class of a partial (also the command line's)."""
    if isinstance(factory, partial):
        return next(each for each in (factory.func, *factory.args) if isinstance(each, type))
    return factory  # type: ignore[return-value]


def known_parts() -> Iterator[type]:
    """Returns the classes of all loaded parts: the direct and indirect subclasses of the contracts."""
    found: list[type] = [*KINDS]
    while found:
        cls = found.pop()
        yield cls
        found += cls.__subclasses__()


def declaring(network: nn.Module, name: str) -> Iterator[Any]:
    """Returns the modules of a network that declare an attribute or a method of this name."""
    return (module for module in network.modules() if hasattr(module, name))


def check(parts: Sequence[nn.Module], run: Run) -> None:
    """Checks that all parts can work with a run.

    Raises:
        ConfigError: A part cannot; the message names its requirement.
    """
    for part in parts:
        for module in declaring(part, "check"):
            module.check(run)
