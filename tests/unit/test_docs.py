"""The pages of the documentation: links, sentences, and what the code names."""

import re
from pathlib import Path

import pytest

from hpc_kjko.cli.main import VERBS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


# -- links -----------------------------------------------------------------------------------------------------------


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")) or not re.search(r"[./#]", target):  # p(x)-like is no link
            continue
        path, _, place = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if place:
            assert place in {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text_of(found), re.MULTILINE)}, (
                target
            )
    for path in re.findall(r"`((?:docs|scripts|jobs|hpc_kjko|tests)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_reached_from_the_readme():
    """Along links, as a reader of the files would go."""
    reached, ahead = set(), [PAGES[0]]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#:]+\.md)(?:#[^)\s]*)?\)", text_of(page))
        ahead += [(page.parent / target).resolve() for target in targets]
    listed = {page for page in PAGES if page.parent.name in ("benchmarks", "decisions")}
    assert set(PAGES) - reached <= listed


def test_the_demo_installs_what_the_first_pages_use():
    (extras,) = re.findall(r'environment.sh "\$venv" ([\w,]+)', text_of(ROOT / "scripts" / "demo.sh"))
    for page in (ROOT / "README.md", DOCS / "tutorials" / "two_stream.md"):
        named = re.findall(r"pip install[^\n]*\[([\w,]+)\]", text_of(page))
        assert {extra for names in named for extra in names.split(",")} <= set(extras.split(","))
    for path in ("README.md", "scripts/environment.sh"):  # how to do the same by hand
        assert f"bash scripts/environment.sh .venv {extras}" in text_of(ROOT / path)


def test_the_readme_reaches_a_run_in_few_lines():
    text = text_of(ROOT / "README.md")
    assert len(text[: text.index("bash scripts/demo.sh")].splitlines()) <= 12


#: Pages of which every sentence has been read for its length.
PLAIN = [page for page in PAGES if not re.search(r"benchmarks/2|research", name_of(page))]


@pytest.mark.parametrize("page", PLAIN, ids=name_of)
def test_sentences_are_short(page):
    """No more than thirty words; formulas, code, tables and the names in references aside."""
    text = re.sub(r"```.*?```|<!-- generated.*?<!-- end -->", "", text_of(page), flags=re.DOTALL)
    text = re.sub(r"^\s*(\|.*|#.*|\d+\. .*doi.*|:::.*|\d+\. .*arXiv.*)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|\$[^$]*\$", "x", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[*]|\d+\.) ", text):
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split())):
            assert len(sentence.split()) <= 30, sentence


# -- pages that the code names ---------------------------------------------------------------------------------------

SOURCES = [
    path
    for folder in ("hpc_kjko", "scripts", "jobs", "tests")
    for path in (ROOT / folder).rglob("*.*")
    if path.suffix in (".py", ".sh", ".sbatch", ".toml", ".txt", ".hpp", ".cpp", ".html")
    and path.name != "test_docs.py"
]


def test_pages_that_the_code_names_are_there():
    named = {
        (path, page) for path in SOURCES for page in re.findall(r"docs/[\w/.-]+\.(?:md|png|json)\b", text_of(path))
    }
    assert {(path.name, page) for path, page in named if not (ROOT / page).is_file()} == set()
    assert len(named) > 15


def test_the_pages_of_verbs_are_there():
    assert all((DOCS / verb.page).is_file() for verb in VERBS.values())
