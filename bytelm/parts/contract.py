"""What each kind of part promises: what goes in, what comes out, and what it may declare.

A part is a `torch.nn.Module` with the `forward` of its kind. It need not inherit from anything here: any module class
that is named by its import path is accepted. Subclasses of these classes can also be named by their class name alone.

    Embedding        (tokens) -> x                     Attention      (x, context) -> x
    PositionEncoding embed, rotate, scores             FeedForward    (x, context) -> x
    Memory           recall, embed, mix                Block          (x, context) -> x
    Norm             (x) -> x                          Loss           (logits, targets) -> loss
    Initialization   (network, n_layers), in place

The shapes are (B, T, d_model) for x, (B, T) for tokens and targets, (B, T, vocab_size) for logits.

Three rules make a part short:
- A part that needs neither token ids nor positions leaves `context` out: `forward(self, x)`.
- A constructor asks for what it needs by name: `layer` (0-based) and `n_layers` in an attention, a feed-forward or a
  block; `d_model` and `vocab_size` in a loss. GPT gives them; a config cannot set them.
- What a part declares is an attribute or a method with one of these names, on the part or on any module inside it:

| declaration | meaning |
| --- | --- |
| `optimizer_groups` | mapping of a parameter's or child module's name to its optimizer group (optim/groups.py) |
| `row_splits` | rows of the matrices that a fused weight consists of, and of their heads (optim/groups.py) |
| `check(run)` | raises ConfigError where the part cannot work with what a `Run` says |
| `supports_cache` | of an attention or a block: whether it can compute new tokens alone, with `context.cache` |
| `new_cache(max_seq_len)` | of an attention with `supports_cache`: makes what it finds in `context.cache` |
| `values(tokens)` | of an embedding: what tokens (B, T) add to the values of attentions, (B, T, value_dim) |
| `value_dim` | width of the values that an attention takes from `context.values`, if it does |
| `auxiliary_loss()` | a term, (), that training adds to the loss of the last forward pass |
| `schedulable` | names of the options that `schedules` may change during a run |
| `gpt2_activation` | of a feed-forward: Hugging Face's name of f, if it computes down(f(up(x))) as GPT-2 does |
| `gpt2_attention` | of an attention: whether it computes what GPT-2's does, with the matrices `qkv` and `out` |
| `connect(network)` | called once all blocks exist, before the initialisation |
| `initializes_itself` | whether initialisations leave the module's parameters alone |
| `after_init()` | called after the initialisation, to set what it should not have changed |
| `prepare_in_pieces(data)` | called before the first step, on the budget's clock: an iterator of pieces of work |
| `on_train_start(data)`, `on_train_batch_start(data)`, `on_evaluation_start()` | called at these moments of a run |

The two about GPT-2 count for the class that declares them and not for its subclasses, which may compute something else.
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
    """What a part may look at beside its input.

    Attributes:
        tokens: Ids of all tokens so far, (B, S). The input of a part is that of the last T of them.
        position: The network's position encoding.
        start: Number of tokens before the input's first one, S - T. More than 0 only where there is a cache.
        first: The residual stream before the first block, (B, T, d_model): the first embedding.
        values: What the embedding adds to the values of attentions, (B, T, value_dim); None: nothing.
        cache: What this layer's attention keeps of the tokens before, an object of its choice; None in training.
    """

    tokens: Tensor
    position: "PositionEncoding"
    start: int = 0
    first: Tensor | None = None
    values: Tensor | None = None
    cache: Any = None


@dataclass(frozen=True)
class Run:
    """What of a run a part may not work with.

    Attributes:
        network: The GPT.
        data_order: Order of the training data (`data.order`); None where the data have none.
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
    """Base of the contracts: a module class fulfils one unless it was written for another kind of part."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        if Contract not in cls.__bases__ or nn.Module not in other.__mro__:
            return NotImplemented
        kinds = [kind for kind in other.__mro__ if Contract in kind.__bases__]
        methods = [name for name in vars(cls) if callable(getattr(cls, name)) and not name.startswith("_")]
        return cls in kinds or (not kinds and all(hasattr(other, name) for name in methods))


class Embedding(Contract):
    """Makes vectors of token ids. The constructor takes vocab_size and d_model.

    A tied head reads logits off its `weight`, (vocab_size, d_model).
    """

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, d_model)."""


