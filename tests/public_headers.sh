#!/bin/bash
# Each public header compiles alone, and twice over, as C11 and as C++17 with every warning an error.
# usage: public_headers.sh CC CXX INCLUDE_DIR
set -eu
cc=$1 cxx=$2 include=$3
count=0
bad=0
for header in "$include"/corral/*.h; do
    name=corral/${header##*/}
    source=$(printf '#include <%s>\n#include <%s>\nextern int corral_not_empty;\n' "$name" "$name")
    "$cc" -x c -std=c11 -Wall -Wextra -Wpedantic -Wstrict-prototypes -Werror -fsyntax-only -I"$include" - <<<"$source" || bad=1
    "$cxx" -x c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$include" - <<<"$source" || bad=1
    count=$((count + 1))
done
[[ $count -gt 0 && -f $include/corral/status.h ]] || { echo "no headers under $include/corral" >&2; exit 1; }
[[ $bad -eq 0 ]] && echo "public headers: $count compile alone as C11 and C++17"
exit $bad
