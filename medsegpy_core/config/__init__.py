"""`Config`: the settings of an experiment, with MedSegPy's key names.

`keys` defines the keys, their defaults and checks; `files` reads and writes config files.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from medsegpy_core.config.files import read_config_file, write_config_file
from medsegpy_core.config.keys import ANYTHING, KEYS, OWN_KEYS, RENAMED_KEYS, UNUSED_PATHS, Key
from medsegpy_core.errors import ConfigError, ConfigWarning, MedSegPyError, closest_match

_LONGEST: Final = 300  # characters of a value shown in a message


class _UnknownKeyError(ConfigError, AttributeError):
    """Access to an unknown key as an attribute. As an `AttributeError`, it supports `hasattr` and `getattr`."""


class Config:
    """The settings of an experiment. Keys are attributes, in upper case; see docs/config.md for all of them.

    A value is checked and normalized when it is set: sizes become tuples, categories and metric names become lists.
    Configs pickle, copy, and compare by value.

    Args:
        model_name: Sets ``MODEL_NAME``.
        values: Values of any keys.

    Raises:
        ConfigError: A key is unknown, or a value does not fit it.

    Example:
        >>> cfg = Config("unet", TRAIN_DATASET="knee_train", IMG_SIZE=(384, 384, 1))
        >>> cfg.CATEGORIES = [0, (1, 2)]
        >>> cfg
        Config('unet', TRAIN_DATASET='knee_train', CATEGORIES=[0, (1, 2)], IMG_SIZE=(384, 384, 1))
        >>> cfg.TRAIN_BATCH_SIZES = 8
        Traceback (most recent call last):
            ...
        medsegpy_core.errors.ConfigError: There is no config key 'TRAIN_BATCH_SIZES'. Did you mean \
