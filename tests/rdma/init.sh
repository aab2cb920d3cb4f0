#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first process: loads the modules, puts the host's files where they belong, and lets prepare.sh run the command among them. Whatever happens, the machine is
# switched off at the end.
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
finish() {
    echo "guest-exit: $1" >/dev/ttyS1
    busybox sync
    busybox poweroff -f
}
busybox stty -F /dev/ttyS1 raw -opost -echo
for module in /lib/*.ko; do
    busybox insmod "$module" || { echo "guest: $module does not load" >/dev/ttyS1; finish 1; }
done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host || finish 1
busybox mount -t proc proc /host/proc
busybox mount -t sysfs sysfs /host/sys
busybox mount --bind /dev /host/dev
busybox mkdir -p /dev/shm /dev/pts
busybox ln -s /proc/self/fd /dev/fd
busybox mount -t tmpfs tmpfs /host/dev/shm
busybox mount -t devpts devpts /host/dev/pts
busybox mount -t tmpfs tmpfs /host/run
busybox mkdir /host/run/tmp
busybox cp /command /prepare /host/run/
busybox chroot /host /bin/bash /run/prepare >/dev/ttyS1 2>&1 </dev/null
finish $?
