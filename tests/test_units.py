"""Durations are read and written as documented."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.units import Duration

LOOKS_LIKE_A_DURATION = st.text("0123456789_. -+%kMGBdhmsteptoin", max_size=20)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("180s", 180, "seconds"),
        ("180 s", 180, "seconds"),
        ("0s", 0, "seconds"),
        ("1.5s", 1.5, "seconds"),
        ("3m", 180, "seconds"),
        ("3 min", 180, "seconds"),
        ("250ms", 0.25, "seconds"),
        ("2h", 7_200, "seconds"),
        (".5h", 1_800, "seconds"),
        ("1d", 86_400, "seconds"),
        ("1h30m", 5_400, "seconds"),
        ("1h 30m", 5_400, "seconds"),
        ("1d2h3m4s500ms", 93_784.5, "seconds"),
        ("  3m\n", 180, "seconds"),
        ("500 steps", 500, "steps"),
        ("500steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("5_000 steps", 5_000, "steps"),
        ("2k steps", 2_000, "steps"),
        ("1.5k steps", 1_500, "steps"),
        ("7 tok", 7, "tokens"),
        ("1 token", 1, "tokens"),
        ("9 tokens", 9, "tokens"),
        ("300 Mtok", 300_000_000, "tokens"),
        ("300M tokens", 300_000_000, "tokens"),
        ("2.5 Gtok", 2_500_000_000, "tokens"),
        ("2.5 Btok", 2_500_000_000, "tokens"),
        ("2 PFLOP", 2e15, "flops"),
        ("300TFLOPs", 3e14, "flops"),
        ("1.5 EFLOP", 1.5e18, "flops"),
        ("5%", 0.05, "fraction"),
        ("12.5 %", 0.125, "fraction"),
        ("0%", 0, "fraction"),
        ("100%", 1, "fraction"),
    ],
)
def test_every_accepted_form_is_read(text, value, unit):
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "180", "1.5", "-3s", "- 3 steps", "+3s", "-5%", "nan", "nan s", "inf", "inf s", "1e3 steps"),
        *("101%", "100.1%", "1.5 steps", "0.5 tok", "1.0005k steps", "3 bananas", "h", "s", "%", "steps", "m30"),
        *("1h30", "30m1h", "3m 3m", "3s and 5%", "1,5s", "1..5s", "5 Mtokk", "3 kelvin", "three minutes", "3M"),
        "1__0s",
        *("2 PFLOPS", "2 PFLOP/s", "1e15 FLOP", "3 BFLOP", "3 flops", "9999999 ZFLOP"),
        "10_ steps",
        "0.0000001 steps",
        "9" * 400 + "s",
    ],
)
def test_messages_quote_the_value_and_the_accepted_values(text):
    with pytest.raises(ValueError, match=r"accepted: a time .* steps .* tokens .* share") as rejection:
        Duration.parse(text)
    assert repr(text) in str(rejection.value)


@pytest.mark.parametrize("value", [None, 3, 0, 180.0, True, b"3m", ["3m"], {"value": 3, "unit": "steps"}, object()])
def test_bytes_that_are_no_text_are_rejected_in_the_same_way(value):
    with pytest.raises(ValueError, match="accepted: ") as rejection:
        Duration.parse(value)
    assert repr(value) in str(rejection.value)


NUMBER = r"([0-9]{1,4}(_[0-9]{1,3})?(\.[0-9]{1,9})?|\.[0-9]{1,9})"
NEARLY = st.from_regex(
    rf"\A\s*({NUMBER}\s*([kMGB]?\s*(d|h|m|min|s|ms|%|steps?|tok|tokens?|[kMGTPEZ]?FLOPs?))){{1,5}}\s*\Z"
)


@given(st.text() | LOOKS_LIKE_A_DURATION | NEARLY)
def test_any_text_is_read_or_rejected_with_a_value_error(text):
    try:
        duration = Duration.parse(text)
    except ValueError:
        return
    assert duration.value >= 0
    assert duration.unit in ("seconds", "steps", "tokens", "flops", "fraction")
    assert Duration.parse(str(duration)) == duration


SPACE = st.sampled_from(["", " ", "  ", "\t"])


@st.composite
def numbers(draw, most=10**6, places=6):
    """A number as it may be written, and its value."""
    value = Fraction(draw(st.integers(0, most * 10**places)), 10**places)
    whole, rest = divmod(value, 1)
    grouping = draw(st.sampled_from(["", "_"]))
    digits = f"{int(whole):{grouping}}"
    decimals = f".{int(rest * 10**places):0{places}}".rstrip("0") if places else "."
    if decimals == ".":
        decimals = draw(st.sampled_from(["", ".0"]))
    elif whole == 0 and draw(st.booleans()):
        digits = ""
    return digits + decimals, value


@given(st.data())
def test_a_time_is_the_sum_of_its_parts(data):
    units = {"d": 86_400, "h": 3_600, "m": 60, "min": 60, "s": 1, "ms": Fraction(1, 1_000)}
    order = ["d", "h", data.draw(st.sampled_from(["m", "min"])), "s", "ms"]
    taken = data.draw(
        st.lists(st.sampled_from(order), min_size=1, unique=True).map(lambda some: sorted(some, key=order.index))
    )
    text, seconds = data.draw(SPACE), Fraction(0)
    for unit in taken:
        digits, value = data.draw(numbers())
        text += digits + data.draw(SPACE) + unit + data.draw(SPACE)
        seconds += value * units[unit]
    duration = Duration.parse(text)
    assert duration.unit == "seconds"
    assert duration.value == pytest.approx(float(seconds), rel=0, abs=5e-7 + float(seconds) * 2**-52)


@given(
    numbers(most=10**6, places=3),
    SPACE,
    st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("B", 10**9)]),
    st.sampled_from(["step", "steps", "tok", "token", "tokens"]),
)
def test_a_count_is_its_number_times_its_scale_and_whole(number, space, scale, noun):
    digits, value = number
    letter, factor = scale
    text = f"{digits}{space}{letter}{noun}"
    count = value * factor
    if count.denominator == 1 and count <= 10**15:
        assert Duration.parse(text) == Duration(int(count), "steps" if noun.startswith("step") else "tokens")
    else:
        with pytest.raises(ValueError, match="accepted: "):
            Duration.parse(text)


@given(numbers(most=200, places=6), SPACE)
def test_a_percentage_is_a_share_up_to_the_whole(number, space):
    digits, value = number
    if value <= 100:
        duration = Duration.parse(f"{digits}{space}%")
        assert duration.unit == "fraction"
        assert duration.value == pytest.approx(float(value / 100), abs=1e-15)
    else:
        with pytest.raises(ValueError, match="accepted: "):
            Duration.parse(f"{digits}{space}%")


def test_a_duration_is_read_as_itself():
    duration = Duration(3, "steps")
    assert Duration.parse(duration) is duration


DECIMALS = st.decimals(0, 100, places=4)
COUNTS = st.integers(0, 10**12)


@pytest.mark.parametrize(
    "written",
    [
        st.builds("{}%".format, DECIMALS),
        st.builds("{} s".format, DECIMALS),
        st.builds("{}d{}h{}min".format, *[st.integers(0, 500)] * 3),
        st.builds("{} steps".format, COUNTS),
        st.builds("{} {}tok".format, COUNTS, st.sampled_from(["", "k"])),
        st.builds("{} {}tok".format, DECIMALS, st.sampled_from(["M", "G"])),
        st.builds("{}h{}m{}s{}ms".format, *[DECIMALS] * 4),
    ],
)
@given(data=st.data())
def test_written_durations_are_read_back(written, data):
    duration = Duration.parse(data.draw(written))
    again = Duration.parse(str(duration))
    assert again == duration
    assert hash(again) == hash(duration)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (Duration(180, "seconds"), "180s"),
        (Duration(0.25, "seconds"), "0.25s"),
        (Duration(0.001, "seconds"), "1ms"),
        (Duration(500, "steps"), "500 steps"),
        (Duration(300e6, "tokens"), "300 Mtok"),
        (Duration(2_000, "tokens"), "2 ktok"),
        (Duration(1_234, "tokens"), "1234 tok"),
        (Duration(0.05, "fraction"), "5%"),
        (Duration(0.07, "fraction"), "7%"),  # 0.07 * 100 is not 7
        (Duration(93_784.005, "seconds"), "93784.005s"),
    ],
)
def test_a_duration_is_written_as_short_as_it_can_be(duration, text):
    assert str(duration) == text
