"""The documentation's links lead somewhere, its configs parse, and its examples run."""

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import docs_pages
import pytest
import yaml

WORDS = ("bytelm", "callbacks", "configs", "scripts", "docs", "tests")
CONFIGS = [
    pytest.param(page, block, id=f"{page}-{number}")
    for page in docs_pages.FILES
    for number, block in enumerate(docs_pages.blocks(page, "yaml"))
]
EXAMPLES = [
    pytest.param(example, id=f"{example.page}-{example.file}")
    for page in docs_pages.FILES
    if page != Path("README.md")  # tests/test_readme.py
    for example in docs_pages.examples(page)
]


@pytest.mark.parametrize("page", docs_pages.FILES, ids=str)
def test_links(page):
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", docs_pages.prose(page)):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (docs_pages.PROJECT / page.parent / path).resolve() if path else docs_pages.PROJECT / page
        if not target.exists() or (anchor and anchor not in docs_pages.anchors(target.relative_to(docs_pages.PROJECT))):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", [page for page in docs_pages.FILES if page not in docs_pages.GENERATED], ids=str)
def test_paths_of_the_project(page):
    text = docs_pages.read(page)
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(WORDS)})/[\w./-]*\w/?)", re.sub(r"\]\(.*?\)", "", text))
    assert [path for path in sorted(set(named)) if not (docs_pages.PROJECT / path).exists()] == []


def test_the_tree_has_all_modules():
    package = docs_pages.PROJECT / "bytelm"
    modules = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    folders = [path.parent.name + "/" for path in package.glob("*/__init__.py")]
    assert sorted({*modules, *folders} - named_in(tree())) == []


# Folders whose files the map does not name.
AS_A_WHOLE = ("on_path", "plan", "benchmarks", "lightning_cells")
PACKAGES = ("config", "trainer_options", "system", "data", "optim", "runs", "inference", "experiments")


@pytest.mark.parametrize("folder", [*(f"bytelm/{package}" for package in PACKAGES), "callbacks", "scripts"])
def test_the_map_has_all_files(folder):
    _, found, text = tree().partition(f"\n`{folder}/`")
    assert found
    text = re.split(r"\n`[\w/]+/`", text)[0]
    files = [path for path in (docs_pages.PROJECT / folder).rglob("*.py") if path.name != "__init__.py"]
    names = {path.name for path in files if path.parent.name not in AS_A_WHOLE}
    assert sorted(names - named_in(text)) == []


def tree():
    return docs_pages.read(Path("docs/architecture.md")).partition("## The tree")[2].partition("\n## ")[0]


def named_in(text):
    """The names of the modules and folders in a text."""
    named = set(re.findall(r"[\w/]+(?:\.py|/)", " ".join(re.findall(r"`([^`]*)`", text))))
    return {Path(name).name + ("/" if name.endswith("/") else "") for name in named}


@pytest.mark.parametrize(("page", "block"), CONFIGS)
def test_configs_parse(parser, folder, page, block):
    for shown in (*docs_pages.examples(Path("README.md")), *docs_pages.examples(page)):
        Path(shown.file).write_text(shown.code)  # parts that the config may name
    content = yaml.safe_load(block)
    if "base" in content:
        file = re.match(r"# (\S+\.yaml)\n", block)
        content["base"] = str(docs_pages.PROJECT / (Path(file[1]).parent if file else ".") / content["base"])
    Path("shown.yaml").write_text(yaml.safe_dump(content))
    whole = "base" in content or {"model", "data"} <= content.keys()
    parser.parse_args([*([] if whole else ["--config", "tiny.yaml"]), "--config", "shown.yaml"])


def test_a_config_that_names_its_file_is_that_file():
    for page in docs_pages.FILES:
        for block in docs_pages.blocks(page, "yaml"):
            if file := re.match(r"# (\S+\.yaml)\n", block):
                assert yaml.safe_load(block) == yaml.safe_load((docs_pages.PROJECT / file[1]).read_text())


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(run, example):
    Path(example.file).write_text(example.code)
    run(*example.options.split())
    assert Path("runs/tiny/version_0/record.json").exists()


def test_the_tutorial_runs(folder, capsys):
    names = {}
    for block in docs_pages.blocks(Path("docs/tutorial.md"), "python"):
        exec(block.replace("configs/quickstart.yaml", "tiny.yaml").replace("60s", "2 steps"), names)
    shown = capsys.readouterr().out
    assert set(names["runs"]) == {"base", "alibi", "swiglu", "slower"}
    assert shown.count("bits per byte after 2 steps") == 4
    assert re.search(r"base +\+0\.000: about noise", shown)


def test_the_notebook_is_the_tutorials():
    notebook = import_module("scripts.notebook")
    assert (docs_pages.PROJECT / "docs/tutorial.ipynb").read_text(encoding="utf-8") == notebook.written()


@pytest.mark.slow
def test_the_notebook_runs_in_full():
    cells = json.loads((docs_pages.PROJECT / "docs/tutorial.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    command = [sys.executable, "-c", code.replace('BUDGET = "60s"', 'BUDGET = "20s"')]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "configs").symlink_to(docs_pages.PROJECT / "configs")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "seeds differ by" in done.stdout


def test_python_guide_runs(folder):
    Path("runs").mkdir()
    for block in docs_pages.blocks(Path("docs/guides/python.md"), "python"):
        block = block.replace("configs/quickstart.yaml", "tiny.yaml").replace("30s", "2 steps")
        block = block.replace("runs/quickstart", "runs/tiny").replace(
            "PythonSource()", "Bytes('corpus.txt', seq_len=32)"
        )
        exec("from bytelm.data.corpora import Bytes\n" + block, {})


def test_the_sites_links_stay_in_the_site():
    pytest.importorskip("mkdocs")
    site = import_module("scripts.docs_site")
    relinked = site.relinked
    assert relinked("[a](docs/guides/parts.md#x)", "README.md", "index.md") == "[a](guides/parts.md#x)"
    assert relinked("[a](../../README.md)", "docs/guides/parts.md", "guides/parts.md") == "[a](../index.md)"
    assert relinked("[a](../LICENSE)", "docs/runs.md", "runs.md") == "a"
    gpt = "[gpt](../bytelm/gpt.py)"
    assert relinked(gpt, "docs/runs.md", "runs.md") == "[gpt](reference/api/bytelm.gpt.md)"
    assert relinked(f"```\n{gpt}\n```\n", "docs/runs.md", "runs.md") == f"```\n{gpt}\n```\n"
    assert {"bytelm.gpt", "bytelm.parts.position", "bytelm.callbacks.time_budget"} <= site.modules().keys()


def test_the_site_has_modules_in_all_sections_and_keeps_options_whole():
    pytest.importorskip("mkdocs")
    site = import_module("scripts.docs_site")
    assert all(site.sections(site.modules()).values())
    shown = site.on_page_content('<p>--a</p><code><span class="x--y">fit</span> --config a --model.x+=b</code>')
    assert re.findall('<span class="option">(.*?)</span>', shown) == ["--config", "--model.x+"]
