import os
import sys
import textwrap
import threading
import time
import types
import warnings

import pytest

import medsegpy_core
from medsegpy_core import (
    Augmentation,
    DatasetCatalog,
    DatasetSpec,
    DuplicateNameError,
    MetadataCatalog,
    PluginError,
    PluginWarning,
    Record,
    UnknownNameError,
    Windowing,
    hookimpl,
)
from medsegpy_core.plugins.discovery import EntryPoint, suggest_plugin
from medsegpy_core.plugins.hookspecs import HookSpecs
from medsegpy_core.plugins.kinds import KINDS
from medsegpy_core.plugins.manager import PluginManager
from medsegpy_core.transforms import build_transform

PROVIDED_BY_THE_CORE = {
    "loaders": [
        "DefaultDataLoader",
        "N5dDataLoader",
        "PatchDataLoader",
        "RandomPatchDataLoader",
        "S25dDataLoader",
    ],
    "transforms": ["AffineNormalization", "Windowing", "ZeroMeanNormalization"],
}
DATASET = """
from medsegpy_core import DatasetSpec, hookimpl

@hookimpl
def medsegpy_register_datasets():
    return [DatasetSpec(name="{name}", load=lambda: [{{"who": "{name}"}}])]
"""
EVERYTHING = """
import click
from medsegpy_core import (
    Augmentation, DatasetSpec, EvaluatorSpec, LoaderSpec, MetricSpec, TransformSpec, hookimpl
)

class R:
    name = "r"
    suffixes = (".r",)
    def probe(self, path): return False
    def open(self, record): raise NotImplementedError

@hookimpl
def medsegpy_register_datasets():
    yield DatasetSpec("d2", list)
    yield DatasetSpec("d1", list, split="test")
@hookimpl
def medsegpy_register_readers(): return (R(),)
@hookimpl
def medsegpy_register_augmentations(): return [Augmentation(1, "flip"), Augmentation(2, "flip", dataset="d1")]
@hookimpl
def medsegpy_register_loaders(): return [LoaderSpec("l", print)]
@hookimpl
def medsegpy_register_transforms(): return {TransformSpec("t", print)}
@hookimpl
def medsegpy_register_evaluators(): return [EvaluatorSpec("e", print)]
@hookimpl
def medsegpy_register_metrics(): return [MetricSpec("m", print)]
@hookimpl
def medsegpy_register_commands(): return [click.Command("c")]
@hookimpl
def medsegpy_dataset_metadata(dataset): return {"spacing": (1, 1)} if dataset == "d1" else None
@hookimpl
def medsegpy_tag_augmentation(record, dataset): return record.slice_id
"""
# One way to fail each: the module, and what the message must say.
HEAD = "from medsegpy_core import DatasetSpec, hookimpl\n"
DATASETS = "@hookimpl\ndef medsegpy_register_datasets():\n    "
AUGMENTATIONS = "from medsegpy_core import Augmentation\n@hookimpl\ndef medsegpy_register_augmentations(): "
BROKEN = {
    "missing dependency": ("import no_such_package", "no_such_package"),
    "raises at import": ("1 / 0", "ZeroDivisionError"),
    "exits at import": ("import sys; sys.exit(3)", "SystemExit"),
    "syntax error": ("def", "SyntaxError"),
    "no module": (None, "ModuleNotFoundError"),
    "hook raises": (DATASETS + "raise OSError('disk')", "OSError: disk"),
    "hook exits": (DATASETS + "raise SystemExit", "SystemExit"),
    "generator raises": (
        DATASETS + "yield DatasetSpec('half', list)\n    raise KeyError('later')",
        "KeyError: 'later'",
    ),
    "misspelt argument": ("@hookimpl\ndef medsegpy_dataset_metadata(datset): pass", "datset"),
    "surplus argument": ("@hookimpl\ndef medsegpy_register_datasets(x): pass", "{'x'}"),
    "unknown hook": ("@hookimpl\ndef medsegpy_register_dataset(): pass", "Did you mean 'medsegpy_register_datasets'?"),
    "mark forgotten": ("def medsegpy_register_datasets(): return []", "not marked with @hookimpl"),
    "hook wrapper": ("@hookimpl(wrapper=True)\ndef medsegpy_dataset_metadata(dataset): yield", "wrapper"),
    "wrong record": (DATASETS + "return [{'name': 'x'}]", "{'name': 'x'} is not of type DatasetSpec"),
    "record of another kind": (
        "from medsegpy_core import LoaderSpec\n" + DATASETS + "return [LoaderSpec('a', list)]",
        "not of type DatasetSpec",
    ),
    "no list": (DATASETS + "return DatasetSpec('a', list)", "expected a list of datasets"),
    "a mapping": (DATASETS + "return {'a': list}", "expected a list of datasets"),
    "same name twice": (DATASETS + "return [DatasetSpec('a', list)] * 2", "provides the dataset 'a' twice"),
    "reserved name": (DATASETS + "return [DatasetSpec('a@b', list)]", "'@'"),
    "name of no text": (DATASETS + "return [DatasetSpec(5, list)]", "must be a str"),
    "dicts instead of a function": (DATASETS + "return [DatasetSpec('a', [])]", "callable"),
    "unknown split": (DATASETS + "return [DatasetSpec('a', list, split='valid')]", "split"),
    "reader class": (
        "class R: name='r'; suffixes=('.r',)\n@hookimpl\ndef medsegpy_register_readers(): return [R]",
        "return an object: R()",
    ),
    "reader without probe": (
        "class R: name='r'; suffixes=('.r',)\n@hookimpl\ndef medsegpy_register_readers(): return [R()]",
        "no method `probe`",
    ),
    "suffix without dot": (
        "class R: name='r'; suffixes=('r',)\n@hookimpl\ndef medsegpy_register_readers(): return [R()]",
        "`suffixes`",
    ),
    "no command": ("@hookimpl\ndef medsegpy_register_commands(): return [print]", "not a click command"),
    "augmentation 0": (
        AUGMENTATIONS + "return [Augmentation(0, 'a')]",
        "number",
    ),
    "augmentation twice": (
        AUGMENTATIONS + "return [Augmentation(1, 'a'), Augmentation(1, 'b')]",
        "number 1 of all its datasets",
    ),
    "newer interface": ("medsegpy_api = 2", "version 2 of the hooks, but medsegpy-core 0.1.0 has 1"),
    "interface that is no number": ("medsegpy_api = 'one'", "'one'"),
    "a name of a newer core": ("from medsegpy_core import SomethingNew", "may need another version"),
    "reads a catalog": ("from medsegpy_core import DatasetCatalog\nDatasetCatalog.list()", "uses a catalog"),
    "reads metadata": (
        "from medsegpy_core import MetadataCatalog\nMetadataCatalog.get('a').spacing",
        "uses a catalog",
    ),
    "an error that cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
        "cannot be shown",
    ),
    "raises what pytest raises": ("import pytest; pytest.skip('x', allow_module_level=True)", "Skipped"),
}


