"""Errors in modules that a config names, raised while they are imported.

jsonargparse reports an ImportError with the key that names the module. It does not handle other errors.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@contextmanager
def failures_as_import_errors() -> Iterator[None]:
    """Context in which a failing module raises an ImportError with the reason. Its own imports are not affected."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.importing = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = None if self.importing else PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.importing = True
            try:
                execute(module)
            except (Exception, SystemExit) as error:
                reason = " ".join(str(error).split())
                raise ImportError(f"{type(error).__name__}: {reason}") from error
            finally:
                self.importing = False

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
