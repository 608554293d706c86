"""Runs on several hosts: the message while they wait, and the rejection of a run that cannot find the others."""

import pytest


@pytest.fixture(autouse=True)
def _no_address(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_several_hosts_without_an_address_are_rejected(rejected):
    line = rejected("--trainer.num_nodes=2")
    assert line.startswith(
        "bytelm: error: trainer.num_nodes: 2 cannot be used; MASTER_ADDR and MASTER_PORT are not set"
    )
    assert "torchrun" in line


def test_hosts_that_do_not_come_are_waited_for_and_named(folder):
    import os
    import socket
    import sys

    import programs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    strategy = "{class_path: DDPStrategy, init_args: {timeout: '0:00:01'}}"
    options = ["--trainer.num_nodes=2", f"--trainer.strategy={strategy}"]
    ended = programs.run(
        [sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml", *options],
        env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
    )
    assert ended.returncode == 7
    note, error = ended.stderr.splitlines()
    where = f"MASTER_ADDR 127.0.0.1, MASTER_PORT {port}"
    assert note == f"bytelm: note: host 0 waits for all 2 hosts, up to 1 s; {where}"
    assert error.startswith(f"bytelm: error: not all 2 processes came in 1 s; {where}")
    assert not (folder / "runs").exists()