def load(manager):
    """Load, expecting failures; return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager.infos()
    assert all(w.category is PluginWarning for w in caught)
    return [str(w.message) for w in caught]


def test_everything_a_plugin_can_provide(site, plugins):
    site.add("all", EVERYTHING, version="1.2")
    manager = plugins()
    (info,) = manager.infos()
    assert (info.name, info.distribution, info.version) == ("all", "medsegpy-all", "1.2")
    assert (info.status, info.error) == ("active", None)
    assert info.provides == {
        "datasets": ("d1", "d2"),
        "readers": ("r",),
        "augmentations": ("flip",),
        "loaders": ("l",),
        "transforms": ("t",),
        "evaluators": ("e",),
        "metrics": ("m",),
        "commands": ("c",),
    }
    assert info.hooks == tuple(sorted(name for name in vars(HookSpecs) if name.startswith("medsegpy_")))
    for kind in set(KINDS) - {"augmentations"}:
        for name in info.provides[kind]:
            owned = manager.lookup(kind, name)
            assert owned.record.name == name
            assert getattr(manager, kind)()[name] is owned
            assert str(owned.owner) == "plugin 'all' (medsegpy-all 1.2)"
    assert [owned.record.number for owned in manager.augmentations()] == [1, 2]
    assert manager.dataset_metadata("d1").record == {"spacing": (1, 1)}
    assert manager.dataset_metadata("d2") is None
    record = Record.from_dict({"file_name": "f.im", "scan_id": "s", "slice_id": 3, "scan_num_slices": 5})
    assert manager.tag_augmentation("d1", record) == 3
    assert manager.contested() == {}


@pytest.mark.parametrize("way", BROKEN)
def test_a_failing_plugin_does_not_affect_the_others(way, site, plugins):
    code, message = BROKEN[way]
    site.add("bad", None if code is None else HEAD + code, version="0.9")
    site.add("good", DATASET.format(name="good"))
    manager = plugins()
    (warning,) = load(manager)
    assert warning.startswith("plugin 'bad' (medsegpy-bad 0.9) failed")
    assert message in warning
    bad, good = manager.infos()
    assert (bad.status, bad.provides, good.status, good.error) == ("failed", {}, "active", None)
    assert message in bad.error
    assert "\n" not in bad.error
    assert DatasetCatalog.get("good") == [{"who": "good", "dataset_name": "good"}]
    assert load(manager) == []
    with pytest.raises(UnknownNameError, match=r"Known datasets: good\..*medsegpy-bad 0.9"):
        DatasetCatalog.get("half")


def test_the_line_of_the_plugin_is_reported(site, plugins):
    module = site.add("bad", "\n\nx = undefined\n")
    assert f"{module}.py, line 3]" in load(plugins())[0]


def test_an_entry_point_may_name_an_attribute_or_be_broken(site, plugins):
    site.add("a", entry_points="[medsegpy]\nx = fake_medsegpy_a_a:absent.deep\ny =\nz\n")
    manager = plugins()
    load(manager)
    assert [(i.name, i.status) for i in manager.infos()] == [("x", "failed"), ("y", "failed"), ("z", "failed")]
    assert "names no module" in manager.infos()[1].error


def test_ten_plugins_three_of_them_broken(site, plugins):
    for number in range(7):
        site.add(f"p{number}", DATASET.format(name=f"d{number}"))
    for way in ("missing dependency", "hook raises", "exits at import"):
        site.add("z" + way.replace(" ", "-"), HEAD + BROKEN[way][0])
    manager = plugins()
    assert len(load(manager)) == 3
    assert [info.status for info in manager.infos()] == ["active"] * 7 + ["failed"] * 3
    assert DatasetCatalog.list() == [f"d{number}" for number in range(7)]
    for number in range(7):
        assert DatasetCatalog.get(f"d{number}") == [{"who": f"d{number}", "dataset_name": f"d{number}"}]


SHARED = """
from medsegpy_core import DatasetSpec, hookimpl

