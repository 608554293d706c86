"""Options as `fit` resolves them; parsing a config requires no model."""

import json

import pytest


@pytest.fixture
def resolved(parser, folder):
    """Resolves options as `fit` does; returns the config as plain values."""

    def resolved(*options):
        config = parser.parse_args(["--config", "tiny.yaml", *options])
        return json.loads(parser.dump(config, skip_unset=False, format="json"))

    return resolved
