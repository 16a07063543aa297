"""Formatting of values in messages: shapes, numbers, lists; and text from files and plugins, made safe to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["by", "counted", "printable", "shown", "some"]


def by(sizes: Iterable[object], digits: int = 4) -> str:
    """Return a shape or a spacing as text.

    Args:
        sizes: A number for each axis.
        digits: Significant digits of floats.

    Example:
        >>> by((3, 4)), by((0.3125, 0.7000001))
        ('3 x 4', '0.3125 x 0.7')
    """
    return " x ".join(f"{size:.{digits}g}" if isinstance(size, float) else str(size) for size in sizes)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "scan"), counted(2000, "scan")
        ('1 scan', '2,000 scans')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some(items: Sequence[Any] | Array, most: int = 5, separator: str = ", ", form: Callable[[Any], str] = str) -> str:
    """Return a list as text. A long one is cut to its first `most` items and their number.

    Example:
        >>> some([1, 2, 3]), some([1, 2, 3], most=2)
        ('1, 2, 3', '1, 2, ... (3 in all)')
    """
    first = separator.join(map(form, items[:most]))
    return first if len(items) <= most else f"{first}{separator}... ({len(items):,} in all)"


def shown(value: object, most: int = 80) -> str:
    """Return the `repr` of a value on one line, cut to `most` characters.

    Example:
        >>> shown("a" * 100, most=10)
        "'aaaaaa..."
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str, lines: bool = False) -> str:
    r"""Return text with every invisible character escaped.

    These are control characters (which may control a terminal), characters that change the direction of text or have
    no width, line separators, lone surrogates (from file names that are not valid UTF-8) and unassigned code points.
    Letters of all scripts, spaces and backslashes stay unchanged.

    Args:
        text: Any text, such as the name of a file or a message from a plugin.
        lines: Keep line breaks and tabs, for messages. Names have one line.

    Example:
        >>> print(printable("größe\x1b[31m\n"))
        größe\x1b[31m\n
    """
    return text if text.isprintable() else "".join(_escaped(character, lines) for character in text)


def _escaped(character: str, lines: bool) -> str:
    from unicodedata import category

    if character.isprintable() or (lines and character in "\n\t") or category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
