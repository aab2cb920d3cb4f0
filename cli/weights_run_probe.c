/* `rlctl weights probe RUN`: the run's agents measure the lanes within and between their nodes; this asks, and shows. */
#include "base/clock.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include "cli/weights_probe.h"
#include "orchestrator/run/run_folder.h"
#include "transport/bus/bus.h"
#include "transport/weights/push/measure.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define LOGIN_MS 5000
#define ANSWER_MS 150000 /* a pair of nodes, all lanes: longer than the run itself waits */

struct call {
    void *zmq;
    struct corral_bus_client *bus;
    struct corral_mpack_writer *out;
    json_t *pairs; /* NULL: print */
    bool good;
};

static void hang_up(struct call *k)
{
    corral_bus_client_destroy(k->bus);
    corral_mpack_writer_destroy(k->out);
    if (k->zmq) {
        zmq_ctx_term(k->zmq);
    }
}

/* The run's sockets have names relative to its folder, so that becomes the current directory. */
static enum corral_status call_run(struct call *k, const char *path, struct corral_error *err)
{
    struct corral_launch_file launch;
    if (corral_run_folder_coordinator(path) == 0) {
        return corral_fail(err, CORRAL_STATE,
                           "run %s is not running; without a run, this machine's lanes are measured", path);
    }
    if (chdir(path) != 0) {
        return corral_fail_sys(err, errno, "entering %s", path);
    }
    CORRAL_TRY(corral_launch_file_read("launch.json", &launch, err));
    k->zmq = zmq_ctx_new();
    k->out = corral_mpack_writer_create();
    if (!k->zmq || !k->out) {
        return corral_fail(err, CORRAL_NOMEM, "no room to talk to the run");
    }
    struct corral_bus_client_config config = {
        .zmq_context = k->zmq,
        .endpoint = launch.endpoint,
        .token = launch.token,
        .run = launch.run,
        .hello = {.kind = "cli", .epoch = 1, .pid = getpid()},
    };
    snprintf(config.hello.name, sizeof config.hello.name, "cli-%d-%" PRIu64, (int)getpid(), corral_wall_ns());
    return corral_bus_client_create(&k->bus, &config, LOGIN_MS, err);
}

static enum corral_status show_lane(struct call *k, const struct corral_mpack_node *m, double rate,
                                    json_t *lanes, struct corral_error *err)
{
    char lane[32], reason[200], plain[2][200];
    uint64_t status, push_ns;
    struct corral_probe_row row = {.lane = plain[0], .reason = plain[1]};
    CORRAL_TRY(corral_mpack_get_str(m, "lane", lane, sizeof lane, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "status", &status, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "bytes", &row.bytes, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "push_ns", &push_ns, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "latency_ns", &row.latency_ns, err));
    corral_view_plain(lane, plain[0], sizeof plain[0]);
    corral_view_plain(reason, plain[1], sizeof plain[1]);
    row.status = status == CORRAL_OK            ? CORRAL_OK
                 : status == CORRAL_UNSUPPORTED ? CORRAL_UNSUPPORTED
                                                : CORRAL_PEER;
    row.rate = push_ns ? (double)row.bytes / (double)push_ns : 0;
    k->good &= row.status != CORRAL_PEER;
    if (lanes) {
        json_array_append_new(lanes, corral_weights_probe_json(&row, rate));
    } else {
        corral_weights_probe_row(&row, rate);
    }
    return CORRAL_OK;
}

static enum corral_status show_pair(struct call *k, const struct corral_mpack_node *m,
                                    struct corral_error *err)
{
    const struct corral_mpack_node *list;
    char from[64], to[64], plain[2][64];
    double rate;
    CORRAL_TRY(corral_mpack_get_str(m, "from", from, sizeof from, err));
    CORRAL_TRY(corral_mpack_get_str(m, "to", to, sizeof to, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "memcpy", &rate, err));
    CORRAL_TRY(corral_mpack_get_node(m, "lanes", &list, err));
    corral_view_plain(from, plain[0], sizeof plain[0]);
    corral_view_plain(to, plain[1], sizeof plain[1]);
    json_t *lanes = NULL;
    if (k->pairs) {
        lanes = json_array();
        json_array_append_new(k->pairs, json_pack("{s:s, s:s, s:f, s:o}", "from", plain[0], "to", plain[1],
                                                  "memcpy_gb_per_s", rate, "lanes", lanes));
    } else {
        corral_weights_probe_heading(plain[0], strcmp(from, to) == 0 ? "" : plain[1], rate);
    }
    if (corral_mpack_count(list) == 0) {
        k->good = false;
        if (!k->pairs) {
            printf("  nothing could be measured\n");
        }
    }
    for (uint32_t i = 0; i < corral_mpack_count(list); i++) {
        CORRAL_TRY(show_lane(k, corral_mpack_at(list, i), rate, lanes, err));
    }
    return k->pairs ? CORRAL_OK : cli_flush() == 0 ? CORRAL_OK : corral_fail(err, CORRAL_IO, "cannot write");
}

static enum corral_status converse(struct call *k, const char *lanes, uint64_t bytes,
                                   struct corral_error *err)
{
    corral_mpack_map(k->out, 3);
    corral_mpack_kv_str(k->out, "type", "weights_probe");
    corral_mpack_kv_u64(k->out, "bytes", bytes);
    corral_mpack_kv_str(k->out, "lanes", lanes ? lanes : "");
    CORRAL_TRY(corral_bus_client_send(k->bus, k->out, err));
    for (;;) {
        char type[32], reason[400], plain[400];
        bool ok;
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        enum corral_status status = corral_bus_client_receive(k->bus, ANSWER_MS, type, &reader, err);
        if (status == CORRAL_AGAIN) {
            return corral_fail(err, CORRAL_TIMEOUT, "the run does not answer; `rlctl logs` may say why");
        }
        CORRAL_TRY(status);
        const struct corral_mpack_node *m = corral_mpack_root(reader);
        if (strcmp(type, "weights_probed") == 0) {
            CORRAL_TRY(show_pair(k, m, err));
        } else if (strcmp(type, "weights_end") == 0) {
            CORRAL_TRY(corral_mpack_get_bool(m, "ok", &ok, err));
            CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
            return ok ? CORRAL_OK
                      : corral_fail(err, CORRAL_DENIED, "%s", corral_view_plain(reason, plain, sizeof plain));
        }
    }
}

int corral_weights_probe_run(const char *path, const char *lanes, uint64_t bytes, bool json)
{
    struct corral_error err;
    struct call k = {.good = true, .pairs = json ? json_array() : NULL};
    enum corral_status status = corral_lanes_check_names(lanes, &err);
    if (status == CORRAL_OK) {
        status = call_run(&k, path, &err);
    }
    if (status == CORRAL_OK) {
        status = converse(&k, lanes, bytes, &err);
    }
    hang_up(&k);
    if (status == CORRAL_OK && json) {
        json_t *root = json_pack("{s:O}", "pairs", k.pairs);
        status = corral_json_print(stdout, root, &err);
        json_decref(root);
    }
    json_decref(k.pairs);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    int code = cli_flush();
    return k.good ? code : CORRAL_EXIT_FAILED;
}
