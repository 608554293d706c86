"""Postponed packages: Lightning is imported without them, and their first use finds them as they are otherwise.

They are private to Lightning and torch in part: a new version that takes other names of them fails here.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bytelm
from bytelm.system.postponed import NAMES

CODE = """
import inspect, json, sys
from bytelm.system.postponed import NAMES, is_loaded, postpone

postpone()
import lightning.pytorch
import torch
from lightning.fabric import wrappers
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.model_summary import model_summary

seen = {}
layer = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(layer.parameters())
layer(torch.ones(2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
seen["is optimized"] = isinstance(layer, wrappers.OptimizedModule)
import torchmetrics
seen["version"] = torchmetrics.__version__
seen["is a metric"] = issubclass(torchmetrics.Metric, torch.nn.Module) and torchmetrics.MetricCollection is not None
seen["postponed"] = [name for name in NAMES if not is_loaded(name)]
names = {name.partition(".")[0] for name in sys.modules}
seen["loaded"] = sorted(names & {"transformers", "matplotlib", "scipy", "sympy"})

metric = torchmetrics.Metric
seen["initialised"] = torchmetrics.Accuracy.__name__, torchmetrics.Metric is metric, is_loaded("torchmetrics")
seen["version then"] = torchmetrics.__version__
import torchmetrics.utilities.plot as plot
seen["plot"] = inspect.signature(plot.plot_single_or_multi_val).parameters.keys() >= {"val", "ax"}
seen["plot of Metric"] = callable(sys.modules["torchmetrics.metric"].plot_single_or_multi_val)
with model_summary.FlopCounterMode(display=False) as counter:
    torch.ones(2, 3) @ torch.ones(3, 4)
seen["flops"] = counter.get_total_flops()

calls = []


@torch._dynamo.disable
def early(x):
    calls.append(torch.compiler.is_compiling())
    return x + 1

@torch.compile(backend="eager")
def compiled(x):
    return early(x.sin()).cos()

x = torch.linspace(0, 1, 5)
seen["result"] = torch.equal(compiled(x), (x.sin() + 1).cos())
seen["compiler"] = is_loaded("torch._dynamo")
seen["calls"] = calls
model = torch.compile(layer)
seen["is optimized then"] = isinstance(model, wrappers.OptimizedModule), isinstance(layer, wrappers.OptimizedModule)
marks = set(vars(torch._dynamo.disable(lambda: None)))
seen["unmarked"] = [
    name for name, function in {"early": early, "log": _ResultCollection.log}.items() if marks - set(vars(function))
]
seen["left out"] = torch.optim.Optimizer.zero_grad.__wrapped__.__dict__.get("__dynamo_disable") is None
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen():
    finished = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def test_lightning_is_imported_without_the_packages(seen):
    assert seen["postponed"] == [*NAMES]
    assert seen["loaded"] == []


def test_names_that_lightning_takes_stand_for_themselves(seen):
    assert seen["is a metric"]
    assert seen["is optimized"] is False
    assert seen["version"] == seen["version then"]


def test_other_names_initialise_the_package(seen):
    assert seen["initialised"] == ["Accuracy", True, True]
    assert seen["plot"]
    assert seen["plot of Metric"]
    assert seen["flops"] == 2 * 2 * 3 * 4


def test_the_compiler_leaves_out_functions_that_were_disabled_before_it_was_loaded(seen):
    assert seen["result"]
    assert seen["compiler"]
    assert seen["calls"] == [False]  # it was called outside of the graph
    assert seen["unmarked"] == []
    assert seen["left out"]
    assert seen["is optimized then"] == [True, False]


def test_no_code_takes_a_postponed_package_for_a_loaded_one():
    package = Path(bytelm.__file__).parent
    texts = {path: path.read_text() for folder in (package, package / "callbacks") for path in folder.rglob("*.py")}
    assert any(path.name == "warm_up.py" for path in texts)
    asks = re.compile("|".join(rf'"{re.escape(name)}" (not )?in sys.modules' for name in NAMES))
    asking = [path for path, text in texts.items() if asks.search(text)]
    assert asking == []  # is_loaded says it
