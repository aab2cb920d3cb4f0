/* What commands that read a job file share: repeated --set arguments, and output that must arrive. */
#ifndef CORRAL_CLI_SET_ARGS_H
#define CORRAL_CLI_SET_ARGS_H

#include "cli/cli.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CLI_SETS_MAX 256

struct cli_sets {
    const char *text[CLI_SETS_MAX];
    uint32_t count;
};

/* False when there are too many. */
static inline bool cli_sets_add(struct cli_sets *sets, const char *text)
{
    if (sets->count == CLI_SETS_MAX) {
        return false;
    }
    sets->text[sets->count++] = text;
    return true;
}

/* Results must arrive: a full disk or a closed pipe is a failure. */
static inline int cli_flush(void)
{
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
        fputs("rlctl: cannot write to standard output\n", stderr);
        return CORRAL_EXIT_FAILED;
    }
    return CORRAL_EXIT_DONE;
}

#endif
