"""The report: what is on it, and that it works in a real browser, which loads nothing else."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from medsegpy_core import Config, MetadataCatalog
from medsegpy_core.drawing import PALETTE
from medsegpy_evaluation import SemSegEvaluator
from medsegpy_evaluation.metrics import METRICS
from medsegpy_evaluation.report import SCRIPT

SHAPE = (24, 22, 8)
NAMES = ["liver", "spleen", "left & right"]
CHOSEN = (12, 34, 56)
USED = ["DSC", "HD95", "RVD", "LesionF1", "BoundaryIoU"]
# Results of a script that a copy of the page carries: titles, the first column of a table, what a link leads to.
PROBE = """
<pre id="probe"></pre><script>
const result = {};
window.addEventListener("error", event => { result.error = event.message; });
document.addEventListener("securitypolicyviolation", event => { result.violation = event.blockedURI; });
window.addEventListener("load", () => {
  const tables = [...document.querySelectorAll("table.sortable")];
  const scans = tables.find(table => table.querySelector("tbody tr[id]"));
  const column = scans.tHead.textContent.includes("DSC")
    ? [...scans.tHead.rows[0].cells].findIndex(cell => cell.textContent === "DSC") : -1;
  const read = () => [...scans.tBodies[0].rows].map(row => row.cells[column].textContent);
  const button = scans.tHead.rows[0].cells[column].querySelector("button");
  result.before = read();
  button.click();
  result.up = read();
  result.sorted = scans.tHead.rows[0].cells[column].getAttribute("aria-sort");
  button.click();
  result.down = read();
  result.tables = tables.length;
  result.buttons = tables.every(t => [...t.tHead.rows[0].cells].every(cell => cell.querySelector("button")));
  const links = [...document.querySelectorAll("a")].map(a => a.getAttribute("href"));
  result.dead = links.filter(link => !link.startsWith("#") || !document.getElementById(link.slice(1)));
  const dot = document.querySelector("svg a");
  dot.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  setTimeout(() => {
    const target = document.querySelector(":target");
    result.target = target && target.textContent;
    result.title = dot.querySelector("title").textContent;
    result.color = getComputedStyle(document.querySelector("tbody .key")).backgroundColor;
    result.pictures = [...document.images].map(image => image.naturalWidth > 0);
    result.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
    document.getElementById("probe").textContent = JSON.stringify(result);
  }, 50);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    name, folder = "report_test", tmp_path_factory.mktemp("report")
    MetadataCatalog.get(name).set(
        category_ids=[0, 1, 2],
        categories=NAMES,
        category_colors=[CHOSEN, (200, 10, 20), (30, 180, 60)],
        category_id_to_contiguous_id={0: 0, 1: 1, 2: 2},
        evaluator_type="SemSegEvaluator",
        spacing=(1.0, 1.0, 3.0),
    )
    evaluator = SemSegEvaluator(name, Config(TEST_METRICS=USED), folder)
    for number in range(15):
        rng = np.random.default_rng(number)
        truth = np.zeros((*SHAPE, 3), np.uint8)
        for channel in range(3):
            low = rng.integers(2, 8, 2)
            truth[low[0] : low[0] + 9, low[1] : low[1] + 8, 2:6, channel] = 1
        pred = np.roll(truth, (number % 4, rng.integers(-2, 2)), (0, 1)).astype(np.float32)
        if number == 3:
            pred[..., 1] = 0
        image = rng.normal(size=SHAPE) + truth.sum(axis=-1)
        evaluator.process(
            [{"scan_id": f"{number:03d} <b>", "subject_id": number // 2, "x": image}],
            [{"y_true": truth, "y_pred": pred}],
        )
    document = evaluator.evaluate()
    MetadataCatalog.remove(name)
    return folder / "report.html", document


def test_categories_have_their_own_colors(page):
    text = page[0].read_text(encoding="utf-8")
    first, second = (f"background: rgb({', '.join(map(str, color))})" for color in (CHOSEN, (200, 10, 20)))
    assert f'<span class="key" style="{first}"></span>liver' in text
    assert f'<span class="key" style="{second}"></span>spleen' in text
    assert text.count(f'fill="rgb({", ".join(map(str, CHOSEN))})"') == len(USED)


def test_metrics_are_defined_on_the_page(page):
    text = page[0].read_text(encoding="utf-8")
    for metric in METRICS.values():
        assert (html.escape(metric.definition) in text) == (metric.name in USED), metric.name


def test_every_dot_leads_to_its_row(page):
    path, document = page
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    rows = dict(re.findall(r'<tr id="([^"]+)"(?: class="bad")?>(.*?)</tr>', text))
    assert len(rows) == 15 * 3
    dots = re.findall(r'<a href="#([^"]+)" tabindex="-1"><circle[^>]*><title>(.*?): ([^<]*)</title>', text)
    assert len(dots) == sum(row["value"] is not None for row in document["metrics"])
    for link, scan, value in dots:
        assert scan in rows[link]
        assert f">{value}</td>" in rows[link]
    figures = re.findall(r'<figure id="([^"]+)">', text)
    assert len(figures) == 12
    assert set(re.findall(r'<a href="#(picture-[^"]+)">', text)) == set(figures)


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("colors", [[CHOSEN], None])
def test_colors_are_there_without_pictures(tmp_path, pictures, colors):
    MetadataCatalog.get("report_colors").set(
        category_ids=[0], categories=["liver"], category_id_to_contiguous_id={0: 0}
    )
    if colors is not None:
        MetadataCatalog.get("report_colors").set(category_colors=colors)
    try:
        evaluator = SemSegEvaluator("report_colors", Config(TEST_METRICS=["DSC"]), tmp_path, pictures=pictures)
        truth = np.ones((4, 4, 2, 1), np.uint8)
        evaluator.process([{"scan_id": "s"}], [{"y_true": truth, "y_pred": truth}])
        evaluator.evaluate()
    finally:
        MetadataCatalog.remove("report_colors")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"rgb({', '.join(map(str, CHOSEN if colors else PALETTE[0]))})" in text
    assert ("data:image/png" in text) == pictures


def browser(tmp_path, page):
    """Open a page in Chromium; return what it holds after its scripts ran, and what the browser complains of."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    options = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=10000 --dump-dom"
    )
    command = [chromium, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, timeout=300)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), console


def test_in_a_browser(page, tmp_path):
    path, document = page
    # The page's own policy would not let the probe run: a copy takes it along beside the page's own script.
    text = path.read_text(encoding="utf-8").replace("script-src '", "script-src 'unsafe-inline' 'was-", 1)
    assert SCRIPT in text
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    shown, _ = browser(tmp_path, copy)
    result = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', shown)[1]))
    assert "error" not in result
    assert "violation" not in result
    values = [f"{row['value']:.4g}" for row in document["metrics"] if row["metric"] == "DSC"]
    assert result["before"] == values
    assert [float(value) for value in result["up"]] == sorted(map(float, values))
    assert [float(value) for value in result["down"]] == sorted(map(float, values), reverse=True)
    assert result["sorted"] == "ascending"
    assert result["tables"] == 4
    assert result["buttons"]
    assert result["dead"] == []
    scan, _, value = result["title"].partition(": ")
    assert result["target"].startswith(scan)
    assert value in result["target"]
    assert result["color"] == "rgb(12, 34, 56)"
    assert result["pictures"] == [True] * 12
    assert result["requests"] == []


def test_the_page_as_it_is_in_a_browser(page, tmp_path):
    """Its policy lets its script run, and the browser has nothing to complain of."""
    shown, console = browser(tmp_path, page[0])
    assert console == []
    assert '<button type="button">category</button>' in shown


def test_without_scripts_the_tables_stand(page, tmp_path):
    copy = tmp_path / "copy.html"
    copy.write_text(page[0].read_text(encoding="utf-8").replace(SCRIPT, ""), encoding="utf-8")
    shown, console = browser(tmp_path, copy)
    assert console == []
    assert "<button" not in shown
    assert shown.count('<tr id="scan-') == 15 * 3
