"""Reading and writing config files: YAML, TOML and INI. Values are data; nothing is executed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from medsegpy_core._util.atomic import replace_file
from medsegpy_core._util.limits import read_limited
from medsegpy_core.config.keys import is_plain, literal
from medsegpy_core.errors import ConfigError

BASE_KEY: Final = "_BASE_"
_Function = TypeVar("_Function")
_MOST_BYTES: Final = 2**20
_MOST_VALUES: Final = 100_000
_MOST_LEVELS: Final = 50
# YAML 1.2 floats: PyYAML follows YAML 1.1, which reads 1e-3 as a str.
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a config file and its ``_BASE_`` files. The nearest value of a key wins.

    Args:
        path: The file. The suffix gives the format: ``.yaml``, ``.yml``, ``.toml``, ``.ini``, ``.cfg``.

    Returns:
        Keys in upper case, and values as in the file: an INI has strings only.

    Raises:
        ConfigError: The file is malformed, of another format, too large, not a regular file, or its own base, directly
            or indirectly.
        OSError: A file cannot be read.
    """
    chain: list[Path] = []
    values: dict[str, Any] = {}
    at: Path | None = path
    while at is not None:
        resolved = Path(os.path.realpath(at))  # unlike `resolve`, does not raise for circular links
        if resolved in chain:
            names = " -> ".join(p.name for p in [*chain, resolved])
            raise ConfigError(f"{path}: {BASE_KEY} is circular: {names}.")
        if chain and not resolved.is_file():
            raise FileNotFoundError(f"{chain[-1]}: {BASE_KEY} names {at}, which is not a file.")
        chain.append(resolved)
        own = _read_one(at)
        base = own.pop(BASE_KEY, None)
        # The files read before are nearer to the user, so their values win.
        values = own | values
        at = None if base is None else _base_path(base, at)
    return values


def write_config_file(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file in the format of the suffix, atomically: on failure, `path` is unchanged.

    Raises:
        ConfigError: The suffix is unknown, or a value cannot be written so that it is read back the same.
    """
    writers = {".yaml": _yaml_text, ".yml": _yaml_text, ".toml": _toml_text, ".ini": _ini_text, ".cfg": _ini_text}
    text = _by_suffix(path, writers)(values)
    replace_file(path, text)


def _by_suffix(path: Path, functions: Mapping[str, _Function]) -> _Function:
    function = functions.get(path.suffix.lower())
    if function is None:
        raise ConfigError(f"{path}: a config file ends in {', '.join(functions)}, not in {path.suffix!r}.")
    return function


def _yaml_text(values: Mapping[str, Any]) -> str:
    import yaml

    written = {key: _writable(key, value) for key, value in values.items()}
    dumper = _yaml_class(yaml.SafeDumper)
    dumper.add_representer(str, _represent_text)
    return str(yaml.dump(written, Dumper=dumper, sort_keys=False, allow_unicode=True, width=float("inf")))


def _toml_text(values: Mapping[str, Any]) -> str:
    """Return one line per key: TOML strings, booleans and ints, and Python literals in strings for the rest."""
    lines = []
    for key, value in values.items():
        if type(value) in (bool, int):
            text = str(value).lower()
        else:
            literal_text = _writable(key, value) if isinstance(value, str) else _literal_text(key, value)
            text = json.dumps(literal_text, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{json.dumps(key, ensure_ascii=False)} = {text}\n")
    return "".join(lines)


def _ini_text(values: Mapping[str, Any]) -> str:
    return "".join(["[DEFAULT]\n", *(f"{key} = {_literal_text(key, value)}\n" for key, value in values.items())])


def _base_path(base: Any, file: Path) -> Path:
    if not isinstance(base, str) or not base or "\0" in base:
        raise ConfigError(f"{file}: {BASE_KEY} is {base!r}, expected the path of a config file.")
    return file.parent / os.path.expanduser(base)  # noqa: PTH111 - `Path` raises if there is no such user


def _read_one(path: Path) -> dict[str, Any]:
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".toml": _read_toml, ".ini": _read_ini, ".cfg": _read_ini}
    reader = _by_suffix(path, readers)
    try:
        text = _bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        # MedSegPy has INI files with the suffix .yaml; no YAML config begins like this.
        found = _read_ini(text) if text.startswith("[DEFAULT]") else reader(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error}).") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    values: dict[str, Any] = {}
    for key, value in found.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: the keys of a config are names, not {key!r}.")
        if key.upper() in values:
            raise ConfigError(f"{path}: {key.upper()} occurs twice.")
        values[key.upper()] = value
    return values


def _bytes(path: Path) -> bytes:
    try:
        return read_limited(path, _MOST_BYTES)
    except OSError as error:
        if error.errno is None:  # not an OS error: the file cannot be a config
            raise ConfigError(str(error).removeprefix(f"{path}: ")) from error
        raise


def _read_yaml(text: str) -> Mapping[Any, Any]:
    import yaml

    try:
        # A subclass of SafeLoader: plain data only.
        loader = _yaml_class(_located(yaml.SafeLoader))(text)
        try:
            node = loader.get_single_node()
            _count_values(node, {}, 0)
            found = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {_yaml_problem(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"not a config: values are nested more than {_MOST_LEVELS} levels deep.") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"expected keys and values, as in 'N_EPOCHS: 100', found a {type(found).__name__}.")
    return found


def _count_values(node: Any, known: dict[int, int], level: int) -> int:
    """Return the number of values of a YAML node, including those that its aliases repeat.

    Raises:
        ConfigError: There are too many values, they are nested too deep, or one contains itself. Ten lines of aliases
            can expand to more values than fit into memory.
    """
    if node is None or isinstance(node.value, str):
        return 1
    where = f"line {node.start_mark.line + 1}"
    # 0 marks a node whose parts are being counted. An alias is the same node, so its count is looked up, not repeated.
    if known.get(id(node)) == 0:
        raise ConfigError(f"not a config: the value that begins in {where} contains itself.")
    if level > _MOST_LEVELS:
        raise ConfigError(f"not a config: values are nested more than {_MOST_LEVELS} levels deep ({where}).")
    if id(node) not in known:
        known[id(node)] = 0
        parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_count_values(part, known, level + 1) for part in parts)
    if known[id(node)] > _MOST_VALUES:
        raise ConfigError(f"not a config: aliases expand to more than {_MOST_VALUES:,} values ({where}).")
    return known[id(node)]


def _yaml_problem(error: Any) -> str:
    """Return the problem and its position in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).replace('in "<unicode string>", ', "").split())
    return f"{problem} (at line {mark.line + 1}, column {mark.column + 1})"


