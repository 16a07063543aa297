"""Dataset dicts and records."""

import copy
import pickle
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scans import make_scan, save_slices, save_volume

from medsegpy_core import DatasetCatalog, DefaultDataLoader, MetadataCatalog, Record, RecordError, build_loader
from medsegpy_core.config import Config
from medsegpy_core.datasets import load_records, make_records

SLICE = {"file_name": "a/0000001_V00-Aug00_002.im", "scan_id": "s", "slice_id": 2, "scan_num_slices": 5}
VOLUME = {"file_name": "a/knee.h5", "scan_id": "s"}

words = st.text(alphabet="abcXYZ_0 é", min_size=1, max_size=8)
paths = words.map(lambda word: f"folder/{word}.h5")
extra = st.dictionaries(words.map(lambda word: "my_" + word), st.one_of(st.integers(), words, st.lists(st.integers())))
per_scan = st.dictionaries(words.map(lambda word: "scan_my_" + word), st.one_of(st.integers(), words))


@st.composite
def dicts(draw):
    d = {"file_name": draw(paths), "scan_id": draw(words), **draw(extra), **draw(per_scan)}
    optional = {
        "sem_seg_file": paths,
        "subject_id": st.one_of(st.integers(0, 10**9), words),
        "time_point": st.one_of(st.integers(0, 99), words),
        "augmentation": st.integers(0, 99),
        "reader": words,
        "image_key": st.one_of(words, st.lists(words, min_size=1, max_size=3).map(tuple)),
        "sem_seg_key": words,
        "label_map": st.booleans(),
        "image_axes": st.sampled_from(["HW", "WH", "DHW", "CHWD"]),
        "sem_seg_axes": st.sampled_from(["HWC", "DHWC", "CHWD"]),
        "image_size": st.just((1, 2, 3)),
    }
    for key, values in optional.items():
        if draw(st.booleans()):
            d[key] = draw(values)
    if draw(st.booleans()):
        d["scan_num_slices"] = draw(st.integers(1, 50))
        d["slice_id"] = draw(st.integers(1, d["scan_num_slices"]))
    return d


@given(dicts())
def test_dicts_round_trip(d):
    before = copy.deepcopy(d)
    record = Record.from_dict(d, "name", 3)
    assert d == before
    back = record.to_dict()
    assert {key: back[key] for key in d} == d
    assert set(back) - set(d) <= {"augmentation", "dataset_name"}
    assert Record.from_dict(back, index=3) == record
    assert back["dataset_name"] == record.dataset == "name"
    assert "dataset_name" not in Record.from_dict(d).to_dict()
    assert pickle.loads(pickle.dumps(record)) == record
    assert hash(record) == hash(Record.from_dict(d, "name", 3))
    assert record.kind == ("slice" if "slice_id" in d else "volume")
    assert isinstance(record.file_name, Path)
    assert dict(record.scan) == {k: v for k, v in d.items() if k.startswith("scan_my_")}
    assert all(record.extra[key] == value for key, value in d.items() if key.startswith("my_"))


def test_the_typed_form_of_a_slice():
    record = Record.from_dict({**SLICE, "scan_spacing": (1, 1, 2), "site": "x", "subject_id": np.int32(7)}, "d", 4)
    assert (record.dataset, record.index, record.kind) == ("d", 4, "slice")
    assert (record.slice_id, record.scan_num_slices) == (2, 5)
    assert record.subject_id == 7
    assert type(record.subject_id) is int
    assert record.sem_seg_file is None
    assert not record.labelled
    assert dict(record.scan) == {"scan_spacing": (1, 1, 2)}
    assert dict(record.extra) == {"site": "x"}


def test_a_record_cannot_be_changed():
    record = Record.from_dict({**SLICE, "site": "x", "scan_a": 1})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        record.scan_id = "t"
    for mapping in (record.scan, record.extra):
        with pytest.raises(TypeError):
            mapping["new"] = 1
        with pytest.raises(TypeError):
            mapping.update(new=1)


