#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include "quota/proof/verify.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERIFY_BYTES_MAX (UINT64_C(256) << 20) /* of all chains: a second or so; `rlctl audit` reads any */

static enum corral_status read_head(const struct coordinator_worker *w, const struct corral_mpack_node *m,
                                    struct corral_journal_proof_head *out, struct corral_error *err)
{
    struct corral_journal_proof_head head = {.rank = w->job.role_index};
    CORRAL_TRY(corral_mpack_get_u64(m, "step", &head.step, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "proof_count", &head.count, err));
    CORRAL_TRY(corral_mpack_get_str(m, "proof_hash", head.hash, sizeof head.hash, err));
    if (strlen(head.hash) != 64 || strspn(head.hash, "0123456789abcdef") != 64 || head.count > INT64_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: a chain head that is none", w->job.name);
    }
    *out = head;
    return CORRAL_OK;
}

enum corral_status corral_proof_stepped(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err)
{
    struct corral_run_proof *p = &c->status.proof;
    uint64_t refused, own_peak, slack;
    bool proven;
    char why[160];
    CORRAL_TRY(corral_mpack_get_bool(m, "proven", &proven, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "refused", &refused, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "own_peak", &own_peak, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "slack", &slack, err));
    CORRAL_TRY(corral_mpack_get_str(m, "proof_why", why, sizeof why, err));
    CORRAL_TRY(read_head(w, m, &w->proof, err));
    p->steps += w->job.role_index == 0;
    p->refused += refused;
    p->proven += proven;
    p->own_peak = CORRAL_MAX(p->own_peak, own_peak);
    p->own_ceiling = CORRAL_MAX(p->own_ceiling, corral_quota_desk_ceiling(c, w->job.partition));
    p->slack_min = CORRAL_MIN(p->slack_min, slack);
    if (!proven && p->unproven++ == 0) {
        snprintf(p->doubt, sizeof p->doubt, "%s, step %" PRIu64 ": %.150s", w->job.name, w->proof.step, why);
        corral_coordinator_event(c, "unproven", w->job.name, "step %" PRIu64 ": %s", w->proof.step, why);
    }
    return CORRAL_OK;
}

enum corral_status corral_proof_synced(struct corral_coordinator *c, struct coordinator_worker *w,
                                       const struct corral_mpack_node *m, struct corral_error *err)
{
    (void)c;
    if (w->job.role != CORRAL_ROLE_TRAIN) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s is no trainer and has no proof chain", w->job.name);
    }
    CORRAL_TRY(read_head(w, m, &w->proof_synced, err));
    w->proof = w->proof_synced;
    return CORRAL_OK;
}

enum corral_status corral_proof_note(struct corral_coordinator *c, struct corral_error *err)
{
    struct corral_journal_proof_head head[CORRAL_JOB_WORKERS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (c->worker[i].job.role == CORRAL_ROLE_TRAIN && c->worker[i].proof_synced.count > 0) {
            head[count++] = c->worker[i].proof_synced;
        }
    }
    return count ? corral_journal_proof_heads(c->journal, head, count, err) : CORRAL_OK;
}

json_t *corral_proof_heads_json(const struct corral_coordinator *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const struct coordinator_worker *w = &c->worker[i];
        if (w->job.role == CORRAL_ROLE_TRAIN && w->proof.count > 0) {
            json_array_append_new(list, json_pack("{s:i, s:I, s:I, s:s}", "rank", (int)w->proof.rank, "step",
                                                  (json_int_t)w->proof.step, "count",
                                                  (json_int_t)w->proof.count, "hash", w->proof.hash));
        }
    }
    return list;
}

json_t *corral_proof_json(const struct corral_coordinator *c)
{
    const struct corral_run_proof *p = &c->status.proof;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:s, s:b, s:s}", "steps", (json_int_t)p->steps,
                     "unproven", (json_int_t)p->unproven, "refused", (json_int_t)p->refused, "own_peak",
                     (json_int_t)p->own_peak, "own_ceiling", (json_int_t)p->own_ceiling, "slack_min",
                     p->slack_min == UINT64_MAX ? json_null() : json_integer((json_int_t)p->slack_min),
                     "doubt", p->doubt, "verified", p->verified, "chain", p->chain);
}

/* ---- at the end ---- */

