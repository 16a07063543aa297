"""Splits by subject: examples, and properties for all lists."""

import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import DataWarning, RecordError, split_by_subject

SPLITS = ("train", "val", "test")


def scans(subjects, copies=1):
    return [
        {"file_name": f"{s}_{n}.h5", "scan_id": f"{s}_{n}", "subject_id": s} for s in subjects for n in range(copies)
    ]


def subjects_of(parts):
    return {name: {d["subject_id"] for d in part} for name, part in parts.items()}


@given(
    numbers=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), unique=True, max_size=60),
    seed=st.integers(0, 5),
    shares=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    data=st.data(),
)
def test_every_subject_is_in_exactly_one_split(numbers, seed, shares, data):
    dicts = [{"file_name": f"{s}_{n}.h5", "scan_id": f"{s}_{n}", "subject_id": s} for s, n in numbers]
    fractions = {f"part{i}": share / sum(shares) for i, share in enumerate(shares)}
    parts = split_by_subject(dicts, fractions, seed)
    assert list(parts) == list(fractions)
    found = subjects_of(parts)
    assert sum(len(subjects) for subjects in found.values()) == len({s for s, _ in numbers})
    assert sorted(d["scan_id"] for part in parts.values() for d in part) == sorted(d["scan_id"] for d in dicts)
    shuffled = data.draw(st.permutations(dicts))
    assert subjects_of(split_by_subject(shuffled, fractions, seed)) == found
    total = len({s for s, _ in numbers})
    if total >= len(shares):
        assert all(found.values())
    for name, share in fractions.items():
        # Off by less than one, and by what the others had to give for a split that would have been empty.
        assert abs(len(found[name]) - share * total) < 1 + len(shares)


def test_shares_are_kept():
    parts = split_by_subject(scans(range(100), copies=3))
    assert {name: len(subjects) for name, subjects in subjects_of(parts).items()} == {
        "train": 70,
        "val": 15,
        "test": 15,
    }
    assert all(len(part) == 3 * len({d["subject_id"] for d in part}) for part in parts.values())


@pytest.mark.parametrize(
    ("count", "expected"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (10, (7, 2, 1))]
)
def test_few_subjects(count, expected):
    parts = split_by_subject(scans(range(count)))
    assert tuple(len(parts[name]) for name in SPLITS) == expected


def test_splits_depend_only_on_the_seed():
    dicts = scans(range(40))
    assert subjects_of(split_by_subject(dicts, seed=1)) == subjects_of(split_by_subject(dicts, seed=1))
    assert subjects_of(split_by_subject(dicts, seed=1)) != subjects_of(split_by_subject(dicts, seed=2))


def test_the_split_is_the_same_in_other_processes():
    code = (
        "from medsegpy_core import split_by_subject\n"
        "parts = split_by_subject([{'scan_id': str(n), 'subject_id': f'sub-{n}'} for n in range(30)])\n"
        "print([d['scan_id'] for d in parts['test']])"
    )
    outputs = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        outputs.add(done.stdout)
    dicts = [{"scan_id": str(n), "subject_id": f"sub-{n}"} for n in range(30)]
    assert outputs == {str([d["scan_id"] for d in split_by_subject(dicts)["test"]]) + "\n"}


def test_the_scan_id_replaces_a_missing_subject():
    dicts = [{"scan_id": "a", "slice_id": n} for n in range(1, 9)] + [{"scan_id": "b", "subject_id": 0}]
    with pytest.warns(DataWarning, match=r"^1 scan without subject_id \(a\): scans stand in for people") as caught:
        parts = split_by_subject(dicts, {"train": 0.5, "test": 0.5})
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert sorted(len({d["scan_id"] for d in part}) for part in parts.values()) == [1, 1]
    assert sorted(map(len, parts.values())) == [1, 8]
    with pytest.raises(RecordError, match="Dataset dict 1 has neither 'subject_id' nor 'scan_id'; it has file_name"):
        split_by_subject([{"scan_id": "a"}, {"file_name": "b"}])


def test_augmented_copies_are_in_training_only():
    dicts = [
        {"file_name": f"{s:07d}_V00-Aug{a:02d}_001.im", "scan_id": f"{s}-{a}", "slice_id": 1, "subject_id": s}
        for s in range(10)
        for a in range(2)
    ]
    with pytest.warns(DataWarning, match="3 augmented elements are of subjects .*Aug01"):
        parts = split_by_subject(dicts)
    assert len(parts["train"]) == 14
    for name in ("val", "test"):
        assert all("Aug00" in d["file_name"] for d in parts[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(split_by_subject(dicts, {"train": 1.0})["train"]) == 20


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "val": -0.5}, {"train": 1.0, "val": 0.0}])
def test_invalid_fractions(fractions):
    with pytest.raises(ValueError, match="positive numbers that sum to 1"):
        split_by_subject(scans([1]), fractions)


def test_scans_that_cannot_be_in_two_splits_need_no_warning():
    assert split_by_subject([{"scan_id": "a"}, {"scan_id": "a"}])["train"] == [{"scan_id": "a"}] * 2
    assert len(split_by_subject([{"scan_id": "a"}, {"scan_id": "b"}], {"train": 1.0})["train"]) == 2


@given(
    people=st.lists(st.one_of(st.integers(0, 99), st.text("sub-019 V_", min_size=1)), unique=True, max_size=20),
    visits=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_ids_are_numbers_or_text_and_compared_unchanged(people, visits, seed):
    dicts = [{"scan_id": f"{n} at {v}", "subject_id": p} for n, p in enumerate(people) for v in range(visits)]
    parts = split_by_subject(dicts, seed=seed)
    whose = [{(type(d["subject_id"]), d["subject_id"]) for d in part} for part in parts.values()]
    assert sum(map(len, whose)) == len(people)
    assert sum(len(part) for part in parts.values()) == len(dicts)


def test_a_number_is_the_same_subject_whatever_its_type():
    import numpy as np

    dicts = [{"scan_id": str(n), "subject_id": np.int64(n) if n % 2 else n} for n in range(40)]
    plain = [{**d, "subject_id": int(d["subject_id"])} for d in dicts]
    assert subjects_of(split_by_subject(dicts)) == subjects_of(split_by_subject(plain))


def test_subjects_are_read_from_unambiguous_scan_ids():
    dicts = [{"scan_id": f"sub-{n:02d}_ses-{s}"} for n in range(10) for s in "abc"]
    dicts += [{"scan_id": f"{n:07d}_V{v:02d}"} for n in range(10) for v in range(3)]
    parts = split_by_subject(dicts)
    whose = [{d["scan_id"].split("_")[0] for d in part} for part in parts.values()]
    assert sum(map(len, whose)) == len(set().union(*whose)) == 20


@pytest.mark.parametrize("training", ["train", "Train", "training", "fold0/train"])
@pytest.mark.parametrize("evaluation", ["val", "test", "fold0/val", "strain", "train/val"])
def test_training_splits_by_their_names(training, evaluation):
    dicts = [{"scan_id": f"{s}-{a}", "augmentation": a, "subject_id": s} for s in range(4) for a in (0, 1)]
    with pytest.warns(DataWarning, match="2 augmented elements"):
        parts = split_by_subject(dicts, {training: 0.5, evaluation: 0.5})
    assert [len(part) for part in parts.values()] == [4, 2]
