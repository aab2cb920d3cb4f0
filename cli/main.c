#include "base/text.h"
#include "cli/cli.h"
#include <stdio.h>
#include <string.h>

const struct corral_command corral_commands[] = {
    {"launch", "run a job to its end", corral_cmd_launch, false},
    {"plan", "show what a job would run where, and whether it fits", corral_cmd_plan, false},
    {"status", "show how a run stands", corral_cmd_status, false},
    {"audit", "check the proof that every gradient step left", corral_cmd_audit, false},
    {"list", "list runs", corral_cmd_list, false},
    {"logs", "print what a run's processes logged", corral_cmd_logs, false},
    {"quota", "show or change a running job's memory quotas", corral_cmd_quota, false},
    {"weights", "show where weight versions are, or measure lanes", corral_cmd_weights, false},
    {"traj", "show, count or export the trajectories that a run has logged", corral_cmd_traj, false},
    {"stop", "end a run in order, with a checkpoint", corral_cmd_stop, false},
    {"resume", "go on with a run that ended or crashed", corral_cmd_resume, false},
    {"devices", "show this machine's devices, or a job's", corral_cmd_devices, false},
    {"doctor", "try every fence of this machine, and say what is missing", corral_cmd_doctor, false},
    {"config", "explain job files: show, reference", corral_cmd_config, false},
    {"env", "list, check and measure environments", corral_cmd_env, false},
    {"completion", "print a shell completion script", corral_cmd_completion, false},
    {"agent", "join a run from another node", corral_cmd_agent, false},
    {"worker", "a worker process (started by an agent)", corral_cmd_worker, true},
    {"tenant", "a tenant's program (started by an agent)", corral_cmd_tenant, true},
    {"canary", "try a GPU fence from inside (started by an agent)", corral_cmd_canary, true},
    {NULL, NULL, NULL, false},
};

static void print_help(FILE *to)
{
    fprintf(to,
            "rlctl: agent-RL jobs on a small GPU cluster\n\nUsage: rlctl COMMAND [OPTIONS]\n\nCommands:\n");
    for (const struct corral_command *c = corral_commands; c->name; c++) {
        if (!c->hidden) {
            fprintf(to, "  %-11s %s\n", c->name, c->summary);
        }
    }
    fprintf(to, "\n`rlctl COMMAND --help` explains one, with examples. Start here:\n"
                "  rlctl plan configs/cartpole.toml      what would run, and the memory it takes\n"
                "  rlctl launch configs/cartpole.toml    run it\n");
}

static int unknown_command(const char *name)
{
    const char *names[sizeof corral_commands / sizeof corral_commands[0]];
    size_t count = 0;
    for (const struct corral_command *c = corral_commands; c->name; c++) {
        if (!c->hidden) {
            names[count++] = c->name;
        }
    }
    const char *near = corral_nearest(name, names, count);
    if (near) {
        fprintf(stderr, "rlctl: unknown command `%s`; did you mean `%s`?\n", name, near);
    } else {
        fprintf(stderr, "rlctl: unknown command `%s`; `rlctl --help` lists them\n", name);
    }
    return CORRAL_EXIT_USAGE;
}

static int run_command(int argc, char **argv)
{
    for (const struct corral_command *c = corral_commands; c->name; c++) {
        if (strcmp(c->name, argv[0]) == 0) {
            return c->fn(argc, argv);
        }
    }
    return unknown_command(argv[0]);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CORRAL_EXIT_USAGE;
    }
    if (argc > 2 && strcmp(argv[1], "help") == 0) {
        char option[] = "--help";
        char *asked[] = {argv[2], option, NULL};
        return run_command(2, asked);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return CORRAL_EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("rlctl %s\n", CORRAL_VERSION);
        return CORRAL_EXIT_DONE;
    }
    return run_command(argc - 1, argv + 1);
}
