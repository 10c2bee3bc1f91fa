# The environment that builds and runs Marey: source it, or let `make` do so.
# Everything downloaded or built lives in one cache folder outside the checkout.
export MAREY_CACHE="${MAREY_CACHE:-$HOME/.cache/marey}"
export MAREY_LIBTORCH="$MAREY_CACHE/libtorch-2.13.0-${MAREY_TORCH:-cpu}"
export LIBTORCH="$MAREY_LIBTORCH/torch"
export LIBTORCH_CXX11_ABI=1
export LIBTORCH_BYPASS_VERSION_CHECK=0
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$MAREY_CACHE/target}"
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-1}"
