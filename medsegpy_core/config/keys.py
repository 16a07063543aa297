"""The keys of a config: those of medsegpy_core with their defaults and checks, and the other keys of MedSegPy."""

from __future__ import annotations

import ast
import copy
import os
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Final

from attrs import field, frozen

from medsegpy_core.data.categories import normalize_category_ids

RENAMED_KEYS: Final = {
    "TISSUES": "CATEGORIES",
    "CP_SAVE_PATH": "OUTPUT_DIR",
    "CP_SAVE_TAG": "MODEL_NAME",
    "INIT_WEIGHT_PATH": "INIT_WEIGHTS",
}
RENAMED_TAGS: Final = dict.fromkeys(("oai", "oai_2d", "oai_aug", "oai_aug_2d"), "DefaultDataLoader")

# Folders that MedSegPy once used as datasets: they look like settings, so a file that has one causes a warning.
UNUSED_PATHS: Final = {"TRAIN_PATH": "TRAIN_DATASET", "VALID_PATH": "VAL_DATASET", "TEST_PATH": "TEST_DATASET"}

# The name of a loss -> the loss and the activation of the model's output.
LOSSES: Final[dict[str, tuple[str, str | None]]] = {
    "DICE_LOSS": ("dice", "sigmoid"),
    "MULTI_CLASS_DICE_LOSS": ("multi_class_dice", "sigmoid"),
    "AVG_DICE_LOSS": ("avg_dice", "sigmoid"),
    "AVG_DICE_LOSS_SOFTMAX": ("avg_dice", "softmax"),
    "AVG_DICE_NO_REDUCE": ("avg_dice_no_reduce", "sigmoid"),
    "WEIGHTED_CROSS_ENTROPY_LOSS": ("weighted_cross_entropy", "softmax"),
    "WEIGHTED_CROSS_ENTROPY_SIGMOID_LOSS": ("weighted_cross_entropy_sigmoid", "sigmoid"),
    "BINARY_CROSS_ENTROPY_LOSS": ("binary_crossentropy", "softmax"),
    "BINARY_CROSS_ENTROPY_SIG_LOSS": ("binary_crossentropy", "sigmoid"),
    "FOCAL_LOSS": ("focal_loss", "sigmoid"),
    "DICE_FOCAL_LOSS": ("dice_focal_loss", "sigmoid"),
    "DICE_MEDIAN_LOSS": ("dice_median_loss", "sigmoid"),
    "L2_LOSS": ("l2_loss", None),
}

