import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import (
    CategoryError,
    Metadata,
    MetadataCatalog,
    MetadataConflictError,
    MetadataError,
    Record,
)
from medsegpy_core.data.metadata import RESERVED_KEYS, Layer, MetadataView

PET = {
    "scan_root": "/data/pets",
    "category_ids": [0, 1, 2, 3, (0, 2)],
    "categories": ["dog", "human", "cat", "tree", "pet"],
    "category_id_to_contiguous_id": {0: 0, 1: 1, 2: 2, 3: 3, (0, 2): 4},
    "evaluator_type": "SemSegEvaluator",
}
SLICE = {"file_name": "a.im", "scan_id": "s", "slice_id": 1, "scan_num_slices": 2}


def test_values_are_returned_as_set():
    metadata = Metadata("pets")
    assert metadata.set(**PET, spacing=(0.3, 0.3, 0.7), mine=[1, {"a": 2}]) is metadata
    assert metadata.categories == PET["categories"]
    assert isinstance(metadata.category_ids, list)
    assert isinstance(metadata.spacing, tuple)
    assert metadata.mine == [1, {"a": 2}]
    assert metadata.get("spacing", 5) == (0.3, 0.3, 0.7)
    assert metadata.get("absent") is None
    assert metadata.get("absent", 5) == 5
    assert metadata.as_dict() == {**PET, "spacing": (0.3, 0.3, 0.7), "mine": [1, {"a": 2}]}
    assert "spacing" in metadata
    assert "absent" not in metadata
    assert not hasattr(metadata, "absent")


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ([0, 1], (0, 1)),
        ([0, 1], np.array([0, 1])),
        ([[0, 1], 2], ([0, 1], np.int64(2))),
        ({0: [1]}, {np.int64(0): (1,)}),
        (np.eye(2), np.eye(2).tolist()),
    ],
)
def test_setting_the_same_again_is_fine(first, again):
    metadata = Metadata("x").set(mine=first)
    metadata.set(mine=again)
    assert type(metadata.mine) is type(first)


@pytest.mark.parametrize(
    ("first", "second"), [([0, 1], [1, 0]), ([0], 0), (np.eye(2), np.eye(3)), ({0: 1}, {0: 1, 1: 2}), ("a", "b")]
)
def test_another_value_is_a_conflict_unless_replace_is_set(first, second):
    metadata = Metadata("x").set(mine=first, spacing=(1, 1))
    with pytest.raises(MetadataConflictError, match=r"'mine' of dataset 'x'.*replace=True"):
        metadata.set(mine=second, more=1)
    assert "more" not in metadata
    metadata.set(replace=True, mine=second)
    assert metadata.mine is second or metadata.mine == second
    assert metadata.spacing == (1, 1)


def test_later_changes_of_a_list_have_no_effect():
    ids = [0, 1]
    metadata = Metadata("x").set(category_ids=ids)
    ids.append(0)
    assert metadata.category_ids == [0, 1]
    metadata.category_ids.append(7)
    metadata.as_dict()["category_ids"].append(7)
    assert metadata.category_ids == [0, 1]


@pytest.mark.parametrize(
    "values",
    [
        {"categories": ["a"], "category_ids": [0, 1]},
        {"categories": ["a", "b"], "category_abbreviations": ["a"]},
        {"categories": ["a", "b"], "category_colors": [(0, 0, 0)]},
        {"category_ids": [0, 1], "category_id_to_contiguous_id": {0: 0}},
        {"category_ids": [0, 1], "category_id_to_contiguous_id": {0: 0, 2: 1}},
        {"category_id_to_contiguous_id": {0: 1, 1: 2}},
        {"category_id_to_contiguous_id": {0: 0, 1: 0}},
        {"category_id_to_contiguous_id": {0: 0.0}},
        {"category_id_to_contiguous_id": [0, 1]},
        {"categories": "dog"},
        {"categories": ["dog", "dog"]},
        {"categories": [1]},
        {"spacing": (0, 1, 1)},
        {"spacing": (1, -1)},
        {"spacing": (1, float("nan"))},
        {"spacing": (1, float("inf"))},
        {"spacing": 1.0},
        {"spacing": "11"},
        {"category_colors": [(0, 0, 256)]},
        {"category_colors": [(0, 0)]},
        {"category_colors": ["red"]},
        {"evaluator_type": ""},
        {"evaluator_type": 5},
        {"scan_root": 5},
        {"collection": ""},
        {"label_map": "yes"},
        {"image_axes": "XYZ"},
        {"sem_seg_axes": "HHWD"},
        {"get": 1},
        {"name": "y"},
    ],
)
def test_invalid_metadata_raise_and_set_nothing(values):
    metadata = Metadata("x")
    with pytest.raises(MetadataError, match="x"):
        metadata.set(**values, more=1)
    assert metadata.as_dict() == {}


