"""The commands and the Python code of the documentation: bytelm accepts each of them, and those of newcomers are run.

A command stands in a block of `bash`, after a `$` in a block of `console`, or in an indented block. Commands of bytelm
and of its scripts are parsed with their options and values, by their own parsers. EXCEPTIONS has all other programs.
"""

import argparse
import re
import shlex
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import docs_pages
import jsonargparse
import pytest
from thinned import thinned

from bytelm.cli import BytelmCLI, build
from bytelm.program import COMMANDS, main

EXCEPTIONS = {
    "python3": "makes an environment; .ci/run does it",
    "pip": "the names of the extras are checked below",
    ".ci/run": "runs these tests",
    "scripts/long_tests.sh": "runs tests",
    "python -m pytest": "runs tests",
    "curl": "tests/experiments/test_service.py sends such requests",
    "tensorboard": "a program of TensorBoard",
    "sbatch": "needs SLURM",
    "sudo": "changes the system",
    "echo": "a part of a command with sudo",
    "tee": "a part of a command with sudo",
}
PROGRAMS = ("python", "torchrun", "bytelm", *EXCEPTIONS)
EXTRAS = re.compile(r"\.\[(\w+)\]")
PYTHON_BLOCKS = {  # pages, and the tests that run their blocks; examples with a file name run in test_docs.py
    "README.md": "test_readme.py",
    "docs/tutorial.md": "test_docs.py",
    "docs/guides/python.md": "test_docs.py",
    "docs/guides/trained-models.md": "below",
    "docs/schedules.md": "below",
    "docs/time-budget.md": "below",
}


class Parsed(BaseException):
    """Ends a program after its arguments were parsed."""


@cache
def commands(page):
    """The commands of a page, each as its words."""
    lines = [line for block in docs_pages.blocks(page, "bash") for line in joined(block)]
    for block in docs_pages.blocks(page, "console"):
        lines += [line[2:] for line in joined(block) if line.startswith("$ ")]
    for block in re.findall(r"(?:^ {4}.*\n)+", docs_pages.prose(page), re.MULTILINE):
        lines += [line.strip() for line in joined(block) if re.match(r" *(\w+=\S+ )?(python|bytelm|pip) ", line)]
    return [words for line in lines for words in parts(line)]


def joined(block):
    """The lines of a block; one that ends in a backslash, or in a quoted text, goes on in the next one."""
    lines = [""]
    for line in block.replace("\\\n", " ").splitlines():
        if lines[-1].startswith(("$ ", "python ")) and lines[-1].count("'") % 2:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return lines[1:]


def parts(line):
    """The commands of a line that are joined by &&, | or &; brackets around optional arguments are left out."""
    words = shlex.split(re.sub(r"\[(-- [^\]]*)\]", r"\1", line), comments=True)
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    part = []
    for word in [*words, "&&"]:
        if word in ("&&", "|", "&"):
            if part:
                yield part
            part = []
        else:
            part.append(word)


def found(program):
    """All commands of the documentation that begin with a program; those of bytelm and Python as their arguments."""
    for page in docs_pages.FILES:
        for number, words in enumerate(commands(page)):
            words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
            if words[0] == "torchrun":
                words = ["python", *words[words.index("-m") :]]
            if words[:3] == ["python", "-m", "bytelm"]:
                words = ["bytelm", *words[3:]]
            name = " ".join(words[:3] if words[:2] == ["python", "-m"] else words[:1])
            if name == program:
                yield pytest.param(words[1:], id=f"{page}-{number}")


def test_all_programs_are_known():
    known = {param.id for program in (*PROGRAMS, "bytelm") for param in found(program)}
    everything = {f"{page}-{number}" for page in docs_pages.FILES for number, _ in enumerate(commands(page))}
    assert sorted(everything - known) == []
    assert len(known) > 60


@pytest.fixture
def stand_ins(folder, monkeypatch):
    """Makes the configs and runs that a command names, as copies of tiny.yaml; replaces placeholders and patterns."""
    config = (folder / "tiny.yaml").read_text()
    (folder / "configs").symlink_to(docs_pages.PROJECT / "configs")

    def stand_ins(words):
        replaced = []
        for word in words:
            if "*" in word:
                replaced += sorted(str(path) for path in docs_pages.PROJECT.glob(word))
                continue
            if word.startswith("--print_config"):  # would print it, and end
                continue
            word = word.replace("…", "tiny.yaml")
            file = Path(word)
            if file.suffix == ".yaml" and not (docs_pages.PROJECT / file).exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(config)
            if re.fullmatch(r"runs/\S+/version_\d+", word):
                (file / "checkpoints").mkdir(parents=True, exist_ok=True)
                (file / "checkpoints/best.ckpt").touch()
                (file / "config.yaml").write_text(config)
            replaced.append(word)
        return replaced

    return stand_ins


