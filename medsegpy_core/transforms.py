"""Transforms of the image and the mask of one element, after collation.

A transform is a callable ``(image, mask) -> (image, mask)``. `image` is H x W [x D] x K, `mask` H x W [x D] x C, both
float32, channels last. If it has a parameter `rng`, it receives a `numpy.random.Generator` that depends on seed, epoch
and element only. If it may be called from several threads at once, it has the attribute ``thread_safe = True``;
otherwise each thread gets a deep copy.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from attrs import field, frozen

from medsegpy_core.errors import ConfigError, PluginError
from medsegpy_core.plugins.registry import Registry
from medsegpy_core.plugins.specs import TransformSpec
from medsegpy_core.typing import Transform

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.typing import Array

__all__ = [
    "AffineNormalization",
    "TransformPipeline",
    "Windowing",
    "ZeroMeanNormalization",
    "build_transform",
    "build_transforms",
    "register_transform",
    "transform_names",
]


def _bounds(value: Any) -> tuple[tuple[float, float], ...]:
    pairs = np.asarray(value, dtype=np.float64)
    pairs = pairs[np.newaxis] if pairs.ndim == 1 else pairs
    if pairs.ndim != 2 or pairs.shape[0] == 0 or pairs.shape[1] != 2 or not (pairs[:, 0] < pairs[:, 1]).all():
        raise ValueError(f"bounds = {value!r}: expected pairs (lower, upper) with lower < upper, as in [(-160, 240)].")
    return tuple((float(lower), float(upper)) for lower, upper in pairs)


@frozen
class Windowing:
    """Clip the image: x' = min(max(x, lower), upper). The mask is unchanged.

    Attributes:
        bounds: A pair (lower, upper) in the units of the image (Hounsfield units in CT), or several: each makes its
            own channels, in this order, so that an H x W x 1 image comes out as H x W x len(bounds).

    Example:
        >>> image, _ = Windowing([(0, 10), (5, 20)])(np.array([[[-3.0], [30.0]]]), None)
        >>> image.tolist()
        [[[0.0, 5.0], [10.0, 20.0]]]
    """

    thread_safe: ClassVar[bool] = True
    bounds: tuple[tuple[float, float], ...] = field(converter=_bounds)

    def __call__(self, image: Array, mask: Array) -> tuple[Array, Array]:
        """Return the clipped image, and the mask."""
        windows = [np.clip(image, lower, upper) for lower, upper in self.bounds]
        return (windows[0] if len(windows) == 1 else np.concatenate(windows, axis=-1)), mask


def _axes(value: Any) -> int | tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list | tuple) else value


@frozen
class ZeroMeanNormalization:
    """Normalize to zero mean and unit variance: x' = (x - mean) / standard deviation. The mask is unchanged.

    The standard deviation is that of the population (divided by n). A constant image becomes 0.

    Attributes:
        axis: The axis or axes of the statistics; None: all spatial axes, separately for each channel.

    Example:
        >>> ZeroMeanNormalization()(np.array([[[1.0], [3.0]]]), None)[0].tolist()
        [[[-1.0], [1.0]]]
    """

    thread_safe: ClassVar[bool] = True
    axis: int | tuple[int, ...] | None = field(default=None, converter=_axes)

    def __call__(self, image: Array, mask: Array) -> tuple[Array, Array]:
        """Return the normalized image, and the mask."""
        axis = tuple(range(image.ndim - 1)) if self.axis is None else self.axis
        # In float64: sums of a million float32 values lose digits.
        mean = image.mean(axis=axis, keepdims=True, dtype=np.float64)
        centered = image - mean
        deviation = np.sqrt(np.square(centered).mean(axis=axis, keepdims=True))
        return (centered / np.where(deviation == 0, 1, deviation)).astype(image.dtype, copy=False), mask


def _factor(value: Any) -> float | tuple[float, ...]:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{value!r}: expected a finite number, or one for each channel.")
    return float(array) if array.ndim == 0 else tuple(array.tolist())


def _not_zero(_: object, attribute: Any, value: Any) -> None:
    if not np.all(value):
        raise ValueError(f"{attribute.name} = {value!r}: the image is divided by it, so it cannot be 0.")


@frozen
class AffineNormalization:
    """Shift, then scale: x' = (x - bias) / scale. The mask is unchanged.

    Attributes:
        scale: In the units of the image; a number, or one for each channel.
        bias: The same.

    Example:
        >>> AffineNormalization(scale=100.0, bias=50.0)(np.array([[[250.0]]]), None)[0].tolist()
        [[[2.0]]]
    """

    thread_safe: ClassVar[bool] = True
    scale: float | tuple[float, ...] = field(default=1.0, converter=_factor, validator=_not_zero)
    bias: float | tuple[float, ...] = field(default=0.0, converter=_factor)

    def __call__(self, image: Array, mask: Array) -> tuple[Array, Array]:
        """Return the normalized image, and the mask."""
        for value in (self.scale, self.bias):
            if isinstance(value, tuple) and len(value) != image.shape[-1]:
                raise ValueError(f"{self} has {len(value)} channels, the image has {image.shape[-1]}.")
        shifted = image - np.asarray(self.bias, image.dtype)
        return shifted / np.asarray(self.scale, image.dtype), mask


def build_transforms(cfg: Config, extra: Transform | None = None) -> TransformPipeline:
    """Return the transforms of a loader: the config's ``PREPROCESSING``, then `extra`.

    Args:
        cfg: ``PREPROCESSING`` names transforms. ``PREPROCESSING_ARGS`` has a dict of arguments for each, or is empty.
        extra: A user's transform, or None.

    Raises:
        UnknownNameError: There is no transform of that name.
        ConfigError: Names and arguments do not match, or a transform does not accept its arguments.
        TypeError: `extra` is not callable.
    """
    names, arguments = cfg.PREPROCESSING, cfg.PREPROCESSING_ARGS or [{}] * len(cfg.PREPROCESSING)
    if len(names) != len(arguments):
        raise ConfigError(
            f"PREPROCESSING names {len(names)} transforms {names}, PREPROCESSING_ARGS has arguments for "
            f"{len(arguments)}: give a dict for each ({{}} for none), or no arguments at all."
        )
    steps = [(name, build_transform(name, args)) for name, args in zip(names, arguments, strict=True)]
    if extra is not None:
        if not callable(extra):
            raise TypeError(f"A transform is called as transform(image, mask), but {extra!r} cannot be called.")
        steps.append((_name_of(extra), extra))
    return TransformPipeline(steps)


class TransformPipeline:
    """Transforms, one after the other: ``pipeline(image, mask, rng) -> (image, mask)``.

    Thread-safe. It pickles if its transforms do, and is false if it is empty.

    Args:
        steps: Names, for messages, and transforms.
    """

    def __init__(self, steps: Sequence[tuple[str, Transform]]):
        self._steps = [(name, transform, _takes_rng(transform)) for name, transform in steps]
        self._local = threading.local()

    @property
    def random(self) -> tuple[bool, ...]:
        """For each transform, whether it needs random numbers."""
        return tuple(takes_rng for _, _, takes_rng in self._steps)

    @property
    def uses_rng(self) -> bool:
        """Whether any transform needs random numbers; if not, `rng` may be None."""
        return any(self.random)

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self, image: Array, mask: Array, rng: np.random.Generator | None = None) -> tuple[Array, Array]:
        """Transform one element.

        Args:
            image: H x W [x D] x K.
            mask: H x W [x D] x C.
            rng: The generator for this seed, epoch and element.

        Returns:
            Image and mask, of the same types as before.

        Raises:
            PluginError: A transform does not return two arrays that fit each other.
        """
        dtypes = image.dtype, mask.dtype
        for (name, _, takes_rng), transform in zip(self._steps, self._own_copies(), strict=True):
            try:
                result = transform(image, mask, rng=rng) if takes_rng else transform(image, mask)
            except Exception as error:
                error.add_note(f"Raised by transform {name!r} on an image of shape {image.shape}.")
                raise
            image, mask = _checked(name, result, image.ndim)
        return image.astype(dtypes[0], copy=False), mask.astype(dtypes[1], copy=False)

    def _own_copies(self) -> list[Transform]:
        copies: list[Transform] | None = getattr(self._local, "copies", None)
        if copies is None:
            copies = self._local.copies = [_own_copy(name, transform) for name, transform, _ in self._steps]
        return copies

    def __getstate__(self) -> dict[str, Any]:
        return {"_steps": self._steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()


def _own_copy(name: str, transform: Transform) -> Transform:
    if getattr(transform, "thread_safe", False) is True:
        return transform
    try:
        return copy.deepcopy(transform)
    except Exception as error:
        raise PluginError(
            f"Transform {name!r} cannot be copied for each thread ({error}). If it may be called from several threads "
            "at once, give it an attribute `thread_safe = True`."
        ) from error


def _checked(name: str, result: Any, ndim: int) -> tuple[Array, Array]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise PluginError(f"Transform {name!r} must return (image, mask), but returned a {type(result).__name__}.")
    for what, array in zip(("image", "mask"), result, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            found = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise PluginError(f"Transform {name!r} must return two arrays of numbers; its {what} is a {found}.")
    image, mask = result
    if image.ndim != ndim or image.shape[:-1] != mask.shape[:-1]:
        raise PluginError(
            f"Transform {name!r} returned an image of shape {image.shape} and a mask of shape {mask.shape}: expected "
            f"{ndim} axes, the last one the channels, the others of the same sizes in both."
        )
    return image, mask


def _takes_rng(transform: Transform) -> bool:
    try:
        parameter = inspect.signature(transform).parameters.get("rng")
    except (TypeError, ValueError):  # some C functions have no signature
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _name_of(transform: Transform) -> str:
    return str(getattr(transform, "__qualname__", type(transform).__qualname__))


_registry: Registry[TransformSpec] = Registry("transforms")


def register_transform(name: str, build: Callable[..., Transform], *, replace: bool = False) -> None:
    """Register a transform in this process.

    Args:
        name: The name for `PREPROCESSING`.
        build: ``build(**args)`` returns ``(image, mask) -> (image, mask)``; `args` come from `PREPROCESSING_ARGS`.
        replace: Whether to replace an existing transform of this name.

    Raises:
        DuplicateNameError: The name is already registered. A clash with a plugin is reported by `build_transform`.
    """
    _registry.register(TransformSpec(name, build), replace)


def build_transform(name: str, args: Mapping[str, Any] | None = None) -> Transform:
    """Build a transform.

    Args:
        name: The name of a transform of the core, of a plugin, or registered in the process.
        args: Its arguments.

    Raises:
        UnknownNameError: There is no such transform.
        DuplicateNameError: More than one owner claims the name.
        ConfigError: It does not accept these arguments, or the result is not callable.
    """
    owned = _registry.get(name)
    if not isinstance(args or {}, Mapping) or not all(isinstance(key, str) for key in args or {}):  # type: ignore[redundant-expr]
        raise ConfigError(f"The arguments of the transform {name!r} must be a dict of names and values, not {args!r}.")
    try:
        transform = owned.record.build(**(args or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The transform {name!r} ({owned}) cannot be built with {dict(args or {})}: {error}"
        ) from error
    if not callable(transform):
        raise ConfigError(f"The transform {name!r} ({owned}) built {transform!r}, which cannot be called.")
    return transform


def transform_names() -> list[str]:
    """Return the names of all transforms, sorted."""
    return _registry.names()
