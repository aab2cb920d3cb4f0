/* rlctl quota: what every role may take and has taken of each device, asked of the running agents; and live changes of it. */
#include "base/clock.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include "orchestrator/job/job.h"
#include "orchestrator/observed.h"
#include "transport/bus/bus.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define LOGIN_MS 5000
#define ANSWER_NS (30 * CORRAL_NS_PER_S) /* beyond the wait that was asked for */
#define WAIT_DEFAULT "2s"
#define WAIT_NS_MAX (3600 * CORRAL_NS_PER_S)

static void help(FILE *to)
{
    fputs(
        "Usage: rlctl quota show [RUN] [--allocations] [--dir DIR] [--json]\n"
        "       rlctl quota set [RUN] PARTITION.floor=SIZE|PARTITION.ceiling=SIZE... [--wait TIME] [--dir "
        "DIR] "
        "[--json]\n"
        "\n"
        "show: per device and partition, what is guaranteed (floor) and allowed (ceiling), what is used and "
        "was\n"
        "used at most, what its processes really hold, and what was refused.\n"
        "set:  changes floors and ceilings of a run while it is on, per device, on all devices of the "
        "partition.\n"
        "All assignments of one command apply together or not at all. With a ceiling below what is used, the "
        "partition is\n"
        "held where it is and asked to shrink; what it has not given back when the wait is over refuses the "
        "change, and all\n"
        "is as before. The job's rules stay: floors and headroom fit into the device, ceilings into "
        "overcommit "
        "times the\n"
        "device. A tenant on host devices keeps its quota. `rlctl resume` starts from the job file again.\n"
        "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n"
        "\n"
        "      --allocations  show: also what the memory is for, by kind and phase\n"
        "      --wait TIME    set: how long to wait for memory to be given back (default: " WAIT_DEFAULT ")\n"
        "      --dir DIR      where runs are (default: runs)\n"
        "  -j, --json         the result as JSON\n"
        "  -h, --help         this text\n"
        "\n"
        "Exit code: 0 done, 1 refused or not running, 2 wrong usage or no such run.\n"
        "\n"
        "Examples:\n"
        "  rlctl quota show\n"
        "  rlctl quota set rollout.ceiling=96MiB\n"
        "  rlctl quota set 7f3a trainer.ceiling=48MiB rollout.ceiling=96MiB --wait 10s\n",
        to);
}

struct assignment {
    char role[CORRAL_JOB_NAME_MAX];
    bool set_floor, set_ceiling;
    uint64_t floor, ceiling;
};

struct arguments {
    bool set, json, allocations;
    const char *dir, *run;
    bool waits; /* --wait was given */
    uint64_t wait_ns;
    uint32_t count;
    struct assignment assignment[CORRAL_JOB_PARTITIONS_MAX];
};

/* ---- the conversation ---- */

struct conversation {
    void *zmq;
    struct corral_bus_client *bus;
    struct corral_mpack_writer *out;
};

static void hang_up(struct conversation *v)
{
    corral_bus_client_destroy(v->bus);
    corral_mpack_writer_destroy(v->out);
    if (v->zmq) {
        zmq_ctx_term(v->zmq);
    }
}

/* The run's sockets have names relative to its folder, so that becomes the current directory. */
static enum corral_status call(const char *path, struct conversation *v, struct corral_error *err)
{
    struct corral_launch_file launch;
    if (corral_run_folder_coordinator(path) == 0) {
        return corral_fail(err, CORRAL_STATE,
                           "run %s is not running: its quotas ended with it (`rlctl status` shows "
                           "the last ones)",
                           path);
    }
    if (chdir(path) != 0) {
        return corral_fail_sys(err, errno, "entering %s", path);
    }
    CORRAL_TRY(corral_launch_file_read("launch.json", &launch, err));
    v->zmq = zmq_ctx_new();
    v->out = corral_mpack_writer_create();
    if (!v->zmq || !v->out) {
        return corral_fail(err, CORRAL_NOMEM, "no room to talk to the run");
    }
    struct corral_bus_client_config config = {
        .zmq_context = v->zmq,
        .endpoint = launch.endpoint,
        .token = launch.token,
        .run = launch.run,
        .hello = {.kind = "cli", .epoch = 1, .pid = getpid()},
    };
    /* The start time tells it from an earlier client with this pid, whose connection may not be known to be dead. */
    snprintf(config.hello.name, sizeof config.hello.name, "cli-%d-%" PRIu64, (int)getpid(), corral_wall_ns());
    return corral_bus_client_create(&v->bus, &config, LOGIN_MS, err);
}

