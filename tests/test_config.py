"""`Config`: keys, files, names of MedSegPy, round trips."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegpy_core import Config, ConfigError, ConfigWarning

INI = """[DEFAULT]
cp_save_tag = unet_2d
Tissues = (0, (1, 2), 3, [4, 5])
initial_learning_rate = 1e-3
img_size = (384, 384, 1)
tag = oai_aug
loss = DICE_LOSS
debug = False
lr_scheduler_name =
seed = None
exp_name = 100% of it
"""
YAML = """
MODEL_NAME: "unet_2d"
CATEGORIES: (0, (1, 2), 3, [4, 5])
INITIAL_LEARNING_RATE: 1e-3
IMG_SIZE: [384, 384, 1]
TAG: "DefaultDataLoader"
LOSS: ["dice", "sigmoid"]
DEBUG: false
EXP_NAME: 100% of it
"""
TOML = """
model_name = "unet_2d"
categories = [0, "(1, 2)", 3, [4, 5]]
initial_learning_rate = 0.001
img_size = [384, 384, 1]
loss = "('dice', 'sigmoid')"
debug = "False"
exp_name = "100% of it"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def test_defaults():
    cfg = Config()
    assert (cfg.TRAIN_DATASET, cfg.VAL_DATASET, cfg.TEST_DATASET, cfg.OUTPUT_DIR) == ("", "", "", "")
    assert (cfg.IMG_SIZE, cfg.IMG_PAD_SIZE, cfg.IMG_STRIDE, cfg.IMG_PAD_MODE) == ((), (), (), "edge")
    assert (cfg.CATEGORIES, cfg.INCLUDE_BACKGROUND, cfg.PREPROCESSING, cfg.PREPROCESSING_ARGS) == ([], False, [], [])
    assert (cfg.TRAIN_BATCH_SIZE, cfg.VALID_BATCH_SIZE, cfg.TEST_BATCH_SIZE) == (12, 35, 72)
    assert (cfg.TAG, cfg.PRELOAD_DATA, cfg.SEED) == ("DefaultDataLoader", False, None)
    assert (cfg.PATCHES_PER_SCAN, cfg.FOREGROUND_RATIO, cfg.NSD_TOLERANCE) == (8, 1 / 3, 1.0)
    assert cfg.TEST_METRICS == ["DSC", "VOE", "ASSD", "CV"]
    assert (cfg.LESION_THRESHOLD, cfg.LESION_CONNECTIVITY) == (0.5, "auto")
    assert (cfg.BOUNDARY_WIDTH, cfg.CALIBRATION_BINS) == (2.0, 15)
    assert 1 <= cfg.NUM_WORKERS <= min(4, os.cpu_count() or 1)
    assert (cfg.N_EPOCHS, cfg.INITIAL_LEARNING_RATE) == (100, 1e-4)


def test_construction_by_keyword_and_name():
    cfg = Config("unet", TRAIN_DATASET="a", IMG_SIZE=[8, 8, 1])
    assert (cfg.MODEL_NAME, cfg.TRAIN_DATASET, cfg.IMG_SIZE) == ("unet", "a", (8, 8, 1))
    assert Config(MODEL_NAME="unet", TRAIN_DATASET="a", IMG_SIZE=(8, 8, 1)) == cfg
    assert Config() != cfg
    assert cfg != "unet"


def test_defaults_are_not_shared():
    Config().PREPROCESSING.append("Windowing")
    Config().NORMALIZATION_ARGS["axis"] = 0
    assert Config().PREPROCESSING == []
    assert Config().NORMALIZATION_ARGS["axis"] == -1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IMG_SIZE", "(8, 8)"),
        ("IMG_SIZE", (8, 0)),
        ("IMG_SIZE", 8),
        ("IMG_SIZE", (8.0, 8)),
        ("IMG_SIZE", {8, 9}),
        ("IMG_SIZE", None),
        ("CATEGORIES", {0: 1}),
        ("IMG_PAD_SIZE", (-1, 0)),
        ("IMG_PAD_MODE", "empty"),
        ("IMG_PAD_MODE", "mean"),
        ("TRAIN_BATCH_SIZE", 0),
        ("TRAIN_BATCH_SIZE", True),
        ("TRAIN_BATCH_SIZE", 2.0),
        ("NUM_WORKERS", -1),
        ("FOREGROUND_RATIO", 1.5),
        ("FOREGROUND_RATIO", float("nan")),
        ("SEED", -1),
        ("SEED", "1"),
        ("INCLUDE_BACKGROUND", 1),
        ("CATEGORIES", 3),
        ("CATEGORIES", [0, 0]),
        ("CATEGORIES", ["liver"]),
        ("CATEGORIES", [(0, 0)]),
        ("TAG", ""),
        ("TAG", 5),
        ("LOSS", "DICE_LOS"),
        ("LOSS", ("dice", "relu")),
        ("TEST_METRICS", "DSC"),
        ("PREPROCESSING", "Windowing"),
        ("PREPROCESSING_ARGS", [5]),
        ("PREPROCESSING_ARGS", [{"scale": object()}]),
        ("TRAIN_DATASET", ["a", 5]),
        ("N_EPOCHS", "many"),
        ("NORMALIZATION_ARGS", [("axis", -1)]),
    ],
)
def test_an_invalid_value_names_key_value_and_expectation(key: str, value: object):
    cfg = Config()
    with pytest.raises(ConfigError) as caught:
        setattr(cfg, key, value)
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "expected" in str(caught.value)
    assert isinstance(caught.value, KeyError)
    assert cfg == Config()


