"""Environment variables that torch reads when it is imported. Those that the user has set stay as they are."""

import os

# oneDNN makes code for each size of a product in bfloat16, and keeps that of the last 1,024 sizes twice: 0.6 to 1.6 MB
# each. A text that is generated has a new size for each token. A step of training has a few dozen sizes.
PRIMITIVES_KEPT = "128"

DEFAULTS = {
    # For a rank that dies, torch would write a C++ stack, and RankWatch writes one line.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": PRIMITIVES_KEPT,
    "LRU_CACHE_CAPACITY": PRIMITIVES_KEPT,  # of the layer between torch and oneDNN
}


def set_defaults() -> None:
    """Sets the variables. Call it before torch is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
