"""Imports point one way: from the commands down to parts and system."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bytelm"
# From the bottom. A module imports from its own layer and from those below, also inside functions. A module that is not
# in the table is in the layer of the package that it is in.
LAYERS = (
    ("bytelm", "bytelm.system", "bytelm.errors", "bytelm.units", "bytelm.budget", "bytelm.changes", "bytelm.clock"),
    ("bytelm.config", "bytelm.schedules"),
    ("bytelm.kernels", "bytelm.parts"),
    ("bytelm.gpt",),
    ("bytelm.optim", "bytelm.metrics", "bytelm.data", "bytelm.row_threads"),
    (
        "bytelm.language_model",
        "bytelm.strategies",
        "bytelm.sharded_step",
        "bytelm.hosts",
        "bytelm.precision",
        "bytelm.log_steps",
        "bytelm.ranks",
    ),
    ("bytelm.runs",),
    ("bytelm.callbacks",),
    ("bytelm.inference", "bytelm.trainer_options"),
    ("bytelm.run_callbacks", "bytelm.run_checkpoint", "bytelm.run_trainer", "bytelm.lightning_output"),
    ("bytelm.cli", "bytelm.train_objects"),
    ("bytelm.train",),
    ("bytelm.experiments",),
    ("bytelm.program", "bytelm.completion", "bytelm.__main__"),
)
HEAVY = ("lightning", "pytorch_lightning", "tensorboard", "torchmetrics", "optuna", "fastapi", "torch._dynamo", "sympy")
FILES = {
    ".".join(("bytelm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for folder in (PACKAGE, PACKAGE / "callbacks")  # a link, which rglob does not follow
    for path in folder.rglob("*.py")
}


def layer_of(module):
    names = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    name = next(name for name in prefixes if name in names)
    assert name != "bytelm" or module == "bytelm", f"{module} is in no layer; add it to LAYERS"
    return names[name]


def imports_of(module):
    """The modules of bytelm that a module imports, anywhere in it but for type checkers, each with its line."""
    tree = ast.parse(FILES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno}: a relative import"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in submodules]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.partition(".")[0] == "bytelm")


# Imports each module in a fork of a process that has imported nothing, or torch, which takes seconds.
IMPORTS = """
import json, os, sys
if sys.argv[1]:
    __import__(sys.argv[1])
for module in sys.argv[2:]:
    if os.fork() == 0:
        __import__(module)
        print(json.dumps([module, *sys.modules]), flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{module} cannot be imported")
"""


def loaded(modules, before=""):
    """Names of all modules that are loaded once a program has imported one, for each of these."""
    command = [sys.executable, "-c", IMPORTS, before, *modules]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return {module: names for module, *names in map(json.loads, lines)}


def test_no_import_climbs():
    climbing = [
        f"{FILES[module]}:{line}: {module} imports {name}"
        for module in FILES
        for name, line in imports_of(module)
        if layer_of(name) > layer_of(module)
    ]
    assert climbing == []


def test_no_modules_import_each_other():
    graph = {module: {name for name, _ in imports_of(module) if name != module} for module in FILES}
    left = dict(graph)
    while ends := [module for module, names in left.items() if not names & left.keys()]:
        for module in ends:
            del left[module]
    assert {module: sorted(names & left.keys()) for module, names in left.items()} == {}


def test_the_network_is_plain_torch():
    for module in FILES:
        if module.startswith(("bytelm.gpt", "bytelm.kernels", "bytelm.parts", "bytelm.system")):
            tree = ast.parse(FILES[module].read_text())
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {"lightning", "torchmetrics"} & {name.partition(".")[0] for name in names}, FILES[module]


OF_NETWORKS = (
    *("bytelm.gpt", "bytelm.parts.loss", "bytelm.optim", "bytelm.data.tokenizer", "bytelm.data.tokenize"),
    *("bytelm.runs.checkpoints", "bytelm.inference.load", "bytelm.inference.generate", "bytelm.inference.convert"),
    "bytelm.inference.model",
)
WITHOUT_TORCH = ("bytelm", "bytelm.program", "bytelm.runs.ledger", "bytelm.runs.record", "bytelm.config.command")


@pytest.fixture(scope="module")
def loaded_of_networks():
    return loaded(OF_NETWORKS, before="torch")


@pytest.fixture(scope="module")
def loaded_without_torch():
    return loaded(WITHOUT_TORCH)


@pytest.mark.parametrize("module", OF_NETWORKS)
def test_a_network_is_loaded_without_lightning_or_the_compiler(module, loaded_of_networks):
    modules = loaded_of_networks[module]
    assert module in modules
    assert [name for name in HEAVY if name in modules] == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_reading_records_and_listing_commands_loads_no_torch(module, loaded_without_torch):
    modules = loaded_without_torch[module]
    assert module in modules
    assert [name for name in (*HEAVY, "torch", "numpy") if name in modules] == []
