/* Options checked; what is saved (docs/spec/trainer-cursors.md) and counted. */
#include "base/hash.h"
#include "trainer-bridge/batching/assembly_private.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC UINT32_C(0x31435254) /* "TRC1" */
#define HEADER_BYTES 48u
#define CURSOR_BYTES 16u
#define RANGE_BYTES 24u
#define DIGEST_BYTES 16u
#define GROUP_DEADLINE_MS 600000u
#define BUFFER_BYTES (UINT64_C(256) << 20)

/* ---- options ---- */

static enum corral_status check_groups(struct corral_trainer_options *o, struct corral_error *err)
{
    if (o->group_size == 0) {
        return corral_fail(err, CORRAL_INVALID, "group_size is 0: how many completions has a group?");
    }
    if ((uint64_t)o->batch * o->group_size > CORRAL_ASSEMBLY_BATCH_MAX) {
        return corral_fail(err, CORRAL_INVALID, "batches of %u groups of %u: at most %u records", o->batch,
                           o->group_size, CORRAL_ASSEMBLY_BATCH_MAX);
    }
    uint64_t window = CORRAL_MIN(4 * (uint64_t)o->batch, (uint64_t)CORRAL_GROUPS_ITEMS_MAX / o->group_size);
    o->groups_max = o->groups_max > 0 ? o->groups_max : (uint32_t)window;
    o->group_deadline_ms = o->group_deadline_ms > 0 ? o->group_deadline_ms : GROUP_DEADLINE_MS;
    o->score = o->score != NULL ? o->score : "reward";
    return CORRAL_OK;
}

static enum corral_status check_replay(struct corral_trainer_options *o, struct corral_error *err)
{
    if (o->mode != CORRAL_TRAINER_STREAM || o->replay > CORRAL_TRAINER_PRIORITISED) {
        return corral_fail(err, CORRAL_INVALID, "replay %u: a replay buffer goes with mode STREAM",
                           o->replay);
    }
    o->replay_bytes = o->replay_bytes > 0 ? o->replay_bytes : o->buffer_bytes;
    /* With a limit on how often, as many records as a batch are sure to give a batch. */
    o->replay_min = CORRAL_MAX(o->replay_min, o->replay_times > 0 || o->replay_min == 0 ? o->batch : 1);
    if (o->replay_items < o->replay_min) {
        return corral_fail(err, CORRAL_INVALID,
                           "replay_items %u is below replay_min, %u: there would never be a batch",
                           o->replay_items, o->replay_min);
    }
    double ratio = o->samples_per_insert;
    if (!(ratio >= 0) || !(o->samples_error >= 0) || !(o->replay_beta >= 0) || !isfinite(o->replay_beta)) {
        return corral_fail(err, CORRAL_INVALID, "replay: a ratio, an error or an exponent is negative");
    }
    double least = fmax(1, ratio) * o->batch; /* a batch is that many samples at once */
    o->samples_error = o->samples_error > 0 ? o->samples_error : least;
    if (ratio > 0 && o->samples_error < least) {
        return corral_fail(err, CORRAL_INVALID,
                           "samples_error %g is below max(1, samples_per_insert) * batch = %g: the two sides "
                           "could wait for each other",
                           o->samples_error, least);
    }
    return CORRAL_OK;
}

enum corral_status corral_assembly_check(struct corral_trainer_options *o, struct corral_error *err)
{
    if (o->batch == 0 || o->mode > CORRAL_TRAINER_GROUPS) {
        return corral_fail(err, CORRAL_INVALID,
                           "batch %u, mode %u: a batch has at least one, and modes are 0 to 2", o->batch,
                           o->mode);
    }
    o->buffer_bytes = o->buffer_bytes > 0 ? o->buffer_bytes : BUFFER_BYTES;
    if (o->mode == CORRAL_TRAINER_FRAGMENTS && o->workers == 0) {
        return corral_fail(
            err, CORRAL_INVALID,
            "workers is 0: batches of fragments take some of every worker, so say how many there are");
    }
    if ((uint64_t)o->batch * CORRAL_MAX(o->mode == CORRAL_TRAINER_FRAGMENTS ? o->workers : 1u, 1u) >
        CORRAL_ASSEMBLY_BATCH_MAX) {
        return corral_fail(err, CORRAL_INVALID, "batch %u: at most %u records", o->batch,
                           CORRAL_ASSEMBLY_BATCH_MAX);
    }
    if (o->mode == CORRAL_TRAINER_GROUPS) {
        CORRAL_TRY(check_groups(o, err));
    }
    return o->replay != CORRAL_TRAINER_NO_REPLAY ? check_replay(o, err) : CORRAL_OK;
}

