/* rlctl status: how a run stands, from what its coordinator writes four times a second. */
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

static void help(void)
{
    printf("Usage: rlctl status [RUN] [--dir DIR] [--json]\n\n"
           "Shows how a run stands: steps, returns, staleness, memory, restarts, and what each worker is "
           "doing.\n"
           "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n\n"
           "      --dir DIR   where runs are (default: runs)\n"
           "  -j, --json      status.json, with \"running\", \"state\" and \"path\"\n"
           "  -h, --help      this text\n\n"
           "Exit code: 0 shown, 2 no such run.\n\n"
           "Examples:\n"
           "  rlctl status\n"
           "  rlctl status 7f3a\n"
           "  rlctl status 7f3a --json | jq .step\n");
}

static const char *duration_of(double seconds, char *out, size_t out_bytes)
{
    if (isnan(seconds) || seconds < 0 || seconds > 1e9) {
        snprintf(out, out_bytes, "-");
        return out;
    }
    return corral_format_duration((uint64_t)(seconds * 1e9), out, out_bytes);
}

static void print_work(const json_t *s, bool running)
{
    char rate[48] = "", count[32], steps[32];
    double per_s = corral_view_number(s, "steps_per_s");
    if (running && !isnan(per_s)) {
        snprintf(rate, sizeof rate, "  %s steps/s", corral_format_count(per_s, count, sizeof count));
    }
    corral_format_count((double)corral_view_count(s, "env_steps"), steps, sizeof steps);
    uint64_t checkpoints = corral_view_count(s, "checkpoints");
    printf("  step       %" PRIu64 "  v%" PRIu64 "  %s environment steps%s  %" PRIu64
           " checkpoint%s written\n",
           corral_view_count(s, "step"), corral_view_count(s, "version"), steps, rate, checkpoints,
           checkpoints == 1 ? "" : "s");
}

static void print_return(const json_t *s)
{
    char mean[32];
    printf("  return     %s over the last %" PRIu64 " training episodes",
           corral_format_return(corral_view_number(s, "return_mean"), mean, sizeof mean),
           corral_view_count(s, "return_episodes"));
    const json_t *last = json_object_get(s, "eval_last");
    const json_t *best = json_object_get(s, "eval_best");
    if (json_is_object(last)) {
        char best_mean[32];
        printf("; eval %s at v%" PRIu64 ", best %s at v%" PRIu64,
               corral_format_return(corral_view_number(last, "mean"), mean, sizeof mean),
               corral_view_count(last, "version"),
               corral_format_return(corral_view_number(best, "mean"), best_mean, sizeof best_mean),
               corral_view_count(best, "version"));
    }
    printf("\n");
}

static void print_staleness(const json_t *s)
{
    char mean[32] = "-";
    if (!isnan(corral_view_number(s, "staleness_mean"))) {
        snprintf(mean, sizeof mean, "%.2f", corral_view_number(s, "staleness_mean"));
    }
    printf("  staleness  %s versions on average, %" PRIu64 " at most, %" PRIu64 " fragments dropped\n", mean,
           corral_view_count(s, "staleness_max"), corral_view_count(s, "dropped_stale"));
}

static void print_faults(const json_t *s)
{
    printf("  faults     %" PRIu64 " restarts, %" PRIu64 " episodes void, %" PRIu64
           " fragments resent, %" PRIu64 " duplicates refused, %" PRIu64 " violations of the memory fence\n",
           corral_view_count(s, "restarts"), corral_view_count(s, "void_episodes"),
           corral_view_count(s, "resent"), corral_view_count(s, "duplicates"),
           corral_view_count(s, "violations"));
}

/* What the partition's processes have put into host memory beside their quota (memory.spill), on all its devices. */
static uint64_t spilled_by(const json_t *s, const char *partition)
{
    size_t i, k;
    json_t *device, *role;
    uint64_t sum = 0;
    json_array_foreach(json_object_get(s, "devices"), i, device)
    {
        json_array_foreach(json_object_get(device, "roles"), k, role)
        {
            sum += strcmp(corral_view_text(role, "role"), partition) == 0 ? corral_view_count(role, "spilled")
                                                                          : 0;
        }
    }
    return sum;
}

