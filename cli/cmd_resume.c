/* rlctl resume: go on with a run from its newest checkpoint, under the same job, with version numbers above every earlier one. */
#include "base/clock.h"
#include "cli/cli.h"
#include "cli/run_job.h"
#include <getopt.h>
#include <stdio.h>

static void help(void)
{
    printf("Usage: rlctl resume [RUN] [--dir DIR] [--detach] [--json] [--quiet]\n\n"
           "Goes on with a run that was stopped, failed or crashed, from its newest complete checkpoint (or "
           "from the start when it has none).\n"
           "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n\n"
           "      --dir DIR   where runs are (default: runs)\n"
           "      --detach    return once every worker is up, and print the run's id\n"
           "  -j, --json      print the summary (with --detach, id and path) as JSON\n"
           "  -q, --quiet     no progress\n\n"
           "Example:\n"
           "  rlctl resume 7f3a\n");
}

int corral_cmd_resume(int argc, char **argv)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'}, {"detach", no_argument, NULL, 'D'},
        {"json", no_argument, NULL, 'j'},      {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},      {0}};
    uint64_t started_ns = corral_now_ns(&corral_clock_monotonic);
    struct corral_run_options run = {0};
    const char *dir = "runs";
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "jqh", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            dir = optarg;
            break;
        case 'D':
            run.detach = true;
            break;
        case 'j':
            run.json = true;
            break;
        case 'q':
            run.quiet = true;
            break;
        case 'h':
            help();
            return CORRAL_EXIT_DONE;
        default:
            return corral_cli_usage("resume", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind > 1) {
        return corral_cli_usage("resume", "one run at a time");
    }
    struct corral_error err = {0};
    char path[CORRAL_RUN_PATH_MAX];
    if (corral_run_folder_find(dir, optind < argc ? argv[optind] : NULL, path, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    struct corral_launch_file launch = {0};
    return corral_run_job(path, &launch, true, started_ns, &run);
}