/* ---- saving ---- */

static uint8_t *put_u32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value); /* both ends are little-endian: x86-64 and AArch64 */
    return at + sizeof value;
}

static uint8_t *put_u64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

static uint32_t get_u32(const uint8_t **at)
{
    uint32_t value;
    memcpy(&value, *at, sizeof value);
    *at += sizeof value;
    return value;
}

static uint64_t get_u64(const uint8_t **at)
{
    uint64_t value;
    memcpy(&value, *at, sizeof value);
    *at += sizeof value;
    return value;
}

struct saved {
    uint64_t number, position;
    const uint64_t *skip;
    uint32_t skip_count;
};

static void write_state(uint8_t *at, uint64_t run, const struct saved *s,
                        const struct corral_handoff_state *h)
{
    uint8_t *begin = at;
    at = put_u32(at, MAGIC);
    at = put_u32(at, 1);
    at = put_u64(at, run);
    at = put_u64(at, s->number);
    at = put_u64(at, s->position);
    at = put_u32(at, h->cursor_count);
    at = put_u32(at, h->range_count);
    at = put_u32(at, s->skip_count);
    at = put_u32(at, 0);
    for (uint32_t i = 0; i < h->cursor_count; i++) {
        at = put_u32(at, h->cursor[i].worker);
        at = put_u32(at, h->cursor[i].epoch);
        at = put_u64(at, h->cursor[i].sequence);
    }
    for (uint32_t i = 0; i < h->range_count; i++) {
        at = put_u32(at, h->range[i].worker);
        at = put_u32(at, h->range[i].epoch);
        at = put_u64(at, h->range[i].first);
        at = put_u64(at, h->range[i].last);
    }
    for (uint32_t i = 0; i < s->skip_count; i++) {
        at = put_u64(at, s->skip[i]);
    }
    struct corral_digest d = corral_digest_of(begin, (size_t)(at - begin));
    at = put_u64(at, d.lo);
    put_u64(at, d.hi);
}

enum corral_status corral_assembly_save(const struct corral_assembly *a,
                                        const struct corral_trainer_batch *batch, uint64_t run, void *out,
                                        uint64_t *bytes, struct corral_error *err)
{
    const struct corral_assembly_batch *b = batch != NULL ? corral_assembly_out(a, batch) : NULL;
    if (batch != NULL && b == NULL) {
        return corral_fail(err, CORRAL_INVALID, "cursors: the batch is done, or of another reader");
    }
    struct saved s = {.number = a->done_number,
                      .position = a->done_position,
                      .skip = a->done_skip,
                      .skip_count = a->done_skip_count};
    if (b != NULL) {
        s = (struct saved){
            .number = batch->number, .position = b->position, .skip = b->skip, .skip_count = b->skip_count};
    }
    struct corral_handoff_state h;
    CORRAL_TRY(corral_handoff_save(a->handoff, b != NULL ? batch->number : 0, &h, err));
    uint64_t need = HEADER_BYTES + (uint64_t)h.cursor_count * CURSOR_BYTES +
                    (uint64_t)h.range_count * RANGE_BYTES + (uint64_t)s.skip_count * sizeof(uint64_t) +
                    DIGEST_BYTES;
    enum corral_status status = CORRAL_OK;
    if (out != NULL && *bytes < need) {
        status = corral_fail(err, CORRAL_INVALID, "the cursors take %llu bytes, there is room for %llu",
                             (unsigned long long)need, (unsigned long long)*bytes);
    } else if (out != NULL) {
        write_state(out, run, &s, &h);
    }
    *bytes = need;
    corral_handoff_state_free(&h);
    return status;
}

