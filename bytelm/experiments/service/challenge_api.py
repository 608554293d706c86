"""The service over HTTP with the endpoints, keys and statuses of the byte-level challenge.

`POST /run` accepts `{"train_code": "…"}`, or a config as in bytelm's own protocol. docs/autoresearch/protocol.md has
both protocols side by side.
"""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import bytelm
from bytelm.config.text import BadText, read
from bytelm.config.untrusted_config import OWN_KEYS, OWN_OPTIONS
from bytelm.errors import StorageError
from bytelm.experiments.service.access import guard, read_body
from bytelm.experiments.service.challenge import LONGEST_CODE, SHORTEST_CODE, ChallengeService, NotPython
from bytelm.experiments.service.match import Busy, Unusable, UsedUp
from bytelm.experiments.service.pages import add_pages
from bytelm.experiments.service.paths import without_paths
from bytelm.experiments.service.program import whole

MOST_BYTES = 2_000_000  # of a body: 100,000 characters, each of which JSON can write with 12 bytes
CONFIG_KEYS = (*OWN_KEYS, *OWN_OPTIONS)


def app(service: ChallengeService, token: str | None = None) -> FastAPI:
    """Creates the service's pages.

    Args:
        service: The match.
        token: The token that requests must have; None: no token, but requests must come from this machine.
    """
    api = FastAPI(
        title="bytelm, with the challenge's protocol",
        version=bytelm.__version__,
        description="A training challenge: send programs or configs, and beat the baseline's val_bpb.",
        docs_url=None,  # FastAPI's page loads its scripts from another host
        redoc_url=None,
    )
    guard(api, token, "error")

    def left() -> dict[str, float]:
        return {"match_time_remaining_secs": round(service.match_time_remaining, 1)}

    def shared() -> dict[str, Any]:
        return {"corpus": service.setting.data.corpus.name, "seed": service.setting.seed, **left()}

    def active() -> dict[str, Any] | None:
        if (running := service.active) is None:
            return None
        return {"run_id": running[0], "status": "running", "elapsed_secs": round(running[1], 1)}

    @api.exception_handler(HTTPException)
    def not_answered(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @api.exception_handler(BadText)
    def bad(request: Request, error: BadText) -> JSONResponse:
        return _error(400, str(error))

    @api.exception_handler(Busy)
    def busy(request: Request, error: Busy) -> JSONResponse:
        return _error(409, str(error), active_run_id=service.active_run_id, status="running", **left())

    @api.exception_handler(Unusable)
    def unusable(request: Request, error: Unusable) -> JSONResponse:
        status = "syntax_error" if isinstance(error, NotPython) else "rejected"
        return _error(422, str(error), status=status, runs_remaining=service.runs_remaining, **left())

    @api.exception_handler(UsedUp)
    def used_up(request: Request, error: UsedUp) -> JSONResponse:
        return _error(429, str(error), runs_remaining=service.runs_remaining, **left())

    @api.exception_handler(StorageError)
    def full(request: Request, error: StorageError) -> JSONResponse:
        return _error(507, without_paths(str(error)))

    @api.get("/health", summary="Whether the service is available")
    def health() -> dict[str, Any]:
        return {"status": "ok", **shared()}

    @api.get("/baseline", summary="The program to beat, and the baseline's score")
    def baseline() -> dict[str, Any]:
        return {"train_code": service.baseline_code, "baseline_val_bpb": service.baseline_score, **shared()}

    @api.get("/prepare", summary="The module `prepare` that programs import")
    def prepare() -> dict[str, Any]:
        return {"source": service.prepare_code, **left()}

    @api.post("/run", status_code=202, summary="Train a program or a config", openapi_extra=BODY)
    async def run(request: Request) -> dict[str, Any]:
        service.check_free()
        sent = _sent(await read_body(request, MOST_BYTES))
        submit = service.submit_code if isinstance(sent, str) else service.submit
        run_id = await run_in_threadpool(submit, sent)  # type: ignore[arg-type]
        message = f"the run has started; GET /runs/{run_id} shows when it has ended"
        return {
            "run_id": run_id,
            "status": "running",
            "message": message,
            "runs_remaining": service.runs_remaining,
            **left(),
        }

    @api.get("/runs", summary="All runs that have ended, the active one, and the remaining runs and time")
    def runs() -> dict[str, Any]:
        ended = service.challenge_runs()
        now = active()
        return {
            "runs": ended,
            "active_run": now,
            "total_runs": len(ended) + (now is not None),
            "runs_remaining": service.runs_remaining,
            "best_val_bpb": min((run["val_bpb"] for run in ended if run["val_bpb"] is not None), default=None),
            **left(),
        }

    @api.get("/runs/{run_id}", summary="A run, and the end of its log")
    def report(run_id: str) -> JSONResponse:
        now = active()
        if now is not None and now["run_id"] == run_id:
            return JSONResponse({**now, "timeout_secs": whole(service.run_timeout), **left()})
        if (run := service.challenge_run(run_id, log=True)) is None:
            return _error(404, f"there is no run {run_id!r}; GET /runs lists them")
        return JSONResponse({**run, **left()})

    add_pages(api, service)
    return api


BODY = {
    "requestBody": {
        "required": True,
        "description": f"A program of up to {LONGEST_CODE} characters, or a config as for `python -m bytelm fit`.",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": {"train_code": "from prepare import …"}},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}


def _sent(body: bytes | None) -> str | bytes:
    """Returns a program as text, or a config as it was sent.

    Raises:
        BadText: The body is neither.
    """
    most = f"train_code: accepted: a text of {SHORTEST_CODE} to {LONGEST_CODE} characters"
    if body is None:
        raise BadText(f"the body is larger than {MOST_BYTES} bytes; {most}")
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):  # no JSON: a config as YAML, or a mistake
        try:
            sent = read(body.decode(), aliases=False)
        except UnicodeDecodeError as error:
            raise BadText(f"the body is not UTF-8 ({error.reason}); accepted: JSON with train_code") from error
    if isinstance(sent, dict) and "train_code" in sent:
        code = sent["train_code"]
        if not isinstance(code, str) or not SHORTEST_CODE <= len(code) <= LONGEST_CODE:
            size = f"has {len(code)} characters" if isinstance(code, str) else "is not a text"
            raise BadText(f"train_code {size}; accepted: {SHORTEST_CODE} to {LONGEST_CODE} characters")
        if beside := [str(key) for key in sent if str(key).partition(".")[0] in ("base", *CONFIG_KEYS)]:
            raise BadText(f"{beside[0]}: it cannot be used with train_code; accepted: a program, or a config")
        return code
    if not isinstance(sent, dict) or not any(str(key).partition(".")[0] in CONFIG_KEYS for key in sent):
        raise BadText(f"the body has no train_code; accepted: train_code, or a config with {', '.join(CONFIG_KEYS)}")
    return body


def _error(code: int, text: str, **more: Any) -> JSONResponse:
    text = text.encode(errors="backslashreplace").decode()  # the client's text may not be UTF-8
    return JSONResponse({"error": text, **more}, code)
