/* rlctl traj: the trajectories that a run has logged. */
#include "base/text.h"
#include "cli/set_args.h"
#include "cli/traj_log.h"
#include "orchestrator/run/run_folder.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void help(void)
{
    printf(
        "Usage: rlctl traj tail   [RUN] [-n COUNT] [-f] [FILTER...] [--json]\n"
        "       rlctl traj show   [RUN] [FILTER...] [--row ROW] [--all] [--json]\n"
        "       rlctl traj stats  [RUN] [FILTER...] [--json]\n"
        "       rlctl traj export [RUN] --format FORMAT [-o FILE] [FILTER...]\n\n"
        "Reads what a run with `stream.durability = \"wal\"` has logged; also while it runs, and after a "
        "crash.\n"
        "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n\n"
        "  tail    one line per record: the last ones, with -f also those to come\n"
        "  show    one record (the last that fits the filters) as an episode that a person can read\n"
        "  stats   records, lengths, scores, staleness and gaps by environment, worker and weight version\n"
        "  export  jsonl (one object per line, to standard output without -o), safetensors or npz (columns:\n"
        "          the tensors of all records end to end, their offsets, and a column per header field)\n\n"
        "  -n, --lines COUNT      tail: how many of each trainer rank (default: 10)\n"
        "  -f, --follow           tail: go on until the run ends\n"
        "      --row ROW          show: of a fragment, the environment whose steps are listed (default: 0)\n"
        "      --all              show: leave nothing out\n"
        "      --format FORMAT    export: jsonl, safetensors or npz\n"
        "  -o, --output FILE      export: where to; appears when it is whole\n"
        "      --no-tensors       export as jsonl: header fields only\n"
        "      --dir DIR          where runs are (default: runs)\n"
        "  -j, --json             objects instead of text\n"
        "  -h, --help             this text\n\n"
        "Filters: --env NAME, --rank N, --worker N, --epoch N, --sequence N, --episode N, --group N,\n"
        "         --position N (in its rank's log), --versions FROM-TO (any action in between), --last "
        "(show)\n\n"
        "Exit code: 0 printed, 1 a log is damaged or cannot be read or written, 2 no such run or record.\n\n"
        "Examples:\n"
        "  rlctl traj tail -f\n"
        "  rlctl traj show 7f3a --worker 2 --sequence 41\n"
        "  rlctl traj stats last --json | jq .env\n"
        "  rlctl traj export 7f3a --format npz -o run.npz --versions 100-200\n");
}

enum {
    DIR_ = 256,
    ROW,
    ALL,
    FORMAT,
    NO_TENSORS,
    ENV,
    RANK,
    WORKER,
    EPOCH,
    SEQUENCE,
    EPISODE,
    GROUP,
    POSITION,
    VERSIONS,
    LAST
};

static const struct option all_options[] = {{"lines", required_argument, NULL, 'n'},
                                            {"follow", no_argument, NULL, 'f'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"dir", required_argument, NULL, DIR_},
                                            {"row", required_argument, NULL, ROW},
                                            {"all", no_argument, NULL, ALL},
                                            {"format", required_argument, NULL, FORMAT},
                                            {"no-tensors", no_argument, NULL, NO_TENSORS},
                                            {"env", required_argument, NULL, ENV},
                                            {"rank", required_argument, NULL, RANK},
                                            {"worker", required_argument, NULL, WORKER},
                                            {"epoch", required_argument, NULL, EPOCH},
                                            {"sequence", required_argument, NULL, SEQUENCE},
                                            {"episode", required_argument, NULL, EPISODE},
                                            {"group", required_argument, NULL, GROUP},
                                            {"position", required_argument, NULL, POSITION},
                                            {"versions", required_argument, NULL, VERSIONS},
                                            {"last", no_argument, NULL, LAST},
                                            {0}};

static bool parse_versions(const char *text, struct traj_filter *f)
{
    char from[32];
    const char *dash = strchr(text, '-');
    size_t n = dash != NULL ? (size_t)(dash - text) : strlen(text);
    if (n >= sizeof from) {
        return false;
    }
    memcpy(from, text, n);
    from[n] = '\0';
    bool ok = corral_parse_u64(from, &f->version_from);
    f->version_to = f->version_from;
    return ok &&
           (dash == NULL || (corral_parse_u64(dash + 1, &f->version_to) && f->version_to >= f->version_from));
}