/* Next message of the run, before the deadline. */
static enum corral_status listen_for(struct conversation *v, uint64_t deadline_ns, char type[32],
                                     struct corral_mpack_reader **out, struct corral_error *err)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    uint64_t left_ms = now < deadline_ns ? (deadline_ns - now) / CORRAL_NS_PER_MS + 1 : 0;
    enum corral_status status = corral_bus_client_receive(v->bus, (uint32_t)left_ms, type, out, err);
    return status == CORRAL_AGAIN
               ? corral_fail(err, CORRAL_TIMEOUT, "the run does not answer; `rlctl logs` may say why")
               : status;
}

/* True at quota_end; CORRAL_DENIED with the run's reason when it said no. */
static enum corral_status is_end(const char *type, const struct corral_mpack_node *m, bool *over,
                                 struct corral_error *err)
{
    *over = strcmp(type, "quota_end") == 0;
    if (!*over) {
        return CORRAL_OK;
    }
    bool ok;
    char reason[400], plain[400];
    CORRAL_TRY(corral_mpack_get_bool(m, "ok", &ok, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    return ok ? CORRAL_OK
              : corral_fail(err, CORRAL_DENIED, "%s", corral_view_plain(reason, plain, sizeof plain));
}

/* ---- show ---- */

static void cell(uint64_t bytes, bool dash, char out[24])
{
    if (dash && bytes == 0) {
        snprintf(out, 24, "-");
    } else {
        corral_format_bytes(bytes, out, 24);
    }
}

static void print_role(const struct corral_observed_device *d, const struct corral_observed_role *r)
{
    char name[48], device[48], text[8][24];
    const uint64_t values[8] = {r->floor,    r->ceiling, r->used,   r->peak,
                                r->physical, r->spilled, r->pinned, r->wanted};
    for (int i = 0; i < 8; i++) {
        cell(values[i], i >= 4, text[i]);
    }
    printf("%-8s %-12s %10s %10s %10s %10s %10s %9s %9s %9s %8" PRIu64 "\n",
           corral_view_plain(d->device, device, sizeof device), corral_view_plain(r->role, name, sizeof name),
           text[0], text[1], text[2], text[3], text[4], text[5], text[6], text[7], r->denied);
    if (r->overhead > 0) {
        cell(r->overhead, false, text[0]);
        printf("%-8s %-12s %10s %10s %10s of it the driver's\n", "", "", "", "", text[0]);
    }
}

static void print_devices(const struct corral_observed *o, bool *headed)
{
    for (uint32_t i = 0; i < o->device_count; i++) {
        const struct corral_observed_device *d = &o->device[i];
        if (!*headed) {
            printf("%-8s %-12s %10s %10s %10s %10s %10s %9s %9s %9s %8s\n", "device", "partition", "floor",
                   "ceiling", "used", "peak", "physical", "spilled", "pinned", "wanted", "denied");
            *headed = true;
        }
        for (uint32_t r = 0; r < d->role_count; r++) {
            print_role(d, &d->role[r]);
        }
        if (d->foreign > 0) {
            char text[24];
            cell((uint64_t)d->foreign, false, text);
            printf("%-8s %-12s %54s  of processes outside this run\n", d->device, "(foreign)", text);
        }
    }
}

static enum corral_status print_allocations(const struct corral_mpack_node *list, struct corral_error *err)
{
    printf("\n%-8s %-12s %-10s %-10s %10s %12s\n", "device", "partition", "kind", "phase", "bytes",
           "allocations");
    for (uint32_t i = 0; i < corral_mpack_count(list); i++) {
        const struct corral_mpack_node *m = corral_mpack_at(list, i);
        char device[32], role[32], kind[32], phase[32], text[24], plain[4][32];
        uint64_t bytes, count;
        CORRAL_TRY(corral_mpack_get_str(m, "device", device, sizeof device, err));
        CORRAL_TRY(corral_mpack_get_str(m, "role", role, sizeof role, err));
        CORRAL_TRY(corral_mpack_get_str(m, "kind", kind, sizeof kind, err));
        CORRAL_TRY(corral_mpack_get_str(m, "phase", phase, sizeof phase, err));
        CORRAL_TRY(corral_mpack_get_u64(m, "bytes", &bytes, err));
        CORRAL_TRY(corral_mpack_get_u64(m, "count", &count, err));
        printf("%-8s %-12s %-10s %-10s %10s %12" PRIu64 "\n",
               corral_view_plain(device, plain[0], sizeof plain[0]),
               corral_view_plain(role, plain[1], sizeof plain[1]),
               corral_view_plain(kind, plain[2], sizeof plain[2]),
               corral_view_plain(phase, plain[3], sizeof plain[3]),
               corral_format_bytes(bytes, text, sizeof text), count);
    }
    return CORRAL_OK;
}

static enum corral_status allocations_json(const struct corral_mpack_node *list, json_t *out,
                                           struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_mpack_count(list); i++) {
        const struct corral_mpack_node *m = corral_mpack_at(list, i);
        json_t *object = json_object();
        static const char *const texts[] = {"device", "role", "kind", "phase"};
        static const char *const numbers[] = {"bytes", "count"};
        json_array_append_new(out, object);
        for (size_t k = 0; k < CORRAL_COUNT_OF(texts); k++) {
            char text[32];
            CORRAL_TRY(corral_mpack_get_str(m, texts[k], text, sizeof text, err));
            json_object_set_new(object, texts[k], json_string(text));
        }
        for (size_t k = 0; k < CORRAL_COUNT_OF(numbers); k++) {
            uint64_t number;
            CORRAL_TRY(corral_mpack_get_u64(m, numbers[k], &number, err));
            json_object_set_new(object, numbers[k], json_integer((json_int_t)number));
        }
    }
    return CORRAL_OK;
}

struct shown {
    json_t *devices, *allocations; /* with --json */
    bool headed;
};

/* One node's state, as its agent packed it. */
static enum corral_status take_state(const struct corral_mpack_node *m, const struct arguments *a,
                                     struct shown *s, struct corral_error *err)
{
    const void *body;
    size_t bytes;
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
    CORRAL_CLEANUP(corral_observed_free) struct corral_observed seen = {.device_count = 0};
    const struct corral_mpack_node *devices, *allocations;
    CORRAL_TRY(corral_mpack_get_bin(m, "body", &body, &bytes, err));
    CORRAL_TRY(corral_mpack_read(&reader, body, bytes, err));
    CORRAL_TRY(corral_mpack_get_node(corral_mpack_root(reader), "devices", &devices, err));
    CORRAL_TRY(corral_observed_read(devices, &seen, err));
    if (a->json) {
        json_t *list = corral_observed_json(&seen);
        json_array_extend(s->devices, list);
        json_decref(list);
    } else {
        print_devices(&seen, &s->headed);
    }
    if (!a->allocations) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_mpack_get_node(corral_mpack_root(reader), "allocations", &allocations, err));
    return a->json ? allocations_json(allocations, s->allocations, err) : print_allocations(allocations, err);
}

