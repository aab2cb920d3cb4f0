#!/bin/bash
# CUDA's own runtime, static and shared, looks the driver up with our dlsym.
# usage: cudart_test.sh LIBRARY DRIVER_DIR CC INCLUDE_DIR LIBRARY_DIR
set -euo pipefail
library=$1 driver=$2 cc=$3 include=${4:-} libraries=${5:-}
[[ -f $include/cuda_runtime_api.h && -f $libraries/libcudart_static.a && -e $libraries/libcudart.so ]] ||
    { echo "no CUDA Toolkit here: its runtime cannot be tried"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/program.c" <<'C'
#include <cuda_runtime_api.h>
int main(void)
{
    int count;
    return cudaGetDeviceCount(&count) == cudaSuccess ? 0 : 1; /* that it asks is enough: this driver is not whole */
}
C
"$cc" -isystem "$include" "$work/program.c" -o "$work/static" "$libraries/libcudart_static.a" -lpthread -ldl -lrt
"$cc" -isystem "$include" "$work/program.c" -o "$work/shared" -L"$libraries" -lcudart
for kind in static shared; do
    LD_DEBUG=bindings LD_LIBRARY_PATH=$driver:$libraries LD_PRELOAD=$library "$work/$kind" >"$work/log" 2>&1 || true
    grep -E 'binding file [^ ]*(/static|libcudart\.so[^ ]*) .* to [^ ]*libcorral-quota\.so .*dlsym' "$work/log" >/dev/null || {
        echo "$kind: dlsym was not bound to libcorral-quota.so" >&2
        grep dlsym "$work/log" >&2
        exit 1
    }
done
echo "static and shared: bound to libcorral-quota.so"
