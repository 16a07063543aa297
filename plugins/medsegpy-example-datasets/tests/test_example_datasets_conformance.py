"""The datasets pass the suite for datasets."""

from medsegpy_core.testing import DatasetTests


class TestSlices(DatasetTests):
    names = ("abdomen_slices_train", "abdomen_slices_train_aug", "abdomen_slices_val", "abdomen_slices_test")
    module = "medsegpy_example_datasets"


class TestVolumes(DatasetTests):
    # With the slices, which show the same people.
    names = (*TestSlices.names, "abdomen_volumes_train", "abdomen_volumes_val", "abdomen_volumes_test")
