import importlib
import multiprocessing
import operator
import os
import threading
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core import (
    DatasetCatalog,
    DuplicateNameError,
    MetadataCatalog,
    MetadataConflictError,
    PluginWarning,
    UnknownNameError,
)
from medsegpy_core.catalog import PROCESS_COLLECTION, collection_of, dataset_owner, dataset_spec
from medsegpy_core.plugins.kinds import PROCESS

KNEE = """
from medsegpy_core import DatasetSpec, hookimpl

@hookimpl
def medsegpy_register_datasets():
    return [
        DatasetSpec("knee", lambda: [{"from": "plugin"}], split="train", metadata={"spacing": (1, 1, 1), "a": 1}),
        DatasetSpec("hip", list),
    ]

@hookimpl
def medsegpy_dataset_metadata(dataset):
    if dataset in ("knee", "process"):
        return {"a": 2, "b": 3}
"""
STAGED = """
from medsegpy_core import DatasetCatalog, MetadataCatalog

DatasetCatalog.register("staged", lambda: [{"from": "staged"}])
MetadataCatalog.get("staged").set(spacing=(2, 2, 2), mine=1)
"""


def test_a_dataset_of_the_process(plugins):
    calls = []

    def get_dicts():
        calls.append(1)
        return [{"anything": object}]

    DatasetCatalog.register("mine", get_dicts)
    assert "mine" in DatasetCatalog
    assert "other" not in DatasetCatalog
    assert DatasetCatalog.list() == ["mine"]
    assert calls == []
    assert DatasetCatalog.get("mine") == [{"anything": object, "dataset_name": "mine"}]
    assert DatasetCatalog.get("mine") == [{"anything": object, "dataset_name": "mine"}]
    assert len(calls) == 2
    DatasetCatalog.remove("mine")
    assert "mine" not in DatasetCatalog
    for gone in (DatasetCatalog.get, DatasetCatalog.remove):
        with pytest.raises(UnknownNameError, match="'mine'"):
            gone("mine")


@pytest.mark.parametrize("returned", [[], None, "text", [1, 2], {"a": 1}])
def test_the_result_of_the_function_is_not_checked(plugins, returned):
    DatasetCatalog.register("odd", lambda: returned)
    assert DatasetCatalog.get("odd") is returned


def test_registered_twice(plugins):
    def first():
        return [1]

    def second():
        return [2]

    DatasetCatalog.register("mine", first)
    with pytest.raises(DuplicateNameError, match=r"'mine'.*first.*second.*replace=True"):
        DatasetCatalog.register("mine", second)
    with pytest.raises(ValueError, match="'mine'"):
        DatasetCatalog.register("mine", first)
    assert DatasetCatalog.get("mine") == [1]
    DatasetCatalog.register("mine", second, replace=True)
    assert DatasetCatalog.get("mine") == [2]


@pytest.mark.parametrize(("name", "error"), [("a@b", ValueError), ("", ValueError), (" a", ValueError), (5, TypeError)])
def test_invalid_names(plugins, name, error):
    with pytest.raises(error):
        DatasetCatalog.register(name, list)
    assert DatasetCatalog.list() == []


def test_dicts_instead_of_a_function():
    with pytest.raises(TypeError, match="without calling it"):
        DatasetCatalog.register("x", [{"a": 1}])


def test_unknown_names_of_any_type(plugins):
    DatasetCatalog.register("knee_train", list)
    for name in ("knee_trian", "", "a@b", 5, None):
        with pytest.raises(KeyError, match="Known datasets: knee_train"):
            DatasetCatalog.get(name)
    with pytest.raises(KeyError, match=r"Did you mean 'knee_train'\?"):
        DatasetCatalog.get("knee_trian")
    assert 5 not in DatasetCatalog


