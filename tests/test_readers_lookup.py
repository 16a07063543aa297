import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from scans import make_scan, save

from medsegpy_core import (
    Access,
    AmbiguousReaderError,
    Config,
    ConfigError,
    DatasetCatalog,
    DuplicateNameError,
    MetadataCatalog,
    PluginError,
    PluginWarning,
    ReadError,
    Record,
    UnknownNameError,
    accessing,
    build_loader,
    open_scan,
    register_reader,
    register_transform,
    write_volume,
)
from medsegpy_core.diagnostics import check_dataset
from medsegpy_core.reading.readers import all_readers, find_reader, named_reader, reader_names
from medsegpy_core.transforms import build_transform, transform_names


class FakeReader:
    def __init__(self, name, *suffixes, magic=b"never"):
        self.name, self.suffixes, self.magic, self.probed = name, suffixes, magic, 0

    def probe(self, path):
        self.probed += 1
        return path.read_bytes().startswith(self.magic)

    def open(self, record):
        raise NotImplementedError


NIFTI = """
from contextlib import contextmanager
from types import SimpleNamespace
from medsegpy_core import hookimpl

class Nifti:
    name = "fake-nifti"
    suffixes = (".nii", ".nii.gz")
    def probe(self, path): return True
    @contextmanager
    def open(self, record):
        yield SimpleNamespace(image=None, mask=None, metadata={"spacing": (4, 4, 4)})

@hookimpl
def medsegpy_register_readers():
    return [Nifti()]
"""


def volume(path, **more):
    return {"file_name": str(path), "scan_id": "s", **more}


def test_the_name_in_the_dict_decides(plugins):
    a, b = FakeReader("a", ".x"), FakeReader("b")
    register_reader(a)
    register_reader(b)
    assert find_reader(volume("f.x", reader="b")) is b
    assert find_reader(Record.from_dict(volume("f.x", reader="b"))) is b
    assert find_reader(volume("f.x")) is a
    assert (a.probed, b.probed) == (0, 0)
    assert reader_names() == ["a", "b"]
    assert all_readers() == {"a": a, "b": b}
    assert named_reader("a") is a
    with pytest.raises(UnknownNameError, match=r"no reader 'c'.*Known readers: a, b"):
        find_reader(volume("f.x", reader="c"))


def test_the_longest_suffix_wins(plugins):
    gz, nii = FakeReader("gz", ".gz"), FakeReader("nii", ".nii.gz", ".nii")
    register_reader(gz)
    register_reader(nii)
    assert find_reader(volume("/a/f.NII.gz")) is nii
    assert find_reader(volume("f.tar.gz")) is gz
    assert find_reader(Record.from_dict(volume("f.nii"))) is nii


def test_probe_decides_if_suffixes_do_not(plugins, tmp_path):
    a, b = FakeReader("a", ".x", magic=b"A"), FakeReader("b", ".x", magic=b"B")
    register_reader(a)
    register_reader(b)
    path = tmp_path / "f.x"
    path.write_bytes(b"B...")
    assert find_reader(volume(path)) is b
    path.write_bytes(b"?...")
    with pytest.raises(AmbiguousReaderError, match=r"f\.x: 'a' of this process and 'b' of this process.*reader='a'"):
        find_reader(volume(path))
    b.magic = a.magic = b"?"
    with pytest.raises(AmbiguousReaderError, match="both claim"):
        find_reader(volume(path))


