#!/usr/bin/env bash
# Loss of Mamba-1 and Mamba-2 by state size (N 1 to 16, and 16 to 128) at equal width, depth and steps, about 10 million parameters,
# on the books as bytes. Writes docs/results/state_size.md. Usage: state_size.sh TRAIN VAL [OPTION ...], text files as
# runs/books_text.py makes them, and options of runs/experiments.py such as --gpus 0,1,2,3 --seconds 600. ELAPID is the binary.
# A second call resumes what was stopped. The rate is the best of a sweep of Mamba's, as in runs/families.sh, whose runs it shares.
set -euo pipefail
train=$(realpath "${1:?text to train on}") val=$(realpath "${2:?held-out text}")
shift 2
cd "$(dirname "$0")/.."
python3 runs/experiments.py run state_size --train "$train" --val "$val" "$@"
python3 runs/experiments_page.py
