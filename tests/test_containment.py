"""Datasets whose files must be inside their folder."""

import os
from pathlib import Path

import numpy as np
import pytest
from scans import make_scan, save_volume

from medsegpy_core import (
    Config,
    DatasetCatalog,
    MetadataCatalog,
    MetadataError,
    ReadError,
    build_loader,
    open_scan,
    pack_dataset,
    register_packed,
)
from medsegpy_core.datasets import load_records


@pytest.fixture
def folders(tmp_path):
    image, mask = make_scan()
    (tmp_path / "root").mkdir()
    inside = save_volume(tmp_path / "root" / "deep", image, mask)
    outside = save_volume(tmp_path / "elsewhere", image, mask, subject=2)
    return tmp_path / "root", inside, outside


def register(dicts, root, **metadata):
    DatasetCatalog.register("guarded", lambda: dicts)
    MetadataCatalog.get("guarded").set(scan_root=str(root), category_ids=[0, 1], categories=["a", "b"], **metadata)


def at(d, path):
    return {**d, "file_name": str(path), "sem_seg_file": str(path)}


def refused(match):
    with pytest.raises(ReadError, match=match) as caught:
        load_records("guarded")
    assert "'guarded'" in str(caught.value)
    assert "contained=True" in str(caught.value)
    return caught.value


def test_files_inside_are_read(folders):
    root, inside, _ = folders
    register([inside], root, contained=True)
    images, _ = build_loader(Config(TRAIN_DATASET="guarded", TAG="PatchDataLoader", IMG_SIZE=(2, 2, 2)), "guarded")[0]
    assert np.isfinite(images).all()


def test_containment_is_off_by_default(folders):
    root, _, outside = folders
    register([outside], root)
    assert load_records("guarded")
    MetadataCatalog.get("guarded").set(contained=False)
    assert load_records("guarded")


@pytest.mark.parametrize("way", ["absolute", "dots", "link", "folder link", "mask"])
def test_paths_out_of_the_folder_are_rejected(folders, way):
    root, inside, outside = folders
    file = outside["file_name"]
    if way == "absolute":
        d = outside
    elif way == "dots":
        d = at(outside, f"{root}/deep/../../elsewhere/{os.path.basename(file)}")
    elif way == "link":
        (root / "link.h5").symlink_to(file)
        d = at(outside, root / "link.h5")
    elif way == "folder link":
        (root / "folder").symlink_to(Path(file).parent)
        d = at(outside, root / "folder" / os.path.basename(file))
    else:
        d = {**inside, "sem_seg_file": file}
    register([d], root, contained=True)
    error = refused("not in .*root")
    assert error.path is not None
    with pytest.raises(ReadError, match=r"not in .*root"), open_scan(d, "guarded"):
        pass


def test_links_that_stay_inside_are_followed(folders, tmp_path):
    root, inside, _ = folders
    (root / "link.h5").symlink_to(inside["file_name"])
    (tmp_path / "alias").symlink_to(root)
    register(
        [at(inside, tmp_path / "alias" / "link.h5"), {**inside, "scan_id": "b"}], tmp_path / "alias", contained=True
    )
    assert len(load_records("guarded")) == 2


def test_a_folder_with_the_same_prefix_is_outside(folders, tmp_path):
    root, _, outside = folders
    twin = tmp_path / "root2"
    Path(outside["file_name"]).parent.rename(twin)
    register([at(outside, twin / os.path.basename(outside["file_name"]))], root, contained=True)
    refused("not in .*root ")


def test_relative_paths(folders, monkeypatch):
    root, inside, _ = folders
    monkeypatch.setenv("MEDSEGPY_DATASETS", str(root.parent))
    name = os.path.basename(inside["file_name"])
    register([at(inside, f"root/deep/{name}")], "root", contained=True)
    assert load_records("guarded")
    DatasetCatalog.register("guarded", lambda: [at(inside, f"root/../elsewhere/{name}")], replace=True)
    refused("not in .*root")


def test_it_needs_a_scan_root(folders):
    _, inside, _ = folders
    DatasetCatalog.register("guarded", lambda: [inside])
    MetadataCatalog.get("guarded").set(contained=True)
    with pytest.raises(MetadataError, match="scan_root"):
        load_records("guarded")
    with pytest.raises(MetadataError, match="True or False"):
        MetadataCatalog.get("guarded").set(contained="yes", replace=True)


def test_packed_sets_are_contained(folders, tmp_path):
    root, inside, _ = folders
    register([inside], root, category_id_to_contiguous_id={0: 0, 1: 1}, evaluator_type="SemSegEvaluator")
    pack_dataset("guarded", tmp_path / "packed")
    name = register_packed(tmp_path / "packed", "packed_set")
    assert MetadataCatalog.get(name).contained is True
    assert load_records(name)
