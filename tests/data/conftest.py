"""A web server for the tests, and the etext that it serves."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Response = Callable[[BaseHTTPRequestHandler], None]

SPEECH = b"THE SONNETS\n\n*** not a marker\nShall I compare thee \xe2\x80\x94 to a summer\xe2\x80\x99s day?\n" * 50


@pytest.fixture
def text() -> bytes:
    """The rest of the etext after it is stripped: with the etext's line ends, and none at the end."""
    return SPEECH.replace(b"\n", b"\r\n").strip()


@pytest.fixture
def etext() -> bytes:
    """The text with Project Gutenberg's header and footer."""
    header = b"\xef\xbb\xbfThe Project Gutenberg eBook\n\n*** START OF THE PROJECT GUTENBERG EBOOK 100 ***\n\n\n"
    footer = b"\n\n*** END OF THE PROJECT GUTENBERG EBOOK 100 ***\n\nLicence\n"
    return (header + SPEECH + footer).replace(b"\n", b"\r\n")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Starts a server that answers each request with the next of some responses, and returns its address."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(*responses: Response) -> str:
        queue = list(responses)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                queue.pop(0)(self)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/pg100.txt"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def answer() -> Callable[..., Response]:
    """Makes a response of status 200 with this body and these headers."""

    def make(body: bytes, **headers: str | int) -> Response:
        def respond(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), str(value))
            request.end_headers()
            request.wfile.write(body)

        return respond

    return make
