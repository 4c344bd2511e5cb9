#!/usr/bin/env bash
# `elapid train` with its defaults (crates/elapid-train/configs/default.toml).
# Held out: the last tenth of tiny Shakespeare, 111,540 bytes. Figures and curve: runs/default_model/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/out/default}
cargo run --release -- train --output "$out"
mkdir -p runs/default_model
cp "$out"/{config.toml,metrics.jsonl,loss.png,loss.svg} runs/default_model/
cargo run --release -- eval --model "$out" --length 256 # as the training run measures it
cargo run --release -- eval --model "$out"              # as one stream, the state carried
