"""Voxel geometry: spacings, affines, and comparing the grids of two arrays.

An affine is 4 x 4 and maps the voxel index (h, w, d) to RAS+ millimeters. An index refers to the center of a voxel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from attrs import field, frozen
from attrs.converters import optional

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsegpy_core.typing import Array


Affine: TypeAlias = tuple[tuple[float, ...], ...]

# Offset of the corners of a mask from those of its image, in voxels, above which there is a warning, and an error.
WARNING_VOXELS: Final = 0.1
ERROR_VOXELS: Final = 0.5
# Relative difference up to which two spacings count as equal.
SPACING_TOLERANCE: Final = 0.01
# Arrays with more numbers than this cannot be an affine.
_MOST_NUMBERS: Final = 16
# Rounding of float32, in which NIfTI stores affines.
_ROUNDING: Final = 1e-5


def checked_spacing(value: Any, axes: Sequence[int] = (3,)) -> tuple[float, ...] | None:
    """Return a spacing as floats, or None if it is not a spacing.

    Args:
        value: Any value.
        axes: The allowed numbers of values.

    Returns:
        None if the value is not that many positive, finite numbers.
    """
    import numpy as np

    try:
        sizes = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if sizes.ndim != 1 or sizes.size not in axes or not np.isfinite(sizes).all() or not (sizes > 0).all():
        return None
    return tuple(sizes.tolist())


def checked_affine(value: Any) -> Affine | None:
    """Return an affine as four rows of four floats, or None if it is not 4 x 4, finite and invertible."""
    import numpy as np

    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or matrix[3].tolist() != [0, 0, 0, 1]:
        return None
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # The volume of a voxel relative to that of the box with its edges: 0 if two directions coincide.
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < _ROUNDING:
        return None
    return tuple(map(tuple, matrix.tolist()))


def spacing_of(affine: Any) -> tuple[float, float, float]:
    """Return the size of a voxel along each axis, in millimeters: the lengths of the affine's columns.

    Args:
        affine: 4 x 4.
    """
    import numpy as np

    # Round to seven digits: 0.7 stored as float32 is meant to be 0.7.
    h, w, d = (float(f"{n:.7g}") for n in np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0))
    return h, w, d


def axis_codes(affine: Any) -> tuple[str, str, str]:
    """Return the direction in which each axis of the array runs: one of R, L, A, P, S and I.

    An oblique axis has the closest direction, and no two axes share a direction.

    Args:
        affine: 4 x 4, invertible.

    Example:
        >>> axis_codes([[0, -3, 0, 0], [-3, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
        ('P', 'L', 'S')
    """
    import numpy as np

    matrix = np.asarray(affine, np.float64)[:3, :3]
    # The rotation closest to the affine (polar decomposition): with shears, columns are not orthogonal, and the largest
    # entries of two columns may be in one row.
    left, _, right = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
    rotation = left @ right  # without shears
    codes = ["", "", ""]
    # The clearest axis chooses first, and its direction is removed for the others.
    for axis in np.argsort(-np.abs(rotation).max(axis=0), kind="stable"):
        world = int(np.abs(rotation[:, axis]).argmax())
        codes[axis] = ("LR", "PA", "IS")[world][int(rotation[world, axis] > 0)]
        rotation[world] = 0
    return codes[0], codes[1], codes[2]


def given_geometry(spacing: Any, affine: Any) -> dict[str, Any]:
    """Check the spacing and the affine that a caller passes for a scan. None stands for an unknown one.

    Returns:
        ``spacing`` and ``affine``, as far as they are known.

    Raises:
        ValueError: They are not three positive numbers and an invertible 4 x 4 matrix, or contradict each other by more
            than 1 %.
    """
    sizes, matrix = checked_spacing(spacing), checked_affine(affine)
    if spacing is not None and sizes is None:
        raise ValueError(f"spacing is {spacing!r}: expected three positive numbers of millimeters, for H, W and D.")
    if affine is not None and matrix is None:
        raise ValueError(
            f"affine is {affine!r}: expected an invertible 4 x 4 matrix, voxel index (h, w, d) to RAS+ millimeters, "
            "its last row 0, 0, 0, 1."
        )
    if sizes is not None and matrix is not None and not same_spacing(sizes, spacing_of(matrix)):
        raise ValueError(
            f"spacing is {_mm(sizes)}, but the columns of affine are {_mm(spacing_of(matrix))} long. Give the affine "
            "alone, if it is right."
        )
    return {key: value for key, value in (("spacing", sizes), ("affine", matrix)) if value is not None}


def has_length(value: Any, axes: Sequence[int]) -> bool:
    """Return whether a spacing has one of these lengths. True for what is no spacing, which other checks refuse."""
    return checked_spacing(value, axes) is not None or checked_spacing(value, range(1, 17)) is None


def same_spacing(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two spacings agree within 1 %, on the axes that both have."""
    return all(abs(a - b) <= SPACING_TOLERANCE * max(a, b) for a, b in zip(one, other, strict=False))


def stated(metadata: Mapping[str, Any], axes: Sequence[int] = (3,)) -> tuple[dict[str, Any], str | None]:
    """Return the geometry that a file states, normalized, together with its other metadata unchanged.

    If there is an affine, the spacing is the length of its columns. A value that cannot be a spacing or an affine, or
    has another length, counts as not stated.

    Args:
        metadata: `OpenScan.metadata`: ``spacing`` and ``affine`` are for the axes H, W, D.
        axes: The allowed numbers of values of a spacing.

    Returns:
        The values, and a description of the contradiction between spacing and affine, or None if they agree.
    """
    values = {key: value for key, value in metadata.items() if key not in ("spacing", "affine")}
    found = _stated(_key(metadata.get("spacing")), _key(metadata.get("affine")))
    if found.affine is not None:
        values["affine"] = metadata["affine"]  # the original: an array stays an array
    if found.spacing is not None and len(found.spacing) in axes:
        values["spacing"] = found.spacing
    return values, found.contradiction


class _Stated(NamedTuple):
    """The normalized geometry of a file; see `stated`."""

    spacing: tuple[float, ...] | None
    affine: Affine | None
    contradiction: str | None


def _key(value: Any) -> tuple[tuple[int, ...], bytes] | None:
    """Return the shape and the bytes of a few numbers, or None for anything else."""
    import numpy as np

    if value is None:
        return None
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return (numbers.shape, numbers.tobytes()) if numbers.size <= _MOST_NUMBERS else None


# Cached because every slice of a scan needs it.
@functools.lru_cache(maxsize=1024)
def _stated(
    spacing_key: tuple[tuple[int, ...], bytes] | None, affine_key: tuple[tuple[int, ...], bytes] | None
) -> _Stated:
    import numpy as np

    given, matrix = (
        None if key is None else np.frombuffer(key[1]).reshape(key[0]) for key in (spacing_key, affine_key)
    )
    spacing, affine = checked_spacing(given, (2, 3)), checked_affine(matrix)
    if affine is None:
        return _Stated(spacing, None, None)
    columns: tuple[float, ...] = spacing_of(affine)
    contradiction = None
    if spacing is not None and not same_spacing(spacing, columns):
        contradiction = f"its spacing is {_mm(spacing)}, but the columns of its affine are {_mm(columns)} long"
    if spacing is not None and len(spacing) == 2 and columns[2] == 1:
        columns = columns[:2]  # a file with two axes; writers fill the third column with 1
    # Keep the stated spacing if it differs by rounding only: it is the number that a user wrote.
    if spacing is None or not _equal(spacing, columns):
        spacing = columns
    return _Stated(spacing, affine, contradiction)


def reordered(metadata: Mapping[str, Any], axes: str | None) -> dict[str, Any]:
    """Return spacing and affine for the axes H, W, D, given those for the stored axes of a file.

    Args:
        metadata: ``spacing``, one value per stored spatial axis, and ``affine``, its columns in stored order. If D is
            not stored, a third value or column is that of D.
        axes: The stored axes, as in `image_axes`; C is ignored. None: H, W, D.

    Returns:
        Both. A spacing without a value for each stored axis is left out.
    """
    import numpy as np

    stored = [letter for letter in axes or "HWD" if letter != "C"]
    letters = stored if "D" in stored else [*stored, "D"]
    order = [letters.index(letter) for letter in "HWD"]
    values = dict(metadata)
    spacing = values.pop("spacing", None)
    if spacing is not None and len(spacing) == 3:
        values["spacing"] = tuple(spacing[axis] for axis in order)
    elif spacing is not None and len(spacing) == 2 and (axes is None or len(stored) == 2):
        values["spacing"] = tuple(spacing[axis] for axis in order if axis < 2)
    if "affine" in values:
        values["affine"] = np.asarray(values["affine"])[:, [*order, 3]]
    return values


def as_stored(metadata: Mapping[str, Any], axes: str) -> dict[str, Any]:
    """Return spacing and affine for the stored axes: the inverse of `reordered`."""
    import numpy as np

    letters = [letter for letter in axes if letter != "C"]
    order = ["HWD".index(letter) for letter in (letters if "D" in letters else [*letters, "D"])]
    values = dict(metadata)
    if "spacing" in values:
        values["spacing"] = tuple(values["spacing"][axis] for axis in order if axis < len(values["spacing"]))
    if "affine" in values:
        values["affine"] = np.asarray(values["affine"])[:, [*order, 3]]
    return values


def _equal(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two spacings differ by rounding only."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=_ROUNDING) for a, b in zip(one, other, strict=True)
    )


def _floats(value: Any) -> Affine:
    import numpy as np

    if type(value) is tuple and type(value[0]) is tuple:
        return value
    return tuple(map(tuple, np.asarray(value, np.float64).tolist()))


def _ints(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(int, values))


@frozen
class Grid:
    """The positions of the voxels of an array, as far as they are known.

    Attributes:
        shape: The spatial axes.
        affine: Voxel index to RAS+ millimeters, or None if unknown.
        spacing: Millimeters along each axis; with an affine, the lengths of its columns; None if unknown.
    """

    shape: tuple[int, ...] = field(converter=_ints)
    affine: Affine | None = field(default=None, converter=optional(_floats))
    spacing: tuple[float, ...] | None = None

    @classmethod
    def of(cls, shape: Sequence[int], metadata: Mapping[str, Any]) -> Grid:
        """Return the grid of an array.

        Args:
            shape: Its spatial axes, H, W and perhaps D.
            metadata: The metadata stated by its file, as in `OpenScan.metadata`.
        """
        found = _stated(_key(metadata.get("spacing")), _key(metadata.get("affine")))
        return cls(shape, found.affine, found.spacing)


def corner_offset(image: Grid, mask: Grid) -> float | None:
    """Return the largest distance between corresponding corners of two grids, in voxels of the image.

    Affines are compared if both grids have one, else spacings. Both grids have the same shape.

    Returns:
        The largest distance, or None if one of the grids is unknown.
    """
    import numpy as np

    if image.affine is not None and mask.affine is not None:
        if image.affine == mask.affine:
            return 0.0
        moved = np.linalg.solve(np.array(image.affine), np.array(mask.affine))
    elif image.spacing is not None and mask.spacing is not None:
        moved = np.eye(4)
        for axis, (here, there) in enumerate(zip(image.spacing, mask.spacing, strict=False)):
            moved[axis, axis] = there / here
    else:
        return None
    # The offset is affine in the index, so its length is largest at a corner.
    corners = _corners(mask.shape)
    return float(np.linalg.norm((moved @ corners - corners)[:3], axis=0).max())


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the corner voxels as columns (h, w, d, 1)."""
    import numpy as np

    last = [n - 1 for n in (*shape, 1, 1, 1)[:3]]
    return np.array([(*corner, 1.0) for corner in itertools.product(*[(0.0, float(n)) for n in last])]).T


class Alignment(NamedTuple):
    """How to bring an array onto another grid without changing a voxel.

    Attributes:
        order: Axis i of the result is axis ``order[i]`` of the array.
        flips: The axes of the result that are then reversed.
    """

    order: tuple[int, ...]
    flips: tuple[int, ...]


def alignment(source: Grid, target: Grid) -> Alignment | None:
    """Find the permutation and the flips that map an array on `source` exactly onto `target`.

    If one of the grids has no affine, they are compared by index: they match if their shapes, and the spacings that
    both state, agree.

    Returns:
        None if the grids differ by more than permutation and flips, so that some voxel would be more than a tenth of a
        voxel off.

    Example:
        >>> flipped = Grid((4, 3, 2), [[-1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> alignment(flipped, Grid((4, 3, 2), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
        Alignment(order=(0, 1, 2), flips=(0,))
    """
    import numpy as np

    rank = len(target.shape)
    if len(source.shape) != rank:
        return None
    if source.affine is None or target.affine is None:
        by_index = source.shape == target.shape and (corner_offset(target, source) or 0.0) <= WARNING_VOXELS
        return Alignment(tuple(range(rank)), ()) if by_index else None
    # Maps a voxel index in the source to one in the target.
    moved = np.linalg.solve(np.array(target.affine), np.array(source.affine))
    order, signs = _signed_permutation(moved[:3, :3])
    # In a scan of two axes, the third must not take part in the permutation.
    if order is None or any(order[axis] != axis for axis in range(rank, 3)):
        return None
    order = order[:rank]
    if tuple(source.shape[axis] for axis in order) != target.shape:
        return None
    flips = tuple(i for i in range(rank) if signs[i] < 0)
    # `moved` is compared with the exact permutation and flips at the corners, as in `corner_offset`.
    exact = np.eye(4)
    exact[:rank] = 0
    for i, axis in enumerate(order):
        exact[i, axis], exact[i, 3] = (-1.0, target.shape[i] - 1.0) if i in flips else (1.0, 0.0)
    distances = np.linalg.norm(((moved - exact) @ _corners(source.shape))[:3], axis=0)
    return Alignment(order, flips) if distances.max() <= WARNING_VOXELS else None


def _signed_permutation(matrix: NDArray[np.float64]) -> tuple[tuple[int, ...] | None, list[float]]:
    """Return for each row the closest column and the sign there. The order is None if it is not a permutation."""
    import numpy as np

    scaled = np.abs(matrix) / np.linalg.norm(matrix, axis=0)
    order = tuple(int(axis) for axis in scaled.argmax(axis=1))
    signs = [float(matrix[row, axis]) for row, axis in enumerate(order)]
    return (order if sorted(order) == [0, 1, 2] else None), signs


def align(array: Array, how: Alignment) -> Array:
    """Return an array on the other grid: a view.

    Args:
        array: The spatial axes, followed by any other axes.
        how: The result of `alignment`.
    """
    import numpy as np

    rest = range(len(how.order), array.ndim)
    turned: Array = np.flip(array.transpose(*how.order, *rest), how.flips)
    return turned


def describe(grid: Grid) -> str:
    """Return a grid in words, for messages.

    Example:
        >>> describe(Grid((4, 3, 2), spacing=(0.5, 0.5, 3)))
        '4 x 3 x 2 voxels of 0.5 x 0.5 x 3 mm'
    """
    text = f"{' x '.join(map(str, grid.shape))} voxels"
    if grid.affine is None:
        return text if grid.spacing is None else f"{text} of {_mm(grid.spacing)}"
    origin = ", ".join(f"{row[3]:.5g}" for row in grid.affine[:3])
    axes = ", ".join(axis_codes(grid.affine)[: len(grid.shape)])
    columns = _mm(spacing_of(grid.affine)[: len(grid.shape)])
    return f"{text} of {columns}, axes towards {axes}, the first voxel at ({origin}) mm"


def _mm(spacing: Sequence[float]) -> str:
    return f"{' x '.join(f'{size:.5g}' for size in spacing)} mm"
