/* How `rlctl weights probe` shows measured lanes, and the command without a run: it measures between two ends in this process. With a run, its agents measure: weights_run_probe.c. */
#ifndef CORRAL_CLI_WEIGHTS_PROBE_H
#define CORRAL_CLI_WEIGHTS_PROBE_H

#include "base/error.h"
#include "base/json.h"
#include <stdbool.h>
#include <stdint.h>

struct corral_probe_row {
    const char *lane, *reason;
    enum corral_status status;
    uint64_t bytes, latency_ns;
    double rate; /* GB/s */
};
void corral_weights_probe_heading(const char *from, const char *to, double memcpy_rate);
void corral_weights_probe_row(const struct corral_probe_row *row, double memcpy_rate);
json_t *corral_weights_probe_json(const struct corral_probe_row *row, double memcpy_rate);

/* `lanes`: names with commas between, NULL for all. Returns rlctl's exit code. */
int corral_weights_probe_command(const char *lanes, uint64_t bytes, bool json);
/* Of a running run, found by its folder. */
int corral_weights_probe_run(const char *path, const char *lanes, uint64_t bytes, bool json);

#endif
