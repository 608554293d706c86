"""Downloads of texts: a file gets its name only when it is complete, and its hash is stored in a file next to it."""

import hashlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

from bytelm.system.files import replacing

TIMEOUT_SECONDS = 30  # without a response; not for the whole transfer


class DownloadError(Exception):
    """A download was not completed, or has the wrong content."""


def download(url: str, target: Path, transform: Callable[[bytes], bytes], sha256: str | None = None) -> None:
    """Downloads and transforms a text, and moves it to `target` in one step: no partial file is left there.

    The hash of the stored text is written to `<target>.sha256`.

    Args:
        url: Address of the text.
        target: Final path; its folder is created.
        transform: Turns the downloaded text into the stored text; raises DownloadError if the text is incomplete.
        sha256: Required hash of the text as downloaded.

    Raises:
        DownloadError: The address could not be reached, the transfer was cut, the hash is not `sha256`, or the folder
            is not writable.
    """
    try:
        received = _fetch(url, target.name)
        hashed = hashlib.sha256(received).hexdigest()
        if sha256 is not None and hashed != sha256.lower():
            raise DownloadError(f"{url}: its sha256 is {hashed}, not {sha256}")
        text = transform(received)
        target.parent.mkdir(parents=True, exist_ok=True)
        _hash_file(target).unlink(missing_ok=True)  # the hash of an earlier text
        _place(text, target)
        _place(hashlib.sha256(text).hexdigest().encode() + b"\n", _hash_file(target))
    # ValueError: an invalid address, or a header that is not a number
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"{url}: {error}") from error


def kept_hash(path: Path) -> str | None:
    """Returns the hash that a text had when it was downloaded; None for a text that the user placed there."""
    file = _hash_file(path)
    return file.read_text(errors="replace").strip() if file.is_file() else None


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _place(content: bytes, target: Path) -> None:
    with replacing(target, shared=True) as partial:
        partial.write_bytes(content)


def _fetch(url: str, name: str) -> bytes:
    request = Request(url, headers={"User-Agent": "bytelm"})
    with urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        length = int(response.headers.get("Content-Length", 0)) or None
        received = bytearray()
        with tqdm(total=length, unit="B", unit_scale=True, desc=f"downloading {name}") as bar:
            while chunk := response.read(1 << 16):
                received += chunk
                bar.update(len(chunk))
    # When a transfer is read in chunks, http.client does not report that it was cut.
    if length is not None and len(received) != length:
        raise DownloadError(f"{url}: cut after {len(received)} of {length} bytes")
    return bytes(received)


def strip_gutenberg(text: bytes) -> bytes:
    """Returns a Project Gutenberg etext without its header and footer, and without blanks at its ends.

    Line ends are kept (Project Gutenberg's are CRLF), and none is added. These are the bytes of the challenge's corpus.

    Raises:
        DownloadError: Header or footer is missing: the text is incomplete.
    """
    return _between_markers(text).strip()


def strip_gutenberg_lf(text: bytes) -> bytes:
    """Returns the same with Unix line ends, one of them at the end: the text that bytelm downloaded up to 0.2.0.

    Raises:
        DownloadError: Header or footer is missing.
    """
    return _between_markers(text).replace(b"\r\n", b"\n").strip(b"\n") + b"\n"


def _between_markers(text: bytes) -> bytes:
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    starts = [i for i, line in enumerate(lines) if line.startswith(b"*** START OF TH")]
    ends = [i for i, line in enumerate(lines) if line.startswith(b"*** END OF TH")]
    if not starts or not ends or ends[-1] <= starts[0]:
        raise DownloadError("not a whole Project Gutenberg text: its header or footer line is missing")
    return b"".join(line + b"\n" for line in lines[starts[0] + 1 : ends[-1]])
