"""Hooks of MkDocs: formulas become MathML while the site is built, and the menu lists folders of pages.

So a page needs no script, no font and no network for its formulas, and a new file in docs/benchmarks/ is in the menu.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


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
    """The page with its LaTeX as MathML."""

    def rendered(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return convert(html.unescape(found[3]).strip(), display=display)

    return _FORMULA.sub(rendered, text)
