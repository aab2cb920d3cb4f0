#!/usr/bin/env bash
# The kernel of the guest that tests/rdma/guest.sh boots: Debian's own, downloaded as a package and unpacked into a cache folder; nothing is installed.
#   kernel.sh path     print the folder that holds vmlinuz and modules/; exits 77 with the reason when there is none
#   kernel.sh fetch    download and unpack it unless it is there
# Environment: CORRAL_CACHE, the cache folder (default: corral in XDG_CACHE_HOME, or in ~/.cache).
set -euo pipefail
cache=${CORRAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/corral}
# A new list of modules is a new folder.
kernel=$cache/guest-kernel-1
modules=(crc32_generic virtio_pci 9pnet_virtio 9p rdma_rxe ib_uverbs rdma_ucm veth)

fetch() {
  local as=() package work version number=0 file
  if [[ $(uname -m) != x86_64 ]]; then
    echo "the guest is made for x86_64, and this is $(uname -m)" >&2
    return 1
  fi
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ { print $2; exit }')
  if [[ -z $package ]]; then
    echo "apt's package lists name no kernel (linux-image-amd64)" >&2
    return 1
  fi
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  # shellcheck disable=SC2064  # the folder of now
  trap "rm -rf '$work'" EXIT
  # What is downloaded by root is read by apt's own user otherwise, who may not see the folder.
  [[ $EUID -ne 0 ]] || as=(-o APT::Sandbox::User=root)
  (cd "$work" && apt-get -q "${as[@]}" download "$package")
  dpkg-deb -x "$work"/"$package"_*.deb "$work/root"
  version=${package#linux-image-}
  PATH=$PATH:/usr/sbin:/sbin depmod -b "$work/root" "$version"
  mkdir -p "$work/kernel/modules"
  cp "$work/root/boot/vmlinuz-$version" "$work/kernel/vmlinuz"
  while read -r file; do
    number=$((number + 1))
    cp "$file" "$work/kernel/modules/$(printf '%02d' "$number")-$(basename "$file")"
  done < <(for module in "${modules[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin modprobe -d "$work/root" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }')
  for module in "${modules[@]}"; do
    compgen -G "$work/kernel/modules/*-$module.ko" >/dev/null ||
      grep -q "/$module.ko" "$work/root/lib/modules/$version/modules.builtin" ||
      { echo "$package has no module $module" >&2; return 1; }
  done
  # Whoever is first wins; the others' copies are the same.
  mv -T "$work/kernel" "$kernel" 2>/dev/null || [[ -e $kernel/vmlinuz ]]
}

case ${1:-} in
fetch) [[ -e $kernel/vmlinuz ]] || fetch ;;
path)
  if [[ ! -e $kernel/vmlinuz ]]; then
    echo "no kernel for the guest in $cache; tests/rdma/kernel.sh fetch downloads one"
    exit 77
  fi
  printf '%s\n' "$kernel"
  ;;
*)
  echo "usage: kernel.sh path | fetch" >&2
  exit 2
  ;;
esac