def test_unknown_keys_in_code_name_the_closest():
    cfg = Config()
    with pytest.raises(ConfigError, match="Did you mean 'TRAIN_BATCH_SIZE'"):
        cfg.TRAIN_BATCH_SIZES = 3
    with pytest.raises(ConfigError, match="Did you mean 'TRAIN_DATASET'"):
        Config(train_dataset="a")
    with pytest.raises(ConfigError, match="'TISSUES' is now called 'CATEGORIES'"):
        cfg.TISSUES = [0]
    with pytest.raises(ConfigError, match="'CP_SAVE_PATH' is now called 'OUTPUT_DIR'"):
        cfg.merge_from_list(["CP_SAVE_PATH", "./"])
    with pytest.raises(KeyError, match="N_EPOCHS"):
        _ = cfg.N_EPOCH
    assert not hasattr(cfg, "N_EPOCH")
    assert getattr(cfg, "N_EPOCH", 7) == 7
    assert "N_EPOCHS" in dir(cfg)


def test_legacy_names_become_current_names():
    for tag in ("oai", "oai_2d", "oai_aug", "oai_aug_2d"):
        assert Config(TAG=tag).TAG == "DefaultDataLoader"
    assert Config(TAG="S25dDataLoader").TAG == "S25dDataLoader"
    assert Config(LOSS="AVG_DICE_LOSS_SOFTMAX").LOSS == ("avg_dice", "softmax")
    assert Config(LOSS="l2_loss").LOSS == ("l2_loss", None)
    assert Config(LOSS=["mine", "softmax"]).LOSS == ("mine", "softmax")


def test_three_formats_are_equivalent(write):
    ini, yaml, toml = (
        Config.from_file(write(f"c{s}", t)) for s, t in ((".ini", INI), (".yaml", YAML), (".toml", TOML))
    )
    assert ini == yaml == toml
    assert ini.MODEL_NAME == "unet_2d"
    assert ini.CATEGORIES == [0, (1, 2), 3, [4, 5]]
    assert ini.INITIAL_LEARNING_RATE == 1e-3
    assert ini.IMG_SIZE == (384, 384, 1)
    assert ini.TAG == "DefaultDataLoader"
    assert ini.LOSS == ("dice", "sigmoid")
    assert ini.DEBUG is False
    assert ini.EXP_NAME == "100% of it"
    assert ini.SEED is None


def test_ini_in_a_file_called_yaml(write):
    assert Config.from_file(write("odd.yaml", INI)) == Config.from_file(write("c.ini", INI))


def test_base_files_are_relative_and_overridden(write):
    write("base.ini", INI)
    write("sub/child.yaml", '_BASE_: "../base.ini"\nN_EPOCHS: 12\n')
    grandchild = write("sub/grandchild.toml", '_base_ = "child.yaml"\ndropout_rate = 0.3\n')
    cfg = Config.from_file(grandchild)
    assert (cfg.N_EPOCHS, cfg.DROPOUT_RATE, cfg.IMG_SIZE) == (12, 0.3, (384, 384, 1))


def test_a_circular_base_is_an_error(write):
    write("a.yaml", "_BASE_: b.yaml\n")
    with pytest.raises(ConfigError, match=r"a.yaml -> b.yaml -> a.yaml"):
        Config.from_file(write("b.yaml", "_BASE_: a.yaml\n").with_name("a.yaml"))