def test_an_error_of_the_function_names_the_dataset(plugins):
    def broken():
        raise OSError("no disk")

    DatasetCatalog.register("mine", broken)
    with pytest.raises(OSError, match="no disk") as caught:
        DatasetCatalog.get("mine")
    assert "'mine'" in caught.value.__notes__[0]
    assert "broken" in caught.value.__notes__[0]


def test_plugins_and_process_in_one_list(site, plugins):
    site.add("knee", KNEE)
    plugins()
    DatasetCatalog.register("mine", list)
    assert DatasetCatalog.list() == ["hip", "knee", "mine"]
    assert DatasetCatalog.get("knee") == [{"from": "plugin", "dataset_name": "knee"}]
    assert dataset_spec("knee").split == "train"
    assert dataset_owner("knee").distribution == "medsegpy-knee"
    assert dataset_owner("mine") == PROCESS
    with pytest.raises(UnknownNameError, match=r"'knee'.*medsegpy-knee 1.0.*uninstall"):
        DatasetCatalog.remove("knee")


def test_a_conflict_with_a_plugin_raises_on_get(site, plugins):
    site.add("knee", KNEE)
    plugins()
    DatasetCatalog.register("knee", lambda: [{"from": "process"}])
    with pytest.raises(DuplicateNameError, match=r"medsegpy-knee 1.0.*this process.*test_catalog"):
        DatasetCatalog.get("knee")
    assert DatasetCatalog.list() == ["hip", "knee"]
    assert DatasetCatalog.get("hip") == []
    DatasetCatalog.register("knee", lambda: [{"from": "process"}], replace=True)
    assert DatasetCatalog.get("knee") == [{"from": "process", "dataset_name": "knee"}]
    DatasetCatalog.remove("knee")
    assert DatasetCatalog.get("knee") == [{"from": "plugin", "dataset_name": "knee"}]


def test_metadata_of_a_plugin(site, plugins):
    site.add("knee", KNEE)
    plugins()
    metadata = MetadataCatalog.get("knee")
    assert metadata.as_dict() == {"spacing": (1, 1, 1), "a": 2, "b": 3}
    assert MetadataCatalog.list() == ["knee"]
    metadata.set(spacing=[1, 1, 1], mine=4)
    assert metadata.mine == 4
    metadata.set(b=5)
    with pytest.raises(
        MetadataConflictError, match=r"medsegpy_dataset_metadata of plugin 'knee' \(medsegpy-knee 1.0\)"
    ):
        _ = metadata.mine
    assert metadata.set(replace=True, b=5).b == 5
    assert MetadataCatalog.get("process").a == 2
    MetadataCatalog.remove("knee")
    assert MetadataCatalog.get("knee").as_dict() == {"spacing": (1, 1, 1), "a": 2, "b": 3}


def test_a_later_plugin_changes_what_is_read(site, plugins):
    manager = plugins()
    metadata = MetadataCatalog.get("knee").set(c=1)
    assert metadata.as_dict() == {"c": 1}
    site.add("knee", KNEE)
    importlib.invalidate_caches()
    manager.register_plugin(importlib.import_module("fake_medsegpy_knee_knee"), "knee")
    assert metadata.as_dict() == {"spacing": (1, 1, 1), "a": 2, "b": 3, "c": 1}


def test_collections(site, plugins):
    site.add("knee", KNEE)
    plugins()
    DatasetCatalog.register("mine", list)
    DatasetCatalog.register("also_mine", list)
    assert collection_of("knee") == collection_of("hip") == "medsegpy-knee"
    assert collection_of("mine") == collection_of("also_mine") == PROCESS_COLLECTION
    MetadataCatalog.get("mine").set(collection="OAI")
    assert collection_of("mine") == "OAI"
    MetadataCatalog.get("hip").set(collection="OAI")
    assert collection_of("hip") == "OAI"


