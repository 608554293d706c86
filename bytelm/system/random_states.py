"""Random states: those of all generators that a program may draw from, saved and restored."""

import os
import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Returns the states of the generators that this process may use."""
    return {**states_of_torch(), "python": random.getstate(), "numpy": np.random.get_state(legacy=False)}


def states_of_torch() -> dict[str, Any]:
    """Returns the states of torch's generators alone, which is faster."""
    states = {"torch": torch.get_rng_state()}
    # A program that has not used a GPU has drawn nothing there, and need not begin to.
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else states


def set_random_states(states: dict[str, Any]) -> None:
    """Restores the generators to the states of `random_states`."""
    torch.set_rng_state(states["torch"].cpu())
    random.setstate(states["python"])
    np.random.set_state(_of_numpy(states))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def check_random_states(states: dict[str, Any]) -> None:
    """Tries `set_random_states` on other generators; any error means that it would fail."""
    torch.Generator().set_state(states["torch"].cpu())
    random.Random().setstate(states["python"])
    np.random.RandomState().set_state(_of_numpy(states))


def storable(states: dict[str, Any]) -> dict[str, Any]:
    """Returns the states for a checkpoint, which cannot store NumPy's arrays."""
    of_numpy = states["numpy"]
    key = torch.tensor(of_numpy["state"]["key"].tolist())
    return {**states, "numpy": {**of_numpy, "state": {**of_numpy["state"], "key": key}}}


def seed_apart(rank: int) -> None:
    """Makes ranks draw different numbers. Until then they drew the same, for the same initial weights."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) + rank
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _of_numpy(states: dict[str, Any]) -> dict[str, Any]:
    of_numpy = states["numpy"]
    return {**of_numpy, "state": {**of_numpy["state"], "key": of_numpy["state"]["key"].tolist()}}
