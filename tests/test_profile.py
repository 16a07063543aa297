"""`medsegpy profile`, and the layouts in `datasets show`: measurements are correct."""

import json
import sys
import time

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from scans import make_scan, save_slices, save_volume, settle

from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, build_loader, pack_dataset, register_packed
from medsegpy_core.cli.app import cli
from medsegpy_core.datasets import load_records
from medsegpy_core.diagnostics import access_costs, compared, profile
from medsegpy_core.diagnostics.stages import STAGES, stage_seconds
from medsegpy_core.hdf5 import open_array
from medsegpy_core.hdf5.costs import observed
from medsegpy_core.loading.scans import Opener, group_scans

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (96, 80, 24)


def register(name, dicts, channels=3):
    DatasetCatalog.register(name, lambda: dicts)
    ids = list(range(channels))
    MetadataCatalog.get(name).set(category_ids=ids, categories=[str(i) for i in ids])
    return name


def costs(name):
    records = load_records(name)
    settle(*{file for record in records for file in record.files if file is not None})
    return {cost.what: cost for cost in access_costs(group_scans(records)[0], Opener.of(records))}


@pytest.fixture
def volume(tmp_path):
    image, mask = make_scan(SHAPE)
    return register("volume", [save_volume(tmp_path / "v", image, mask)])


def test_observing_counts_bytes_and_leaves_nothing_behind(tmp_path):
    values = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["plain"] = values
        file.create_dataset("gzip", data=values, chunks=(16, 64), compression="gzip")
        file.create_dataset("odd", data=values, chunks=(16, 64), scaleoffset=3)
    settle(tmp_path / "a.h5")
    arrays = {key: open_array(tmp_path / "a.h5", key) for key in ("plain", "gzip", "odd")}
    [array[...] for array in arrays.values()]
    with observed() as plain:
        arrays["plain"][:8]
    assert (plain.bytes_read, plain.bytes_decoded) == (8 * 64 * 4, 0)
    with observed() as gzip:
        arrays["gzip"][:8]
    assert gzip.bytes_decoded == gzip.bytes_touched == 16 * 64 * 4
    assert 0 < gzip.bytes_read < gzip.bytes_decoded
    with observed() as odd:
        arrays["odd"][:8]
    assert odd.bytes_read == 8 * 64 * 4
    assert min(plain.seconds_reading, gzip.seconds_decoding, odd.seconds_reading) > 0
    before = plain.bytes_read
    arrays["plain"][...]
    assert plain.bytes_read == before


def test_every_byte_is_counted_in_all_threads(tmp_path, backend):
    image, mask = make_scan((64, 64, 40))
    dicts = save_slices(tmp_path / "s", image, mask)
    loader = build_loader(Config(NUM_WORKERS=8), dicts, batch_size=2, shuffle=True)
    list(loader)  # files are located by now
    with observed() as seen:
        assert len(list(loader)) == 20
    assert (seen.bytes_read, seen.bytes_decoded) == (image.nbytes + mask.nbytes, 0)
    list(loader)
    assert seen.bytes_read == image.nbytes + mask.nbytes


def test_an_efficient_layout_is_not_wasteful(tmp_path, volume):
    register_packed(pack_dataset("volume", tmp_path / "s").manifest, "by_slices")
    register_packed(pack_dataset("volume", tmp_path / "p", layout="patches", patch=(32, 32, 24)).manifest, "by_patches")
    slices, patches, plain = costs("by_slices"), costs("by_patches"), costs("volume")
    height, width, depth = SHAPE
    assert slices["slice"].needed == height * width * (4 + 1)
    assert slices["slice"].touched == slices["slice"].needed
    assert not slices["slice"].wasteful
    # A slice of a volume in one piece lies in all of its rows.
    assert plain["slice"].touched > height * width * (depth - 1) * 4
    assert plain["slice"].wasteful
    assert "pack volume --layout slices" in plain["slice"].advice("volume")
    assert patches["slice"].wasteful
    assert patches["patch"].touched < 2 * patches["patch"].needed
    assert not patches["patch"].wasteful


