#!/usr/bin/env bash
# What wants a GPU: its tests, and the benchmarks that run on one. Each part takes nine minutes at most,
# leaves its result and its log in a folder, and needs none of the others:
#
#     benchmarks/gpu.sh OUT [facts|tests|memory|compile|costs|accuracy|methods|reconciliation ...]
#
# DATA names the folder with CIFAR-10 (see benchmarks/accuracy/README.md), for the last three. Studies are kept
# in OUT/runs, and go on where they were when the part is run again.
set -uo pipefail

parts=(facts tests memory compile costs accuracy methods reconciliation)
if [ $# -lt 1 ]; then
    echo "usage: $0 OUT [${parts[*]}]" >&2
    exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
shift
[ $# -eq 0 ] || parts=("$@")
cd "$(dirname "$0")/.." || exit 2
failed=0

part() { # NAME COMMAND...
    local name=$1 code
    shift
    echo "$name: $*"
    timeout 540 "$@" > "$out/$name.log" 2>&1
    code=$?
    [ "$code" -eq 0 ] || { failed=1 && tail -n 3 "$out/$name.log"; }
    echo "$name: exit code $code"
}

benchmark() { # NAME BENCHMARK ARGUMENTS...
    local name=$1 script=benchmarks/$2/run.py
    shift 2
    part "$name" python "$script" --device cuda --json "$out/$name.json" "$@"
}

study=(--jobs 8 --data-root "${DATA:-DATA}" --keep "$out/runs")
for name in "${parts[@]}"; do
    case $name in
        facts)
            part nvidia-smi nvidia-smi
            part facts python -m pipelocal doctor --device cuda
            ;;
        tests) part tests python -m pytest -q -n 4 -m "gpu and not multigpu" tests/test_gpu.py ;;
        memory) benchmark memory memory --batch-size 512 --stages 2 4 8 --objectives greedy ;;
        compile) benchmark compile compile ;;
        costs) benchmark costs reconciliation --parts cost ;;
        accuracy) benchmark accuracy accuracy --arms auto --epochs 20 "${study[@]}" ;;
        methods)
            leading=("auto" "auto, LoCo" "auto, InfoPro" "auto, InfoPro of inputs" "auto, guided")
            benchmark methods methods --setups resnet20-4 --arms "${leading[@]}" --rates "$out/rates.json" "${study[@]}"
            ;;
        reconciliation) benchmark reconciliation reconciliation --parts study "${study[@]}" ;;
        *)
            echo "$name: choose of facts tests memory compile costs accuracy methods reconciliation" >&2
            failed=2
            ;;
    esac
done
exit "$failed"
