#!/usr/bin/env bash
# Induction heads: 2 layers of width 64 are trained at length 256 and tested at lengths up to 2^20, with four seeds.
# Writes docs/results/induction_heads.md. Usage: induction_heads.sh [SETTING ...], settings as --set takes them, such as
# train.steps=8192. From the environment: SEEDS ["1 2 3 4"], and ELAPID, DEVICE and PARALLEL as in runs/task.sh.
set -euo pipefail
source "$(dirname "$0")/task.sh"
sets=()
for setting in "$@"; do sets+=(--set "$setting"); done
for seed in ${SEEDS:-1 2 3 4}; do
    train "runs/out/induction-heads/seed-$seed" --task induction-heads --seed "$seed" ${sets[@]+"${sets[@]}"}
done
report docs/results/induction_heads.md --task induction-heads --lengths 64..1048576
