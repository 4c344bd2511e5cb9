#!/usr/bin/env bash
# The model inside the binary: configs/embedded.toml on 241 public-domain books, held out 20 others, stored as bf16.
# The books are those of github.com/mlschmitt/classic-books-markdown, in two folders: embedded_model.sh TRAIN VAL
# About seven minutes on one H200. Figures and curve of the run: runs/embedded_model/.
set -euo pipefail
train=${1:?folder of books to train on} val=${2:?folder of books to hold out}
cd "$(dirname "$0")/.."
mkdir -p books
python3 runs/books_text.py "$train" books/train.txt
python3 runs/books_text.py "$val" books/val.txt
cargo run --release -- train --config configs/embedded.toml --device cuda
cargo xtask embed runs/out/embedded
mkdir -p runs/embedded_model
cp runs/out/embedded/{config.toml,metrics.jsonl,loss.png,loss.svg} runs/embedded_model/
cargo run --release -- eval --data books/val.txt --length 2048
