"""Missing and damaged files: the iterating process gets a `ReadError` in order, and nothing hangs."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from scans import make_scan, same, save, save_slices, save_volume

from medsegpy_core import DatasetCatalog, MetadataCatalog, ReadError, RecordError, build_loader, load_scan
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

IMAGE, MASK = make_scan((4, 3, 6), 2)


def missing(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def no_hdf5(path):
    path.write_bytes(b"not an HDF5 file at all" * 50)


def other_key(path):
    with h5py.File(path, "w") as file:
        file["somewhere"] = np.zeros((4, 3, 1), np.float32)


def wrong_rank(path):
    save(path, data=np.zeros((4, 3, 6, 2, 2), np.float32))


def wrong_shape(path):
    save(path, data=np.zeros((4, 9, 1, 2) if path.suffix == ".seg" else (4, 3, 1, 9), np.uint8))


def text(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.full((4, 3, 1), b"text")


def a_group(path):
    with h5py.File(path, "w") as file:
        file.create_group("data")


def broken_chunk(path):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        shape = (4, 3, 1, 2) if path.suffix == ".seg" else (4, 3, 1)
        values = rng.integers(0, 2, shape).astype(np.uint8)
        data = file.create_dataset("data", data=values, chunks=shape, compression="gzip")
        offset = data.id.get_chunk_info(0).byte_offset
        size = data.id.get_chunk_info(0).size
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(bytes(content))


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_link_to_nowhere(path):
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE = [
    missing,
    cut,
    empty,
    no_hdf5,
    other_key,
    wrong_rank,
    wrong_shape,
    text,
    a_group,
    broken_chunk,
    a_folder,
    a_pipe,
    a_link_to_nowhere,
]


def registered(dicts, name="my_set"):
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(category_ids=[0, 1], categories=["a", "b"])
    return name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("which", ["file_name", "sem_seg_file"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_the_error_is_raised_in_order(tmp_path, damage, which, workers):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    whole = [
        batch
        for i, batch in enumerate(build_loader(Config(NUM_WORKERS=0), dicts, shuffle=False, batch_size=1))
        if i < 3
    ]
    path = Path(dicts[3][which])
    loader = build_loader(Config(NUM_WORKERS=workers), registered(dicts), shuffle=False, batch_size=1)
    damage(path)
    iterator = iter(loader)
    assert same([next(iterator) for _ in range(3)], whole)
    with pytest.raises(ReadError) as caught:
        next(iterator)
    error = caught.value
    assert isinstance(error, OSError)
    for part in (str(path), "'my_set'", "element 3"):
        assert part in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    # The pass is over, the epoch is not.
    assert next(iterator, None) is None
    assert loader.epoch == 0
    assert loader.state_dict()["batches"] == 3
    assert same([loader[i] for i in (0, 1, 2)], whole)
    with pytest.raises(ReadError):
        loader[3]
    with pytest.raises(ReadError, match="my_set"):
        list(loader.inference(lambda x: x.repeat(2, -1)))


@pytest.mark.parametrize("damage", [missing, cut, empty, no_hdf5])
@pytest.mark.parametrize("tag", ["DefaultDataLoader", "PatchDataLoader", "RandomPatchDataLoader"])
def test_volumes(tmp_path, damage, tag):
    dicts = [save_volume(tmp_path, IMAGE, MASK, subject=n) for n in (1, 2)]
    size = () if tag == "DefaultDataLoader" else (4, 3, 2)
    cfg = Config(TAG=tag, IMG_SIZE=size, NUM_WORKERS=2, SEED=0)
    loader = build_loader(cfg, registered(dicts), batch_size=2)
    list(loader)
    damage(Path(dicts[1]["file_name"]))
    with pytest.raises(ReadError, match=r"0000002_V00\.h5") as caught:
        list(loader)
    assert "'my_set'" in str(caught.value)
    with pytest.raises(ReadError, match=r"0000002_V00\.h5"):
        for _ in build_loader(cfg, "my_set", batch_size=2):
            pass
    with pytest.raises(ReadError, match=r"0000002_V00\.h5"):
        list(loader.inference(lambda x: x.repeat(2, -1)))


def test_preloading_and_whole_scans(tmp_path):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    Path(dicts[3]["file_name"]).unlink()
    name = registered(dicts)
    with pytest.raises(ReadError, match="_004"):
        build_loader(Config(PRELOAD_DATA=True), name)
    with pytest.raises(ReadError, match="_004"):
        load_scan(name, "0000001_V00")


def test_whole_scans_with_inconsistent_slices(tmp_path):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    name = registered(dicts[:2] + dicts[3:])
    with pytest.raises(RecordError, match="3"):
        load_scan(name, "0000001_V00")
    save(dicts[1]["file_name"], data=IMAGE[:3, :, :1])
    save(dicts[1]["sem_seg_file"], data=MASK[:3, :, :1])
    with pytest.raises(ValueError, match="_002") as caught:
        load_scan(registered(dicts, "other"), "0000001_V00")
    assert "3 x 3" in str(caught.value)


def test_an_error_in_a_transform_is_propagated(tmp_path):
    def transform(image, mask):
        raise KeyError("what is this")

    loader = build_loader(Config(NUM_WORKERS=2), save_slices(tmp_path, IMAGE, MASK), batch_size=2, transform=transform)
    with pytest.raises(KeyError, match="what is this"):
        list(loader)
    with pytest.raises(KeyError, match="what is this"):
        loader[0]


INTERRUPTED = """
    import os, sys, time
    import numpy as np
    from medsegpy_core import Config, build_loader

    def slow(image, mask):
        os.write(1, b"working\\n")
        time.sleep(0.2)
        return image, mask

    path = sys.argv[1]
    dicts = [{"file_name": path, "sem_seg_file": path, "scan_id": "s"}]
    loader = build_loader(Config(NUM_WORKERS=2, SEED=0), dicts, batch_size=1, transform=slow)
    try:
        while True:
            for images, masks in loader:
                pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(7)
