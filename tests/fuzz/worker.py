"""A process that reads files one by one and reports the results; a file may crash or hang it.

``python -m tests.fuzz.worker MODE``, MODE being ``plain`` (h5py alone), ``default`` or ``isolate``. A line of JSON
comes in for each file, ``{"path": ..., "slice": ...}``, and one goes out.
"""

import contextlib
import hashlib
import json
import math
import os
import resource
import sys
import time
import warnings

import numpy as np

# For a file of a few kilobytes. Of the processor's time, which does not depend on what else the machine has to do.
# The helper of `isolate` reads many files, and would inherit the limit.
PROCESSOR_SECONDS = {"plain": 3, "default": 20}


def _seen(array):
    """Return the values to compare: the type in native byte order, and the bytes."""
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("="))
    return ["ok", array.dtype.str, hashlib.blake2b(array.tobytes(), digest_size=12).hexdigest(), array.size]


def read_plain(path, is_slice):
    import h5py

    seen = {}
    for name, key in [("image", "data")] if is_slice else [("image", "volume"), ("mask", "seg")]:
        try:
            with h5py.File(path, "r", locking=False) as file:
                found = file[key]
                # An enumeration is its integers; an array that no image is says nothing about ours.
                seen[name] = _seen(np.asarray(found[...])) if 0 < found.size < 1 << 26 else ["refused", "its size"]
        except Exception as error:
            seen[name] = ["refused", f"{type(error).__name__}: {error}"[:200]]
    return seen


def _record(path, is_slice, wants_mask):
    if is_slice:
        return {"file_name": path, "scan_id": "a", "slice_id": 1, "scan_num_slices": 1, "reader": "h5-slices"}
    labels = {"sem_seg_file": path} if wants_mask else {"image_key": "volume"}
    return {"file_name": path, "scan_id": "a", "reader": "h5-volumes", **labels}


def read_ours(path, is_slice, access):
    """Read image and mask as a loader does, and once more with the library."""
    from medsegpy_core import ReadError, open_scan
    from medsegpy_core.hdf5.options import accessing

    seen = {}
    for name, key in [("image", "data")] if is_slice else [("image", "volume"), ("mask", "seg")]:
        try:
            with accessing(access), open_scan(_record(path, is_slice, name == "mask")) as scan:
                array = getattr(scan, name)
                array = getattr(array, "packed", None) or array  # a bit field as it is stored
                whole = array[...]
                seen[name] = _seen(whole)
                _compare_parts(array, whole, seen, name)
                if not access.isolate:
                    _compare_ways(path, key, whole, seen, name)
        except ReadError as error:
            sound = str(error.path) == path and error.reason
            seen[name] = ["refused" if sound else "unnamed", str(error)[:200]]
        except Exception as error:
            seen[name] = ["unnamed", f"{type(error).__name__}: {error}"[:200]]
    return seen


def _compare_parts(array, whole, seen, name):
    box = tuple(slice(n // 3, n) for n in array.shape)
    if not np.array_equal(array[box].view(np.uint8), np.ascontiguousarray(whole[box]).view(np.uint8)):
        seen[name] = ["wrong", "a part differs from the same part of the whole"]


def _compare_ways(path, key, whole, seen, name):
    """Read with the library what was read by byte ranges."""
    from medsegpy_core import ReadError
    from medsegpy_core.hdf5 import open_array
    from medsegpy_core.hdf5.read import read_box

    layout = open_array(path, key)._layout
    if layout.form.route != "ranges" or layout.form.said.bitfield is not None:
        return
    with contextlib.suppress(ReadError):  # it may be stricter; what it reads must be the same
        other = read_box(path, layout, tuple(slice(0, n) for n in layout.form.vetted.shape))
        if other.tobytes() != whole.tobytes():
            seen[name] = ["wrong", "byte ranges and the library differ"]


def main(mode):
    warnings.simplefilter("ignore")
    # Filters print; what is said here goes out by a way of its own.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import hdf5plugin  # noqa: F401

    if mode == "plain":
        read = read_plain
    else:
        from medsegpy_core.hdf5.options import Access

        access = Access(isolate=mode == "isolate", seconds=10)
        read = lambda path, is_slice: read_ours(path, is_slice, access)
    for line in sys.stdin:
        task = json.loads(line)
        if mode in PROCESSOR_SECONDS:
            limit = math.ceil(time.process_time()) + PROCESSOR_SECONDS[mode]
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        print(json.dumps(read(task["path"], task["slice"])), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
