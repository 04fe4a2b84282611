#!/usr/bin/env bash
# Installs SLURM from Debian or Ubuntu, for tests/faults/test_slurm.py, which starts a cluster on this machine alone.
#
#     bash scripts/install_slurm.sh        (as root; does nothing if it is installed)
set -euo pipefail
export PATH=$PATH:/usr/sbin

if command -v slurmctld slurmd sbatch munged >/dev/null && [[ $(ldconfig -p) == *"libpmix.so "* ]]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "SLURM is not installed, and installing it takes root and apt-get" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# libpmix-dev: SLURM's plugin opens libpmix.so by its development name
apt-get update -qq &&
    apt-get install -y -qq --no-install-recommends slurm-wlm slurm-wlm-basic-plugins munge libpmix-dev >/dev/null || {
    echo "apt-get could not install SLURM" >&2
    exit 1
}
