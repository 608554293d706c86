"""A downloaded text gets its name only when it is complete, and failures are reported with their reason."""

import hashlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from bytelm.data.corpora import Shakespeare
from bytelm.data.download import DownloadError, download, kept_hash, strip_gutenberg, strip_gutenberg_lf
from bytelm.errors import DataError


@pytest.fixture(
    params=[
        "cut_before_declared_length",
        "cut_inside_a_chunk",
        "cut_without_declared_length",
        "empty",
        "not_found",
        "refused",
        "no_address",
    ]
)
def broken_url(request, serve, answer, etext):
    half = etext[: len(etext) // 2]
    match request.param:
        case "cut_before_declared_length":
            yield serve(answer(half, Content_Length=len(etext)))
        case "cut_inside_a_chunk":
            yield serve(answer(b"%x\r\n%b" % (len(etext), half), Transfer_Encoding="chunked"))
        case "cut_without_declared_length":
            yield serve(answer(half))
        case "empty":
            yield serve(answer(b"", Content_Length=0))
        case "not_found":
            yield serve(lambda handler: handler.send_error(404))
        case "refused":
            with socket.create_server(("127.0.0.1", 0)) as closed:
                port = closed.getsockname()[1]
            yield f"http://127.0.0.1:{port}/pg100.txt"
        case "no_address":
            yield "pg100.txt"


def test_a_whole_text_is_stripped_and_placed(serve, answer, etext, text, tmp_path):
    target = tmp_path / "new" / "folder" / "text.txt"
    download(serve(answer(etext, Content_Length=len(etext))), target, strip_gutenberg)
    assert target.read_bytes() == text
    assert sorted(path.name for path in target.parent.iterdir()) == ["text.txt", "text.txt.sha256"]
    assert kept_hash(target) == hashlib.sha256(text).hexdigest()


def test_a_text_of_undeclared_length_is_placed_too(serve, answer, etext, text, tmp_path):
    download(serve(answer(etext)), tmp_path / "text.txt", strip_gutenberg)
    assert (tmp_path / "text.txt").read_bytes() == text


def test_a_failure_leaves_nothing_behind(broken_url, tmp_path):
    with pytest.raises(DownloadError):
        download(broken_url, tmp_path / "text.txt", strip_gutenberg)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_is_given_up(serve, answer, etext, tmp_path, monkeypatch):
    over = threading.Event()

    def half(handler: BaseHTTPRequestHandler) -> None:
        answer(etext[:99], Content_Length=len(etext))(handler)
        over.wait(5)

    monkeypatch.setattr("bytelm.data.download.TIMEOUT_SECONDS", 0.1)
    with pytest.raises(DownloadError, match="timed out"):
        download(serve(half), tmp_path / "text.txt", strip_gutenberg)
    over.set()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_does_not_touch_an_existing_file(serve, answer, etext, tmp_path):
    target = tmp_path / "text.txt"
    target.write_bytes(b"kept")
    with pytest.raises(DownloadError, match=r"cut after 9 of \d+ bytes"):
        download(serve(answer(etext[:9], Content_Length=len(etext))), target, strip_gutenberg)
    assert target.read_bytes() == b"kept"
    assert list(tmp_path.iterdir()) == [target]


def test_the_next_attempt_after_a_cut_succeeds(serve, answer, etext, text, tmp_path):
    target = tmp_path / "text.txt"
    url = serve(answer(etext[:-20], Content_Length=len(etext)), answer(etext, Content_Length=len(etext)))
    with pytest.raises(DownloadError):
        download(url, target, strip_gutenberg)
    download(url, target, strip_gutenberg)
    assert target.read_bytes() == text


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_an_interrupt_before_the_last_step_leaves_no_partial_file(failure, serve, answer, etext, tmp_path, monkeypatch):
    def interrupted(*paths: object) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(DownloadError if failure is OSError else failure):
        download(serve(answer(etext)), tmp_path / "text.txt", strip_gutenberg)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_folder_is_a_download_error(serve, answer, etext, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(DownloadError, match="file"):
        download(serve(answer(etext)), tmp_path / "file" / "text.txt", strip_gutenberg)
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_shakespeare_says_where_to_place_the_text_when_the_download_fails(broken_url, tmp_path, monkeypatch):
    monkeypatch.delenv("BYTELM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = tmp_path / "cache" / "bytelm" / "shakespeare.txt"
    with pytest.raises(DataError, match="download failed") as rejection:
        Shakespeare(url=broken_url).prepare_data()
    assert f"Place the text at {target}, or set BYTELM_DATA" in str(rejection.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("missing", [b"*** START OF TH", b"*** END OF TH", b"***"])
def test_a_text_without_header_or_footer_is_not_whole(missing, etext):
    with pytest.raises(DownloadError, match="header or footer"):
        strip_gutenberg(etext.replace(missing, b"* * *"))


def test_a_footer_before_the_header_is_not_whole():
    with pytest.raises(DownloadError, match="header or footer"):
        strip_gutenberg(b"*** END OF THE TEXT\nwords\n*** START OF THE TEXT\n")


@pytest.mark.parametrize("the", [b"THE", b"THIS"])
def test_stripping_keeps_the_text_byte_for_byte(the):
    etext = b"\xef\xbb\xbf*** START OF %b EBOOK\n\n  indented\n\n\nlast \xff line  \n\n*** END OF %b EBOOK\nfoot" % (
        the,
        the,
    )
    assert strip_gutenberg_lf(etext) == b"  indented\n\n\nlast \xff line  \n"
    assert strip_gutenberg(etext) == strip_gutenberg(etext).strip()


# The hash, and where a download goes


def kept(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder that Shakespeare downloads to."""
    monkeypatch.delenv("BYTELM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bytelm"


@pytest.mark.parametrize("form", [str.lower, str.upper])
def test_a_download_with_the_hash_that_was_asked_for_is_kept(form, serve, answer, etext, text, cache):
    asked = form(hashlib.sha256(etext).hexdigest())
    data = Shakespeare(url=serve(answer(etext)), sha256=asked)
    assert bytes(data.corpus.stream.tolist()) == text
    assert (cache / "shakespeare.txt.sha256").read_text().strip() == data.corpus.sha256


def test_a_download_with_another_hash_is_rejected_with_both_and_not_kept(serve, answer, etext, cache, tmp_path):
    asked = hashlib.sha256(etext + b"revised").hexdigest()
    with pytest.raises(DataError, match="download failed") as rejection:
        Shakespeare(url=serve(answer(etext)), sha256=asked).prepare_data()
    assert asked in str(rejection.value)
    assert hashlib.sha256(etext).hexdigest() in str(rejection.value)
    assert kept(tmp_path) == []


def test_a_text_that_changed_since_it_was_downloaded_is_rejected(serve, answer, etext, text, cache):
    url = serve(answer(etext), answer(etext))  # for two downloads
    Shakespeare(url=url).prepare_data()
    assert bytes(Shakespeare(url=url).corpus.stream.tolist()) == text
    (cache / "shakespeare.txt").write_bytes(text[:-1])
    with pytest.raises(DataError, match=r"changed since it was downloaded; delete it") as rejection:
        Shakespeare(url=url).corpus  # noqa: B018
    assert str(cache / "shakespeare.txt") in str(rejection.value)
    assert (cache / "shakespeare.txt").read_bytes() == text[:-1]
    (cache / "shakespeare.txt").unlink()
    assert bytes(Shakespeare(url=url).corpus.stream.tolist()) == text


def test_a_text_that_a_user_placed_is_not_changed(cache):
    cache.mkdir(parents=True)
    (cache / "shakespeare.txt").write_bytes(b"placed")
    assert bytes(Shakespeare(url="http://127.0.0.1:9/").corpus.stream.tolist()) == b"placed"


@pytest.mark.parametrize(
    "path", ["/../../../outside.txt", "/..%2f..%2foutside.txt", "/%2ftmp%2foutside.txt", "//outside.txt?a=../b"]
)
def test_no_address_makes_a_download_go_elsewhere(path, serve, answer, etext, cache, tmp_path):
    headers = {"Content_Disposition": 'attachment; filename="../../outside.txt"'}
    Shakespeare(url=serve(answer(etext, **headers)).replace("/pg100.txt", path)).prepare_data()
    assert kept(tmp_path) == ["cache/bytelm/shakespeare.txt", "cache/bytelm/shakespeare.txt.sha256"]


def test_nor_does_a_redirect(serve, answer, etext, text, cache, tmp_path):
    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", "/../../outside.txt")
        request.end_headers()

    data = Shakespeare(url=serve(redirect, answer(etext)))
    assert bytes(data.corpus.stream.tolist()) == text
    assert kept(tmp_path) == ["cache/bytelm/shakespeare.txt", "cache/bytelm/shakespeare.txt.sha256"]


def test_nor_do_links_in_the_cache_folder(serve, answer, etext, text, cache, tmp_path):
    cache.mkdir(parents=True)
    (tmp_path / "hash").write_text("kept")
    (cache / "shakespeare.txt").symlink_to(tmp_path / "outside.txt")
    (cache / "shakespeare.txt.sha256").symlink_to(tmp_path / "hash")
    assert bytes(Shakespeare(url=serve(answer(etext))).corpus.stream.tolist()) == text
    assert not (tmp_path / "outside.txt").exists()
    assert (tmp_path / "hash").read_text() == "kept"
    assert not any(path.is_symlink() for path in cache.iterdir())


def test_a_text_whose_hash_could_not_be_written_is_not_held_against_an_earlier_one(
    serve, answer, etext, text, cache, monkeypatch
):
    cache.mkdir(parents=True)
    (cache / "shakespeare.txt.sha256").write_text(hashlib.sha256(b"earlier").hexdigest())
    place = os.replace

    def place_texts_only(source: str, target: os.PathLike[str]) -> None:
        if os.fspath(target).endswith(".sha256"):
            raise OSError("no space")
        place(source, target)

    monkeypatch.setattr(os, "replace", place_texts_only)
    data = Shakespeare(url=serve(answer(etext)))
    with pytest.raises(DataError, match="no space"):
        data.prepare_data()
    assert bytes(data.corpus.stream.tolist()) == text


def test_line_ends_are_the_etexts_unless_others_are_asked_for(serve, answer, etext, text, cache):
    lf = text.replace(b"\r\n", b"\n") + b"\n"
    assert b"\r\n" in text
    for line_ends, expected in (("lf", lf), ("crlf", text), (None, text)):
        data = Shakespeare(url=serve(answer(etext)), line_ends=line_ends)
        assert bytes(data.corpus.stream.tolist()) == expected
        other = "crlf" if line_ends == "lf" else "lf"
        with pytest.raises(
            DataError, match=f"data.line_ends: '{other}' cannot be used; .*shakespeare.txt has the line"
        ):
            Shakespeare(line_ends=other).corpus  # noqa: B018
        assert bytes(Shakespeare().corpus.stream.tolist()) == expected  # a text that is there stays the corpus
        (cache / "shakespeare.txt").unlink()
