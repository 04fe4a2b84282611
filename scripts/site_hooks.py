"""Hooks of MkDocs: formulas become MathML while the site is built, and the menu lists folders of pages.

So a page needs no script, no font and no network for its formulas, and a new file in docs/benchmarks/ is in the menu.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any, Literal

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

#: Names in docstrings, as Sphinx would link them.
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):<code>(?:~[\w.]+\.)?~?([\w.]+)</code>")


def on_config(config: Any) -> Any:
    """Entries ``folder/*`` of the menu stand for the pages of that folder, its index first, dated ones newest first."""
    config.nav = [_expanded(entry, Path(config.docs_dir)) for entry in config.nav]
    return config


def _expanded(entry: Any, docs: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, below),) = entry.items()
    if isinstance(below, str) and below.endswith("/*"):
        pages = sorted(path.relative_to(docs).as_posix() for path in (docs / below[:-2]).glob("*.md"))
        pages = [page for page in pages if not page.endswith("/index.md")]
        if re.search(r"/\d{4}-", "".join(pages)):
            pages.reverse()
        return {title: [f"{below[:-2]}/index.md", *pages]}
    return {title: [_expanded(part, docs) for part in below] if isinstance(below, list) else below}


def on_page_content(text: str, **_: Any) -> str:
    """The page with its LaTeX as MathML, and without roles of reStructuredText."""

    def rendered(found: re.Match[str]) -> str:
        return mathml(html.unescape(found[3]).strip(), display="block" if found[2] == "[" else "inline")

    text = _ROLE.sub(r"<code>\1</code>", text)
    return _FORMULA.sub(rendered, text)


def mathml(latex: str, display: Literal["inline", "block"]) -> str:
    """A formula as MathML, with the spaces that browsers need where they have no font for mathematics.

    A prime stands beside its letter, as it is raised already. Bars have no space around them, and names of functions
    have some.
    """
    made = convert(latex, display=display)
    made = re.sub(
        r"<msup>(<(m\w+)>(?:(?!</?msup>).)*?</\2>)<m[io]>&#x02032;</m[io]></msup>", r"<mrow>\1<mo>′</mo></mrow>", made
    )
    made = made.replace(
        '<mo stretchy="false">&#x0007C;</mo>', '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'
    )
    return re.sub(
        r"(<m[io][^>]*>(?:log|det|min|max)</m[io]>)", r'<mspace width="0.17em"/>\1<mspace width="0.17em"/>', made
    )
