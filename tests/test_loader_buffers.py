"""The memory of batches: a batch does not change while any part of it is referenced; then its memory is reused."""

import os
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import make_scan, save_slices

from medsegpy_core import Config, build_loader
from medsegpy_core.loading import buffers
from medsegpy_core.loading.buffers import ReturnedBuffers, fresh_buffer, returned_buffers

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    image, mask = make_scan((24, 20, 40))
    return save_slices(tmp_path_factory.mktemp("slices"), image, mask)


def loader_of(dicts, workers=2, **options):
    cfg = Config(SEED=0, CATEGORIES=[0, 1], NUM_WORKERS=workers)
    return build_loader(cfg, dicts, batch_size=4, shuffle=True, drop_last=False, **options)


HOLDERS = {
    "the arrays": lambda batch: batch,
    "a part of one": lambda batch: (batch[0][1:2, ::2], batch[1][..., 0]),
    "a part of a part": lambda batch: (batch[0][1:].reshape(-1)[5:].reshape(-1, 1), batch[1][2]),
    "a memoryview": lambda batch: (memoryview(batch[0]), memoryview(batch[1])[1:]),
    "another type": lambda batch: (batch[0].view(np.uint32), batch[1].view(np.uint8)),
    "a matrix": lambda batch: (np.asarray(batch[0][0, ..., 0]).view(np.matrix), batch[1]),
    "what the buffer protocol makes": lambda batch: (np.frombuffer(batch[0], np.float32), np.asarray(batch[1].data)),
    "the interface of arrays": lambda batch: (np.asarray(type("Held", (), {
        "__array_interface__": batch[0].__array_interface__, "of": batch[0]})()), batch[1]),
    "dlpack": lambda batch: (np.from_dlpack(batch[0]), np.from_dlpack(batch[1])),
    "an iterator": lambda batch: (batch[0].flat, batch[1].flat),
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("holder", HOLDERS)
def test_referenced_batches_do_not_change(dicts, holder, workers):
    loader = loader_of(dicts, workers)
    held, expected = [], []
    for number in range(3):
        for i, batch in enumerate(loader):
            if (i + number) % 3 == 0:
                held.append(HOLDERS[holder](batch))
                expected.append([np.array(one) for one in held[-1]])
            del batch
    assert len(held) > 8
    for parts, wanted in zip(held, expected, strict=True):
        for part, copy in zip(parts, wanted, strict=True):
            np.testing.assert_array_equal(np.array(part), copy)


def test_all_batches_of_an_epoch_may_be_kept(dicts):
    one, other = list(loader_of(dicts)), [[a.copy() for a in batch] for batch in loader_of(dicts)]
    for batch, wanted in zip(one, other, strict=True):
        for array, copy in zip(batch, wanted, strict=True):
            np.testing.assert_array_equal(array, copy)
    addresses = [batch[0].ctypes.data for batch in one]
    assert len(set(addresses)) == len(addresses)


def test_changes_of_a_batch_do_not_affect_others(dicts):
    wanted = [[a.copy() for a in batch] for batch in loader_of(dicts)]
    for batch, expected in zip(loader_of(dicts), wanted, strict=True):
        for array, copy in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(array, copy)
            array[...] = 77


def test_unreferenced_memory_is_reused():
    take = ReturnedBuffers(4)
    seen = {take("images", (4, 100), np.float32).ctypes.data for _ in range(20)}
    assert len(seen) == 1
    held = take("images", (4, 100), np.float32)
    part = held[1:2, 5:]
    del held
    assert take("images", (4, 100), np.float32).ctypes.data != part.ctypes.data - 420
    kept = [take("images", (4, 100), np.float32) for _ in range(20)]
    assert len({array.ctypes.data for array in kept}) == 20
    assert sum(map(len, take._memory.values())) == 4  # it does not hold what others hold


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.sampled_from(["f4", "u1"])), max_size=60), st.data()
)
def test_memory_is_not_shared_between_batches(asked, data):
    take, held = ReturnedBuffers(3), []
    for number, (rows, size, dtype) in enumerate(asked):
        array = take("images", (rows, size), dtype)
        assert array.shape == (rows, size)
        assert array.dtype == dtype
        assert array.ctypes.data % 64 == 0 or not array.size
        array[...] = number % 200
        held.append((number % 200, array[rows // 2 :]))
        if data.draw(st.booleans()):
            held.pop(data.draw(st.integers(0, len(held) - 1)))
        for value, part in held:
            assert (part == value).all()


def test_threads_never_share_memory():
    take, wrong = ReturnedBuffers(8), []

    def work(number):
        for _ in range(3000):
            array = take("images", (64,), np.uint8)
            array[...] = number
            if not (array == number).all():
                wrong.append(number)
            del array

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    assert sum(map(len, take._memory.values())) <= 8


def test_memory_is_freed_with_the_iterator(dicts):
    loader = loader_of(dicts)
    batches = iter(loader)
    list(batches)
    own = weakref.ref(batches._own)
    assert own()._memory
    del batches
    assert own() is None  # at once: no thread, and nothing of the loader, holds it


def test_an_interpreter_without_the_gil_allocates(monkeypatch):
    assert isinstance(returned_buffers(3), ReturnedBuffers)
    monkeypatch.setattr(buffers.sys, "_is_gil_enabled", lambda: False, raising=False)
    assert returned_buffers(3) is fresh_buffer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_in_the_middle_of_a_pass(dicts):
    wanted = [[a.copy() for a in batch] for batch in loader_of(dicts)]
    batches = iter(loader_of(dicts))
    held = [next(batches) for _ in range(3)]
    if (child := os.fork()) == 0:
        same = all(
            np.array_equal(array, copy)
            for batch, expected in zip([*held, *batches], wanted, strict=True)
            for array, copy in zip(batch, expected, strict=True)
        )
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    for batch, expected in zip([*held, *batches], wanted, strict=True):
        np.testing.assert_array_equal(batch[0], expected[0])
