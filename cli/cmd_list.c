/* rlctl list: one line per run. */
#include "base/clock.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void help(void)
{
    printf("Usage: rlctl list [--dir DIR] [--json]\n\n"
           "Lists runs, oldest first: id, job, when it was launched, state, gradient steps and the best "
           "evaluation.\n"
           "A state is starting, running, finishing, learned, done, stopped, failed or crashed.\n\n"
           "      --dir DIR   where runs are (default: runs)\n"
           "  -j, --json      an array of objects\n"
           "  -h, --help      this text\n\n"
           "Examples:\n"
           "  rlctl list\n"
           "  rlctl list --json | jq -r '.[] | select(.state == \"crashed\") | .id'\n");
}

struct listing {
    json_t *json; /* NULL: a table */
    size_t count;
};

static double best_return(const struct corral_run_view *v)
{
    return corral_view_number(json_object_get(v->status, "eval_best"), "mean");
}

/* For people, or with the zone for programs. */
static void time_text(uint64_t wall_ns, bool zone, char *out, size_t out_bytes)
{
    time_t seconds = (time_t)(wall_ns / CORRAL_NS_PER_S);
    struct tm local;
    out[0] = '\0';
    if (wall_ns && localtime_r(&seconds, &local)) {
        (void)!(zone ? strftime(out, out_bytes, "%Y-%m-%dT%H:%M:%S%z", &local)
                     : strftime(out, out_bytes, "%Y-%m-%d %H:%M:%S", &local));
    }
}

static enum corral_status add_json(const struct listing *l, const struct corral_run_view *v,
                                   struct corral_error *err)
{
    char started[64];
    time_text(v->started_wall_ns, true, started, sizeof started);
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:s, s:I, s:I, s:o, s:s, s:s}", "id", v->id, "job", v->job,
                  "started", started, "state", corral_run_view_state(v), "running", v->pid != 0, "reason",
                  corral_run_view_reason(v), "step", (json_int_t)corral_view_count(v->status, "step"),
                  "env_steps", (json_int_t)corral_view_count(v->status, "env_steps"), "eval_best",
                  corral_json_real(best_return(v)), "path", v->path, "note", v->note);
    if (!row || json_array_append_new(l->json, row) != 0) {
        return corral_fail(err, CORRAL_NOMEM, "cannot list %s", v->path);
    }
    return CORRAL_OK;
}

static void print_row(struct listing *l, const struct corral_run_view *v)
{
    char started[64], best[32], steps[32] = "-", state[32];
    if (l->count++ == 0) {
        printf("%-9s %-24s %-19s %-9s %9s %10s\n", "id", "job", "started", "state", "steps", "best eval");
    }
    time_text(v->started_wall_ns, false, started, sizeof started);
    if (v->status) {
        snprintf(steps, sizeof steps, "%" PRIu64, corral_view_count(v->status, "step"));
    }
    corral_format_return(best_return(v), best, sizeof best);
    printf("%-9s %-24s %-19s %-9s %9s %10s%s%s\n", v->id, v->job, started,
           corral_view_plain(corral_run_view_state(v), state, sizeof state), steps, best,
           v->note[0] ? "  note: " : "", v->note);
}

static enum corral_status on_run(void *ctx, const char *path, struct corral_error *err)
{
    struct listing *l = ctx;
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view view;
    corral_run_view_read(&view, path);
    if (l->json) {
        return add_json(l, &view, err);
    }
    print_row(l, &view);
    return CORRAL_OK;
}

static int list(const char *dir, bool json)
{
    struct corral_error err;
    struct listing l = {.json = json ? json_array() : NULL};
    enum corral_status status = corral_run_folder_each(dir, on_run, &l, &err);
    if (status == CORRAL_OK && json) {
        status = corral_json_print(stdout, l.json, &err);
    } else if (status == CORRAL_OK && l.count == 0) {
        fprintf(stderr, "no runs in %s yet; start one with `rlctl launch JOB`\n", dir);
    }
    json_decref(l.json);
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

int corral_cmd_list(int argc, char **argv)
{
    static const struct option options[] = {{"dir", required_argument, NULL, 'd'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *dir = "runs";
    bool json = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            dir = optarg;
            break;
        case 'j':
            json = true;
            break;
        case 'h':
            help();
            return cli_flush();
        default:
            return corral_cli_usage("list", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (optind < argc) {
        return corral_cli_usage("list", "it takes no run; `rlctl status RUN` shows one");
    }
    return list(dir, json);
}
