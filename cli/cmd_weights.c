/* rlctl weights: where the weight versions of a run are, and which lanes this machine has and how fast they are. */
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include "cli/weights_probe.h"
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define METRICS_TAIL_BYTES 65536u /* of metrics.jsonl: the last steps */
#define PROBE_BYTES_DEFAULT "256MiB"
#define PROBE_BYTES_MAX (UINT64_C(4) << 30)

static void help(FILE *to)
{
    fputs("Usage: rlctl weights status [RUN] [--dir DIR] [--json]\n"
          "       rlctl weights probe [RUN] [--lanes NAME,...] [--bytes SIZE] [--dir DIR] [--json]\n"
          "\n"
          "status: the newest weight version of a run, how many were published, what the last push cost "
          "stage by "
          "stage,\n"
          "how many bytes deltas and casts saved, and which version each node and worker has: its digest, "
          "the lane it came by, and what went wrong. "
          "RUN "
          "is a\n"
          "run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n"
          "probe:  how fast each lane moves bytes, checked by digest, beside this machine's memcpy, and why "
          "a lane "
          "is not\n"
          "available. With RUN: within and between the nodes of a run that goes on, by its agents; without: "
          "between two\n"
          "ends in one process here.\n"
          "\n"
          "      --dir DIR      where runs are (default: runs)\n"
          "      --lanes LIST   probe: only these (default: all)\n"
          "      --bytes SIZE   probe: how much to move (default: " PROBE_BYTES_DEFAULT ")\n"
          "  -j, --json         the result as JSON\n"
          "  -h, --help         this text\n"
          "\n"
          "Exit code: 0 done, 1 failed, 2 wrong usage or no such run.\n"
          "\n"
          "Examples:\n"
          "  rlctl weights status\n"
          "  rlctl weights probe\n"
          "  rlctl weights probe last --bytes 64MiB\n"
          "  rlctl weights probe --lanes shm,tcp --bytes 1GiB --json\n",
          to);
}

struct arguments {
    bool json;
    const char *dir, *lanes;
    uint64_t bytes;
    bool probes; /* an option of only probe was given */
};

/* ---- status ---- */

/* What publishing cost in the last gradient steps, of metrics.jsonl. */
struct costs {
    uint32_t steps;
    double last_ms, mean_ms, max_ms;
};

static void add_line(const char *line, size_t bytes, struct costs *c)
{
    json_t *root = NULL;
    if (corral_json_parse(&root, "metrics.jsonl", line, bytes, NULL) != CORRAL_OK) {
        return; /* the first of the tail is cut */
    }
    double ms = corral_view_number(root, "publish_ms");
    if (strcmp(corral_view_text(root, "event"), "step") == 0 && !isnan(ms)) {
        c->steps++;
        c->last_ms = ms;
        c->mean_ms += (ms - c->mean_ms) / c->steps;
        c->max_ms = fmax(c->max_ms, ms);
    }
    json_decref(root);
}

static struct costs read_costs(const char *path)
{
    struct costs c = {0};
    char file[CORRAL_RUN_PATH_MAX + 32];
    snprintf(file, sizeof file, "%s/metrics.jsonl", path);
    FILE *from = fopen(file, "re");
    CORRAL_AUTO_FREE char *text = malloc(METRICS_TAIL_BYTES);
    if (from && text && fseek(from, 0, SEEK_END) == 0) {
        long size = ftell(from);
        long tail = size > (long)METRICS_TAIL_BYTES ? (long)METRICS_TAIL_BYTES : size;
        size_t bytes = fseek(from, size - tail, SEEK_SET) == 0 ? fread(text, 1, (size_t)tail, from) : 0;
        for (size_t at = 0; at < bytes;) {
            const char *end = memchr(text + at, '\n', bytes - at);
            size_t length = end ? (size_t)(end - text) - at : bytes - at;
            add_line(text + at, length, &c);
            at += length + 1;
        }
    }
    if (from) {
        (void)fclose(from);
    }
    return c;
}

static void print_workers(const json_t *status, uint64_t newest)
{
    size_t i;
    json_t *w;
    bool headed = false;
    json_array_foreach(json_object_get(status, "workers"), i, w)
    {
        char name[64], device[32], state[32], behind[32] = "-";
        uint64_t version = corral_view_count(w, "version");
        if (!headed) {
            printf("%-14s %-10s %-10s %12s %10s\n", "worker", "device", "state", "version", "behind");
            headed = true;
        }
        if (version > 0) {
            snprintf(behind, sizeof behind, "%" PRIu64, version < newest ? newest - version : 0);
        }
        printf("%-14s %-10s %-10s %12" PRIu64 " %10s\n",
               corral_view_plain(corral_view_text(w, "name"), name, sizeof name),
               corral_view_plain(corral_view_text(w, "device"), device, sizeof device),
               corral_view_plain(corral_view_text(w, "state"), state, sizeof state), version, behind);
    }
}

