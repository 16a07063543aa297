import importlib.metadata
import itertools
import sys
import zipfile
from types import SimpleNamespace

import importlib_metadata
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core.plugins import discovery
from medsegpy_core.plugins.discovery import EntryPoint, find_entry_points, installed


def reference(path=None):
    """The result of importlib_metadata, in our format."""
    if path is None:
        found = importlib_metadata.entry_points(group="medsegpy")
    else:
        found, seen = [], set()
        for distribution in importlib_metadata.distributions(path=path):
            key = discovery.normalize_distribution(distribution.metadata["Name"])
            if key not in seen:
                seen.add(key)
                found += [entry_point for entry_point in distribution.entry_points if entry_point.group == "medsegpy"]
    return sorted((e.name, e.value, e.dist.metadata["Name"], e.dist.metadata["Version"]) for e in found)


def test_same_as_importlib_metadata_here():
    importlib.invalidate_caches()
    assert sorted(find_entry_points()) == reference()
    assert sorted(installed()) == reference()


def test_same_as_importlib_metadata_with_distributions_of_all_sorts(site, tmp_path):
    site.add("knee", version="2.1")
    site.add("two", entry_points="[console_scripts]\nmedsegpy-x = a:b\n\n# note\n[medsegpy]\na = m\nb=m.n:o [extra]\n")
    site.add("none", entry_points="[other]\nmedsegpy = m\n")
    site.add("dotted", distribution="MedSegPy.Dotted_Name")
    egg = site.folder / "old.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 1.1\nName: old\nVersion: 0.5\n")
    (egg / "entry_points.txt").write_text("[medsegpy]\nold = old_module\n")
    unzipped = tmp_path / "dir-1.0-py3.11.egg" / "EGG-INFO"
    unzipped.mkdir(parents=True)
    (unzipped / "PKG-INFO").write_text("Metadata-Version: 1.1\nName: dir\nVersion: 1.0\n")
    (unzipped / "entry_points.txt").write_text("[medsegpy]\ndir = dir_module\n")
    zipped = tmp_path / "zipped-3.0-py3.11.egg"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("EGG-INFO/PKG-INFO", "Metadata-Version: 1.1\nName: zipped\nVersion: 3.0\n")
        archive.writestr("EGG-INFO/entry_points.txt", "[medsegpy]\nzipped = zipped_module\n")
    wheel = tmp_path / "w-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("w-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: w\nVersion: 1.0\n")
        archive.writestr("w-1.0.dist-info/entry_points.txt", "[medsegpy]\nw = w_module\n")
    not_zip = tmp_path / "note.txt"
    not_zip.write_text("no archive")
    path = [str(p) for p in (site.folder, tmp_path / "absent", unzipped.parent, zipped, wheel, not_zip)]
    found = find_entry_points(path)
    assert sorted(found) == reference(path)
    assert {e.name for e in found} == {"knee", "a", "b", "dotted", "old", "dir", "zipped", "w"}
    assert EntryPoint("knee", "fake_medsegpy_knee_knee", "medsegpy-knee", "2.1") in found


def test_the_first_on_the_path_wins_even_with_nothing_to_offer(site, tmp_path):
    other = type(site)(tmp_path / "other")
    site.add("knee", version="1.0", entry_points="[unrelated]\na = b\n")
    other.add("knee", version="2.0")
    other.add("hip")
    path = [str(site.folder), str(other.folder)]
    assert [e.name for e in find_entry_points(path)] == ["hip"]
    assert sorted(find_entry_points(path)) == reference(path)
    assert {e.name for e in find_entry_points(path[::-1])} == {"hip", "knee"}


