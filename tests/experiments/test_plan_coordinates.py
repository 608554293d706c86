"""The options of candidates as coordinates."""

import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.experiments.plan.coordinates import Coordinates


def test_options_become_numbers_by_their_logarithms_by_themselves_or_one_per_value():
    points = [
        (("width", str(width)), ("rate", rate), ("share", share), ("norm", norm), ("clip", clip), ("same", "1"))
        for width, rate, share, norm, clip in [
            (64, "1e-3", "0.8", "RMS", "null"),
            (128, "1e-2", "0.7", "Layer", "null"),
            (256, "3e-3", "1.0", "RMS", "1.0"),
        ]
    ]
    coordinates = Coordinates(points, ["width", "rate", "share", "norm", "clip", "same", "missing"])
    assert coordinates.names == ["width", "rate", "share", "norm", "clip"]
    assert coordinates.logs == ["width", "rate"]
    found = coordinates.of(points)
    assert found[:, 0] == pytest.approx([-1, 0, 1])
    assert found[:, 1] == pytest.approx([-1, 1, -0.0458], abs=1e-3)
    assert found[:, 2] == pytest.approx([-1 / 3, -1, 1])
    assert found[:, 3] == pytest.approx([-1, 1, -1])
    assert found[:, 4] == pytest.approx([-1, -1, 1])  # not all of its values are numbers


def test_an_option_that_changes_with_an_earlier_one_is_no_coordinate():
    points = [(("width", str(w)), ("d_ff", str(round(2.67 * w))), ("lr", str(64e-3 / w))) for w in (48, 64, 100)]
    assert Coordinates(points, ["width", "d_ff", "lr"]).names == ["width"]
    other = (("width", "48"), ("d_ff", "200"), ("lr", "0.002"))
    assert Coordinates([*points, other], ["width", "d_ff", "lr"]).names == ["width", "d_ff", "lr"]


def test_the_numbers_along_an_option_are_those_of_its_coordinates():
    space = Coordinates([(("lr", "0.001"),), (("lr", "0.1"),)], ["lr"])
    at, rates = space.along("lr", 3)
    assert rates == pytest.approx([0.001, 0.01, 0.1])
    assert space.of([(("lr", str(rate)),) for rate in rates])[:, 0] == pytest.approx(at)
