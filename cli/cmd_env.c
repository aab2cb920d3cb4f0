/* rlctl env: list, check and measure environments. */
#include "base/json.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/set_args.h"
#include "rollout/env_host/bench.h"
#include "rollout/env_host/check.h"
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct request {
    const char *id, *library, *args;
    uint32_t envs, timeout_ms;
    double seconds;
    bool json;
};

static void usage(FILE *to)
{
    fputs("Usage: rlctl env list  [PLUGIN.so] [--json]\n"
          "       rlctl env check PLUGIN.so|ID [--id ID] [--library PLUGIN.so] [--args JSON] [--timeout "
          "TIME] [--json]\n"
          "       rlctl env bench PLUGIN.so|ID [--id ID] [--library PLUGIN.so] [--args JSON] [--envs N] "
          "[--seconds S] [--json]\n"
          "\n"
          "list    Shows the environments of a plug-in, or all that can be found: in the folders and files "
          "of CORRAL_ENV_PATH\n"
          "        (separated by colons) and the built-in ones.\n"
          "check   Runs every check of what <corral/env.h> asks of a plug-in, each in a process of its own, "
          "and says what was\n"
          "        seen. With a file and no --id, checks all its environments.\n"
          "bench   Measures environment steps per second on one core: the environment alone, through the "
          "runtime's vector, in a\n"
          "        child process, and with a small policy deciding.\n"
          "\n"
          "      --id ID              environment of a plug-in that has several\n"
          "      --library PLUGIN.so  plug-in file, when ID is given first\n"
          "      --args JSON          the environment's own arguments, a JSON object; default {}\n"
          "      --timeout TIME       check: longest time for one check, such as 5s; default 60s\n"
          "      --envs N             bench: environments in the batch; default 1024\n"
          "      --seconds S          bench: time for all measurements; default 7\n"
          "  -j, --json               machine-readable\n"
          "  -h, --help               this text\n"
          "\n"
          "Exit code: 0 all is well, 1 a check failed or a measurement did, 2 wrong usage or no such "
          "environment.\n"
          "\n"
          "Examples:\n"
          "  rlctl env list\n"
          "  rlctl env check ./my_env.so\n"
          "  rlctl env check GridWorld-v0 --args '{\"size\": 9}'\n"
          "  rlctl env bench CartPole-v1 --envs 4096 --json\n",
          to);
}

/* ---- list ---- */

struct listing {
    json_t *json;
    uint32_t count;
};

static void print_listed(void *ctx, const struct corral_env_listed *item)
{
    struct listing *l = ctx;
    bool broken = item->id[0] == '\0';
    l->count += !broken;
    if (l->json != NULL) {
        json_array_append_new(l->json,
                              broken ? json_pack("{s:s, s:s}", "path", item->path, "error", item->summary)
                                     : json_pack("{s:s, s:s, s:s}", "id", item->id, "summary", item->summary,
                                                 "path", item->path));
    } else if (broken) {
        fprintf(stderr, "rlctl: not usable: %s\n", item->summary);
    } else {
        printf("%-32s %s\n%-32s   %s\n", item->id, item->summary, "", item->path);
    }
}

static int list(const struct request *r)
{
    struct corral_error err = {0};
    struct listing l = {.json = r->json ? json_array() : NULL};
    enum corral_status status = corral_env_each(r->library, print_listed, &l, &err);
    if (status == CORRAL_OK && r->json) {
        status = corral_json_print(stdout, l.json, &err);
    }
    json_decref(l.json);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    if (l.count == 0 && !r->json) {
        fputs("rlctl: no environment found; name a plug-in file, or its folder in CORRAL_ENV_PATH\n", stderr);
    }
    return cli_flush();
}

/* ---- check ---- */

struct checking {
    json_t *lines;
    uint32_t count[3];
};

static void print_check(void *ctx, const struct corral_check_line *line)
{
    static const char *const words[] = {
        [CORRAL_CHECK_OK] = "ok", [CORRAL_CHECK_FAIL] = "FAIL", [CORRAL_CHECK_SKIPPED] = "skipped"};
    static const char *const json_words[] = {
        [CORRAL_CHECK_OK] = "ok", [CORRAL_CHECK_FAIL] = "fail", [CORRAL_CHECK_SKIPPED] = "skipped"};
    struct checking *c = ctx;
    c->count[line->result]++;
    if (c->lines != NULL) {
        json_t *item = json_pack("{s:s, s:s, s:s}", "check", line->name, "result", json_words[line->result],
                                 "seen", line->text);
        /* What a plug-in says may be anything; text that is no UTF-8 must not lose the line. */
        json_array_append_new(c->lines, item ? item
                                             : json_pack("{s:s, s:s, s:s}", "check", line->name, "result",
                                                         json_words[line->result], "seen", "(not UTF-8)"));
        return;
    }
    printf("  %-8s %-22s %s\n", words[line->result], line->name, line->text);
    fflush(stdout);
}

