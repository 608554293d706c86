"""torchmetrics is loaded as far as it is used, and is then the usual package."""

import subprocess
import sys

PROGRAM = """
import sys
from bytelm.system import lazy_torchmetrics

lazy_torchmetrics.install()
from lightning.pytorch.core.module import Metric

loaded = [name for name in sys.modules if name.startswith("torchmetrics.")]
assert type(sys.modules["torchmetrics"]).__name__ == "_Waiting", "Lightning has loaded all of it"
assert not any(name.startswith(("torchmetrics.functional", "scipy", "transformers")) for name in sys.modules), loaded

import torchmetrics
import torchmetrics.classification.accuracy as module  # a module, before anything else of the package
from torchmetrics.classification import accuracy

assert accuracy is module is sys.modules["torchmetrics.classification.accuracy"]
assert module.__spec__.loader.get_filename(module.__name__) == module.__file__
assert torchmetrics.Metric is Metric
assert issubclass(torchmetrics.Accuracy, Metric)
assert issubclass(torchmetrics.MeanMetric, Metric)
assert len([name for name in sys.modules if name.startswith("torchmetrics.functional")]) > 50
assert type(torchmetrics).__name__ == "module"
try:
    torchmetrics.nothing
except AttributeError:
    print("done")
"""


def test_lightning_loads_three_modules_of_torchmetrics_and_users_get_all():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ended.stdout == "done\n", ended.stderr