"""


def test_ctrl_c(tmp_path):
    volume = save_volume(tmp_path, IMAGE, MASK)
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(INTERRUPTED), volume["file_name"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert set(out.splitlines()) - {"working"} == {"interrupted"}
    assert process.returncode == 7
    assert err == ""


# -- buffers and types of masks


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("is_test", [False, True])
@pytest.mark.parametrize("tag", ["DefaultDataLoader", "PatchDataLoader"])
def test_a_reused_batch_is_valid_until_two_more_have_been_requested(tmp_path, workers, is_test, tag):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    cfg = Config(NUM_WORKERS=workers, TAG=tag, IMG_SIZE=(4, 3, 1))
    options = {"shuffle": False, "batch_size": 1, "is_test": is_test}
    expected = list(build_loader(cfg, dicts, **options))
    loader = build_loader(cfg, dicts, reuse_buffers=True, **options)
    for _ in range(2):
        previous, held = None, set()
        for i, batch in enumerate(loader):
            time.sleep(0.01)
            assert same([batch], [expected[i]])
            assert previous is None or same([previous], [expected[i - 1]])
            previous = batch
            held.add(batch[0].__array_interface__["data"][0])
        assert len(held) <= workers + 4
    one, other = iter(loader), iter(loader)
    first = next(one)
    assert same([next(other)], [first])
    list(other)
    assert same([first], [expected[0]])


def test_reused_batches_of_different_sizes(tmp_path):
    dicts = [
        *save_slices(tmp_path, *make_scan((4, 3, 3), 2, 1), subject=1),
        *save_slices(tmp_path, *make_scan((6, 5, 4), 2, 2), subject=2),
    ]
    cfg = Config(NUM_WORKERS=2)
    for batch_size in (1, 3):
        loaders = [
            build_loader(
                cfg,
                [d for d in dicts if batch_size == 1 or d["subject_id"] == 2],
                shuffle=False,
                drop_last=False,
                batch_size=batch_size,
                reuse_buffers=reuse,
            )
            for reuse in (False, True)
        ]
        for one, other in zip(*loaders, strict=True):
            assert same([one], [other])


def test_without_reuse_batches_stay(tmp_path):
    loader = build_loader(Config(NUM_WORKERS=2), save_slices(tmp_path, IMAGE, MASK), batch_size=1, shuffle=False)
    batches = list(loader)
    copies = [tuple(array.copy() for array in batch) for batch in batches]
    list(loader)
    assert same(batches, copies)
    for array in batches[0]:
        array[...] = 7
    assert same(batches[1:], copies[1:])


def test_masks_of_uint8(tmp_path):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    for background in (False, True):
        cfg = Config(INCLUDE_BACKGROUND=background, CATEGORIES=[1, (0, 1)])
        small, large = (
            build_loader(cfg, dicts, batch_size=6, shuffle=False, mask_dtype=t)[0] for t in ("uint8", "float32")
        )
        assert (small[1].dtype, large[1].dtype) == (np.uint8, np.float32)
        np.testing.assert_array_equal(small[1], large[1])
