"""Hooks of MkDocs: they typeset formulas while the site is built, and list folders of pages in the menu.

So formulas need no script, no font and no network, and a new file in docs/benchmarks/ appears in the menu.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any, Literal

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

#: Names in docstrings with Sphinx roles.
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):<code>(?:~[\w.]+\.)?~?([\w.]+)</code>")
#: Tags, in whose contents nothing is typeset, and symbols such as v_th, dT_a or e^{-κ t} in plain text.
_VERBATIM = ("code", "pre", "math", "script", "style", "svg")
_SUBSCRIPT = re.compile(r"(?<![A-Za-z_])(He|d?[^\W\d_])_([A-Za-z0-9α-ω∞]{1,4})(?![A-Za-z0-9_])")
_SUPERSCRIPT = re.compile(
    r"\^(?:\{([^{}]*)\}|\(((?:[^()]|\([^()]*\))*)\)|([-−]\d+/\d+|[-−]?\d+(?:\.\d+)?|[-−]?\w\u0304?|∞))"
)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
#: Headings of columns that a list does not show.
_OBVIOUS = ("", "meaning", "Type", "Description")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_PRIME, _BAR, _SPACE = "<mo>′</mo>", '<mo stretchy="false">&#x0007C;</mo>', '<mspace width="0.17em"/>'


def on_config(config: Any) -> Any:
    """Replace entries ``folder/*`` of the menu by the pages of that folder: its index, then the others in the order in
    which the index names them; dated pages newest first."""
    config.nav = [_expanded(entry, Path(config.docs_dir)) for entry in config.nav]
    return config


def _expanded(entry: Any, docs: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, below),) = entry.items()
    if isinstance(below, str) and below.endswith("/*"):
        pages = [path for path in sorted((docs / below[:-2]).glob("*.md")) if path.name != "index.md"]
        if any(_DATE.match(path.name) for path in pages):
            pages.reverse()
        else:
            named = (docs / below[:-2] / "index.md").read_text(encoding="utf-8")
            pages.sort(key=lambda path: named.find(f"({path.name})") % (len(named) + 1))  # those without a name last
        return {title: [f"{below[:-2]}/index.md", *(_listed(path, docs) for path in pages)]}
    return {title: [_expanded(part, docs) for part in below] if isinstance(below, list) else below}


def _listed(page: Path, docs: Path) -> str | dict[str, str]:
    """The menu entry of a page of a folder. A dated page is shown by its date and title."""
    date, place = _DATE.match(page.name), page.relative_to(docs).as_posix()
    if not date:
        return place
    title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").replace("`", "")
    return {f"{date[0]}: {title}": place}


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Return the page unchanged. Dated pages and the research log get a lower rank in the search."""
    if _DATE.match(Path(page.file.src_path).name) or page.file.src_path == "research.md":
        page.meta["search"] = {"boost": 0.2}
    return text


def on_page_content(text: str, page: Any, **_: Any) -> str:
    """The page with its LaTeX as MathML, with subscripts and superscripts, and without roles of reStructuredText.

    Tables of the reference, of the validation and of the research log can be read as lists on narrow screens.
    """
    if page.file.src_path.startswith(("reference/", "validation.", "research.")):
        text = _TABLE.sub(_with_labels, text)

    def rendered(found: re.Match[str]) -> str:
        return mathml(html.unescape(found[3]).strip(), display="block" if found[2] == "[" else "inline")

    text = _ROLE.sub(r"<code>\1</code>", text)
    return typeset(_FORMULA.sub(rendered, text))


def _with_labels(table: re.Match[str]) -> str:
    """A table in which each cell knows the heading of its column, for the style sheet. Others stay as they are: those
    of two columns, and those within code."""
    heads = [re.sub(r"<[^>]*>", "", head).strip() for head in re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)]
    if len(heads) < 3:
        return table[0]
    labels = ["" if head in _OBVIOUS else html.escape(f"{head}: ") for head in [""] + heads[1:]]
    rows = re.split(r"(?=<tr\b)", table[0])
    for number, row in enumerate(rows):
        column = iter(labels)
        rows[number] = re.sub(r"<td\b", lambda _, column=column: f'<td data-label="{next(column)}"', row)
    return f'<div class="records">{"".join(rows)}</div>'


def typeset(page: str) -> str:
    """HTML with the symbols of its plain text typeset: v_th as v<sub>th</sub>, e^{-κ t} as e<sup>-κ t</sup>."""
    parts, within = re.split(r"(<[^>]*>)", page), 0
    for number, part in enumerate(parts):
        if tag := re.match(r"<(/?)(\w+)[^>]*?(/?)>", part):
            within += (tag[2] in _VERBATIM and not tag[3]) * (-1 if tag[1] else 1)
        elif not within:
            found = _SUBSCRIPT.sub(r"\1<sub>\2</sub>", part)
            parts[number] = _SUPERSCRIPT.sub(lambda one: f"<sup>{one[1] or one[2] or one[3]}</sup>", found)
    return "".join(parts)


def mathml(latex: str, display: Literal["inline", "block"]) -> str:
    """A formula as MathML.

    A prime is written beside its letter, because the character is already raised. Bars have no space around them, and
    names of functions have some.
    """
    made = convert(latex, display=display)
    made = re.sub(
        r"<msup>(<(m\w+)>(?:(?!</?msup>).)*?</\2>)<m[io]>&#x02032;</m[io]></msup>", rf"<mrow>\1{_PRIME}</mrow>", made
    )
    made = made.replace(_BAR, _BAR.replace("false", 'false" lspace="0" rspace="0'))
    made = re.sub(r"(<m[io][^>]*>(?:log|det|min|max)</m[io]>)", rf"{_SPACE}\1{_SPACE}", made)
    return made.replace(2 * _SPACE, _SPACE)
