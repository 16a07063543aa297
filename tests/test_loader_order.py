"""Order, epochs, positions and shards."""

import gc
import json
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import make_scan, same, save_slices, save_volume

from medsegpy_core import ConfigError, DataWarning, build_loader
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

TAGS = ["DefaultDataLoader", "RandomPatchDataLoader"]


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    return [d for n in range(3) for d in save_slices(root, *make_scan((4, 3, 4), 1, n), subject=n)]


def noise(image, mask, rng):
    return image + rng.normal(size=image.shape), mask


def make(dicts, tag="DefaultDataLoader", seed=0, workers=0, batch_size=5, **options):
    size = (3, 3, 2) if tag == "RandomPatchDataLoader" else ()
    cfg = Config(SEED=seed, NUM_WORKERS=workers, TAG=tag, IMG_SIZE=size, PATCHES_PER_SCAN=4)
    return build_loader(cfg, dicts, batch_size=batch_size, **{"drop_last": False, "transform": noise, **options})


def flat(batches):
    return [number for batch in batches for number in batch]


def names(loader, epoch=None):
    if epoch is not None:
        loader.set_epoch(epoch)
    return [[e.number for e in loader.elements(i)] for i in range(len(loader))]


def test_zero_is_a_valid_seed(dicts):
    assert names(make(dicts)) == names(make(dicts))
    assert names(make(dicts)) != names(make(dicts, seed=1))
    assert names(make(dicts), 0) != names(make(dicts), 1)
    assert make(dicts).seed == 0


def test_no_seed_draws_one(dicts):
    seeds = {make(dicts, seed=None).seed for _ in range(5)}
    assert len(seeds) == 5
    one = make(dicts, seed=None)
    assert same(one, make(dicts, seed=one.seed))


def test_every_epoch_has_every_element_once(dicts):
    loader = make(dicts)
    for epoch in range(3):
        assert sorted(flat(names(loader, epoch))) == list(range(12))


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_order_does_not_depend_on_workers_or_history(dicts, tag, batch_size):
    expected = []
    for epoch in range(3):
        loader = make(dicts, tag, batch_size=batch_size)
        loader.set_epoch(epoch)
        expected.append(list(loader))
    for workers in (0, 1, 3):
        loader = make(dicts, tag, workers=workers, batch_size=batch_size)
        for epoch in range(3):
            assert loader.epoch == epoch
            assert same(loader, expected[epoch])
    assert not same(expected[0], expected[1])


def test_the_batch_size_does_not_change_an_element(dicts):
    found = []
    for batch_size in (1, 5, 12):
        loader = make(dicts, batch_size=batch_size)
        images = np.concatenate([images for images, _ in loader])
        loader.set_epoch(0)
        found.append(dict(zip(flat(names(loader)), images, strict=True)))
    for other in found[1:]:
        assert all(np.array_equal(other[number], image) for number, image in found[0].items())


def test_global_random_numbers_are_not_used(dicts):
    before = str(np.random.get_state()), random.getstate()  # noqa: NPY002
    list(make(dicts, "RandomPatchDataLoader"))
    assert (str(np.random.get_state()), random.getstate()) == before  # noqa: NPY002


# -- iter


@pytest.mark.parametrize("workers", [0, 2])
def test_exhausting_adds_one_and_dropping_does_not(dicts, workers):
    loader = make(dicts, workers=workers)
    first = list(loader)
    assert loader.epoch == 1
    iterator = iter(loader)
    second = [next(iterator)]
    del iterator
    gc.collect()
    assert loader.epoch == 1
    assert same([next(iter(loader))], second)
    assert not same(loader, first)
    assert loader.epoch == 2
    for _ in loader:
        break
    assert loader.epoch == 2
    loader.set_epoch(0)
    assert same(loader, first)


def test_all_batches_delivered_is_not_exhausted(dicts):
    loader = make(dicts, workers=1)
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    assert loader.epoch == 0
    assert next(iterator, None) is None
    assert loader.epoch == 1
    assert next(iterator, None) is None
    assert loader.epoch == 1


def test_iter_starts_at_the_beginning_and_getitem_keeps_the_position(dicts):
    loader = make(dicts, workers=2)
    one, other = iter(loader), iter(loader)
    batch = next(one)
    assert same([next(other)], [batch])
    assert same([loader[0]], [batch])
    loader[1]
    assert same([next(one)], [loader[1]])
    assert loader.state_dict()["batches"] == 1
    assert same([next(other)], [loader[1]])
    assert loader.epoch == 0


def test_two_passes_of_one_epoch(dicts):
    loader = make(dicts, workers=1)
    for one, other in zip(loader, loader, strict=True):
        assert same([one], [other])
    assert loader.epoch >= 1


def test_invalid_epochs(dicts):
    for epoch in (-1, 1.5, None):
        with pytest.raises(ValueError, match=f"no epoch {epoch}"):
            make(dicts).set_epoch(epoch)


def test_abandoned_iterators_leave_no_threads(dicts):
    loader = make(dicts, workers=3, batch_size=1)
    before = threading.active_count()
    for _ in range(10):
        next(iter(loader))
    gc.collect()
    end = time.monotonic() + 100
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_epoch_without_a_batch(dicts):
    loader = make(dicts, batch_size=13, drop_last=True)
    assert len(loader) == 0
    with pytest.warns(DataWarning, match="batch"):
        assert list(loader) == []
    assert loader.epoch == 1


