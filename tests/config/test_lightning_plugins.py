"""Plugins and profilers that cannot work are rejected before they are made; values without a text are left out."""

import json

import pytest

from bytelm.config.lightning_plugins import check_plugins
from bytelm.config.unserialized import dumped, written_out
from bytelm.errors import ConfigError

SLURM = "lightning.pytorch.plugins.environments.SLURMEnvironment"
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS")


def test_an_environment_of_a_launcher_needs_the_launcher(monkeypatch):
    for variable in SRUN:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=r"^trainer.plugins: 'SLURMEnvironment' .*srun starts.*SLURM_PROCID"):
        check_plugins({"plugins": [{"class_path": "my.Plugin"}, {"class_path": SLURM}]})
    for variable in SRUN:
        monkeypatch.setenv(variable, "0")
    check_plugins({"plugins": {"class_path": SLURM}})


def test_a_class_of_the_users_with_the_same_name_is_its_own():
    check_plugins({"plugins": {"class_path": "mine.FSDPPrecision"}, "profiler": {"class_path": "mine.XLAProfiler"}})
    with pytest.raises(ConfigError, match="XLAProfiler"):
        check_plugins({"profiler": {"class_path": "lightning.pytorch.profilers.XLAProfiler"}})


def test_values_that_cannot_be_written_are_their_text_or_the_default():
    mark = "Unable to serialize instance "
    plain = {"a": [{"device": f"{mark}cpu", "function": f"{mark}<function f>", "n": 1}], "text": "as it is"}
    assert written_out(plain) == {"a": [{"device": "cpu", "n": 1}], "text": "as it is"}


def test_a_config_with_a_device_by_default_is_written_and_read_again(recwarn):
    from jsonargparse import ArgumentParser
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    parser = ArgumentParser()
    parser.add_class_arguments(StochasticWeightAveraging, "swa")
    config = parser.parse_args(["--swa.swa_lrs", "0.1"])
    text = dumped(lambda: parser.dump(config, format="json"))
    assert not recwarn
    plain = written_out(json.loads(text))
    assert plain["swa"]["device"] == "cpu"
    parser.parse_object(plain)