static void print_memory(const json_t *s, bool running)
{
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(s, "memory"), i, p)
    {
        char used[48] = "", spilled[64] = "", peak[32], low[32], high[32], name[64];
        if (running) { /* afterwards nobody is there to use any */
            corral_format_bytes(corral_view_count(p, "used"), peak, sizeof peak);
            snprintf(used, sizeof used, "used %9s  ", peak);
        }
        uint64_t beside = spilled_by(s, corral_view_text(p, "partition"));
        if (beside > 0) {
            corral_format_bytes(beside, peak, sizeof peak);
            snprintf(spilled, sizeof spilled, "  %s spilled to host memory", peak);
        }
        corral_format_bytes(corral_view_count(p, "peak"), peak, sizeof peak);
        corral_format_bytes(corral_view_count(p, "floor"), low, sizeof low);
        corral_format_bytes(corral_view_count(p, "ceiling"), high, sizeof high);
        printf("  %-10s %-10s %speak %9s  floor %9s  ceiling %9s  %" PRIu64 " denied%s\n",
               i == 0 ? "memory" : "", corral_view_plain(corral_view_text(p, "partition"), name, sizeof name),
               used, peak, low, high, corral_view_count(p, "denied"), spilled);
    }
}

static void print_tenants(const json_t *s, bool running)
{
    size_t i;
    json_t *t;
    json_array_foreach(json_object_get(s, "tenants"), i, t)
    {
        char name[64], devices[64], state[32], reason[160], bytes[32], memory[48] = "";
        if (running) {
            corral_format_bytes(corral_view_count(t, "memory"), bytes, sizeof bytes);
            snprintf(memory, sizeof memory, "  memory %9s", bytes);
        }
        corral_view_plain(corral_view_text(t, "reason"), reason, sizeof reason);
        printf("  %-10s %-10s %-12s %-9s %" PRIu64 " restarts%s%s%s\n", i == 0 ? "tenants" : "",
               corral_view_plain(corral_view_text(t, "name"), name, sizeof name),
               corral_view_plain(corral_view_text(t, "devices"), devices, sizeof devices),
               corral_view_plain(corral_view_text(t, "state"), state, sizeof state),
               corral_view_count(t, "restarts"), memory, reason[0] ? "  after " : "", reason);
    }
}

/* "idle       63 % of a:6-7 (rollout 37 %)": what a coarse split of the devices wastes. */
static void print_idle(const json_t *s)
{
    size_t i;
    json_t *g, *share;
    bool first = true;
    json_array_foreach(json_object_get(s, "utilisation"), i, g)
    {
        char devices[128], who[256] = "", name[64];
        double idle = corral_view_number(g, "idle");
        const char *key;
        size_t used = 0;
        if (isnan(idle)) {
            continue;
        }
        json_object_foreach(json_object_get(g, "busy"), key, share)
        {
            if (json_is_number(share) && used + 1 < sizeof who) {
                int n = snprintf(who + used, sizeof who - used, "%s%s %.0f %%", used ? ", " : "",
                                 corral_view_plain(key, name, sizeof name), 100 * json_number_value(share));
                used += n > 0 ? (size_t)n : 0;
            }
        }
        printf("  %-10s %.0f %% of %s%s%s%s\n", first ? "idle" : "", 100 * idle,
               corral_view_plain(corral_view_text(g, "devices"), devices, sizeof devices), who[0] ? " (" : "",
               who, who[0] ? ")" : "");
        first = false;
    }
}

static void print_foreign(const json_t *s)
{
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(s, "devices"), i, d)
    {
        char bytes[32], device[64];
        if (corral_view_count(d, "foreign") > 0) {
            printf("  %-10s %s of %s by processes outside this run: under no quota\n", "foreign",
                   corral_format_bytes(corral_view_count(d, "foreign"), bytes, sizeof bytes),
                   corral_view_plain(corral_view_text(d, "device"), device, sizeof device));
        }
    }
}

