"""Checks the files of torch.save before torch reads them.

torch.load(weights_only=True) runs no code, but it trusts sizes: a small file can request any amount of memory, a tensor
can claim bytes that the file does not have, and a value can contain so many others that visiting them never ends. This
module therefore reads the archive and its pickle first, with placeholders for tensors. It allocates no more than the
size of the file.
"""

# typeshed does not describe the pure-Python unpickler, whose operations are overridden here.
# mypy: disable-error-code="attr-defined, misc, assignment, unused-ignore"

import itertools
import os
import pickle
import stat
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch

MOST_PLAIN_BYTES = 2**25  # of the pickle: everything except the contents of tensors
MOST_VALUES = 10_000_000  # values that are not tensors, counted at each occurrence
DEEPEST = 100  # levels of nesting
SHARED = 4  # largest ratio of all tensors to the file; several tensors can share contents
SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype)


class BadArchive(ValueError):
    """A file that torch.save did not write, or that requests more than it contains; the message gives the reason."""


class UnsafeArchive(BadArchive):
    """A file that names something other than tensors and plain values."""


@dataclass(frozen=True)
class Layout:
    """A placeholder for a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        n = self.dtype.itemsize
        for size in self.shape:
            n *= size
        return n


FOLDER_FLAG = 0x10  # MS-DOS's, in the attributes of a record


@dataclass(frozen=True)
class Storage:
    """A placeholder for the storage of tensors.

    Attributes:
        dtype: Type of its elements; None for bytes.
        n_bytes: Its size.
    """

    dtype: torch.dtype | None
    n_bytes: int


def check(path: str | Path, checksums: bool = False) -> Any:
    """Checks a file before torch.load reads it.

    Args:
        path: The file.
        checksums: Whether to compare all contents with their checksums, which torch does not do.

    Returns:
        The contents, with a Layout for each tensor.

    Raises:
        OSError: It cannot be read.
        BadArchive: torch.save did not write it, it is damaged, or it requests more memory than its size allows.
        UnsafeArchive: It names something other than tensors and plain values.
    """
    size = os.stat(path)
    if not stat.S_ISREG(size.st_mode) and not stat.S_ISDIR(size.st_mode):
        raise BadArchive("it is not a regular file")  # a pipe can block, and a device has no end
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _check(archive, size.st_size, checksums)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise BadArchive(str(error)) from error


def _check(archive: zipfile.ZipFile, size: int, checksums: bool) -> Any:
    records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise BadArchive("it is not an archive of torch.save")
    is_folder = any(info.external_attr & FOLDER_FLAG for info in records.values())  # torch would read it as empty
    if len(records) != len(archive.infolist()) or archive.comment or is_folder:
        raise BadArchive("its archive is not as torch.save writes it")
    if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
        raise BadArchive("its archive is compressed")
    if sum(info.file_size for info in records.values()) > size:
        raise BadArchive("its contents are larger than the file")
    if checksums and (damaged := archive.testzip()):
        raise BadArchive(f"{damaged} in it does not match its checksum")
    if records[pickles[0]].file_size > MOST_PLAIN_BYTES:
        raise BadArchive(f"it contains more than {MOST_PLAIN_BYTES >> 20} MB of values that are not tensors")
    folder = pickles[0].removesuffix("data.pkl")
    sizes = {name.removeprefix(f"{folder}data/"): info.file_size for name, info in records.items()}
    try:
        contents = _Scan(archive.read(pickles[0]), sizes).load()
    except BadArchive:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise BadArchive(f"its values are damaged: {type(error).__name__}: {error}") from error
    _check_size(contents, size)
    return contents


class _Scan(pickle._Unpickler):  # type: ignore[name-defined,misc]  # the pure-Python one, whose operations can be restricted
    """Reads the pickle of an archive, with placeholders for everything that it names.

    Args:
        data: The pickle.
        sizes: Size of each record of tensors, in bytes.
    """

    def __init__(self, data: bytes, sizes: dict[str, int]) -> None:
        super().__init__(BytesIO(data), encoding="bytes")
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module.replace('__builtin__', 'builtins')}.{name}"  # the name in Python 2, which protocol 2 uses
        if (found := _KNOWN.get(name)) is None:
            raise UnsafeArchive(f"it names {name}")
        return found

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count = pid
        if kind not in ("storage", b"storage") or not isinstance(storage, Storage) or not isinstance(key, str):
            raise BadArchive("it refers to something other than its records")
        n_bytes = _whole(count) * (1 if storage.dtype is None else storage.dtype.itemsize)
        if self.sizes.get(key) != n_bytes:
            raise BadArchive(f"the record {key!r} of a tensor is missing, or does not have {n_bytes} bytes")
        return Storage(storage.dtype, n_bytes)

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in itertools.islice(self.stack, 0, None, 2):
            _check_key(key)
        super().load_setitems()

    # Only those of protocol 2, which torch.save and torch.load use.
    _operations: ClassVar = (
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET"),
        *("LONG_BINGET", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"),
        *("LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    )
    dispatch: ClassVar = {
        code: pickle._Unpickler.dispatch[code]  # type: ignore[attr-defined]
        for code in (getattr(pickle, name)[0] for name in _operations)
    }
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _check_key(key: Any) -> None:
    """Rejects nested tuples as keys: keys are hashed, which can take very long for nested tuples."""
    if not (isinstance(key, SCALARS) or (isinstance(key, tuple) and all(isinstance(part, SCALARS) for part in key))):
        raise BadArchive("a key is not a plain value")


def _whole(number: Any, least: int = 0) -> int:
    if type(number) is not int or not least <= number < 2**63:
        raise BadArchive(f"{number!r} is not a size")
    return number


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Layout:
    """Replaces torch._utils._rebuild_tensor_v2 and _v3."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise BadArchive("a tensor is not as torch.save writes it")
    _, hooks, *options = rest
    dtype = storage.dtype
    if dtype is None and options:
        dtype, *options = options
    if not isinstance(dtype, torch.dtype) or hooks or any(option is not None for option in options):
        raise BadArchive("a tensor is not as torch.save writes it")
    layout = Layout(tuple(map(_whole, size)), dtype)
    last = _whole(offset) + sum((n - 1) * _whole(step) for n, step in zip(layout.shape, stride, strict=True))
    if layout.n_bytes > storage.n_bytes or (layout.n_bytes and (last + 1) * dtype.itemsize > storage.n_bytes):
        raise BadArchive(f"a tensor of the shape {layout.shape} is larger than its record")
    return layout


