#!/usr/bin/env bash
# One whole small training in Marey and in plain PyTorch: the same initial weights, batches and rates, float32, then
# the accuracy of both on the same held-out clips, whose labels (camera motions) no single frame gives away.
#   benches/learn.sh DATASET [FOLDER]     (after `make build`; DATASET: the motion clips of `make demo`, or some labels of them)
# FOLDER takes 60 KB a clip and epoch.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
data=$1 out=${2:-$(mktemp -d)}
bin="$CARGO_TARGET_DIR/debug"
cat >"$out/job.toml" <<TOML
seed = 5
[data]
url = "$data"
lanes = 8
frames = 8
sampling_rate = 2
augment = { crop = 48, scale = { kind = "short_side", min = 48, max = 60 }, flip = 0.0 }
eval = { short_side = 54, crop = 48 }
[model]
arch = "slowfast"
width = 16
beta = 4
fusion_kernel = 7
dropout = 0.0
[train]
epochs = 1
global_batch = 8
[optimizer]
kind = "adamw"
lr = 1e-3
weight_decay = 0.05
[schedule]
kind = "cosine"
warmup_epochs = 0.1
warmup_start_lr = 1e-4
TOML
rm -rf "$out/run" "$out/twin"
"$bin/marey" train "$out/job.toml" --workers 1 --run "$out/run"
"$bin/marey-worker" twin "$out/job.toml" --eval --out "$out/twin"
# The losses part after some hundred steps, by rounding: what is compared is what was learned.
scripts/reference-python benches/twin.py "$out/twin" "$out/run" --model slowfast_small --optimizer adamw \
  --weight-decay 0.05 --tolerance inf
