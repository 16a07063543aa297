"""Names of slice files."""

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import SliceName, parse_slice_name
from medsegpy_core.data.naming import parse_identity, parse_scan_name, scan_name

naturals = st.integers(0, 10**12)
names = st.builds(SliceName, naturals, naturals, naturals, st.integers(1, 10**6))


@given(names)
def test_names_round_trip(name):
    assert parse_slice_name(name.stem) == name
    assert name.stem == "%07d_V%02d-Aug%02d_%03d" % (name.subject_id, name.time_point, name.augmentation, name.slice_id)
    assert pickle.loads(pickle.dumps(name)) == name


@given(st.text(alphabet="0123456789V_-Aug.\n ٣²", max_size=24))
def test_an_invalid_name_is_a_value_error(text):
    match = re.fullmatch(r"([0-9]+)_V([0-9]+)-Aug([0-9]+)_([0-9]+)", text)
    if match and int(match[4]):
        assert parse_slice_name(text) == SliceName(*map(int, match.groups()))
    else:
        with pytest.raises(ValueError, match="slice"):
            parse_slice_name(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0123456_V01-Aug00_001", (123456, 1, 0, 1)),
        ("0123456_V00-Aug04_001", (123456, 0, 4, 1)),
        ("0123456_V00-Aug00_999", (123456, 0, 0, 999)),
        ("123456789_V00-Aug00_1000", (123456789, 0, 0, 1000)),
        ("1_V2-Aug3_4", (1, 2, 3, 4)),
    ],
)
def test_names_of_the_convention(text, expected):
    name = parse_slice_name(text)
    assert (name.subject_id, name.time_point, name.augmentation, name.slice_id) == expected
    assert type(name.subject_id) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0123456_V01-Aug00_000",
        "0123456_V01-Aug00_001.im",
        "x0123456_V01-Aug00_001",
        "0123456_V01-Aug00_001\n",
        "0123456_V01_001",
        "0123456_v01-Aug00_001",
        "\u0660\u0661_V01-Aug00_001",
        "1_V1-Aug1_" + "9" * 5000,
    ],
)
def test_invalid_names(text):
    with pytest.raises(ValueError):
        parse_slice_name(text)


@pytest.mark.parametrize(
    "values", [(-1, 0, 0, 1), (1, -1, 0, 1), (1, 0, -1, 1), (1, 0, 0, 0), (1.0, 0, 0, 1), ("1", 0, 0, 1)]
)
def test_numbers_without_a_name(values):
    with pytest.raises((ValueError, TypeError)):
        SliceName(*values)


@given(naturals, naturals, naturals)
def test_scan_names(subject, time_point, augmentation):
    name = scan_name(subject, time_point, augmentation)
    assert name == SliceName(subject, time_point, augmentation, 5).scan_id
    said = parse_scan_name(name)
    assert (said["subject_id"], said["time_point"], said.get("augmentation", 0)) == (subject, time_point, augmentation)
    assert ("-Aug" in name) == (augmentation > 0)


labels = st.text("abcXYZ0189", min_size=1, max_size=6)


@given(
    labels, st.none() | labels, st.none() | st.integers(0, 10**6), st.sampled_from(["", "_T1w", "_run-1_bold", ".a"])
)
def test_names_of_bids(subject, session, augmentation, rest):
    visit = {} if session is None else {"time_point": f"ses-{session}"}
    number = {} if augmentation is None else {"augmentation": augmentation}
    name = (
        f"sub-{subject}" + "".join(f"_{v}" for v in visit.values()) + "".join(f"-Aug{n:02d}" for n in number.values())
    )
    assert parse_identity(name + rest) == {"subject_id": f"sub-{subject}", **visit, **number}
    for other in (f"x{name}", name.upper(), name.replace("sub-", "sub"), f"sub-{subject}-left", f"sub-{subject}é"):
        assert parse_identity(other) == {}
    for odd_visit in (f"sub-{subject}_ses-1-left", f"sub-{subject}_ses-_x", f"sub-{subject}_visit1"):
        assert parse_identity(odd_visit) == {"subject_id": f"sub-{subject}"}


@given(st.one_of(st.text("sub-ses_V0123Aug. ", max_size=24), st.text(max_size=12)))
def test_any_name_is_parsed_consistently_or_not_at_all(name):
    found = parse_identity(name)
    assert found.keys() <= {"subject_id", "time_point", "augmentation"}
    if found:
        assert "subject_id" in found
        assert (
            name.startswith(found["subject_id"])
            if isinstance(found["subject_id"], str)
            else found == parse_scan_name(name)
        )


def test_names_are_sorted_by_their_numbers():
    assert min([SliceName(2), SliceName(1, 0, 0, 10), SliceName(1, 0, 0, 9)]).slice_id == 9
