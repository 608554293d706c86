"""Plugins and profilers that cannot work are rejected before they are made."""

import pytest

from bytelm.errors import ConfigError
from bytelm.trainer_options.plugins import check_plugins

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