STATES = ("complete", "empty", "without METADATA", "without entry points")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(
    folders=st.lists(
        st.tuples(st.sampled_from(["knee", "hip"]), st.integers(1, 3), st.booleans(), st.sampled_from(STATES)),
        unique_by=lambda folder: folder[:3],
        max_size=7,
    )
)
def test_incomplete_folders_of_an_upgrade_hide_nothing(site, tmp_path_factory, monkeypatch, folders):
    sites = [type(site)(tmp_path_factory.mktemp("site")) for _ in range(2)]
    for plugin, version, second, state in folders:
        chosen = sites[second]
        chosen.add(plugin, None, version=f"{version}.0", module=f"{plugin}_of_{version}_{second}")
        info = chosen.folder / f"medsegpy_{plugin}-{version}.0.dist-info"
        if state in ("empty", "without METADATA"):
            (info / "METADATA").unlink()
        if state in ("empty", "without entry points"):
            (info / "entry_points.txt").unlink()
    importlib.invalidate_caches()
    path = [str(s.folder) for s in sites]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", path)
        expected = {(e.name, e.value) for e in importlib_metadata.entry_points(group="medsegpy")}
        assert {(e.name, e.value) for e in find_entry_points()} == expected
        assert {(e.name, e.value) for e in find_entry_points(path)} == expected


def test_a_plugin_after_an_empty_folder_is_installed(site):
    site.add("knee", version="2.0")
    for version in ("1.0", "3.0", "4.0", "0.5"):  # some of them are listed first
        (site.folder / f"medsegpy_knee-{version}.dist-info").mkdir()
    for version in ("4.0", "0.5"):
        (site.folder / f"medsegpy_knee-{version}.dist-info" / "METADATA").touch()
    done = site.run(
        "import sys\n"
        "from medsegpy_core.plugins.discovery import installed\n"
        "print([(e.name, e.version) for e in installed() if e.name == 'knee'], installed() is installed())"
    )
    assert done.stdout.strip() == "[('knee', '2.0')] True", done.stderr


def test_folders_need_no_import_of_importlib_metadata(site):
    for name, version in itertools.product("abc", ("1.0", "2.0")):
        site.add(name, version=version)
    done = site.run("import sys, medsegpy_core; print([m for m in sys.modules if m.startswith('importlib_metadata')])")
    assert done.stdout.strip() == "[]", done.stderr


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_a_broken_file_never_raises(site, content):
    site.add("good")
    site.add("bad", entry_points="")
    (site.folder / "medsegpy_bad-1.0.dist-info" / "entry_points.txt").write_bytes(b"[medsegpy]\n" + content)
    found = find_entry_points([str(site.folder)])
    assert "good" in {e.name for e in found}


LINES = [
    "[medsegpy]",
    "[other]",
    " [medsegpy] ",
    "[[medsegpy]]",
    "a=b",
    "  c  =  d.e:f [x] ",
    "# g = h",
    "",
    "i = ",
    "j=k=l",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=8))
def test_a_file_is_read_as_importlib_metadata_reads_it(site, lines):
    site.add("x", entry_points="\n".join(lines))
    path = [str(site.folder)]
    assert sorted(find_entry_points(path)) == sorted(set(reference(path)))


def test_unusual_folders(site):
    (site.folder / "only-2.0.dist-info").mkdir()
    (site.folder / "only-2.0.dist-info" / "entry_points.txt").write_text("[medsegpy]\nx = y\nno module\n")
    (site.folder / "file.egg-info").write_text("Name: file\n")
    (site.folder / "loop.dist-info").mkdir()
    (site.folder / "loop.dist-info" / "entry_points.txt").mkdir()
    found = find_entry_points([str(site.folder)])
    assert found == (EntryPoint("x", "y", "only", "2.0"), EntryPoint("no module", "", "only", "2.0"))


def test_other_kinds_of_finders_are_called(monkeypatch, site):
    site.add("knee")
    info = site.folder / "medsegpy_knee-1.0.dist-info"

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return None

        def find_distributions(self, context=None):
            return [SimpleNamespace(metadata=None), importlib.metadata.PathDistribution(info)]

    class Broken(Finder):
        def find_distributions(self, context=None):
            raise RuntimeError("broken")

    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(site.folder)])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Broken(), Finder()])
    assert "knee" in {e.name for e in find_entry_points()}


def test_installed_sees_what_is_added_later(site):
    before = installed()
    assert installed() is before
    site.add("later")
    assert {e.name for e in installed()} - {e.name for e in before} == {"later"}


@pytest.mark.parametrize("name", ["a-b", "A_b", "a.B", "a-_.b"])
def test_normalized_names(name):
    assert discovery.normalize_distribution(name) == "a_b"