/* The end of a chain whose trainer was killed may not have been synced. */
static uint64_t sync_file(const char *path)
{
    struct stat st;
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && fdatasync(fd) == 0 && fstat(fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static void add_chain(struct corral_run_proof *p, const struct coordinator_worker *w,
                      const struct corral_proof_summary *s)
{
    p->steps = p->verified ? CORRAL_MIN(p->steps, s->steps) : s->steps;
    p->verified = true;
    p->unproven += s->unproven;
    p->refused += s->refused;
    for (uint32_t i = 0; i < s->role_count; i++) {
        bool own = strcmp(s->role[i].name, s->own_role) == 0; /* of all its processes on the device */
        p->own_peak = own ? CORRAL_MAX(p->own_peak, s->role[i].peak) : p->own_peak;
    }
    p->own_ceiling = CORRAL_MAX(p->own_ceiling, s->own_ceiling);
    p->slack_min = CORRAL_MIN(p->slack_min, s->slack_min);
    if (s->doubt_step && !p->doubt[0]) {
        snprintf(p->doubt, sizeof p->doubt, "%s, step %" PRIu64 ": %.150s", w->job.name, s->doubt_step,
                 s->doubt);
    }
    if (s->broken[0] && !p->chain[0]) {
        snprintf(p->chain, sizeof p->chain, "broken: %s: record %" PRIu64 ": %.300s", w->job.name,
                 s->broken_record, s->broken);
    }
}

static enum corral_status verify_one(struct coordinator_worker *w, struct corral_run_proof *p, uint64_t *room,
                                     struct corral_error *err)
{
    char path[64];
    corral_job_proof_path(w->job.role_index, path, sizeof path);
    uint64_t bytes = sync_file(path);
    if (bytes == 0) {
        return corral_fail(err, CORRAL_NOT_FOUND, "%s is not on this machine", path);
    }
    if (bytes > *room) {
        return corral_fail(err, CORRAL_STATE, "the chains are long; `rlctl audit` reads them");
    }
    *room -= bytes;
    CORRAL_AUTO_FREE struct corral_proof_summary *s = malloc(sizeof *s);
    if (!s) {
        return corral_fail(err, CORRAL_NOMEM, "verifying %s", path);
    }
    struct corral_proof_witness witness[2] = {
        {.count = w->proof.count, .step = w->proof.step},
        {.count = w->proof_synced.count, .step = w->proof_synced.step, .durable = true},
    };
    memcpy(witness[0].hash, w->proof.hash, sizeof witness[0].hash);
    memcpy(witness[1].hash, w->proof_synced.hash, sizeof witness[1].hash);
    CORRAL_TRY(corral_proof_verify(path, witness, CORRAL_COUNT_OF(witness), s, err));
    add_chain(p, w, s);
    if (!s->broken[0]) {
        w->proof_synced = (struct corral_journal_proof_head){
            .rank = w->job.role_index, .count = s->head.count, .step = s->last_step};
        memcpy(w->proof_synced.hash, s->head.hash, sizeof w->proof_synced.hash);
    }
    return CORRAL_OK;
}

void corral_proof_finish(struct corral_coordinator *c)
{
    struct corral_run_proof read = {.slack_min = UINT64_MAX}, *p = &c->status.proof;
    struct corral_error err = {0};
    uint64_t room = VERIFY_BYTES_MAX;
    enum corral_status status = CORRAL_OK;
    for (uint32_t i = 0; i < c->worker_count && status == CORRAL_OK; i++) {
        struct coordinator_worker *w = &c->worker[i];
        if (w->job.role == CORRAL_ROLE_TRAIN && w->proof.count > 0) {
            status = verify_one(w, &read, &room, &err);
        }
    }
    if (status == CORRAL_OK && read.verified) {
        *p = read;
        if (!p->chain[0]) {
            snprintf(p->chain, sizeof p->chain, "ok");
        } else {
            corral_log_error("a proof chain is broken", LOG_STR("reason", p->chain));
        }
    } else {
        snprintf(p->chain, sizeof p->chain, "not verified: %.300s",
                 status != CORRAL_OK ? err.text : "no step was taken");
    }
    if (c->journal && corral_proof_note(c, &err) != CORRAL_OK) {
        corral_log_warn("the ends of the proof chains are not journalled", LOG_ERR(&err));
    }
}
