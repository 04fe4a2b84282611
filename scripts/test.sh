#!/usr/bin/env bash
# Checks this checkout: ruff, then all tests. Arguments go to pytest.
#
#     bash scripts/test.sh [pytest arguments]
#
# Tests on several ranks are started by pytest itself (mpi-pytest). Environment variables: KJKO_VENV, the virtual
# environment to make or use (default .venv in the checkout); PYTHON, the interpreter to make it with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${KJKO_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$root"

# where there is a compiler, native code that does not build is an error, not a reason to skip its tests
if [ -x "$(command -v "${CXX:-c++}")" ]; then export KJKO_NATIVE="${KJKO_NATIVE:-require}"; fi
bash scripts/environment.sh "$venv" mpi,plot,test editable
. scripts/mpi_workstation.sh
export PATH="$venv/bin:$PATH" # mpi-pytest calls the first mpiexec on PATH

ruff check .
python -m pytest "$@"
