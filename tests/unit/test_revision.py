"""The git revision of the package, which every run and file names."""

import os
import re
import shutil
import subprocess

import pytest

from hpc_kjko.files.runfolder import git_revision


@pytest.mark.skipif(shutil.which("git") is None, reason="without git")
def test_the_git_revision_describes_the_code_that_runs(tmp_path, monkeypatch):
    """Not the documentation beside it, nor the folder and the environment of the command."""
    package, page = tmp_path / "checkout/package", tmp_path / "checkout/page.md"

    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=page.parent, check=True, capture_output=True)

    package.mkdir(parents=True)
    assert git_revision(package) == "no git checkout (installed package)"
    (package / "code.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "code")
    first = git_revision(package)
    assert re.fullmatch("[0-9a-f]{12}", first)
    page.write_text("changed")
    assert git_revision(package) == first
    git("add", ".")
    git("commit", "-m", "page")
    monkeypatch.setenv("GIT_DIR", os.devnull)
    monkeypatch.chdir(tmp_path)
    assert git_revision(package) == first
    monkeypatch.delenv("GIT_DIR")
    (package / "more.py").write_text("")
    assert git_revision(package) == f"{first}-dirty"
    git("add", ".")
    git("commit", "-m", "more")
    assert re.fullmatch("[0-9a-f]{12}", git_revision(package)) and git_revision(package) != first
    shutil.rmtree(page.parent / ".git")
    (page.parent / ".git").write_text("gitdir: nowhere")
    assert git_revision(package) == "git revision unknown"
