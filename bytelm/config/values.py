"""Values that users give: checked once, where they enter, with a message that names key, value and what is accepted.

Ranges of single numbers are types, which the command line checks against the key that they came from. What depends on
several values (n_heads divides d_model) is checked by the constructor that sees them all, which raises
bytelm.errors.ConfigError.
"""

from typing import TYPE_CHECKING

from bytelm.units import Duration

if TYPE_CHECKING:  # a type checker knows them as the numbers that they are
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

    def _plain(base: type, checked: type) -> type:
        """A type of jsonargparse's whose values are plain numbers once they have been checked.

        Its own are objects of subclasses, which torch.compile does not take for numbers: each one that a module keeps
        splits the graph there. Nor could a checkpoint hold them.
        """
        # In its __new__, so that argparse's `type=PositiveInt` checks, too.
        made = {"__doc__": checked.__doc__, "__new__": lambda cls, value: base(checked(value))}
        plain = type(checked.__name__, (base,), made)
        typing.register_type(
            plain,
            serializer=lambda number: number,
            type_check=lambda value, of: False,  # so that plain numbers are checked, too
        )
        return plain

    typing.register_type(
        Duration, serializer=_duration_text, deserializer=Duration.parse, deserializer_exceptions=(ValueError,)
    )
    PositiveInt = _plain(int, typing.PositiveInt)
    NonNegativeInt = _plain(int, typing.NonNegativeInt)
    PositiveFloat = _plain(float, typing.PositiveFloat)
    NonNegativeFloat = _plain(float, typing.NonNegativeFloat)
    UnitInterval = _plain(float, typing.ClosedUnitInterval)

__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UnitInterval"]