class PositionEncoding(Contract):
    """Tells the network the order of its tokens; shared by all blocks. It acts in up to three places.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads.
        max_seq_len: Longest sequence, in tokens.
    """

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__()

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        """Embeddings (B, T, d_model) to the same, at the positions from `start` on."""
        return x

    def rotate(self, q: Tensor, k: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Queries (B, n_heads, T, head_dim) and keys (B, n_kv_heads, T, head_dim) to the same, from `start` on."""
        return q, k

    def scores(self, seq_len: int) -> Tensor | None:
        """What is added to attention scores, causal mask included, (n_heads or 1, T, T); None: the mask alone."""
        return None


class Memory(Contract):
    """Tells the network what followed the same context elsewhere. The constructor takes vocab_size and d_model.

    Attributes:
        changes_logits: Whether `mix` changes logits. A loss that takes hidden states cannot be used with one that does.
    """

    changes_logits = True

    @abstractmethod
    def recall(self, tokens: Tensor, start: int = 0) -> Any:
        """Evidence for the positions of (B, T) tokens from `start` on; position t sees tokens 0 to t."""

    @abstractmethod
    def embed(self, x: Tensor, evidence: Any) -> Tensor:
        """Adds evidence to embeddings (B, T, d_model)."""

    @abstractmethod
    def mix(self, logits: Tensor, x: Tensor, evidence: Any) -> Tensor:
        """Mixes evidence into logits (B, T, vocab_size), where the network's output was x (B, T, d_model)."""


class Attention(Contract):
    """Moves information from earlier tokens to later ones. The constructor takes d_model and n_heads."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, d_model) to the same shape; token t sees tokens 0 to t.

        Where the attention declares `supports_cache` and there is a `context.cache`, x is of the new tokens alone.
        """


class FeedForward(Contract):
    """Computes on each token by itself. The constructor takes d_model and d_ff."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, d_model) to the same shape."""


class Norm(Contract):
    """Normalises over the last dimension. The constructor takes its size."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""


class Block(Contract):
    """One layer. The constructor takes an attention, a feed-forward, a function that makes norms, and a dropout."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The residual stream (B, T, d_model) to the same shape."""


class Initialization(ABC):
    """Sets the weights that training starts from."""

    @abstractmethod
    def __call__(self, network: nn.Module, n_layers: int) -> None:
        """Initialises a network of `n_layers` blocks, in place."""


class Loss(Contract):
    """What training minimises. Validation always reports plain cross-entropy.

    Attributes:
        takes_hidden: Whether it is called with hidden states and the head, and makes the logits itself:
            `forward(hidden, head, targets)`, with hidden (B, T, d_model), head a module from (..., d_model) to
            (..., vocab_size), and targets (B, T).
    """

    takes_hidden = False

    @abstractmethod
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) and targets (B, T) to one number, in nats per token."""


KINDS = (Embedding, PositionEncoding, Memory, Attention, FeedForward, Norm, Block, Initialization, Loss)
for kind in KINDS:
    nameable(kind)

# Factories: what GPT calls to make a part. Positional arguments are given by position; a part that has none of the
# keyword arguments is not given them (see `make`).
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
        arguments: Given by position.
        offered: Given by name to a constructor that asks for them.

    Raises:
        ConfigError: The constructor does not take these arguments.
    """
    cls = class_of(factory)
    asked = inspect.signature(cls).parameters
    try:
        return factory(*arguments, **{name: value for name, value in offered.items() if name in asked})
    except TypeError as error:
        raise ConfigError(key, cls.__name__, f"its constructor failed: {error}") from error


def give_context(key: str, part: nn.Module) -> None:
    """Lets a part be called as `part(x, context)`, also if its forward is `forward(x)`.

    Raises:
        ConfigError: Its forward is neither.
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
    """Whether a function can be called with these arguments, by position."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def _without_context(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments[:1]  # a hook and no wrapper: a wrapped method would still be the original's in a deep copy


def class_of(factory: Callable[..., Any]) -> type:
    """The class that a factory makes objects of: itself, or what it is a partial of (also the command line's)."""
    if isinstance(factory, partial):
        return next(each for each in (factory.func, *factory.args) if isinstance(each, type))
    return factory  # type: ignore[return-value]


def known_parts() -> Iterator[type]:
    """The classes of all parts that are loaded, by any depth of inheritance from a contract."""
    found: list[type] = [*KINDS]
    while found:
        cls = found.pop()
        yield cls
        found += cls.__subclasses__()


def declaring(network: nn.Module, name: str) -> Iterator[Any]:
    """The modules of a network that declare an attribute or a method of this name."""
    return (module for module in network.modules() if hasattr(module, name))


def check(parts: Sequence[nn.Module], run: Run) -> None:
    """Asks all parts whether they can work with a run.

    Raises:
        ConfigError: One cannot; the message says what it needs.
    """
    for part in parts:
        for module in declaring(part, "check"):
            module.check(run)