/* Prints, or with an array adds an object to it. */
static enum corral_status check_one(const struct request *r, const char *id, json_t *all, uint32_t *failed,
                                    struct corral_error *err)
{
    struct corral_check_config config = {
        .id = id, .library = r->library, .args_json = r->args, .timeout_ms = r->timeout_ms};
    struct checking c = {.lines = all ? json_array() : NULL};
    uint32_t failures = 0;
    if (all == NULL) {
        printf("%s\n", id ? id : r->library);
    }
    enum corral_status status = corral_env_check(&config, print_check, &c, &failures, err);
    if (status != CORRAL_OK) {
        json_decref(c.lines);
        return status;
    }
    *failed += failures;
    if (all != NULL) {
        json_array_append_new(all, json_pack("{s:s?, s:s?, s:i, s:o}", "id", id, "library", r->library,
                                             "failed", (int)failures, "checks", c.lines));
    } else {
        printf("  %u checks: %u ok, %u failed, %u skipped\n", c.count[0] + c.count[1] + c.count[2],
               c.count[CORRAL_CHECK_OK], c.count[CORRAL_CHECK_FAIL], c.count[CORRAL_CHECK_SKIPPED]);
    }
    return CORRAL_OK;
}

static enum corral_status check_all(const struct request *r, json_t *all, uint32_t *failed,
                                    struct corral_error *err)
{
    if (r->id != NULL) {
        if (r->library == NULL) { /* a name nobody offers is a mistake of the user, not of a plug-in */
            CORRAL_CLEANUP(corral_env_closep) struct corral_env_def *def = NULL;
            CORRAL_TRY(corral_env_open(&def, r->id, NULL, err));
        }
        return check_one(r, r->id, all, failed, err);
    }
    CORRAL_AUTO_FREE char(*ids)[CORRAL_ENV_ID_BYTES] = NULL;
    uint32_t count = 0;
    CORRAL_TRY(corral_env_check_ids(r->library, &ids, &count, err));
    for (uint32_t i = 0; i < count; i++) {
        CORRAL_TRY(check_one(r, ids[i], all, failed, err));
    }
    return CORRAL_OK;
}

static int check(const struct request *r)
{
    struct corral_error err = {0};
    json_t *all = r->json ? json_array() : NULL;
    uint32_t failed = 0;
    enum corral_status status = check_all(r, all, &failed, &err);
    if (status == CORRAL_OK && r->json) {
        status = corral_json_print(stdout, all, &err);
    }
    json_decref(all);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    int code = cli_flush();
    return code != CORRAL_EXIT_DONE ? code : failed > 0 ? CORRAL_EXIT_FAILED : CORRAL_EXIT_DONE;
}

/* ---- bench ---- */

static void print_rate(const char *what, const struct corral_bench_rate *rate)
{
    char median[32], low[32], high[32];
    printf(
        "  %-24s %8s steps/s   (%s to %s)\n", what, corral_format_count(rate->median, median, sizeof median),
        corral_format_count(rate->low, low, sizeof low), corral_format_count(rate->high, high, sizeof high));
}

static json_t *rate_json(const struct corral_bench_rate *rate)
{
    return json_pack("{s:o, s:o, s:o}", "median", corral_json_real(rate->median), "low",
                     corral_json_real(rate->low), "high", corral_json_real(rate->high));
}

static enum corral_status print_bench_json(const struct corral_bench_result *b, struct corral_error *err)
{
    json_t *value = json_pack(
        "{s:s, s:I, s:I, s:I, s:b, s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "id", b->id, "envs",
        (json_int_t)b->envs, "agents", (json_int_t)b->agents, "observation_bytes", (json_int_t)b->obs_bytes,
        "masked", b->masked, "runs", CORRAL_BENCH_RUNS, "unit", "environment steps per second", "alone",
        rate_json(&b->alone), "vector", rate_json(&b->vector), "child_process", rate_json(&b->isolated),
        "policy_32x32", rate_json(&b->policy), "observation_copy", rate_json(&b->copy),
        "step_time_to_copy_time", corral_json_real(b->alone_to_copy));
    if (value == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot print the measurements: out of memory");
    }
    enum corral_status status = corral_json_print(stdout, value, err);
    json_decref(value);
    return status;
}

static int bench(const struct request *r)
{
    struct corral_error err = {0};
    struct corral_bench_config config = {.id = r->id,
                                         .library = r->library,
                                         .args_json = r->args,
                                         .envs = r->envs,
                                         .seconds = r->seconds,
                                         .seed = 1};
    struct corral_bench_result b;
    if (corral_env_bench(&config, &b, &err) != CORRAL_OK ||
        (r->json && print_bench_json(&b, &err) != CORRAL_OK)) {
        return corral_cli_fail(&err);
    }
    if (!r->json) {
        printf("%s: %u environments, %u agent%s, %u bytes of observation each; one core, median of %d runs "
               "(lowest to highest)\n",
               b.id, b.envs, b.agents, b.agents == 1 ? "" : "s", b.obs_bytes, CORRAL_BENCH_RUNS);
        print_rate("the environment alone", &b.alone);
        print_rate("through the vector", &b.vector);
        print_rate("in a child process", &b.isolated);
        print_rate("with a policy, 32 x 32", &b.policy);
        printf("  a step takes as long as copying its observations %.1f times%s\n", b.alone_to_copy,
               b.masked ? "; picking legal actions included" : "");
    }
    return cli_flush();
}

