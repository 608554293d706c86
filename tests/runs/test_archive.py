"""Files of torch.save are accepted; files that declare more than they contain are rejected before they are read."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch

from bytelm.runs import archive
from bytelm.runs.archive import BadArchive, Layout, UnsafeArchive, check

PLAIN = {
    "numbers": [1, -5, 2**40, 10**300, 2.5, float("inf"), True, None, 3j],
    "texts": ("a", "é\ud800", b"\x00\xff", ""),
    "nested": {"a": [{"b": ((1, 2), (3,))}], 7: {}, (1, "a"): [], None: OrderedDict(x=1)},
    "torch": [torch.float32, torch.device("cpu"), torch.Size([1, 2])],
    "counts": Counter("aab"),
}


def tensors():
    whole = torch.arange(12.0).view(3, 4)
    types = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]
    types += [torch.uint16, torch.float8_e4m3fn, torch.complex64]
    return {
        **{str(dtype): torch.zeros(2, 3, dtype=dtype) for dtype in types},
        **{"whole": whole, "slice": whole[1:, 1:3], "turned": whole.t(), "again": whole, "number": torch.tensor(1.0)},
        **{"empty": torch.empty(0, 5), "parameter": torch.nn.Parameter(torch.ones(3))},
    }


def like(value):
    """A value with a Layout for each tensor."""
    if isinstance(value, torch.Tensor):
        return Layout(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: like(inner) for key, inner in value.items()}
    return type(value)(map(like, value)) if type(value) in (list, tuple) else value


def test_files_of_torch_are_accepted_with_all_tensor_layouts(tmp_path):
    contents = {"plain": PLAIN, "tensors": tensors(), "set": {1, "a"}}
    torch.save(contents, tmp_path / "a.ckpt")
    found = check(tmp_path / "a.ckpt", checksums=True)
    assert sorted(map(str, found.pop("set"))) == ["1", "a"]
    del contents["set"]
    assert found == like(contents)
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["plain"] == PLAIN


class Code:
    def __reduce__(self):
        return open, ("has-run", "w")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Code(), "io.open"),
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.empty(3, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (bytearray(b"abc"), "builtins.bytearray"),
    ],
)
def test_values_other_than_dense_tensors_and_plain_values_are_named(value, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": [value]}, "a.ckpt")
    with pytest.raises(UnsafeArchive, match=f"it names {name}"):
        check("a.ckpt")
    assert not os.path.exists("has-run")


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_tensors_are_no_dense_ones(tmp_path):
    torch.save([torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)], tmp_path / "a.ckpt")
    with pytest.raises(UnsafeArchive):
        check(tmp_path / "a.ckpt")


def cycle():
    values = []
    values.append(values)
    return values


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def doubled(levels):
    value = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.ones(1).expand(10**6), "larger than its record"),
        (torch.ones(1).expand(2, 10**15), "larger than its record"),
        (torch.ones(3, dtype=torch.complex64).conj(), "not as torch.save writes it"),
        (cycle(), "contains itself"),
        (nested(150), "nested more than 100 levels deep"),
        (doubled(60), "values that are not tensors"),
        ([torch.ones(1000)] * 10, "tensors are larger than the file"),
        ({((1,), (1,))}, "a key is not a plain value"),
    ],
    ids=["expanded", "huge", "conjugate", "cycle", "deep", "doubled", "shared", "set"],
)
def test_archives_that_expand_beyond_their_file_are_rejected_at_once(value, reason, tmp_path):
    torch.save({"a": value}, tmp_path / "a.ckpt")
    start = time.process_time()
    with pytest.raises(BadArchive, match=reason):
        check(tmp_path / "a.ckpt")
    assert time.process_time() - start < 5


def rewritten(path, change=lambda name, data: data, **options):
    """The archive with records that a function changes."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(f"{path}.new", "w", **options) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info.filename)))
    return f"{path}.new"


