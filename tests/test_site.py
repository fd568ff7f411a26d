"""The documents as a site: built as `make docs` builds it, whole, and loading nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from browsers import BROWSER, needs_browser
from project_paths import ROOT

import introspection_lit
from introspection_lit.training.options import DataOptions

CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
OF_ROOT = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *OF_ROOT])


class AnyTag(yaml.SafeLoader):
    """Reads the configuration without running what it names."""


AnyTag.add_multi_constructor("tag:yaml.org,2002:python/", lambda *given: given[1])


class Loads(HTMLParser):
    """Collects what a page loads by itself, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Links of ``a`` are followed by readers alone; those of ``link`` are loaded, but for the canonical address."""
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        names = ("src", "srcset", "poster", "data") + (("href",) if tag in ("link", "use", "image") else ())
        self.loaded += [str(given[name]) for name in names if given.get(name)]
        self.loaded += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


def read(page: Path) -> Loads:
    """A built page."""
    parser = Loads()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with warnings as errors: links, headings, pages that no list has, references."""
    folder: Path = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG), "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_every_document_is_a_page(site: Path) -> None:
    """Those of the root and of docs, and the reference."""
    made = {path.stem for path in site.glob("*.html")}
    assert {page.stem for page in PAGES} - {"README"} <= made
    assert "index" in made


@pytest.mark.slow
def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    """By pages and by styles; a site is read where there is no network."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = read(page).loaded
        assert len(loaded) > 3
        others = [place for place in loaded if urlsplit(place).netloc or urlsplit(place).scheme not in ("", "data")]
        assert others == [], page
        for place in loaded:
            file = urlsplit(place).path
            assert not file or urlsplit(place).scheme or page.stem == "404" or (page.parent / file).exists(), (page, place)
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_reference_has_every_public_name_and_every_option(site: Path) -> None:
    """Each where a link or a search can lead."""
    names = read(site / "reference" / "python.html").ids
    assert [name for name in introspection_lit.__all__ if f"introspection_lit.{name}" not in names] == []
    options = read(site / "reference" / "options.html").ids
    assert [name for name in DataOptions.__dataclass_fields__ if f"--data{name}" not in options] == []
    assert {"--modelbasename_or_path", "--modellorar", "--modelmax_fpr", "--evidenceenabled"} <= options
    for page in ("python", "options"):
        text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
        assert not re.search(r":(class|func|meth|mod|attr):", text)


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_pasted_message_is_found_without_a_server(site: Path, tmp_path: Path) -> None:
    """The search of the site, read from the disk; what the page has loaded by then is its own."""
    message = "data.answers: 'extraordinarily' is 3 tokens after 'The answer is'. Expected a word of exactly one token"
    options = "--headless=new --no-sandbox --disable-gpu --dump-dom --virtual-time-budget=15000"
    address = f"{(site / 'index.html').as_uri()}?q={message.replace(' ', '+')}"
    command = [str(BROWSER), *options.split(), f"--user-data-dir={tmp_path}", address]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    parser = Loads()
    parser.feed(page)
    assert [place for place in parser.loaded if urlsplit(place).netloc] == []
    found = re.findall(r'<a href="([^"]+)" class="md-search-result__link"', page)
    first = [link for link in found[:8] if urlsplit(link).path.endswith("errors.html")]
    assert any("an-answer-is-several-tokens" in link for link in first), found


def test_every_document_is_in_the_list_of_pages() -> None:
    """As the build would say, but at once."""
    named = re.findall(r"[\w/-]+\.md", str(yaml.load(CONFIG.read_text(encoding="utf-8"), AnyTag)["nav"]))
    assert [page.name for page in PAGES if page.name not in named] == []
    assert len(named) == len(set(named))