@hookimpl
def medsegpy_register_datasets():
    return [DatasetSpec("shared", list), DatasetSpec("{}", list)]
"""


def test_two_plugins_with_the_same_name(site, plugins):
    site.add("a", SHARED.format("a_only"))
    site.add("b", SHARED.format("b_only"), version="2.0")
    manager = plugins()
    assert DatasetCatalog.get("a_only") == DatasetCatalog.get("b_only") == []
    assert DatasetCatalog.list() == ["a_only", "b_only", "shared"]
    assert "shared" in DatasetCatalog
    assert set(manager.datasets()) == {"a_only", "b_only"}
    for ask in (lambda: DatasetCatalog.get("shared"), lambda: MetadataCatalog.get("shared").get("spacing")):
        with pytest.raises(DuplicateNameError, match=r"'shared'.*medsegpy-a 1.0.*medsegpy-b 2.0.*pip uninstall"):
            ask()
    assert "shared" in MetadataCatalog.list()
    owners = manager.contested()["datasets", "shared"]
    assert [owner.distribution for owner in owners] == ["medsegpy-a", "medsegpy-b"]


def test_two_entry_points_with_the_same_name(site, plugins):
    site.add("knee", DATASET.format(name="one"))
    site.add("knee", DATASET.format(name="two"), distribution="other-knee", version="3.0")
    manager = plugins()
    assert [(i.name, i.distribution, i.status) for i in manager.infos()] == [
        ("knee", "medsegpy-knee", "active"),
        ("knee", "other-knee", "active"),
    ]
    assert DatasetCatalog.list() == ["one", "two"]
    assert list(manager.contested()) == [("plugins", "knee")]


def test_two_distributions_with_the_same_module(site, plugins):
    site.add("a", DATASET.format(name="one"), module="shared_module")
    site.add("b", None, module="shared_module")
    (warning,) = load(plugins())
    assert "medsegpy-b 1.0" in warning
    assert "already loaded" in warning
    assert DatasetCatalog.get("one")


@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        ("", ["blocked", "blocked"]),
        ("medsegpy-a", ["active", "blocked"]),
        (" Medsegpy_A , medsegpy.b", ["active", "active"]),
        (",medsegpy--a,", ["active", "blocked"]),
    ],
)
def test_allow_list(allowed, status, site, plugins, monkeypatch):
    site.add("a", DATASET.format(name="da"))
    site.add("b", DATASET.format(name="db"))
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", allowed)
    manager = plugins()
    assert [info.status for info in manager.infos()] == status
    assert [info.error for info in manager.infos()] == [None, None]
    assert DatasetCatalog.list() == [f"d{info.name}" for info in manager.infos() if info.status == "active"]
    if "blocked" in status:
        with pytest.raises(UnknownNameError, match=r"MEDSEGPY_LOAD_PLUGINS.*medsegpy-b"):
            DatasetCatalog.get("db")


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        ("a", r"names 'a', .* is the name of a plugin: write 'medsegpy-a' instead\."),
        ("medsegpy-a,B", r"names 'B', .* is the name of a plugin: write 'medsegpy-b' instead\."),
        ("medsegpy-aa", r"names 'medsegpy-aa', .*Did you mean 'medsegpy-a'\? Installed: .*medsegpy-a, medsegpy-b"),
    ],
)
def test_a_name_in_the_allow_list_that_is_no_distribution_gives_a_warning(allowed, said, site, plugins, monkeypatch):
    for name in "ab":
        site.add(name, DATASET.format(name=f"d{name}"))
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", allowed)
    manager = plugins()
    with pytest.warns(PluginWarning, match=said) as caught:
        infos = manager.infos()
    assert len(caught) == 1
    assert [info.status for info in infos] == ["active" if "medsegpy-a," in allowed else "blocked", "blocked"]
    assert manager.infos() == infos  # the warning comes once


def test_blocked_plugins_are_not_imported(site, plugins, monkeypatch):
    site.add("a", "raise RuntimeError")
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", "")
    assert load(plugins()) == []


def test_an_unknown_name_lists_existing_names(site, plugins):
    site.add("a", EVERYTHING)
    manager = plugins()
    with pytest.raises(KeyError, match=r"no dataset 'd11'. Did you mean 'd1'\? Known datasets: d1, d2\."):
        manager.lookup("datasets", "d11")
    with pytest.raises(UnknownNameError, match=r"pip install medsegpy-nifti"):
        manager.lookup("readers", "nifti")
    with pytest.raises(UnknownNameError, match=r"pip install medsegpy-evaluation"):
        manager.lookup("evaluators", "SemSegEvaluator")
    site.add("evaluation")
    with pytest.raises(UnknownNameError, match=r"(?!.*pip install)"):
        plugins().lookup("evaluators", "SemSegEvaluator")


ANSWER = (
    DATASET
    + """
