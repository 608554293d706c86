"""Loads torchmetrics as far as it is used: Lightning needs three of its 270 modules.

torchmetrics imports all its metrics at once, and with them scipy and transformers where these are installed: 85 MB of
memory and a third of a program's start. `install()` makes the package wait: `Metric` and `MetricCollection` load their
own modules, any other name loads the whole package as usual. Users' code sees no difference.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
LATEST = (1, 9)  # its modules' imports of each other are no public interface
MODULE_OF = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}
ALONE = ("utilities", "metric", "collections", "__about__")  # modules that need no others of the package


def install() -> None:
    """Makes torchmetrics wait, unless it has been imported or is later than the versions that this is known to suit."""
    if NAME in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    try:
        major, minor = (int(number) for number in version(NAME).split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    if (major, minor) <= LATEST:
        sys.meta_path.insert(0, _Finder())


class _Waiting(ModuleType):
    """The package before it is loaded."""

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":  # which these modules ask for
            return logging.getLogger(NAME)
        if name in MODULE_OF:
            importlib.import_module(f"{NAME}.utilities")  # first, as the package does: its modules import each other
            value = getattr(importlib.import_module(f"{NAME}.{MODULE_OF[name]}"), name)
            setattr(self, name, value)
            return value
        if name.startswith("__") and name != "__all__":  # Python asks for such names; the package has no others
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        _load_all()
        return getattr(self, name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == NAME:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _WaitingLoader(spec.loader)
            return spec
        package, _, rest = fullname.partition(".")
        if package != NAME or rest.partition(".")[0] in ALONE or not _is_waiting():
            return None
        _load_all()
        if fullname in sys.modules:  # Python would load it once more
            return ModuleSpec(fullname, _Loaded(sys.modules[fullname]))
        return None


class _WaitingLoader(Loader):
    """Makes the package without running it.

    Args:
        loader: The package's own loader.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Waiting

    def __getattr__(self, name: str) -> Any:  # such as get_data and get_source, of the package's files
        return getattr(self.loader, name)


class _Loaded(Loader):
    """Gives a module that has been loaded, unchanged."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _is_waiting() -> bool:
    return type(sys.modules.get(NAME)) is _Waiting


def _load_all() -> None:
    module = sys.modules[NAME]
    spec = module.__spec__
    assert spec is not None
    assert isinstance(spec.loader, _WaitingLoader)
    module.__class__ = ModuleType
    spec.loader = module.__loader__ = spec.loader.loader
    assert spec.loader is not None
    spec.loader.exec_module(module)
