#!/usr/bin/env bash
# The conformance suite: conformance.sh QUOTA_NODE CONFORMANCE INTERPOSER WHAT [FAKE_FOLDER]
# With a fake folder it runs on the fake driver, without one on the machine's own GPU. Exit status 77: (a part of) it could not be tried, and a line "SKIPPED …" says why.
set -euo pipefail
node=$1 program=$2 what=$4
export CORRAL_TEST_PRELOAD=$3
if [ ! -e "$3" ]; then
  echo "SKIPPED $what: no interposer is built for this machine"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CORRAL_QUOTA_LOG=$folder/denials.log
: >"$CORRAL_QUOTA_LOG"
# A real driver rounds what it takes, and its contexts differ in size: that is what headroom is for.
headroom=4294967296
if [ -n "${5:-}" ]; then
  headroom=0
  export LD_LIBRARY_PATH=$5 CORRAL_FAKECUDA_STATE=$folder/state CORRAL_FAKECUDA_MEMORY=1GiB
  unset CUDA_VISIBLE_DEVICES
fi
# A sanitizer's runtime is not the first library once something is preloaded.
export ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0
case $what in
hog)
  # Burst is shared, floors are not: 1.25 times the memory is promised.
  rc=0
  "$node" --headroom "$headroom" --overcommit 1.25 --role trainer=30%:60% --role rollout=40%:65% \
    -- trainer "$program" hog 1 -- trainer "$program" hog 2 -- rollout "$program" floor 3 500 || rc=$?
  [ "$rc" -eq 0 ] || { tail -5 "$CORRAL_QUOTA_LOG"; exit "$rc"; }
  grep -q trainer "$CORRAL_QUOTA_LOG" || { echo "the hog was never denied"; exit 1; }
  ! grep -q rollout "$CORRAL_QUOTA_LOG" || { echo "rollout was denied its floor"; grep rollout "$CORRAL_QUOTA_LOG" | head -3; exit 1; }
  ;;
ipc | shareable | external)
  # Another role's process is the owner, and dies. Its memory is then this role's: room for both is in its quota.
  rc=0
  "$node" --headroom "$headroom" --pair --role trainer=40%:60% --role rollout=30%:40% \
    -- rollout "$program" owner "$what" -- trainer "$program" "$what" || rc=$?
  case $rc in 0 | 77) ;; *) tail -5 "$CORRAL_QUOTA_LOG" ;; esac
  exit "$rc"
  ;;
*)
  rc=0
  "$node" --headroom "$headroom" --role trainer=40%:60% --role rollout=30%:40% -- trainer "$program" "$what" || rc=$?
  case $rc in 0 | 77) ;; *) tail -5 "$CORRAL_QUOTA_LOG" ;; esac
  # The canary's own refusals are not logged; one is asked for after it.
  if [ "$rc" -eq 0 ] && [ "$what" = canary ] && [ "$(grep -c 'memory denied' "$CORRAL_QUOTA_LOG")" -ne 1 ]; then
    echo "the canary's refusals are in the log:"
    head -3 "$CORRAL_QUOTA_LOG"
    exit 1
  fi
  # A loader that could not preload the library says so and goes on: no fence, and the canary has to find that out.
  if [ "$rc" -eq 0 ] && [ "$what" = canary ] && [ -n "${5:-}" ]; then
    if CORRAL_TEST_PRELOAD=$folder/missing.so "$node" --role trainer=40%:60% -- trainer "$program" canary >"$folder/open" 2>&1; then
      echo "the canary passed without a fence"
      exit 1
    fi
    grep -q "pre-flight" "$folder/open" || { cat "$folder/open"; exit 1; }
  fi
  exit "$rc"
  ;;
esac