# -- state


@pytest.mark.parametrize("tag", TAGS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.one_of(st.none(), st.integers(0, 2)),
    epochs=st.integers(0, 2),
    taken=st.integers(0, 3),
    workers=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    shuffle=st.booleans(),
)
def test_a_pass_is_resumed_bit_for_bit(dicts, tag, seed, epochs, taken, workers, shuffle):
    loader = make(dicts, tag, seed, workers[0], shuffle=shuffle)
    for _ in range(epochs):
        list(loader)
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["seed"], state["epoch"], state["batches"]) == (loader.seed, epochs, taken)
    rest = list(iterator)
    after = list(loader)
    other = make(dicts, tag, 99, workers[1], shuffle=shuffle)
    other.load_state_dict(state)
    assert other.seed == loader.seed
    assert other.state_dict() == state
    assert same(other, rest)
    assert same(other, after)


def test_a_loaded_state_is_used_once(dicts):
    loader = make(dicts)
    whole = list(loader)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batches": 2})
    loader[0]
    assert same([next(iter(loader))], whole[2:])
    assert same(loader, whole)


def test_the_state_after_an_epoch_is_the_beginning_of_the_next(dicts):
    loader = make(dicts)
    list(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (1, 0)


def test_an_older_iterator_does_not_change_the_position(dicts):
    loader = make(dicts, workers=1)
    old = iter(loader)
    next(old)
    new = iter(loader)
    assert loader.state_dict()["batches"] == 0
    next(old)
    assert loader.state_dict()["batches"] == 0
    next(new)
    assert loader.state_dict()["batches"] == 1


def test_invalid_states(dicts):
    loader = make(dicts)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="batches"):
        loader.load_state_dict({"seed": 0, "epoch": 0})
    for other in (make(dicts[:-1]), make(dicts, batch_size=4)):
        with pytest.raises(ValueError, match=r"there, .* here"):
            other.load_state_dict(state)
    for wrong in ({"seed": -1}, {"epoch": -1}, {"batches": -1}, {"batches": "1"}, {"epoch": 0.5}):
        with pytest.raises(ValueError):
            loader.load_state_dict({**state, **wrong})
    assert loader.state_dict() == state


# -- shards


@settings(max_examples=40, deadline=None)
@given(
    world=st.integers(1, 6),
    batch_size=st.integers(1, 6),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    is_test=st.booleans(),
    epoch=st.integers(0, 2),
)
@pytest.mark.filterwarnings("ignore::medsegpy_core.DataWarning")
def test_shards(dicts, world, batch_size, drop_last, shuffle, is_test, epoch):
    loader = make(dicts, batch_size=batch_size, drop_last=drop_last, shuffle=shuffle, is_test=is_test)
    shards = [loader.shard(rank, world) for rank in range(world)]
    found = [names(shard, epoch) for shard in shards]
    numbers = [n for batches in found for batch in batches for n in batch]
    assert len(set(numbers)) == len(numbers)
    if drop_last and not is_test:
        assert {len(batches) for batches in found} == {12 // (world * batch_size)}
        assert all(len(batch) == batch_size for batches in found for batch in batches)
    else:
        assert sorted(numbers) == list(range(12))
        assert max(map(len, found)) - min(map(len, found)) <= 1
    assert [len(shard) for shard in shards] == [len(batches) for batches in found]


def test_a_shard_is_a_new_loader(dicts):
    loader = make(dicts)
    list(loader)
    before = loader.state_dict()
    shard = loader.shard(1, 2)
    assert shard.epoch == 1
    list(shard)
    assert (loader.epoch, shard.epoch) == (1, 2)
    assert loader.state_dict() == before
    whole = {
        n: image
        for batch, row in zip(names(loader, 1), [loader[i] for i in range(3)], strict=True)
        for n, image in zip(batch, row[0], strict=True)
    }
    shard.set_epoch(1)
    for i, batch in enumerate(names(shard)):
        for n, image in zip(batch, shard[i][0], strict=True):
            np.testing.assert_array_equal(image, whole[n])


def test_a_shard_is_resumed(dicts):
    shard = make(dicts, workers=2, batch_size=2).shard(1, 2)
    iterator = iter(shard)
    next(iterator)
    state = shard.state_dict()
    other = make(dicts, batch_size=2).shard(1, 2)
    other.load_state_dict(state)
    assert same(other, iterator)


def test_shards_need_a_seed_and_a_rank(dicts):
    with pytest.raises(ConfigError, match="SEED"):
        make(dicts, seed=None).shard(0, 2)
    for rank, world in ((2, 2), (-1, 2), (0, 0), (0.5, 2)):
        with pytest.raises(ValueError, match="rank"):
            make(dicts).shard(rank, world)


def test_shards_of_random_patches_of_volumes(tmp_path):
    dicts = [save_volume(tmp_path, *make_scan((4, 3, 4), 1, n), subject=n) for n in range(3)]
    shards = [make(dicts, "RandomPatchDataLoader", batch_size=2, drop_last=True).shard(rank, 3) for rank in range(3)]
    assert [len(list(shard)) for shard in shards] == [2, 2, 2]