'TRAIN_BATCH_SIZE'? Add a key of your own with cfg.add('TRAIN_BATCH_SIZES', value).
    """

    def __init__(self, model_name: str = "", /, **values: Any):
        # Bypass `__setattr__`, which accepts keys only.
        self.__dict__["_values"] = {name: copy.copy(key.default) for name, key in KEYS.items()}
        if model_name:
            self.MODEL_NAME = model_name
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Config:
        """Read a config file; see `merge_from_file`."""
        return cls()._merge_file(Path(path))  # noqa: SLF001 - an object of this class

    def merge_from_file(self, path: str | os.PathLike[str]) -> Config:
        """Merge the values of a file: YAML, TOML, or INI (section ``DEFAULT``).

        Keys may be in any case, and values may be written as Python literals (``(384, 384, 1)``, ``1e-3``); nothing is
        executed. ``_BASE_`` names a file, relative to this one, whose values are used for keys that this file does not
        set. Old names of MedSegPy's keys (``TISSUES``) are accepted.

        Returns:
            This config.

        Raises:
            ConfigError: The file is malformed, or a value does not fit its key. The config is then unchanged.
            OSError: The file cannot be read.

        Warns:
            ConfigWarning: The file has unknown keys. They are kept.
        """
        return self._merge_file(Path(path))

    def merge_from_list(self, pairs: Sequence[Any]) -> Config:
        """Merge keys and values, as from a command line: ``["N_EPOCHS", 20, "IMG_SIZE", "(384, 384, 1)"]``.

        Returns:
            This config.

        Raises:
            ConfigError: An odd number of items, an unknown key, ``MODEL_NAME`` (set it in code or in a file), or a
                value that does not fit. The config is then unchanged.
        """
        items = list(pairs)
        if isinstance(pairs, str) or len(items) % 2:
            raise ConfigError(f"Expected alternating keys and values, as in ['N_EPOCHS', 20], but got {pairs!r}.")
        merged = {}
        for name, value in zip(items[::2], items[1::2], strict=True):
            if name == "MODEL_NAME":
                raise ConfigError("A list cannot change MODEL_NAME: use Config(name), or cfg.MODEL_NAME = name.")
            merged[name] = self._fit(name, value, parse=True)
        self._values.update(merged)
        return self

    def add(self, name: str, value: Any) -> Config:
        """Add a key of your own.

        Args:
            name: In upper case, like every key, because keys in files may be in any case.
            value: None, bools, numbers, strings, and lists, tuples and dicts of them.

        Raises:
            ConfigError: The key exists, is not a name in upper case, or the value is of another type.
        """
        if not str(name).isidentifier() or name != name.upper() or name.startswith("_"):
            raise ConfigError(f"{name!r} cannot be a config key: use a name in upper case, as in 'MY_KEY'.")
        if name in self._values or name in RENAMED_KEYS:
            raise ConfigError(f"The config key {name!r} already exists; set it with cfg.{name} = value.")
        self._values[name] = _converted(name, value, ANYTHING, parse=False)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the config, so that ``Config.from_file(path)`` returns an equal one. The file is replaced atomically.

        The suffix chooses the format: ``.yaml`` (``.yml``), ``.toml`` or ``.ini`` (``.cfg``).

        The file contains all of medsegpy_core's keys, and those of the others that differ from their defaults.
        """
        values = self._checked()
        write_config_file(
            Path(path),
            {name: v for name, v in values.items() if name in OWN_KEYS or name not in KEYS or v != KEYS[name].default},
        )

    def copy(self) -> Config:
        """Return an independent copy.

        Raises:
            ConfigError: A list or dict in it was changed in place to an invalid value.
        """
        new = type(self)()
        new.__dict__["_values"] = self._checked()
        return new

    def as_dict(self) -> dict[str, Any]:
        """Return all keys and values, including MedSegPy's other keys."""
        return copy.deepcopy(self._values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        # Names with a leading underscore are never keys; copy and pickle look up some.
        raise AttributeError(name) if name.startswith("_") else _UnknownKeyError(_unknown(name, values))

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = self._fit(name, value, parse=False)

    def __delattr__(self, name: str) -> None:
        raise ConfigError(f"Config keys cannot be deleted: {name!r}.")

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, Config) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __dir__(self) -> Iterable[str]:
        return [*(name for name in dir(type(self)) if not name.startswith("_")), *self._values]

    def __repr__(self) -> str:
        shown = {n: v for n, v in self._values.items() if n not in KEYS or v != KEYS[n].default}
        name = shown.pop("MODEL_NAME", "")
        parts = [repr(name)] if name else []
        return f"{type(self).__name__}({', '.join(parts + [f'{n}={v!r}' for n, v in shown.items()])})"

    def _merge_file(self, path: Path) -> Config:
        merged: dict[str, Any] = {}
        for written, value in read_config_file(path).items():
            name = RENAMED_KEYS.get(written, written)
            if name in merged and written != name:
                raise ConfigError(f"{path}: has both {name} and its old name {written}; keep one.")
            if name in UNUSED_PATHS and value:
                _warn(f"{path}: {name} has no effect; register a dataset and name it in {UNUSED_PATHS[name]}.")
            known = name in self._values
            if not known:
                _warn(f"{path}: {_unknown(name, self._values)}")
            key = KEYS.get(name, ANYTHING)
            try:
                merged[name] = _converted(name, value, key, parse=True)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error.__cause__
        self._values.update(merged)
        return self

    def _fit(self, name: Any, value: Any, *, parse: bool) -> Any:
        if name not in self._values:
            raise ConfigError(_unknown(name, self._values))
        return _converted(name, value, KEYS.get(name, ANYTHING), parse=parse)

    def _checked(self) -> dict[str, Any]:
        return {name: self._fit(name, value, parse=False) for name, value in self._values.items()}


def _converted(name: str, value: Any, key: Key, *, parse: bool) -> Any:
    try:
        return key.parse(value) if parse else key.convert(value)
    except (TypeError, ValueError) as error:
        detail = f" {str(error)[:_LONGEST]}" if isinstance(error, MedSegPyError) else ""
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."
        raise ConfigError(f"Config key {name} is {shown}, expected {key.expected}.{detail}") from error


def _unknown(name: Any, known: Mapping[str, Any]) -> str:
    if name in RENAMED_KEYS:
        return f"The config key {name!r} is now called {RENAMED_KEYS[name]!r}."
    if not isinstance(name, str):
        return f"There is no config key {name!r}: keys are names in upper case, as in 'N_EPOCHS'."
    hint = closest_match(name.upper(), known)
    return f"There is no config key {name!r}.{hint} Add a key of your own with cfg.add({name.upper()!r}, value)."


def _warn(message: str) -> None:
    # 4: the caller of `from_file` or `merge_from_file`.
    warnings.warn(message, ConfigWarning, stacklevel=4)