@pytest.mark.parametrize("key", ["file_name", "scan_id", "scan_num_slices"])
def test_a_required_key_that_is_missing(key):
    d = {k: v for k, v in SLICE.items() if k != key}
    with pytest.raises(RecordError) as caught:
        Record.from_dict(d, "my_set", 7)
    for part in ("'my_set'", "7", repr(key), "expected"):
        assert part in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file_name", 3),
        ("file_name", ""),
        ("file_name", None),
        ("file_name", b"a.im"),
        ("sem_seg_file", 3),
        ("scan_id", 7),
        ("scan_id", ""),
        ("slice_id", 0),
        ("slice_id", "1"),
        ("slice_id", 1.0),
        ("slice_id", True),
        ("slice_id", 6),
        ("scan_num_slices", 0),
        ("scan_num_slices", "5"),
        ("subject_id", ""),
        ("subject_id", -1),
        ("subject_id", True),
        ("subject_id", ("sub", 1)),
        ("time_point", 1.5),
        ("dataset_name", 5),
        ("dataset_name", ""),
        ("augmentation", "00"),
        ("augmentation", -1),
        ("reader", 5),
        ("image_key", 5),
        ("image_key", ()),
        ("image_key", ("a", 5)),
        ("sem_seg_key", ("a",)),
        ("label_map", "yes"),
        ("label_map", 1),
        ("image_axes", "HWX"),
        ("image_axes", "HHW"),
        ("image_axes", "H"),
        ("image_axes", "hw"),
        ("sem_seg_axes", ("H", "W")),
    ],
)
def test_a_wrong_type_names_dataset_position_key_and_both_types(key, value):
    with pytest.raises(RecordError) as caught:
        Record.from_dict({**SLICE, key: value}, "my_set", 7)
    for part in ("'my_set'", "7", repr(key), repr(value)):
        assert part in str(caught.value)


@pytest.mark.parametrize("d", [None, 3, "x", ["file_name"], {1: 2}])
def test_values_that_are_not_dicts(d):
    with pytest.raises(RecordError):
        Record.from_dict(d)


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        ({**SLICE, "file_name": "0000001_V00-Aug04_002.im"}, 4),
        ({**SLICE, "file_name": "0000001_V00-Aug04_002.im", "augmentation": 0}, 0),
        ({**SLICE, "file_name": "0000001_V00-Aug04_002.im", "augmentation": None}, 4),
        ({**SLICE, "file_name": "1_V0-Aug12_2.im"}, 12),
        ({**SLICE, "file_name": "x0000001_V00-Aug04_002.im"}, 0),
        ({**VOLUME, "file_name": "0000001_V00-Aug07.h5"}, 7),
        ({**VOLUME, "file_name": "0000001_V00.h5"}, 0),
        ({**VOLUME, "file_name": "many.h5", "image_key": "0000001_V00-Aug02/volume"}, 2),
        # A slice of a volume file is augmented if the volume is.
        ({**SLICE, "file_name": "0000001_V00-Aug07.h5"}, 7),
        ({**SLICE, "file_name": "many.h5", "image_key": "0000001_V00-Aug02/volume"}, 2),
        ({**VOLUME, "file_name": "many.h5", "image_key": ("0000001_V00-Aug02/T1w", "0000001_V00-Aug02/T2w")}, 2),
    ],
)
def test_the_augmentation_is_read_from_the_name(d, expected):
    assert Record.from_dict(d).augmentation == expected


