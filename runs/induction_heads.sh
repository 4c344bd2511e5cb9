#!/usr/bin/env bash
# Induction heads: 2 layers of width 64 learn at length 256 and are asked at lengths up to 2^20, from four seeds.
# Writes docs/results/induction_heads.md. induction_heads.sh [SETTING ...]: settings as --set takes them, such as
# train.steps=8192. SEEDS, and ELAPID, DEVICE and PARALLEL as in runs/task.sh.
set -euo pipefail
source "$(dirname "$0")/task.sh"
sets=()
for setting in "$@"; do sets+=(--set "$setting"); done
for seed in ${SEEDS:-1 2 3 4}; do
    train "runs/out/induction-heads/seed-$seed" --task induction-heads --seed "$seed" ${sets[@]+"${sets[@]}"}
done
report docs/results/induction_heads.md --task induction-heads --lengths 64..1048576
