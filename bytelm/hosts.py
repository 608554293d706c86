"""Runs on several hosts: their requirements for finding each other, their waits, and the hosts that are missing."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from torch.distributed.constants import default_pg_timeout

from bytelm.errors import ConfigError, RankLost
from bytelm.system.process import ending_signals

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


def check(trainer: Trainer) -> None:
    """Rejects a run on several hosts without a known meeting address.

    Without the address, a host would wait for the others at its own address, until a timeout.

    Raises:
        ConfigError: Neither a launcher nor the environment names the address.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    missing = [name for name in ADDRESS if name not in os.environ]
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and missing:
        start = "start it on each host by torchrun, by SLURM, or with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        reason = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set in the environment; {start}"
        raise ConfigError("trainer.num_nodes", trainer.num_nodes, reason)


@contextmanager
def meeting(trainer: Trainer) -> Iterator[None]:
    """Context in which a run on several hosts reports its waits, can be interrupted, and names missing hosts.

    Raises:
        RankLost: Other hosts have not arrived in time.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and environment is not None:
        _let_signals_end(trainer)
        if environment.local_rank() == 0:
            host, hosts = environment.node_rank(), trainer.num_nodes
            text = f"host {host} waits for all {hosts} hosts, up to {_timeout(trainer):g} s; {_where(trainer)}"
            print(f"bytelm: note: {text}", file=sys.stderr, flush=True)
    try:
        yield
    except dist.DistError as error:
        if trainer.world_size == 1 or dist.is_initialized():
            raise
        reason = " ".join(str(error).partition("\n")[0].split())
        came = f"not all {trainer.world_size} processes came in {_timeout(trainer):g} s; {_where(trainer)} ({reason})"
        raise RankLost(came) from error


def _let_signals_end(trainer: Trainer) -> None:
    """Makes signals end the process while torch waits for others; Python would run its handlers only afterwards."""
    join = trainer.strategy.setup_environment

    def setup_environment() -> None:
        handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in ending_signals()}
        try:
            join()
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    trainer.strategy.setup_environment = setup_environment  # type: ignore[method-assign]


def _where(trainer: Trainer) -> str:
    environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    return f"MASTER_ADDR {environment.main_address}, MASTER_PORT {environment.main_port}"


def _timeout(trainer: Trainer) -> float:
    timeout = getattr(trainer.strategy, "_timeout", None) or default_pg_timeout
    return float(timeout.total_seconds())
