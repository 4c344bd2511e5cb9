#!/usr/bin/env bash
# Selective copying at length 4096 with the Mamba block. It needs a GPU to end soon.
# selective_copying.sh [SEED [SETTING ...]]: settings as --set takes them, such as model.gate=false or 'model.selective=[]'.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-1}
shift || true
sets=() name=seed-$seed
for setting in "$@"; do
    sets+=(--set "$setting")
    name+=-$(tr -c 'a-zA-Z0-9\n' _ <<<"${setting#*.}")
done
out=runs/out/selective-copying/$name
cargo run --release -- train --task selective-copying --seed "$seed" --output "$out" ${sets[@]+"${sets[@]}"}
cargo run --release -- eval --task selective-copying --model "$out" --lengths 4096 \
    --report "docs/results/selective_copying-$name.md"
