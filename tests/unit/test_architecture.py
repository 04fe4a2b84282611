"""Imports go downward only: the picture in docs/explanation/architecture.md."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hpc_kjko

PACKAGE = Path(hpc_kjko.__file__).parent

#: From the ground up; a module may import from its own folder and from those in the lines above it.
LAYERS = [
    {"errors", "reference"},
    {"usercode", "parallel", "casefile", "operators", "walls", "units", "kernels"},
    {"schema", "terminal"},
    {"problems"},
    {"particles"},
    {"species", "push"},
    {"fields"},
    {"files", "case"},
    {"inner"},
    {"collisions"},
    {"running"},
    {"post"},
    {"cli"},
    {"api"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
#: Figures read files, never the running simulation.
FIGURES = ("post.panels", "post.draw", "post.plotting", "post.figures")
FILES_ONLY = {"errors", "casefile", "files"}


def name_of(path: Path) -> str:
    """A module's name without that of the package; empty for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The package's own modules that a file imports, be it for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hpc_kjko":
            source = node.module.removeprefix("hpc_kjko").removeprefix(".")
            for alias in node.names:
                full = f"{source}.{alias.name}".removeprefix(".")
                found.add(full if full in MODULES else source)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("hpc_kjko.")]
            found |= {name.removeprefix("hpc_kjko.") for name in names}
    return found - {""}  # of the package itself: its version


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward(name):
    folder, used = name.split(".")[0], {other.split(".")[0] for other in imported(MODULES[name])}
    if not name:
        assert used <= {"api"}  # and not before it is asked for: test_api.py
    elif name.startswith(FIGURES):
        assert used <= FILES_ONLY | {"post"}
        others = {other for other in imported(MODULES[name]) if other.startswith("post.")} - {"post.rates"}
        assert all(other.startswith((*FIGURES, "post.summary")) for other in others), others
    else:
        assert all(LEVEL[other] <= LEVEL[folder] for other in used), used
    if folder == "reference":
        assert used <= {"reference"}


def test_no_modules_import_each_other():
    """Not even for types. A folder's own module, which gathers the others, counts as what it imports."""
    TopologicalSorter({name: imported(path) for name, path in MODULES.items() if name}).prepare()


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
    allowed = {"usercode.py", "kernels/__init__.py", "cli/main.py"}  # the others modules of the package, by fixed names
    assert "importlib.import_module" not in names or str(path.relative_to(PACKAGE)) in allowed
