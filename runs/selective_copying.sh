#!/usr/bin/env bash
# Selective copying at length 4096: the Mamba block, the block without its gate, and the block with nothing that depends on the
# input. Use a GPU: on a CPU it takes very long.
# Writes docs/results/selective_copying.md. Usage: selective_copying.sh [SETTING ...], settings as --set takes them. The
# published page used train.lr=5e-4 train.dtype=bf16 train.eval_batches=8, one H100 per model, and Ctrl-C to stop.
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

Δ of s6 over a sequence (`elapid inspect --trace delta --model runs/out/selective-copying/s6`): the second layer takes
long steps at the tokens to copy and almost none elsewhere. The steps shorten from one such token to the next, which
distinguishes the first from the last.

![Δ by position](selective_copying-delta.png)
END
