#!/usr/bin/env python
"""Runs the examples of the gallery, and writes a page for each: its text, its figure and its code.

    python scripts/make_gallery.py [NAME ...] [--quick] [--out FOLDER]

An example is a file in scripts/gallery/. Its docstring is the text. Its function `example(folder, quick)` makes the
runs in a folder, and returns the figure and the numbers that the text has in braces. All examples at full size take a
quarter of an hour on one core. --quick is a small size for tests. FOLDER is docs/gallery by default.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from hpc_kjko.post.panels import with_minus

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "gallery"
#: The order in the index: the examples of the paper come first.
PAPER = ["gaussian", "confined", "periodic", "confined_3d", "two_stream", "two_stream_1d3v", "landau_damping"]
BEYOND = ["bump_on_tail", "buneman", "bernstein", "driven_wave", "coulomb", "dougherty"]
INTRODUCTION = """# Gallery

Each page shows one example: the question, a figure, the numbers, and the Python program that made them. The first
examples are experiments of [the paper](../howto/reproduce_the_paper.md), whose scheme this package implements. The
tests run every example at a small size. To run one yourself, start at the top of the repository:

```sh
python scripts/make_gallery.py two_stream --quick --out my_gallery
```
"""


def example_of(name: str) -> ModuleType:
    """The module of an example."""
    if str(ROOT / "scripts") not in sys.path:
        sys.path.insert(0, str(ROOT / "scripts"))
    return importlib.import_module(f"gallery.{name}")


def text_of(name: str) -> str:
    """The docstring of an example. Its numbers are still names in braces."""
    return (example_of(name).__doc__ or "").strip()


class _Shown(float):
    """A number that a page shows with a true minus sign."""

    def __format__(self, how: str) -> str:
        return with_minus(super().__format__(how))


def page_of(name: str, numbers: dict[str, float]) -> str:
    """The page of an example with the numbers that it returned."""
    title, text = text_of(name).split("\n", 1)
    shown = {key: _Shown(value) for key, value in numbers.items()}
    code = (ROOT / "scripts" / "gallery" / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)[2].strip()
    return (
        f"# {title}\n{text.format(**shown)}\n\n![{title}]({name}.png)\n\n"
        f"Made by `python scripts/make_gallery.py {name}` in {numbers['seconds']:.0f} seconds on one core.\n\n"
        f"```python\n{code}\n```\n"
    )


def index_of(names: list[str]) -> str:
    """A row for each example: its small figure, its title and the first sentence of its text. (The style sheet of the
    site gives figures that are links in a table the same size.)"""
    rows = ["| figure | example |", "| --- | --- |"]
    for name in names:
        title, text = text_of(name).split("\n", 1)
        first = re.split(r"(?<=[.?])\s", " ".join(text.split()), maxsplit=1)[0]
        rows.append(f"| [![{title}]({name}.png)]({name}.md) | **[{title}]({name}.md)**<br>{first} |")
    return "\n".join(rows) + "\n"


def index(made_already: Collection[str]) -> str:
    """The index page of all examples that have been made, in two parts. An empty part is left out."""
    parts = [INTRODUCTION]
    for title, names in {"The paper's experiments": PAPER, "Beyond the paper": BEYOND}.items():
        if some := [name for name in names if name in made_already]:
            parts.append(f"## {title}\n\n{index_of(some)}")
    return "\n".join(parts)


def made(name: str, out: Path, quick: bool) -> dict[str, float]:
    """Run an example, write its figure, and return its numbers with the seconds that it took."""
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as runs:
        figure, numbers = example_of(name).example(Path(runs), quick)
        figure.savefig(out / f"{name}.png", dpi=100)
    return {**numbers, "seconds": time.process_time() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of examples (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small size, for tests")
    parser.add_argument("--out", type=Path, default=PAGES, metavar="FOLDER")
    options = parser.parse_args()
    every = PAPER + BEYOND
    if unknown := [name for name in options.names if name not in every]:
        parser.error(f"{', '.join(unknown)}: not in the gallery; it has {', '.join(every)}")
    options.out.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.INFO)
    kept = options.out / "numbers.json"
    numbers = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in options.names or every:
        numbers[name] = made(name, options.out, options.quick)
        (options.out / f"{name}.md").write_text(page_of(name, numbers[name]), encoding="utf-8")
        kept.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        print(options.out / f"{name}.md", flush=True)
    (options.out / "index.md").write_text(index(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
