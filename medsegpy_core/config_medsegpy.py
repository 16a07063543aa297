"""What configs of MedSegPy say beyond ours: its other keys, the names it gave up, its losses. Data only."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["LOSSES", "OTHER_KEYS", "RENAMED_KEYS", "RENAMED_TAGS", "UNUSED_PATHS"]

RENAMED_KEYS: Final = {
    "TISSUES": "CATEGORIES",
    "CP_SAVE_PATH": "OUTPUT_DIR",
    "CP_SAVE_TAG": "MODEL_NAME",
    "INIT_WEIGHT_PATH": "INIT_WEIGHTS",
}
RENAMED_TAGS: Final = dict.fromkeys(("oai", "oai_2d", "oai_aug", "oai_aug_2d"), "DefaultDataLoader")

# Folders that MedSegPy once took for datasets: they read like settings, so a file that has one gets a warning.
UNUSED_PATHS: Final = {"TRAIN_PATH": "TRAIN_DATASET", "VALID_PATH": "VAL_DATASET", "TEST_PATH": "TEST_DATASET"}

# The name of a loss -> the loss and the activation that the model's output has.
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

# Keys that medsegpy_core keeps for the code that trains, and their defaults, whose types they must have. None: any.
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
    # Layers that all models have.
    "NORMALIZATION": "BatchNorm",
    "NORMALIZATION_ARGS": {"axis": -1, "momentum": 0.95, "epsilon": 0.001},
    "WEIGHT_STANDARDIZATION": False,
    "KERNEL_INITIALIZER": "he_normal",
    # What only some models have: each had a default of its own, so there is none here.
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
    # What MedSegPy itself no longer read.
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
