#!/usr/bin/env bash
# Runs a command under a real kernel with real InfiniBand verbs: boots Debian's kernel under QEMU without hardware virtualisation, with this machine's files as a read-only
# root, makes a soft-RoCE device rxe0 of a veth pair, runs the command there as root, and ends with its output and exit status.
#   guest.sh COMMAND [ARG ...]
# Exits 77 with the reason where QEMU, the kernel or a tool is missing; 124 when the guest is not through within its time.
#
# In the guest /run, /dev/shm and TMPDIR are writable and empty; nothing written there comes back. There is no network but 10.9.0.1 and 10.9.0.2, the ends of the veth pair.
# Environment: CORRAL_GUEST_SECONDS (150), CORRAL_GUEST_CPUS (2), CORRAL_GUEST_MIB (2048), CORRAL_GUEST_KEEP=1 shows the guest's kernel messages too.
set -euo pipefail
here=$(readlink -f "$(dirname "$0")")
[[ $# -gt 0 ]] || { echo "usage: guest.sh COMMAND [ARG ...]" >&2; exit 2; }

skip() {
  echo "skipped: $1"
  exit 77
}
export PATH=$PATH:/usr/sbin:/sbin
[[ $(uname -m) == x86_64 ]] || skip "the guest is made for x86_64, and this is $(uname -m)"
for tool in qemu-system-x86_64 busybox cpio gzip rdma ip ibv_devinfo timeout; do
  command -v "$tool" >/dev/null || skip "$tool is not installed (scripts/packages.sh, packages_guest)"
done
busybox=$(command -v busybox)
! ldd "$busybox" >/dev/null 2>&1 || skip "$busybox is not static (package busybox-static)"
kernel=$("$here/kernel.sh" path) || skip "$kernel"

work=$(mktemp -d)
vm=
# shellcheck disable=SC2317  # by the trap
clean_up() {
  [[ -z $vm ]] || kill -KILL "$vm" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 143' INT TERM HUP

# The command, with its folder and arguments as they are here.
mkdir -p "$work/initramfs"/{bin,lib,proc,sys,dev,host}
{
  printf 'cd %q 2>/dev/null || cd /\n' "$PWD"
  printf 'exec'
  printf ' %q' "$@"
  printf '\n'
} >"$work/initramfs/command"
cp "$busybox" "$work/initramfs/bin/busybox"
cp "$kernel"/modules/*.ko "$work/initramfs/lib/"
install -m 755 "$here/init.sh" "$work/initramfs/init"
install -m 755 "$here/prepare.sh" "$work/initramfs/prepare"
(cd "$work/initramfs" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd.gz"

# The emulator moves a byte at a time for `rep movsb`, which is what kernel and libc copy with where the processor says that it is fast. With all processors busy the kernel's check of the timer
# can fail, which it takes for a broken machine: no_timer_check.
seconds=${CORRAL_GUEST_SECONDS:-150}
: >"$work/output"
timeout -k 5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp "${CORRAL_GUEST_CPUS:-2}" \
  -m "${CORRAL_GUEST_MIB:-2048}" -nodefaults -display none -no-reboot -nic none \
  -kernel "$kernel/vmlinuz" -initrd "$work/initrd.gz" -append "console=ttyS0 quiet panic=-1 no_timer_check" \
  -serial "file:$work/console" -serial "file:$work/output" \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
  >"$work/qemu" 2>&1 </dev/null &
vm=$!
tail -f -n +1 --pid="$vm" "$work/output" -s 0.2 | sed -u '/^guest-exit: [0-9]*$/d' || true
code=0
wait "$vm" || code=$?
vm=
status=$(sed -n 's/^guest-exit: \([0-9]*\)$/\1/p' "$work/output" | tail -n 1)
[[ ${CORRAL_GUEST_KEEP:-0} != 1 ]] || cat "$work/console"
if [[ -n $status ]]; then
  exit "$status"
fi
echo "the guest did not get through (QEMU's exit status $code); the end of its console:"
tail -n 30 "$work/console" "$work/qemu" 2>/dev/null || true
[[ $code -eq 124 || $code -eq 137 ]] && { echo "it had $seconds s"; exit 124; }
exit 1