# Keys that medsegpy_core keeps for training code, and their defaults, which define their types. None: any type.
OTHER_KEYS: Final[dict[str, Any]] = {
    # The experiment.
    "VERSION": 7,
    "STATE": "training",
    "EXP_NAME": "",
    "DESCRIPTION": "",
    "LEARNING_TAG": "",
    "PRIMARY_TASK": "",
    "PIDS": None,
    "FILE_TYPES": ["im"],
    "AUGMENT_DATA": False,
    # Losses and optimization.
    "CLASS_WEIGHTS": None,
    "ROBUST_LOSS_NAME": "",
    "ROBUST_LOSS_STEP_SIZE": 0.1,
    "N_EPOCHS": 100,
    "INITIAL_LEARNING_RATE": 1e-4,
    "LR_SCHEDULER_NAME": "",
    "MIN_LEARNING_RATE": 1e-8,
    "DROP_FACTOR": 0.7,
    "DROP_RATE": 1.0,
    "LR_MIN_DELTA": 1e-4,
    "LR_PATIENCE": 0,
    "LR_COOLDOWN": 0,
    "NUM_GRAD_STEPS": 1,
    "ADAM_DECAY": 0.0,
    "USE_AMSGRAD": False,
    "USE_EARLY_STOPPING": False,
    "EARLY_STOPPING_MIN_DELTA": 0.0,
    "EARLY_STOPPING_PATIENCE": 0,
    "EARLY_STOPPING_CRITERION": "val_loss",
    # Weights.
    "SS_LOADED_LAYERS": [],
    "PRETRAINED_WEIGHTS_PATH": {},
    "PRETRAINED_CONFIG_PATH": "",
    "FREEZE_PRETRAINED": False,
    "FREEZE_LAYERS": (),
    "TEST_WEIGHT_PATH": "",
    # Cross-validation.
    "USE_CROSS_VALIDATION": False,
    "CV_FILE": "",
    "CV_K": 0,
    "CV_TRAIN_BINS": [],
    "CV_VALID_BINS": [],
    "CV_TEST_BINS": [],
    # Layers of all models.
    "NORMALIZATION": "BatchNorm",
    "NORMALIZATION_ARGS": {"axis": -1, "momentum": 0.95, "epsilon": 0.001},
    "WEIGHT_STANDARDIZATION": False,
    "KERNEL_INITIALIZER": "he_normal",
    # Keys of some models: each model had its own default, so there is none here.
    **dict.fromkeys(
        (
            "AT_DIVISOR",
            "CONV_ACT_BN",
            "DEPTH",
            "DIL_RATES",
            "DROPOUT",
            "DROPOUT_RATE",
            "INIT_UNET_2D",
            "KERNEL_SIZE",
            "LAYER_ORDER",
            "NUM_CONV_LAYERS",
            "NUM_FILTERS",
            "NUM_FILTERS_HEAD_CONV",
            "NUM_LAYERS",
            "OS",
            "SE_RATIO",
            "SINGLE_BN",
            "SLICE_SUBSET",
            "USE_ATTENTION",
            "USE_BOTTLENECK",
            "USE_DEEP_SUPERVISION",
            "USE_SE_BLOCK",
        )
    ),
    # Keys that MedSegPy itself no longer used.
    **dict.fromkeys(
        (
            "DATE_TIME_STR",
            "DEBUG",
            "FINE_TUNE",
            "LEARN_FILES",
            "NUM_CLASSES",
            "PIK_SAVE_PATH",
            "PIK_SAVE_PATH_DIR",
            "PLOT_MODEL_PATH",
            "TEST_FILES_CV",
            "TEST_RESULTS_FOLDER_NAME",
            "TEST_RESULT_PATH",
            "TF_LOG_DIR",
            "TRAIN_FILES_CV",
            "USE_STEP_DECAY",
            "VALID_FILES_CV",
            *UNUSED_PATHS,
        )
    ),
}


@frozen
class Key:
    """The definition of a config key.

    Attributes:
        default: The default value.
        convert: Returns the normalized value (an ``IMG_SIZE`` is always a tuple); raises `TypeError` or `ValueError`
            for an invalid one.
        expected: A description of valid values.
    """

    default: Any = field()
    convert: Callable[[Any], Any] = field()
    expected: str = field()

    def parse(self, value: Any) -> Any:
        """Convert a value from a file or a command line, where a str may contain a Python literal."""
        candidates = [value]
        if isinstance(value, str) and (found := literal(value)) is not value:
            candidates.insert(0, found)
        elif isinstance(value, list):  # YAML: a list with items written as literals, as in `- (1, 2)`
            candidates.append([literal(item) if isinstance(item, str) else item for item in value])
        # Try the literal first, then the text: `MODEL_NAME: 1e3` may be a name. The last error is the one to report.
        for candidate in candidates[:-1]:
            try:
                return self.convert(candidate)
            except (TypeError, ValueError):
                continue
        return self.convert(candidates[-1])


