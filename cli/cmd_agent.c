#include "base/log.h"
#include "cli/cli.h"
#include "orchestrator/agent/agent.h"
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void help(void)
{
    printf(
        "Usage: rlctl agent --node NAME [--dir FOLDER]\n\n"
        "Runs the agent of one node of a job. `rlctl launch` starts the agents of nodes on its own machine "
        "by itself. For a node with an `address`,\n"
        "copy the run folder's job.toml and launch.json (which holds the run's secrets) to a folder on that "
        "node and start the agent there.\n\n"
        "  --node NAME     the node, as named in the job\n"
        "  --dir FOLDER    the run folder, or the copy of it (default: the current directory)\n\n"
        "Example, on node b:\n"
        "  scp -p head:runs/wordle-7f3a12bc/{job.toml,launch.json} run/ && rlctl agent --node b --dir run\n");
}

int corral_cmd_agent(int argc, char **argv)
{
    static const struct option options[] = {{"node", required_argument, NULL, 'n'},
                                            {"dir", required_argument, NULL, 'd'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *node = NULL, *dir = NULL;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == 'h') {
            help();
            return CORRAL_EXIT_DONE;
        }
        if (option == '?') {
            return corral_cli_usage("agent", "unknown option, or no value for %s", argv[optind - 1]);
        }
        *(option == 'n' ? &node : &dir) = optarg;
    }
    if (!node || optind != argc) {
        return corral_cli_usage("agent", "--node is needed");
    }
    struct corral_error err = {0};
    if (dir && chdir(dir) != 0) {
        corral_fail_sys(&err, errno, "--dir %s", dir);
        return corral_cli_fail(&err);
    }
    if (access("job.toml", F_OK) != 0) { /* before anything is made in a folder that is no run's */
        corral_fail(&err, CORRAL_NOT_FOUND, "no job.toml in %s: it is not a run folder, nor a copy of one",
                    dir ? dir : ".");
        return corral_cli_fail(&err);
    }
    for (int i = 0; i < 2; i++) {
        static const char *const folders[] = {"logs", "sock"};
        (void)mkdir(folders[i], 0700); /* a copy of a run folder has none */
    }
    if (corral_agent_run(node, &err) != CORRAL_OK) {
        corral_log_error("gives up", LOG_ERR(&err));
        return CORRAL_EXIT_FAILED;
    }
    return CORRAL_EXIT_DONE;
}
