"""Making text from files and plugins safe to show."""

from __future__ import annotations

__all__ = ["printable"]


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
    return text if text.isprintable() else "".join(_shown(character, lines) for character in text)


def _shown(character: str, lines: bool) -> str:
    from unicodedata import category

    if character.isprintable() or (lines and character in "\n\t") or category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
