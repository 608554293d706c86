"""ChallengeService: a match by the rules of the byte-level challenge, and its runs with the challenge's keys.

Differences from Service: a run can be a program (`train_code`); the seed is the baseline's for all runs; the match's
clock starts with the service, after the baseline has its score.
"""

import sys
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from bytelm.config import shipped
from bytelm.errors import ConfigError
from bytelm.experiments.job import LOG, tail
from bytelm.experiments.service.match import Busy, Service, Unusable, finite
from bytelm.experiments.service.match_folder import BASELINE
from bytelm.experiments.service.paths import without_paths
from bytelm.experiments.service.program import MEMORY, ON_PATH, ProgramJob, Setting, syntax_error, whole
from bytelm.runs.score import VAL_BPB
from bytelm.units import Size

SHORTEST_CODE, LONGEST_CODE = 50, 100_000  # characters
LOG_CHARACTERS = 5000
FIGURES = ("train_loss", "total_steps", "num_params_M")
DEFAULT_BASELINE = Path("configs", "autoresearch", "00-baseline.yaml")  # the network of on_path/baseline.py


def is_own(baseline: str) -> bool:
    """Returns whether a baseline is the one that bytelm has a program for.

    Args:
        baseline: Config file of the baseline, or its name as a shipped config.
    """
    return Path(shipped.resolved(baseline)).parts[-3:] == DEFAULT_BASELINE.parts


class NotPython(Unusable):
    """The program has a syntax error."""


class ChallengeService(Service):
    """A match of the challenge. Use it in a `with` block, which ends the current run.

    Args:
        options: The arguments of Service.
        allow_code: Whether programs are accepted.
        baseline_code: File of the program that clients are given; None: bytelm's, if the baseline is bytelm's too.
        program_memory: Maximum memory of a program.
    """

    def __init__(
        self,
        *options: Any,
        allow_code: bool = False,
        baseline_code: str | None = None,
        program_memory: Size = MEMORY,
    ) -> None:
        super().__init__(*options)
        self.allow_code = allow_code
        self.program_memory = program_memory
        self.baseline_code = self._read_code(baseline_code)
        self.prepare_code = (ON_PATH / "prepare.py").read_text(encoding="utf-8")
        self.setting: Setting

    def _read_code(self, file: str | None) -> str | None:
        if file is None:
            return (ON_PATH / "baseline.py").read_text(encoding="utf-8") if is_own(self.baseline) else None
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("baseline_code", file, f"accepted: a file with a Python program ({error})") from error

    def open(self, score_baseline: bool = True) -> None:
        """As Service.open; also waits until the baseline has its score, and starts the match's clock."""
        super().open(score_baseline)
        if (training := self._training) is not None:
            training.watcher.join()
        self._begin()

    def _keep_baseline(self, config: Mapping[str, Any]) -> None:
        self.setting = Setting.of(dict(config))
        if self.allow_code and self.setting.time_budget is None:
            limit = config["time_budget"]["limit"]
            raise ConfigError("time_budget.limit", limit, "accepted in the baseline with --allow_code: a time (180s)")
        if self.allow_code and (least := self.setting.time_budget or 0.0) >= self.run_timeout:
            reason = f"programs train for {least:g}s, the baseline's time_budget.limit; accepted: a longer time"
            raise ConfigError("run_timeout", f"{self.run_timeout:g}s", reason)
        super()._keep_baseline(config)

    # Submitted configs and programs

    def check_free(self) -> None:
        if self._busy is not None:  # first: the last run may be the active one
            raise Busy(self._busy)
        super().check_free()

    @property
    def active_run_id(self) -> str:
        """The run that a client has to wait for; of a config that is being checked, the run that it may become."""
        return self.next_run_id if (training := self._training) is None else training.run_id

    def submit_code(self, code: str) -> str:
        """Starts a program, and returns the name of its run.

        Args:
            code: The program.

        Raises:
            Rejection: The program is not started; the subclass gives the reason.
            StorageError: A folder is not writable.
        """
        if not self.allow_code:
            raise Unusable(
                "train_code: programs are not accepted here; send a config, or start the service with --allow_code"
            )
        with self._checking("another program is being compiled"):
            if (reason := syntax_error(code)) is not None:
                python = f"{sys.version_info.major}.{sys.version_info.minor}"
                raise NotPython(f"train_code: it is not a program for Python {python}: {reason}")
            return self._accept(".py", code, partial(self._program_job, code))

    def _program_job(self, code: str, run_id: str, timeout: float) -> ProgramJob:
        return ProgramJob(code, self.folder.path / run_id, self.setting, timeout, self.program_memory)

    def _resolve(self, config: Mapping[Any, Any]) -> dict[str, Any]:
        resolved = super()._resolve({"seed_everything": self.setting.seed, **config})
        given = resolved.get("seed_everything"), (resolved["data"].get("init_args") or {}).get("seed")
        fixed = self.setting.seed, self.setting.data.seed
        for key, value, wanted in zip(("seed_everything", "data.seed"), given, fixed, strict=True):
            if value != wanted:
                raise Unusable(str(ConfigError(key, value, f"accepted: {wanted!r}, which is fixed for all runs")))
        return resolved

    # Runs with the challenge's keys

    @property
    def baseline_score(self) -> float | None:
        return None if (run := self._ended.get(BASELINE)) is None else VAL_BPB.of(run.record)

    def challenge_runs(self) -> list[dict[str, Any]]:
        """Returns the ended runs in brief, in order."""
        keys = ("run_id", "status", "val_bpb", "training_time_secs", "num_params_M", "error")
        ended = [self.challenge_run(run_id) or {} for run_id in list(self._accepted) if run_id in self._ended]
        return [{key: run.get(key) for key in keys} for run in ended]

    def challenge_run(self, run_id: str, log: bool = False) -> dict[str, Any] | None:
        """Returns a run that has ended; None if there is none of that name.

        Args:
            run_id: `run-N`, or `baseline`.
            log: Whether to add the end of its log, without paths of this machine.
        """
        if (run := self._ended.get(run_id)) is None:
            return None
        record = run.record
        status = run.status if run.status in ("completed", "timeout") else "error"
        seconds = record.get("total_time_secs")
        if seconds is not None and status == "timeout":
            seconds = whole(min(seconds, self.run_timeout))
        return {
            "run_id": run_id,
            "status": status,
            "val_bpb": VAL_BPB.of(record),
            **({key: finite(record.get(key)) for key in FIGURES} if status == "completed" else {}),
            "training_time_secs": None if seconds is None else round(seconds, 2),
            "error": None if status == "completed" else without_paths(record.get("reason") or run.status),
            "submitted_at": datetime.fromisoformat(record["ended_at"]).timestamp(),
            **({"logs": self._log(run_id)} if log else {}),
        }

    def _log(self, run_id: str) -> str:
        return without_paths(tail(self.folder.path / run_id / LOG, LOG_CHARACTERS))