def test_files_without_a_known_suffix_are_probed(plugins, tmp_path):
    a = FakeReader("a", ".x", magic=b"A")
    register_reader(a)
    path = tmp_path / "no_suffix"
    path.write_bytes(b"A")
    assert find_reader(volume(path)) is a
    path.write_bytes(b"B")
    with pytest.raises(UnknownNameError, match=r"no_suffix: no reader recognizes this file.*Readers: a\."):
        find_reader(volume(path))
    with pytest.raises(ReadError, match="no such file"):
        find_reader(volume(tmp_path / "absent"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="not a regular file"):
        find_reader(volume(tmp_path / "pipe"))


def test_the_plugin_that_would_read_it_is_suggested(plugins, tmp_path):
    path = tmp_path / "f.nii.gz"
    path.write_bytes(b"")
    with pytest.raises(UnknownNameError, match="pip install medsegpy-nifti"):
        find_reader(volume(path))


def test_a_probe_that_raises_rejects_the_file(plugins, tmp_path):
    bad, good = FakeReader("bad", ".x"), FakeReader("good", ".x", magic=b"G")
    bad.probe = lambda path: 1 / 0
    register_reader(bad)
    register_reader(good)
    (tmp_path / "f.x").write_bytes(b"G")
    with pytest.warns(PluginWarning, match="'bad' of this process is skipped"):
        assert find_reader(volume(tmp_path / "f.x")) is good


def test_registered_twice(site, plugins):
    a, b = FakeReader("a", ".x"), FakeReader("a", ".y")
    register_reader(a)
    with pytest.raises(DuplicateNameError, match=r"'a'.*FakeReader.*replace=True"):
        register_reader(b)
    register_reader(b, replace=True)
    assert named_reader("a") is b
    site.add("nii", NIFTI)
    plugins()
    mine = FakeReader("fake-nifti", ".nii")
    register_reader(mine)
    with pytest.raises(DuplicateNameError, match=r"'fake-nifti'.*medsegpy-nii 1.0.*this process"):
        named_reader("fake-nifti")
    assert "fake-nifti" in reader_names()
    assert "fake-nifti" not in all_readers()
    register_reader(mine, replace=True)
    assert named_reader("fake-nifti") is mine


@pytest.mark.parametrize(
    "reader", [FakeReader, FakeReader(""), FakeReader("a", "x"), FakeReader("a", ".X"), object(), None]
)
def test_an_invalid_reader_is_rejected(plugins, reader):
    with pytest.raises(PluginError):
        register_reader(reader)
    assert reader_names() == []


def test_for_scan_uses_the_metadata_of_the_file(site, plugins, tmp_path, monkeypatch):
    site.add("nii", NIFTI)
    plugins()
    path = tmp_path / "f.nii"
    path.write_bytes(b"")
    metadata = MetadataCatalog.get("x").set(spacing=(1, 1, 1))
    assert metadata.for_scan(volume(path)).spacing == (4, 4, 4)
    assert metadata.for_scan(volume(path, scan_spacing=(5, 5, 5))).spacing == (5, 5, 5)
    assert metadata.for_scan(Record.from_dict(volume(path))).spacing == (4, 4, 4)
    monkeypatch.setenv("MEDSEGPY_DATASETS", str(tmp_path))
    assert metadata.for_scan(volume("f.nii")).spacing == (4, 4, 4)
    for says_nothing in (volume("absent.nii"), {"scan_id": "s"}, {"file_name": "f.nii"}, {"file_name": 5}):
        assert metadata.for_scan(says_nothing).spacing == (1, 1, 1)
    assert metadata.for_scan(volume(path), {}).spacing == (1, 1, 1)
    assert metadata.view().for_scan(volume(path)).spacing == (1, 1, 1)


def test_transforms_of_core_process_and_plugins(site, plugins):
    site.add(
        "t",
        """
        from medsegpy_core import TransformSpec, hookimpl

        @hookimpl
        def medsegpy_register_transforms():
            return [TransformSpec("FromPlugin", lambda: print), TransformSpec("Windowing", lambda: print)]
        """,
    )
    assert build_transform("ZeroMeanNormalization") is not None
    plugins()
    register_transform("scaled", lambda factor=1: lambda image, mask: (image * factor, mask))
    assert transform_names() == ["AffineNormalization", "FromPlugin", "Windowing", "ZeroMeanNormalization", "scaled"]
    assert build_transform("scaled", {"factor": 3})(2, None) == (6, None)
    assert build_transform("FromPlugin") is print
    with pytest.raises(DuplicateNameError, match=r"'Windowing'.*medsegpy_core.*medsegpy-t 1.0"):
        build_transform("Windowing", {})
    with pytest.raises(UnknownNameError, match=r"Did you mean 'scaled'\?"):
        build_transform("scaledd")
    with pytest.raises(ConfigError, match=r"'scaled'.*wrong"):
        build_transform("scaled", {"wrong": 3})
    with pytest.raises(ConfigError, match="must be a dict"):
        build_transform("scaled", [1])
    register_transform("nothing", lambda: None)
    with pytest.raises(ConfigError, match="cannot be called"):
        build_transform("nothing")
    with pytest.raises(DuplicateNameError):
        register_transform("nothing", list)
    register_transform("nothing", lambda: print, replace=True)
    assert build_transform("nothing") is print


def test_paths_may_be_path_objects(plugins):
    reader = FakeReader("a", ".x")
    register_reader(reader)
    assert find_reader({"file_name": Path("f.x"), "scan_id": "s"}) is reader


class TestKeys:
    """Files with a suffix that no reader declares, with arrays of any name."""

    @pytest.fixture
    def scan(self):
        return make_scan()

    @pytest.mark.parametrize("names", [("img", "lab"), ("data", "volume"), ("volume", "data")])
    @pytest.mark.parametrize("user_block", [0, 512])
    def test_an_image_key_is_enough_for_any_hdf5_file(self, tmp_path, scan, names, user_block):
        """MATLAB writes a 512-byte header before HDF5."""
        path = tmp_path / "scan.mat"
        with h5py.File(path, "w", userblock_size=user_block) as file:
            file[names[0]], file[names[1]] = scan
        keys = {"image_key": names[0], "sem_seg_key": names[1]}
        d = volume(path, sem_seg_file=str(path), **keys)
        with open_scan(d) as opened:
            assert np.array_equal(opened.image[...], scan[0])
            assert np.array_equal(opened.mask[...], scan[1])
        images, masks = build_loader(Config(CATEGORIES=[0]), [d], batch_size=7, shuffle=False)[0]
        assert np.array_equal(np.moveaxis(images[..., 0], 0, 2), scan[0])
        assert np.array_equal(np.moveaxis(masks[..., 0], 0, 2), scan[1][..., 0])
        with open_scan(d | {"slice_id": 3, "scan_num_slices": 7}) as opened:
            assert np.array_equal(opened.image[...], scan[0][..., 2])

    def test_with_and_without_a_key(self, tmp_path, scan):
        """One loader may have records of one file with different readers."""
        path = save(tmp_path / "scan.mat", data=scan[0][..., 0], other=scan[0])
        plain = {"file_name": path, "scan_id": "a", "slice_id": 1, "scan_num_slices": 1}
        assert find_reader(plain).name == "h5-slices"
        assert find_reader(volume(path, image_key="other")).name == "h5-volumes"
        dicts = [plain, volume(path, image_key="other", scan_id="b")]
        loader = build_loader(Config(CATEGORIES=[0]), dicts, is_test=True, batch_size=8, keep_unlabelled=True)
        assert [inputs["x"].shape[2] for inputs, _ in loader.inference(lambda images: images)] == [1, 7]

    def test_a_missing_key_is_reported(self, tmp_path, scan):
        path = save(tmp_path / "scan.mat", img=scan[0])
        with pytest.raises(UnknownNameError, match=r"'h5-volumes' can read it if the dict names .* image_key='...'"):
            find_reader(volume(path))
        there = r"no dataset 'im'. The file has 'img'. Did you mean 'img'?"
        with pytest.raises(ReadError, match=there), open_scan(volume(path, image_key="im")):
            pass
        (tmp_path / "text.mat").write_text("text")
        with pytest.raises(UnknownNameError, match="no reader recognizes this file"):
            find_reader(volume(tmp_path / "text.mat", image_key="img"))

    def test_two_readers_that_take_keys(self, plugins, tmp_path):
        class Keyed(FakeReader):
            def probe_keyed(self, path):
                return path.read_bytes().startswith(self.magic)

        one, other = Keyed("one", magic=b"ab"), Keyed("other", ".x", magic=b"abc")
        for reader in (one, other):
            register_reader(reader)
        path = tmp_path / "file.mat"
        path.write_bytes(b"ab")
        assert find_reader(volume(path, image_key="k")) is one
        path.write_bytes(b"abc")
        with pytest.raises(AmbiguousReaderError, match=r"'one' of .* and 'other' of .* both claim this file"):
            find_reader(volume(path, image_key="k"))
        assert find_reader(volume(tmp_path / "file.x", image_key="k")) is other
        register_reader(Keyed("failing", magic=None))
        path.write_bytes(b"ab")
        with pytest.warns(PluginWarning, match=r"'failing' .* skipped: probe_keyed"):
            assert find_reader(volume(path, image_key="k")) is one


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".h5", ".im", ".nii", ".nii.gz", ".hdf5", ".unknown", ".fake", ".failing"])
def test_a_git_lfs_pointer_is_recognized(tmp_path, suffix):
    class Failing(FakeReader):
        def open(self, record):
            raise {".fake": ReadError("no magic", record.file_name), ".failing": KeyError("magic")}[suffix]

    register_reader(Failing("fake", ".fake", ".failing"))
    path = tmp_path / f"scan{suffix}"
    path.write_text(POINTER)
    d = volume(path) | ({"slice_id": 1, "scan_num_slices": 1} if suffix == ".im" else {})
    for isolate in (False, True):
        named = pytest.raises(ReadError, match=r"a Git LFS pointer: .* Run: git lfs pull")
        with named as caught, accessing(Access(isolate=isolate)), open_scan(d):
            pass
        assert caught.value.path == path


@pytest.mark.parametrize("suffix", [".h5", ".nii.gz"])
def test_a_mask_that_is_a_git_lfs_pointer(tmp_path, suffix):
    write_volume(tmp_path / "scan.h5", make_scan()[0])
    path = tmp_path / f"mask{suffix}"
    path.write_text(POINTER)
    d = volume(tmp_path / "scan.h5", image_key="volume", sem_seg_file=str(path))
    with pytest.raises(ReadError, match="Run: git lfs pull") as caught, open_scan(d):
        pass
    assert caught.value.path == path
    DatasetCatalog.register("pointers", lambda: [d])
    assert [f.file for f in check_dataset("pointers").findings if f.kind == "file"] == [str(path)]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "older version.*-v7.3"), (b"<!DOCTYPE html><html>", "a web page")],
)
def test_files_with_a_misleading_suffix(tmp_path, content, words):
    for name in ("scan.mat", "scan.h5", "scan.nii"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReadError, match=words), open_scan(volume(tmp_path / name)):
            pass
