#!/usr/bin/env bash
#SBATCH --job-name=pipelocal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Train over the nodes of a SLURM job, which is put back into the queue when it is pre-empted or out of time:
#
#   sbatch launch/slurm.sh --stages 8 --snapshot-every 200 --out /shared/runs/long
#
# --out must be given, in a folder that all nodes share. Beside it are written:
#   OUT.status         a line for each time the job began and ended, with the reason
#   OUT.logs/node-N.N  what each node printed, the second number counting the job's restarts
#
# RANKS     ranks on a node; by default what --gpus-per-node says, or 1
# RESTARTS  how often a run may lose a rank and come back within the job (3)
set -euo pipefail

out=
for ((i = 1; i <= $#; i++)); do
    if [[ ${!i} == --out ]]; then
        next=$((i + 1))
        out=${!next-}
    elif [[ ${!i} == --out=* ]]; then
        out=${!i#--out=}
    fi
done
if [[ -z $out ]]; then
    echo "give --out, in a folder that all nodes share" >&2
    exit 2
fi

restart=${SLURM_RESTART_COUNT:-0}
logs=$out.logs
mkdir -p "$logs"
status() {
    echo "$(date --iso-8601=seconds) job $SLURM_JOB_ID restart $restart: $1" >>"$out.status"
}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need different ports.
port=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=1

status "began on $SLURM_JOB_NODELIST"
# Each task is one node; single quotes: its number is known only there.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --output "$logs/node-%n.$restart" bash -c '
    exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$1" \
        --master-addr "$2" --master-port "$3" --max-restarts "$4" -m pipelocal train "${@:5}"
' task "${RANKS:-${SLURM_GPUS_ON_NODE:-1}}" "$first" "$port" "${RESTARTS:-3}" "$@" &
step=$!

# SLURM tells this script alone (B:); the step must hear of it, and be waited for while it saves.
told=
trap 'told=1; kill -TERM "$step" 2>/dev/null || true' TERM
code=0
wait "$step" || code=$?
while [[ -n $told ]] && kill -0 "$step" 2>/dev/null; do
    wait "$step" || code=$?
done

if [[ -f $out/summary.json ]]; then
    status "finished"
    exit 0
fi
if [[ -n $told ]]; then
    status "told to end; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
status "failed with code $code"
exit "$code"
