#!/usr/bin/env bash
# The loaders that Marey's is compared with, at pinned versions, in a virtual environment of their own.
#   benches/data/setup.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/env.sh
. scripts/env.sh
folder=$1
cmp -s benches/data/requirements.txt "$folder/requirements.txt" && exit
rm -rf "$folder"
python3 -m venv "$folder"
# Every dependency is named in the file; PyTorch is the one that set-up has brought in for libtorch.
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile -r benches/data/requirements.txt </dev/null
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$MAREY_LIBTORCH" >"$packages/torch.pth"
# Lazy binding lets empty CUDA libraries do on a machine without a GPU (see scripts/setup.sh).
[ "$MAREY_TORCH" = cpu ] && printf 'import os, sys\nsys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)\n' >"$packages/sitecustomize.py"
cp benches/data/requirements.txt "$folder/"
