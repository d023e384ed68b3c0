#!/usr/bin/env bash
# Train over several machines, started by hand on each of them:
#
#   machine A:  launch/several-nodes.sh 2 0 A --stages 8 --snapshot-every 200 --out /shared/run
#   machine B:  launch/several-nodes.sh 2 1 A --stages 8 --snapshot-every 200 --out /shared/run
#
# Arguments: number of machines, this machine's number from 0, name or address of the first one, and the
# options of pipelocal train (or, with COMMAND=doctor, of pipelocal doctor), the same on all.
#
# RANKS     ranks on this machine; by default one for each GPU, or 1 without any
# PORT      free on the first machine (29500)
# RESTARTS  how often a run may lose a rank and come back (3)
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 MACHINES NUMBER FIRST [options of pipelocal train]" >&2
    exit 2
fi
machines=$1 number=$2 first=$3
shift 3
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
exec torchrun --nnodes "$machines" --node-rank "$number" \
    --nproc-per-node "${RANKS:-$((gpus > 0 ? gpus : 1))}" \
    --master-addr "$first" --master-port "${PORT:-29500}" --max-restarts "${RESTARTS:-3}" \
    -m pipelocal "${COMMAND:-train}" "$@"
