# Functions of the batch scripts, which source this file (docs/howto/batch_jobs.md): start or continue a case, stop with
# a checkpoint before the time limit, and requeue the job.
#
# KJKO_LAUNCH is the command that starts the ranks, without "-n RANKS": srun (default), "srun --mpi=pmix", mpirun, ...
#
# On a file system without locks (see "kjko doctor"), set this before sbatch, which passes the environment on:
#     export HDF5_USE_FILE_LOCKING=FALSE

# start_or_continue RANKS CASE.toml DIR [options of kjko run]
#
# DIR is the run folder. If it has a checkpoint, the run continues with the case in the checkpoint. Otherwise the case
# starts from a copy in DIR/input. This folder also has the Python files beside the case and the script of this job.
start_or_continue() {
    if [ $# -lt 3 ]; then
        echo "usage: sbatch [sbatch options] jobs/NAME.sbatch CASE.toml DIR [kjko run options]" >&2
        exit 2
    fi
    local ranks=$1 case=$2 folder before verb
    folder=$(realpath -m "$3")
    shift 3
    local launch=(${KJKO_LAUNCH:-srun} -n "$ranks")
    [[ ${launch[0]} != srun ]] || launch+=(--kill-on-bad-exit=1) # if one rank dies, the others must not wait for it
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    # waiting threads may look for work longer, because the cores belong to the job
    [ -n "${OMP_WAIT_POLICY:-}" ] || export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-300000}

    mkdir -p "$folder/input"
    before=$(newest_checkpoint "$folder")
    if [ "$before" ]; then
        echo "job ${SLURM_JOB_ID}: continues $folder from $before, with the settings it has"
        verb=(restart "$folder")
    else
        if [ ! -f "$folder/input/${case##*/}" ]; then # otherwise an earlier start of this job has copied it
            cp "$0" "$folder/input/job.sbatch"
            find "$(dirname "$case")" -maxdepth 1 -name '*.py' -exec cp -t "$folder/input" {} +
            cp "$case" "$folder/input/" # last, because its presence means that all files are there
        fi
        # --force: overwrite what an earlier start of this job left if it ended before its first checkpoint
        verb=(run "$folder/input/${case##*/}" --out "$folder" "$@")
        [ ! -f "$folder/run.json" ] || verb+=(--force)
    fi
    cd "$folder/input" # the folder of the user's own Python files

    # SLURM sends its early signal only to this shell. The ranks get USR2 and not USR1, because NCCL may use USR1.
    local status again=yes requested=
    "${launch[@]}" kjko "${verb[@]}" &
    local step=$!
    trap 'again=yes requested=yes; kill -USR2 "$step"' USR1
    trap 'again=yes requested=' TERM # the job was cancelled: the ranks get this signal too, and it is not requeued
    while [ "$again" ]; do # a trapped signal interrupts the wait
        again='' status=0
        wait "$step" || status=$?
    done

    # 140: USR2 came before the ranks could handle it, for example because the whole time limit is within the 300 s
    if [ "$requested" ] && { [ "$status" = 75 ] || [ "$status" = 140 ]; }; then
        if [ "$(newest_checkpoint "$folder")" = "$before" ]; then
            echo "job ${SLURM_JOB_ID}: no step was done within the time limit, so it is not requeued: give it more time" >&2
        else
            scontrol requeue "$SLURM_JOB_ID" ||
                echo "job ${SLURM_JOB_ID}: cannot be requeued; the same sbatch command continues it" >&2
        fi
    fi
    if [ "$status" = 0 ] && ! grep -qs '"status": "finished"' "$folder/run.json"; then
        echo "job ${SLURM_JOB_ID}: ${launch[0]} reported success but did not run the case" >&2 # srun does this
        status=1
    fi
    exit "$status"
}

newest_checkpoint() {
    [ ! -d "$1/checkpoints" ] || find "$1/checkpoints" -name 'step*.h5' -printf '%f\n' | sort -V | tail -n 1
}