def literal(text: str) -> Any:
    """Return the value of the Python literal `text`, or `text` itself if it is not one. Nothing is executed.

    Example:
        >>> literal("(0, (1, 2))"), literal("1e-3"), literal("false"), literal("val_loss")
        ((0, (1, 2)), 0.001, False, 'val_loss')
    """
    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def is_plain(value: Any) -> bool:
    """Return whether `value` is made of None, bools, numbers, strings, lists, tuples and dicts only."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError


def _text(default: str = "", *, empty: bool = True) -> Key:
    def convert(value: Any) -> str:
        text = os.fspath(value)
        _check(isinstance(text, str) and (empty or text != ""))
        return str(text)

    return Key(default, convert, "a str" if empty else "a non-empty str")


def _flag(default: bool) -> Key:
    def convert(value: Any) -> bool:
        # By name, so that NumPy's bool is accepted without importing NumPy.
        _check(type(value).__name__ in ("bool", "bool_"))
        return bool(value)

    return Key(default, convert, "True or False")


def _is_int(value: Any, minimum: int | None = None) -> bool:
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    return fits and (minimum is None or int(value) >= minimum)


def _integer(default: int, minimum: int | None = None) -> Key:
    def convert(value: Any) -> int:
        _check(_is_int(value, minimum))
        return int(value)

    return Key(default, convert, "an int" if minimum is None else f"an int >= {minimum}")


def _number(default: float, low: float | None = None, high: float | None = None) -> Key:
    def convert(value: Any) -> float:
        _check(isinstance(value, Real) and not isinstance(value, bool))
        _check((low is None or value >= low) and (high is None or value <= high))
        return float(value)

    limits = "" if low is None else f" >= {low:g}" if high is None else f" from {low:g} to {high:g}"
    return Key(default, convert, f"a number{limits}")


def _items(value: Any) -> list[Any]:
    """Return the items of an ordered value: a list, a tuple, a range, a NumPy array; not of a set or a dict."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    _check(isinstance(value, Sequence) and not isinstance(value, str | bytes))
    return list(value)


def _sizes(minimum: int) -> Key:
    def convert(value: Any) -> tuple[int, ...]:
        items = _items(value)
        _check(all(_is_int(item, minimum) for item in items))
        return tuple(int(item) for item in items)

    return Key((), convert, f"a tuple of ints >= {minimum}, as in (384, 384, 1), or () for none")


