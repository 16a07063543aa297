"""The cost of starting: importing, listing a folder, and the memory of registered dicts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["run"]

_SLICES = 200_000
_PLUGINS = 10
_ROOT = Path(__file__).parents[2]

_LISTING = """
import os, statistics, sys, time
from medsegpy_core import scan_directory
folder = sys.argv[1]
scan_directory(folder)
ratios = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    names = os.listdir(folder)
    bare = time.perf_counter() - began
    began = time.perf_counter()
    dicts = scan_directory(folder)
    ratios.append((time.perf_counter() - began) / bare)
assert len(dicts) == len(names) // 2, len(dicts)
print(statistics.median(ratios))
"""

_MEMORY = """
import gc, sys
import h5py, numpy
import medsegpy_core.loading
from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, build_loader, scan_directory
def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
DatasetCatalog.register("many", lambda: scan_directory(sys.argv[1]))
MetadataCatalog.get("many").set(category_ids=[0], categories=["a"])
before = resident()
loader = build_loader(Config(TRAIN_DATASET="many", SEED=0), "many", batch_size=16)
print((resident() - before) / 1e6)
"""


def run(rounds: int, only: Sequence[str] = ()) -> Iterator[str]:
    """Yield the table, as Markdown."""
    del only
    with tempfile.TemporaryDirectory(prefix="medsegpy-bench-") as folder:
        site, slices = Path(folder) / "site", Path(folder) / "slices"
        _make_plugins(site)
        _make_names(slices)
        rows = [
            ("`import medsegpy_core`, ten plugins installed / `import numpy`", "< 1", _import_ratio(site, rounds)),
            (
                f"`scan_directory` of {_SLICES:,} slices / `os.listdir`",
                "<= 5",
                _ask(_LISTING, str(slices), str(rounds)),
            ),
        ]
        if sys.platform == "linux":
            megabytes = _ask(_MEMORY, str(slices))
            rows.append((f"memory over the batches, {_SLICES:,} slices registered, MB", "< 300", megabytes))
        lines = ["### Startup", "", "| | target | measured |", "|---|--:|--:|"]
        yield "\n".join(lines + [f"| {what} | {target} | {found:.2f} |" for what, target, found in rows]) + "\n"


def _make_plugins(site: Path) -> None:
    site.mkdir()
    for number in range(_PLUGINS):
        (site / f"bench_plugin_{number}.py").write_text("raise RuntimeError('a plugin was imported')\n")
        info = site / f"bench_plugin_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bench-plugin-{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[medsegpy]\nbench{number} = bench_plugin_{number}\n")


def _make_names(folder: Path) -> None:
    """Create empty files, because listing only uses names."""
    folder.mkdir()
    for subject in range(_SLICES // 160):
        for number in range(1, 161):
            for suffix in ("im", "seg"):
                name = f"{subject:07d}_V00-Aug00_{number:03d}.{suffix}"
                os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))


def _import_ratio(site: Path, rounds: int) -> float:
    """Return the median ratio of two imports, each minus the time of an interpreter without imports."""
    path = os.pathsep.join([str(site), str(_ROOT)])
    ratios = []
    for _ in range(max(rounds, 9)):
        bare, numpy, ours = (_seconds(code, path) for code in ("pass", "import numpy", "import medsegpy_core"))
        ratios.append((ours - bare) / (numpy - bare))
    return statistics.median(ratios)


def _seconds(code: str, path: str) -> float:
    """Return the CPU time of an interpreter that does only this."""
    child = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True); t = os.times()"
    done = subprocess.run(
        [sys.executable, "-c", child + "; print(t.children_user + t.children_system)"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def _ask(code: str, *args: str) -> float:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return float(done.stdout)
