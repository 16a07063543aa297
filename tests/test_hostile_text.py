"""Names and messages from files and plugins are escaped and complete on a terminal with any encoding."""

import json
import re
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import DatasetCatalog, write_volume
from medsegpy_core.cli.output import table
from medsegpy_core.errors import ConfigError, DataWarning, MedSegPyError, ReadError
from medsegpy_core.text import printable

# What a terminal obeys, what turns text around, what is not to be seen, and what is no character.
HOSTILE = "\x1b]0;owned\x07\x1b[31m\x9b2J\x7f\r\u202ex\u2066\u200b\udcff"
MARKUP = r"C:\data\[/v1] [bold]x[/] \[red] :warning:"
DANGEROUS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def shown(result):
    """Return the output of a run, after a check that it contains no control characters."""
    text = result.stdout + result.stderr
    assert not DANGEROUS.search(text), ascii(text)
    return text


def medsegpy(site, *args, **environ):
    code = f"import sys; sys.argv[1:] = {list(args)!r}; from medsegpy_core.cli import main; main()"
    return site.run(code, **environ)


@given(st.text(st.characters(exclude_categories=[])))
def test_printable_text_is_unchanged(text):
    once = printable(text)
    assert not DANGEROUS.search(once)
    assert "\n" not in once
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in once)
    assert printable(once) == once
    assert printable(text, lines=True).count("\n") == text.count("\n")
    once.encode("utf-8")


def test_visible_characters_are_kept():
    for text in ("größe", "肝臓", "a\\b [x]", "кость", "a\u00a0b", "é", "🫀"):
        assert printable(text) == text
    assert printable("a\n\tb\x1b") == "a\\n\\tb\\x1b"
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_errors_and_warnings_are_safe_to_show():
    for error in (MedSegPyError(HOSTILE), ConfigError(HOSTILE), ReadError(HOSTILE, f"/a/{HOSTILE}\n", element=HOSTILE)):
        assert not DANGEROUS.search(str(error))
        assert "\n" not in str(error)
    with pytest.warns(DataWarning) as caught:
        warnings.warn(HOSTILE, DataWarning, stacklevel=1)
    assert not DANGEROUS.search(str(caught[0].message))


