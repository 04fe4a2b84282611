"""The gallery: every example at a small size against what its page claims, and the pages against their texts."""

import json
import re
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import make_gallery  # noqa: E402

#: Of each example, whether the numbers of a small run are what the page says of a large one.
CLAIMS = {
    "gaussian": lambda n: n["ratio"] > 1.1,
    "confined": lambda n: n["largest_rise"] < 0 and n["end"] < 0.7 * n["start"],
    "periodic": lambda n: n["end"] < 0.1 * n["start"],
    "confined_3d": lambda n: n["difference"] < 0.01 * n["start"],
    "two_stream": lambda n: n["error"] < 0.06 and not n["has_rate"],
    "two_stream_1d3v": lambda n: n["difference"] < 0.05,
    "landau_damping": lambda n: (
        n["free"] == pytest.approx(n["free_theory"], rel=0.08)
        and n["free_frequency"] == pytest.approx(n["free_frequency_theory"], rel=0.01)
        and n["damped"] < n["free"] - 0.03
    ),
    "bump_on_tail": lambda n: abs(n["rate"] - n["theory"]) < 3 * n["error"] < 0.15 * n["theory"],
    "buneman": lambda n: abs(n["rate"] - n["theory"]) < 3 * n["error"] < 0.3 * n["theory"],
    "bernstein": lambda n: abs(n["peak"] - n["theory"]) < n["resolution"],
    "driven_wave": lambda n: n["slope"] == pytest.approx(0.5, rel=0.15) and n["balance"] < 1e-6,
    "coulomb": lambda n: n["rate"] == pytest.approx(n["theory"], rel=0.05) and n["energy"] < 1e-12,
    "dougherty": lambda n: n["energy"] < 1e-12 and n["momentum"] < 1e-3 and n["entropy"] > 0,
}
EVERY = make_gallery.PAPER + make_gallery.BEYOND


@pytest.mark.parametrize("name", EVERY)
def test_an_example_shows_what_its_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    numbers = make_gallery.made(name, tmp_path, quick=True)
    assert CLAIMS[name](numbers), numbers
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_pages_are_those_of_the_examples():
    numbers = json.loads((make_gallery.PAGES / "numbers.json").read_text(encoding="utf-8"))
    assert set(numbers) == set(EVERY) == {path.stem for path in (SCRIPTS / "gallery").glob("*.py")}
    for name in EVERY:
        page = (make_gallery.PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page == make_gallery.page_of(name, numbers[name]), f"run: python scripts/make_gallery.py {name}"
    assert (make_gallery.PAGES / "index.md").read_text(encoding="utf-8") == make_gallery.index(EVERY)


def test_an_index_links_to_no_page_that_has_not_been_made():
    page = make_gallery.index(["two_stream", "confined"])
    assert set(re.findall(r"\((\w+)\.(?:md|png)\)", page)) == {"two_stream", "confined"}
    assert "Beyond the paper" not in page


@pytest.mark.parametrize("name", EVERY)
def test_the_committed_numbers_are_what_the_page_says(name):
    numbers = json.loads((make_gallery.PAGES / "numbers.json").read_text(encoding="utf-8"))
    assert CLAIMS[name](numbers[name])