def test_contradicting_earlier_metadata_raises():
    metadata = Metadata("x").set(category_ids=[0, 1])
    with pytest.raises(MetadataError, match="category_ids has 2, categories has 1"):
        metadata.set(categories=["a"])
    with pytest.raises(MetadataError):
        metadata.set(replace=True, category_id_to_contiguous_id={0: 0})
    assert metadata.as_dict() == {"category_ids": [0, 1]}
    metadata.set(replace=True, category_ids=[0], category_id_to_contiguous_id={0: 0})
    assert metadata.category_ids == [0]


def test_malformed_category_ids():
    for ids in ([0, 0], [-1], ["a"], [(0, 0)], 3, [True]):
        with pytest.raises(CategoryError, match="Metadata 'category_ids' of dataset 'x'"):
            Metadata("x").set(category_ids=ids)


def test_arrays_are_sequences():
    metadata = Metadata("x").set(category_ids=np.arange(2), spacing=np.array([0.5, 0.5]), categories=("a", "b"))
    assert metadata.spacing.tolist() == [0.5, 0.5]
    metadata.set(category_id_to_contiguous_id={np.int64(0): np.int64(0), 1: 1})


def test_none_means_not_given():
    metadata = Metadata("x").set(spacing=None, mine=None)
    assert metadata.get("spacing", 1) == 1
    assert metadata.mine is None
    metadata.set(spacing=(1, 1)).set(spacing=None)
    assert metadata.spacing == (1, 1)
    metadata.set(replace=True, spacing=None)
    assert "spacing" not in metadata


def test_all_missing_keys_are_listed():
    metadata = Metadata("x").set(scan_root="a", spacing=(1, 1))
    with pytest.raises(MetadataError) as caught:
        metadata.require()
    for key in ("category_ids", "categories", "category_id_to_contiguous_id", "evaluator_type"):
        assert repr(key) in str(caught.value)
    assert "'scan_root'" not in str(caught.value)
    assert "MetadataCatalog.get('x').set(" in str(caught.value)
    with pytest.raises(MetadataError, match="'evaluator_type'"):
        _ = metadata.categories
    with pytest.raises(AttributeError, match=r"'spacng'. Did you mean 'spacing'\?"):
        _ = metadata.spacng
    with pytest.raises(MetadataError, match="'one', 'two'"):
        metadata.require("spacing", "one", "two")
    assert metadata.require("spacing").spacing == (1, 1)


def test_for_scan_precedence():
    below = (Layer("spec", {"spacing": (3, 3, 3), "a": 1, "b": 1}), Layer("hook", {"a": 2}, overrides=True))
    metadata = Metadata("x", lambda name: below).set(c=3)
    assert metadata.as_dict() == {"spacing": (3, 3, 3), "a": 2, "b": 1, "c": 3}
    scan = {**SLICE, "scan_spacing": (1, 1, 1), "scan_b": 5, "label_map": True, "scan_root": "/elsewhere"}
    file = {"spacing": (2, 2, 2), "affine": "from file", "b": 4}
    view = metadata.for_scan(scan, file)
    assert (view.spacing, view.affine, view.a, view.b, view.c) == ((1, 1, 1), "from file", 2, 5, 3)
    assert view.label_map is True
    assert view.scan_root == "/elsewhere"
    assert not hasattr(view, "id")
    assert not hasattr(view, "num_slices")
    assert metadata.for_scan(SLICE, file).spacing == (2, 2, 2)
    assert metadata.for_scan(SLICE).spacing == (3, 3, 3)
    assert metadata.for_scan({**SLICE, "scan_spacing": None}).spacing == (3, 3, 3)
    assert metadata.for_scan(Record.from_dict(scan), file) == view
    assert view.for_scan({}) is view
    with pytest.raises(MetadataError, match=r"spacing.*the dataset dict"):
        metadata.for_scan({**SLICE, "scan_spacing": (0, 1)})