static void print_workers(const json_t *s)
{
    size_t i;
    json_t *w;
    json_array_foreach(json_object_get(s, "workers"), i, w)
    {
        char name[64], device[64], state[32], activity[64], since[32], what[112];
        corral_format_duration(corral_view_count(w, "activity_ms") * CORRAL_NS_PER_MS, since, sizeof since);
        snprintf(what, sizeof what, "%s, %s",
                 corral_view_plain(corral_view_text(w, "activity"), activity, sizeof activity), since);
        if (i == 0) {
            printf("  %-14s %-8s %-9s %-28s %8s %9s\n", "worker", "device", "state", "doing, for", "pid",
                   "restarts");
        }
        printf("  %-14s %-8s %-9s %-28s %8" PRIu64 " %9" PRIu64 "\n",
               corral_view_plain(corral_view_text(w, "name"), name, sizeof name),
               corral_view_plain(corral_view_text(w, "device"), device, sizeof device),
               corral_view_plain(corral_view_text(w, "state"), state, sizeof state), what,
               corral_view_count(w, "pid"), corral_view_count(w, "restarts"));
    }
}

static void print_head(const struct corral_run_view *v)
{
    char elapsed[32], plain[512];
    const char *state = corral_run_view_state(v), *reason = corral_run_view_reason(v);
    printf("%s  run %s  %s", v->job, v->id, corral_view_plain(state, plain, sizeof plain));
    if (v->status && !v->status_stale) {
        duration_of(corral_view_number(v->status, "elapsed_s"), elapsed, sizeof elapsed);
        printf(v->pid ? " for %s" : " after %s", elapsed);
    }
    if (v->pid) {
        printf("  (process %d)", (int)v->pid);
    }
    if (reason[0]) {
        printf(": %s", corral_view_plain(reason, plain, sizeof plain));
    }
    printf("\n");
    if (strcmp(state, "crashed") == 0) {
        printf("  crashed: its process is gone and it never recorded an end; go on with `rlctl resume %s`\n",
               v->id);
    }
    printf("  folder     %s\n", v->path);
    if (v->note[0]) {
        printf("  note       %s\n", v->note);
    }
}

static void print_progress(const json_t *s)
{
    double share = corral_view_number(s, "progress");
    double left_s = corral_view_number(s, "eta_s");
    char left[32];
    if (!isnan(share)) {
        printf("  progress   %.0f %%", 100 * share);
        printf(isnan(left_s) ? "\n" : ", at most %s left\n", duration_of(left_s, left, sizeof left));
    }
}

static void print_text(const struct corral_run_view *v)
{
    print_head(v);
    if (!v->status || v->status_stale) {
        return;
    }
    print_work(v->status, v->pid != 0);
    print_return(v->status);
    print_staleness(v->status);
    if (v->pid) {
        print_progress(v->status);
    }
    print_faults(v->status);
    print_memory(v->status, v->pid != 0);
    print_idle(v->status);
    print_foreign(v->status);
    print_tenants(v->status, v->pid != 0);
    /* After an end in order there is nobody; after a crash it shows who was where. */
    if (v->pid || !v->ended) {
        if (!v->pid) {
            printf("  at the last report, before the crash:\n");
        }
        print_workers(v->status);
    }
}

static int print_json(const struct corral_run_view *v)
{
    json_t *root = v->status ? json_copy(v->status) : json_object();
    if (!v->status) {
        json_object_set_new(root, "job", json_string(v->job));
        json_object_set_new(root, "run", json_string(v->id));
    }
    json_object_set_new(root, "running", json_boolean(v->pid != 0));
    json_object_set_new(root, "state", json_string(corral_run_view_state(v)));
    json_object_set_new(root, "pid", json_integer(v->pid));
    json_object_set_new(root, "path", json_string(v->path));
    if (v->note[0]) {
        json_object_set_new(root, "note", json_string(v->note));
    }
    struct corral_error err;
    enum corral_status status = corral_json_print(stdout, root, &err);
    json_decref(root);
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

int corral_cmd_status(int argc, char **argv)
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
            return corral_cli_usage("status", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind > 1) {
        return corral_cli_usage("status", "one run at a time");
    }
    struct corral_error err;
    char path[CORRAL_RUN_PATH_MAX];
    if (corral_run_folder_find(dir, optind < argc ? argv[optind] : NULL, path, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view view;
    corral_run_view_read(&view, path);
    if (json) {
        return print_json(&view);
    }
    print_text(&view);
    return cli_flush();
}