def test_chunks_that_h5py_chooses_are_wasteful_for_patches(tmp_path):
    image, mask = make_scan(SHAPE)
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", data=image, chunks=(*SHAPE[:2], 1), compression="gzip")
        file.create_dataset("seg", data=mask, chunks=(*SHAPE[:2], 1, 3), compression="gzip")
    settle(path)
    register("gzip", [{"file_name": path, "sem_seg_file": path, "scan_id": "a"}])
    found = costs("gzip")
    height, width, _ = SHAPE
    assert found["slice"].touched == height * width * (4 + 3)
    assert not found["slice"].wasteful
    assert found["patch"].touched == height * width * 24 * (4 + 3)
    assert found["patch"].wasteful


def test_stages_add_up_and_show_a_slow_transform(tmp_path):
    image, mask = make_scan((32, 32, 12))
    register("slices", save_slices(tmp_path / "s", image, mask))

    def slow(image, mask):
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass
        return image, mask

    cfg = Config(TRAIN_DATASET="slices", SEED=0, NUM_WORKERS=0)
    loader = build_loader(cfg, "slices", batch_size=4, transform=slow)
    expected = loader[0]
    stages = stage_seconds(loader, 3)
    assert tuple(stages) == STAGES
    assert stages["transform"] == pytest.approx(0.016, rel=0.2)
    assert stages["decode"] == 0
    assert stages["locate"] > 0
    assert stages["collate"] > 0
    # The instruments are gone, and the loader is as it was.
    assert all(np.array_equal(a, b) for a, b in zip(loader[0], expected, strict=True))
    assert (loader.epoch, loader.state_dict()["batches"]) == (0, 0)
    assert stage_seconds(build_loader(cfg, "slices", batch_size=4), 3)["transform"] == 0


def test_decoding_is_separated_from_reading(tmp_path):
    image, mask = make_scan((64, 64, 8))
    dicts = save_slices(tmp_path / "s", image, mask)
    for d in dicts:
        for key in ("file_name", "sem_seg_file"):
            with h5py.File(d[key], "r+") as file:
                values = file["data"][:]
                del file["data"]
                file.create_dataset("data", data=values, compression="gzip")
    register("gzip", dicts)
    cfg = Config(TRAIN_DATASET="gzip", SEED=0, NUM_WORKERS=0)
    stages = stage_seconds(build_loader(cfg, "gzip", batch_size=4), 2)
    assert stages["decode"] > 0
    with observed() as seen:
        build_loader(cfg, "gzip", batch_size=4)[0]
    assert seen.bytes_decoded >= 4 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("tag", "size"), [("DefaultDataLoader", ()), ("S25dDataLoader", (96, 80, 3)), ("PatchDataLoader", (32, 32, 8))]
)
def test_a_profile_tries_changes_and_suggests_those_that_help(volume, tag, size):
    cfg = Config(TRAIN_DATASET=volume, TAG=tag, IMG_SIZE=size, NUM_WORKERS=1)
    found = profile(cfg, volume, batch_size=4, batches=3)
    assert cfg.SEED is None
    assert (found.dataset, found.tag, found.batch_size, found.threads) == (volume, tag, 4, 1)
    assert found.rate > 0
    elements = (32 * 32 * 8 if tag == "PatchDataLoader" else 96 * 80) * 4
    assert found.batch_bytes == 4 * elements * (size[-1] if tag == "S25dDataLoader" else 1) + 3 * 4 * elements
    assert found.memory > 4 * found.batch_bytes
    assert found.preload_memory == np.prod(SHAPE) * (4 + 3)
    gains = [trial.gain for trial in found.trials]
    assert gains == sorted(gains, reverse=True)
    assert found.suggestions == [t for t in found.trials if t.gain >= 1.1 and t.low > t.noise]
    assert all(t.low <= t.gain <= t.high and t.noise >= 1 for t in found.trials)
    assert found.rate_range[0] <= found.rate <= found.rate_range[1]
    assert all(found.stage_ranges[s][0] <= found.stages[s] <= found.stage_ranges[s][1] for s in STAGES)
    assert (found.padded, found.not_tried) == (False, [])
    layout = "patches" if tag == "PatchDataLoader" else "slices"
    tried = {trial.change for trial in found.trials}
    assert {f"medsegpy pack volume --layout {layout}", "reuse_buffers=True", "mmap=True", "NUM_WORKERS=2"} <= tried
    assert "NUM_WORKERS=1" not in tried
    assert ["processes" in line for line in found.advice] == ([] if tag == "PatchDataLoader" else [True])