static bool parse_format(const char *text, enum traj_format *out)
{
    static const char *const names[] = {
        [TRAJ_JSONL] = "jsonl", [TRAJ_SAFETENSORS] = "safetensors", [TRAJ_NPZ] = "npz"};
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (enum traj_format)i;
            return true;
        }
    }
    return false;
}

/* Where the value of a numeric option goes. */
static uint64_t *number_of(int option, struct traj_arguments *a)
{
    switch (option) {
    case 'n':
        return &a->lines;
    case ROW:
        return &a->row;
    case RANK:
        return &a->filter.rank;
    case WORKER:
        return &a->filter.worker;
    case EPOCH:
        return &a->filter.epoch;
    case SEQUENCE:
        return &a->filter.sequence;
    case EPISODE:
        return &a->filter.episode;
    case GROUP:
        return &a->filter.group;
    case POSITION:
        return &a->filter.position;
    default:
        return NULL;
    }
}

/* The value was taken. */
static bool parse_other(int option, struct traj_arguments *a)
{
    switch (option) {
    case 'f':
        return a->follow = true;
    case 'j':
        return a->json = true;
    case ALL:
        return a->everything = true;
    case LAST:
        return true; /* what show does anyway */
    case NO_TENSORS:
        a->tensors = false;
        return true;
    case 'o':
        return (a->output = optarg) != NULL;
    case DIR_:
        return (a->dir = optarg) != NULL;
    case ENV:
        return (a->filter.env = optarg) != NULL;
    case FORMAT:
        return parse_format(optarg, &a->format);
    default:
        return parse_versions(optarg, &a->filter);
    }
}

int traj_parse(int argc, char **argv, const char *accepted, struct traj_arguments *a)
{
    char command[32];
    snprintf(command, sizeof command, "traj %s", argv[0]);
    *a = (struct traj_arguments){.dir = "runs",
                                 .filter = TRAJ_FILTER_ANY,
                                 .lines = 10,
                                 .tensors = true,
                                 .format = (enum traj_format) - 1};
    int option, at = -1;
    opterr = 0;
    optind = 0;
    while ((option = getopt_long(argc, argv, "n:fo:jh", all_options, &at)) != -1) {
        if (option == 'h') {
            help();
            return cli_flush();
        }
        const char *name = "";
        for (const struct option *o = all_options; o->name != NULL; o++) {
            name = o->val == option ? o->name : name;
        }
        bool filter = option >= ENV && option <= VERSIONS;
        char word[32];
        snprintf(word, sizeof word, " %s ", name);
        if (option == '?' || (!filter && option != DIR_ && option != 'j' && strstr(accepted, word) == NULL)) {
            return corral_cli_usage(command, "unknown option, or no value for %s", argv[optind - 1]);
        }
        uint64_t *number = number_of(option, a);
        if (number != NULL ? !corral_parse_u64(optarg, number) : !parse_other(option, a)) {
            return corral_cli_usage(command, "--%s does not take `%s`", name, optarg);
        }
    }
    if (argc - optind > 1) {
        return corral_cli_usage(command, "name one run");
    }
    a->run = optind < argc ? argv[optind] : NULL;
    return -1;
}

int traj_open(const struct traj_arguments *a, uint64_t last, struct traj_log **out)
{
    struct corral_error err;
    char path[CORRAL_RUN_PATH_MAX];
    if (corral_run_folder_find(a->dir, a->run, path, &err) != CORRAL_OK ||
        traj_log_open(out, path, &a->filter, last, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    if (traj_log_ranks(*out) == 0 && !a->follow) {
        fprintf(stderr,
                "rlctl: %s has no trajectory log%s; a job with `stream.durability = \"wal\"` keeps one\n",
                path, a->filter.rank != UINT64_MAX ? " of that rank" : "");
        traj_log_close(*out);
        *out = NULL;
        return CORRAL_EXIT_USAGE;
    }
    return -1;
}

int corral_cmd_traj(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*fn)(int argc, char **argv);
    } commands[] = {{"tail", traj_tail}, {"show", traj_show}, {"stats", traj_stats}, {"export", traj_export}};
    if (argc < 2) {
        return corral_cli_usage("traj", "say what to do: tail, show, stats or export");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help();
        return cli_flush();
    }
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].fn(argc - 1, argv + 1);
        }
    }
    return corral_cli_usage("traj", "there is no `%s`: tail, show, stats or export", argv[1]);
}