def test_the_hook_is_called_if_neither_dict_nor_name_has_it(plugins, site):
    site.add(
        "tagger",
        """
        from medsegpy_core import DatasetSpec, hookimpl

        def load():
            base = {"scan_id": "s", "scan_num_slices": 9}
            return [
                {**base, "file_name": "one.im", "slice_id": 1},
                {**base, "file_name": "two.im", "slice_id": 2, "augmentation": 0},
                {**base, "file_name": "0000001_V00-Aug05_003.im", "slice_id": 3},
                {**base, "file_name": "four.im", "slice_id": 4},
            ]

        @hookimpl
        def medsegpy_register_datasets():
            return [DatasetSpec(name="tagged", load=load)]

        @hookimpl
        def medsegpy_tag_augmentation(dataset, record):
            return {"one.im": 3}.get(record.file_name.name)
        """,
    )
    plugins()
    assert [record.augmentation for record in load_records("tagged")] == [3, 0, 5, 0]


def test_relative_paths_are_relative_to_the_root_of_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSEGPY_DATASETS", str(tmp_path / "root"))
    (record,) = make_records([{**VOLUME, "sem_seg_file": tmp_path / "x.h5"}], [""])
    assert record.file_name == tmp_path / "root" / "a" / "knee.h5"
    assert record.sem_seg_file == tmp_path / "x.h5"
    monkeypatch.delenv("MEDSEGPY_DATASETS")
    monkeypatch.chdir(tmp_path)
    (record,) = make_records([VOLUME], [""])
    assert record.file_name == tmp_path / "datasets" / "a" / "knee.h5"


def test_two_elements_that_are_one_slice_are_both_named():
    with pytest.raises(RecordError) as caught:
        make_records([SLICE, {**SLICE, "slice_id": 3}, {**SLICE, "file_name": "/b/other.im"}], ["d"] * 3)
    for part in ("0000001_V00-Aug00_002.im", "/b/other.im", "element 0", "element 2", "slice 2"):
        assert part in str(caught.value)
    with pytest.raises(RecordError, match="volume"):
        make_records([VOLUME, VOLUME], ["d", "d"])


def test_keys_that_distinguish_scans():
    aug = {**SLICE, "augmentation": 1, "file_name": "b.im"}
    records = make_records([SLICE, SLICE, aug], ["one", "two", "one"])
    assert len({record.scan_key for record in records}) == 3
    assert [record.index for record in records] == [0, 0, 1]


def test_the_slices_of_a_scan_must_agree_on_its_depth():
    with pytest.raises(RecordError, match="scan_num_slices"):
        make_records([SLICE, {**SLICE, "slice_id": 3, "scan_num_slices": 6}], ["", ""])
    with pytest.raises(RecordError, match="volume"):
        make_records([SLICE, VOLUME], ["", ""])


def test_built_in_loaders_check_dicts_when_they_are_built(tmp_path):
    good = save_slices(tmp_path, *make_scan((3, 3, 2), 1))
    bad = [*good, {**good[0], "slice_id": "x"}]
    DatasetCatalog.register("broken", lambda: bad)
    assert DatasetCatalog.get("broken") == [{**d, "dataset_name": "broken"} for d in bad]
    with pytest.raises(RecordError, match=r"'broken'.*2.*'slice_id'"):
        build_loader(Config(CATEGORIES=[0]), "broken")
    with pytest.raises(RecordError, match="slice_id"):
        DefaultDataLoader(Config(), bad)


def test_layout_keys_of_the_metadata_are_defaults():
    MetadataCatalog.get("d").set(image_axes="DHW", label_map=True)
    one, two = make_records([VOLUME, {**VOLUME, "scan_id": "t", "image_axes": "HWD"}], ["d", "d"])
    assert dict(one.extra) == {"image_axes": "DHW", "label_map": True}
    assert dict(two.extra) == {"image_axes": "HWD", "label_map": True}


def test_unknown_keys_are_kept(tmp_path):
    volume = save_volume(tmp_path, *make_scan((3, 3, 2), 1), site="x", scan_age=50)
    loader = DefaultDataLoader(Config(), [volume], shuffle=False)
    (element,) = loader.elements(0)
    assert element.record.extra["site"] == "x"
    ((inputs, _),) = loader.inference(lambda x: x)
    assert inputs["scan_age"] == 50
