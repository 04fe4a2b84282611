"""Pages of one HTML file each, with figures that can be zoomed. To look at one takes neither a server nor a network."""

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
from hpc_kjko.post.panels import Picture

#: plotly.js of the npm package plotly.js-cartesian-dist-min: its part for curves and images, under the MIT licence.
_LIBRARY = "plotly-cartesian.min.js"


def require_folder(out: Path) -> None:
    """Check that a page can be put there, before the work that it takes.

    Raises:
        UserError: there is no such folder, or it is no name of a file.
    """
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}: make it first")
    if out.is_dir():
        raise UserError(f"cannot write {out}: it is a folder: give the name of a file, such as {out / 'report.html'}")


def write(template: str, out: Path, figures: Mapping[str, Any], content: Mapping[str, Any], **words: Any) -> Path:
    """Write a page in one piece.

    Args:
        template: its name in ``templates``.
        figures: of :func:`interactive.figure`, by the names that the template shows them by.
        content: what else the page's own script reads, as JSON.
        words: what the template shows.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpc_kjko.post", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value: f"{value:.5g}"
    environment.filters["small"] = lambda value: f"{value:.2e}"
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
        partial.write_text(page, encoding="utf-8", errors="replace")  # the folder's name may be in another encoding
        partial.replace(out)
    return out


def write_comparison(found: Sequence[Difference], picture: Picture, out: Path) -> Path:
    """Write the page of ``kjko compare``: a table of the differences, and their figures.

    Raises:
        UserError: it cannot be written.
    """
    require_folder(out)
    drawn = {
        f"{number}": figure([picture], number) | {"title": html_of(panel.title)}
        for number, panel in enumerate(picture.panels)
    }
    rows = [(panel.title, one) for panel, one in zip(picture.panels, found, strict=True)]
    return write("comparison.html", out, drawn, {}, title=picture.title, table=rows)


def anchor(name: str) -> str:
    """A name as the id of an element."""
    return re.sub(r"\W+", "-", name)


def _text(name: str) -> str:
    return resources.files("hpc_kjko.post").joinpath("templates", name).read_text(encoding="utf-8")
