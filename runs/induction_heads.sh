#!/usr/bin/env bash
# Induction heads: 2 layers of width 64 learn at length 256 and answer at lengths up to 2^20.
# induction_heads.sh [SEED [SETTING ...]]: settings as --set takes them, such as model.gate=false or 'model.selective=[]'.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${1:-1}
shift || true
sets=() name=seed-$seed
for setting in "$@"; do
    sets+=(--set "$setting")
    name+=-$(tr -c 'a-zA-Z0-9\n' _ <<<"${setting#*.}")
done
out=runs/out/induction-heads/$name
cargo run --release -- train --task induction-heads --seed "$seed" --output "$out" ${sets[@]+"${sets[@]}"}
cargo run --release -- eval --task induction-heads --model "$out" --lengths 64..1048576 \
    --report "docs/results/induction_heads-$name.md"
