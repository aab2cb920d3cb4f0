# shellcheck shell=bash
# Debian packages that the scripts need. To be sourced.
#
#   packages_ensure NAME ...    installs what is missing; does nothing, and needs no network, when all is there
#
# Environment: CORRAL_NO_INSTALL=1 never installs and fails when something is missing.

# shellcheck disable=SC2034  # for the scripts that source this file
packages_build=(
    gcc g++ libc6-dev cmake ninja-build pkg-config
    libzmq3-dev libmsgpack-dev libevent-dev libjansson-dev libsqlite3-dev libxxhash-dev
    libssl-dev libzstd-dev libhwloc-dev libopenblas-dev libtomlplusplus-dev libibverbs-dev
)
# shellcheck disable=SC2034
packages_test=(libcmocka-dev binutils groff-base spin)
# shellcheck disable=SC2034  # the guest with real InfiniBand verbs (tests/rdma); its kernel is fetched by tests/rdma/kernel.sh
packages_guest=(
    qemu-system-x86 busybox-static cpio kmod rdma-core ibverbs-providers ibverbs-utils perftest iproute2 libibverbs-dev
)
# shellcheck disable=SC2034
packages_clang=(clang-14 libclang-rt-14-dev)

packages_missing() { # NAME ...
    local name
    for name in "$@"; do
        # shellcheck disable=SC2016  # dpkg-query expands this itself
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] ||
            printf '%s\n' "$name"
    done
}

packages_apt() { # apt-get's arguments
    local as=()
    [[ $EUID -eq 0 ]] || as=(sudo)
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

# When the lists cannot be brought up to date, the ones that are there may still do.
packages_install() { # NAME ...
    packages_apt update || echo "apt-get update failed; going on with the package lists that are here"
    packages_apt install --no-install-recommends "$@"
}

packages_ensure() { # NAME ...
    local missing
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "packages: this is not a Debian system; going on with what is installed (docs/dependencies.md lists what is needed)"
        return 0
    fi
    mapfile -t missing < <(packages_missing "$@")
    if [[ ${#missing[@]} -eq 0 ]]; then
        return 0
    fi
    if [[ ${CORRAL_NO_INSTALL:-0} == 1 ]]; then
        echo "packages: missing, and CORRAL_NO_INSTALL=1 forbids to install them: ${missing[*]}" >&2
        return 1
    fi
    if [[ $EUID -ne 0 ]] && ! command -v sudo >/dev/null; then
        echo "packages: cannot install without root or sudo. As root, run: apt-get install ${missing[*]}" >&2
        return 1
    fi
    phase "install ${#missing[@]} packages" packages_install "${missing[@]}"
}
