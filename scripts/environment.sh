#!/usr/bin/env bash
# Creates a virtual environment and installs this checkout with its tested dependencies (constraints.txt).
#
#     bash scripts/environment.sh VENV_DIR EXTRAS [editable]
#
# EXTRAS is a list such as mpi,plot,test. With `editable` the environment uses the checkout itself. If nothing has
# changed, the script ends quickly. Environment variables: PYTHON is the interpreter (default: python3); for KJKO_NATIVE
# see setup.py. The CPU build of torch is preferred, unless there is an NVIDIA GPU or the extras contain cuda.
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ] || { [ $# -eq 3 ] && [ "$3" != editable ]; }; then
    echo "usage: bash scripts/environment.sh VENV_DIR EXTRAS [editable], for example" >&2
    echo "    bash scripts/environment.sh .venv mpi,plot,analysis" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $1 in /*) venv=$1 ;; *) venv=$PWD/$1 ;; esac
extras=$2
mode=${3:-normal}
base=${PYTHON:-python3}
cd "$root"

advise() {
    echo "environment: $*" >&2
    exit 2
}

# stage TEXT COMMAND...: prints one line, and the output of the command only if it fails
stage() {
    local text=$1 start=$SECONDS
    shift
    printf 'environment: %s ...' "$text"
    if "$@" >"$venv/install.log" 2>&1; then
        echo " $((SECONDS - start)) s"
    else
        echo " failed"
        tail -n 40 "$venv/install.log" >&2
        echo "environment: $text failed; all of its output is in $venv/install.log" >&2
        exit 1
    fi
}

command -v "$base" >/dev/null ||
    advise "there is no '$base': install Python 3.10 or newer, or set PYTHON to one."
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    advise "'$base' is older than Python 3.10: set PYTHON to a newer one, e.g. PYTHON=python3.11."
"$base" -c 'import venv, ensurepip' 2>/dev/null ||
    advise "'$base' cannot make virtual environments: install its venv module (Debian: apt install python3-venv)."

# run as a stage: if the package index has no CPU build, this installs the default build, which is a large download
cpu_torch() {
    "${pip[@]}" "torch==$torch+cpu" && return
    grep -qE "No matching distribution found for torch|Cannot install torch==" "$venv/install.log" &&
        "${pip[@]}" "torch==$torch"
}

# --- check whether there is anything to do ---------------------------------------------------------------------------
# The stamp file records what is installed. An editable install of the same files can take the place of a normal one.
python=$venv/bin/python
stamp=$venv/kjko-stamp.json
state() {
    "$base" - "$1" "$root" "$venv" "$mode" "$extras" <<'PYTHON'
import hashlib, json, os, shutil, subprocess, sys
from pathlib import Path

action, root, venv, mode, extras = sys.argv[1:]
stamp = Path(venv, "kjko-stamp.json")
old = json.loads(stamp.read_text()) if stamp.is_file() else {"mode": None, "extras": []}
extras = set(extras.split(",")) - {""}
policy = os.environ.get("KJKO_NATIVE", "auto")


def sources(mode):
    """A digest of all that the installed package was made from."""
    files = [Path(root, name) for name in ("setup.py", "pyproject.toml", "constraints.txt", "CMakeLists.txt")]
    for pattern in ("kernels/*/*.[ch]pp",) if mode == "editable" else ("kernels/*/*.[ch]pp", "kernels/*/*.cu", "post/templates/*", "**/*.py"):
        files += sorted(Path(root, "hpc_kjko").glob(pattern))
    compiler = shutil.which((os.environ.get("CXX", "").split() or ["c++"])[0])
    digest = hashlib.sha256(f"{venv}\0{compiler}\0{policy == 'off'}".encode())
    for file in files:
        digest.update(f"\0{file}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def native():
    """What the environment says of the native module, empty if the package does not import."""
    command = [f"{venv}/bin/python", "-I", "-c", "import hpc_kjko.kernels as n; print(n.available())"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if action == "extras":  # those installed before stay
    print(",".join(sorted(extras.union(old["extras"]))))
elif action == "write":
    new = {"mode": mode, "extras": sorted(extras), "sources": sources(mode), "native": native()}
    stamp.write_text(json.dumps(new))
elif action == "check":  # succeeds when there is nothing to do
    enough = old["mode"] in (mode, "editable") and extras.issubset(old["extras"])
    same = enough and old["sources"] == sources(old["mode"]) and old["native"] == native() != ""
    sys.exit(not same or (policy == "require" and old["native"] != "True"))
PYTHON
}

if [ -x "$python" ] && state check; then
    echo "environment: $venv is up to date"
else
    # --- create it ---------------------------------------------------------------------------------------------------
    extras=$(state extras)
    if [ ! -e "$venv" ]; then
        mkdir -p "$venv"
        stage "virtual environment in $venv" "$base" -m venv "$venv"
    fi
    "$python" -m pip --version >/dev/null 2>&1 ||
        advise "$venv is not a working virtual environment: remove it and run this again."
    rm -f "$stamp"
    pip=("$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt)

    # torch first, to choose its build; later pip finds the requirement already satisfied
    torch=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' constraints.txt)
    has_torch='import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])'
    if ! "$python" -c "$has_torch" "$torch" 2>/dev/null; then
        if [[ $(nvidia-smi -L 2>/dev/null) == *GPU* || $extras == *cuda* ]]; then
            stage "torch $torch" "${pip[@]}" "torch==$torch"
        else
            stage "torch $torch, the CPU build where there is one" cpu_torch
        fi
    fi

    what=hpc_kjko${extras:+[$extras]} path=.${extras:+[$extras]}
    if [ "$mode" = editable ]; then
        stage "$what, editable" "${pip[@]}" -e "$path"
    else
        stage "$what" "${pip[@]}" "$path"
    fi
    state write
fi
installed='import importlib.metadata as m, hpc_kjko.kernels as n; print("torch", m.version("torch") + ",", n.describe())'
installed=$("$python" -I -c "$installed")
echo "environment: $installed"
