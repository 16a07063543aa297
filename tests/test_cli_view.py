"""``medsegpy view``: the drawn pixels."""

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medsegpy_core import DatasetCatalog, MetadataCatalog, scan_directory, write_slices, write_volume
from medsegpy_core.cli import cli
from medsegpy_core.data.metadata import MetadataView
from medsegpy_core.drawing import PALETTE, Panel, draw, gray_window, shown_classes, spread_slices

RED, GREEN = (255, 0, 0), (0, 255, 0)


def view(*args):
    return CliRunner().invoke(cli, ["view", *map(str, args)])


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def has_color(array, color):
    return bool((array == np.array(color)).all(axis=-1).any())


@pytest.fixture
def volume(tmp_path):
    """A scan whose middle slices have two classes, with pixels three times as high as wide."""
    image = np.random.default_rng(0).normal(0, 100, (20, 30, 8)).astype(np.float32)
    mask = np.zeros((20, 30, 8, 2), np.uint8)
    mask[2:10, 3:12, 2:6, 0] = 1
    mask[12:18, 15:25, 3:5, 1] = 1
    d = write_volume(tmp_path / "one.h5", image, mask)
    DatasetCatalog.register("pair", lambda: [d])
    MetadataCatalog.get("pair").set(
        category_ids=[0, 1],
        categories=["square", "block"],
        category_id_to_contiguous_id={0: 0, 1: 1},
        category_colors=[RED, GREEN],
        spacing=(3.0, 1.0, 5.0),
    )
    return d