def test_a_missing_file_or_base_is_named(write, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        Config.from_file(tmp_path / "absent.yaml")
    with pytest.raises(FileNotFoundError, match=r"child.yaml: _BASE_ names .*absent.yaml"):
        Config.from_file(write("child.yaml", "_BASE_: absent.yaml\n"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{}", "ends in .yaml"),
        ("c.yaml", "- 1\n- 2\n", "found a list"),
        ("c.yaml", "a: [1\n", "not valid YAML"),
        ("c.yaml", "N_EPOCHS: 1\nn_epochs: 2\n", "N_EPOCHS occurs twice"),
        ("c.yaml", "CATEGORIES: [0]\nTISSUES: [1]\n", "old name TISSUES"),
        ("c.yaml", "1: 2\n", "not 1"),
        ("c.yaml", "N_EPOCHS: many\n", "N_EPOCHS is 'many', expected an int"),
        ("c.yaml", "SEED: !!python/object/apply:os.getpid []\n", "not valid YAML"),
        ("c.yaml", "_BASE_: 5\n", "_BASE_ is 5"),
        ("c.toml", "a = \n", "not valid TOML"),
        ("c.ini", "n_epochs = 3\n", "not a valid INI"),
        ("c.ini", "[train]\nn_epochs = 3\n", r"\[train\]"),
        ("c.ini", "[DEFAULT]\nseed = __import__('os').getpid()\n", "SEED is .*expected an int"),
    ],
)
def test_malformed_files_are_named(write, name: str, text: str, message: str):
    path = write(name, text)
    with pytest.raises(ConfigError, match=message) as caught:
        Config.from_file(path)
    assert str(path) in str(caught.value)


def test_a_failed_merge_changes_nothing(write):
    cfg = Config(N_EPOCHS=5)
    with pytest.raises(ConfigError):
        cfg.merge_from_file(write("c.yaml", "N_EPOCHS: 6\nIMG_SIZE: nothing\n"))
    with pytest.raises(ConfigError):
        cfg.merge_from_list(["N_EPOCHS", 6, "IMG_SIZE", 3])
    assert cfg == Config(N_EPOCHS=5)


def test_unknown_keys_in_a_file_warn_and_are_kept(write, tmp_path: Path):
    path = write("c.yaml", "my_key: (1, 2)\nN_EPOCH: 4\n")
    with pytest.warns(ConfigWarning) as caught:
        cfg = Config.from_file(path)
    messages = [str(w.message) for w in caught]
    assert len(messages) == 2
    assert "c.yaml" in messages[0]
    assert "MY_KEY" in messages[0]
    assert "Did you mean 'N_EPOCHS'" in messages[1]
    assert cfg.MY_KEY == (1, 2)
    cfg.MY_KEY = [3]
    assert cfg.MY_KEY == [3]


def test_a_folder_instead_of_a_dataset_name_warns(write):
    with pytest.warns(ConfigWarning, match="TRAIN_PATH has no effect.*TRAIN_DATASET"):
        cfg = Config.from_file(write("c.ini", "[DEFAULT]\ntrain_path = ./unittest-data\n"))
    assert cfg.TRAIN_PATH == "./unittest-data"
    cfg.merge_from_list(["TRAIN_PATH", "./"])


def test_merge_in_place_returns_self(write):
    cfg = Config()
    assert cfg.merge_from_list(["N_EPOCHS", "20", "IMG_SIZE", "(4, 4, 1)", "LR_SCHEDULER_NAME", "StepDecay"]) is cfg
    assert (cfg.N_EPOCHS, cfg.IMG_SIZE, cfg.LR_SCHEDULER_NAME) == (20, (4, 4, 1), "StepDecay")
    assert cfg.merge_from_file(write("c.yaml", "n_epochs: 21")) is cfg
    assert (cfg.N_EPOCHS, cfg.LR_SCHEDULER_NAME) == (21, "StepDecay")


@pytest.mark.parametrize("pairs", [["N_EPOCHS"], ["n_epochs", 3], ["MODEL_NAME", "x"], [5, 3], "N_"])
def test_bad_lists(pairs):
    with pytest.raises(ConfigError):
        Config().merge_from_list(pairs)


def test_custom_keys():
    cfg = Config().add("MY_KEY", {"a": (1, None)})
    assert cfg.MY_KEY == {"a": (1, None)}
    assert cfg.as_dict()["MY_KEY"] == {"a": (1, None)}
    assert "MY_KEY={'a': (1, None)}" in repr(cfg)
    assert cfg != Config()
    assert cfg.merge_from_list(["MY_KEY", "1e-3"]).MY_KEY == 1e-3
    for name in ("N_EPOCHS", "MY_KEY", "my_other", "NOT A NAME", "_HIDDEN", "TISSUES"):
        with pytest.raises(ConfigError):
            cfg.add(name, 1)
    with pytest.raises(ConfigError, match="expected None, bools"):
        cfg.add("OTHER", object())
    with pytest.raises(ConfigError, match="cannot be deleted"):
        del cfg.MY_KEY


def test_copies_are_independent_and_checked():
    cfg = Config(CATEGORIES=[0, [1, 2]], NORMALIZATION_ARGS={"axis": -1})
    for twin in (cfg.copy(), copy.copy(cfg.copy()), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert twin == cfg
        twin.CATEGORIES[1].append(5)
        twin.NORMALIZATION_ARGS["axis"] = 3
        assert cfg.CATEGORIES == [0, [1, 2]]
        assert cfg.NORMALIZATION_ARGS == {"axis": -1}
    as_dict = cfg.as_dict()
    as_dict["CATEGORIES"].append(9)
    assert cfg.CATEGORIES == [0, [1, 2]]
    cfg.CATEGORIES.append("liver")
    with pytest.raises(ConfigError, match="CATEGORIES"):
        cfg.copy()


def test_numpy_numbers_become_python_numbers(tmp_path: Path):
    np = pytest.importorskip("numpy")
    cfg = Config(IMG_SIZE=np.array([4, 4]), CATEGORIES=np.arange(3), SEED=np.int64(3), PRELOAD_DATA=np.True_)
    cfg.INITIAL_LEARNING_RATE = np.float32(0.5)
    cfg.save(tmp_path / "c.yaml")
    assert Config.from_file(tmp_path / "c.yaml") == cfg
    assert (cfg.IMG_SIZE, cfg.CATEGORIES, cfg.SEED, cfg.PRELOAD_DATA) == ((4, 4), [0, 1, 2], 3, True)


def test_save_is_atomic_and_complete(tmp_path: Path):
    path = tmp_path / "config.yaml"
    Config(N_EPOCHS=3).save(path)
    before = path.read_text()
    assert "TRAIN_BATCH_SIZE: 12" in before
    assert "N_EPOCHS: 3" in before
    assert "LR_PATIENCE" not in before
    broken = Config().add("KEY", [1])
    broken.KEY.append(object())
    with pytest.raises(ConfigError, match="KEY"):
        broken.save(path)
    with pytest.raises(OSError, match="absent"):
        Config().save(tmp_path / "absent" / "config.yaml")
    with pytest.raises(ConfigError, match=r"ends in .yaml, .yml, .toml, .ini, .cfg, not in '.json'"):
        Config().save(tmp_path / "config.json")
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["1e-3", "(1, 2)", "null", "yes", "1_000", "0x1f", "'quoted'", " x ", "True", "~", ""])
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)
_category = st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True).map(tuple)


