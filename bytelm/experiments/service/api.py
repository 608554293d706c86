"""The service over HTTP: FastAPI describes it (/docs), uvicorn serves it.

It listens only on this machine, unless requests need a token (access.py).
"""

import os
import socket
from contextlib import closing
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

import bytelm
from bytelm.config import shipped
from bytelm.config.checks import check_experiment
from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.text import BadText, read
from bytelm.config.untrusted_config import OWN_KEYS, OWN_OPTIONS
from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.memory_limit import can_be_watched, machine_memory
from bytelm.experiments.service import challenge_api
from bytelm.experiments.service.access import BODY_SECONDS, CLOSE, guard, read_body
from bytelm.experiments.service.challenge import DEFAULT_BASELINE, ChallengeService, is_own
from bytelm.experiments.service.connections import BoundedProtocol
from bytelm.experiments.service.match import Busy, Service, Unusable, UsedUp
from bytelm.experiments.service.match_folder import BASELINE
from bytelm.experiments.service.pages import add_pages
from bytelm.experiments.service.paths import without_paths
from bytelm.experiments.service.program import MEMORY
from bytelm.runs.score import RANKED, VAL_BPB, VAL_LOSS
from bytelm.units import MEMORY_UNITS, Duration, Size, check_time

TOKEN = "BYTELM_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 100_000  # of a config
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
    400: {"model": Problem, "description": "The body is not a config."},
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
        f"of {' and '.join(OWN_OPTIONS)}; everything else is as in the baseline. time_budget.limit is 180s by default, "
        "and at most the baseline's.",
        "content": {
            "application/yaml": {
                "schema": {"type": "string"},
                "example": "model:\n  gpt: {d_model: 80, n_layers: 3}\ntime_budget: {limit: 180s}\n",
            },
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


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

    guard(api, token, "detail")

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
        if (body := await read_body(request, MOST_BYTES)) is None:
            raise HTTPException(413, f"the config is larger than {MOST_BYTES} bytes", CLOSE)
        run_id = await run_in_threadpool(service.submit, body)
        return Accepted(
            run_id=run_id,
            status="running",
            runs_remaining=service.runs_remaining,
            match_time_remaining_secs=round(service.match_time_remaining, 1),
        )

    @api.get("/runs", summary="All runs, the best of them, and the remaining runs and time")
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
    protocol: Literal["bytelm", "challenge"] = "bytelm",
    allow_code: bool = False,
    baseline_code: str | None = None,
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
            does not count. Default: half of this machine's memory, and 1GiB for a program.
        score_baseline: Whether the baseline is trained first; this takes no run and no time of the match.
        protocol: `bytelm`, or `challenge`: the requests, the keys and the statuses of the byte-level challenge
            (docs/autoresearch/protocol.md). The match's time then begins with the service.
        allow_code: Whether Python programs of clients (`train_code`) are run, with protocol challenge. They run as
            this user, with limits but not in a sandbox.
        baseline_code: File of the program that clients get as the baseline, with protocol challenge. Default: bytelm's
            program for 00-baseline.yaml. For another baseline there is none, and --allow_code requires one.
    """
    check_time("match_time", match_time)
    check_time("run_timeout", run_timeout)
    check_experiment(study, "study")
    if memory_limit is not None and not can_be_watched():
        raise ConfigError("memory_limit", str(memory_limit), "the memory of processes is unknown on this system")
    if protocol != "challenge" and (allow_code or baseline_code is not None):
        key, value = ("allow_code", allow_code) if allow_code else ("baseline_code", baseline_code)
        raise ConfigError(key, value, f"accepted with --protocol challenge, not {protocol}")
    if allow_code and baseline_code is None and not is_own(baseline):
        code = "--baseline_code FILE, the program of this baseline, which clients get and change"
        raise ConfigError("baseline", baseline, f"accepted with --allow_code: {DEFAULT_BASELINE}, or {code}")
    if allow_code and not can_be_watched():
        raise ConfigError("allow_code", allow_code, "accepted on Linux: the limits of programs need /proc")
    program_memory = memory_limit or MEMORY
    if memory_limit is None and can_be_watched():
        memory_limit = Size(max(machine_memory().bytes // 2 // MEMORY_UNITS["MiB"], 1) * MEMORY_UNITS["MiB"])
    token = token or os.environ.get(TOKEN) or None
    os.environ.pop(TOKEN, None)  # runs do not need it
    if token is None and host not in LOOPBACK:
        accepted = f"accepted without a token: {', '.join(LOOPBACK)}; {TOKEN} sets one"
        raise ConfigError("host", host, f"other machines can reach it; {accepted}")
    match = (shipped.resolved(baseline), study, max_runs, match_time.value, run_timeout.value, memory_limit)
    service: Service = Service(*match)
    if protocol == "challenge":
        service = ChallengeService(
            *match, allow_code=allow_code, baseline_code=baseline_code, program_memory=program_memory
        )
    with closing(_listener(host, port)) as listener, service:
        service.open(score_baseline)
        pages = challenge_api.app(service, token) if isinstance(service, ChallengeService) else app(service, token)
        name = f"[{host}]" if ":" in host else host
        note(f"http://{name}:{listener.getsockname()[1]} is ready; it shows the match, and /docs describes the API")
        options = uvicorn.Config(
            pages,
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
        if isinstance(error, socket.gaierror):
            raise ConfigError("host", host, f"it is no address of this machine: {error.strerror}") from error
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
    flag = next(action for action in parser._actions if action.dest == "allow_code")
    flag.nargs, flag.const = "?", True  # `--allow_code` alone is true
    given = vars(parser.parse_args(args))
    given.pop("config")
    serve(**given)
