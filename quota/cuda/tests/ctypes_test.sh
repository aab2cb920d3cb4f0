#!/bin/bash
# Python's ctypes, which looks up with dlsym on a handle, ends at the hook: closed, it is denied.
# usage: ctypes_test.sh LIBRARY DRIVER_DIR
set -euo pipefail
command -v python3 >/dev/null || { echo "no python3: ctypes cannot be tried"; exit 77; }
python3 -c 'import ctypes' 2>/dev/null || { echo "this python3 has no ctypes"; exit 77; }
unset CORRAL_QUOTA_LEDGER CORRAL_QUOTA_TOKEN CORRAL_QUOTA_LOG CORRAL_QUOTA_UNKNOWN
LD_LIBRARY_PATH=$2 LD_PRELOAD=$1 python3 - 2>/dev/null <<'P'
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
pointer = ctypes.c_uint64()
assert driver.cuInit(0) == 0
assert driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4096)) == 2, "not denied"
found = ctypes.c_void_p()
status = ctypes.c_int()
assert driver.cuGetProcAddress_v2(b"cuMemAlloc", ctypes.byref(found), 12000, ctypes.c_uint64(0), ctypes.byref(status)) == 0
assert found.value == ctypes.cast(driver.cuMemAlloc_v2, ctypes.c_void_p).value, "not the same hook"
assert ctypes.c_int.in_dll(driver, "tiny_calls").value == 0, "the driver was asked"
P
echo "denied, by the same function"
