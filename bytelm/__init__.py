"""bytelm trains language models under a wall-clock budget.

    from bytelm import fit, load

    run = fit("configs/quickstart.yaml", {"time_budget.limit": "30s"})
    model = load(run.folder)
    print(model.generate("def "))
    print(model.score("def main():").bits_per_byte)

Start with `gpt.py` for the network, `language_model.py` for training, and `cli.py` for how a run is assembled.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bytelm.inference.model import Model, load
    from bytelm.inference.score import TextScore
    from bytelm.train import Fitted, fit

__version__ = "0.2.0"
__all__ = ["Fitted", "Model", "TextScore", "__version__", "fit", "load"]

# Imported when they are first used: they need torch, which takes seconds, and the list of commands needs none of it.
_HOMES = {
    "Fitted": "bytelm.train",
    "Model": "bytelm.inference.model",
    "TextScore": "bytelm.inference.score",
    "fit": "bytelm.train",
    "load": "bytelm.inference.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