@pytest.fixture
def hostile(site):
    """Plugins with hostile names and messages."""
    head = f"from medsegpy_core import DatasetSpec, hookimpl\nHOSTILE, MARKUP = {HOSTILE!r}, {MARKUP!r}\n"
    hook = "@hookimpl\ndef medsegpy_register_datasets():\n    "
    site.add(
        "named",
        head + hook + "return [DatasetSpec('n' + HOSTILE, list, description='d' + HOSTILE + MARKUP), "
        "DatasetSpec('lines\\nforged', list), DatasetSpec('[/b]', list, description=MARKUP)]\n"
        "import click\n@hookimpl\ndef medsegpy_register_commands():\n"
        "    @click.command('shout', help='h' + HOSTILE)\n    def shout():\n"
        "        raise RuntimeError(HOSTILE + MARKUP)\n"
        "    return [shout]\n",
    )
    site.add("broken", head + "raise RuntimeError('b' + HOSTILE + MARKUP)\n")
    for name in ("one", "two"):
        site.add(name, head + hook + "return [DatasetSpec('contested' + HOSTILE, list)]\n")
    return site


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(
    ("args", "status", "expected"),
    [
        (["datasets", "list"], 0, r"C:\data\[/v1] [bold]x[/] \[red] :warning:"),
        (["plugins"], 0, r"\x1b]0;owned\x07"),
        (["plugins", "--check", "--trace"], 1, r"contested\x1b"),
        (["datasets", "show", "lines\nforged"], 0, r"lines\nforged"),
        (["datasets", "show", "absent\x1b[31m"], 1, r"absent\x1b[31m"),
        (["shout"], 1, r"\x1b]0;owned\x07"),
        (["--help"], 0, "shout"),
        (["no\x1bsense"], 2, r"no\x1bsense"),
        (["--no\x1bsense"], 2, r"no\x1bsense"),
        (["view", "x", "--slices", "\x1b"], 2, r"\x1b"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_hostile_names_reach_no_terminal(hostile, args, status, expected, encoding):
    result = medsegpy(hostile, *args, PYTHONIOENCODING=encoding, COLUMNS="80")
    assert result.returncode == status, result.stdout + result.stderr
    # Lines break between words.
    assert " ".join(expected.split()) in " ".join(shown(result).split())
    assert "Traceback" not in result.stderr


def texts(value):
    """Return every text in a JSON value."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    return [text for part in value for text in texts(part)] if isinstance(value, list) else [str(value)]


def test_json_is_ascii_and_keeps_names(hostile):
    for args in (["datasets", "list"], ["plugins"], ["datasets", "show", f"n{HOSTILE}"]):
        result = medsegpy(hostile, *args, "--json", PYTHONIOENCODING="ascii")
        assert result.stdout.isascii()
        assert f"n{HOSTILE}" in texts(json.loads(result.stdout))


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_files_whose_names_the_terminal_cannot_write(site, tmp_path, environ):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("größe", "esc\x1b[31m", "line\nbreak"):
        (folder / f"{name}.h5").write_bytes(b"this is no HDF5 file")
    result = medsegpy(site, "datasets", "check", str(folder), **environ)
    assert result.returncode == 1, result.stderr
    text = shown(result)
    assert r"esc\x1b[31m.h5" in text
    assert r"line\nbreak.h5" in text
    # The last: the C locale knows bytes only.
    assert "größe" in text or r"gr\xf6\xdfe" in text or r"gr\udcc3\udcb6" in text


def test_scan_ids_and_categories_are_escaped(site, tmp_path, monkeypatch):
    d = write_volume(tmp_path / "a.h5", np.zeros((4, 5, 6)), np.ones((4, 5, 6, 1)))
    d["scan_id"] = f"s{HOSTILE}"
    code = f"""
        from medsegpy_core import DatasetCatalog, MetadataCatalog
        from medsegpy_core.cli import cli
        DatasetCatalog.register("one", lambda: [{d!r}])
        MetadataCatalog.get("one").set(category_ids=[0], categories=[{HOSTILE!r}])
        for args in ("datasets show one", "view one --out v.png", "view one --scan absent\x1b", "datasets check one",
                     "pack one --out packed"):
            try:
                cli(args.split(" "))
            except SystemExit:
                pass
    """
    monkeypatch.chdir(tmp_path)
    result = site.run(code, PYTHONIOENCODING="ascii")
    text = shown(result)
    assert "Traceback" not in text
    assert text.count(r"\x1b]0;owned") >= 2
    assert (tmp_path / "v.png").is_file()


def test_names_are_complete_at_any_width(site):
    long = "a_dataset_with_a_name_of_sixty_characters_" + "x" * 40
    site.add(
        "long",
        "from medsegpy_core import DatasetSpec, hookimpl\n@hookimpl\ndef medsegpy_register_datasets():\n"
        f"    return [DatasetSpec({long!r} + split, list, split=split, description='many words ' * 30)"
        " for split in ('train', 'val', 'test')]\n",
        distribution="medsegpy-a-distribution-with-a-long-name",
    )
    for args in (["datasets", "list"], ["plugins"]):
        for columns in ("20", "80"):
            # A terminal, as Rich sees it; and a pipe.
            for terminal in ({"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}, {}):
                result = medsegpy(site, *args, COLUMNS=columns, **terminal)
                for name in (f"{long}train", f"{long}val", f"{long}test", "medsegpy-a-distribution-with-a-long-name"):
                    assert name in result.stdout, result.stdout


def test_descriptions_wrap_and_names_do_not():
    from medsegpy_core.cli.output import Screen

    shown = table(["name", "~words"], [("x" * 70, "one two three four five six")])
    screen = Screen()
    screen.width = 40
    with screen.capture() as captured:
        screen.print(shown)
    assert f"\n{'x' * 70}" in captured.get()
    assert screen.width == 40


def test_a_dataset_registered_here_shows_its_name(capsys):
    DatasetCatalog.register("[bold]mine", list)
    from medsegpy_core.cli import cli

    with pytest.raises(SystemExit):
        cli(["datasets", "list"])
    assert "[bold]mine" in capsys.readouterr().out