/* ---- arguments ---- */

enum { OPT_ID = 256, OPT_LIBRARY, OPT_ARGS, OPT_TIMEOUT, OPT_ENVS, OPT_SECONDS };

/* Limits print in full: "1048576", not "1.04858e+06". */
static int read_number(const char *name, const char *text, double low, double high, double *out)
{
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(value >= low && value <= high)) {
        return corral_cli_usage("env", "%s needs a number from %.10g to %.10g, not `%s`", name, low, high,
                                text);
    }
    *out = value;
    return CORRAL_EXIT_DONE;
}

static int read_option(int c, struct request *r)
{
    double number = 0;
    uint64_t ns = 0;
    struct corral_error err = {0};
    int code = CORRAL_EXIT_DONE;
    switch (c) {
    case OPT_ID:
        r->id = optarg;
        return code;
    case OPT_LIBRARY:
        r->library = optarg;
        return code;
    case OPT_ARGS:
        r->args = optarg;
        return code;
    case OPT_TIMEOUT:
        if (corral_parse_duration(optarg, &ns, &err) != CORRAL_OK || ns < 1000000 || ns / 1000000 > 3600000) {
            return corral_cli_usage("env", "--timeout needs a time from 1ms to 1h, not `%s`", optarg);
        }
        r->timeout_ms = (uint32_t)(ns / 1000000);
        return code;
    case OPT_ENVS:
        code = read_number("--envs", optarg, 1, 1 << 20, &number);
        r->envs = (uint32_t)number;
        return code == CORRAL_EXIT_DONE && number != floor(number)
                   ? corral_cli_usage("env", "--envs needs a whole number")
                   : code;
    case OPT_SECONDS:
        return read_number("--seconds", optarg, 0.05, 3600, &r->seconds);
    default:
        r->json = true;
        return code;
    }
}

/* "./x.so" and "x.so" are files, "CartPole-v1" and "space/Name-v0" are ids. */
static bool is_file(const char *name)
{
    size_t n = strlen(name);
    return name[0] == '.' || name[0] == '/' || (n > 3 && strcmp(name + n - 3, ".so") == 0);
}

static int run(const char *what, const char *name, struct request *r)
{
    if (name != NULL && is_file(name)) {
        if (r->library != NULL) {
            return corral_cli_usage("env", "two plug-in files: %s and %s", name, r->library);
        }
        r->library = name;
    } else if (name != NULL) {
        if (r->id != NULL) {
            return corral_cli_usage("env", "two ids: %s and %s", name, r->id);
        }
        r->id = name;
    }
    if (strcmp(what, "list") == 0) {
        return r->id != NULL ? corral_cli_usage("env", "list takes a plug-in file, not an id") : list(r);
    }
    if (r->id == NULL && r->library == NULL) {
        return corral_cli_usage("env", "%s needs a plug-in file or an id", what);
    }
    return strcmp(what, "check") == 0 ? check(r) : bench(r);
}

int corral_cmd_env(int argc, char **argv)
{
    static const struct option options[] = {{"id", required_argument, NULL, OPT_ID},
                                            {"library", required_argument, NULL, OPT_LIBRARY},
                                            {"args", required_argument, NULL, OPT_ARGS},
                                            {"timeout", required_argument, NULL, OPT_TIMEOUT},
                                            {"envs", required_argument, NULL, OPT_ENVS},
                                            {"seconds", required_argument, NULL, OPT_SECONDS},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    static const char *const verbs[] = {"list", "check", "bench"};
    struct request r = {0};
    int c;
    optind = 0; /* starts getopt afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        if (c == 'h') {
            usage(stdout);
            return cli_flush();
        }
        if (c == '?') {
            return corral_cli_usage("env", "unknown option, or no value for %s", argv[optind - 1]);
        }
        int code = read_option(c, &r);
        if (code != CORRAL_EXIT_DONE) {
            return code;
        }
    }
    if (optind == argc) {
        return corral_cli_usage("env", "say what to do: list, check or bench");
    }
    const char *what = argv[optind];
    if (strcmp(what, "list") != 0 && strcmp(what, "check") != 0 && strcmp(what, "bench") != 0) {
        const char *near = corral_nearest(what, verbs, CORRAL_COUNT_OF(verbs));
        return near ? corral_cli_usage("env", "unknown action `%s`; did you mean `%s`?", what, near)
                    : corral_cli_usage("env", "unknown action `%s`; there are list, check and bench", what);
    }
    if (argc - optind > 2) {
        return corral_cli_usage("env", "name one environment at a time");
    }
    return run(what, argc - optind == 2 ? argv[optind + 1] : NULL, &r);
}
