#!/usr/bin/env bash
# Installs a finished build and uses what was installed as a stranger would: builds examples/embed
# with find_package and with pkg-config and lets both generate text; compiles every public header;
# looks at what the `weir` program links. Usage: tests/package_test.sh BUILD_DIR
set -euo pipefail
build=$(cd "${1:?usage: tests/package_test.sh BUILD_DIR}" && pwd)
cd "$(dirname "$0")/.."
root=$PWD
model=$root/tests/fixtures/models/gguf_llama/q8_0.gguf
cxx=${CXX:-c++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "package_test: $*" >&2
  exit 1
}

# Moved after the installation: an installed tree must not know where it was.
cmake --install "$build" --prefix "$work/first" >"$work/install.log" ||
  fail "the installation failed; is $build built?"
mv "$work/first" "$work/prefix"
prefix=$work/prefix
# A path of the tree begins a word; "/weir" as its root must not match "include/weir".
if grep -rIlE "$work/first|(^|[^[:alnum:]_/}.])$root(/|\"|;|\$)" "$prefix" | grep .; then
  fail "these installed files name the source tree or the first prefix"
fi

# Compiles without a path to the source tree.
(cd "$prefix/include/weir" && find . -name '*.h' -printf '#include "%P"\n' | sort) >"$work/all.cc"
"$cxx" -std=c++20 -fsyntax-only -Wall -Wextra -Werror -I"$prefix/include/weir" "$work/all.cc" ||
  fail "the installed headers are incomplete"
echo "package_test: $(wc -l <"$work/all.cc") headers compile"

cmake -G Ninja -S examples/embed -B "$work/embed" -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF >"$work/configure.log" 2>&1 ||
  { cat "$work/configure.log"; fail "find_package does not find weir"; }
cmake --build "$work/embed" >"$work/build.log" 2>&1 ||
  { cat "$work/build.log"; fail "the find_package program does not build"; }

pc=$(find "$prefix" -name weir.pc)
export PKG_CONFIG_PATH=${pc%/*}
[ "$(pkg-config --modversion weir)" = "$(sed -n 's/^project(weir VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)" ] ||
  fail "weir.pc has another version than the project"
# shellcheck disable=SC2046  # the flags are words
"$cxx" -std=c++20 examples/embed/main.cc $(pkg-config --cflags --libs weir) -o "$work/by_hand" ||
  fail "the pkg-config program does not build"

"$work/embed/embed" "$model" "the then and" >"$work/a.txt" || fail "the find_package program failed"
"$work/by_hand" "$model" "the then and" >"$work/b.txt" || fail "the pkg-config program failed"
grep -q '[^[:space:]]' "$work/a.txt" || fail "the embedding program printed no text"
cmp "$work/a.txt" "$work/b.txt" || fail "the two programs print different text"
status=0
"$work/by_hand" "$work/no-such-model" >/dev/null 2>"$work/error.txt" || status=$?
{ [ $status -eq 1 ] && grep -q no-such-model "$work/error.txt"; } ||
  fail "a missing model gave status $status and: $(cat "$work/error.txt")"
echo "package_test: find_package and pkg-config programs print the same $(wc -c <"$work/a.txt") bytes of text"

if [ -x "$prefix/bin/weir" ]; then
  "$prefix/bin/weir" --version >/dev/null || fail "the installed weir does not start"
  ldd "$prefix/bin/weir" | awk '{print $1}' >"$work/ldd.txt"
  echo "package_test: weir links $(tr '\n' ' ' <"$work/ldd.txt")"
  if grep -E '^lib(cuda|spdlog|fmt)\b' "$work/ldd.txt"; then
    fail "weir must not need these libraries at run time"
  fi
fi
echo "package_test: ok"
