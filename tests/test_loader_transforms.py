"""Transforms in loaders: order, random numbers, threads, and data that they must not change."""

import copy
import pickle
import threading

import numpy as np
import pytest
from scans import everything, make_scan, same, save_slices, save_volume

from medsegpy_core import (
    ConfigError,
    DatasetCatalog,
    DefaultDataLoader,
    PluginError,
    ShapeError,
    build_loader,
    register_transform,
)
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

IMAGE, MASK = make_scan((4, 3, 8), 2)


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    return save_slices(tmp_path_factory.mktemp("scan"), IMAGE, MASK)


def make(dicts, transform=None, cfg=None, **options):
    cfg = cfg or Config(NUM_WORKERS=2)
    cfg.SEED = 0
    return build_loader(
        cfg, dicts, **{"shuffle": False, "drop_last": False, "batch_size": 3, "transform": transform, **options}
    )


def noise(image, mask, rng):
    return image + rng.normal(size=image.shape), mask


def swap(image, mask):
    return image * 2, 1 - mask


def test_a_transform_is_called_with_one_element(dicts):
    shapes = set()

    class Look:
        thread_safe = True

        def __call__(self, image, mask):
            shapes.add((image.shape, mask.shape, image.dtype, mask.dtype))
            return image, mask

    list(make(dicts, Look(), cfg=Config(CATEGORIES=[(0, 1)], INCLUDE_BACKGROUND=True)))
    assert shapes == {((4, 3, 1), (4, 3, 2), np.dtype("float32"), np.dtype("float32"))}
    shapes.clear()
    list(make(dicts, Look(), cfg=Config(TAG="PatchDataLoader", IMG_SIZE=(2, 3, 4))))
    assert shapes == {((2, 3, 4, 1), (2, 3, 4, 2), np.dtype("float32"), np.dtype("float32"))}


def test_preprocessing_comes_first(dicts):
    register_transform("AddOne", lambda amount=1: lambda image, mask: (image + amount, mask))
    cfg = Config(PREPROCESSING=["AddOne", "AddOne"], PREPROCESSING_ARGS=[{}, {"amount": 4}])
    images, masks = everything(make(dicts, swap, cfg))
    np.testing.assert_array_equal(images[..., 0], ((np.moveaxis(IMAGE, 2, 0) + 1) + 4) * 2)
    np.testing.assert_array_equal(masks, 1 - np.moveaxis(MASK, 2, 0))


@pytest.mark.parametrize("mask_dtype", ["float32", "uint8"])
def test_batches_keep_their_types(dicts, mask_dtype):
    def wide(image, mask):
        return image.astype(np.float64), mask.astype(np.int64)

    for batch in make(dicts, wide, mask_dtype=mask_dtype):
        assert [array.dtype for array in batch] == [np.float32, mask_dtype]
        assert all(array.flags.c_contiguous for array in batch)


def test_batches_are_contiguous_whatever_the_transform_returns(dicts):
    def flip(image, mask):
        return image[::-1, ::-1].swapaxes(0, 1), mask[::-1, ::-1].swapaxes(0, 1)

    images, masks = make(dicts, flip)[0]
    assert images.shape == (3, 3, 4, 1)
    assert images.flags.c_contiguous
    assert masks.flags.c_contiguous
    np.testing.assert_array_equal(images[0, ..., 0], IMAGE[::-1, ::-1, 0].T)


# -- random numbers


def test_random_numbers_come_from_seed_epoch_and_element(dicts):
    first = everything(make(dicts, noise))[0]
    for options in ({"batch_size": 1}, {"batch_size": 8, "is_test": True}):
        for workers in (0, 3):
            np.testing.assert_array_equal(
                everything(make(dicts, noise, Config(NUM_WORKERS=workers), **options))[0], first
            )
    loader = make(dicts, noise)
    loader.set_epoch(1)
    other = everything(loader)[0]
    assert (other != first).mean() > 0.99
    draws = first[..., 0] - np.moveaxis(IMAGE, 2, 0)
    assert len({draw.tobytes() for draw in draws}) == 8


def test_a_sample_can_be_reproduced_from_its_number(dicts):
    cfg = Config(NUM_WORKERS=0)
    shuffled = make(dicts, noise, cfg, shuffle=True)
    plain = everything(make(dicts, noise, cfg))[0]
    for i in range(len(shuffled)):
        for element, image in zip(shuffled.elements(i), shuffled[i][0], strict=True):
            np.testing.assert_array_equal(image, plain[element.number])


