"""Text from files and plugins, made safe to show."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, lines: bool = False) -> str:
    r"""Return text in which every character that cannot be seen is written as an escape.

    These are control characters (a terminal obeys some of them), characters that change the direction of text or have
    no width, line separators, lone surrogates (from file names that are not valid UTF-8) and unassigned code points.
    Letters of all scripts, spaces and backslashes stay as they are.

    Args:
        text: Any text, for example the name of a file or a message from a plugin.
        lines: Keep line breaks and tabs: for messages. Names are one line.

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
