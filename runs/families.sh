#!/usr/bin/env bash
# The field at a glance: every family of runs/families.txt at 10 million parameters on one epoch of the books as bytes, at one rate
# from a three-point sweep of Mamba's; multi-query associative recall (the best of three rates) and parity; the speed of training
# and decoding, alone on a GPU; the bytes of a state. Writes docs/results/families.md.
# Usage: families.sh TRAIN VAL [OPTION ...], text files as runs/books_text.py makes them, and options of runs/experiments.py such as
# --gpus 0,1,2,3 --seconds 600. ELAPID is the binary. A second call resumes what was stopped, and a new line of runs/families.txt is
# a new row. Results are kept in runs/families.
set -euo pipefail
train=$(realpath "${1:?text to train on}") val=$(realpath "${2:?held-out text}")
shift 2
cd "$(dirname "$0")/.."
python3 runs/experiments.py run families --train "$train" --val "$val" "$@"
python3 runs/experiments_page.py
