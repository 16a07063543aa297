"""Helpers for tests of loaders: scans in files, written with plain h5py, and the expected batches, with plain NumPy."""

import itertools
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np

from medsegpy_core._util.stamps import is_young


def make_scan(shape=(6, 5, 7), channels=3, seed=0):
    """Return an image (float32) and a binary mask (uint8)."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 100, shape).astype(np.float32), (rng.random((*shape, channels)) < 0.4).astype(np.uint8)


def settle(*paths):
    """Wait until files are no longer young; until then, a second read confirms each read."""
    for path in paths:
        while is_young(Path(path).stat()):
            time.sleep(0.01)


def save(path, **arrays):
    """Write datasets into a file."""
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return str(path)


def save_slices(root, image, mask, subject=1, scan_id=None, labelled=None, present=None, **keys):
    """Write `.im` and `.seg` files; `labelled` and `present` are slice numbers (from 1), None: all."""
    root.mkdir(exist_ok=True)
    depth, scan_id = image.shape[2], scan_id or f"{subject:07d}_V00"
    dicts = []
    for i in range(1, depth + 1):
        if present is not None and i not in present:
            continue
        stem = f"{scan_id}-Aug00_{i:03d}"
        d = {
            "file_name": save(root / f"{stem}.im", data=image[:, :, i - 1, None]),
            "scan_id": scan_id,
            "slice_id": i,
            "scan_num_slices": depth,
            "subject_id": subject,
            **keys,
        }
        if mask is not None and (labelled is None or i in labelled):
            d["sem_seg_file"] = save(root / f"{stem}.seg", data=mask[:, :, i - 1, None])
        dicts.append(d)
    return dicts


def save_volume(root, image, mask, subject=1, scan_id=None, **keys):
    """Write one file with `volume` and `seg`."""
    root.mkdir(exist_ok=True)
    scan_id = scan_id or f"{subject:07d}_V00"
    arrays = {"volume": image} if mask is None else {"volume": image, "seg": mask}
    path = save(root / f"{scan_id}.h5", **arrays)
    d = {"file_name": path, "scan_id": scan_id, "subject_id": subject, **keys}
    return d if mask is None else {**d, "sem_seg_file": path}


def collated(mask, categories, background=False):
    """Return the mask of some categories, float32."""
    planes = [mask[..., np.atleast_1d(c)].any(axis=-1) for c in categories]
    if background:
        planes.insert(0, ~np.any(planes, axis=0))
    return np.stack(planes, axis=-1).astype(np.float32)


def padding_of(size, patch, pad):
    """Return the padding of an axis on each side."""
    if size + 2 * pad < patch:
        before = (patch - size) // 2
        return before, patch - size - before
    return pad, pad


def patches_of(array, patch, pad=(0, 0, 0), stride=None, mode="edge"):
    """Pad the whole array, then cut it, in C order. Axes beyond those of `patch` are not cut."""
    stride = stride or patch
    widths = [padding_of(n, p, q) for n, p, q in zip(array.shape, patch, pad, strict=False)]
    whole = np.pad(array, widths + [(0, 0)] * (array.ndim - len(patch)), mode)
    starts = [range(0, n - p + 1, s) for n, p, s in zip(whole.shape, patch, stride, strict=False)]
    return [
        whole[tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))] for start in itertools.product(*starts)
    ]


def everything(loader):
    """Return all rows of an epoch, images and masks, as `loader[i]` gives them."""
    batches = [loader[i] for i in range(len(loader))]
    return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))


def same(batches, others):
    """Return whether two lists of batches are equal bit for bit."""
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        len(one) == len(other)
        and all(
            a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            for a, b in zip(one, other, strict=True)
        )
        for one, other in zip(batches, others, strict=True)
    )


def sent_by_child(method, target, *arguments):
    """Return what a function sends from a forked or spawned process: `target(*arguments, connection)`.

    If the child dies, this raises EOFError instead of waiting forever.
    """
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def running(pid):
    """Return whether a process is running; an ended one may still be a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state.strip().startswith("Z") and state.strip() != ""


def all_end(pids, seconds=100):
    """Wait for processes to end; return whether they did."""
    deadline = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(running, pids))