def test_inputs_of_inference_with_arrays():
    inputs = {"scan_id": "s", "x": np.zeros((2, 2, 2)), "scan_spacing": np.array([1.0, 2, 3]), "subject_id": None}
    assert Metadata("x").set(spacing=(5, 5, 5)).for_scan(inputs).spacing.tolist() == [1, 2, 3]


def test_for_scan_reads_the_file_only_if_necessary():
    asked = []

    def file_says(scan):
        asked.append(scan)
        return {"spacing": (7, 7, 7)}

    metadata = Metadata("x", file_says=file_says)
    assert metadata.for_scan(SLICE).spacing == (7, 7, 7)
    assert metadata.for_scan(SLICE, {}).get("spacing") is None
    assert asked == [SLICE]


def test_process_against_plugin():
    below = (Layer("plugin 'p'", {"spacing": [1, 1], "a": 1}),)
    metadata = Metadata("x", lambda name: below).set(spacing=(1, 1))
    assert metadata.spacing == (1, 1)
    metadata.set(a=2)
    with pytest.raises(MetadataConflictError, match=r"'a' of dataset 'x' is 1 \(plugin 'p'\), but 2 \(Metadata"):
        _ = metadata.spacing
    assert metadata.set(replace=True, a=2).a == 2


def test_contradictions_of_a_plugin_raise_on_reading():
    metadata = Metadata("x", lambda name: (Layer("plugin 'p'", {"spacing": 0}),))
    metadata.set(a=2)
    with pytest.raises(MetadataError, match=r"spacing.*plugin 'p'"):
        _ = metadata.a


def test_a_view_does_not_follow_later_changes_and_pickles():
    metadata = Metadata("x").set(**PET, color=np.array([1, 2]))
    view = metadata.view()
    metadata.set(later=1)
    assert "later" not in view
    for copied in (pickle.loads(pickle.dumps(view)), copy.deepcopy(view), copy.copy(view)):
        assert copied == view
        assert copied.name == "x"
    with pytest.raises(AttributeError):
        view.spacing = (1, 1)
    assert view != Metadata("x").view()
    carried = pickle.loads(pickle.dumps(metadata))
    assert isinstance(carried, MetadataView)
    assert carried == metadata.view()
    assert sorted(carried) == sorted([*PET, "color", "later"])


def test_reserved_keys_would_be_hidden_by_attributes():
    public = {key for cls in (Metadata, MetadataView) for key in dir(cls) if not key.startswith("_")} | {"name"}
    assert public == RESERVED_KEYS


@given(
    st.lists(
        st.tuples(st.booleans(), st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3)), max_size=8
    )
)
def test_set_is_atomic(steps):
    metadata, expected = Metadata("x"), {}
    for replace, values in steps:
        conflict = any(expected.get(key, value) != value for key, value in values.items())
        if conflict and not replace:
            with pytest.raises(MetadataConflictError):
                metadata.set(replace=replace, **values)
        else:
            metadata.set(replace=replace, **values)
            expected |= values
        assert metadata.as_dict() == expected


def test_threads_set_without_losing_anything():
    metadata = Metadata("x")
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for i in range(50):
            metadata.set(**{f"k{number}_{i}": i})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(metadata.as_dict()) == 400


def test_the_catalog_gives_one_object_per_name(plugins):
    assert MetadataCatalog.get("x") is MetadataCatalog.get("x")
    assert MetadataCatalog.list() == []
    MetadataCatalog.get("x").set(a=1)
    MetadataCatalog.get("never set")
    assert MetadataCatalog.list() == ["x"]
    assert "x" in MetadataCatalog
    MetadataCatalog.remove("x")
    assert MetadataCatalog.get("x").as_dict() == {}
    with pytest.raises(KeyError, match="'x'"):
        MetadataCatalog.remove("x")
    for name in ("a@b", "", 5):
        with pytest.raises(ValueError, match="not the name of a dataset"):
            MetadataCatalog.get(name)
