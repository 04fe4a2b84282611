"""The site of docs/, built once with warnings as errors: every page is there, and none needs a network or a script."""

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. (Not with --quiet: then mkdocs does not count its warnings.)"""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def built(site, page):
    return (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")


class Loaded(HTMLParser):
    """What a page loads when it is opened, and where its links go."""

    def __init__(self):
        super().__init__()
        self.loaded, self.menu, self.depth = [], [], 0

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.depth += tag == "nav"
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and "canonical" not in given.get("rel", "") and given.get("href"):
            self.loaded.append(given["href"])
        if tag == "a" and self.depth and given.get("href"):
            self.menu.append(given["href"])

    def handle_endtag(self, tag):
        self.depth -= tag == "nav"


def test_every_page_is_in_the_menu(site):
    """The menu shows the tabs, and all pages of the tab that is open: a tab is a folder, or a page at the top."""
    tops = {page for page in PAGES if page.parent == DOCS}
    for folder in sorted({DOCS / page.relative_to(DOCS).parts[0] for page in set(PAGES) - tops}):
        mine = {page for page in PAGES if page.is_relative_to(folder)}
        opened = min(page for page in mine if page.name != "index.md" and page.parent == folder)
        parser = Loaded()
        parser.feed(built(site, opened))
        at = site / folder.relative_to(DOCS)
        menu = {(at / link.partition("#")[0]).resolve() for link in parser.menu if "://" not in link}
        wanted = {page: (site / page.relative_to(DOCS)).with_suffix(".html").resolve() for page in tops | mine}
        assert not [page for page, target in wanted.items() if target not in menu], folder
        assert all(target.is_file() for target in wanted.values())


def test_the_menu_of_a_folder_has_the_order_of_its_index(site):
    index = DOCS / "gallery" / "index.md"
    parser = Loaded()
    parser.feed(built(site, index))
    wanted = list(dict.fromkeys(re.findall(r"\((\w+)\.md\)", index.read_text(encoding="utf-8"))))
    assert [link for link in dict.fromkeys(parser.menu) if link[:-5] in wanted] == [f"{name}.html" for name in wanted]


def test_no_page_loads_anything_from_elsewhere(site):
    for page in PAGES:
        parser = Loaded()
        parser.feed(built(site, page))
        assert len(parser.loaded) > 5
        for target in parser.loaded:
            assert not re.match(r"(https?:)?//", target), (page, target)
            assert ((site / page.relative_to(DOCS)).parent / target.partition("?")[0]).exists(), (page, target)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_formulas_have_become_mathml(site):
    """As many as there are in the sources, none of them with an error in it, and nothing of LaTeX is left."""
    for page in PAGES:
        source = page.read_text(encoding="utf-8")
        blocks = len(re.findall(r"^```math$", source, re.MULTILINE))
        text = built(site, page)
        assert text.count('display="block"') == blocks, page
        if page.parent.name == "explanation" and page.name not in ("kernels.md", "architecture.md", "index.md"):
            inline = re.sub(r"```.*?```|`[^`]*`", "", source, flags=re.DOTALL).count("$") // 2
            assert text.count('display="inline"') == inline, page
        assert "merror" not in text and not re.search(r'class="arithmatex">\\[(\[]', text), page
        assert not re.search(r"<m[ion]>\\", text), page


def test_a_formula_is_what_its_latex_says(site):
    text = html.unescape(built(site, DOCS / "explanation" / "method.md"))
    (formula,) = (one for one in re.findall(r"<math.*?</math>", text) if ">(1)<" in one or "(</mo><mn>1</mn>" in one)
    assert "<msub><mo>∂</mo><mi>t</mi></msub><mi>f</mi><mo>+</mo><mi>v</mi>" in formula and "<mi>κ</mi>" in formula


def test_python_is_documented_from_its_docstrings(site):
    text = html.unescape(built(site, DOCS / "reference" / "api.md"))
    assert "hpc_kjko.api.run<" not in text  # a heading is the name that a script imports
    for name in ("hpc_kjko.api.run", "hpc_kjko.post.opened.Run", "hpc_kjko.collisions.base.Collision"):
        assert f'id="{name}"' in text
    assert "the solver cannot continue. The folder has a checkpoint" in text
    assert not re.search(r":(class|func|meth|attr|mod):", text)


def test_symbols_in_plain_text_have_subscripts_and_superscripts(site, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from site_hooks import typeset

    assert typeset("√(T/m) = v_th, λ_D³, m_i/m_p") == (
        "√(T/m) = v<sub>th</sub>, λ<sub>D</sub>³, m<sub>i</sub>/m<sub>p</sub>"
    )
    assert typeset("t^{n+1}, e^(−κ (t − s))") == "t<sup>n+1</sup>, e<sup>−κ (t − s)</sup>"
    assert typeset("|z|^γ, x^2/2, N^−0.7, N^-1/2") == (
        "|z|<sup>γ</sup>, x<sup>2</sup>/2, N<sup>−0.7</sup>, N<sup>-1/2</sup>"
    )
    for same in ("two_stream of e5_weak", "<code>v_th</code>", "<pre><span>x^2</span> T_i</pre>", '<img alt="v_th">'):
        assert typeset(same) == same
    assert "v<sub>th</sub> = √(T/m), in m/s." in built(site, DOCS / "reference" / "api.md")


def test_cells_of_wide_tables_know_the_heading_of_their_column(site):
    """On narrow screens the style sheet shows rows as lists, where headings are out of sight."""
    row = re.search(r"<tr>\s*<td[^>]*><code>logdet<.*?</tr>", built(site, DOCS / "reference" / "method.md"), re.DOTALL)[
        0
    ]
    assert re.findall(r'<td data-label="([^"]*)"', row) == ["", "default: ", ""]
    log = built(site, DOCS / "research.md")
    assert 0 < log.count('data-label="change: "') == log.count('data-label="lesson: "')
    assert "data-label" not in built(site, DOCS / "reference" / "series.md")  # two columns fit


def test_the_search_knows_the_keys(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"] if "energy_conserving" in entry["text"]}
    assert "reference/particles_grid_time.html" in found
    assert (site / "search" / "search_index.js").is_file()  # for pages that are opened as files
