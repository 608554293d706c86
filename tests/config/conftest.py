"""The parser of `fit`, created once: parsing a config requires no model."""

import json

import pytest

from bytelm.cli import build

CONFIG = "{model: {gpt: {d_model: 8, n_heads: 1, n_layers: 1}}, data: {class_path: Bytes, init_args: {path: text}}}"


@pytest.fixture(scope="session")
def parser(tmp_path_factory):
    """The command line's parser, without subcommands."""
    folder = tmp_path_factory.mktemp("parser")
    (folder / "text").write_text("to be or not to be " * 400)
    (folder / "first.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["bytelm"])
        return build(["--config", "first.yaml"], run=False).parser


@pytest.fixture
def resolved(parser, folder):
    """Resolves options as `fit` does; returns the config as plain values."""

    def resolved(*options):
        config = parser.parse_args(["--config", "tiny.yaml", *options])
        return json.loads(parser.dump(config, skip_unset=False, format="json"))

    return resolved
