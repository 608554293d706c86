"""The check of a space names a key or a value that cannot be run, and no other."""

import pytest

from bytelm.errors import ConfigError

pytest.importorskip("optuna")

from bytelm.experiments.space_check import check_space

SPACE = {"d": [16, 32], "heads": [2, 4], "lr": {"low": 0.1, "high": 0.5}, "shape": ["Cosine", "Decay"]}


def checked(space, rule):
    """Checks a space, of which the points that follow a rule can be run; returns the error, and the points tried."""
    tried = []

    def refused(point):
        tried.append(point)
        return "" if rule(dict(point)) else "a reason"

    try:
        check_space(space, refused)
    except ConfigError as error:
        return str(error), tried
    return None, tried


def test_a_space_that_can_be_run_needs_as_many_checks_as_the_longest_list():
    said, tried = checked(SPACE | {"d": [16, 24, 32]}, lambda point: True)
    assert said is None
    assert len(tried) == 3
    assert {point[0] for point in tried} == {("d", "16"), ("d", "24"), ("d", "32")}
    assert {point[2] for point in tried} == {("lr", "0.1"), ("lr", "0.5")}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda point: "heads" not in point, "space: 'heads' cannot be used; a reason"),
        (lambda point: point.get("d") != "32", "space.d: '32' cannot be used; a reason"),
        (lambda point: point.get("lr") != "0.5", "space.lr: '0.5' cannot be used; a reason"),
    ],
    ids=["a key", "a value", "a bound"],
)
def test_what_cannot_be_run_is_named(rule, said):
    assert checked(SPACE, rule)[0] == said


def test_a_value_that_needs_another_one_is_accepted():
    space = {"shape": ["Cosine", "Decay"], "decay": ["10%", "20%", "30%"], "d": [16, 32]}
    assert checked(space, lambda point: "decay" not in point or point.get("shape") == "Decay")[0] is None
    rule = lambda point: "decay" not in point or (point.get("shape"), point.get("d")) == ("Decay", "32")  # noqa: E731
    assert checked(space, rule)[0] is None


def test_no_value_is_blamed_for_a_config_that_cannot_run():
    assert checked(SPACE, lambda point: False)[0] is None


def test_values_that_are_known_to_be_accepted_are_not_checked_again():
    tried = []
    known = {("a", "1"), ("a", "2")}
    check_space({"a": [1, 2]}, lambda point: tried.append(point) or "a reason", known)
    assert tried == []