def _texts(default: list[str]) -> Key:
    def convert(value: Any) -> list[str]:
        _check(isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
        return list(value)

    return Key(default, convert, f"a list of str, as in {default or ['Windowing']}")


def _dataset() -> Key:
    def convert(value: Any) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return value
        _check(isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
        return tuple(value)

    return Key("", convert, "the name of a dataset, or a tuple of names")


def _categories() -> Key:
    def convert(value: Any) -> list[Any]:
        items = _items(value)
        normalized = normalize_category_ids(items)
        # A superclass written as a list stays a list.
        return [
            list(new) if isinstance(old, list) and isinstance(new, tuple) else new
            for old, new in zip(items, normalized, strict=True)
        ]

    expected = "a list of category ids (ints, and sequences of distinct ints to collate), as in [0, (1, 2)]"
    return Key([], convert, expected)


def _choice(default: str, choices: Iterable[str], why: str = "") -> Key:
    known = sorted(choices)

    def convert(value: Any) -> str:
        _check(value in known)
        return str(value)

    return Key(default, convert, "one of " + ", ".join(known) + why)


def _seed() -> Key:
    def convert(value: Any) -> int | None:
        _check(value is None or _is_int(value, 0))
        return None if value is None else int(value)

    return Key(None, convert, "an int >= 0, or None to draw one")


def _tag() -> Key:
    plain = _text("DefaultDataLoader", empty=False)
    return Key(plain.default, lambda value: RENAMED_TAGS.get(plain.convert(value), value), "the name of a loader")


def _arguments() -> Key:
    def convert(value: Any) -> list[Any]:
        _check(isinstance(value, list | tuple) and all(isinstance(item, dict | list | tuple) for item in value))
        _check(is_plain(value))
        return copy.deepcopy(list(value))

    expected = "a list with the arguments of each PREPROCESSING, dicts or lists, as in [{'scale': 100.0}]"
    return Key([], convert, expected)


def _loss() -> Key:
    def convert(value: Any) -> tuple[str, str | None]:
        if isinstance(value, str):
            _check(value.upper() in LOSSES)
            return LOSSES[value.upper()]
        name, activation = value
        _check(isinstance(name, str) and activation in ("sigmoid", "softmax", None))
        return name, activation

    names = ", ".join(LOSSES)
    expected = f"a pair (name, 'sigmoid' | 'softmax' | None), or one of {names}"
    return Key(LOSSES["DICE_LOSS"], convert, expected)


def _like(default: Any) -> Key:
    """Return the key for a default of MedSegPy: values have its type, or are None."""
    if default is None:
        return ANYTHING
    if isinstance(default, list | tuple | dict):
        sequence = isinstance(default, list | tuple)
        kinds: tuple[type, ...] = (list, tuple) if sequence else (dict,)

        def convert(value: Any) -> Any:
            _check(isinstance(value, kinds) and is_plain(value))
            return copy.deepcopy(type(default)(value))

        key = Key(default, convert, f"a {type(default).__name__}")
    elif isinstance(default, bool):
        key = _flag(default)
    elif isinstance(default, str):
        key = _text(default)
    else:
        key = _integer(default) if isinstance(default, int) else _number(default)
    return Key(default, lambda v: None if v is None else key.convert(v), f"{key.expected}, or None")


def _convert_anything(value: Any) -> Any:
    _check(is_plain(value))
    return copy.deepcopy(value)


def _workers() -> int:
    # The cores available to this process: in containers and batch jobs, fewer than those of the machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


ANYTHING: Final = Key(None, _convert_anything, "None, bools, numbers, strings, and lists, tuples and dicts of them")

# Modes of numpy.pad that only repeat voxels or add zeros, so that a mask stays a mask. The others (mean, linear_ramp,
# ...) invent values, and need the whole scan to do so.
PAD_MODES: Final = ("constant", "edge", "reflect", "symmetric", "wrap")

# Keys that medsegpy_core uses.
OWN_KEYS: Final[dict[str, Key]] = {
    "MODEL_NAME": _text(),
    "TRAIN_DATASET": _dataset(),
    "VAL_DATASET": _dataset(),
    "TEST_DATASET": _dataset(),
    "CATEGORIES": _categories(),
    "INCLUDE_BACKGROUND": _flag(False),
    "TAG": _tag(),
    "IMG_SIZE": _sizes(1),
    "IMG_STRIDE": _sizes(1),
    "IMG_PAD_SIZE": _sizes(0),
    "IMG_PAD_MODE": _choice("edge", PAD_MODES, " (the modes of numpy.pad that invent no mask values)"),
    "PATCHES_PER_SCAN": _integer(8, minimum=1),
    "FOREGROUND_RATIO": _number(1 / 3, 0, 1),
    "PREPROCESSING": _texts([]),
    "PREPROCESSING_ARGS": _arguments(),
    "PRELOAD_DATA": _flag(False),
    "NUM_WORKERS": _integer(_workers(), minimum=0),
    "SEED": _seed(),
    "TRAIN_BATCH_SIZE": _integer(12, minimum=1),
    "VALID_BATCH_SIZE": _integer(35, minimum=1),
    "TEST_BATCH_SIZE": _integer(72, minimum=1),
    "LOSS": _loss(),
    "TEST_METRICS": _texts(["DSC", "VOE", "ASSD", "CV"]),
    "NSD_TOLERANCE": _number(1.0, 0),
    "LESION_THRESHOLD": _number(0.5, 0, 1),
    "LESION_CONNECTIVITY": _choice("auto", ("auto", "face", "full")),
    "BOUNDARY_WIDTH": _number(2.0, 0),
    "CALIBRATION_BINS": _integer(15, minimum=1),
    "INIT_WEIGHTS": _text(),
    "OUTPUT_DIR": _text(),
}
# All keys that exist without `Config.add`.
KEYS: Final[dict[str, Key]] = OWN_KEYS | {name: _like(default) for name, default in OTHER_KEYS.items()}
