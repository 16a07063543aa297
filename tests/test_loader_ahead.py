"""While batches wait for the disk, the files of the next batches are prefetched, each once."""

from contextlib import contextmanager

import pytest
from scans import make_scan, save_slices

from medsegpy_core import Config, build_loader, open_scan
from medsegpy_core.loading import prefetch
from medsegpy_core.loading.prefetch import Waiting

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def asked(monkeypatch):
    """The prefetched files, in order."""
    found = []
    monkeypatch.setattr(prefetch, "read_ahead", found.extend)
    return found


class Clock:
    """Replaces the module `time`, because real clocks also measure the load of other processes."""

    def __init__(self):
        self.wall = self.processor = 0.0

    def perf_counter(self):
        return self.wall

    def thread_time(self):
        return self.processor

    def work(self, seconds):
        self.wall += seconds
        self.processor += seconds

    def wait(self, seconds):
        self.wall += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(prefetch, "time", made)
    return made


def loader_of(dicts, **options):
    cfg = Config(SEED=0, CATEGORIES=[0], NUM_WORKERS=0)
    return build_loader(cfg, dicts, batch_size=2, shuffle=True, drop_last=False, **options)


@pytest.fixture
def dicts(tmp_path):
    return save_slices(tmp_path, *make_scan((8, 8, 20)))


def files(loader, batch):
    return {str(file) for e in loader.elements(batch) for file in (e.record.file_name, e.record.sem_seg_file)}


def test_a_waiting_pass_prefetches_each_batch_once(dicts, asked, monkeypatch):
    monkeypatch.setattr(Waiting, "measure", lambda self: contextmanager(lambda: (yield))())
    loader = loader_of(dicts)
    batches = iter(loader)
    next(batches)
    assert set(asked) == set.union(*(files(loader, i) for i in range(5)))
    next(batches)
    assert set(asked[-4:]) == files(loader, 5)
    list(batches)
    assert sorted(asked) == sorted({str(d[key]) for d in dicts for key in ("file_name", "sem_seg_file")})


def test_a_resumed_pass_prefetches_from_its_position(dicts, asked):
    first = iter(loader_of(dicts))
    for _ in range(7):
        next(first)
    state = {"seed": 0, "epoch": 0, "batches": 7}
    loader = loader_of(dicts)
    loader.load_state_dict(state)
    asked.clear()
    next(iter(loader))
    assert set(asked) == set.union(*(files(loader, i) for i in range(7, 10)))


def test_cpu_bound_batches_stop_prefetching(dicts, asked, clock):
    def busy(image, mask):
        clock.work(0.01)
        return image, mask

    batches = iter(loader_of(dicts, transform=busy))
    next(batches)
    before = len(asked)
    for _ in range(5):
        next(batches)
    assert len(asked) == before


@pytest.mark.parametrize(
    ("worked", "waited", "expected"), [(1, 0, False), (0, 1, True), (3, 0.9, False), (3, 1.1, True)]
)
def test_waiting_is_measured(clock, worked, waited, expected):
    waiting = Waiting()
    for _ in range(2):
        with waiting.measure():
            clock.work(worked)
            clock.wait(waited)
        assert waiting.expected == expected


def test_a_disk_that_becomes_slow_is_detected(dicts, asked, clock):
    seconds = [clock.work]

    def transform(image, mask):
        seconds[0](0.01)
        return image, mask

    batches = iter(loader_of(dicts, transform=transform))
    next(batches)
    before = len(asked)
    next(batches)
    assert len(asked) == before
    seconds[0] = clock.wait
    next(batches)
    next(batches)
    assert len(asked) > before


class Attached:
    """A reader whose arrays can be read only while their record is open; counts how often it is opened."""

    name, suffixes = "attached", (".att",)

    def __init__(self):
        self.opened = 0

    def probe(self, path):
        return False

    @contextmanager
    def open(self, record):
        self.opened += 1
        inner = {key: value for key, value in record.to_dict().items() if key != "reader"}
        with open_scan(inner) as scan:
            yield type("Scan", (), {"image": scan.image[...], "mask": scan.mask[...], "metadata": {}})


def test_a_record_that_must_be_open_is_opened_once_per_read(dicts):
    from medsegpy_core import register_reader

    reader = Attached()
    register_reader(reader)
    loader = loader_of([d | {"reader": "attached"} for d in dicts])
    list(loader)
    before = reader.opened
    loader.set_epoch(1)
    list(loader)
    assert reader.opened - before == len(dicts)
