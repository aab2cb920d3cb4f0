#include "cli/cli.h"
#include <stdio.h>

int corral_cli_fail(const struct corral_error *err)
{
    /* A message about a file is already FILE:LINE:COL: error: …, in the form editors understand. */
    bool placed = err->status == CORRAL_INVALID && __builtin_strstr(err->text, ": error: ") != NULL;
    fprintf(stderr, "%s%s\n", placed ? "" : "rlctl: ", err->text);
    return err->status == CORRAL_INVALID || err->status == CORRAL_NOT_FOUND ? CORRAL_EXIT_USAGE
                                                                            : CORRAL_EXIT_FAILED;
}

int corral_cli_usage(const char *command, const char *fmt, ...)
{
    fprintf(stderr, "rlctl %s: ", command);
    va_list args;
    va_start(args, fmt);
    (void)vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "; see `rlctl %s --help`\n", command);
    return CORRAL_EXIT_USAGE;
}
