# What the batch scripts share, to be sourced by them (docs/howto/batch_jobs.md): start a case or go on with it, stop before the
# time limit with a checkpoint, requeue.
#
# KJKO_LAUNCH is the command that starts the ranks, given "-n RANKS": srun (default), "srun --mpi=pmix", mpirun, ...
#
# On a file system without locks ("kjko doctor" tells), before sbatch, which hands the environment on:
#     export HDF5_USE_FILE_LOCKING=FALSE

# start_or_continue RANKS CASE.toml DIR [options of kjko run]
#
# DIR is the run folder. Its checkpoint, if there is one, holds the case and is continued; else the case starts, from a
# copy in DIR/input, which also has the Python files beside the case and this job's script.
start_or_continue() {
    if [ $# -lt 3 ]; then
        echo "usage: sbatch [sbatch options] jobs/NAME.sbatch CASE.toml DIR [kjko run options]" >&2
        exit 2
    fi
    local ranks=$1 case=$2 folder before verb
    folder=$(realpath -m "$3")
    shift 3
    local launch=(${KJKO_LAUNCH:-srun} -n "$ranks")
    [[ ${launch[0]} != srun ]] || launch+=(--kill-on-bad-exit=1) # a rank that dies must not leave the others waiting
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

    mkdir -p "$folder/input"
    before=$(newest_checkpoint "$folder")
    if [ "$before" ]; then
        echo "job ${SLURM_JOB_ID}: continues $folder from $before, with the settings it has"
        verb=(restart "$folder")
    else
        if [ ! -f "$folder/input/${case##*/}" ]; then # else an earlier start of this job copied it
            cp "$0" "$folder/input/job.sbatch"
            find "$(dirname "$case")" -maxdepth 1 -name '*.py' -exec cp -t "$folder/input" {} +
            cp "$case" "$folder/input/" # last: it says that all is there
        fi
        # --force: what an earlier start of this job left, which ended before its first checkpoint
        verb=(run "$folder/input/${case##*/}" --out "$folder" "$@")
        [ ! -f "$folder/run.json" ] || verb+=(--force)
    fi
    cd "$folder/input" # where a problem's own Python is found

    # SLURM's early signal reaches this shell alone. USR2 rather than USR1 for the ranks: NCCL may use that.
    local status again=yes requested=
    "${launch[@]}" kjko "${verb[@]}" &
    local step=$!
    trap 'again=yes requested=yes; kill -USR2 "$step"' USR1
    trap 'again=yes requested=' TERM # cancelled: the ranks get this signal themselves, and nothing is requeued
    while [ "$again" ]; do # a trapped signal ends the wait
        again='' status=0
        wait "$step" || status=$?
    done

    # 140: USR2 came before the ranks were ready for it, as it does where all of the time limit is within the 300 s
    if [ "$requested" ] && { [ "$status" = 75 ] || [ "$status" = 140 ]; }; then
        if [ "$(newest_checkpoint "$folder")" = "$before" ]; then
            echo "job ${SLURM_JOB_ID}: no step was done within the time limit, so it is not requeued: give it more time" >&2
        else
            scontrol requeue "$SLURM_JOB_ID" ||
                echo "job ${SLURM_JOB_ID}: cannot be requeued; the same sbatch command continues it" >&2
        fi
    fi
    if [ "$status" = 0 ] && ! grep -qs '"status": "finished"' "$folder/run.json"; then
        echo "job ${SLURM_JOB_ID}: ${launch[0]} says that all is well, and has not run it" >&2 # srun, when it cannot launch
        status=1
    fi
    exit "$status"
}

newest_checkpoint() {
    [ ! -d "$1/checkpoints" ] || find "$1/checkpoints" -name 'step*.h5' -printf '%f\n' | sort -V | tail -n 1
}
