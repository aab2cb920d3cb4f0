/* A vector's snapshot. Layout, in the machine's byte order (a snapshot is taken up by the same build on the same kind of machine):
 *   struct header
 *   envs times: struct env_header, then env_header.bytes of the plug-in's own, padded with zeros to 8
 *   rows bytes: which rows are done in their running episode, padded to 8
 */
#include "rollout/env_host/vec_internal.h"
#include <inttypes.h>
#include <string.h>

#define SNAPSHOT_MAGIC UINT64_C(0x31434556524f4343)

struct header {
    uint64_t magic, bytes;
    uint32_t envs, agents, obs_dim, mask_bytes;
    char id[CORRAL_ENV_ID_BYTES];
};

struct env_header {
    uint64_t stream;
    uint32_t episode_steps;
    uint32_t down; /* nothing of the plug-in follows; the environment is reset when restored */
    uint64_t bytes;
};

static uint64_t padded(uint64_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

/* A bounded output: counts on when it is full. */
struct writer {
    char *to;
    uint64_t room, used;
};

static void put(struct writer *w, const void *data, uint64_t bytes)
{
    if (w->to != NULL && w->used <= w->room && padded(bytes) <= w->room - w->used) {
        memset(w->to + w->used, 0, padded(bytes));
        memcpy(w->to + w->used, data, bytes);
    }
    w->used += padded(bytes);
}

static enum corral_status after_outcome(struct corral_vec *v, enum corral_backend_outcome outcome,
                                        const struct corral_error *why, struct corral_error *err)
{
    if (outcome == CORRAL_BACKEND_LOST) {
        CORRAL_TRY(corral_vec_lose_all(v, why, err));
    }
    return outcome == CORRAL_BACKEND_OK
               ? CORRAL_OK
               : corral_fail(err, outcome == CORRAL_BACKEND_LOST ? CORRAL_INFRA : why->status, "%s",
                             why->text);
}

static enum corral_status put_env(struct corral_vec *v, struct writer *w, uint32_t e,
                                  struct corral_error *err)
{
    struct env_header h = {
        .stream = v->stream[e], .episode_steps = v->episode_steps[e], .down = v->down[e] != 0};
    for (uint32_t i = 0; i < v->fresh_count; i++) {
        h.episode_steps = v->fresh[i] == e ? 0 : h.episode_steps;
    }
    uint64_t at = w->used;
    if (h.down) {
        put(w, &h, sizeof h);
        return CORRAL_OK;
    }
    uint64_t body = at + sizeof h;
    bool can_write = w->to != NULL && body <= w->room;
    size_t bytes = can_write ? CORRAL_MIN(w->room - body, (uint64_t)CORRAL_ENV_SNAPSHOT_BYTES_MAX) : 0;
    bool fits = false;
    struct corral_error why = {0};
    CORRAL_TRY(after_outcome(
        v, v->backend->ops->snapshot(v->backend, e, can_write ? w->to + body : NULL, &bytes, &fits, &why),
        &why, err));
    h.bytes = bytes;
    put(w, &h, sizeof h);
    w->used = body + padded(bytes);
    if (fits && can_write && w->used <= w->room) {
        memset(w->to + body + bytes, 0, padded(bytes) - bytes);
    }
    return CORRAL_OK;
}

static struct header describe(const struct corral_vec *v)
{
    struct header h = {.magic = SNAPSHOT_MAGIC,
                       .envs = v->view.envs,
                       .agents = v->view.agents,
                       .obs_dim = v->spec.obs_dim,
                       .mask_bytes = v->spec.mask_bytes};
    memcpy(h.id, v->spec.id, sizeof h.id);
    return h;
}

enum corral_status corral_vec_snapshot(struct corral_vec *v, void *buf, uint64_t *bytes,
                                       struct corral_error *err)
{
    if (!v->spec.snapshots) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "environment %s has no snapshots", v->spec.id);
    }
    if (!v->ready) {
        return corral_fail(err, CORRAL_STATE, "%s: snapshot before the first reset", v->spec.id);
    }
    struct writer w = {.to = buf, .room = buf ? *bytes : 0};
    struct header h = describe(v);
    put(&w, &h, sizeof h);
    for (uint32_t e = 0; e < v->view.envs; e++) {
        CORRAL_TRY(put_env(v, &w, e, err));
    }
    put(&w, v->done, v->view.rows);
    uint64_t room = w.room;
    *bytes = w.used;
    if (buf == NULL) {
        return CORRAL_OK;
    }
    if (w.used > room) {
        return corral_fail(err, CORRAL_INVALID,
                           "the snapshot of %s needs %" PRIu64 " bytes and has room for %" PRIu64, v->spec.id,
                           w.used, room);
    }
    h.bytes = w.used;
    memcpy(buf, &h, sizeof h);
    return CORRAL_OK;
}

/* ---- restore ---- */

