"""The service over HTTP: FastAPI describes it (/docs), uvicorn serves it.

It listens only on this machine, unless requests need a token. Without a token, a web page that is open in a browser
here could still send requests to it: therefore requests for another host's name (DNS rebinding) and requests from
another host's pages are rejected.
"""

import asyncio
import base64
import hmac
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.middleware.trustedhost import TrustedHostMiddleware

import bytelm
from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.text import BadText, read
from bytelm.config.untrusted_config import OWN_KEYS, OWN_OPTIONS
from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.memory_limit import UNITS, Size, can_be_watched, machine_memory
from bytelm.experiments.service.connections import BoundedProtocol
from bytelm.experiments.service.match import Busy, Service, Unusable, UsedUp
from bytelm.experiments.service.match_folder import BASELINE
from bytelm.experiments.service.pages import add_pages
from bytelm.experiments.service.paths import without_paths
from bytelm.runs.folder import RUNS
from bytelm.runs.score import RANKED, VAL_BPB, VAL_LOSS
from bytelm.units import Duration

TOKEN = "BYTELM_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 100_000  # of a config
MOST_READ = 10_000_000  # of a body, and dropped: a client that is still sending would not see the answer
BODY_SECONDS = 30.0  # time for a body to arrive
STATUS: dict[type[Exception], int] = {BadText: 400, Busy: 409, Unusable: 422, UsedUp: 429, StorageError: 507}


class Problem(BaseModel):
    """The reason why a request was rejected."""

    detail: str


class Health(BaseModel):
    """The service is available."""

    status: str
    version: str


class Scored(BaseModel):
    """A run in brief; figures are null until they exist. A run without val_bpb has val_loss as an additional key."""

    model_config = ConfigDict(extra="allow")

    run_id: str
    status: str
    decision: str | None = None
    val_bpb: float | None = None
    total_steps: int | None = None
    num_params_M: float | None = None
    reason: str | None = None


class Baseline(Scored):
    """The config to beat: the text of its file, its contents, and its result."""

    text: str
    config: dict[str, Any]


class Accepted(BaseModel):
    """A run that has started."""

    run_id: str
    status: str
    runs_remaining: int
    match_time_remaining_secs: float


class Active(BaseModel):
    """The current run."""

    run_id: str
    elapsed_secs: float


class Best(BaseModel):
    """The run with the lowest score."""

    run_id: str
    val_bpb: float


class BestByLoss(BaseModel):
    """The run with the lowest score, if no run has a val_bpb."""

    run_id: str
    val_loss: float


class Runs(BaseModel):
    """The match so far."""

    runs: list[Scored]
    active: Active | None
    best: Best | BestByLoss | None
    runs_remaining: int
    match_time_remaining_secs: float


class Report(Scored):
    """A run in full: these keys, and all keys of its record.json."""

    elapsed_secs: float | None = None
    log: str