/* Everything but the numbers themselves, which corral_handoff_restore() and corral_groups_create() check. */
static enum corral_status check_saved(const uint8_t *data, uint64_t bytes, uint64_t run,
                                      struct corral_error *err)
{
    const uint8_t *at = data;
    if (bytes < HEADER_BYTES + DIGEST_BYTES || get_u32(&at) != MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "saved cursors: %llu bytes that are none",
                           (unsigned long long)bytes);
    }
    uint32_t format = get_u32(&at);
    uint64_t of_run = get_u64(&at);
    at += 2 * sizeof(uint64_t);
    uint64_t cursors = get_u32(&at), ranges = get_u32(&at), skips = get_u32(&at);
    if (format != 1) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "saved cursors of format %u; this library knows format 1",
                           format);
    }
    if (cursors > CORRAL_HANDOFF_WORKERS_MAX || ranges > CORRAL_HANDOFF_RANGES_MAX ||
        bytes != HEADER_BYTES + cursors * CURSOR_BYTES + ranges * RANGE_BYTES + skips * sizeof(uint64_t) +
                     DIGEST_BYTES) {
        return corral_fail(err, CORRAL_PROTOCOL, "saved cursors: %llu bytes do not fit what they declare",
                           (unsigned long long)bytes);
    }
    at = data + bytes - DIGEST_BYTES;
    struct corral_digest want = corral_digest_of(data, bytes - DIGEST_BYTES), have;
    have.lo = get_u64(&at);
    have.hi = get_u64(&at);
    if (!corral_digest_equal(want, have)) {
        return corral_fail(err, CORRAL_PROTOCOL, "saved cursors are damaged: their digest is wrong");
    }
    if (of_run != run) {
        return corral_fail(err, CORRAL_INVALID, "saved cursors of run %llx cannot be used in run %llx",
                           (unsigned long long)of_run, (unsigned long long)run);
    }
    return CORRAL_OK;
}

static enum corral_status restore_skips(struct corral_assembly *a, const uint8_t *at, uint64_t position,
                                        uint32_t count, struct corral_error *err)
{
    if (a->groups == NULL) {
        return CORRAL_OK;
    }
    CORRAL_AUTO_FREE uint64_t *skip = calloc(CORRAL_MAX(count, 1u), sizeof *skip);
    CORRAL_AUTO_FREE uint64_t *copy = calloc(CORRAL_MAX(count, 1u), sizeof *copy);
    if (skip == NULL || copy == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%u groups that are decided", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        skip[i] = copy[i] = get_u64(&at);
    }
    CORRAL_TRY(corral_assembly_make_groups(a, position, skip, count, err));
    free(a->done_skip);
    free(a->restored_skip);
    a->done_skip = CORRAL_STEAL(skip);
    a->restored_skip = CORRAL_STEAL(copy);
    a->done_skip_count = a->restored_skip_count = count;
    return CORRAL_OK;
}

enum corral_status corral_assembly_restore(struct corral_assembly *a, uint64_t run, const void *data,
                                           uint64_t bytes, struct corral_handoff_cursor *cursors,
                                           uint32_t *count, struct corral_error *err)
{
    CORRAL_TRY(check_saved(data, bytes, run, err));
    const uint8_t *at = (const uint8_t *)data + 16;
    uint64_t number = get_u64(&at), position = get_u64(&at);
    struct corral_handoff_state h = {.cursor = cursors};
    h.cursor_count = get_u32(&at);
    h.range_count = get_u32(&at);
    uint32_t skips = get_u32(&at);
    at += 4;
    CORRAL_AUTO_FREE struct corral_handoff_range *ranges =
        calloc(CORRAL_MAX(h.range_count, 1u), sizeof *ranges);
    if (ranges == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%u ranges of used records", h.range_count);
    }
    h.range = ranges;
    for (uint32_t i = 0; i < h.cursor_count; i++) {
        cursors[i].worker = get_u32(&at);
        cursors[i].epoch = get_u32(&at);
        cursors[i].sequence = get_u64(&at);
    }
    for (uint32_t i = 0; i < h.range_count; i++) {
        ranges[i].worker = get_u32(&at);
        ranges[i].epoch = get_u32(&at);
        ranges[i].first = get_u64(&at);
        ranges[i].last = get_u64(&at);
    }
    CORRAL_TRY(corral_handoff_restore(a->handoff, &h, err));
    CORRAL_TRY(restore_skips(a, at, position, skips, err));
    a->number = a->done_number = number;
    a->done_position = position;
    *count = h.cursor_count;
    return CORRAL_OK;
}

/* ---- counters ---- */

void corral_assembly_stats(const struct corral_assembly *a, struct corral_trainer_stats *out)
{
    struct corral_length_report r = corral_length_bias_report(&a->bias);
    size_t size = out->size;
    *out = a->stats;
    out->size = size;
    out->held = corral_handoff_held(a->handoff);
    out->mean_kept = r.mean_kept;
    out->mean_dropped = r.mean_dropped;
    out->length_ratio = r.ratio;
    if (a->replay != NULL) {
        struct corral_replay_stats s;
        corral_replay_stats(a->replay, &s);
        out->replay_items = s.items;
        out->replay_bytes = s.bytes;
    }
    corral_assembly_waiting(a, out->waiting, sizeof out->waiting);
}
