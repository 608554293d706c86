"""Values that jsonargparse cannot write are written as their text, or left to the default."""

import json

from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import StochasticWeightAveraging

from bytelm.config.unserialized import dumped, written_out


def test_values_that_cannot_be_written_are_their_text_or_the_default():
    mark = "Unable to serialize instance "
    plain = {"a": [{"device": f"{mark}cpu", "function": f"{mark}<function f>", "n": 1}], "text": "as it is"}
    assert written_out(plain) == {"a": [{"device": "cpu", "n": 1}], "text": "as it is"}


def test_a_config_with_a_device_by_default_is_written_and_read_again(recwarn):
    parser = ArgumentParser()
    parser.add_class_arguments(StochasticWeightAveraging, "swa")
    config = parser.parse_args(["--swa.swa_lrs", "0.1"])
    text = dumped(lambda: parser.dump(config, format="json"))
    assert not recwarn
    plain = written_out(json.loads(text))
    assert plain["swa"]["device"] == "cpu"
    parser.parse_object(plain)