REJECTIONS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no config."},
    408: {"model": Problem, "description": f"The body did not arrive within {BODY_SECONDS:g} s."},
    409: {"model": Problem, "description": "Another run is being trained, or another config checked."},
    413: {"model": Problem, "description": f"The body is larger than {MOST_BYTES} bytes."},
    422: {"model": Problem, "description": "The config cannot run here. It does not count as a run."},
    429: {"model": Problem, "description": "No runs are left, or no time."},
    507: {"model": Problem, "description": "The disk of the service is full."},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": f"A config, as for `python -m bytelm fit`. It may contain {', '.join(OWN_KEYS)}, and some "
        f"of {' and '.join(OWN_OPTIONS)}; everything else is as in the baseline.",
        "content": {
            "application/yaml": {
                "schema": {"type": "string"},
                "example": "model:\n  gpt: {d_model: 80, n_layers: 3}\ntime_budget: {limit: 180s}\n",
            },
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


CLOSE = {"Connection": "close"}


def app(service: Service, token: str | None = None) -> FastAPI:
    """Creates the service's pages.

    Args:
        service: The match.
        token: The token that requests must have; None: no token, but requests must come from this machine.
    """
    api = FastAPI(
        title="bytelm",
        version=bytelm.__version__,
        description=f"A training challenge: send configs, and beat the baseline's score. {RANKED}",
        docs_url=None,  # FastAPI's page loads its scripts from another host
        redoc_url=None,
    )
    for error in STATUS:
        api.add_exception_handler(error, _reject)

    @api.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None and request.scope["path"] != "/health" and not _shows(request, token):
            # A browser asks its user for a password, and sends it as Basic.
            is_browser = "text/html" in request.headers.get("accept", "")
            wanted = {
                "WWW-Authenticate": 'Basic realm="bytelm: any name, the token as password"' if is_browser else "Bearer"
            }
            return JSONResponse({"detail": "accepted: Authorization: Bearer <token>"}, 401, wanted)
        if request.method == "POST" and _is_from_elsewhere(request):
            origin = request.headers["origin"]
            return JSONResponse({"detail": f"Origin: {origin!r} cannot be used; accepted: this service's pages"}, 403)
        return await answer(request)

    if token is None:
        api.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    @api.get("/health", summary="Whether the service is available")
    def health() -> Health:
        return Health(status="ok", version=bytelm.__version__)

    @api.get("/baseline", summary="The config to beat, and its score")
    def baseline() -> Baseline:
        known = service.report(BASELINE) or {"run_id": BASELINE, "status": "not scored"}
        return Baseline(**_in_short(known), text=service.baseline_text, config=read(service.baseline_text))

    @api.post("/run", status_code=202, summary="Train a config", responses=REJECTIONS, openapi_extra=BODY)
    async def run(request: Request) -> Accepted:
        service.check_free()
        run_id = await run_in_threadpool(service.submit, await _body(request))
        return Accepted(
            run_id=run_id,
            status="running",
            runs_remaining=service.runs_remaining,
            match_time_remaining_secs=round(service.match_time_remaining, 1),
        )

    @api.get("/runs", summary="All runs, the best of them, and what is left of the match")
    def runs() -> Runs:
        return Runs(
            runs=[Scored(**_in_short(report)) for report in service.runs()],
            active=None
            if (active := service.active) is None
            else Active(run_id=active[0], elapsed_secs=round(active[1], 1)),
            best=_best(service),
            runs_remaining=service.runs_remaining,
            match_time_remaining_secs=round(service.match_time_remaining, 1),
        )

    not_found: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such run."}}

    @api.get("/runs/{run_id}", summary="A run's record, and the end of its output", responses=not_found)
    def report(run_id: str) -> Report:
        if (known := service.report(run_id, log=True)) is None:
            raise HTTPException(404, f"there is no run {run_id!r}; GET /runs lists them")
        return Report(**_public(known))

    add_pages(api, service)
    return api


def _in_short(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a run's report that a list shows."""
    shown = set(Scored.model_fields)
    if report.get(VAL_BPB.name) is None and report.get(VAL_LOSS.name) is not None:
        shown.add(VAL_LOSS.name)
    return _public({key: value for key, value in report.items() if key in shown})


def _public(report: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's report without paths of this machine in the output of its process."""
    return {key: without_paths(value) if isinstance(value, str) else value for key, value in report.items()}


def _best(service: Service) -> Best | BestByLoss | None:
    if (run := service.best) is None or run.score is None:
        return None
    if run.ranked_by == VAL_LOSS:
        return BestByLoss(run_id=run.experiment, val_loss=run.score)
    return Best(run_id=run.experiment, val_bpb=run.score)


def _reject(request: Request, error: Exception) -> JSONResponse:
    text = without_paths(str(error)) if isinstance(error, StorageError) else str(error)
    text = text.encode(errors="backslashreplace").decode()  # the client's text may not be UTF-8
    return JSONResponse({"detail": text}, STATUS[type(error)])


def _shows(request: Request, token: str) -> bool:
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            shown = base64.b64decode(shown).decode("latin-1").partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.strip().encode("latin-1"), token.encode())


def _is_from_elsewhere(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


async def _body(request: Request) -> bytes:
    try:
        return await asyncio.wait_for(_read_body(request), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the config did not arrive within {BODY_SECONDS:g} s", CLOSE) from error


async def _read_body(request: Request) -> bytes:
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BYTES:
            body += part
        elif size > MOST_READ:
            break
    if size > MOST_BYTES:
        raise HTTPException(413, f"the config is larger than {MOST_BYTES} bytes", CLOSE)
    return bytes(body)


def serve(
    baseline: str = "configs/autoresearch/00-baseline.yaml",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    study: str = "service",
    max_runs: PositiveInt = 50,
    match_time: Duration = Duration(10_800, "seconds"),  # noqa: B008 (frozen)
    run_timeout: Duration = Duration(210, "seconds"),  # noqa: B008
    memory_limit: Size | None = None,
    score_baseline: bool = True,
) -> None:
    """Offers a training challenge over HTTP until the process is ended.

    Args:
        baseline: Config file of the run to beat. All runs use its corpus and device.
        host: Address to listen on. An address that other machines can reach requires a token.
        port: Port to listen on; 0 for a free one.
        token: Token that requests must have, as `Authorization: Bearer <token>`. Prefer the variable BYTELM_TOKEN, as
            other users of this machine can read command lines.
        study: Name of the match's folder in runs/; an existing match continues.
        max_runs: Maximum number of runs.
        match_time: Duration of the match, from the start of its first run. A run that is active at the end is ended.
        run_timeout: Maximum duration of a run, from start to end, before it is ended.
        memory_limit: Maximum memory of a run, or of the check of a config, before it is ended, such as 4GiB; GPU memory
            does not count. Default: half of this machine's memory.
        score_baseline: Whether the baseline is trained first; this takes no run and no time of the match.
    """
    for key, duration in (("match_time", match_time), ("run_timeout", run_timeout)):
        if duration.unit != "seconds" or not duration.value:
            raise ConfigError(key, str(duration), "accepted: a time (180s, 3m, 1h30m)")
    if not Path(study).parts or Path(study).is_absolute() or ".." in Path(study).parts:
        raise ConfigError("study", study, f"accepted: the name of a folder in {RUNS}/")
    if memory_limit is not None and not can_be_watched():
        raise ConfigError("memory_limit", str(memory_limit), "this system does not tell what memory processes use")
    if memory_limit is None and can_be_watched():
        memory_limit = Size(max(machine_memory().bytes // 2 // UNITS["MiB"], 1) * UNITS["MiB"])
    token = token or os.environ.get(TOKEN) or None
    os.environ.pop(TOKEN, None)  # runs do not need it
    if token is None and host not in LOOPBACK:
        accepted = f"accepted without a token: {', '.join(LOOPBACK)}; {TOKEN} sets one"
        raise ConfigError("host", host, f"other machines can reach it; {accepted}")
    with (
        closing(_listener(host, port)) as listener,
        Service(baseline, study, max_runs, match_time.value, run_timeout.value, memory_limit) as service,
    ):
        service.open(score_baseline)
        name = f"[{host}]" if ":" in host else host
        note(f"http://{name}:{listener.getsockname()[1]} is ready; it shows the match, and /docs describes the API")
        options = uvicorn.Config(
            app(service, token),
            http=BoundedProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(options).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """Returns a listening socket: a port that is in use is reported at once; requests wait until the service is ready.

    A bound socket is not sufficient: several sockets can be bound to a port before one of them listens.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError("port", port, f"the service cannot listen there on {host}: {error}") from error
    return listener


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `python -m bytelm serve`.
    """
    description = f"Offers a training challenge over HTTP: a baseline, runs, and time. {RANKED}"
    parser = CommandParser("serve", description=description)
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_function_arguments(serve)
    given = vars(parser.parse_args(args))
    given.pop("config")
    serve(**given)
