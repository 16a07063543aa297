"""``medsegpy datasets``: counts, compared with the generated files."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from medsegpy_core import DatasetCatalog, MetadataCatalog, scan_directory, write_slices, write_volume
from medsegpy_core.cli import cli


def medsegpy(*args):
    return CliRunner().invoke(cli, args)


def show(name, *options):
    result = medsegpy("datasets", "show", name, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def slices(tmp_path):
    """Two subjects, one of them with an augmented copy and an unlabelled second visit."""
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    mask = (rng.random((6, 5, 4, 3)) < 0.4).astype(np.uint8)
    write_slices(tmp_path, image, mask, subject_id=1)
    write_slices(tmp_path, image, mask, subject_id=1, augmentation=3)
    write_slices(tmp_path, image[:, :, :2].astype(np.float32), None, subject_id=1, time_point=1)
    write_slices(tmp_path, image[:, :, :3], mask[:, :, :3], subject_id=2)
    (tmp_path / "0000002_V00-Aug00_002.im").unlink()
    (tmp_path / "0000002_V00-Aug00_002.seg").unlink()
    with pytest.warns(UserWarning, match="0000002_V00"):
        dicts = scan_directory(tmp_path, reader="h5-slices")
    dicts = [d | {"scan_spacing": (1.0, 1.0, 5.0)} if d["subject_id"] == 2 else d for d in dicts]
    DatasetCatalog.register("mine_train", lambda: dicts)
    MetadataCatalog.get("mine_train").set(
        category_ids=[0, 2, (0, 1)],
        categories=["a", "c", "a or b"],
        category_id_to_contiguous_id={0: 0, 2: 1, (0, 1): 2},
        spacing=(0.5, 0.5, 3.0),
    )
    return mask


def test_counts_of_slices(slices):
    found = show("mine_train")
    assert (found["elements"], found["labelled"], found["subjects"], found["scans"]) == (12, 10, 2, 4)
    assert (found["slices"], found["missing_slices"], found["scans_without_subject"]) == (12, 1, 0)
    assert [(a["number"], a["name"], a["elements"]) for a in found["augmentations"]] == [(0, "none", 8), (3, None, 4)]
    assert {tuple(s["shape"]): s["scans"] for s in found["shapes"]} == {(6, 5, 4): 2, (6, 5, 2): 1, (6, 5, 3): 1}
    assert {tuple(s["spacing"]): s["scans"] for s in found["spacings"]} == {(0.5, 0.5, 3.0): 3, (1.0, 1.0, 5.0): 1}
    assert found["image_dtypes"] == {"int16": 10, "float32": 2}
    assert found["mask_dtypes"] == {"uint8": 10}
    seen = [slices, slices, slices[:, :, [0, 2]]]
    assert found["voxels"] == {
        "a": sum(int(m[..., 0].sum()) for m in seen),
        "c": sum(int(m[..., 2].sum()) for m in seen),
        "a or b": sum(int(m[..., :2].any(axis=-1).sum()) for m in seen),
    }
    assert found["metadata"]["category_ids"] == [0, 2, [0, 1]]


def test_fast_counts_everything_except_voxels(slices):
    found, fast = show("mine_train"), show("mine_train", "--fast")
    assert fast.pop("voxels") is None
    found.pop("voxels")
    assert fast == found


def test_the_text_output_agrees(slices):
    text = medsegpy("datasets", "show", "mine_train").stdout
    for line in (
        "subjects           2",
        "10 of 12 elements",
        "12 (1 missing)",
        "(not declared)",
        "a or b",
        "0.5 x 0.5 x 3 (3)",
    ):
        assert line in text
    assert "class" not in medsegpy("datasets", "show", "mine_train", "--fast").stdout


def test_counts_of_volumes_without_metadata(tmp_path):
    mask = (np.random.default_rng(1).random((4, 5, 6, 2)) < 0.5).astype(np.uint8)
    dicts = [
        write_volume(tmp_path / "one.h5", np.zeros((4, 5, 6), np.float64), mask),
        write_volume(tmp_path / "two.h5", np.zeros((4, 5, 6), np.float64)),
    ]
    DatasetCatalog.register("volumes", lambda: dicts)
    found = show("volumes")
    assert (found["elements"], found["labelled"], found["scans"], found["slices"]) == (2, 1, 2, 12)
    assert (found["subjects"], found["scans_without_subject"]) == (0, 2)
    assert found["shapes"] == [{"shape": [4, 5, 6], "scans": 2}]
    assert found["spacings"] == [{"spacing": None, "scans": 2}]
    assert found["voxels"] == {"channel 0": int(mask[..., 0].sum()), "channel 1": int(mask[..., 1].sum())}
    assert "4 x 5 x 6" in medsegpy("datasets", "show", "volumes").stdout


def test_declared_augmentations_are_named(site, plugins, tmp_path):
    code = f"""
        from medsegpy_core import Augmentation, DatasetSpec, hookimpl, scan_directory
        import medsegpy_h5_slices

        medsegpy_register_readers = medsegpy_h5_slices.medsegpy_register_readers

        @hookimpl
        def medsegpy_register_datasets():
            return [DatasetSpec("knee", lambda: scan_directory({str(tmp_path / "knee")!r}), description="[both] knees")]

        @hookimpl
        def medsegpy_register_augmentations():
            return [Augmentation(4, "gamma", {{"gamma": 0.8}})]
    """
    site.add("knee", code, version="3.0")
    plugins()
    write_slices(tmp_path / "knee", np.zeros((3, 4, 2)), subject_id=1, augmentation=4)
    found = show("knee")
    assert found["augmentations"] == [{"number": 4, "name": "gamma", "parameters": {"gamma": 0.8}, "elements": 2}]
    assert (found["plugin"], found["distribution"], found["version"]) == ("knee", "medsegpy-knee", "3.0")
    text = medsegpy("datasets", "show", "knee").stdout
    assert "gamma=0.8" in text
    assert "[both] knees" in text


def test_list(site, plugins):
    dataset = "[DatasetSpec('{0}', list, split='val', description='{0} of others')]"
    head = "from medsegpy_core import DatasetSpec, hookimpl\n@hookimpl\ndef medsegpy_register_datasets():\n    return "
    site.add("one", head + dataset.format("hips"))
    site.add("two", head + dataset.format("knees"))
    site.add("three", head + dataset.format("knees"))
    plugins()
    DatasetCatalog.register("mine", list)
    hips, knees, mine = json.loads(medsegpy("datasets", "list", "--json").stdout)
    assert (hips["name"], hips["split"], hips["description"]) == ("hips", "val", "hips of others")
    assert (hips["distribution"], hips["version"], hips["error"]) == ("medsegpy-one", "1.0", None)
    assert knees["name"] == "knees"
    assert "medsegpy-two" in knees["error"]
    assert "medsegpy-three" in knees["error"]
    assert (mine["name"], mine["plugin"], mine["split"]) == ("mine", None, None)
    text = medsegpy("datasets", "list").stdout
    assert "hips of others" in text
    assert "medsegpy-one 1.0" in text


def test_nothing_to_list(plugins):
    assert "There are no datasets" in medsegpy("datasets", "list").stdout
    assert json.loads(medsegpy("datasets", "list", "--json").stdout) == []


def test_an_empty_dataset_is_counted(plugins):
    DatasetCatalog.register("empty", list)
    found = show("empty")
    assert (found["elements"], found["scans"], found["voxels"]) == (0, 0, {})
    assert medsegpy("datasets", "show", "empty").exit_code == 0


@pytest.mark.parametrize(
    ("dicts", "message"),
    [
        ([{"anything": 1}], "file_name"),
        ([{"file_name": "/absent/x.h5", "scan_id": "a", "reader": "h5-volumes"}], "/absent/x.h5"),
    ],
)
def test_an_unreadable_file_is_one_message(dicts, message):
    DatasetCatalog.register("bad", lambda: dicts)
    result = medsegpy("datasets", "show", "bad")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
