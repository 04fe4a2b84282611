#!/usr/bin/env bash
# Builds h5py for MPI. With it all ranks of a run write one file together (MPI-IO).
#
#     bash scripts/install_parallel_hdf5.sh VENV_DIR [TARGET_DIR]
#
# It replaces the h5py in VENV_DIR, where hpc_kjko must be installed. With TARGET_DIR it is installed there instead; use
# it with PYTHONPATH=TARGET_DIR. It needs a parallel HDF5. On a cluster load its module; set HDF5_DIR if the module does
# not, and CC if the MPI compiler is not called mpicc. On Debian and Ubuntu the script installs it if you are root. The
# script takes a minute or two, and ends quickly if there is nothing to do.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: bash scripts/install_parallel_hdf5.sh VENV_DIR [TARGET_DIR]" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(realpath -ms "$1")/bin/python
target=${2:+$(realpath -m "$2")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

advise() {
    echo "parallel HDF5: $*" >&2
    exit 1
}
quietly() {
    "$@" >"$work/log" 2>&1 && return
    tail -n 40 "$work/log" >&2
    advise "this failed: $*"
}

wanted=$(sed -n 's/^h5py==\([^ ;]*\).*/\1/p' "$root/constraints.txt")
is_there() {
    PYTHONPATH=$target "$python" -c "import h5py; assert h5py.__version__ == '$wanted' and h5py.get_config().mpi" 2>/dev/null
}
if is_there; then exit 0; fi

# the folder of the MPI library that mpi4py finds
library='from mpi4py import MPI; print(*{line.split()[-1] for line in open("/proc/self/maps") if "/libmpi." in line})'
library=$(dirname "$("$python" -c "$library" 2>/dev/null)") || advise "mpi4py does not work in $1: install hpc_kjko there first"

if [ -z "${HDF5_DIR:-}" ] && ! pkg-config --exists hdf5-openmpi 2>/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        advise "no parallel HDF5 here: load its module and set HDF5_DIR, or install libhdf5-openmpi-dev and libopenmpi-dev"
    fi
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update
    quietly apt-get install -y --no-install-recommends libhdf5-openmpi-dev libopenmpi-dev pkg-config
fi

pip=("$python" -m pip --disable-pip-version-check)
quietly "${pip[@]}" install --target "$work/tools" "setuptools>=77" wheel Cython pkgconfig
# /usr/bin comes first, because the mpicc of an MPI from a wheel does not know Debian's headers. LDFLAGS: h5py must load
# the MPI of mpi4py before HDF5 asks for that of the system. No cache: pip's key of a built package does not contain the
# MPI. No build isolation: it would build mpi4py again.
[ -n "${HDF5_DIR:-}" ] || export PATH="/usr/bin:$PATH"
HDF5_MPI=ON CC="${CC:-mpicc}" CFLAGS="${CFLAGS:--O1 -g0}" LDFLAGS="-Wl,-rpath,$library -Wl,--no-as-needed -lmpi" \
    PYTHONPATH="$work/tools" quietly "${pip[@]}" wheel --no-cache-dir --no-build-isolation --no-binary=h5py --no-deps \
    -w "$work" "h5py==$wanted"
if [ "$target" ]; then
    rm -rf "$target"
    quietly "${pip[@]}" install --no-deps --target "$target" "$work"/h5py-*.whl
else
    quietly "${pip[@]}" install --no-deps --force-reinstall "$work"/h5py-*.whl
fi
is_there || advise "the h5py that was built does not load, or has no MPI"
