"""What must hold for one lazy array: any part of it is that part of the whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core.testing.outcome import require
from medsegpy_core.typing import LazyArray, Selection

if TYPE_CHECKING:
    import numpy as np

    from medsegpy_core.typing import Array

__all__ = ["check_array", "check_array_in_threads", "same"]

_SELECTIONS: Final = 40
_BOXES: Final = 10
_THREADS: Final = 8
_MOMENTS: Final = 300  # in which a thread hesitates in one read
_SECONDS: Final = 0.5  # after which a thread begins no further read


def same(a: Array, b: Array) -> bool:
    """Say whether two arrays agree in shape, type and every bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def check_array(array: LazyArray, what: str, seed: int = 0) -> None:
    """Check a lazy array against itself, read as a whole: shapes, types, slices of all kinds, `read_into`.

    Args:
        array: The array.
        what: What to call it in messages.
        seed: Which selections are tried.

    Raises:
        CheckError: A part is not what it is of the whole.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    whole = array[...]
    _check_result(whole, array.shape, array, f"{what}[...]")
    for selection in _selections(array.shape, rng):
        shown = f"{what}[{_shown(selection)}]"
        expected = whole[selection]
        part = array[selection]
        _check_result(part, expected.shape, array, shown)
        require(same(part, np.asarray(expected)), f"{shown} differs from that part of {what}[...]")
    _check_independence(array, whole, what)
    if hasattr(array, "read_into"):
        for _ in range(_BOXES):
            _check_read_into(array, whole, _box(array.shape, rng), what)


def check_array_in_threads(array: LazyArray, what: str, seed: int = 0) -> None:
    """Check that eight threads that read parts at once get what one gets.

    Raises:
        CheckError: They do not.
    """
    import numpy as np

    whole = array[...]
    barrier = Barrier(_THREADS)

    def read(number: int) -> str:
        rng = np.random.default_rng((seed, number))
        boxes = [_box(array.shape, rng) for _ in range(_BOXES)]
        barrier.wait()
        until = time.monotonic() + _SECONDS
        for box in boxes:
            with _hesitant(type(array).__module__.partition(".")[0]):
                part = array[box]
            if not same(part, np.ascontiguousarray(whole[box])):
                return f"{what}[{_shown(box)}]"
            if time.monotonic() > until:
                break
        return ""

    with ThreadPoolExecutor(_THREADS) as threads:
        wrong = [shown for shown in threads.map(read, range(_THREADS)) if shown]
    require(
        not wrong,
        f"{_THREADS} threads read at once, and {len(wrong)} got something else than one alone: {', '.join(wrong[:1])}. "
        "A file object has one position for all threads: open the file for each read, or use os.pread",
    )


@contextmanager
def _hesitant(package: str) -> Iterator[None]:
    """Let this thread stop for a moment before each line of a package, so that others run between any two.

    Where a race is rare, as it is on a machine with few cores, it would be seen in one run of many. Lines of other
    packages are left alone: some of Python's own (`ast` in 3.11) do not bear it.
    """
    before = sys.gettrace()
    moments = iter(range(_MOMENTS))

    def hesitate(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            if next(moments, None) is None:
                return None  # no more of this frame
            time.sleep(1e-6)
        elif str(frame.f_globals.get("__name__")).partition(".")[0] != package:
            return None
        return hesitate

    sys.settrace(hesitate)
    try:
        yield
    finally:
        sys.settrace(before)


def _check_result(part: Any, shape: tuple[int, ...], array: LazyArray, shown: str) -> None:
    import numpy as np

    require(isinstance(part, np.ndarray), f"{shown} is a {type(part).__name__}, expected a numpy.ndarray")
    require(type(part) is np.ndarray, f"{shown} is a {type(part).__name__}, a subclass: return a plain numpy.ndarray")
    require(part.shape == shape, f"{shown} has the shape {part.shape}, expected {shape}")
    require(part.dtype == array.dtype, f"{shown} has the type {part.dtype}, but the array says {array.dtype}")
    require(part.dtype.isnative, f"{shown} has the byte order {part.dtype.byteorder!r}, expected the machine's own")
    require(part.flags.c_contiguous, f"{shown} is not C-contiguous: return numpy.array(part, order='C')")


def _check_independence(array: LazyArray, whole: Array, what: str) -> None:
    again = array[...]
    if again.size:
        require(again.flags.writeable, f"{what}[...] is read-only, expected a new array")
        again[...] = 0
        require(same(array[...], whole), f"who writes into {what}[...] changes what is read next: return a new array")


def _check_read_into(array: LazyArray, whole: Array, box: Selection, what: str) -> None:
    import numpy as np

    expected = whole[box]
    for dtype in (array.dtype, np.dtype(np.float32), np.dtype(np.float64)):
        if not np.can_cast(array.dtype, dtype, casting="same_kind"):
            continue
        # Every second element on the last axis, and the axes reversed: what a batch may look like to a reader.
        guard = np.full((*expected.shape[:-1], 2 * expected.shape[-1]), 77, dtype)
        for out in (np.empty(expected.shape, dtype), guard[..., ::2], np.empty(expected.shape[::-1], dtype).T):
            array.read_into(box, out)  # type: ignore[attr-defined]
            shown = f"{what}.read_into({_shown(box)}, an array of {dtype} with strides {out.strides})"
            require(np.array_equal(out, expected.astype(dtype), equal_nan=dtype.kind == "f"), f"{shown} differs")
        require((guard[..., 1::2] == 77).all(), f"{what}.read_into({_shown(box)}, ...) writes beside its target")


def _selections(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[Any]:
    yield ()
    yield tuple(slice(0, 1) for _ in shape)
    yield tuple(n - 1 for n in shape)
    yield 0
    yield -1
    yield slice(shape[0] + 5, None)
    for _ in range(_SELECTIONS):
        items = [_item(n, rng) for n in shape]
        if rng.random() < 0.3:
            at = int(rng.integers(len(items) + 1))
            until = int(rng.integers(at, len(items) + 1))
            items[at:until] = [Ellipsis]
        elif rng.random() < 0.3:
            items = items[: int(rng.integers(1, len(items) + 1))]
        yield tuple(items)


def _item(size: int, rng: np.random.Generator) -> Any:
    kind = rng.integers(6)
    if kind == 0:
        return int(rng.integers(-size, size))
    if kind == 1:
        return slice(None)
    start, stop = sorted(int(n) for n in rng.integers(0, size + 1, 2))
    if kind == 2:
        return slice(start, stop, int(rng.integers(1, 4)))
    if kind == 3:
        return slice(start - size, None)
    return slice(start, stop)


def _box(shape: tuple[int, ...], rng: np.random.Generator) -> Selection:
    starts = [int(rng.integers(n)) for n in shape]
    return tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(starts, shape, strict=True))


def _shown(selection: Any) -> str:
    items = selection if isinstance(selection, tuple) else (selection,)
    return ", ".join(map(_shown_item, items)) or "()"


def _shown_item(item: Any) -> str:
    if item is Ellipsis:
        return "..."
    if not isinstance(item, slice):
        return str(item)
    ends = ":".join("" if end is None else str(end) for end in (item.start, item.stop))
    return ends if item.step is None else f"{ends}:{item.step}"
