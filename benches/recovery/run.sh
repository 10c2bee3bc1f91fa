#!/usr/bin/env bash
# What a dead worker costs, in Marey and under torchrun: the same network (SlowFast R50, width 16), batch and checkpoint
# interval, two processes of one thread each on this machine, in one run (after `make build`).
#   benches/recovery/run.sh [FOLDER] [--repeats N] [--every STEPS] [--only SCENARIOS] [--json OUT]
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
case "${1:-}" in '' | --*) out=$(mktemp -d) ;; *) out=$1; shift ;; esac
bin="$CARGO_TARGET_DIR/debug"
mkdir -p "$out"
if [ ! -e "$out/dataset/dataset.json" ]; then
  "$bin/xtask" motion-videos --out "$out/videos" --train 512 --val 12 --size 60 --frames 16
  "$bin/marey" ingest "$out/videos" --labels "$out/videos/labels.csv" --out "$out/dataset" --no-progress
fi
rm -rf "$out/runs"
python3 benches/recovery/recovery.py "$bin" "$out/dataset" "$out/runs" "$@"