@settings(deadline=None, max_examples=150)
@given(
    suffix=st.sampled_from([".yaml", ".toml", ".ini"]),
    mine=_values,
    text=st.text(max_size=20),
    sizes=st.lists(st.integers(1, 999), max_size=4),
    rate=st.floats(0, 1),
    categories=st.lists(_category, max_size=5, unique=True),
    layers=st.none() | st.lists(st.integers() | st.lists(st.integers(), max_size=3), max_size=3),
)
def test_saved_configs_come_back_equal(tmp_path_factory, suffix, mine, text, sizes, rate, categories, layers):
    cfg = Config(
        text,
        DESCRIPTION=text,
        TRAIN_DATASET=text,
        IMG_SIZE=sizes,
        FOREGROUND_RATIO=rate,
        CATEGORIES=categories,
        NUM_FILTERS=layers,
        TEST_METRICS=[text],
        PREPROCESSING_ARGS=[{"scale": mine}],
    ).add("MY_KEY", mine)
    path = tmp_path_factory.mktemp("configs") / f"c{suffix}"
    cfg.save(path)
    known = Config().add("MY_KEY", None)
    assert known.merge_from_file(path) == cfg
    # Equality takes 1, 1.0 and True for the same; their types must come back as well.
    assert repr(known.MY_KEY) == repr(cfg.MY_KEY)
    assert repr(known.PREPROCESSING_ARGS) == repr(cfg.PREPROCESSING_ARGS)
    assert pickle.loads(pickle.dumps(cfg)) == cfg
