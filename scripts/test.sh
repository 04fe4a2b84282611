#!/usr/bin/env bash
# Checks this checkout: ruff, then all tests. Arguments go to pytest.
#
#     bash scripts/test.sh [pytest arguments]
#
# Environment variables: KJKO_VENV, the virtual environment to make or use (default .venv in the checkout); PYTHON, the
# interpreter to make it with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${KJKO_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$root"

# where there is a compiler, native code that does not build is an error, not a reason to skip its tests
if [ -x "$(command -v "${CXX:-c++}")" ]; then export KJKO_NATIVE="${KJKO_NATIVE:-require}"; fi
bash scripts/environment.sh "$venv" mpi,plot,test editable
. scripts/mpi_workstation.sh
export PATH="$venv/bin:$PATH" # another MPI's mpirun would start copies of one rank

ruff check .
python -m pytest -m "not parallel or parallel[1]" "$@"

# One job per number of ranks runs all its tests (a job per test, as plain `pytest` starts them, takes minutes more).
# Rank 0 reports; what the others printed is shown if the job fails.
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export logs
for ranks in 2 3 4; do
    echo "tests on $ranks ranks"
    status=0
    mpirun -n "$ranks" bash -c '
        if [ "$OMPI_COMM_WORLD_RANK" != 0 ]; then exec >"$logs/rank$OMPI_COMM_WORLD_RANK" 2>&1; fi
        exec python -m pytest -p no:cacheprovider --timeout-method=thread "$@"' \
        pytest --color=no -m "parallel[$ranks]" "${@:-tests/parallel}" || status=$?
    if [ "$status" != 0 ] && [ "$status" != 5 ]; then # 5: the arguments select no test for this many ranks
        tail -n 60 "$logs"/rank*
        exit "$status"
    fi
done
