/* rlctl config: the option table as a page, and a job file with everything filled in. */
#include "cli/cli.h"
#include "cli/set_args.h"
#include "orchestrator/job/job.h"
#include <getopt.h>
#include <string.h>

static void usage(FILE *to)
{
    fputs("Usage: rlctl config reference\n"
          "       rlctl config show JOB [--plain] [--set SECTION.KEY=VALUE]...\n"
          "\n"
          "reference  every option of a job file with type, default and range, as Markdown\n"
          "show       the job with all values resolved, as TOML that reads back to the same job; a comment "
          "on each\n"
          "           line says where the value came from\n"
          "\n"
          "  -s, --set KEY=VALUE  override a value of the file; may be repeated\n"
          "      --plain          without the comments\n"
          "  -h, --help           this text\n"
          "\n"
          "Examples:\n"
          "  rlctl config reference > reference.md\n"
          "  rlctl config show job.toml --set partition.trainer.ceiling=96MiB\n",
          to);
}

static int show(const char *path, bool plain, const struct cli_sets *sets)
{
    struct corral_error err;
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    enum corral_status status = corral_job_load(path, sets->text, sets->count, &job, &err);
    if (status == CORRAL_OK) {
        status = corral_job_print(job, !plain, stdout, &err);
        if (status != CORRAL_OK) {
            return corral_cli_fail(&err);
        }
        return cli_flush();
    }
    return corral_cli_fail(&err);
}

static int reference(void)
{
    struct corral_error err;
    if (corral_job_reference(stdout, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    return cli_flush();
}

int corral_cmd_config(int argc, char **argv)
{
    enum { OPTION_PLAIN = 256 };
    static const struct option options[] = {{"set", required_argument, NULL, 's'},
                                            {"plain", no_argument, NULL, OPTION_PLAIN},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct cli_sets sets = {.count = 0};
    bool plain = false;
    int c;
    optind = 0; /* starts getopt afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, "s:h", options, NULL)) != -1) {
        switch (c) {
        case 's':
            if (!cli_sets_add(&sets, optarg)) {
                return corral_cli_usage("config", "more than %d --set arguments", CLI_SETS_MAX);
            }
            break;
        case OPTION_PLAIN:
            plain = true;
            break;
        case 'h':
            usage(stdout);
            return cli_flush();
        default:
            return corral_cli_usage("config", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    const int left = argc - optind;
    if (left == 1 && strcmp(argv[optind], "reference") == 0) {
        return reference();
    }
    if (left == 2 && strcmp(argv[optind], "show") == 0) {
        return show(argv[optind + 1], plain, &sets);
    }
    return corral_cli_usage("config", "write `reference` or `show JOB`");
}