static const char *milliseconds(double ms, char out[32])
{
    return corral_format_duration(ms > 0 ? (uint64_t)(ms * 1e6) : 0, out, 32);
}

static uint64_t count_of(const json_t *of, const char *key)
{
    return corral_view_count(of, key);
}

static const char *nanoseconds(const json_t *of, const char *key, char out[32])
{
    return corral_format_duration(count_of(of, key), out, 32);
}

/* What deltas and casts have made of the bytes between nodes. */
static void print_saved(const json_t *push)
{
    uint64_t whole = count_of(push, "whole_total"), moved = count_of(push, "moved_total");
    char of[32], sent[32], saved[32], held[32];
    if (whole == 0) {
        return; /* one node, or nothing has arrived yet */
    }
    uint64_t less = whole > moved ? whole - moved : 0;
    printf("  bytes    %s sent to other nodes instead of %s: %s saved (%.0f %%); %" PRIu64
           " versions went as deltas; %s held for lanes and deltas\n",
           corral_format_bytes(moved, sent, sizeof sent), corral_format_bytes(whole, of, sizeof of),
           corral_format_bytes(less, saved, sizeof saved), 100.0 * (double)less / (double)whole,
           count_of(push, "deltas_total"), corral_format_bytes(count_of(push, "memory"), held, sizeof held));
}

static void print_push(const json_t *push)
{
    char size[32], t[7][32];
    if (count_of(push, "version") == 0) {
        return;
    }
    printf("last push  version %" PRIu64 ", %s: own store %s; %" PRIu64 " targets, %" PRIu64
           " dropped (%" PRIu64 " in all), %" PRIu64 " buckets sent again\n"
           "  stages   gather %s, pack %s, wire %s, apply %s, flip %s, pause %s, of the slowest node\n",
           count_of(push, "version"), corral_format_bytes(count_of(push, "bytes"), size, sizeof size),
           nanoseconds(push, "copy_ns", t[0]), count_of(push, "targets"), count_of(push, "dropped"),
           count_of(push, "dropped_total"), count_of(push, "resent_total"),
           nanoseconds(push, "gather_ns", t[1]), nanoseconds(push, "pack_ns", t[2]),
           nanoseconds(push, "wire_ns", t[3]), nanoseconds(push, "stage_ns", t[4]),
           nanoseconds(push, "apply_ns", t[5]), nanoseconds(push, "pause_ns", t[6]));
    print_saved(push);
}

static void print_nodes(const json_t *nodes)
{
    size_t i;
    json_t *n;
    json_array_foreach(nodes, i, n)
    {
        char name[64], lane[32], digest[40], error[200], t[3][32], size[32];
        if (i == 0) {
            printf("%-10s %10s %-9s %-10s %10s %9s %9s %9s %7s %7s %6s\n", "node", "version", "digest",
                   "lane", "bytes", "wire", "digesting", "flip", "resent", "aborted", "pulled");
        }
        corral_view_plain(corral_view_text(n, "digest"), digest, sizeof digest);
        corral_view_plain(corral_view_text(n, "lane"), lane, sizeof lane);
        printf("%-10s %10" PRIu64 " %-9.8s %-10s %10s %9s %9s %9s %7" PRIu64 " %7" PRIu64 " %6" PRIu64 "\n",
               corral_view_plain(corral_view_text(n, "node"), name, sizeof name), count_of(n, "version"),
               digest[0] ? digest : "-", lane[0] ? lane : "-",
               corral_format_bytes(count_of(n, "bytes"), size, sizeof size), nanoseconds(n, "wire_ns", t[0]),
               nanoseconds(n, "apply_ns", t[1]), nanoseconds(n, "flip_ns", t[2]), count_of(n, "resent"),
               count_of(n, "aborted"), count_of(n, "pulls"));
        corral_view_plain(corral_view_text(n, "error"), error, sizeof error);
        if (error[0]) {
            printf("           last error: %s\n", error);
        }
    }
}

static void print_status(const struct corral_run_view *v, const struct costs *c)
{
    uint64_t newest = corral_view_count(v->status, "version");
    printf("%s  run %s  %s\n", v->job, v->id, corral_run_view_state(v));
    printf("version    %" PRIu64 "; %" PRIu64 " published\n", newest,
           corral_view_count(v->status, "versions_pushed"));
    if (c->steps > 0) {
        char last[32], mean[32], most[32];
        printf("publish    %s last; mean %s, at most %s over the last %u gradient steps: from the trainer's\n"
               "           state to the last node that applied it\n",
               milliseconds(c->last_ms, last), milliseconds(c->mean_ms, mean), milliseconds(c->max_ms, most),
               c->steps);
    }
    const json_t *weights = json_object_get(v->status, "weights");
    char lanes[512];
    corral_view_plain(corral_view_text(weights, "lanes"), lanes, sizeof lanes);
    if (lanes[0]) {
        printf("lanes      %s\n", lanes);
    }
    print_push(json_object_get(weights, "push"));
    print_nodes(json_object_get(weights, "nodes"));
    print_workers(v->status, newest);
}

