"""Run the code blocks of a Markdown page, in order, in the current folder: ``python run_page.py PAGE``.

``python`` blocks share one namespace, ``pycon`` blocks are checked as doctests in it, ``console`` blocks run line by
line (``$ command``; the lines below must occur in its output, in this order; ``...`` stands for anything). An HTML
comment before a block says what else to do with it:

* ``not run: reason``;
* ``file: path``: write the block to that file, of whatever language it is;
* ``from: path``: the block is a part of that file (relative to the page), which other tests run;
* ``raises: ErrorName``: the block raises that.

A comment that begins with ``setup`` holds Python that is run without being shown.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RUN = ("python", "pycon", "console")
QUIET = ("text", "toml", "yaml", "ini", "json", "{eval-rst}", "{toctree}")
DIRECTIVES = ("not run", "file", "from", "raises")
_PIECE = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^[ ]*(?P=fence)[ ]*$|<!--(?P<comment>.*?)-->",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of code, the line of the page where it begins, and the comment before it."""

    language: str
    code: str
    line: int
    directive: str = ""
    argument: str = ""


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page, including hidden ones."""
    directive, end = ("", ""), 0
    for piece in _PIECE.finditer(text):
        line = text.count("\n", 0, piece.start()) + 2
        comment = piece["comment"]
        if comment is not None:
            word, _, argument = comment.strip().partition(":")
            if comment.split()[:1] == ["setup"]:
                yield Block("python", "\n" + comment.strip().removeprefix("setup"), line - 1)
            directive, end = (word, " ".join(argument.split())), piece.end()
            continue
        near = not text[end : piece.start()].strip() and directive[0] in DIRECTIVES
        yield Block(piece["language"].strip(), textwrap.dedent(piece["code"]), line, *(directive if near else ("", "")))
        directive = ("", "")


def run_console(code: str) -> None:
    """Run the commands, and check their output."""
    for command in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        line, _, expected = re.sub(r"\\\n", " ", command).partition("\n")
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        output = " ".join((done.stdout + done.stderr).split())
        if done.returncode:
            raise AssertionError(f"$ {line}\n{done.stdout}{done.stderr}exit status {done.returncode}")
        position = 0
        for shown in expected.splitlines():
            for part in filter(None, (" ".join(part.split()) for part in shown.split("..."))):
                position = output.find(part, position)
                if position < 0:
                    raise AssertionError(f"$ {line}\nshould print {part!r}, and prints\n{done.stdout}{done.stderr}")


def run_pycon(block: Block, namespace: dict[str, object], page: Path) -> None:
    """Check a session as a doctest."""
    test = doctest.DocTestParser().get_doctest(block.code, {}, page.name, str(page), block.line)
    test.globs = namespace
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    failed: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=failed.append, clear_globs=False)
    if failed:
        raise AssertionError("".join(failed))


def run_python(block: Block, namespace: dict[str, object], page: Path) -> None:
    """Run a block; line numbers are those of the page."""
    program = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    try:
        exec(program, namespace)
    except Exception as error:
        if block.directive == "raises" and block.argument in {kind.__name__ for kind in type(error).__mro__}:
            return
        raise
    if block.directive == "raises":
        raise AssertionError(f"{page}, line {block.line}: no {block.argument}")


def _lines(text: str) -> str:
    """Return the text without its indentation: a page may show a part of a class."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def run_block(block: Block, namespace: dict[str, object], page: Path) -> bool:
    """Process a block according to its comment, and return whether it ran."""
    if block.language not in RUN + QUIET:
        raise AssertionError(f"{page}, line {block.line}: {block.language!r} is none of {', '.join(RUN + QUIET)}")
    if block.directive == "file":
        Path(block.argument).parent.mkdir(parents=True, exist_ok=True)
        Path(block.argument).write_text(block.code, encoding="utf-8")
    elif block.directive == "from":
        if _lines(block.code) not in _lines((page.parent / block.argument).read_text(encoding="utf-8")):
            raise AssertionError(f"{page}, line {block.line}: this is not in {block.argument}")
    elif block.directive == "not run" and not block.argument:
        raise AssertionError(f"{page}, line {block.line}: say why it is not run")
    if block.directive in ("file", "from", "not run") or block.language not in RUN:
        return False
    if block.language == "console":
        run_console(block.code)
    elif block.language == "pycon":
        run_pycon(block, namespace, page)
    else:
        run_python(block, namespace, page)
    return True


def run(page: Path) -> int:
    """Run all blocks of a page and return how many ran."""
    namespace: dict[str, object] = {"__name__": "__page__"}
    return sum(run_block(block, namespace, page) for block in blocks(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    print(f"{run(Path(sys.argv[1]).resolve())} blocks ran")
