#!/usr/bin/env bash
# The same 50 steps in Marey and in plain PyTorch: SlowFast R50 and Video Swin-T, SGD and AdamW, float32.
#   benches/twin.sh DATASET [FOLDER]     (after `make build`; DATASET: any labelled one, as of `make demo`)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
data=$1 out=${2:-$(mktemp -d)}
bin="$CARGO_TARGET_DIR/debug"
job() {
  cat <<TOML
seed = 3
[data]
url = "$data"
lanes = 4
frames = 16
augment = { crop = 64, scale = { kind = "short_side", min = 64, max = 72 }, flip = 0.0 }
eval = { short_side = 64, crop = 64 }
[model]
$1
[train]
epochs = 100
max_steps = 50
global_batch = 4
eval_every_epochs = 0
[optimizer]
$2
weight_decay = 1e-4
[schedule]
kind = "constant"
warmup_epochs = 0.01
TOML
}
slowfast_r50=$'arch = "slowfast"\nfusion_kernel = 7\ndropout = 0.0'
swin3d_t=$'arch = "video_swin"\ndrop_path = 0.0'
# With batch norm over 4 clips a difference in the last bit grows from step to step, in the reference alone too, and the
# faster the larger the rate: at these the losses still move by much more than the tolerance.
declare -A rate=([slowfast_r50-sgd]=1e-5 [slowfast_r50-adamw]=1e-6 [swin3d_t-sgd]=1e-3 [swin3d_t-adamw]=1e-4)
for model in slowfast_r50 swin3d_t; do
  for optimizer in sgd adamw; do
    run="$out/$model-$optimizer"
    rm -rf "$run"
    job "${!model}" "kind = \"$optimizer\""$'\n'"lr = ${rate[$model-$optimizer]}" >"$out/job.toml"
    "$bin/marey" train "$out/job.toml" --workers 1 --run "$run" >"$out/train.log" 2>&1 || { tail -5 "$out/train.log"; exit 1; }
    "$bin/marey-worker" twin "$out/job.toml" --steps 50 --out "$out/twin"
    scripts/reference-python benches/twin.py "$out/twin" "$run" --model "$model" --optimizer "$optimizer" |
      tee "$run.txt" | tail -1
  done
done
