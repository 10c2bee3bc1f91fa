# The environment that builds and runs Marey: source it, or let `make` do so.
# Everything downloaded or built lives in one cache folder outside the checkout.
export MAREY_CACHE="${MAREY_CACHE:-$HOME/.cache/marey}"
# cpu or cuda: which build of libtorch. Set it to overrule what is found.
if [ -z "${MAREY_TORCH:-}" ]; then
  if nvidia-smi >/dev/null 2>&1; then MAREY_TORCH=cuda; else MAREY_TORCH=cpu; fi
fi
export MAREY_TORCH
export MAREY_LIBTORCH="$MAREY_CACHE/libtorch-2.13.0-$MAREY_TORCH"
export LIBTORCH="$MAREY_LIBTORCH/torch"
export LIBTORCH_CXX11_ABI=1
# Set to anything, it spares the check of the version, which setup.sh pins.
export LIBTORCH_BYPASS_VERSION_CHECK=0
export MAREY_CUDA_HEADERS="$MAREY_CACHE/cuda-headers-13.0"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$MAREY_CACHE/target}"
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-1}"
# A compiler of libtorch's headers takes up to 3 GiB: no more of them at once than memory allows.
if [ -z "${CARGO_BUILD_JOBS:-}" ]; then
  CARGO_BUILD_JOBS=$(awk -v cores="$(nproc)" '/^MemTotal/ {
    jobs = int($2 / 3145728); if (jobs > cores) jobs = cores; if (jobs < 1) jobs = 1; print jobs }' /proc/meminfo)
fi
export CARGO_BUILD_JOBS
# Tools that set-up had to build itself.
case ":$PATH:" in
  *":$MAREY_CACHE/tools/bin:"*) ;;
  *) export PATH="$MAREY_CACHE/tools/bin:$PATH" ;;
esac