@hookimpl
def medsegpy_dataset_metadata(dataset):
    {answer}
"""
)


def test_the_answer_of_the_owner_has_priority(site, plugins):
    site.add("a", ANSWER.format(name="da", answer="return {'from': 'a'}"))
    site.add("b", ANSWER.format(name="db", answer="return {'from': 'b'} if dataset != 'dsilent' else None"))
    site.add("silent", DATASET.format(name="dsilent"))
    manager = plugins()
    said = {dataset: manager.dataset_metadata(dataset) for dataset in ("da", "db", "dsilent", "process")}
    assert {dataset: owned.record["from"] for dataset, owned in said.items()} == {
        "da": "a",
        "db": "b",
        "dsilent": "a",
        "process": "a",
    }
    assert said["db"].owner.plugin == "b"


@pytest.mark.parametrize("answer", ["raise OSError('gone')", "raise SystemExit", "return [1]", "return {1: 2}"])
def test_a_hook_that_raises_is_skipped(answer, site, plugins):
    site.add("a", ANSWER.format(name="da", answer=answer))
    site.add("b", ANSWER.format(name="db", answer="return {'spacing': (1, 1)}"))
    manager = plugins()
    with pytest.warns(PluginWarning, match=r"medsegpy-a 1.0\) is skipped: medsegpy_dataset_metadata\('da'\)"):
        owned = manager.dataset_metadata("da")
    assert owned.owner.plugin == "b"


@pytest.mark.parametrize("answer", ["'1'", "-1", "100", "True", "1.0"])
def test_a_tag_must_be_a_number(answer, site, plugins):
    site.add("a", f"from medsegpy_core import hookimpl\n@hookimpl\ndef medsegpy_tag_augmentation(): return {answer}")
    with pytest.warns(PluginWarning, match="from 0 to 99"):
        assert plugins().tag_augmentation("d", None) is None


def test_declared_augmentations(site, plugins):
    declare = DATASET + "@hookimpl\ndef medsegpy_register_augmentations():\n    return [{0}]\n"
    code = "from medsegpy_core import Augmentation\n" + declare
    all_, one = "Augmentation(1, 'all')", "Augmentation(1, 'one', dataset='da')"
    site.add("a", code.format(f"{all_}, {one}, Augmentation(2, 'two')", name="da"))
    site.add("b", code.format("Augmentation(1, 'other', dataset='da'), Augmentation(3, 'x', dataset='p')", name="db"))
    site.add("c", code.format("Augmentation(3, 'y', dataset='p'), Augmentation(4, 'z', dataset='p')", name="dc"))
    manager = plugins()

    def name(dataset, number):
        found = manager.declared_augmentation(dataset, number)
        assert found is None or isinstance(found, Augmentation)
        return found and found.name

    assert name("da", 1) == "one"
    assert name("da", 2) == "two"
    assert name("db", 1) is None
    assert name("p", 1) is None
    assert name("p", 4) == "z"
    with pytest.raises(DuplicateNameError, match=r"medsegpy-b.*medsegpy-c"):
        name("p", 3)
    assert set(manager.contested()) == {("augmentations", "da, number 1"), ("augmentations", "p, number 3")}


def test_warnings_as_errors_leave_no_half_load(site):
    site.add("bad1", "1 / 0")
    site.add("bad2", "import no_such_package")
    site.add("good", DATASET.format(name="good"))
    done = site.run(
        """
        from medsegpy_core import DatasetCatalog, PluginWarning
        from medsegpy_core.plugins.manager import default_manager
        try:
            DatasetCatalog.list()
        except PluginWarning as warning:
            print("first:", "medsegpy-bad1" in str(warning))
        print(DatasetCatalog.get("good"), [i.status for i in default_manager().infos()])
        """,
        "-Werror",
        MEDSEGPY_LOAD_PLUGINS="medsegpy-bad1,medsegpy-bad2,medsegpy-good",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "first: True"
    assert lines[1].startswith("[{'who': 'good', 'dataset_name': 'good'}]")
    assert lines[1].count("'failed'") == 2


CTRL_C = """
import builtins
if builtins.ctrl_c:
    builtins.ctrl_c -= 1
    raise KeyboardInterrupt
