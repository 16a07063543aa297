"""The plugin of the core itself: its loaders and transforms, registered with the same hooks as those of any plugin.

`medsegpy_core.plugins` loads it before all others, whatever the value of `MEDSEGPY_LOAD_PLUGINS`. Each loader and
transform is imported when it is built.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core.plugins.hookspecs import hookimpl
from medsegpy_core.plugins.specs import LoaderSpec, TransformSpec

if TYPE_CHECKING:
    from medsegpy_core.plugins.specs import LoaderRequest
    from medsegpy_core.typing import Transform

# Names of classes in medsegpy_core.loading.loader and medsegpy_core.transforms.
_LOADERS: Final = (
    "DefaultDataLoader",
    "S25dDataLoader",
    "PatchDataLoader",
    "N5dDataLoader",
    "RandomPatchDataLoader",
)
_TRANSFORMS: Final = ("AffineNormalization", "Windowing", "ZeroMeanNormalization")


@hookimpl
def medsegpy_register_loaders() -> list[LoaderSpec]:
    """Return the loaders of `medsegpy_core.loading.loader`."""
    return [LoaderSpec(name, partial(_build_loader, name)) for name in _LOADERS]


@hookimpl
def medsegpy_register_transforms() -> list[TransformSpec]:
    """Return the transforms of `medsegpy_core.transforms`."""
    return [TransformSpec(name, partial(_build_transform, name)) for name in _TRANSFORMS]


def _build_loader(name: str, request: LoaderRequest) -> Any:
    return getattr(import_module("medsegpy_core.loading.loader"), name).from_request(request)


def _build_transform(name: str, /, *args: Any, **kwargs: Any) -> Transform:
    made: Transform = getattr(import_module("medsegpy_core.transforms"), name)(*args, **kwargs)
    return made
