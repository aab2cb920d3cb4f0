#!/bin/bash
# layers.sh accepts an include that points down and refuses each kind that does not.
# usage: layers_test.sh PATH_TO_layers.sh
set -eu
layers=$(readlink -f "$1")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{base,quota,transport,rollout,trainer-bridge,envs,include/corral}
echo '#include "base/x.h"' >"$tree/quota/ok.c"
failures=0

expect() { # RESULT FILE LINE WHAT
    printf '%s\n' "$3" >"$tree/$2"
    local rc=0
    bash "$layers" "$tree" >/dev/null 2>&1 || rc=$?
    rm -f "$tree/$2"
    if [[ $rc -ne $1 ]]; then
        echo "layers.sh gave $rc, not $1, for $4" >&2
        failures=1
    fi
}

expect 0 rollout/a.c '#include "transport/x.h"' "an include that points down"
expect 0 base/a_test.c '#include "tests/check.h"' "a test that includes the test header"
expect 1 base/a.c '#include "quota/x.h"' "base reaching up"
expect 1 base/a.c '  #  include "quota/x.h"' "an include with spaces in it"
expect 1 transport/a.c '#include "quota/x.h"' "transport including quota"
expect 1 rollout/a.c '#include "trainer-bridge/x.h"' "rollout including trainer-bridge"
expect 1 trainer-bridge/a.c '#include "rollout/x.h"' "trainer-bridge including rollout"
expect 1 base/a.c '#include "../quota/x.h"' "a relative include"
expect 1 base/a.c '#include "absent.h"' "a bare name that is not beside the file"
expect 1 base/a.c '#include "tests/check.h"' "a library file that includes tests/"
expect 1 envs/a.c '#include "base/x.h"' "an environment including base"
expect 1 envs/a.c '#include <corral/quota.h>' "an environment including another public header"
expect 1 envs/a.c '#include "envs/b.h"' "an environment that does not compile outside the tree"
expect 0 envs/a_test.c '#include "rollout/x.h"' "a test of an environment that uses its host"
expect 1 envs/a_test.c '#include "orchestrator/x.h"' "a test of an environment reaching up"
expect 0 envs/a_for_tests.h '#include "tests/check.h"' "a header that only tests share"
expect 0 envs/a.c '#include <corral/env.h>' "an environment including its header"
expect 1 include/corral/a.h '#include "base/x.h"' "a public header including a private one"
mkdir "$tree/stray"
expect 1 stray/a.c 'int x;' "a folder that has no place in the order"
exit $failures
