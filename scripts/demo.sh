#!/usr/bin/env bash
# The demo: installs the package, runs the two-stream case on two MPI ranks, and draws its field energy.
#
#     bash scripts/demo.sh
#
# Environment variables: KJKO_VENV is the virtual environment to create or use (default: .venv in the checkout), and
# PYTHON is the interpreter to create it with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${KJKO_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$root"

bash scripts/environment.sh "$venv" mpi,plot,analysis # all that README.md and docs/tutorials/two_stream.md use
. scripts/mpi_workstation.sh
export PATH="$venv/bin:$PATH" # another MPI's mpirun would start two separate runs of one rank each

out=runs/two_stream
mpirun -n 2 kjko run jobs/two_stream.toml --out "$out" --force
kjko plot "$out"

figure=$out/figures/field_energy.png
[ -s "$figure" ] || { echo "demo: there is no figure $root/$figure" >&2; exit 1; }
echo "Run folder: $root/$out"
echo "Figure:     $root/$figure"
