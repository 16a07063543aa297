"""``medsegpy demo``, and its baseline."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from medsegpy_example_datasets.baseline import Baseline, body_coordinates, box_mean, find_body


def demo(folder, **environ):
    command = [sys.executable, "-m", "medsegpy_core", "demo"]
    env = {**os.environ, "MEDSEGPY_RESULTS": str(folder / "results"), **environ}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)


def scores(result):
    """The Dice of each class, as the table says."""
    (line,) = re.findall(r"^0000002_V00 .*$", result.stdout, re.MULTILINE)
    return [float(value) for value in line.split()[1:]]


@pytest.mark.slow
def test_the_demo_does_what_it_says(tmp_path):
    result = demo(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name in ("example-datasets", "abdomen_slices_train", "DefaultDataLoader", "PatchDataLoader", "not scored"):
        assert name in result.stdout
    liver, spleen, *others = scores(result)
    # What these statistics can do on another person; scores that are better by far would not be honest.
    assert 0.7 < liver < 0.95
    assert 0.5 < spleen < 0.9
    assert len(others) == 3
    path = tmp_path / "results" / "demo" / "demo.png"
    assert str(path) in result.stdout
    with Image.open(path) as picture:
        assert min(picture.size) > 500
    # Without the plugin for evaluation, the scores are the same.
    plain = demo(tmp_path, MEDSEGPY_LOAD_PLUGINS="medsegpy-example-datasets,medsegpy-h5-slices,medsegpy-h5-volumes")
    assert "by the demo itself" in plain.stdout
    assert scores(plain) == scores(result)


def test_a_demo_whose_plugin_is_not_loaded_says_so(tmp_path):
    result = demo(tmp_path, MEDSEGPY_LOAD_PLUGINS="")
    assert result.returncode == 2
    assert "MEDSEGPY_LOAD_PLUGINS does not name them: " in result.stderr
    assert "medsegpy-example-datasets" in result.stderr
    assert "Traceback" not in result.stderr


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=st.floats(-9, 9)),
    st.integers(1, 5),
)
def test_box_mean_is_the_mean_of_the_square(images, width):
    before, after = width // 2, width - 1 - width // 2
    padding = [(0, 0)] * (images.ndim - 2) + [(before, after)] * 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, padding, mode="edge"), (width, width), axis=(-2, -1)
    )
    np.testing.assert_allclose(box_mean(images, width), windows.mean(axis=(-2, -1)), atol=1e-9)


def disk(size=40, center=(20, 20), radius=12):
    rows, columns = np.ogrid[:size, :size]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def test_the_body_is_found_and_measured():
    image = np.where(disk(), 50.0, -1000.0) + np.random.default_rng(0).normal(0, 5, (40, 40))
    np.testing.assert_array_equal(find_body(image), disk())
    down, across = body_coordinates(disk()[None])
    assert abs(down[0, 20, 0] - 0.5) < 0.05
    assert abs(across[0, 0, 20] - 0.5) < 0.05
    assert down[0, 7, 0] < 0.1 < 0.9 < down[0, 33, 0]
    # A body elsewhere in the slice has the same coordinates.
    moved, _ = body_coordinates(disk(center=(26, 15))[None])
    np.testing.assert_allclose(moved[0, 6:], down[0, :-6])
    # No body, and one that is all of the slice, are no error.
    for empty in (np.zeros((1, 5, 5), bool), np.ones((1, 5, 5), bool)):
        assert np.isfinite(body_coordinates(empty)).all()
    assert not find_body(np.zeros((4, 4))).any()


def phantom(center, brightness):
    """A body with a bright organ on its left and a darker one on its right, and their masks with background."""
    body = disk(center=center)
    left = disk(center=(center[0], center[1] - 6), radius=4)
    right = disk(center=(center[0], center[1] + 6), radius=4)
    image = np.where(body, 0.0, -1000.0) + brightness * (left * 1.0 + right * 0.5)
    masks = np.stack([~(left | right), left, right], axis=-1)
    return image[None, ..., None].astype(np.float32), masks[None].astype(np.float32)


def test_the_baseline_finds_organs_of_a_person_it_has_not_seen():
    model = Baseline.untrained(3)
    for center in ((20, 20), (18, 22), (21, 19)):
        model.fit(*phantom(center, 100.0))
    image, truth = phantom((23, 17), 100.0)
    probabilities = model.predict(image)
    assert probabilities.shape == truth.shape
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    for channel in (1, 2):
        found, real = probabilities.argmax(axis=-1) == channel, truth[..., channel] > 0
        assert 2 * (found & real).sum() / (found.sum() + real.sum()) > 0.8


def test_a_baseline_that_has_seen_nothing_is_undecided():
    probabilities = Baseline.untrained(4).predict(phantom((20, 20), 100.0)[0])
    np.testing.assert_allclose(probabilities, 0.25, rtol=1e-5)