"""


def test_ctrl_c_while_loading_leaves_the_rest_for_the_next_call(site, plugins, monkeypatch):
    staged = "from medsegpy_core import DatasetCatalog\nDatasetCatalog.register('{}', list)\n"
    site.add("a", DATASET.format(name="da"))
    site.add("b", staged.format("db") + CTRL_C)
    hook = textwrap.indent(CTRL_C, "    ") + "    return []"
    site.add("c", staged.format("dc") + "from medsegpy_core import hookimpl\n" + DATASETS.rstrip() + hook)
    monkeypatch.setattr("builtins.ctrl_c", 2, raising=False)
    manager = plugins()
    with pytest.raises(KeyboardInterrupt):  # while b is imported
        manager.infos()
    module = site.add("b", staged.format("db"))
    assert module not in sys.modules
    with pytest.raises(KeyboardInterrupt):  # in the hook of c
        manager.infos()
    assert [info.status for info in manager.infos()] == ["active"] * 3
    assert DatasetCatalog.list() == ["da", "db", "dc"]


def test_loaded_once_by_many_threads(site, plugins):
    site.add("slow", "import time; time.sleep(0.2)\n" + DATASET.format(name="d"))
    site.add("count", "import builtins\nbuiltins.loads = getattr(builtins, 'loads', 0) + 1\n")
    manager = plugins()
    answers, start = [], threading.Barrier(8)

    def ask():
        start.wait()
        answers.append(DatasetCatalog.list())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["d"]] * 8
    import builtins

    assert builtins.__dict__.pop("loads") == 1
    assert len(manager.infos()) == 2


def test_fork_while_another_thread_loads(site, plugins):
    site.add("slow", "import time; time.sleep(1)\n")
    site.add("a", DATASET.format(name="d"))
    manager = plugins()
    thread = threading.Thread(target=manager.infos)
    thread.start()
    while "d" not in manager._state.claims["datasets"]:
        time.sleep(0.01)  # the plugins are loaded in the order of their names: then `slow` is on its turn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12 warns of forks with threads
        child = os.fork()
    if child == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os._exit(0 if DatasetCatalog.list() == ["d"] else 1)
    for _ in range(2400):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_nothing_is_loaded_before_the_first_use(site, plugins):
    site.add("bad", "1 / 0")
    plugins()
    DatasetCatalog.register("x", list)
    MetadataCatalog.get("x").set(a=1)
    DatasetCatalog.register("x", list, replace=True)
    DatasetCatalog.remove("x")
    with pytest.warns(PluginWarning):
        assert DatasetCatalog.list() == []


def test_register_plugin(plugins):
    manager = plugins()
    module = types.ModuleType("mine")
    module.medsegpy_register_datasets = hookimpl(lambda: [DatasetSpec("mine", list)])
    module.__dict__["medsegpy_register_datasets"].__name__ = "medsegpy_register_datasets"
    info = manager.register_plugin(module, "mine")
    assert (info.name, info.distribution, info.status) == ("mine", "", "active")
    assert DatasetCatalog.list() == ["mine"]
    with pytest.raises(DuplicateNameError, match="'mine'"):
        manager.register_plugin(module, "mine")
    manager.register_plugin(module, "mine", replace=True)
    broken = types.SimpleNamespace(medsegpy_register_datasets=hookimpl(lambda: [1]))
    with pytest.raises(PluginError, match="'broken': medsegpy_register_datasets: 1 is not of type DatasetSpec"):
        manager.register_plugin(broken, "broken")
    assert [info.name for info in manager.infos()] == ["mine"]

    class Plugin:
        @hookimpl
        def medsegpy_dataset_metadata(self, dataset):
            return {"spacing": (2, 2)}

    manager.register_plugin(Plugin(), "object")
    assert MetadataCatalog.get("mine").spacing == (2, 2)


def test_managers_can_be_made_from_entry_points_alone():
    assert PluginManager([]).infos() == []
    manager = PluginManager([EntryPoint("x", "no_such_module_at_all", "medsegpy-x", "1")])
    assert "medsegpy-x 1" in load(manager)[0]


def test_trace(site, plugins, monkeypatch, capsys):
    site.add("a", ANSWER.format(name="da", answer="return {'spacing': (1, 1)}"))
    plugins().dataset_metadata("da")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MEDSEGPY_TRACE_PLUGINS", "1")
    plugins().dataset_metadata("da")
    lines = capsys.readouterr().err
    assert "plugin 'a' (medsegpy-a 1.0): medsegpy_register_datasets() -> da" in lines
    assert "medsegpy_dataset_metadata('da') -> {'spacing': (1, 1)}" in lines


def test_every_register_hook_has_a_kind():
    register = {name for name in vars(HookSpecs) if name.startswith("medsegpy_register_")}
    assert {kind.hook for kind in KINDS.values()} == register
    for kind in set(KINDS) - {"augmentations"}:
        assert set(PluginManager([]).claims(kind)) == set(PROVIDED_BY_THE_CORE.get(kind, ()))


def test_what_plugins_of_this_repository_provide_is_in_the_table_of_suggestions(monkeypatch):
    monkeypatch.delenv("MEDSEGPY_LOAD_PLUGINS", raising=False)
    manager = PluginManager()
    for kind in ("commands", "evaluators", "readers"):
        provided = getattr(manager, kind)()
        assert provided
        for name, owned in provided.items():
            assert f"pip install {owned.owner.distribution}." in suggest_plugin(kind, name, [])
            assert suggest_plugin(kind, name, [owned.owner.distribution]) == ""


def test_the_core_registers_as_a_plugin_does_and_is_not_listed(site, plugins, monkeypatch):
    site.add("a", DATASET.format(name="da"))
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", "")
    manager = plugins()
    assert [(info.name, info.status) for info in manager.infos()] == [("a", "blocked")]
    for kind, names in PROVIDED_BY_THE_CORE.items():
        provided = getattr(manager, kind)()
        assert set(provided) == set(names)
        assert {str(owned.owner) for owned in provided.values()} == {f"medsegpy-core {medsegpy_core.__version__}"}
    transform = build_transform("Windowing", {"bounds": [[0, 1]]})
    assert transform == Windowing([(0, 1)])


def test_a_plugin_that_takes_a_name_of_the_core_is_reported(site, plugins):
    site.add(
        "a",
        """
        from medsegpy_core import TransformSpec, hookimpl

        @hookimpl
        def medsegpy_register_transforms():
            return [TransformSpec("Windowing", dict)]
        """,
    )
    manager = plugins()
    owners = manager.contested()["transforms", "Windowing"]
    assert [owner.distribution for owner in owners] == ["medsegpy-a", "medsegpy-core"]
    with pytest.raises(DuplicateNameError, match=r"medsegpy-a 1\.0.*medsegpy-core.*pip uninstall medsegpy-a") as error:
        build_transform("Windowing", {"bounds": [[0, 1]]})
    assert "uninstall medsegpy-core" not in str(error.value)
    assert "AffineNormalization" in manager.transforms()


def test_a_hook_that_returns_none_provides_nothing(site, plugins):
    site.add(
        "a",
        """
        from medsegpy_core import hookimpl

        @hookimpl
        def medsegpy_register_datasets():
            return None
        """,
    )
    (info,) = plugins().infos()
    assert (info.status, info.provides) == ("active", {})


def test_api_version_may_be_declared():
    module = types.ModuleType("mine")
    module.medsegpy_api = medsegpy_core.API_VERSION
    assert PluginManager([]).register_plugin(module, "mine").status == "active"
