"""Failures during packing: full disks, killed processes, two processes at once."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from scans import all_end, make_scan, save_volume

from medsegpy_core import DatasetCatalog, ReadError, load_scan, pack_dataset, register_packed
from medsegpy_core.packing import verify_packed

# The scans of the set, and a process that packs it: `code` is run before, with `pack_dataset` wrapped by what it likes.
PROGRAM = """
import sys, json
from medsegpy_core import DatasetCatalog, pack_dataset
dicts = json.loads(sys.argv[1])
DatasetCatalog.register("original", lambda: dicts)
{code}
packed = pack_dataset("original", sys.argv[2], watch=watch)
print("packed", packed.scans_packed)
"""
WATCH = """
def watch(names, total):
    for name in names:
        print(name, flush=True)
        yield name
"""


@pytest.fixture
def dicts(tmp_path):
    """Six scans of 60 KB each."""
    found = []
    for subject in range(6):
        image, mask = make_scan((24, 20, 16), seed=subject)
        found.append(save_volume(tmp_path / "source", image, mask, subject))
    DatasetCatalog.register("original", lambda: found)
    return found


def start(dicts, out, code=WATCH, **options):
    command = [sys.executable, "-c", PROGRAM.format(code=textwrap.dedent(code)), json.dumps(dicts), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def waiting_at(scan):
    return WATCH.replace("yield name", f"yield name\n        if name.startswith({scan!r}): input()")


def whole(out, name="original"):
    """Return whether a packed set equals the source."""
    register_packed(out / "original.json", "packed", replace=True)
    assert verify_packed(out / "original.json") == []
    for d in DatasetCatalog.get(name):
        for found, wanted in zip(load_scan("packed", d["scan_id"]), load_scan(name, d["scan_id"]), strict=True):
            assert np.array_equal(found, wanted)
    return True


def visible(out):
    return sorted(path.name for path in out.glob("[!.]*"))


def test_work_of_a_killed_process_is_not_repeated(dicts, tmp_path):
    out = tmp_path / "out"
    # The third name is printed before its scan is read: the process waits there to be killed.
    process = start(dicts, out, waiting_at("0000002"), stdin=subprocess.PIPE)
    assert [process.stdout.readline().strip() for _ in range(3)] == [f"{n:07d}_V00" for n in range(3)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert visible(out) == []
    done = {path: path.stat().st_mtime_ns for path in out.glob(".original.parts/*.h5")}
    assert len(done) == 3
    packed = pack_dataset("original", out)
    assert (packed.scans, packed.scans_packed) == (6, 3)
    assert visible(out) == ["original.h5", "original.json"]
    assert not (out / ".original.parts").exists()
    assert whole(out)


def test_packing_completes_after_being_killed_at_any_time(dicts, tmp_path):
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    for _ in range(6):
        process = start(dicts, out)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (out / "original.json").exists():
            assert whole(out)
        elif (out / "original.h5").exists():
            assert (out / "original.h5").stat().st_size > 6 * 30_000  # it appeared whole
    pack_dataset("original", out)
    assert visible(out) == ["original.h5", "original.json"]
    assert whole(out)


def test_ctrl_c_keeps_finished_work(dicts, tmp_path):
    out = tmp_path / "out"
    process = start(dicts, out, waiting_at("0000001"), stdin=subprocess.PIPE)
    [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert "KeyboardInterrupt" in errors
    assert pack_dataset("original", out).scans_packed == 4
    assert whole(out)


def test_a_second_process_reports_the_first(dicts, tmp_path):
    out = tmp_path / "out"
    first = start(dicts, out, waiting_at(""), stdin=subprocess.PIPE)
    first.stdout.readline()
    with pytest.raises(OSError, match=f"another process .process {first.pid} on .* is packing to this place"):
        pack_dataset("original", out)
    output, errors = first.communicate("\n" * 6)
    assert "packed 6" in output, errors
    assert whole(out)
    assert pack_dataset("original", out).scans_packed == 0


def test_many_processes_at_once_write_one_complete_set(dicts, tmp_path):
    out = tmp_path / "out"
    processes = [start(dicts, out) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert any(process.returncode == 0 for process in processes), outputs
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0 or "is packing to this place" in errors
    assert whole(out)


def limit_files_to(size):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return limit


def test_a_full_disk_leaves_no_partial_files(dicts, tmp_path):
    out = tmp_path / "out"
    # The parts fit, the file that they are put together into does not.
    process = start(dicts, out, preexec_fn=limit_files_to(120_000))
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "File too large" in errors
    assert str(out / "original.h5") in errors
    assert visible(out) == []
    assert not list(out.glob("**/*.tmp"))
    # With free space, it continues from there.
    assert pack_dataset("original", out).scans_packed == 0
    assert whole(out)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("kilobytes", [40, 150, 250, 450])
def test_a_file_system_that_is_full(dicts, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            pack_dataset("original", disk)
        assert visible(disk) == []
        assert not list(disk.glob("**/*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert pack_dataset("original", disk).scans == 6
        assert whole(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unreadable_source_is_named_and_the_rest_is_kept(dicts, tmp_path):
    out = tmp_path / "out"
    source = Path(dicts[4]["file_name"])
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadError, match=r"0000004_V00\.h5"):
        pack_dataset("original", out)
    assert visible(out) == []
    source.write_bytes(content)
    assert pack_dataset("original", out).scans_packed == 2
    assert whole(out)


PARALLEL = """
import functools, multiprocessing
pack_dataset = functools.partial(pack_dataset, jobs=2)
def watch(names, total):
    for name in names:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        input()
        yield name
"""


def test_workers_of_a_killed_process_end(dicts, tmp_path):
    process = start(dicts, tmp_path / "out", PARALLEL, stdin=subprocess.PIPE)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert all_end(workers)
    assert pack_dataset("original", tmp_path / "out").scans_packed < 6
    assert whole(tmp_path / "out")


def test_in_several_processes_too(dicts, tmp_path):
    out = tmp_path / "out"
    Path(dicts[3]["file_name"]).unlink()
    with pytest.raises(ReadError, match=r"0000003_V00\.h5"):
        pack_dataset("original", out, jobs=2)
    assert visible(out) == []
    image, mask = make_scan((24, 20, 16), seed=3)
    save_volume(tmp_path / "source", image, mask, 3)
    assert pack_dataset("original", out, jobs=2).scans_packed >= 1
    assert whole(out)
