"""Invalid or hostile config files and manifests give one message with the name of the file, without delay."""

import os

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegpy_core import Config, ConfigError, ReadError, packed_dicts
from medsegpy_core.cli import cli


def config_file(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def bomb(levels, merged=False):
    """Return YAML in which each line expands to nine times the values of the previous one."""
    lines = ["A0: &a0 {x: 1}" if merged else "A0: &a0 [1, 2, 3]"]
    for i in range(1, levels):
        aliases = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(f"A{i}: &a{i} {{<<: [{aliases}]}}" if merged else f"A{i}: &a{i} [{aliases}]")
    return "\n".join(lines)


@pytest.mark.parametrize("merged", [False, True])
def test_aliases_that_expand_too_much_are_rejected(tmp_path, merged):
    path = config_file(tmp_path, "bomb.yaml", bomb(30, merged))
    with pytest.raises(ConfigError, match=r"bomb\.yaml: .*aliases expand to more than 100,000 values"):
        Config.from_file(path)


def test_a_value_that_contains_itself_is_rejected(tmp_path):
    path = config_file(tmp_path, "own.yaml", "CATEGORIES: &a [1, *a]\n")
    with pytest.raises(ConfigError, match=r"own\.yaml: .*line 1 contains itself"):
        Config.from_file(path)


def test_a_few_aliases_are_accepted(tmp_path):
    text = "BASE: &base {w: 1}\nIMG_SIZE: &size [8, 8, 1]\nIMG_STRIDE: *size\nMINE: {<<: *base, h: 2}\n"
    with pytest.warns(UserWarning, match="BASE|MINE"):
        cfg = Config.from_file(config_file(tmp_path, "fine.yaml", text))
    assert cfg.IMG_STRIDE == cfg.IMG_SIZE == (8, 8, 1)
    assert cfg.MINE == {"w": 1, "h": 2}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: 1\nb: [1\n", "line 3"),
        ("a.yaml", "a: 1\n\tb: 1", "line 2"),
        ("a.yaml", "a: 1\nb: 2020-13-45", "line 2"),
        ("a.yaml", f"a: 1\nb: {'9' * 5000}", "line 2"),
        ("a.yaml", "a: " + "[" * 5000, "levels deep"),
        ("a.yaml", "a: " + "[" * 60 + "]" * 60, "levels deep"),
        ("a.yaml", "a: 1\n? {b: 1}\n: 2\n", "line 2"),
        ("a.yaml", "a: 1\nb: !!python/object/apply:os.abort []", "line 2"),
        ("a.yaml", b"a: \x00", "position 3"),
        ("a.yaml", b"a: gr\xf6\xdfe", "UTF-8"),
        ("a.toml", "a = 1\nb = \n", "line 2"),
        ("a.toml", "a = " + "[" * 5000, "too deep"),
        ("a.toml", "a = " + "9" * 5000, "digits"),
        ("a.ini", "[DEFAULT]\na = 1\nb\n", "line 3"),
        ("a.ini", "[DEFAULT]\na = 1\na = 2\n", "line 3"),
        ("a.ini", "a = 1\n", "line 1"),
        ("a.yaml", '_BASE_: "b\\0.yaml"\n', "_BASE_"),
        ("a.yaml", "_BASE_: a.yaml\n", "circular"),
        ("a.yaml", "x: " + "1" * 2**20, "the limit is"),
    ],
    ids=range(19),
)
def test_an_error_is_one_line_with_file_and_position(tmp_path, name, text, message):
    path = config_file(tmp_path, name, text)
    with pytest.raises(ConfigError) as caught:
        Config.from_file(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert message in said
    assert len(said) < 800
    assert "\n" not in said
    assert "<unicode string>" not in said
    assert "<string>" not in said


@pytest.mark.parametrize("name", ["a.yaml", "a.toml", "a.ini"])
@given(data=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_are_a_config_error(tmp_path_factory, name, data):
    path = config_file(tmp_path_factory.mktemp("any"), name, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **options: None)
        error = ConfigError(str(path))
        try:
            Config.from_file(path)
        except ConfigError as raised:
            error = raised
        assert str(error).startswith(str(path))


@pytest.mark.timeout(30)
def test_pipes_and_devices_are_rejected_without_waiting(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    device = tmp_path / "device.yaml"
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(ConfigError, match=rf"{path.name}: this is not a regular file"):
            Config.from_file(path)
        base = config_file(tmp_path, "base.yaml", f"_BASE_: {path.name}\n")
        with pytest.raises(OSError, match=f"names .*{path.name}, which is not a file"):
            Config.from_file(base)
        manifest = path.rename(path.with_suffix(".json"))
        with pytest.raises(ReadError, match=rf"{manifest.name}: .*not a regular file"):
            packed_dicts(manifest)


def test_circular_links_are_one_error(tmp_path):
    (tmp_path / "a.yaml").symlink_to(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "a.yaml")
    with pytest.raises(OSError, match=r"a\.yaml"):
        Config.from_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, b"\xff\xfe", "[]", '{"medsegpy_packed": 1}', '{"medsegpy_packed": 1, "dicts": 5}']
)
def test_manifests_are_named(tmp_path, text):
    path = config_file(tmp_path, "m.json", text)
    with pytest.raises(ReadError, match=r"m\.json: "):
        packed_dicts(path)


def test_on_the_command_line_it_is_one_message(tmp_path):
    path = config_file(tmp_path, "bomb.yaml", bomb(30))
    asked = ["evaluate", "abdomen_slices_test", "--predictions", str(tmp_path), "--config", str(path)]
    result = CliRunner().invoke(cli, asked)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {path}: ")
    assert len(result.stderr.splitlines()) == 1
