"""The suites for plugin authors pass valid plugins, and fail broken ones in the corresponding test."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from medsegpy_core import DatasetCatalog, DatasetSpec, MedSegPyError, MetadataCatalog, hookimpl, open_scan
from medsegpy_core.testing import CheckError, DatasetTests, Example, NotCheckableError, ReaderTests, check_plugin

READERS = '''
    """A reader of .npy files, and many ways to break it."""
    import os
    import random
    from contextlib import contextmanager
    from pathlib import Path
    from attrs import frozen
    from medsegpy_core import ReadError, hookimpl

    class NpyArray:
        """Reads with one read() for each element of the first axis, so that a shared file shows."""
        def __init__(self, path):
            import numpy as np
            self.path = path
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise ReadError(str(error), path) from error
            self.shape, self.dtype, self.start = stored.shape, stored.dtype.newbyteorder("="), stored.offset

        def __getitem__(self, selection):
            import numpy as np
            return np.array(np.load(self.path, mmap_mode="r")[selection], self.dtype, order="C")

    class Scan:
        def __init__(self, image, mask, metadata):
            self.image, self.mask, self.metadata = image, mask, metadata

    class NpyReader:
        name = "npy"
        suffixes = (".npy",)
        array = NpyArray
        metadata = {"spacing": (1.0, 1.0, 2.0)}

        def probe(self, path):
            with open(path, "rb") as file:
                return file.read(6) == bytes([0x93]) + b"NUMPY"

        @contextmanager
        def open(self, record):
            mask = None if record.sem_seg_file is None else self.array(record.sem_seg_file)
            yield Scan(self.array(record.file_name), mask, self.metadata)

        def scan(self, root):
            names = sorted(path for path in Path(root).absolute().glob("*.npy") if not path.stem.endswith("_seg"))
            return [{"file_name": str(path), "scan_id": path.stem} for path in names]

    class ForgetsSteps(NpyReader):
        class array(NpyArray):
            def __getitem__(self, selection):
                items = selection if isinstance(selection, tuple) else (selection,)
                return super().__getitem__(tuple(slice(i.start, i.stop) if isinstance(i, slice) else i for i in items))

    class GivesTheMap(NpyReader):
        class array(NpyArray):
            def __getitem__(self, selection):
                import numpy as np
                return np.load(self.path, mmap_mode="r")[selection]

    class ReadsBesideItsTarget(NpyReader):
        class array(NpyArray):
            def read_into(self, selection, out):
                whole = out if out.base is None else out.base
                whole[...] = 0
                out[...] = self[selection]

    class ReadsEagerly(NpyReader):
        class array(NpyArray):
            def __init__(self, path):
                super().__init__(path)
                self.data = super().__getitem__(...)
            def __getitem__(self, selection):
                return self.data[selection].copy(order="C")

    class SharesAFile(NpyReader):
        class array(NpyArray):
            def __init__(self, path):
                super().__init__(path)
                self.file = open(path, "rb", buffering=0)
            def __del__(self):
                self.file.close()
            def __getitem__(self, selection):
                import numpy as np
                rows = []
                size = self.dtype.itemsize * int(np.prod(self.shape[1:]))
                for row in range(self.shape[0]):
                    self.file.seek(self.start + row * size)
                    rows.append(np.frombuffer(self.file.read(size).ljust(size, b"x"), self.dtype))
                return np.array(np.stack(rows).reshape(self.shape)[selection], order="C")

    class NeverCloses(NpyReader):
        kept = []
        @contextmanager
        def open(self, record):
            self.kept.append(open(record.file_name, "rb"))
            with super().open(record) as scan:
                yield scan

    class DoesNotPickle(NpyReader):
        def __init__(self):
            self.suffix_of = lambda path: path.suffix

    class KnowsOneProcess(NpyReader):
        pid = os.getpid()
        @contextmanager
        def open(self, record):
            if os.getpid() != self.pid and "spawned" not in os.environ:
                raise RuntimeError("another process")
            with super().open(record) as scan:
                yield scan

    class RaisesWhatItGets(NpyReader):
        class array(NpyArray):
            def __init__(self, path):
                import numpy as np
                self.path, stored = path, np.load(path, mmap_mode="r")
                self.shape, self.dtype = stored.shape, stored.dtype

    class FillsWithZeros(NpyReader):
        class array(NpyArray):
            def __init__(self, path):
                super().__init__(path) if os.path.getsize(path) > 9000 else self.pretend(path)
            def pretend(self, path):
                import numpy as np
                self.path, self.shape, self.dtype = path, (64, 32, 32), np.dtype("float32")
            def __getitem__(self, selection):
                import numpy as np
                try:
                    return super().__getitem__(selection)
                except (ValueError, EOFError):
                    return np.zeros(self.shape, self.dtype)[selection].copy(order="C")

    class DoesNotNameTheFile(NpyReader):
        class array(NpyArray):
            def __init__(self, path):
                try:
                    super().__init__(path)
                except ReadError:
                    raise ReadError("broken") from None

    class ProbesBadly(NpyReader):
        def probe(self, path):
            with open(path, "rb") as file:
                return file.read(6)[0] == 0x93

    class ListsAtRandom(NpyReader):
        def scan(self, root):
            return random.sample(super().scan(root), 2)

    class ListsTwice(NpyReader):
        def scan(self, root):
            return [d for d in super().scan(root) for _ in range(2)]

    class SaysZeroSpacing(NpyReader):
        metadata = {"spacing": (0.0, 1.0, 1.0)}

    class SaysTwoSpacings(NpyReader):
        metadata = {"spacing": (1.0, 1.0)}

    class Turns(NpyReader):
        class array(NpyArray):
            def __getitem__(self, selection):
                import numpy as np
                return np.load(self.path)[::-1][selection].copy(order="C")

    class HasNoSuffixes(NpyReader):
        suffixes = "npy"

    class LosesTheMask(NpyReader):
        @contextmanager
        def open(self, record):
            yield Scan(self.array(record.file_name), None, self.metadata)

    @hookimpl
    def medsegpy_register_readers():
        return [NpyReader()]
'''


@pytest.fixture
def readers(site):
    module = __import__(site.add("npy", READERS))
    yield module
    for file in module.NeverCloses.kept:
        file.close()


def suite_of(chosen):
    class Suite(ReaderTests):
        reader = chosen

        def examples(self, folder):
            rng = np.random.default_rng(0)
            examples = []
            for number in range(2):
                image, mask = rng.normal(size=(64, 32, 32)).astype("f4"), rng.integers(0, 2, (64, 32, 32, 2), "u1")
                np.save(folder / f"{number}.npy", image)
                np.save(folder / f"{number}_seg.npy", mask)
                d = {"file_name": folder / f"{number}.npy", "sem_seg_file": folder / f"{number}_seg.npy"}
                examples.append(Example(d | {"scan_id": str(number)}, image, mask))
            return examples

    return Suite()


def failures(suite, folder):
    """Run a suite as pytest does, and return names and messages of the failing tests."""
    failed = {}
    for name, test in inspect.getmembers(suite, inspect.ismethod):
        if name.startswith("test_"):
            own = folder / name
            own.mkdir()
            arguments = {"tmp_path": own} if "tmp_path" in inspect.signature(test).parameters else {}
            try:
                test(**arguments)
            except MedSegPyError as error:
                failed[name.removeprefix("test_")] = str(error)
    return failed


def test_a_correct_reader_passes(readers, tmp_path):
    assert failures(suite_of(readers.NpyReader()), tmp_path) == {}


@pytest.mark.parametrize(
    ("kind", "test", "message"),
    [
        ("ForgetsSteps", "partial_reads", "has the shape"),
        ("GivesTheMap", "partial_reads", "a subclass: return a plain numpy.ndarray"),
        ("ReadsBesideItsTarget", "partial_reads", "writes outside its target"),
        ("ReadsEagerly", "shape_and_type_need_no_data", "read the header in open"),
        ("SharesAFile", "threads", "8 threads read at once"),
        ("NeverCloses", "files_are_released", "still open"),
        ("DoesNotPickle", "pickling", "cannot be pickled"),
        ("KnowsOneProcess", "forked_process", "RuntimeError: another process"),
        ("RaisesWhatItGets", "missing_files", "is a FileNotFoundError"),
        ("RaisesWhatItGets", "truncated_files", "expected a ReadError"),
        ("FillsWithZeros", "truncated_files", "without an error, and gives other values"),
        ("DoesNotNameTheFile", "missing_files", "does not name the file: broken"),
        ("ProbesBadly", "probe", "a file with empty raises IndexError"),
        ("ListsTwice", "listing", "twice"),
        ("SaysZeroSpacing", "arrays", "metadata['spacing'] is (0.0, 1.0, 1.0), expected 3 positive numbers"),
        ("SaysTwoSpacings", "arrays", "expected 3 positive numbers"),
        ("Turns", "values", "the image differs from the values written"),
        ("HasNoSuffixes", "protocol", "expected a tuple of lower-case file name endings"),
        ("LosesTheMask", "arrays", "but the mask is None"),
    ],
)
def test_a_broken_reader_fails(readers, tmp_path, kind, test, message):
    suite = suite_of(getattr(readers, kind)())
    method = getattr(suite, f"test_{test}")
    with pytest.raises(CheckError) as caught:
        method(tmp_path) if inspect.signature(method).parameters else method()
    assert message in str(caught.value)


def test_a_listing_in_random_order_fails(readers, tmp_path):
    suite = suite_of(readers.ListsAtRandom())
    caught = 0
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        try:
            suite.test_listing(folder)
        except CheckError:
            caught += 1
    assert caught  # each attempt passes with a probability of 1 / 4


def test_a_heavy_import_fails(site):
    module = site.add("heavy", "import numpy\nclass Reader: name = 'heavy'")
    suite = suite_of(__import__(module).Reader())
    with pytest.raises(CheckError, match=r"imports numpy\. .*inside the functions"):
        suite.test_light_import()
    suite.module = "fake_absent"
    with pytest.raises(CheckError, match="No module named 'fake_absent'"):
        suite.test_light_import()


def test_a_small_image_cannot_tell_headers_from_data(readers, tmp_path):
    class Small(ReaderTests):
        reader = readers.NpyReader()

        def examples(self, folder):
            np.save(folder / "a.npy", np.zeros((4, 4, 4)))
            return [Example({"file_name": folder / "a.npy", "scan_id": "a"})]

    with pytest.raises(NotCheckableError, match="the image has 512 bytes; 262144 are needed to tell data from headers"):
        Small().test_shape_and_type_need_no_data(tmp_path)
    with pytest.raises(NotImplementedError, match="needs a method `examples"):
        ReaderTests().examples(tmp_path)


# Datasets.

METADATA = {
    "scan_root": "here",
    "category_ids": [0, 1],
    "categories": ["a", "b"],
    "category_id_to_contiguous_id": {0: 0, 1: 1},
    "evaluator_type": "SemSegEvaluator",
}


class Broken:
    """Datasets ``x_train`` and ``x_val``: valid ones that a test may break."""

    def __init__(self, train, val):
        self.lists = {"train": train, "val": val}
        self.metadata = dict(METADATA)
        self.calls = 0

    def load(self, split):
        self.calls += 1
        return [dict(d) for d in self.lists[split]]

    @hookimpl
    def medsegpy_register_datasets(self):
        return [
            DatasetSpec(f"x_{split}", lambda split=split: self.load(split), split, self.metadata)
            for split in self.lists
        ]


class Suite(DatasetTests):
    names = ("x_train", "x_val")


@pytest.fixture
def broken(medsegpy_plugins, medsegpy_slices, monkeypatch):
    import medsegpy_h5_slices

    medsegpy_plugins.register_plugin(medsegpy_h5_slices, "h5-slices")
    train = medsegpy_slices("train", subject_id=1) + medsegpy_slices("train", subject_id=2)
    return Broken(train, medsegpy_slices("val", subject_id=3))


def dataset_failures(broken, manager, tmp_path):
    manager.register_plugin(broken, "x")
    suite = Suite()
    # The function of a plugin that is not installed is a lambda here, which a new process cannot have.
    suite.test_new_process = lambda: None
    own = tmp_path / "suite"
    own.mkdir()
    return failures(suite, own)


def test_valid_datasets_pass(broken, medsegpy_plugins, tmp_path):
    assert dataset_failures(broken, medsegpy_plugins, tmp_path) == {}


@pytest.fixture
def anonymous(broken):
    """The same datasets without subjects."""
    for dicts in broken.lists.values():
        for d in dicts:
            del d["subject_id"]
    return broken


def test_splits_of_unknown_subjects_are_not_reported_as_safe(anonymous, medsegpy_plugins):
    medsegpy_plugins.register_plugin(anonymous, "x")
    with pytest.raises(pytest.skip.Exception, match=r"3 scans without subject_id, such as '0000001_V00' of 'x_train'"):
        Suite().test_splits()
    (found,) = [finding for finding in check_plugin("x") if finding.check == "no subject is in two splits"]
    assert found.status == "unknown"
    assert "Add subject_id" in found.message


def test_one_scan_in_two_splits_fails(anonymous, medsegpy_plugins, tmp_path):
    anonymous.lists["val"] += anonymous.lists["train"][:6]
    assert "1 subject in two splits" in dataset_failures(anonymous, medsegpy_plugins, tmp_path)["splits"]


def test_one_split_of_unknown_subjects_passes(anonymous, medsegpy_plugins, tmp_path):
    anonymous.lists = {"train": anonymous.lists["train"]}
    medsegpy_plugins.register_plugin(anonymous, "x")
    (found,) = [finding for finding in check_plugin("x") if finding.check == "no subject is in two splits"]
    assert found.status == "passed"


def first(dicts, **values):
    return [dicts[0] | values, *dicts[1:]]


@pytest.mark.parametrize(
    ("damage", "test", "message"),
    [
        (lambda b, slices: b.lists.update(val=[]), "listing", "'x_val' has no elements"),
        (lambda b, slices: b.lists.update(train=b.lists["train"] * 2), "records", "are both slice 1"),
        (lambda b, slices: b.lists["train"].pop(2), "records", "lacks slices 3: inference on it is refused"),
        (
            lambda b, slices: b.lists.update(val=first(b.lists["val"], scan_num_slices="5")),
            "records",
            "expected an int",
        ),
        (lambda b, slices: b.lists.update(val=first(b.lists["val"], note=lambda: 0)), "listing", "cannot be pickled"),
        (lambda b, slices: b.metadata.pop("categories"), "metadata", "lacks the metadata 'categories'"),
        (lambda b, slices: b.metadata.update(categories=["a", "a"]), "metadata", "differ from each other"),
        (lambda b, slices: b.metadata.update(spacing=(0, 1, 1)), "metadata", "spacing"),
        (lambda b, slices: b.lists["val"].extend(b.lists["train"][:6]), "splits", "1 subject in two splits, such as 1"),
        (
            lambda b, slices: b.lists["val"].extend(slices("val", subject_id=3, augmentation=7)),
            "augmentation",
            "6 of its elements are augmented",
        ),
        (
            lambda b, slices: b.metadata.update(
                category_ids=[0, 5], category_id_to_contiguous_id={0: 0, 5: 1}, categories=["a", "b"]
            ),
            "files",
            "has 2 channels, but the metadata's category_ids need 6",
        ),
        (
            lambda b, slices: b.lists.update(val=first(b.lists["val"], sem_seg_file=b.lists["val"][0]["file_name"])),
            "files",
            "The file has 'data'",
        ),
        (lambda b, slices: b.lists.update(val=first(b.lists["val"], file_name="/absent.im")), "files", "/absent.im"),
    ],
)
def test_a_broken_dataset_fails(broken, medsegpy_plugins, medsegpy_slices, tmp_path, damage, test, message):
    damage(broken, medsegpy_slices)
    failed = dataset_failures(broken, medsegpy_plugins, tmp_path)
    assert message in failed[test], failed


def test_a_list_that_changes_fails(broken, medsegpy_plugins, tmp_path):
    original = broken.load
    broken.load = lambda split: original(split)[:: (-1) ** broken.calls]
    assert "listed differently the second time" in dataset_failures(broken, medsegpy_plugins, tmp_path)["listing"]


def test_one_list_for_all_passes_because_the_catalog_copies(broken, medsegpy_plugins, tmp_path):
    broken.load = lambda split: broken.lists[split]
    assert "listing" not in dataset_failures(broken, medsegpy_plugins, tmp_path)


def test_a_missing_dataset_fails(medsegpy_plugins):
    with pytest.raises(CheckError, match="'x_train'"):
        Suite().test_registered()
    with pytest.raises(NotImplementedError, match="needs `names`"):
        DatasetTests().test_registered()


def test_the_order_of_a_set_is_detected_in_a_new_process(site, plugins):
    site.add(
        "sets",
        """
        from medsegpy_core import DatasetSpec, hookimpl

        def load():
            return [{"file_name": name, "scan_id": name} for name in {f"{n}.h5" for n in range(20)}]

        @hookimpl
        def medsegpy_register_datasets():
            return [DatasetSpec("sets", load)]
        """,
    )
    plugins()

    class Sets(DatasetTests):
        names = ("sets",)

    Sets().test_listing()
    with pytest.raises(CheckError, match="listed differently in a new process"):
        Sets().test_new_process()


# Fixtures, and the command.


def test_the_manager_of_the_fixture_has_no_plugins(medsegpy_plugins):
    assert medsegpy_plugins.infos() == []
    assert DatasetCatalog.list() == []
    medsegpy_plugins.register_plugin(Broken([], []), "x")
    assert DatasetCatalog.list() == ["x_train", "x_val"]
    assert MetadataCatalog.get("x_val").evaluator_type == "SemSegEvaluator"


def test_the_writers_of_the_fixtures(medsegpy_slices, medsegpy_volume, tmp_path):
    dicts = medsegpy_slices(shape=(5, 4, 3), channels=4, subject_id=9)
    assert [d["file_name"] for d in dicts] == [
        str(tmp_path / "slices" / f"0000009_V00-Aug00_00{k}.im") for k in (1, 2, 3)
    ]
    volume = medsegpy_volume(shape=(5, 4, 3), channels=4, seed=9)
    with open_scan(dicts[1]) as scan, open_scan(volume) as whole:
        assert np.array_equal(scan.image[...], whole.image[:, :, 1])
        assert np.array_equal(scan.mask[...], whole.mask[:, :, 1])
        assert whole.mask[...].any(axis=(0, 1, 2)).all()
    with open_scan(medsegpy_volume("b.h5", labelled=False)) as unlabelled:
        assert unlabelled.mask is None


def test_the_pytest_plugin_is_light():
    code = "import medsegpy_core.testing.pytest_plugin, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "h5py", "click", "rich", "pluggy._tracing"} & (set(done.stdout.split()) - {"pluggy._tracing"})


def test_pytest_starts_without_a_warning_if_the_core_is_already_imported(tmp_path):
    (tmp_path / "test_it.py").write_text("import sys\ndef test_it(): assert 'numpy' not in sys.modules\n")
    code = "import medsegpy_core, pytest, sys; sys.exit(pytest.main(['-q', '-W', 'error', '-p', 'no:cacheprovider']))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_plugin_is_checked_without_pytest(site, plugins, tmp_path):
    site.add("npy", READERS)
    site.add("absent", "import nothing_of_this_name")
    plugins()
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(64, 32, 32)))
    findings = list(check_plugin("npy", tmp_path))
    assert {finding.status for finding in findings} == {"passed"}
    assert len(findings) == 16
    (skipped,) = [finding for finding in check_plugin("medsegpy-npy") if finding.status != "passed"]
    assert (skipped.status, skipped.check) == ("skipped", "has a file to try")
    assert "--data FOLDER" in skipped.message
    (failed,) = check_plugin("absent")
    assert failed.status == "failed"
    assert "No module named 'nothing_of_this_name'" in failed.message


def test_the_command(site):
    site.add("npy", READERS)
    site.add("broken", READERS.replace("return [NpyReader()]", "return [ProbesBadly()]").replace('"npy"', '"bad"'))

    def run(*arguments):
        code = f"import sys; sys.argv[1:] = {arguments!r}; from medsegpy_core.cli import main; main()"
        return site.run(code, MEDSEGPY_LOAD_PLUGINS="medsegpy-npy,medsegpy-broken")

    np.save(site.folder / "a.npy", np.random.default_rng(0).normal(size=(64, 32, 32)))
    sound = run("plugins", "test", "npy", "--data", str(site.folder))
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "16 passed" in sound.stdout
    broken = run("plugins", "test", "broken", "--data", str(site.folder), "--json")
    assert broken.returncode == 1
    assert '"message": "probe() of a file with empty raises IndexError' in broken.stdout
    unknown = run("plugins", "test", "npi")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "There is no plugin 'npi'. Installed: broken" in unknown.stderr
    assert run("plugins", "test").returncode == 2
    assert run("plugins").returncode == 0