def _read_toml(text: str) -> Mapping[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:  # also an int of too many digits
        raise ConfigError(f"not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError("not a config: values are nested too deep.") from error


def _read_ini(text: str) -> Mapping[str, Any]:
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ConfigError(f"not a valid INI file: {_ini_problem(error)}") from error
    if parser.sections():
        sections = ", ".join(f"[{name}]" for name in parser.sections())
        raise ConfigError(f"a config in INI has one section, [DEFAULT]; this one has {sections}.")
    return dict(parser.defaults())


def _ini_problem(error: Any) -> str:
    """Return the problem and its position in one line."""
    import configparser

    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"it does not begin with the section [DEFAULT] (at line {error.lineno})"
    if isinstance(error, configparser.DuplicateOptionError):
        return f"{error.option} occurs twice (at line {error.lineno})"
    if isinstance(error, configparser.ParsingError) and error.errors:
        return f"expected KEY = VALUE (at line {error.errors[0][0]})"
    return " ".join(str(error).split())


def _located(base: Any) -> Any:
    """Return a subclass of a YAML loader that reports the position of values that Python refuses, such as month 13."""
    import yaml

    class Located(base):  # type: ignore[misc]
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except ValueError as error:
                raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    return Located


def _yaml_class(base: Any) -> Any:
    """Return a subclass of PyYAML's safe loader or dumper that recognizes floats like 1e-3."""
    cls: Any = type(f"Config{base.__name__}", (base,), {})
    cls.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
    return cls


def _represent_text(dumper: Any, text: str) -> Any:
    # PyYAML reads some line breaks (U+0085, U+2028) back as blanks unless they are escaped, which needs double quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


def _writable(key: str, value: Any) -> Any:
    """Return the YAML form of `value`: YAML has no tuples, and a str may look like a literal."""
    if isinstance(value, str):
        return repr(value) if literal(value) is not value else value
    if _is_yaml(value):
        return value
    return _literal_text(key, value)


def _literal_text(key: str, value: Any) -> str:
    text = repr(value)
    # Refuse values that would be read back differently, such as NaN, for which there is no literal.
    if not is_plain(value) or repr(literal(text)) != text:
        raise ConfigError(f"{key} = {text} cannot be written to a file. {key} may hold plain Python values only.")
    return text


def _is_yaml(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_yaml, value))
    if isinstance(value, dict):
        return all(_is_yaml(k) and not isinstance(k, dict | list) and _is_yaml(v) for k, v in value.items())
    return value is None or type(value) in (bool, int, float, str)
