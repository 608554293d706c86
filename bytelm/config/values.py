"""Values from users: checked once, at the edge; the message names the key, the value and the accepted values.

Ranges of single numbers are types; the command line checks them and knows the key. A rule about several values (n_heads
divides d_model) is checked by the constructor that receives them, which raises bytelm.errors.ConfigError.
"""

from typing import TYPE_CHECKING, Any

from bytelm.units import Duration, Size

Condition = tuple[str, tuple[Any, ...]]
"""Another option of the same class, and values of it (unused.py)."""
# Plain values of an option that turn something off: no share, no number, a length of nothing.
OFF = (None, False, 0, 0.0, "0s", "0 steps", "0 Gtok", "0 FLOP", "0%")

if TYPE_CHECKING:  # type checkers see plain numbers
    PositiveInt = int
    NonNegativeInt = int
    PositiveFloat = float
    NonNegativeFloat = float
    UnitInterval = float
else:
    from jsonargparse import typing

    def _duration_text(value: object) -> str:
        if not isinstance(value, Duration):  # jsonargparse tries the types of a union one by one
            raise ValueError(f"{value!r} is not a Duration")
        return str(value)

    def _number(value: object) -> object:
        if not isinstance(value, int | float):  # of a union's types, the first that does not raise is used
            raise ValueError(f"{value!r} is not a number")
        return value

    def _plain(base: type, checked: type) -> type:
        """A jsonargparse type whose values are plain numbers after they are checked.

        jsonargparse's own types make objects of subclasses, which torch.compile does not treat as numbers: each one in
        a module splits the graph there. A checkpoint cannot hold them either.
        """
        # Checked in its __new__, because argparse's `type=PositiveInt` calls that.
        made = {"__doc__": checked.__doc__, "__new__": lambda cls, value: base(checked(value))}
        plain = type(checked.__name__, (base,), made)
        typing.register_type(
            plain,
            serializer=_number,
            type_check=lambda value, of: False,  # plain numbers are checked too
        )
        return plain

    typing.register_type(
        Duration, serializer=_duration_text, deserializer=Duration.parse, deserializer_exceptions=(ValueError,)
    )
    typing.register_type(Size, serializer=str, deserializer=Size.parse, deserializer_exceptions=(ValueError,))
    PositiveInt = _plain(int, typing.PositiveInt)
    NonNegativeInt = _plain(int, typing.NonNegativeInt)
    PositiveFloat = _plain(float, typing.PositiveFloat)
    NonNegativeFloat = _plain(float, typing.NonNegativeFloat)
    UnitInterval = _plain(float, typing.ClosedUnitInterval)

__all__ = ["OFF", "Condition", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UnitInterval"]
