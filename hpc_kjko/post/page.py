"""HTML pages with figures that can be zoomed. Each page is one file, and needs neither a server nor a network."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from hpc_kjko import __version__
from hpc_kjko.errors import UserError
from hpc_kjko.files.storage import partial_name, writing
from hpc_kjko.post.differences import Difference
from hpc_kjko.post.interactive import figure, html_of, packed
from hpc_kjko.post.panels import Picture, with_minus

#: plotly.js from the npm package plotly.js-cartesian-dist-min (curves and images only), under the MIT licence.
_LIBRARY = "plotly-cartesian.min.js"


def require_folder(out: Path) -> None:
    """Check that a page can be written to this path, before the work begins.

    Raises:
        UserError: the folder does not exist, or the path is a folder.
    """
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}: create it first")
    if out.is_dir():
        raise UserError(f"cannot write {out}: it is a folder: give the name of a file, such as {out / 'report.html'}")


def write(template: str, out: Path, figures: Mapping[str, Any], content: Mapping[str, Any], **words: Any) -> Path:
    """Write a page atomically.

    Args:
        template: the name of the template in ``templates``.
        out: the file.
        figures: figures from :func:`interactive.figure`, by their names in the template.
        content: other data for the script of the page, as JSON.
        words: the values that the template shows.

    Returns:
        The file that was written.

    Raises:
        UserError: the page cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpc_kjko.post", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value: with_minus(f"{value:.5g}")
    environment.filters["small"] = lambda value: with_minus(f"{value:.2e}")
    environment.filters["minus"] = lambda value: with_minus(str(value))
    environment.filters["typeset"] = html_of
    page = environment.get_template(template).render(
        figures=figures,
        script=_text("page.js"),
        library=packed(_text(_LIBRARY)),
        content=packed({"figures": dict(figures), **content}),
        written=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        version=__version__,
        **words,
    )
    with writing(out):
        partial = partial_name(out)
        partial.write_text(page, encoding="utf-8", errors="replace")  # a folder name may have another encoding
        partial.replace(out)
    return out


def write_comparison(found: Sequence[Difference], picture: Picture, out: Path) -> Path:
    """Write the page of ``kjko compare``: a table of the differences, and figures.

    Raises:
        UserError: the page cannot be written.
    """
    require_folder(out)
    drawn = {
        f"{number}": figure([picture], number) | {"title": html_of(panel.title)}
        for number, panel in enumerate(picture.panels)
    }
    rows = [(panel.title, one) for panel, one in zip(picture.panels, found, strict=True)]
    return write("comparison.html", out, drawn, {}, title=picture.title, table=rows)


def anchor(name: str) -> str:
    """A name in a form that can be the id of an HTML element."""
    return re.sub(r"\W+", "-", name)


def _text(name: str) -> str:
    return resources.files("hpc_kjko.post").joinpath("templates", name).read_text(encoding="utf-8")
