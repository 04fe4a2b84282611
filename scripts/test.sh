#!/usr/bin/env bash
# Checks this checkout: ruff, mypy, then all tests. With arguments, which go to pytest, files through MPI-IO are not
# tested.
#
#     bash scripts/test.sh [pytest arguments]
#
# Environment variables: KJKO_VENV is the virtual environment to create or use (default: .venv in the checkout), and
# PYTHON is the interpreter to create it with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${KJKO_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$root"

# if there is a compiler, native code that does not build is an error, and not a reason to skip its tests
if [ -x "$(command -v "${CXX:-c++}")" ]; then export KJKO_NATIVE="${KJKO_NATIVE:-require}"; fi
export PYTHONDONTWRITEBYTECODE= # else each of some hundred processes compiles the package and its tests again
bash scripts/environment.sh "$venv" mpi,plot,docs,test editable
. scripts/mpi_workstation.sh
export PATH="$venv/bin:$PATH" # the mpirun of another MPI would start independent copies of one rank

ruff check .
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export logs KJKO_FOUND_BY_ONE_RANK=$logs/found_by_one_rank # see tests/parallel/test_reproducible.py
parallel_h5py=$venv-h5py-mpi

# For each number of ranks one job runs all tests. (Plain `pytest` starts one job per test, which takes minutes longer.)
# Rank 0 reports. The output of the other ranks is shown if the job fails.
on_ranks() { # RANKS [pytest arguments]
    local ranks=$1 status=0
    shift
    echo "tests on $ranks ranks${PYTHONPATH:+, files through MPI-IO}"
    mpirun -n "$ranks" bash -c '
        if [ "$OMPI_COMM_WORLD_RANK" != 0 ]; then exec >"$logs/rank$OMPI_COMM_WORLD_RANK" 2>&1; fi
        exec python -m pytest -p no:cacheprovider --timeout-method=thread "$@"' \
        pytest --color=no -m "parallel[$ranks]" "${@:-tests/parallel}" || status=$?
    if [ "$status" != 0 ] && [ "$status" != 5 ]; then # 5: the arguments select no test for this many ranks
        tail -n 60 "$logs"/rank*
        exit "$status"
    fi
}

if [ $# != 0 ]; then
    mypy
    python -m pytest -m "not parallel or parallel[1]" "$@"
    for ranks in 2 3 4; do on_ranks "$ranks" "$@"; done
    exit
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
physics_and_faults() { # except the paper's examples
    python -m pytest -p no:cacheprovider --color=no -m "not parallel or parallel[1]" tests/physics tests/faults \
        "${paper[@]/#/--ignore=}" --ignore=tests/faults/test_slurm.py
}
paper=(tests/physics/test_paper.py tests/physics/test_paper_figures.py)
mpi_io_and_paper() {
    after batch_jobs
    bash scripts/install_chromium.sh || true
    if bash scripts/install_parallel_hdf5.sh "$venv" "$parallel_h5py"; then
        export PYTHONPATH=$parallel_h5py
        for ranks in 2 3; do on_ranks "$ranks" tests/parallel/test_files_parallel.py; done
        python -m pytest -p no:cacheprovider --color=no -m "not parallel" tests/faults -k "in_the_middle_of_writing"
        unset PYTHONPATH
    else
        echo "tests: no h5py with MPI could be built here, so files through MPI-IO are not tested"
    fi
    python -m pytest -p no:cacheprovider --color=no -m "not parallel or parallel[1]" "${paper[@]}"
}
ranks() {
    after batch_jobs
    for ranks in 2 3 4; do on_ranks "$ranks"; done
    python -m pytest -p no:cacheprovider --color=no -m "not parallel or parallel[1]" tests/parallel
}
batch_jobs() { python -m pytest -p no:cacheprovider --color=no tests/faults/test_slurm.py; }
types() { mypy; }

# Streams share the cores. Most of their time, except in the physics, is waiting for processes. The SLURM jobs sleep most
# of the time but must start in time, so all other streams have a lower priority. That is not enough beside ranks, which
# start when SLURM has ended. (Otherwise both would also wait for the lock of apt-get.)
after() { until [ -e "$logs/$1.ended" ]; do sleep 0.2; done; }
set -m # each stream is its own process group, which this script ends at its end
streams=(batch_jobs types physics_and_faults mpi_io_and_paper ranks)
for stream in "${streams[@]}"; do
    (
        trap 'touch "$logs/$stream.ended"' EXIT
        "$stream"
    ) >"$logs/$stream" 2>&1 &
    if [ "$stream" = batch_jobs ]; then renice -n 5 -p $$ >/dev/null; fi # what is started from here on inherits it
done
trap 'kill -- $(jobs -p | sed "s/^/-/") 2>/dev/null; wait; rm -rf "$logs"' EXIT
status=0
python -m pytest -m "not parallel or parallel[1]" tests/unit || status=$?
for number in "${!streams[@]}"; do
    wait "%$((number + 1))" || status=$?
    cat "$logs/${streams[number]}"
done
trap 'rm -rf "$logs"' EXIT
exit "$status"
