#!/bin/bash
# What `cmake --install` gives is complete, may be moved, and is all that a program or a plug-in outside the tree needs,
# with CMake and with pkg-config.
# usage: install_test.sh BUILD_DIR SOURCE_DIR CC CMAKE GENERATOR
set -euo pipefail
build=$(readlink -f "$1") source=$(readlink -f "$2") cc=$3 cmake=$4 generator=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CORRAL_ENV_PATH CORRAL_ENV_HOST LD_LIBRARY_PATH PKG_CONFIG_PATH DESTDIR

quietly() { # COMMAND ...
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        echo "failed: $*" >&2
        exit 1
    }
}

# Installed in one place and used in another: nothing may remember where it was made.
quietly "$cmake" --install "$build" --prefix "$work/first"
mv "$work/first" "$work/corral"
prefix=$work/corral
pc=$(find "$prefix" -name corral.pc)
libdir=$(dirname "$(dirname "${pc:?no corral.pc was installed}")")

missing=0
for file in bin/rlctl include/corral/env.h include/corral/rollout.h include/corral/status.h include/corral/weights.h \
    share/man/man1/rlctl.1 share/man/man3/corral_make.3 share/man/man7/corral-env.7 \
    share/bash-completion/completions/rlctl; do
    [[ -s $prefix/$file ]] || { echo "not installed: $file" >&2; missing=1; }
done
for file in libcorral.so libcorral.so.0 corral/envs/cartpole.so corral/corral-env-host cmake/Corral/CorralConfig.cmake \
    cmake/Corral/CorralConfigVersion.cmake; do
    [[ -s $libdir/$file ]] || { echo "not installed: $libdir/$file" >&2; missing=1; }
done
[[ $(uname -m) != x86_64 || -s $libdir/corral/libcorral-quota.so ]] || { echo "not installed: $libdir/corral/libcorral-quota.so" >&2; missing=1; }
[[ -n $(find "$prefix" -name LICENSE) ]] || { echo "not installed: LICENSE" >&2; missing=1; }
[[ $missing -eq 0 ]]
if grep -rlF -e "$build" -e "$work/first" "$pc" "$libdir/cmake"; then
    echo "these files name the place where they were made" >&2
    exit 1
fi
for binary in "$prefix/bin/rlctl" "$libdir/libcorral.so" "$libdir/corral/corral-env-host" "$libdir"/corral/envs/*.so "$libdir"/corral/libcorral-quota.so; do
    if [[ -e $binary ]] && readelf -d "$binary" | grep -E 'R(UN)?PATH'; then
        echo "$binary has a run path" >&2
        exit 1
    fi
done

cp -r "$source/tests/consumer" "$work/consumer"
quietly "$cmake" -S "$work/consumer" -B "$work/with-cmake" -G "$generator" -DCMAKE_C_COMPILER="$cc" \
    -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS="-std=c11 -Wall -Wextra -Werror"
quietly "$cmake" --build "$work/with-cmake"
"$work/with-cmake/consumer" CartPole-v1
"$work/with-cmake/consumer" outside/Coin-v0 "$work/with-cmake/coin.so"

export PKG_CONFIG_PATH=$libdir/pkgconfig
pkg-config --exists --print-errors 'corral >= 0.1'
read -ra flags <<<"$(pkg-config --cflags --libs corral)"
quietly "$cc" -std=c11 "$work/consumer/consumer.c" "${flags[@]}" -o "$work/with-pkg-config"
LD_LIBRARY_PATH=$libdir "$work/with-pkg-config" CartPole-v1
[[ $(readlink -f "$(pkg-config --variable=envdir corral)") == $(readlink -f "$libdir/corral/envs") ]]

# The plug-in's author needs a compiler and the headers.
quietly "$cc" -shared -fPIC -I"$prefix/include" "$work/consumer/coin.c" -o "$work/coin.so"
listed=$("$prefix/bin/rlctl" env list)
grep -q 'CartPole-v1' <<<"$listed"
CORRAL_ENV_PATH=$work/coin.so "$prefix/bin/rlctl" env list | grep 'outside/Coin-v0' >/dev/null
"$prefix/bin/rlctl" --version >/dev/null
bash -c 'source "$0" && complete -p rlctl >/dev/null' "$prefix/share/bash-completion/completions/rlctl"
echo "installed, moved and used from outside"
