"""Pages of one HTML file, with figures in them that can be zoomed: neither server nor network is needed to look at one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from hpc_kjko import __version__
from hpc_kjko.errors import UserError
from hpc_kjko.files.storage import partial_name, writing
from hpc_kjko.post.interactive import html_of, packed

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


def anchor(name: str) -> str:
    """A name as the id of an element."""
    return re.sub(r"\W+", "-", name)


def _text(name: str) -> str:
    return resources.files("hpc_kjko.post").joinpath("templates", name).read_text(encoding="utf-8")
