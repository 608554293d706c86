"""Postpones the initialisation of packages that Lightning imports and that few runs use: it takes seconds of start-up.

Lightning imports four things for a name or two each:

| package | what Lightning takes from it | what its initialisation loads |
| --- | --- | --- |
| torchmetrics | Metric, MetricCollection | all metrics; transformers, scipy and others that are installed |
| torchmetrics.utilities.plot | annotations and a function for plots | matplotlib |
| torch._dynamo | OptimizedModule, and torch.compiler.disable for a method | the compiler, with sympy: 900 modules |
| torch.utils.flop_counter | FlopCounterMode | triton |

After `postpone()`, such a package is initialised when a program uses anything else of it, imports a module of it, or
calls one of these names; until then the names stand for themselves. The program calls it, the library does not.
"""

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

_lock = threading.RLock()  # around an initialisation, as the import system's own
_postponed: set[str] = set()
_after: dict[str, list[Callable[[Any], None]]] = {}  # called with a package that has been initialised
_giving = threading.local()  # whether this thread imports modules of a package that stays postponed


def postpone() -> None:
    """Postpones the packages of `NAMES` that are not imported yet. Later calls change nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def is_loaded(name: str) -> bool:
    """Returns whether a package is imported and its initialisation is not postponed.

    Args:
        name: Its import name.
    """
    return name in sys.modules and name not in _postponed


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not getattr(_giving, "on", False):
            parent = fullname.rpartition(".")[0]
            if parent in _postponed:
                _initialise(sys.modules[parent])
        if fullname not in NAMES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Makes a module without executing its file."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Postponed(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        _postponed.add(module.__name__)


class _Postponed(ModuleType):
    def __getattr__(self, name: str) -> Any:
        known = NAMES[self.__name__].get(name)
        if known is None and name.startswith("__"):
            raise AttributeError(name)  # the import system and `inspect` ask every module for these
        with _lock:
            if self.__name__ not in _postponed:  # it is being initialised, or another thread has just done it
                if name in vars(self):
                    return vars(self)[name]
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            if known is not None:
                return known()
            _initialise(self)
            return getattr(self, name)


def _initialise(module: ModuleType) -> None:
    """Executes the file of a postponed module, as its import would have done."""
    name = module.__name__
    with _lock:
        if name not in _postponed:
            return
        _postponed.remove(name)
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        try:
            module.__spec__.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        module.__class__ = ModuleType
        for call in _after.pop(name, []):
            call(module)


def _submodule(name: str, attribute: str) -> Any:
    """Returns an attribute of a module whose package stays postponed."""
    before = getattr(_giving, "on", False)
    _giving.on = True
    try:
        return getattr(importlib.import_module(name), attribute)
    finally:
        _giving.on = before


def _metric() -> Any:
    _submodule("torchmetrics.utilities", "__name__")  # first: the two import each other
    return _submodule("torchmetrics.metric", "Metric")


def _metric_collection() -> Any:
    _metric()
    return _submodule("torchmetrics.collections", "MetricCollection")


def _version() -> str:
    from importlib.metadata import version  # takes as long as all of this module, which every command imports

    return version("torchmetrics")


def _calling(name: str, function: str) -> Callable[..., Any]:
    """Returns a function that calls one of a postponed module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _lock:
            _initialise(sys.modules[name])
        return getattr(sys.modules[name], function)(*args, **kwargs)

    return call


class _IsOptimizedModule(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        # Nothing is compiled before the compiler is loaded.
        return is_loaded("torch._dynamo") and isinstance(instance, sys.modules["torch._dynamo"].OptimizedModule)


class _OptimizedModule(metaclass=_IsOptimizedModule):
    """What torch.compile makes of a module, for isinstance."""


def _disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """Is torch._dynamo.disable. Functions that are not yet compiled are called as they are."""
    if function is None:
        return partial(_disable, recursive=recursive, **options)
    if not isinstance(function, FunctionType):
        _initialise(sys.modules["torch._dynamo"])
        return sys.modules["torch._dynamo"].disable(function, recursive, **options)
    callee: Callable[..., Any] = function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return callee(*args, **kwargs)

    def initialised(dynamo: Any) -> None:
        nonlocal callee
        callee = dynamo.disable(function, recursive, **options)
        vars(call).update(vars(callee))  # marks, by which the compiler knows it
        vars(function).pop("__dynamo_disable", None)  # torch/_compile.py keeps `call` there

    _after.setdefault("torch._dynamo", []).append(initialised)
    return call


def _graph_break(*args: Any, **kwargs: Any) -> None:
    """Is torch._dynamo.graph_break, which changes nothing outside of compiled functions."""


# The names that a postponed package has, each with a function that returns its value.
NAMES: dict[str, dict[str, Callable[[], Any]]] = {
    "torchmetrics": {
        "Metric": _metric,
        "MetricCollection": _metric_collection,
        "_logger": lambda: logging.getLogger("torchmetrics"),
        "__version__": _version,
    },
    "torchmetrics.utilities.plot": {
        "_AX_TYPE": lambda: Any,
        "_PLOT_OUT_TYPE": lambda: Any,
        "plot_single_or_multi_val": lambda: _calling("torchmetrics.utilities.plot", "plot_single_or_multi_val"),
    },
    "torch._dynamo": {
        "OptimizedModule": lambda: _OptimizedModule,
        "disable": lambda: _disable,
        "graph_break": lambda: _graph_break,
    },
    "torch.utils.flop_counter": {
        "FlopCounterMode": lambda: _calling("torch.utils.flop_counter", "FlopCounterMode"),
    },
}
