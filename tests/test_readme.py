"""The README's examples run as they stand, and its map of the tree is true."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n# (\w+\.py): (.*?)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("file", "options", "code"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_an_example_runs_and_is_short(run, file, options, code):
    assert len(code.strip().splitlines()) < 15
    Path(file).write_text(code)
    run(*options.split())
    assert Path("runs/tiny/version_0/record.json").exists()


def test_there_is_an_example_of_a_callback_a_part_and_a_schedule():
    assert [file for file, _, _ in EXAMPLES] == ["my_callbacks.py", "my_parts.py", "my_schedules.py"]


def test_the_five_runs_and_their_report_can_be_had_by_copying(monkeypatch):
    pytest.importorskip("optuna")
    from bytelm.cli import build
    from bytelm.experiments import runner

    block = re.search(r"```bash\n([^`]* experiments [^`]*)```", README)[1].replace("\\\n", " ")
    install, experiments, report = [shlex.split(line) for line in block.strip().splitlines()]
    assert install[-1] == ".[experiments]"
    seen = []
    monkeypatch.setattr(runner, "Study", lambda name, plan, *rest: seen.append((name, plan)))
    monkeypatch.setattr(runner, "Runner", lambda *rest: SimpleNamespace(run=lambda: 0))
    monkeypatch.chdir(PROJECT)
    with pytest.raises(SystemExit):
        runner.main(experiments[experiments.index("experiments") + 1 :])
    ((study, plan),) = seen
    assert len(plan.grid()) == 5
    for task in plan.grid():
        build(task.fit_options, run=False)
    assert report[-2:] == ["report", f"runs/{study}"]


def test_every_path_that_is_named_exists():
    named = set(re.findall(r"`((?:bytelm|callbacks|configs|scripts|docs|tests)/[\w./-]*)`", README))
    named |= set(re.findall(r"\]\((docs/[\w./-]+)\)", README))
    assert len(named) > 15
    assert [path for path in sorted(named) if not (PROJECT / path).exists()] == []


def test_every_part_that_is_named_is_known():
    import bytelm.cli  # noqa: F401
    from bytelm.parts import attention, block, embedding, feedforward, init, memory, norm, position

    for row in re.findall(r"^\| `\w+` \| (\*\*.*?) \| `bytelm/parts/", README, re.MULTILINE):
        names = re.findall(r"\b[A-Z]\w+", re.sub(r"`.*?`|\(.*?\)", "", row))
        modules = (attention, block, embedding, feedforward, init, memory, norm, position)
        assert [name for name in names if not any(hasattr(module, name) for module in modules)] == []
