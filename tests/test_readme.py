"""The README is short, and its commands and examples run as they are."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import docs_pages
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

README = docs_pages.read(Path("README.md"))
EXAMPLES = docs_pages.examples(Path("README.md"))


def test_the_size_is_at_most_8_kb():
    assert len(README.encode()) <= 8_000


def test_it_links_all_pages():
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README))
    pages = [page.as_posix() for page in docs_pages.FILES if page.parts[0] == "docs"]
    assert [page for page in pages if "autoresearch/" not in page and page not in linked] == []
    assert "docs/autoresearch/README.md" in linked  # which links the others in its folder


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.file for example in EXAMPLES])
def test_an_example_runs_and_is_short(run, example):
    assert len(example.code.strip().splitlines()) < 15
    Path(example.file).write_text(example.code)
    run(*example.options.split())
    assert Path("runs/tiny/version_0/record.json").exists()
    if example.file == "my_callbacks.py":
        logged = EventAccumulator("runs/tiny/version_0").Reload()
        steps = [[event.step for event in logged.Scalars(tag)] for tag in ("embedding/norm", "val/bpb")]
        assert steps[0] == steps[1] != []


def test_there_is_an_example_of_a_part_a_schedule_and_a_callback():
    assert [example.file for example in EXAMPLES] == ["my_parts.py", "my_schedules.py", "my_callbacks.py"]


def test_set_up_commands_install_and_run():
    first, second, *_ = docs_pages.blocks(Path("README.md"), "bash")
    config = re.search(r"-m bytelm fit --config (\S+)", first)[1]
    assert (docs_pages.PROJECT / config).exists()
    assert "pip install -e . " in first
    assert 'pip install -e ".[dev]"' in second
    assert second.strip().endswith("-m pytest")


def test_the_five_runs_and_their_report_can_be_copied(monkeypatch):
    pytest.importorskip("optuna")
    from bytelm.cli import build
    from bytelm.experiments import runner

    block = re.search(r"```bash\n([^`]* experiments [^`]*)```", README)[1].replace("\\\n", " ")
    install, experiments, report = [shlex.split(line) for line in block.strip().splitlines()]
    assert install[-1] == ".[experiments]"
    seen = []
    monkeypatch.setattr(runner, "Study", lambda name, plan, *rest: seen.append((name, plan)))
    monkeypatch.setattr(runner, "Runner", lambda *rest: SimpleNamespace(run=lambda: 0))
    monkeypatch.chdir(docs_pages.PROJECT)
    with pytest.raises(SystemExit):
        runner.main(experiments[experiments.index("experiments") + 1 :])
    ((study, plan),) = seen
    assert len(plan.grid()) == 5
    for task in plan.grid():
        build(task.fit_options, run=False)
    assert report[-2:] == ["report", f"runs/{study}"]


def test_python_lines_run(folder, capsys):
    (block,) = [block for block in docs_pages.blocks(Path("README.md"), "python") if "import fit, load" in block]
    assert len(block.strip().splitlines()) <= 6
    exec(block.replace("configs/quickstart", "tiny").replace("30s", "2 steps"), {})
    *text, bits = capsys.readouterr().out.partition("\ndef ")[2].splitlines()
    assert text
    assert 0 < float(bits) < 10


def test_parts_in_the_reference_exist():
    import bytelm.cli  # noqa: F401
    from bytelm.parts.contract import known_parts

    known = {part.__name__ for part in known_parts()}
    rows = re.findall(
        r"^\| `\w+` \| (\*\*.*?) \| `bytelm/parts/", docs_pages.read(Path("docs/reference/parts.md")), re.MULTILINE
    )
    assert len(rows) == 9
    for row in rows:
        names = re.findall(r"\b[A-Z]\w+", re.sub(r"`.*?`|\(.*?\)", "", row))
        assert [name for name in names if name not in known] == []


def test_every_part_is_in_the_reference():
    import bytelm.cli  # noqa: F401
    from bytelm.parts.contract import known_parts

    reference = docs_pages.read(Path("docs/reference/parts.md"))
    parts = {part.__name__ for part in known_parts() if part.__module__.startswith("bytelm.parts.")}
    bases = {"MultiHeadAttention", "MLP", "GatedMLP", "TwoBranchBlock", "LinearAttention", "Contract"}
    contracts = {part.__name__ for part in known_parts() if part.__module__ == "bytelm.parts.contract"}
    assert sorted(name for name in parts - bases - contracts if not re.search(rf"\b{name}\b", reference)) == []