def test_a_plugin_may_register_while_it_is_imported(site, plugins):
    site.add("old", STAGED)
    manager = plugins()
    assert DatasetCatalog.get("staged") == [{"from": "staged", "dataset_name": "staged"}]
    assert MetadataCatalog.get("staged").as_dict() == {"spacing": (2, 2, 2), "mine": 1}
    assert dataset_owner("staged").distribution == "medsegpy-old"
    assert collection_of("staged") == "medsegpy-old"
    assert manager.infos()[0].provides == {"datasets": ("staged",)}
    assert MetadataCatalog.list() == ["staged"]
    MetadataCatalog.get("staged").set(mine=2)
    with pytest.raises(MetadataConflictError, match="plugin 'old'"):
        _ = MetadataCatalog.get("staged").mine


@pytest.mark.parametrize(
    "then",
    [
        "raise OSError",
        "DatasetCatalog.register('staged', list)",
        "MetadataCatalog.get('staged').set(mine=2)",
        "MetadataCatalog.get('staged').spacing",
        "DatasetCatalog.get('staged')",
        "'x' in DatasetCatalog",
        "MetadataCatalog.list()",
        "from medsegpy_core import hookimpl\n@hookimpl\ndef medsegpy_register_readers(): raise OSError",
        "from medsegpy_core import hookimpl\n@hookimpl\ndef medsegpy_register_readers(): DatasetCatalog.list()",
    ],
)
def test_what_a_failing_plugin_registered_is_rolled_back(site, plugins, then):
    site.add("old", STAGED + then)
    site.add("knee", KNEE)
    plugins()
    DatasetCatalog.register("mine", list)
    with pytest.warns(PluginWarning, match="medsegpy-old 1.0"):
        assert DatasetCatalog.list() == ["hip", "knee", "mine"]
    assert MetadataCatalog.get("staged").as_dict() == {}
    assert MetadataCatalog.list() == ["knee"]


def test_a_plugin_may_register_readers_and_transforms_while_it_is_imported(site, plugins):
    site.add(
        "old",
        """
        from medsegpy_core import register_reader, register_transform

        class R:
            name = "old"
            suffixes = (".old",)
            def probe(self, path): return False
            def open(self, record): raise NotImplementedError

        register_reader(R())
        register_transform("identity", lambda: lambda image, mask: (image, mask))
        """,
    )
    assert plugins().infos()[0].provides == {"readers": ("old",), "transforms": ("identity",)}


def test_threads_register_without_losing_anything(plugins):
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for i in range(25):
            DatasetCatalog.register(f"{number}_{i}", list)
            MetadataCatalog.get(f"{number}_{i}").set(a=i)
            assert f"{number}_{i}" in DatasetCatalog

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(DatasetCatalog.list()) == len(MetadataCatalog.list()) == 200


def test_fork_while_another_thread_registers(plugins):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            DatasetCatalog.register("busy", list, replace=True)
            MetadataCatalog.get("busy").set(replace=True, a=1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                DatasetCatalog.register("in_child", list)
                MetadataCatalog.get("in_child").set(a=1)
                MetadataCatalog.get("busy").set(replace=True, a=2)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


def test_a_view_goes_to_a_spawned_child(plugins):
    view = MetadataCatalog.get("mine").set(spacing=(1, 2)).view()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(operator.attrgetter("spacing"), (view,)) == (1, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["register", "replace", "remove"]), st.sampled_from(["a", "b", "c"])), max_size=12
    )
)
def test_the_catalog_is_a_dict(plugins, steps):
    model = {}
    for step, (action, name) in enumerate(steps):
        if action == "remove" and name not in model:
            with pytest.raises(KeyError):
                DatasetCatalog.remove(name)
        elif action == "remove":
            DatasetCatalog.remove(name)
            del model[name]
        elif action == "register" and name in model:
            with pytest.raises(DuplicateNameError):
                DatasetCatalog.register(name, list)
        else:
            DatasetCatalog.register(name, lambda step=step: [step], replace=action == "replace")
            model[name] = [step]
        assert {known: DatasetCatalog.get(known) for known in DatasetCatalog.list()} == model
    for name in model:
        DatasetCatalog.remove(name)
