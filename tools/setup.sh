#!/usr/bin/env bash
# Installs what building and testing weir needs on Debian 12 or Ubuntu 24.04; does nothing when it is
# all there. Usage: tools/setup.sh build | test
set -euo pipefail

build_packages=(g++ cmake ninja-build ccache pkg-config python3 python3-pip
  libboost-dev libcli11-dev libfmt-dev libnuma-dev libpcre2-dev libspdlog-dev libssl-dev libtomlplusplus-dev
  liburing-dev libxxhash-dev nlohmann-json3-dev)
test_packages=(git libgtest-dev librapidcheck-dev clang libclang-rt-dev clang-format python3-venv)

wanted=("${build_packages[@]}")
[ "${1:-build}" = test ] && wanted+=("${test_packages[@]}")

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  # A compiler or cmake that is already on the PATH will do, whoever installed it.
  case "$package" in
    g++ | git | cmake | ccache | python3 | clang | clang-format) command -v "$package" >/dev/null && continue ;;
    ninja-build) command -v ninja >/dev/null && continue ;;
    python3-pip) python3 -m pip --version >/dev/null 2>&1 && continue ;;
  esac
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "setup: these packages are missing and neither root nor sudo is here: ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
  "${missing[@]}" >/dev/null