def test_a_gain_must_exceed_the_noise():
    rates = {
        "now": [100, 110, 90, 100, 20],
        "again": [110, 100, 100, 90, 100],
        "better": [150, 160, 140, 150, 60],
        "a little": [108, 112, 102, 104, 50],
        "now and then": [300, 90, 300, 80, 300],
        "worse": [50, 50, 50, 50, 50],
    }
    found = {trial.change: trial for trial in compared(rates, "now", "again")}
    assert set(found) == {"better", "a little", "now and then", "worse"}
    # One round, in which the machine was busy, counts for nothing.
    assert found["better"].noise == pytest.approx(100 / 90)
    assert [change for change, trial in found.items() if trial.helps] == ["better"]
    assert found["better"].gain == pytest.approx(150 / np.sqrt(100 * 110), rel=0.1)
    assert found["now and then"].gain > 2
    # On a machine that is busy all the time, nothing is said to help.
    noisy = {"now": [100, 200, 100, 200, 100], "again": [200, 100, 200, 100, 200], "better": [200] * 5}
    assert not any(trial.helps for trial in compared(noisy, "now", "again"))


@pytest.mark.parametrize("tag", ["DefaultDataLoader", "S25dDataLoader", "N5dDataLoader", "RandomPatchDataLoader"])
def test_scans_of_several_sizes(tmp_path, tag):
    dicts = [
        save_volume(tmp_path / "sizes", *make_scan(shape), subject=subject)
        for subject, shape in enumerate([(20, 16, 6), (24, 12, 5), (18, 18, 7)])
    ]
    register("sizes", dicts)
    found = profile(Config(TRAIN_DATASET="sizes", TAG=tag, NUM_WORKERS=1), "sizes", batch_size=4, batches=2)
    expected = {"DefaultDataLoader": (24, 18, 1), "RandomPatchDataLoader": (24, 18, 7)}
    assert found.size == expected.get(tag, (24, 18, 3))
    assert found.padded == (tag != "RandomPatchDataLoader")
    assert found.preload_memory == (20 * 16 * 6 + 24 * 12 * 5 + 18 * 18 * 7) * (4 + 3)
    if tag == "DefaultDataLoader":
        shown = CliRunner().invoke(cli, ["profile", "sizes", "--batches", "1", "--batch-size", "4"])
        assert shown.exit_code == 0, shown.output
        assert "Slices differ in size" in shown.output


PLUGIN = """
import numpy as np
from medsegpy_core import LoaderSpec, hookimpl

class Mine:
    def __init__(self, request):
        self.request = request
    def __len__(self):
        return 3
    def __iter__(self):
        for _ in range(3):
            yield np.zeros((self.request.batch_size, 2, 2, 1), np.float32), np.zeros((self.request.batch_size, 2, 2, 3))

@hookimpl
def medsegpy_register_loaders():
    return [LoaderSpec("MyLoader", Mine)]
"""