def test_random_numbers_of_a_patch_differ_from_those_that_placed_it(tmp_path):
    volume = save_volume(tmp_path, np.zeros((9, 9, 9), np.float32), np.zeros((9, 9, 9, 1), np.uint8))
    cfg = Config(TAG="RandomPatchDataLoader", IMG_SIZE=(3, 3, 3), PATCHES_PER_SCAN=50, FOREGROUND_RATIO=0.0)
    drawn = []

    class Draw:
        thread_safe = True

        def __call__(self, image, mask, rng):
            drawn.append(tuple(rng.integers(0, 7, 3)))
            return image, mask

    loader = make([volume], Draw(), cfg, batch_size=50)
    loader[0]
    starts = [tuple(w.start for w in e.window) for e in loader.elements(0)]
    assert sum(a == b for a, b in zip(starts, drawn, strict=True)) < 10


def test_rng_of_keyword_and_of_partial(dicts):
    def keyword(image, mask, *, rng):
        return noise(image, mask, rng)

    class Method:
        def __call__(self, image, mask, rng=None):
            assert rng is not None
            return noise(image, mask, rng)

    assert same(make(dicts, keyword), make(dicts, noise))
    assert same(make(dicts, Method()), make(dicts, noise))


# -- raw images and truth


def in_place(image, mask):
    image[...] = 0
    mask[...] = 0
    return image, mask


@pytest.mark.parametrize("transform", [in_place, swap])
@pytest.mark.parametrize("preload", [False, True])
def test_raw_images_are_those_before_the_transforms(dicts, transform, preload):
    cfg = Config(PRELOAD_DATA=preload, PREPROCESSING=["ZeroMeanNormalization"])
    loader = make(dicts, transform, cfg, is_test=True)
    for _ in range(2):
        images, _, raw = everything(loader)
        np.testing.assert_array_equal(raw[..., 0], np.moveaxis(IMAGE, 2, 0))
        assert not np.array_equal(images, raw)
    images, _, raw = everything(make(dicts, is_test=True))
    np.testing.assert_array_equal(images, raw)


@pytest.mark.parametrize("transform", [in_place, swap])
@pytest.mark.parametrize("tag", ["DefaultDataLoader", "PatchDataLoader"])
@pytest.mark.parametrize("is_test", [False, True])
def test_the_ground_truth_is_the_mask_before_the_transforms(dicts, transform, tag, is_test):
    cfg = Config(TAG=tag, IMG_SIZE=() if tag == "DefaultDataLoader" else (4, 3, 4))
    ((inputs, outputs),) = make(dicts, transform, cfg, is_test=is_test).inference(lambda x: x.repeat(2, -1))
    np.testing.assert_array_equal(inputs["x"], IMAGE)
    np.testing.assert_array_equal(outputs["y_true"], MASK)
    expected, _ = transform(IMAGE.copy(), MASK.copy())
    np.testing.assert_array_equal(outputs["y_pred"], expected[..., None].repeat(2, -1))


def test_preloaded_data_survive_transforms_in_place(dicts):
    loader = make(dicts, in_place, Config(PRELOAD_DATA=True))
    assert not everything(loader)[0].any()
    plain = make(dicts, None, Config(PRELOAD_DATA=True))
    np.testing.assert_array_equal(everything(plain)[0][..., 0], np.moveaxis(IMAGE, 2, 0))


# -- threads and processes


class Counting:
    """Has its own buffer, like many transforms, and records the threads that use it."""

    def __init__(self):
        self.threads = set()
        self.copies = [self]
        self.inside = 0

    def __deepcopy__(self, memo):
        other = Counting()
        other.copies = self.copies
        self.copies.append(other)
        return other

    def __call__(self, image, mask):
        self.threads.add(threading.get_ident())
        self.inside += 1
        assert self.inside == 1
        result = image + sum(range(1000)) * 0
        self.inside -= 1
        return result, mask


def test_each_thread_has_its_own_copy(dicts):
    transform = Counting()
    list(make(dicts, transform, Config(NUM_WORKERS=3), batch_size=1))
    assert not transform.threads
    assert all(len(copy.threads) <= 1 for copy in transform.copies)
    assert sum(len(copy.threads) for copy in transform.copies) >= 1


def test_a_thread_safe_transform_is_not_copied(dicts):
    transform = Counting()
    transform.thread_safe = True
    transform.__class__ = type(
        "Shared", (Counting,), {"__call__": lambda self, image, mask: (self.threads.add(1) or image, mask)}
    )
    list(make(dicts, transform))
    assert transform.copies == [transform]
    assert transform.threads == {1}


def test_a_transform_that_cannot_be_copied_is_explained(dicts):
    class Locked:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, image, mask):
            return image, mask

    with pytest.raises(TypeError):
        copy.deepcopy(Locked())
    with pytest.raises(PluginError, match="thread_safe"):
        list(make(dicts, Locked()))


