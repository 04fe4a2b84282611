"""What the validations measured, as docs/validation.json records it."""

import json
import re
import shutil
import subprocess
from datetime import date

import pytest
from test_docs import DOCS, ROOT, text_of


def test_validation_is_whole(monkeypatch):
    """Every validation has a group of rows, and every row what the page shows of it. Numbers and verdicts agree."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    groups = json.loads(text_of(DOCS / "validation.json"))
    source = text_of(ROOT / "scripts" / "validate.py")
    names = re.findall(r'^    "(\w+)": \w+,$', source[source.index("VALIDATIONS") :], re.MULTILINE)
    listed = [name for group in groups for name in group["validations"]]
    assert sorted(listed) == sorted(names)
    for row in (row for group in groups for row in group["rows"]):
        assert {"case", "quantity", "target", "measured", "met", "date", "commit", "machine"} == row.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and re.fullmatch(r"[0-9a-f]{7}\+?", row["commit"])
        ratio = reference.ratio_of(row["target"], row["measured"])
        assert ratio is None or row["met"] == (ratio <= 1), row


@pytest.mark.parametrize(
    ("target", "measured", "ratio"),
    [
        ("≤ 3 %", "2.6, 1.6, 2.9 %", 2.9 / 3),
        ("≤ 0.02, 0.01 (half of another's)", "0.005 (0.004), 0.006 (0.001)", 0.6),
        ("−0.15 within 2 %", "−0.153 ± 0.001 (+2 %)", 1.0),
        ("within 1 % of the grid solver's", "−1.14 ± 0.20 %", 1.14),
        ("1 ± 0.15", "0.94", 0.4),
        ("≥ 30", "60", 0.5),
        ("≥ −0.002", "−0.001", 0.5),
        ("< 1e-12", "5e-14", 0.05),
        ("round-off", "1e-16", None),
    ],
)
def test_the_summary_of_validations_compares_errors_with_what_is_allowed(target, measured, ratio, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    assert reference.ratio_of(target, measured) == (None if ratio is None else pytest.approx(ratio))


def test_what_a_validation_measures_takes_the_place_of_what_stands_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import records

    path = tmp_path / "validation.json"
    path.write_text(text_of(DOCS / "validation.json"))
    before = json.loads(path.read_text())
    (old,) = (
        row for group in before for row in group["rows"] if row["case"] == "driven_wave" and row["measured"] == "0.0012"
    )
    rows = [("driven", records.Record(old["case"], old["quantity"], "≤ 0.02", "0.5", False))]
    rows.append(("driven", records.Record("another", "quantity", "–", "1", True)))
    today = date.today().isoformat()
    records.write(rows, path)
    (group,) = (group for group in json.loads(path.read_text()) if "driven" in group["validations"])
    (new,) = (row for row in group["rows"] if (row["case"], row["quantity"]) == (old["case"], old["quantity"]))
    assert new["measured"] == "0.5" and new["met"] is False and today <= new["date"] <= date.today().isoformat()
    assert group["rows"][-1]["case"] == "another"
    assert sum(len(one["rows"]) for one in before) + 1 == sum(len(one["rows"]) for one in json.loads(path.read_text()))


def test_what_cannot_be_recorded_is_refused_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import records
    import validate

    monkeypatch.setattr(records, "_commit", lambda: "abcdef0")
    assert not records.refusal(validate.VALIDATIONS)
    monkeypatch.setitem(validate.VALIDATIONS, "new_one", lambda runs: pytest.fail("it has been run"))
    monkeypatch.setattr("sys.argv", ["validate.py", "new_one", "--record", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        validate.main()
    assert "--record: new_one: in no group of validation.json" in capsys.readouterr().err
    monkeypatch.setattr(records, "_commit", lambda: "")
    assert "run it in a git checkout" in records.refusal(["driven"])


@pytest.mark.skipif(shutil.which("git") is None, reason="without git")
def test_a_measured_commit_is_marked_if_the_code_is_not_as_committed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import records

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records._commit(tmp_path / "docs") == ""
    git("init", "-q")
    for name in ("code.py", "docs/validation.json"):
        (tmp_path / name).write_text("1")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    head = git("rev-parse", "HEAD")[:7]
    (tmp_path / "docs" / "validation.json").write_text("2")  # as a validation before leaves it
    assert records._commit(tmp_path / "docs") == head
    (tmp_path / "code.py").write_text("2")
    assert records._commit(tmp_path / "docs") == f"{head}+"
