#!/usr/bin/env bash
# Mamba, a 1:7 hybrid with attention, MoE-Mamba of 8 experts and Transformer++, all of 10 million active parameters, on the books
# as bytes: held-out curves. Writes docs/results/hybrids.md.
# Usage: hybrids.sh TRAIN VAL, text files as runs/books_text.py makes them. From the environment: SEEDS ["1 2"],
# MODELS ["mamba hybrid moe-mamba transformer"], and ELAPID, DEVICE and PARALLEL as in runs/task.sh.
set -euo pipefail
train_text=$(realpath "$1") val_text=$(realpath "$2")
source "$(dirname "$0")/task.sh"
dirs=()
for model in ${MODELS:-mamba hybrid moe-mamba transformer}; do
    for seed in ${SEEDS:-1 2}; do
        train "runs/out/hybrids/$model-seed-$seed" --config "configs/hybrids/$model.toml" --seed "$seed" \
            --set "data.train=$train_text" --set "data.val=$val_text"
        dirs+=("runs/out/hybrids/$model-seed-$seed")
    done
done
for job in ${jobs[@]+"${jobs[@]}"}; do wait "$job"; done
elapid compare "${dirs[@]}" --title "10 million active parameters on the books as bytes" --report docs/results/hybrids.md
