#!/usr/bin/env bash
# Selective copying at length 4096 with the Mamba block, without its gate, and with nothing that depends on the input. It
# needs a GPU to end soon.
# Writes docs/results/selective_copying.md. selective_copying.sh [SETTING ...]: settings as --set takes them. Those of the
# published page: train.lr=5e-4 train.dtype=bf16 train.eval_batches=8, on one H100 for each model, ended by Ctrl-C.
# ELAPID, DEVICE and PARALLEL as in runs/task.sh.
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
page=docs/results/selective_copying
report $page.md --task selective-copying --lengths 4096 --sequences 1024
elapid --dtype f32 inspect --trace delta --model runs/out/selective-copying/s6 --picture $page-delta
rm $page-delta.svg
cat >>$page.md <<'END'

## Selection

Δ of s6 over a sequence (`elapid inspect --trace delta --model runs/out/selective-copying/s6`): the second layer steps at
the tokens to copy, and hardly elsewhere; it steps less from one to the next, and so tells first from last.

![Δ by position](selective_copying-delta.png)
END
