"""Imports go downward only: the picture in docs/architecture.md."""

import ast
from pathlib import Path

import pytest

import hpc_kjko

PACKAGE = Path(hpc_kjko.__file__).parent

#: From the ground up; a module may import from its own line and those above it.
LAYERS = [
    {"errors", "reference"},
    {"usercode", "casefile", "launcher", "binned", "operators", "walls"},
    {"schema", "quasirandom", "comm", "limits", "control", "potential", "integrators", "native"},
    {"problems"},
    {"particles"},
    {"species", "gyration"},
    {"exact"},
    {"objective"},
    {"mesh", "control_variate", "histograms", "drive"},
    {"species_section"},
    {"fields", "config", "solvers"},
    {"validity", "consistency"},
    {"collisions", "memory"},
    {"assembly"},
    {"diagnostics"},
    {"extensions"},
    {"storage", "series", "output", "checkpoint", "runfolder"},
    {"recorder", "analysis", "opened", "summary", "differences", "compare", "plotting"},
    {"simulation", "terminal", "report"},
    {"forecast"},
    {"driver", "watch", "sweep"},
    {"file_verbs", "run_verbs"},
    {"api", "cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
#: Figures read files, never the running simulation.
FILES_ONLY = {"errors", "casefile", "binned", "output", "runfolder", "series", "storage"}


def imported(path: Path) -> set[str]:
    """Names of the package's own modules that a file imports when it is imported (type checking aside)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in hidden for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hpc_kjko":
            parts = node.module.split(".")[1:]
            names |= {parts[0]} if parts else {alias.name for alias in node.names}
    return names - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    used = imported(path)
    if name == "__init__":
        assert used <= {"api"}  # and not before it is asked for: test_api.py
    elif name == "reference":
        assert used <= {"reference"}
    elif name == "plotting":
        assert used <= FILES_ONLY
    else:
        assert all(LEVEL[other] <= LEVEL[name] for other in used), used


def test_only_comm_speaks_mpi():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "comm.py" or "mpi4py" not in text.replace("mpi4py import first", ""), path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_from_a_file_is_executed(path):
    """No pickles, no evaluated text; code of the user's is imported by name, in usercode.py alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name for alias in node.names} | {getattr(node, "module", None)}
        elif isinstance(node, ast.Call):
            names.add(ast.unparse(node.func))
    assert not names & {"pickle", "marshal", "shelve", "eval", "exec", "compile", "torch.load", "np.load"}
    allowed = {"usercode.py", "native/__init__.py", "cli.py"}  # the others modules of the package, by fixed names
    assert "importlib.import_module" not in names or str(path.relative_to(PACKAGE)) in allowed
