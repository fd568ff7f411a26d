"""The report in a browser: nothing wider than a telephone, no errors, pictures that decode."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from browsers import BROWSER, needs_browser
from project_paths import ROOT
from results_example import example, example_seeds

from introspection_lit import report

pytestmark = [
    pytest.mark.browser,
    needs_browser,
]

OLD = ROOT / "docs/results/quickstart/seed-0.json"
PAGES = ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in ("old", "compare"))]
# Measures a page from within, closed and with everything unfolded, and tells the page around it.
MEASURE = """<script>
addEventListener("load", () => {
  const box = e => e.getBoundingClientRect();
  const outside = () => [...document.querySelectorAll("body *")]
    .filter(e => !e.parentElement.closest(".scroll, pre") && box(e).right > innerWidth + 0.5)
    .map(e => e.tagName + "." + e.className + ": " + box(e).right);
  const wide = () => document.documentElement.scrollWidth;
  const closed = [wide(), outside()];
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  const letters = e => parseFloat(getComputedStyle(e).fontSize);
  const small = [...document.querySelectorAll("body *")].filter(e => letters(e) < 12).length;
  const shape = e => e.naturalHeight / e.naturalWidth;
  const images = [...document.images].map(e => [e.complete, e.naturalWidth, shape(e), box(e).width]);
  parent.postMessage(JSON.stringify({
    width: innerWidth, closed: closed, open: [wide(), outside()], images: images, small: small,
    scrolling: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
    tables: document.querySelectorAll("table").length,
    columns: getComputedStyle(document.querySelector(".page")).display,
  }), "*");
});
</script>"""
# The browser's own window is never narrower than 500 pixels; a frame is as narrow as it is told.
AROUND = """<!DOCTYPE html><body><iframe width="{width}" height="800" style="border:0" src="{page}"></iframe>
<pre id="out"></pre>
<script>addEventListener("message", e => {{ document.getElementById("out").textContent = e.data; }});</script></body>"""


def browse(page: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    """Open a page, wait for it, and get it back as the browser has it, with the console on stderr."""
    options = "--headless=new --no-sandbox --disable-gpu --dump-dom --virtual-time-budget=8000 --enable-logging=stderr"
    command = [str(BROWSER), *options.split(), f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A full report, one of an old run, and two runs side by side."""
    folder = tmp_path_factory.mktemp("runs")
    results = example(extra_kinds=4)
    # Long words are what makes pages wide.
    results |= {"base_model": "x" * 200, "commit": "y" * 100, "command": "z" * 300}
    results["evidence"]["kinds"][0]["kind"] = "k" * 80
    results["evidence"]["controls"][0] |= {"name": "n" * 60, "what": "w" * 120}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "seeds.json").write_text(json.dumps(example_seeds()), encoding="utf-8")
    (folder / "config.yaml").write_text("long: " + "v" * 300, encoding="utf-8")
    made = {"full": report.write_report(folder), "old": folder / "old.html", "compare": folder / "compare.html"}
    report.main(["--run", str(OLD), "--out", str(made["old"])])
    report.main(["--run", str(folder), "--run", str(OLD), "--run", str(folder), "--out", str(made["compare"])])
    return made


def measured(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """Measure a copy of a page that may run a script, in a frame."""
    text = page.read_text(encoding="utf-8")
    copied = re.sub(r"<meta http-equiv=.*?>", "", text, count=1).replace("</body>", f"{MEASURE}</body>")
    assert copied.count("<script>") == 1
    (folder / "copy.html").write_text(copied, encoding="utf-8")
    (folder / "around.html").write_text(AROUND.format(width=width, page="copy.html"), encoding="utf-8")
    seen = browse(folder / "around.html", folder / "profile").stdout
    found = re.search(r'<pre id="out">(.+?)</pre>', seen, re.DOTALL)
    assert found, seen[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.slow)])
def test_nothing_is_wider_than_the_screen(pages: dict[str, Path], name: str, width: int, tmp_path: Path) -> None:
    """Folded and unfolded; wide tables scroll inside their own boxes, and pictures decode."""
    found = measured(pages[name], width, tmp_path)
    assert found["width"] == width
    for state in ("closed", "open"):
        wide, outside = found[state]
        assert outside == [], state
        assert wide <= width, state
    assert found["small"] == 0
    assert found["tables"] > 0
    assert (found["columns"] == "grid") == (width == 1280)
    if width == 360:
        assert found["scrolling"] > 0
    if name != "old":
        assert len(found["images"]) >= 8
    for complete, pixels, shape, shown in found["images"]:
        assert complete
        assert pixels == 1000
        assert 0.4 < shape < 3
        assert 250 < shown < width


@pytest.mark.parametrize("name", PAGES)
def test_console_stays_empty(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The page as it is: no error, no refused request, nothing said."""
    console = [line for line in browse(pages[name], tmp_path / "profile").stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    broken = tmp_path / "broken.html"
    text = pages[name].read_text(encoding="utf-8")
    broken.write_text(text.replace("</body>", "<img src='http://127.0.0.1:9/x.png'></body>"), encoding="utf-8")
    console = [line for line in browse(broken, tmp_path / "profile").stderr.splitlines() if "CONSOLE" in line]
    assert console, "a request would be seen"
