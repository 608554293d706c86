"""The files of the user's own code that a config uses."""

from pathlib import Path

import pytest

from bytelm.config.own_code import changed, own_code


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("my_parts.py", "helpers.py", "unused.py", "pkg/__init__.py", "pkg/a.py", "pkg/b.py", "bytelm/gpt.py"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("")


@pytest.mark.parametrize(
    "value",
    [
        {"model": {"gpt": {"feedforward": {"class_path": "my_parts.Mine", "init_args": {}}}}},
        ["{class_path: my_parts.Mine}"],
        {"trainer": {"callbacks": [{"class_path": "my_parts.Mine"}]}},
    ],
)
def test_a_class_is_in_its_file(value):
    assert own_code(value) == {"my_parts.py": "e3b0c44298fc"}


def test_imported_files_belong_to_it():
    Path("my_parts.py").write_text("import torch\nimport helpers\nfrom pkg import a\n")
    Path("pkg/a.py").write_text("from .b import thing\nfrom . import none\nfrom bytelm.gpt import GPT\n")
    assert list(own_code("my_parts.Mine")) == ["helpers.py", "my_parts.py", "pkg/__init__.py", "pkg/a.py", "pkg/b.py"]


def test_a_file_that_is_not_python_has_no_imports():
    Path("my_parts.py").write_text("def activatio n")
    assert list(own_code("my_parts.Mine")) == ["my_parts.py"]


def test_files_that_are_different_now_are_named():
    code = own_code(["my_parts.Mine", "helpers.A"])
    assert changed(code) == []
    Path("my_parts.py").write_text("A = 1")
    assert changed(code) == ["my_parts.py"]
    Path("helpers.py").unlink()
    assert changed(code) == ["helpers.py", "my_parts.py"]


@pytest.mark.parametrize("value", ["bytelm.gpt.GPT", "torch.optim.AdamW", "my_parts", "data/my_parts.Mine", 0.5, None])
def test_other_values_name_no_file(value):
    assert own_code(value) == {}
