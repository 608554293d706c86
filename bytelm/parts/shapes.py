"""Checks the shapes that parts return against their contracts, before training, with a pass over a few tokens.

Only parts that are not bytelm's own are checked; a network without such parts needs no pass.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from bytelm.errors import ConfigError
from bytelm.parts.contract import KEY

ROWS, TOKENS = 2, 7  # they differ, because a part may interchange the two by mistake

# By the last name of a part's key and by method: the accepted shape, as text, and whether a returned shape is accepted,
# from it, d_model, and the shapes of the arguments.
Expected = tuple[str, Callable[..., bool]]
SAME: Expected = "the same shape", lambda y, d_model, x, *_: y == x
STREAM = "(rows, tokens, d_model)"
RETURNS: dict[str, dict[str, Expected]] = {
    "embedding": {"forward": (STREAM, lambda y, d_model, tokens: y == (*tokens, d_model))},
    "position": {
        "embed": SAME,
        "rotate": ("the shapes of q and k", lambda y, d_model, q, k, *_: y == (q, k)),
        "scores": (
            "None, or (heads or 1, tokens, tokens)",
            lambda y, d_model, n: y is None or (len(y) == 3 and y[1:] == (n, n)),
        ),
    },
    "memory": {"embed": SAME, "mix": SAME},
    "attention": {"forward": SAME},
    "feedforward": {"forward": SAME},
    "norm": {"forward": SAME},
    "logit_cap": {"forward": SAME},
    # Between blocks the stream may have more dimensions.
    "block": {"forward": (STREAM, lambda y, d_model, x, *_: y == (*x[:2], *y[2:-1], d_model))},
    "loss": {"forward": ("one number, ()", lambda y, *_: y == ())},
}


def check_shapes(network: Any, loss: Any) -> None:
    """Checks the outputs of a network's parts and of its loss.

    If the pass fails in another way, nothing is rejected: a part may need a device, or data that it does not have yet.

    Args:
        network: A GPT.
        loss: Its training loss.

    Raises:
        ConfigError: A part returns another shape than its contract states.
    """
    if not _checked(network, loss):
        return
    try:
        network, loss = deepcopy((network, loss))  # a pass may change what a part keeps
        for part in _checked(network, loss):
            _check_outputs(part, network.d_model)
        tokens = torch.arange(ROWS * min(TOKENS, network.max_seq_len)).view(ROWS, -1) % network.vocab_size
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network(tokens)
            if getattr(loss, "takes_hidden", False):
                loss(network(tokens, to_logits=False), network.head, tokens)
            else:
                loss(logits, tokens)
    except ConfigError:
        raise
    except Exception:  # the first training step raises it, with its traceback
        return


def _checked(*networks: nn.Module) -> list[nn.Module]:
    """Returns the parts that were made for a key of the config, and that neither bytelm nor torch comes with."""
    modules = (module for network in networks for module in network.modules() if hasattr(module, KEY))
    return [module for module in modules if not type(module).__module__.startswith(("bytelm.", "torch."))]


def _check_outputs(part: nn.Module, d_model: int) -> None:
    """Makes the methods of a part raise ConfigError if they return another shape than its contract states."""
    key = str(getattr(part, KEY))
    for method, expected in RETURNS.get(key.rpartition(".")[2], {}).items():
        part.__dict__[method] = _checking(key, part, method, d_model, expected)


def _checking(key: str, part: nn.Module, method: str, d_model: int, expected: Expected) -> Callable[..., Any]:
    function = getattr(part, method)
    accepted, is_expected = expected

    @wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        output = function(*given, **named)
        shapes = [_shape(value) for value in (*given, *named.values())]
        if not is_expected(_shape(output), d_model, *shapes):
            name = f"{type(part).__module__}.{type(part).__qualname__}"
            returned = f"{method} returned {_shape(output)} for {shapes[0]}, with d_model {d_model}"
            raise ConfigError(key, name, f"{returned}; accepted: {accepted}")
        return output

    return checked


def _shape(value: Any) -> Any:
    """Returns a tensor's shape, the shapes of several, or another value as it is."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else value
