"""Connections with time limits: a client that is slow, or sends nothing, holds one only for seconds.

uvicorn limits the time between two requests. It does not limit the time in which a request arrives or an answer is
received, nor the number of connections.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0  # for a request's line and headers, or for receiving an answer and sending the next request
MOST_CONNECTIONS = 100


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with limits; each object is a connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        earlier = self.cycle
        super().data_received(data)
        if self.cycle is not earlier:  # a request has arrived; its body has its own limit (api.py)
            self._stop_clock()

    def on_response_complete(self) -> None:
        earlier = self.cycle
        self._start_clock()
        super().on_response_complete()
        if self.cycle is not earlier:  # the next request had already arrived
            self._stop_clock()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_clock()  # for the client to receive a part of the answer

    def resume_writing(self) -> None:
        self._stop_clock()
        super().resume_writing()

    def _start_clock(self) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