def _parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


def _set(values: Any = ()) -> tuple[Any, ...]:
    for value in values:
        _check_key(value)
    return tuple(values)


def _encode(text: Any, encoding: Any = "utf-8", *rest: Any) -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8") or not isinstance(text, str):
        raise BadArchive("bytes are not as torch.save writes them")
    return text.encode(encoding, "replace")


def _counter(values: Any = ()) -> Any:
    _set(values)
    return Counter(dict(values)) if isinstance(values, dict) else Counter(values)


def _known() -> Iterator[tuple[str, Any]]:
    yield "collections.OrderedDict", OrderedDict
    yield "collections.Counter", _counter
    yield "builtins.set", _set
    yield "builtins.complex", complex
    yield "_codecs.encode", _encode
    yield "torch.Size", tuple
    yield "torch.device", torch.device
    yield "torch._utils._rebuild_tensor_v2", _tensor
    yield "torch._utils._rebuild_tensor_v3", _tensor
    yield "torch._utils._rebuild_parameter", _parameter
    yield "torch.storage.UntypedStorage", Storage(None, 0)
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        yield str(dtype), dtype
    for name, dtype in (
        *(("Float", torch.float32), ("Double", torch.float64), ("Half", torch.float16), ("BFloat16", torch.bfloat16)),
        *(("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8)),
        *(("Byte", torch.uint8), ("Bool", torch.bool)),
        *(("ComplexFloat", torch.complex64), ("ComplexDouble", torch.complex128)),
    ):
        yield f"torch.{name}Storage", Storage(dtype, 0)


_KNOWN: dict[str, Any | Callable[..., Any]] = dict(_known())


def _check_size(contents: Any, size: int) -> None:
    """Checks the size of the contents, counting every occurrence of a value, and rejects cycles."""
    inner = {id(contents): _inside(contents)}
    way = [(contents, iter(inner[id(contents)]))]
    values: dict[int, tuple[int, int]] = {}  # of finished containers: number of values, and bytes of tensors
    under_way = {id(contents)}
    while way:
        container, left = way[-1]
        for value in left:
            if isinstance(value, (*SCALARS, Layout)) or id(value) in values:
                continue
            if id(value) in under_way:
                raise BadArchive("a value contains itself")
            if len(way) == DEEPEST:
                raise BadArchive(f"its values are nested more than {DEEPEST} levels deep")
            inner[id(value)] = _inside(value)
            under_way.add(id(value))
            way.append((value, iter(inner[id(value)])))
            break
        else:
            way.pop()
            under_way.discard(id(container))
            n_values, n_bytes = 1, 0
            for value in inner[id(container)]:
                if isinstance(value, Layout):
                    n_bytes += value.n_bytes
                elif isinstance(value, SCALARS):
                    n_values += 1
                else:
                    n_values, n_bytes = (sum(pair) for pair in zip((n_values, n_bytes), values[id(value)], strict=True))
            if n_values > MOST_VALUES:
                raise BadArchive(f"it contains more than {MOST_VALUES:,} values that are not tensors")
            if n_bytes > SHARED * size:
                raise BadArchive("its tensors are larger than the file")
            values[id(container)] = n_values, n_bytes


def _inside(value: Any) -> list[Any]:
    """The elements of a container."""
    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, list | tuple):
        return [*value]
    if isinstance(value, SCALARS):
        return []
    raise BadArchive(f"it contains a {type(value).__name__}")
