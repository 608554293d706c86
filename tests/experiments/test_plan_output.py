"""The files of a plan."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.experiments.plan.output import _recommended
from bytelm.runs.score import VAL_BPB
from bytelm.units import Duration


def test_the_recommended_config_has_every_option_of_its_candidate():
    candidate = (("model.optimizer.lr", "0.01"), ("config", "more.yaml"), ("model.optimizer", "Adam"), ("a.b", "[1]"))
    best = SimpleNamespace(candidate=candidate, score=3.0)
    result = SimpleNamespace(best=best, budget=Duration(160.0, "seconds"), run=None, score=VAL_BPB)
    text = _recommended(result, Path("runs/plan-c"), "c.yaml", "the command")
    assert "# the command\n" in text
    assert "val_bpb 3.0000, predicted" in text
    assert yaml.safe_load(text) == {
        "base": ["../../c.yaml", "../../more.yaml"],
        "model": {"optimizer": "Adam", "optimizer.lr": 0.01},
        "a": {"b": [1]},
        "time_budget": {"limit": "160s"},
    }
