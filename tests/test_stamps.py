"""Stamps of files, and reading files during a write."""

import os
import pickle
import shutil
import threading
from contextlib import suppress

import pytest

from medsegpy_core._util.stamps import YOUNG_NS, Stamp, file_hash, is_young, read_settled, stamp_of
from medsegpy_core.errors import ReadError

OLD = 10**9 * 10**9


def written(path, data, mtime=OLD):
    path.write_bytes(data)
    os.utime(path, ns=(mtime, mtime))
    return path


def stamp(path):
    return stamp_of(path.stat())


class TestStamps:
    def test_a_stamp_holds_size_times_and_inode(self, tmp_path):
        path = written(tmp_path / "a", b"abc")
        status = path.stat()
        made = stamp_of(status)
        assert made.fields == (3, OLD, status.st_ino, status.st_ctime_ns)
        assert made.size == 3
        assert Stamp.of_fields(*made.fields) == made
        assert type(pickle.loads(pickle.dumps(made))) is Stamp

    def test_another_size_time_or_inode_is_another_file(self, tmp_path):
        path = written(tmp_path / "a", b"abc")
        before = stamp(path)
        written(path, b"abcd")
        assert not before.same_file(stamp(path))
        written(path, b"abc", OLD + 1)
        assert not before.same_file(stamp(path))
        written(tmp_path / "b", b"abc").replace(path)
        assert not before.same_file(stamp(path))

    @pytest.mark.parametrize("change", ["chmod", "link", "rewritten"])
    def test_only_the_change_time_differs(self, change, tmp_path):
        path = written(tmp_path / "a", b"abc")
        before = stamp(path)
        while stamp(path) == before:  # the clock of the kernel ticks every few milliseconds
            if change == "chmod":
                path.chmod(0o640)
            elif change == "link":
                (tmp_path / "b").unlink(missing_ok=True)
                os.link(path, tmp_path / "b")
            else:
                written(path, b"xyz")
        assert before.same_file(stamp(path))
        assert before != stamp(path)

    def test_young_files(self, tmp_path):
        status = written(tmp_path / "a", b"abc").stat()
        changed = status.st_ctime_ns
        assert is_young(status, changed)
        assert is_young(status, changed + YOUNG_NS - 1)
        assert not is_young(status, changed + YOUNG_NS)
        assert is_young(status, OLD + YOUNG_NS - 1)  # by its modification time
        assert not is_young(status, OLD - 1)  # in the future


class TestSettledReads:
    """The test's reader itself changes the file, so that nothing depends on time."""

    def test_two_versions_are_never_mixed(self, tmp_path):
        path, reads = tmp_path / "a", []
        path.write_bytes(b"11")

        def read():
            with path.open("rb") as file:
                first = os.pread(file.fileno(), 1, 0)
                if len(reads) < 2:
                    with path.open("rb+") as writer:
                        writer.write(b"22" if not reads else b"33")
                reads.append(first + os.pread(file.fileno(), 1, 1))
            return reads[-1]

        assert read_settled(path, read, bytes) == b"33"
        assert reads[:2] == [b"12", b"23"]

    @pytest.mark.parametrize("restored", [False, True])
    def test_a_file_that_changes_all_the_time_is_an_error(self, restored, tmp_path):
        path, reads = written(tmp_path / "a", b"0"), []

        def read():
            with path.open("rb+") as file:
                file.write(b"%d" % (len(reads) % 10))
            if restored:  # size, mtime and inode stay
                os.utime(path, ns=(OLD, OLD))
            reads.append(path.read_bytes())
            return reads[-1]

        with pytest.raises(ReadError, match="changes all the time") as caught:
            read_settled(path, read, bytes)
        assert caught.value.path == path
        assert len(reads) == 4

    def test_a_change_of_the_change_time_alone_is_no_error(self, tmp_path):
        path, modes = written(tmp_path / "a", b"abc"), [0o640, 0o600]

        def read():
            if modes:
                path.chmod(modes.pop())
            return path.read_bytes()

        assert read_settled(path, read, bytes) == b"abc"

    def test_an_error_is_raised_only_if_the_file_is_unchanged(self, tmp_path):
        path, reads = tmp_path / "a", []
        path.write_bytes(b"broken")

        def read():
            reads.append(path.read_bytes())
            if reads[-1] == b"broken":
                path.write_bytes(b"whole")
                raise ReadError("broken", path)
            return reads[-1]

        assert read_settled(path, read, bytes) == b"whole"

    def test_the_last_error_is_raised(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"broken")

        def read():
            raise ReadError("broken", path)

        with pytest.raises(ReadError, match="broken"):
            read_settled(path, read, bytes)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ReadError, match="No such file"):
            read_settled(tmp_path / "a", lambda: b"", bytes)


class TestFileHashes:
    def test_equal_content_has_one_hash(self, tmp_path):
        one, other = written(tmp_path / "a", b"abc"), written(tmp_path / "b", b"abd")
        before = file_hash(one)
        assert before == file_hash(shutil.copy2(one, tmp_path / "c"))
        assert before != file_hash(other)
        assert len(before) == 32

    def test_unreadable_files(self, tmp_path):
        with pytest.raises(ReadError):
            file_hash(tmp_path / "nothing")
        with pytest.raises(ReadError, match="directory"):
            file_hash(tmp_path)

    def test_the_hash_during_a_write_is_that_of_one_version(self, tmp_path):
        path = tmp_path / "a"
        versions = [bytes([value]) * (1 << 20) for value in (1, 2)]
        legal = {file_hash(written(path, version)) for version in versions}
        stop = threading.Event()

        def write():
            with path.open("rb+", buffering=0) as file:
                number = 0
                while not stop.is_set():
                    os.pwrite(file.fileno(), versions[number % 2], 0)
                    number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(20):
                with suppress(ReadError):
                    assert file_hash(path) in legal
        finally:
            stop.set()
            writer.join()