static enum corral_status show(struct conversation *v, const struct arguments *a, struct shown *s,
                               struct corral_error *err)
{
    corral_mpack_map(v->out, 2);
    corral_mpack_kv_str(v->out, "type", "quota_show");
    corral_mpack_kv_bool(v->out, "allocations", a->allocations);
    CORRAL_TRY(corral_bus_client_send(v->bus, v->out, err));
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + ANSWER_NS;
    for (bool over = false; !over;) {
        char type[32];
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        CORRAL_TRY(listen_for(v, deadline, type, &reader, err));
        CORRAL_TRY(is_end(type, corral_mpack_root(reader), &over, err));
        if (strcmp(type, "quota_state") == 0) {
            CORRAL_TRY(take_state(corral_mpack_root(reader), a, s, err));
        }
    }
    return CORRAL_OK;
}

static int run_show(struct conversation *v, const struct arguments *a)
{
    struct corral_error err;
    struct shown s = {.devices = json_array(), .allocations = json_array()};
    enum corral_status status = show(v, a, &s, &err);
    if (status == CORRAL_OK && a->json) {
        json_t *root = json_pack("{s:O}", "devices", s.devices);
        if (a->allocations) {
            json_object_set(root, "allocations", s.allocations);
        }
        status = corral_json_print(stdout, root, &err);
        json_decref(root);
    }
    json_decref(s.devices);
    json_decref(s.allocations);
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

/* ---- set ---- */

static enum corral_status set(struct conversation *v, const struct arguments *a, struct corral_error *err)
{
    corral_mpack_map(v->out, 3);
    corral_mpack_kv_str(v->out, "type", "quota_set");
    corral_mpack_kv_u64(v->out, "wait_ms", a->wait_ns / CORRAL_NS_PER_MS);
    corral_mpack_str(v->out, "changes");
    corral_mpack_array(v->out, a->count);
    for (uint32_t i = 0; i < a->count; i++) {
        const struct assignment *s = &a->assignment[i];
        corral_mpack_map(v->out, 1u + s->set_floor + s->set_ceiling);
        corral_mpack_kv_str(v->out, "role", s->role);
        if (s->set_floor) {
            corral_mpack_kv_u64(v->out, "floor", s->floor);
        }
        if (s->set_ceiling) {
            corral_mpack_kv_u64(v->out, "ceiling", s->ceiling);
        }
    }
    CORRAL_TRY(corral_bus_client_send(v->bus, v->out, err));
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + a->wait_ns + ANSWER_NS;
    for (bool over = false; !over;) {
        char type[32];
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        CORRAL_TRY(listen_for(v, deadline, type, &reader, err));
        CORRAL_TRY(is_end(type, corral_mpack_root(reader), &over, err));
    }
    return CORRAL_OK;
}

static int run_set(struct conversation *v, const struct arguments *a)
{
    struct corral_error err;
    enum corral_status status = set(v, a, &err);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    json_t *list = json_array();
    for (uint32_t i = 0; i < a->count; i++) {
        const struct assignment *s = &a->assignment[i];
        json_t *object = json_pack("{s:s}", "partition", s->role);
        char text[32];
        if (s->set_floor) {
            json_object_set_new(object, "floor", json_integer((json_int_t)s->floor));
        }
        if (s->set_ceiling) {
            json_object_set_new(object, "ceiling", json_integer((json_int_t)s->ceiling));
        }
        json_array_append_new(list, object);
        if (!a->json && s->set_floor) {
            printf("%s.floor is %s per device\n", s->role, corral_format_bytes(s->floor, text, sizeof text));
        }
        if (!a->json && s->set_ceiling) {
            printf("%s.ceiling is %s per device\n", s->role,
                   corral_format_bytes(s->ceiling, text, sizeof text));
        }
    }
    json_t *root = json_pack("{s:o}", "changed", list);
    status = a->json ? corral_json_print(stdout, root, &err) : CORRAL_OK;
    json_decref(root);
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

/* ---- arguments ---- */

/* "rollout.ceiling=96MiB" */
static enum corral_status add_assignment(struct arguments *a, const char *text, struct corral_error *err)
{
    const char *equals = strchr(text, '='), *dot = NULL;
    for (const char *c = text; c < equals; c++) {
        dot = *c == '.' ? c : dot;
    }
    size_t role_bytes = dot ? (size_t)(dot - text) : 0;
    size_t key_bytes = dot ? (size_t)(equals - dot) - 1 : 0;
    bool is_floor = key_bytes == 5 && strncmp(dot + 1, "floor", 5) == 0;
    bool is_ceiling = key_bytes == 7 && strncmp(dot + 1, "ceiling", 7) == 0;
    if (role_bytes == 0 || role_bytes >= CORRAL_JOB_NAME_MAX || (!is_floor && !is_ceiling)) {
        return corral_fail(err, CORRAL_INVALID,
                           "`%s` is not an assignment; write PARTITION.floor=SIZE or PARTITION.ceiling=SIZE",
                           text);
    }
    uint64_t bytes;
    enum corral_status status = corral_parse_bytes(equals + 1, &bytes, err);
    if (status != CORRAL_OK) {
        return corral_error_prefix(err, status, "%s", text);
    }
    struct assignment *s = a->assignment;
    while (s < a->assignment + a->count &&
           (strlen(s->role) != role_bytes || strncmp(s->role, text, role_bytes) != 0)) {
        s++;
    }
    if (s == a->assignment + a->count) {
        if (a->count == CORRAL_JOB_PARTITIONS_MAX) {
            return corral_fail(err, CORRAL_INVALID, "more than %d partitions", CORRAL_JOB_PARTITIONS_MAX);
        }
        *s = (struct assignment){.set_floor = false};
        memcpy(s->role, text, role_bytes);
        a->count++;
    }
    if (is_floor ? s->set_floor : s->set_ceiling) {
        return corral_fail(err, CORRAL_INVALID, "`%.*s` is given twice", (int)(equals - text), text);
    }
    if (is_floor) {
        s->set_floor = true;
        s->floor = bytes;
    } else {
        s->set_ceiling = true;
        s->ceiling = bytes;
    }
    return CORRAL_OK;
}

static enum corral_status take_words(struct arguments *a, int count, char **words, struct corral_error *err)
{
    for (int i = 0; i < count; i++) {
        if (a->set && strchr(words[i], '=')) {
            CORRAL_TRY(add_assignment(a, words[i], err));
        } else if (a->run) {
            return corral_fail(err, CORRAL_INVALID, "one run at a time");
        } else {
            a->run = words[i];
        }
    }
    return a->set && a->count == 0
               ? corral_fail(err, CORRAL_INVALID,
                             "nothing to set; write PARTITION.floor=SIZE or PARTITION.ceiling=SIZE")
               : CORRAL_OK;
}

/* 0: go on; else the exit code + 1. */
static int take_options(struct arguments *a, int argc, char **argv)
{
    static const struct option options[] = {
        {"allocations", no_argument, NULL, 'a'}, {"wait", required_argument, NULL, 'w'},
        {"dir", required_argument, NULL, 'd'},   {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},        {0}};
    struct corral_error err;
    int option;
    opterr = 0;
    optind = 0; /* starts getopt afresh */
    while ((option = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        switch (option) {
        case 'a':
            a->allocations = true;
            break;
        case 'w':
            if (corral_parse_duration(optarg, &a->wait_ns, &err) != CORRAL_OK || a->wait_ns > WAIT_NS_MAX) {
                return 1 + corral_cli_usage("quota", "--wait %s: write a time up to 1h, such as 10s", optarg);
            }
            a->waits = true;
            break;
        case 'd':
            a->dir = optarg;
            break;
        case 'j':
            a->json = true;
            break;
        case 'h':
            help(stdout);
            return 1 + cli_flush();
        default:
            return 1 + corral_cli_usage("quota", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    return 0;
}

int corral_cmd_quota(int argc, char **argv)
{
    struct corral_error err;
    struct arguments a = {.dir = "runs"};
    char path[CORRAL_RUN_PATH_MAX];
    (void)corral_parse_duration(WAIT_DEFAULT, &a.wait_ns, NULL);
    int code = take_options(&a, argc, argv);
    if (code != 0) {
        return code - 1;
    }
    const char *verb = optind < argc ? argv[optind] : "";
    a.set = strcmp(verb, "set") == 0;
    if (!a.set && strcmp(verb, "show") != 0) {
        return corral_cli_usage("quota", "say what to do: show or set");
    }
    if (a.set ? a.allocations : a.waits) {
        return corral_cli_usage("quota", "%s belongs to `rlctl quota %s`", a.set ? "--allocations" : "--wait",
                                a.set ? "show" : "set");
    }
    if (take_words(&a, argc - optind - 1, argv + optind + 1, &err) != CORRAL_OK) {
        return corral_cli_usage("quota", "%s", err.text);
    }
    if (corral_run_folder_find(a.dir, a.run, path, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    CORRAL_CLEANUP(hang_up) struct conversation v = {.zmq = NULL};
    if (call(path, &v, &err) != CORRAL_OK) {
        (void)corral_cli_fail(&err);
        return CORRAL_EXIT_FAILED;
    }
    return a.set ? run_set(&v, &a) : run_show(&v, &a);
}
