#!/usr/bin/env bash
# Selective copying at length 4096 with the Mamba block, without its gate, and with nothing that depends on the input. It
# needs a GPU to end soon.
# Writes docs/results/selective_copying.md. selective_copying.sh [SETTING ...]: settings as --set takes them, such as
# train.steps=50000. ELAPID, DEVICE and PARALLEL as in runs/task.sh.
set -euo pipefail
source "$(dirname "$0")/task.sh"
sets=()
for setting in "$@"; do sets+=(--set "$setting"); done
variant() {
    train "runs/out/selective-copying/$1" --task selective-copying ${sets[@]+"${sets[@]}"} "${@:2}"
}
variant s6
variant s6-no-gate --set model.gate=false
variant not-selective --set 'model.selective=[]'
report docs/results/selective_copying.md --task selective-copying --lengths 4096 --sequences 1024