static enum corral_status malformed(const struct corral_vec *v, const char *what, struct corral_error *err)
{
    return corral_fail(err, CORRAL_PROTOCOL, "the snapshot for %s is damaged: %s", v->spec.id, what);
}

static enum corral_status check_header(const struct corral_vec *v, const struct header *h, uint64_t bytes,
                                       struct corral_error *err)
{
    struct header mine = describe(v);
    if (h->magic != SNAPSHOT_MAGIC || h->bytes != bytes) {
        return malformed(v, "wrong header or length", err);
    }
    if (memcmp(h->id, mine.id, sizeof mine.id) != 0 || h->envs != mine.envs || h->agents != mine.agents ||
        h->obs_dim != mine.obs_dim || h->mask_bytes != mine.mask_bytes) {
        return corral_fail(err, CORRAL_INVALID,
                           "the snapshot is of %u environments %.*s with %u agents and %u observed numbers; "
                           "this vector has %u of %s with %u and %u",
                           h->envs, (int)strnlen(h->id, sizeof h->id), h->id, h->agents, h->obs_dim,
                           mine.envs, mine.id, mine.agents, mine.obs_dim);
    }
    return CORRAL_OK;
}

/* Look at all lengths before anything is changed. */
static enum corral_status check_body(const struct corral_vec *v, const char *buf, uint64_t bytes,
                                     struct corral_error *err)
{
    uint64_t at = sizeof(struct header);
    for (uint32_t e = 0; e < v->view.envs; e++) {
        struct env_header h;
        if (bytes - at < sizeof h) {
            return malformed(v, "it ends too early", err);
        }
        memcpy(&h, buf + at, sizeof h);
        at += sizeof h;
        if (h.bytes > CORRAL_ENV_SNAPSHOT_BYTES_MAX || padded(h.bytes) > bytes - at || h.down > 1 ||
            (h.down && h.bytes)) {
            return malformed(v, "an environment's length is impossible", err);
        }
        at += padded(h.bytes);
    }
    return bytes - at == padded(v->view.rows) ? CORRAL_OK : malformed(v, "wrong length", err);
}

static void take_done(struct corral_vec *v, const char *rows)
{
    for (uint32_t e = 0; e < v->view.envs; e++) {
        v->done_rows[e] = 0;
        for (uint32_t a = 0; a < v->view.agents; a++) {
            uint32_t row = e * v->view.agents + a;
            v->done[row] = rows[row] != 0;
            v->done_rows[e] += v->done[row];
        }
    }
}

static enum corral_status restore_env(struct corral_vec *v, uint32_t e, const struct env_header *h,
                                      const char *body, struct corral_error *err)
{
    v->stream[e] = h->stream;
    v->episode_steps[e] = h->episode_steps;
    if (h->down) {
        v->down[e] = 1;
        v->down_wait[e] = 1;
        v->down_count++;
        return CORRAL_OK;
    }
    struct corral_error why = {0};
    CORRAL_TRY(after_outcome(v, v->backend->ops->restore(v->backend, e, body, h->bytes, &why), &why, err));
    if (!corral_vec_take_obs(v, e)) {
        return malformed(v, "a restored observation is not finite", err);
    }
    return CORRAL_OK;
}

enum corral_status corral_vec_restore(struct corral_vec *v, const void *buf, uint64_t bytes,
                                      struct corral_error *err)
{
    if (!v->spec.snapshots) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "environment %s has no snapshots", v->spec.id);
    }
    struct header h;
    if (bytes < sizeof h) {
        return malformed(v, "it is shorter than its header", err);
    }
    memcpy(&h, buf, sizeof h);
    CORRAL_TRY(check_header(v, &h, bytes, err));
    CORRAL_TRY(check_body(v, buf, bytes, err));
    /* From here on a failure leaves a mixture: the vector must then be reset. Plug-ins restore into environments that have begun. */
    CORRAL_TRY(corral_vec_reset(v, err));
    v->ready = false;
    memset(v->down, 0, v->view.envs);
    v->down_count = 0;
    uint64_t at = sizeof h;
    for (uint32_t e = 0; e < v->view.envs; e++) {
        struct env_header eh;
        memcpy(&eh, (const char *)buf + at, sizeof eh);
        at += sizeof eh;
        CORRAL_TRY(restore_env(v, e, &eh, (const char *)buf + at, err));
        at += padded(eh.bytes);
    }
    take_done(v, (const char *)buf + at);
    const struct corral_env_buffers *b = &v->backend->buffers;
    memset(b->reward, 0, v->view.rows * sizeof(float));
    memset(b->terminated, 0, v->view.rows);
    memset(b->truncated, 0, v->view.rows);
    memset(v->status, 0, v->view.envs * sizeof *v->status);
    v->status_shown = false;
    v->ready = true;
    v->stats.down = v->view.envs; /* makes the next line write every row */
    corral_vec_show_active(v);
    return CORRAL_OK;
}
