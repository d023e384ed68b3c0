#!/usr/bin/env bash
# Train on all GPUs of this machine, or on RANKS ranks:
#
#   launch/one-node.sh --model resnet110 --stages 8 --snapshot-every 200 --out runs/one
#
# RANKS     ranks; by default one for each GPU, or 2 without any
# RESTARTS  how often a run may lose a rank and come back (3)
set -euo pipefail

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
exec torchrun --standalone --nproc-per-node "$ranks" --max-restarts "${RESTARTS:-3}" \
    -m pipelocal train "$@"
