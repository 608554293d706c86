"""Weights of karpathy/autoresearch's GPT as weights of the network in configs/gpu/autoresearch.yaml.

The matrices keep their values. Queries, keys and values are one matrix here. The original rotates queries and keys by
the negative angle: of a pair (a, b) of dimensions i and i + head_dim / 2 it makes (a cos + b sin, b cos - a sin), and
Rotary makes (a cos - b sin, b cos + a sin). With a and b exchanged the two are equal; therefore the two halves of the
rows of each head of queries and keys are exchanged. Scores are sums over all dimensions and do not depend on the order.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bytelm.errors import CheckpointError

NAMES = {"transformer.wte.weight": "embedding.weight", "lm_head.weight": "head.weight"}
IN_BLOCK = {
    "attn.c_proj.weight": "attention.out.weight",
    "attn.ve_gate.weight": "attention.gate.weight",
    "mlp.c_fc.weight": "feedforward.up.weight",
    "mlp.c_proj.weight": "feedforward.down.weight",
}


def from_autoresearch(weights: Mapping[str, Tensor], n_heads: int, n_kv_heads: int | None = None) -> dict[str, Tensor]:
    """Returns the state dict of the network, for `GPT.load_state_dict`.

    Args:
        weights: `state_dict()` of the original's GPT, compiled or not.
        n_heads: Its number of query heads.
        n_kv_heads: Its number of key/value heads; default n_heads.

    Raises:
        CheckpointError: The weights are not those of such a network.
    """
    given = {name.removeprefix("_orig_mod."): weight for name, weight in weights.items()}
    try:
        found = {ours: given[theirs] for theirs, ours in NAMES.items()}
        for layer, scalars in enumerate(zip(given["resid_lambdas"], given["x0_lambdas"], strict=True)):
            theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
            found |= {ours + name: scalar[None] for name, scalar in zip(("stream", "first"), scalars, strict=True)}
            q, k, v = (given[f"{theirs}attn.c_{letter}.weight"] for letter in "qkv")
            turned = [_exchanged(q, n_heads), _exchanged(k, n_kv_heads or n_heads)]
            found[f"{ours}attention.qkv.weight"] = torch.cat([*turned, v])
            found |= {ours + name: given[theirs + key] for key, name in IN_BLOCK.items() if theirs + key in given}
            if (table := given.get(f"value_embeds.{layer}.weight")) is not None:
                found[f"{ours}attention.value_table.weight"] = table
    except KeyError as error:
        raise CheckpointError(f"the weights lack {error.args[0]}; accepted: those of autoresearch's GPT") from error
    return found


def _exchanged(weight: Tensor, n_heads: int) -> Tensor:
    """The weight with the two halves of each head's rows exchanged."""
    return weight.unflatten(0, (n_heads, 2, -1)).flip(1).flatten(0, 2)
