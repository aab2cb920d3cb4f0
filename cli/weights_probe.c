#include "cli/weights_probe.h"
#include "base/clock.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cli/set_args.h"
#include "transport/weights/push/measure.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MEMCPY_BYTES_MAX (UINT64_C(256) << 20)

void corral_weights_probe_heading(const char *from, const char *to, double memcpy_rate)
{
    printf("%s%s%s: memcpy %.2f GB/s\n", from, to[0] ? " → " : "", to, memcpy_rate);
    printf("  %-9s %9s %10s %10s\n", "lane", "GB/s", "µs", "of memcpy");
}

void corral_weights_probe_row(const struct corral_probe_row *r, double memcpy_rate)
{
    if (r->status != CORRAL_OK) {
        printf("  %-9s %9s  %s\n", r->lane, r->status == CORRAL_UNSUPPORTED ? "not here" : "failed",
               r->reason);
        return;
    }
    printf("  %-9s %9.2f %9.1f ", r->lane, r->rate, (double)r->latency_ns / 1e3);
    if (memcpy_rate > 0) {
        printf("%8.0f %%\n", 100 * r->rate / memcpy_rate);
    } else {
        printf("%10s\n", "-");
    }
}

json_t *corral_weights_probe_json(const struct corral_probe_row *r, double memcpy_rate)
{
    json_t *lane = json_pack("{s:s, s:b}", "lane", r->lane, "usable", r->status == CORRAL_OK);
    if (r->status != CORRAL_OK) {
        json_object_set_new(lane, "status", json_string(corral_status_name(r->status)));
        json_object_set_new(lane, "reason", json_string(r->reason));
        return lane;
    }
    json_object_set_new(lane, "gb_per_s", json_real(r->rate));
    json_object_set_new(lane, "latency_us", json_real((double)r->latency_ns / 1e3));
    json_object_set_new(lane, "bytes", json_integer((json_int_t)r->bytes));
    json_object_set_new(lane, "of_memcpy", memcpy_rate > 0 ? json_real(r->rate / memcpy_rate) : json_null());
    return lane;
}

int corral_weights_probe_command(const char *lanes, uint64_t bytes, bool json)
{
    struct corral_error err = {0};
    struct corral_lane_measure m[CORRAL_LANE_KINDS];
    if (corral_lanes_check_names(lanes, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    struct corral_lane_probe_options options = {.bytes = bytes};
    double rate = corral_memcpy_rate(CORRAL_MIN(bytes, MEMCPY_BYTES_MAX));
    uint32_t count = corral_lanes_measure(NULL, NULL, lanes, &options, m);
    bool good = true;
    json_t *list = json_array();
    if (!json) {
        corral_weights_probe_heading("this machine, one process", "", rate);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct corral_probe_row row = {.lane = m[i].ops->name,
                                       .status = m[i].status,
                                       .reason = m[i].reason,
                                       .bytes = m[i].result.bytes,
                                       .latency_ns = m[i].result.latency_ns,
                                       .rate = corral_lane_probe_rate(&m[i].result)};
        good &= row.status == CORRAL_OK || row.status == CORRAL_UNSUPPORTED;
        if (json) {
            json_array_append_new(list, corral_weights_probe_json(&row, rate));
        } else {
            corral_weights_probe_row(&row, rate);
        }
    }
    enum corral_status status = CORRAL_OK;
    if (json) {
        json_t *root = json_pack("{s:s, s:f, s:O}", "where", "this machine, one process", "memcpy_gb_per_s",
                                 rate, "lanes", list);
        status = corral_json_print(stdout, root, &err);
        json_decref(root);
    }
    json_decref(list);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    int code = cli_flush();
    return good ? code : CORRAL_EXIT_FAILED;
}
