/* The trajectory log of a trainer rank: opened before the receiver, trimmed when the oldest kept checkpoint moves. What it promises: docs/spec/checkpoint.md, "With a trajectory log". */
#include "base/log.h"
#include "base/text.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum corral_status corral_trainer_log_open(struct corral_trainer *t, struct corral_error *err)
{
    const struct corral_trainer_config *c = t->config;
    if (c->log.folder[0] == '\0') {
        return CORRAL_OK;
    }
    struct corral_wal_options o = {.folder = c->log.folder,
                                   .run = t->session->launch.run,
                                   .segment_bytes = c->log.segment_bytes,
                                   .bytes_max = c->log.bytes_max,
                                   .sync = c->log.sync,
                                   .zstd_level = c->log.zstd_level};
    CORRAL_TRY(corral_stream_log_open(&t->log, &o, err));
    corral_log_info("trajectory log open", LOG_STR("folder", c->log.folder),
                    LOG_U64("first", corral_stream_log_first(t->log)),
                    LOG_U64("records", corral_stream_log_waiting(t->log)));
    return CORRAL_OK;
}

void corral_trainer_log_close(struct corral_trainer *t)
{
    struct corral_error err;
    if (corral_stream_log_close(t->log, &err) != CORRAL_OK) {
        corral_log_warn("the trajectory log was not closed in order; what was acknowledged is in it",
                        LOG_ERR(&err));
    }
    t->log = NULL;
}

enum corral_status corral_trainer_log_check(struct corral_trainer *t, struct corral_error *err)
{
    for (uint32_t i = 0; i < t->state.rebase_count; i++) {
        corral_batch_queue_rebase(t->queue, t->state.rebase[i].from, t->state.rebase[i].to);
    }
    if (!t->log || corral_stream_log_first(t->log) <= t->state.log_low + 1) {
        return CORRAL_OK;
    }
    return corral_fail(err, CORRAL_STATE,
                       "%s begins with record %" PRIu64 ", but the state of step %" PRIu64
                       " needs those from %" PRIu64 " on: parts of the trajectory log are missing",
                       t->config->log.folder, corral_stream_log_first(t->log), t->state.counters.step,
                       t->state.log_low + 1);
}

/* Records that wait in the log were made under the numbers of before. */
void corral_trainer_log_rebase(struct corral_trainer *t, uint64_t from, uint64_t to)
{
    if (t->log && to > from && corral_stream_log_waiting(t->log) > 0) {
        corral_trainer_state_add_rebase(&t->state, from, to);
        corral_batch_queue_rebase(t->queue, from, to);
    }
}

/* Of the checkpoints that are whole; what the journal has forgotten and is still there only keeps more. */
static bool oldest_checkpoint(char *out, size_t out_bytes)
{
    DIR *d = opendir("checkpoints");
    uint64_t oldest = UINT64_MAX;
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        uint64_t step;
        if (strncmp(e->d_name, "step-", 5) == 0 && corral_parse_u64(e->d_name + 5, &step)) {
            oldest = CORRAL_MIN(oldest, step);
        }
    }
    if (d) {
        closedir(d);
    }
    snprintf(out, out_bytes, "checkpoints/step-%09" PRIu64, oldest);
    return oldest != UINT64_MAX;
}

void corral_trainer_log_trim(struct corral_trainer *t)
{
    char folder[64], path[128];
    struct corral_error err;
    uint64_t low = 0;
    if (!t->log || t->config->log.keep_all || !oldest_checkpoint(folder, sizeof folder)) {
        return;
    }
    snprintf(path, sizeof path, "%s/trainer-%u.state", folder, t->rank);
    enum corral_status status = corral_trainer_state_log_low(path, &low, &err);
    if (status == CORRAL_OK) {
        status = corral_stream_log_trim(t->log, low, &err);
    }
    if (status != CORRAL_OK) {
        corral_log_warn("the trajectory log was not trimmed; it is tried again at the next checkpoint",
                        LOG_ERR(&err));
    }
}