@pytest.fixture
def saved(tmp_path):
    torch.save({"a": torch.ones(100), "b": [1, 2]}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_compressed_archive_is_rejected(saved):
    assert check(rewritten(saved))
    with pytest.raises(BadArchive, match="compressed"):
        check(rewritten(saved, compression=zipfile.ZIP_DEFLATED))


def test_records_have_the_bytes_of_their_tensors(saved):
    for change in (lambda data: data[:-4], lambda data: data + bytes(4), lambda data: b""):
        path = rewritten(saved, lambda name, data, change=change: change(data) if "/data/" in name else data)
        with pytest.raises(BadArchive, match="record '0' of a tensor is missing, or does not have 400 bytes"):
            check(path)
    more = rewritten(saved, lambda name, data: data.replace(b"K\x64", b"J\xff\xff\xff\x7f") if "pkl" in name else data)
    with pytest.raises(BadArchive, match="does not have"):
        check(more)


def test_a_second_record_of_the_same_name_is_rejected(saved):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(saved, "a") as file:
        file.writestr("a/data/0", bytes(400))
    with pytest.raises(BadArchive, match=r"not as torch\.save writes it"):
        check(saved)


def test_a_flipped_bit_is_found_by_the_checksums(saved):
    data = bytearray(saved.read_bytes())
    at = data.index(torch.ones(100).numpy().tobytes())
    data[at + 7] ^= 1
    saved.write_bytes(data)
    assert check(saved)
    with pytest.raises(BadArchive, match="data/0 in it does not match its checksum"):
        check(saved, checksums=True)


def pickled(saved, data):
    return rewritten(saved, lambda name, old: data if name.endswith("data.pkl") else old)


TUPLES = b"\x80\x02}(" + b"K\x01" + b"\x85q\x00h\x00h\x00\x86" * 40 + b"K\x01u."  # as a key: 2**40 to be hashed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (TUPLES, "a key is not a plain value"),
        (b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b".", "values are damaged"),
        (b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b".", "values are damaged"),
        (b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"abc.", "values are damaged"),
        (b"\x80\x02ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R.", "values are damaged"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00hex_\x86R.", "bytes are not as"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "values are damaged"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x88)tR.", "a tensor is not as"),
        (b"\x80\x02K\x01Q.", "values are damaged"),
        (b"\x80\x02" + b"(" * 1000, "values are damaged"),
        (b"", "values are damaged"),
        (b"\x00" * 100, "values are damaged"),
    ],
)
def test_pickles_that_torch_does_not_write_are_rejected_at_once(data, reason, saved):
    start = time.process_time()
    with pytest.raises(BadArchive, match=reason):
        check(pickled(saved, data))
    assert time.process_time() - start < 5


def test_the_pickle_is_of_limited_size(saved, monkeypatch):
    monkeypatch.setattr(archive, "MOST_PLAIN_BYTES", 2**20)
    assert check(pickled(saved, pickle.dumps([b"\x00"] * 50_000, protocol=2)))
    with pytest.raises(BadArchive, match="more than 1 MB of values that are not tensors"):
        check(pickled(saved, pickle.dumps(["a" * 2**20], protocol=2)))


@pytest.mark.parametrize("content", [b"", b"a: 1\n", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(100)])
def test_other_files_are_rejected(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadArchive):
        check(tmp_path / "a")


def test_the_older_format_of_torch_is_rejected(tmp_path):
    torch.save({"a": 1}, tmp_path / "a", _use_new_zipfile_serialization=False)
    with pytest.raises(BadArchive):
        check(tmp_path / "a")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(BadArchive, match="not a regular file"):
            check(path)
    with pytest.raises(IsADirectoryError):
        check(tmp_path)
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "missing")


def test_a_large_checkpoint_takes_little_time(tmp_path):
    weights = {f"layer.{i}.weight": torch.zeros(8, 8) for i in range(2000)}
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": weights, "states": {i: {"step": torch.zeros(()), "x": w} for i, w in enumerate(weights)}}, buffer
    )
    (tmp_path / "a").write_bytes(buffer.getvalue())
    start = time.process_time()
    check(tmp_path / "a")
    assert time.process_time() - start < 3
