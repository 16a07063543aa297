"""Locks between processes: on file systems with and without locks, and with other files in place of the lock file."""

import errno
import fcntl
import os
import subprocess
import sys
import warnings

import pytest
from scans import make_scan, save_volume

from medsegpy_core import DatasetCatalog, pack_dataset
from medsegpy_core._util.locks import lock_file
from medsegpy_core.packing.pack import PackingError

WITHOUT = sorted({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


@pytest.fixture
def original(tmp_path):
    DatasetCatalog.register("original", lambda: [save_volume(tmp_path / "v", *make_scan())])
    return tmp_path / "packed"


@pytest.fixture(params=WITHOUT, ids=lambda number: errno.errorcode[number])
def without_locks(request, monkeypatch):
    def flock(fd, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_packing_on_a_file_system_without_locks_warns(original, without_locks):
    with pytest.warns(UserWarning, match="does not support locks"):
        assert pack_dataset("original", original).scans_packed == 1
    assert not list(original.glob(".*"))[1:]


def test_two_on_a_file_system_without_locks(original, without_locks):
    original.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = f"process {os.getpid()} on .*does not support locks: remove "
        with lock_file(original / ".original.lock"), pytest.raises(PackingError, match=said):
            pack_dataset("original", original)
        assert pack_dataset("original", original).scans_packed == 1


def test_a_held_lock_names_its_owner(tmp_path):
    path = tmp_path / "a.lock"
    code = f"""
from pathlib import Path
from medsegpy_core._util.locks import lock_file
with lock_file(Path({str(path)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid} on "), lock_file(path):
            pass
        # A lock goes with its process, however that ends.
        other.kill()
        other.wait()
        with lock_file(path):
            assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_other_failures_do_not_blame_another_process(original, monkeypatch):
    def flock(fd, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error") as caught:
        pack_dataset("original", original)
    assert "another process" not in str(caught.value)


@pytest.mark.timeout(60)
def test_nothing_is_written_through_the_lock(original, tmp_path):
    original.mkdir()
    victim = tmp_path / "victim"
    lock = original / ".original.lock"
    for make in (lock.symlink_to, lock.hardlink_to):
        victim.write_text("precious")
        make(victim)
        with pytest.raises(OSError, match=r"original\.lock: the lock file is a .* link"):
            pack_dataset("original", original)
        assert victim.read_text() == "precious"
        lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(OSError, match="a pipe or a device"):
        pack_dataset("original", original)
    lock.unlink()
    lock.symlink_to(tmp_path / "not there yet")
    with pytest.raises(OSError, match="symbolic link"):
        pack_dataset("original", original)
    assert not (tmp_path / "not there yet").exists()
