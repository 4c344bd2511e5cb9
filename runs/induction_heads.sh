#!/usr/bin/env bash
# Induction heads: 2 layers are trained at length 256 and tested at longer ones, Mamba of width 64 up to 2^20, and attention of
# width 128 with 8 heads (table 11 of the paper) up to 2^14, with absolute, rotary and xPos positions.
# Writes docs/results/induction_heads.md, and docs/results/induction_heads_attention.md.
# Usage: induction_heads.sh [SETTING ...], settings as --set takes them, such as train.steps=8192. From the environment:
# MODELS ["mamba abs rope xpos"], SEEDS ["1 2 3 4", of attention "1 2 3"], RATES of attention ["1e-3 2e-4"], and ELAPID, DEVICE and
# PARALLEL as in runs/task.sh.
set -euo pipefail
source "$(dirname "$0")/task.sh"
sets=()
for setting in "$@"; do sets+=(--set "$setting"); done
kinds=" ${MODELS:-mamba abs rope xpos} "

if [[ $kinds == *" mamba "* ]]; then
    for seed in ${SEEDS:-1 2 3 4}; do
        train "runs/out/induction-heads/seed-$seed" --task induction-heads --seed "$seed" ${sets[@]+"${sets[@]}"}
    done
    report docs/results/induction_heads.md --task induction-heads --lengths 64..1048576
fi

# Attention alone, without feed-forwards, at a constant rate as in the paper, and at most as many sequences: 25 epochs of 8192
# steps of 8, 50 with rotary positions, here in steps of 64. It stops early after five validations in a row without a wrong answer. The table of absolute positions has rows for all lengths,
# of which those beyond 256 stay as they were drawn.
attention=(model.d_model=128 'model.layers=["attention"]' model.layer.attention.heads=8 'task.eval_lengths=[256]'
    train.stop_at_accuracy=1.0 train.schedule=constant train.label_smoothing=0 train.batch=64 train.steps=25600
    train.eval_every=512 train.save_every=2048)
declare -A positions=(
    [abs]='model.layer.attention.rope="none" model.positions="learned" model.max_positions=16384'
    [rope]='model.layer.attention.rope="pairs" train.steps=51200'
    [xpos]='model.layer.attention.rope="pairs" model.layer.attention.xpos_base=512 train.steps=51200'
)
models=() jobs=()
for kind in abs rope xpos; do
    [[ $kinds == *" $kind "* ]] || continue
    own=()
    for setting in "${attention[@]}" ${positions[$kind]}; do own+=(--set "$setting"); done
    for rate in ${RATES:-1e-3 2e-4}; do
        for seed in ${SEEDS:-1 2 3}; do
            train "runs/out/induction-heads-attention/$kind-$rate-seed-$seed" --task induction-heads --seed "$seed" \
                "${own[@]}" --set "train.lr=$rate" ${sets[@]+"${sets[@]}"}
        done
    done
done
if ((${#models[@]})); then
    report docs/results/induction_heads_attention.md --task induction-heads --lengths 64..16384
fi