static json_t *status_json(const struct corral_run_view *v, const struct costs *c)
{
    size_t i;
    json_t *w, *workers = json_array();
    uint64_t newest = corral_view_count(v->status, "version");
    json_array_foreach(json_object_get(v->status, "workers"), i, w)
    {
        json_array_append_new(workers,
                              json_pack("{s:s, s:s, s:s, s:I}", "name", corral_view_text(w, "name"), "device",
                                        corral_view_text(w, "device"), "state", corral_view_text(w, "state"),
                                        "version", (json_int_t)corral_view_count(w, "version")));
    }
    json_t *root = json_pack("{s:s, s:s, s:s, s:I, s:I, s:o}", "job", v->job, "run", v->id, "state",
                             corral_run_view_state(v), "version", (json_int_t)newest, "published",
                             (json_int_t)corral_view_count(v->status, "versions_pushed"), "workers", workers);
    json_t *weights = json_object_get(v->status, "weights");
    if (weights) {
        json_object_set(root, "weights", weights);
    }
    if (c->steps > 0) {
        json_object_set_new(root, "publish_ms",
                            json_pack("{s:f, s:f, s:f, s:i}", "last", c->last_ms, "mean", c->mean_ms, "max",
                                      c->max_ms, "steps", (int)c->steps));
    }
    return root;
}

static int run_status(const struct arguments *a, const char *which)
{
    struct corral_error err;
    char path[CORRAL_RUN_PATH_MAX];
    if (corral_run_folder_find(a->dir, which, path, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view view;
    corral_run_view_read(&view, path);
    if (!view.status || view.status_stale) {
        (void)corral_fail(&err, CORRAL_STATE, "run %s has not said yet how it stands%s%s", path,
                          view.note[0] ? ": " : "", view.note);
        return corral_cli_fail(&err);
    }
    struct costs costs = read_costs(path);
    if (!a->json) {
        print_status(&view, &costs);
        return cli_flush();
    }
    json_t *root = status_json(&view, &costs);
    enum corral_status status = corral_json_print(stdout, root, &err);
    json_decref(root);
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

static int run_probe(const struct arguments *a, const char *which)
{
    struct corral_error err;
    char path[CORRAL_RUN_PATH_MAX];
    if (corral_run_folder_find(a->dir, which, path, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    return corral_weights_probe_run(path, a->lanes, a->bytes, a->json);
}

/* ---- the command line ---- */

/* 0: go on. Otherwise an exit code + 1. */
static int take_options(struct arguments *a, int argc, char **argv)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'},   {"lanes", required_argument, NULL, 'l'},
        {"bytes", required_argument, NULL, 'b'}, {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},        {0}};
    int option;
    opterr = 0;
    optind = 0; /* starts getopt afresh */
    while ((option = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            a->dir = optarg;
            break;
        case 'l':
            a->lanes = optarg;
            a->probes = true;
            break;
        case 'b':
            a->probes = true;
            if (corral_parse_bytes(optarg, &a->bytes, NULL) != CORRAL_OK || a->bytes == 0 ||
                a->bytes > PROBE_BYTES_MAX) {
                return 1 + corral_cli_usage("weights", "--bytes %s: write a size up to 4GiB, such as 64MiB",
                                            optarg);
            }
            break;
        case 'j':
            a->json = true;
            break;
        case 'h':
            help(stdout);
            return 1 + cli_flush();
        default:
            return 1 + corral_cli_usage("weights", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    return 0;
}

int corral_cmd_weights(int argc, char **argv)
{
    struct arguments a = {.dir = "runs"};
    (void)corral_parse_bytes(PROBE_BYTES_DEFAULT, &a.bytes, NULL);
    int code = take_options(&a, argc, argv);
    if (code != 0) {
        return code - 1;
    }
    const char *verb = optind < argc ? argv[optind] : "";
    bool probe = strcmp(verb, "probe") == 0;
    if (!probe && strcmp(verb, "status") != 0) {
        return corral_cli_usage("weights", "say what to do: status or probe");
    }
    if (!probe && a.probes) {
        return corral_cli_usage("weights", "--lanes and --bytes belong to `rlctl weights probe`");
    }
    if (argc - optind > 2) {
        return corral_cli_usage("weights", "one run at a time");
    }
    const char *run = optind + 1 < argc ? argv[optind + 1] : NULL;
    if (!probe) {
        return run_status(&a, run);
    }
    return run ? run_probe(&a, run) : corral_weights_probe_command(a.lanes, a.bytes, a.json);
}