@pytest.fixture
def parsed(monkeypatch):
    """Runs a function until it has parsed its arguments."""

    def ending(original):
        def parse_args(self, *args, **kwargs):
            raise Parsed(original(self, *args, **kwargs))

        return parse_args

    def parsed(function, *args):
        with pytest.MonkeyPatch.context() as patch:
            for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
                patch.setattr(parser, "parse_args", ending(parser.parse_args))
            with pytest.raises(Parsed):
                function(*args)

    return parsed


@pytest.mark.parametrize("words", thinned(found("bytelm"), keep=20))
def test_bytelm_accepts_the_command(words, stand_ins, parsed, monkeypatch):
    def stop(cli):
        raise Parsed

    command, *options = stand_ins(words)
    (known,) = [each for each in COMMANDS if each.name == command]
    if known.with_name:
        monkeypatch.setattr(BytelmCLI, "before_instantiate_classes", stop)
        with pytest.raises(Parsed):
            build([command, *options])
        return
    if known.extra:
        try:
            import_module(known.module)
        except ModuleNotFoundError:
            pytest.skip(f"needs the extra {known.extra}")
    if "--" in options:  # of runs
        fit = options[options.index("--") + 1 :]
        monkeypatch.setattr(BytelmCLI, "before_instantiate_classes", stop)
        options = options[: options.index("--")]
        with pytest.raises(Parsed):
            build(["fit", "--config", "tiny.yaml", *fit])
    parsed(getattr(import_module(known.module), known.function), options)


@pytest.mark.parametrize("words", found("python"))
def test_a_script_accepts_the_command(words, stand_ins, parsed, monkeypatch):
    path, *options = words
    folder = Path(__file__).parents[1] / Path(path).parent
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])  # as Python does for a script
    script = import_module(path.removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", [path, *stand_ins(options)])
    parsed(script.main)


@pytest.mark.parametrize("words", found("pip"))
def test_extras_exist(words):
    project = docs_pages.read(Path("pyproject.toml")).partition("[project.optional-dependencies]")[2]
    for name in EXTRAS.findall(" ".join(words)):
        assert re.search(rf"^{name} = \[", project, re.MULTILINE)


def test_the_readmes_commands_run_in_their_order(folder, capsys, monkeypatch):
    Path("configs").mkdir()
    file = "configs/quickstart.yaml"
    Path(file).write_text((folder / "tiny.yaml").read_text())
    first = docs_pages.blocks(Path("README.md"), "bash")[0]
    shown = [words for line in joined(first) for words in parts(line) if "bytelm" in words]
    for block in docs_pages.blocks(Path("README.md"), "console"):
        shown += [words for line in joined(block) if line.startswith("$ ") for words in parts(line[2:])]
    assert len(shown) == 8
    for words in shown:
        # The tiny config in the place of the shipped one, whose runs take a minute.
        options = [file if word == "quickstart" else word for word in words[words.index("bytelm") + 1 :]]
        if "--time_budget.limit" in options:
            options[options.index("--time_budget.limit") + 1] = "3 steps"
        main(options)
    out = capsys.readouterr().out
    assert "def " in out
    assert out.count("val_bpb: ") >= 5
    assert "ledger" in out


def test_blocks_of_python_have_a_test():
    pages = {
        page.as_posix()
        for page in docs_pages.FILES
        for block in docs_pages.blocks(page, "python")
        if not re.match(r"# \w+\.py: ", block)
    }
    assert pages == PYTHON_BLOCKS.keys()


def test_code_about_time_budgets_and_schedules_runs(tmp_path, monkeypatch):
    import lightning.pytorch
    import torch

    from bytelm.callbacks import Schedules, TimeBudget

    monkeypatch.chdir(tmp_path)

    class Line(lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch):
            return self.layer(batch["x"]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    examples = [{"x": torch.ones(1), "attention_mask": torch.ones(3)}] * 4
    loader = torch.utils.data.DataLoader(examples, batch_size=2)
    first, second = docs_pages.blocks(Path("docs/time-budget.md"), "python")
    (third,) = docs_pages.blocks(Path("docs/schedules.md"), "python")
    names = {"model": Line(), "loader": loader, "lightning": lightning}
    quiet = "max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False, "
    exec(first.replace("10m", "3 steps").replace("max_epochs=-1, ", quiet), names)
    assert TimeBudget.of(names["trainer"]).steps == 3
    assert names["trainer"].optimizers[0].param_groups[0]["lr"] < 0.1
    exec(second, names)
    assert names["Model"]().count_tokens(next(iter(loader))) == 6
    exec(third, names)
    assert any(isinstance(callback, Schedules) for callback in names["trainer"].callbacks)


def test_code_about_trained_models_runs(trained, capsys):
    (block,) = docs_pages.blocks(Path("docs/guides/trained-models.md"), "python")
    exec(block.replace("runs/quickstart", "runs/tiny"), {})
    assert float(capsys.readouterr().out.split()[-1]) > 0