def test_a_png_in_the_colors_of_the_metadata(volume, tmp_path):
    result = view("pair", "--out", tmp_path / "seen.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote {tmp_path / 'seen.png'}\n"
    drawn = pixels(tmp_path / "seen.png")
    assert has_color(drawn, RED)
    assert has_color(drawn, GREEN)


def test_the_folder_of_the_picture_is_created(volume, tmp_path):
    result = view("pair", "--out", tmp_path / "new" / "v.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "v.png").is_file()


def test_more_slices_make_more_picture(volume, tmp_path):
    for count in (1, 4, 64):
        assert view("pair", "--slices", count, "--out", tmp_path / f"{count}.png").exit_code == 0
    one, four, all_of_them = (pixels(tmp_path / f"{count}.png").size for count in (1, 4, 64))
    # Four slices have foreground: more cannot be shown.
    assert one < four == all_of_them


def test_the_default_name_is_printed(volume, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert view("pair").stdout == "Wrote pair-one.png\n"
    assert (tmp_path / "pair-one.png").stat().st_size > 1000


def test_a_scan_of_slices_is_selected_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "slices"
    for subject, augmentation in ((1, 0), (1, 2), (2, 0)):
        write_slices(root, np.zeros((6, 5, 3)), np.ones((6, 5, 3, 1)), subject_id=subject, augmentation=augmentation)
    DatasetCatalog.register("several", lambda: scan_directory(root))
    assert view("several", "--scan", "0000001_V00-Aug02").stdout == "Wrote several-0000001_V00-Aug02.png\n"
    result = view("several", "--scan", "0000003_V00")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Did you mean '0000002_V00'?" in result.stderr or "Did you mean '0000001_V00'?" in result.stderr


def test_unlabelled_scans_and_channels_are_drawn(tmp_path):
    d = write_volume(tmp_path / "plain.h5", np.ones((6, 5, 3)))
    DatasetCatalog.register("plain", lambda: [d])
    assert view("plain", "--out", tmp_path / "plain.png").exit_code == 0
    assert not has_color(pixels(tmp_path / "plain.png"), PALETTE[0])
    d = write_volume(tmp_path / "pair.h5", np.ones((6, 5, 3)), np.ones((6, 5, 3, 1)))
    DatasetCatalog.register("channels", lambda: [d | {"image_key": ("volume", "volume")}])
    assert view("channels", "--out", tmp_path / "channels.png").exit_code == 0
    assert has_color(pixels(tmp_path / "channels.png"), PALETTE[0])


def test_metadata_beyond_the_masks_channels(volume, tmp_path):
    MetadataCatalog.get("pair").set(replace=True, category_ids=[0, 5], category_id_to_contiguous_id={0: 0, 5: 1})
    result = view("pair", "--out", tmp_path / "x.png")
    assert result.exit_code == 1
    assert "category id 5, but the mask has 2 channels" in result.stderr


def test_errors_are_one_message(tmp_path):
    DatasetCatalog.register("empty", list)
    assert "is empty" in view("empty").stderr
    DatasetCatalog.register("gone", lambda: [{"file_name": str(tmp_path / "gone.h5"), "scan_id": "a"}])
    result = view("gone")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "gone.h5" in result.stderr
    assert "Traceback" not in result.stderr


def test_pixels_have_their_shape_in_millimeters():
    def size(pixel):
        tile = Panel(np.zeros((10, 20)), None, "", pixel, (0.0, 1.0))
        return draw([[tile]], "", []).size

    # 10 x 20 pixels: of 1 x 1 mm they are half as high as wide, of 4 x 1 mm twice as high.
    (flat_width, flat_height), (tall_width, tall_height) = size((1.0, 1.0)), size((4.0, 1.0))
    assert flat_width - tall_width == tall_height - flat_height == 144


def test_the_overlay_lies_where_the_mask_is():
    mask = np.zeros((8, 8, 1), bool)
    mask[:4, 4:] = True
    picture = np.asarray(draw([[Panel(np.zeros((8, 8)), mask, "", (1.0, 1.0), (0.0, 1.0))]], "", [("x", RED)]))
    rows, columns = np.nonzero((picture == np.array(RED)).all(axis=-1))
    # Left out: the legend's swatch, which lies below the panel.
    panel = rows < 8 + 20 + 4 + 20 + 288
    middle = 8 + 144
    assert columns[panel].min() == middle
    assert columns[panel].max() == 8 + 287
    assert rows[panel].max() - rows[panel].min() == 143


def first_panels(path):
    """Return the first image and the first overlay of a picture."""
    drawn = pixels(path)
    return drawn[8 + 20 + 4 + 18 :, 8 : 8 + 288], drawn[8 + 20 + 4 + 18 :, 8 + 288 + 8 : 8 + 2 * 288 + 8]


def middle(mask):
    """Return the center of the true pixels, from 0 to 1 vertically and horizontally, in a panel of 288 x 288 pixels."""
    return tuple((places.min() + places.max()) / 2 / 287 for places in np.nonzero(mask))


def test_a_scan_with_an_affine_is_drawn_upright(tmp_path):
    # Axes run to the left, to posterior and down, as in many NIfTI files: H is across.
    image, mask = np.zeros((20, 20, 3)), np.zeros((20, 20, 3, 2), np.uint8)
    mask[0:4, 8:12, :, 0] = 1  # the patient's right
    mask[8:12, 0:4, :, 1] = 1  # anterior
    d = write_volume(tmp_path / "lps.h5", image, mask)
    affine = np.diag([-1.0, -1.0, -1.0, 1.0])
    for name, more in (("stored", {}), ("upright", {"scan_affine": affine.tolist()})):
        DatasetCatalog.register(name, lambda more=more: [d | more])
        MetadataCatalog.get(name).set(category_ids=[0, 1], categories=["right", "front"], category_colors=[RED, GREEN])
        assert view(name, "--out", tmp_path / f"{name}.png").exit_code == 0
    _, stored = first_panels(tmp_path / "stored.png")
    _, upright = first_panels(tmp_path / "upright.png")
    for panel, right, front in ((stored, (0.1, 0.5), (0.5, 0.1)), (upright, (0.5, 0.1), (0.1, 0.5))):
        assert middle((panel[:288] == RED).all(axis=-1)) == pytest.approx(right, abs=0.02)
        assert middle((panel[:288] == GREEN).all(axis=-1)) == pytest.approx(front, abs=0.02)


def test_only_existing_values_of_label_maps_are_drawn_and_listed(tmp_path):
    labels = np.zeros((24, 24, 4), np.uint16)
    labels[4:20, 4:20] = 40
    labels[8:12, 8:12, 1] = 1900
    d = write_volume(tmp_path / "many.h5", np.zeros((24, 24, 4)))
    with h5py.File(d["file_name"], "r+") as file:
        file["seg"] = labels
    DatasetCatalog.register("many", lambda: [d | {"sem_seg_file": d["file_name"], "label_map": True}])
    ids = list(range(2000))
    MetadataCatalog.get("many").set(category_ids=ids, categories=[f"structure {i}" for i in ids])
    assert view("many", "--slices", 2, "--out", tmp_path / "many.png").exit_code == 0
    drawn = pixels(tmp_path / "many.png")
    assert has_color(drawn, PALETTE[39 % 30])
    assert has_color(drawn, PALETTE[1899 % 30])
    # A legend of all of them would be longer than the slices are high.
    assert drawn.shape[0] < 500


def test_classes_of_a_label_map_that_share_a_value(tmp_path):
    labels = np.zeros((24, 24, 1), np.uint8)
    labels[2:10, 2:10], labels[2:10, 14:22], labels[14:22, 2:10] = 2, 4, 9
    d = write_volume(tmp_path / "shared.h5", np.zeros((24, 24, 1)))
    with h5py.File(d["file_name"], "r+") as file:
        file["seg"] = labels
    DatasetCatalog.register("shared", lambda: [d | {"sem_seg_file": d["file_name"], "label_map": True}])
    colors = [RED, GREEN, (0, 0, 255)]
    MetadataCatalog.get("shared").set(category_ids=[(1, 2), (2, 3), 8], categories=list("abc"), category_colors=colors)
    assert view("shared", "--out", tmp_path / "shared.png").exit_code == 0
    _, panel = first_panels(tmp_path / "shared.png")
    for color, place in zip(colors, ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25)), strict=True):
        assert middle((panel[:288] == color).all(axis=-1)) == pytest.approx(place, abs=0.02)


def test_missing_slices_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dicts = write_slices(tmp_path / "gap", np.zeros((6, 5, 4)), np.ones((6, 5, 4, 1)), subject_id=1)
    DatasetCatalog.register("gap", lambda: [d for d in dicts if d["slice_id"] != 2])
    result = view("gap")
    assert result.exit_code == 0, result.output
    # Three slices, each beside its overlay.
    assert pixels(tmp_path / "gap-0000001_V00.png").shape[1] > 4 * 200


def test_windows_classes_and_slices():
    image = np.arange(1000.0)
    assert gray_window(image, MetadataView("x", {"modality": "CT"})) == (-160.0, 240.0)
    assert gray_window(image, MetadataView("x")) == pytest.approx((9.99, 989.01))
    assert gray_window(np.full(9, np.nan), MetadataView("x"))[0] < gray_window(np.full(9, np.nan), MetadataView("x"))[1]
    assert gray_window(np.full(9, 7.0), MetadataView("x")) == (7.0, 8.0)
    assert shown_classes([0, 1, (0, 1), (2, 3)]) == [0, 1, 3]
    assert spread_slices(np.zeros(5), 2) == [0, 4]
    assert spread_slices(np.array([0, 0, 1]), 6) == [2]