def test_a_loader_with_transforms_can_be_pickled(dicts):
    cfg = Config(PREPROCESSING=["Windowing"], PREPROCESSING_ARGS=[{"bounds": (-50, 50)}])
    loader = make(dicts, noise, cfg)
    list(loader)
    assert same(pickle.loads(pickle.dumps(loader)), loader)


# -- what may go wrong


def test_shapes_that_differ_in_a_batch(dicts):
    def crop(image, mask, rng):
        n = int(rng.integers(1, 5))
        return image[:n], mask[:n]

    with pytest.raises(ShapeError, match="transforms"):
        list(make(dicts, crop, batch_size=8))
    assert len(list(make(dicts, crop, batch_size=1))) == 8


@pytest.mark.parametrize("result", [None, 3, (1, 2), "ab", (np.zeros((4, 3, 1)),)])
def test_invalid_results(dicts, result):
    with pytest.raises(PluginError, match="return"):
        list(make(dicts, lambda image, mask: result))


def test_a_transform_that_changes_the_size_cannot_be_used_for_inference(dicts):
    loader = make(dicts, lambda image, mask: (image[:2], mask[:2]))
    with pytest.raises(ShapeError, match="expected"):
        list(loader.inference(lambda x: x.repeat(2, -1)))


def test_invalid_transforms(dicts):
    with pytest.raises(TypeError, match="called"):
        make(dicts, 3)


# -- random steps in PREPROCESSING


class MaybeNoise:
    def __call__(self, image, mask, *, rng=None):
        return noise(image, mask, rng)


@pytest.fixture
def random_steps(dicts):
    """A config with a random step in PREPROCESSING, and one dataset per role."""
    for name, transform in (("Noise", lambda: noise), ("MaybeNoise", MaybeNoise), ("Swap", lambda: swap)):
        register_transform(name, transform)
    for name in ("train", "val", "test", "other"):
        own = [{**d, "subject_id": name} for d in dicts]
        DatasetCatalog.register(name, lambda own=own: own)
    return Config(TRAIN_DATASET="train", VAL_DATASET=("other", "val"), TEST_DATASET="test", CATEGORIES=[0], SEED=0)


@pytest.mark.parametrize("step", ["Noise", "MaybeNoise"])
def test_random_preprocessing_is_rejected_in_evaluation(random_steps, dicts, step):
    cfg = random_steps
    cfg.PREPROCESSING = ["Swap", step]
    test = {"is_test": True}
    judged = [("train", test), (dicts, test), (DatasetCatalog.get("val"), {}), (["train", "val"], {})]
    for what, options in (*judged, ("val", {}), ("other", {}), ("test", {})):
        with pytest.raises(ConfigError, match=rf"PREPROCESSING names '{step}', .*AUGMENTATION.*transform="):
            build_loader(cfg, what, **options)
    with pytest.raises(ConfigError, match="AUGMENTATION"):
        DefaultDataLoader(cfg, dicts, is_test=True)
    loader = build_loader(cfg, "train", batch_size=3)
    plain = build_loader(Config(CATEGORIES=[0], SEED=0, PREPROCESSING=["Swap"]), "train", batch_size=3)
    assert not np.array_equal(loader[0][0], plain[0][0])
    assert np.array_equal(loader[0][1], plain[0][1])
    with pytest.raises(ConfigError, match=r"inference\(model\) is called"):
        loader.inference(lambda batch: batch)


def test_a_random_transform_of_the_caller_is_allowed(random_steps):
    loader = build_loader(random_steps, "test", is_test=True, transform=noise, batch_size=8)
    plain = build_loader(random_steps, "test", is_test=True, batch_size=8)
    assert not np.array_equal(loader[0][0], plain[0][0])
    assert len(list(loader.inference(lambda batch: batch))) == 1


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_the_split_of_a_plugin_dataset_is_used(split, site, plugins, dicts):
    site.add("sets", f"""
        from medsegpy_core import DatasetSpec, TransformSpec, hookimpl
        from medsegpy_h5_slices import SlicesReader
        from attrs import evolve

        @hookimpl
        def medsegpy_register_datasets():
            return [DatasetSpec("set", lambda: {[{**d, "reader": "mine"} for d in dicts]!r}, split={split!r})]

        @hookimpl
        def medsegpy_register_readers():
            return [evolve(SlicesReader(), name="mine")]

        @hookimpl
        def medsegpy_register_transforms():
            return [TransformSpec("PluginNoise", lambda: lambda image, mask, rng: (image + rng.random(), mask))]
        """)  # fmt: skip
    plugins()
    cfg = Config(CATEGORIES=[0], PREPROCESSING=["PluginNoise"])
    if split == "train":
        assert len(build_loader(cfg, "set", batch_size=4)) == 2
    else:
        with pytest.raises(ConfigError, match=rf"'PluginNoise'.*{split} split.*AUGMENTATION"):
            build_loader(cfg, "set")