def test_a_loader_of_a_plugin(site, plugins, tmp_path):
    site.add("mine", PLUGIN)
    plugins()
    # Dicts of its own are as good as any.
    DatasetCatalog.register("own", lambda: [{"anything": 1}])
    found = profile(Config(TAG="MyLoader", NUM_WORKERS=1), "own", batch_size=4)
    assert (found.tag, found.batches, found.batch_bytes) == ("MyLoader", 3, 4 * 4 * 4 + 4 * 4 * 3 * 8)
    assert (found.stages, found.memory, found.preload_memory, found.advice) == ({}, None, None, [])
    assert {trial.change.partition("=")[0] for trial in found.trials} == {"NUM_WORKERS"}
    shown = CliRunner().invoke(cli, ["profile", "own", "--tag", "MyLoader"])
    assert shown.exit_code == 0, shown.output
    assert "comes from a plugin" in shown.output
    said = json.loads(CliRunner().invoke(cli, ["profile", "own", "--tag", "MyLoader", "--json"]).stdout)
    assert said["memory"] is None
    assert CliRunner().invoke(cli, ["profile", "own", "--tag", "NoLoader"]).exit_code == 1


def test_a_loader_that_cannot_be_profiled_is_one_message(tmp_path):
    DatasetCatalog.register("empty", list)
    result = CliRunner().invoke(cli, ["profile", "empty"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is empty" in result.stderr


def test_packing_that_does_not_help_is_not_suggested(monkeypatch, volume):
    same = {"medsegpy pack volume --layout slices": [1.0] * 5}
    monkeypatch.setattr(
        sys.modules[profile.__module__], "_rates", lambda loaders, batches: {name: [1.0] * 5 for name in loaders} | same
    )
    found = profile(Config(NUM_WORKERS=1), volume, batch_size=4, batches=1)
    assert found.suggestions == []
    (line,) = found.advice
    assert line.endswith("made no measurable difference to this sample")
    shown = CliRunner().invoke(cli, ["profile", volume, "--batches", "1"]).output
    assert "Nothing that was tried is faster" in shown
    assert "two measurements of the same loader differ by 0%" in shown


def test_the_command():
    run = CliRunner().invoke
    asked = ["profile", "abdomen_slices_train", "--batches", "1", "--batch-size", "4", "--categories", "0,(3,4)"]
    shown = run(
        cli, ["profile", "abdomen_volumes_train", "--tag", "PatchDataLoader", "--batches", "1", "--size", "8,8,8"]
    )
    assert shown.exit_code == 0, shown.output
    for word in (*STAGES, "Memory:", "elements/s", "PatchDataLoader"):
        assert word in shown.output
    said = json.loads(run(cli, [*asked, "--json", "--threads", "0"]).stdout)
    assert said["threads"] == 0
    assert said["batch_bytes"] == 4 * 101 * 122 * 4 * (1 + 2)
    assert set(said["stages"]) == set(STAGES)
    assert run(cli, ["profile", "absent"]).exit_code == 1
    assert run(cli, [*asked, "--size", "3,x,1"]).exit_code == 2


def test_it_reports_whether_the_kernels_are_installed(volume, backend):
    asked = ["profile", "volume", "--batches", "1"]
    shown = CliRunner().invoke(cli, asked).output
    absent = backend == "numpy"
    assert ("no compiled kernels" in shown) == ("pip install medsegpy-native" in shown) == absent
    assert json.loads(CliRunner().invoke(cli, [*asked, "--json"]).output)["kernels"] != absent


def test_show_reports_a_wasteful_layout():
    run = CliRunner().invoke
    shown = run(cli, ["datasets", "show", "abdomen_volumes_train", "--fast"])
    assert "medsegpy pack abdomen_volumes_train --layout patches avoids that" in shown.output
    reads = json.loads(run(cli, ["datasets", "show", "abdomen_volumes_train", "--fast", "--json"]).stdout)["reads"]
    assert [read["what"] for read in reads] == ["slice", "patch"]
    assert reads[1]["wasteful"]
    assert reads[1]["bytes_touched"] > 2 * reads[1]["bytes_needed"]
