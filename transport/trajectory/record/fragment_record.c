/* A fragment as a record and back: one table says what each tensor is called and how its shape follows from the fragment's sizes. */
#include "transport/trajectory/fragment.h"
#include <corral/trajectory.h>
#include <string.h>

enum extent { STEPS = 1, ROWS, OBS, COMPONENTS, MASK, BOUNDARIES, EPISODES, TWO };

static const struct part {
    const char *name;
    uint32_t dtype;
    uint32_t dims;
    uint8_t shape[3]; /* enum extent */
} parts[CORRAL_FRAGMENT_FRAMES] = {
    {"obs", CORRAL_TRAJ_F32, 3, {STEPS, ROWS, OBS}},
    {"action", CORRAL_TRAJ_I32, 3, {STEPS, ROWS, COMPONENTS}}, /* or CORRAL_TRAJ_F32 */
    {"log_prob", CORRAL_TRAJ_F32, 2, {STEPS, ROWS}},
    {"reward", CORRAL_TRAJ_F32, 2, {STEPS, ROWS}},
    {"terminated", CORRAL_TRAJ_U8, 2, {STEPS, ROWS}},
    {"truncated", CORRAL_TRAJ_U8, 2, {STEPS, ROWS}},
    {"valid", CORRAL_TRAJ_U8, 2, {STEPS, ROWS}},
    {"version", CORRAL_TRAJ_U64, 1, {STEPS}},
    {"mask", CORRAL_TRAJ_U8, 3, {STEPS, ROWS, MASK}},
    {"last_obs", CORRAL_TRAJ_F32, 2, {ROWS, OBS}},
    {"boundary_at", CORRAL_TRAJ_U32, 1, {BOUNDARIES}},
    {"boundary_obs", CORRAL_TRAJ_F32, 2, {BOUNDARIES, OBS}},
    {"episode", CORRAL_TRAJ_F32, 2, {EPISODES, TWO}},
};
enum { PART_OBS = 0, PART_ACTION = 1, PART_MASK = 8, PART_BOUNDARY_AT = 10, PART_EPISODE = 12 };

static uint32_t extent_of(const struct corral_fragment *f, enum extent e)
{
    switch (e) {
    case STEPS:
        return f->steps;
    case ROWS:
        return f->rows;
    case OBS:
        return f->obs_dim;
    case COMPONENTS:
        return f->action_components;
    case MASK:
        return f->mask_bytes;
    case BOUNDARIES:
        return f->boundary_count;
    case EPISODES:
        return f->episode_count;
    case TWO:
        return 2;
    }
    return 0;
}

static bool boundaries_ascend(const struct corral_fragment *f)
{
    const uint64_t cells = (uint64_t)f->steps * f->rows;
    for (uint32_t i = 0; i < f->boundary_count; i++) {
        if (f->boundary_at[i] >= cells || (i > 0 && f->boundary_at[i] <= f->boundary_at[i - 1])) {
            return false;
        }
    }
    return true;
}

static void version_range(const struct corral_fragment *f, uint64_t *oldest, uint64_t *newest)
{
    *oldest = *newest = f->version[0];
    for (uint32_t i = 1; i < f->steps; i++) {
        *oldest = f->version[i] < *oldest ? f->version[i] : *oldest;
        *newest = f->version[i] > *newest ? f->version[i] : *newest;
    }
}

static void part_data(const struct corral_fragment *f, const void *out[CORRAL_FRAGMENT_FRAMES])
{
    const void *const in[CORRAL_FRAGMENT_FRAMES] = {
        f->obs,     f->action, f->log_prob, f->reward,      f->terminated,   f->truncated, f->valid,
        f->version, f->mask,   f->last_obs, f->boundary_at, f->boundary_obs, f->episode,
    };
    memcpy(out, in, sizeof in);
}

enum corral_status corral_fragment_record(const struct corral_fragment *f, struct corral_traj_record *r,
                                          struct corral_traj_tensor *tensors, struct corral_error *err)
{
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES], oldest, newest;
    const void *data[CORRAL_FRAGMENT_FRAMES];
    CORRAL_TRY(corral_fragment_sizes(f, bytes, err));
    part_data(f, data);
    uint32_t count = 0;
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        if (bytes[i] == 0) {
            continue;
        }
        if (data[i] == NULL) {
            return corral_fail(err, CORRAL_INVALID, "fragment: its tensor `%s` is not there", parts[i].name);
        }
        struct corral_traj_tensor *t = &tensors[count++];
        *t = (struct corral_traj_tensor){
            .name = parts[i].name, .dtype = parts[i].dtype, .dims = parts[i].dims, .data = data[i]};
        for (uint32_t d = 0; d < t->dims; d++) {
            t->shape[d] = extent_of(f, parts[i].shape[d]);
        }
        if (i == PART_ACTION && f->action_continuous) {
            t->dtype = CORRAL_TRAJ_F32;
        }
    }
    if (!boundaries_ascend(f)) {
        return corral_fail(err, CORRAL_INVALID,
                           "fragment: its boundaries do not ascend within %u steps of %u rows", f->steps,
                           f->rows);
    }
    version_range(f, &oldest, &newest);
    *r = (struct corral_traj_record){.size = sizeof *r,
                                     .run = f->run,
                                     .worker = f->worker,
                                     .epoch = f->epoch,
                                     .sequence = f->sequence,
                                     .kind = CORRAL_TRAJ_FRAGMENT,
                                     .version_min = oldest,
                                     .version_max = newest,
                                     .tokens = (uint64_t)f->steps * f->rows,
                                     .tensor_count = count,
                                     .tensors = tensors};
    return CORRAL_OK;
}

/* ---- back ---- */

/* Which tensor of the record is which part. They come in the table's order from our own writer, so the search ends at once. */
static void match(const struct corral_traj_record *r,
                  const struct corral_traj_tensor *found[CORRAL_FRAGMENT_FRAMES])
{
    uint32_t next = 0;
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        if (next < r->tensor_count && strcmp(r->tensors[next].name, parts[i].name) == 0) {
            found[i] = &r->tensors[next++];
        } else {
            found[i] = corral_traj_record_find(r, parts[i].name);
        }
    }
}

/* Sizes from the tensors that have them; the others are compared with these afterwards. */
static enum corral_status take_size(const struct corral_traj_tensor *t, uint32_t dims, uint32_t d,
                                    const char *name, uint32_t *out, struct corral_error *err)
{
    *out = 0;
    if (t == NULL) {
        return CORRAL_OK;
    }
    if (t->dims != dims || t->shape[d] > UINT32_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "fragment: `%s` has %u dimensions, must have %u below 2^32",
                           name, t->dims, dims);
    }
    *out = (uint32_t)t->shape[d];
    return CORRAL_OK;
}

static enum corral_status take_sizes(const struct corral_traj_tensor *const found[CORRAL_FRAGMENT_FRAMES],
                                     struct corral_fragment *f, struct corral_error *err)
{
    CORRAL_TRY(take_size(found[PART_OBS], 3, 0, "obs", &f->steps, err));
    CORRAL_TRY(take_size(found[PART_OBS], 3, 1, "obs", &f->rows, err));
    CORRAL_TRY(take_size(found[PART_OBS], 3, 2, "obs", &f->obs_dim, err));
    CORRAL_TRY(take_size(found[PART_ACTION], 3, 2, "action", &f->action_components, err));
    CORRAL_TRY(take_size(found[PART_MASK], 3, 2, "mask", &f->mask_bytes, err));
    CORRAL_TRY(take_size(found[PART_BOUNDARY_AT], 1, 0, "boundary_at", &f->boundary_count, err));
    CORRAL_TRY(take_size(found[PART_EPISODE], 2, 0, "episode", &f->episode_count, err));
    f->action_continuous = found[PART_ACTION] != NULL && found[PART_ACTION]->dtype == CORRAL_TRAJ_F32;
    return CORRAL_OK;
}

static enum corral_status check_part(const struct corral_fragment *f, const struct corral_traj_tensor *t,
                                     const struct part *part, uint32_t dtype, bool wanted,
                                     struct corral_error *err)
{
    if (t == NULL || !wanted) {
        return t == NULL && !wanted
                   ? CORRAL_OK
                   : corral_fail(err, CORRAL_PROTOCOL, "fragment: tensor `%s` is %s", part->name,
                                 wanted ? "missing" : "there, and what it belongs to is not");
    }
    if (t->dtype != dtype) {
        return corral_fail(err, CORRAL_PROTOCOL, "fragment: `%s` has dtype %u, must have %u", part->name,
                           t->dtype, dtype);
    }
    for (uint32_t d = 0; d < part->dims; d++) {
        const uint32_t extent = extent_of(f, part->shape[d]);
        if (t->dims != part->dims || t->shape[d] != extent) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "fragment: extent %u of `%s` (of %u) is %llu, must be %u (of %u)", d,
                               part->name, t->dims, (unsigned long long)t->shape[d], extent, part->dims);
        }
    }
    return CORRAL_OK;
}

static void set_parts(struct corral_fragment *f,
                      const struct corral_traj_tensor *const found[CORRAL_FRAGMENT_FRAMES])
{
    const void *data[CORRAL_FRAGMENT_FRAMES];
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        data[i] = found[i] == NULL ? NULL : found[i]->data;
    }
    f->obs = data[0];
    f->action = data[1];
    f->log_prob = data[2];
    f->reward = data[3];
    f->terminated = data[4];
    f->truncated = data[5];
    f->valid = data[6];
    f->version = data[7];
    f->mask = data[8];
    f->last_obs = data[9];
    f->boundary_at = data[10];
    f->boundary_obs = data[11];
    f->episode = data[12];
}

static enum corral_status check_contents(const struct corral_fragment *f, const struct corral_traj_record *r,
                                         struct corral_error *err)
{
    uint64_t oldest, newest;
    if (!boundaries_ascend(f)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "fragment: its boundaries do not ascend within %u steps of %u rows", f->steps,
                           f->rows);
    }
    version_range(f, &oldest, &newest);
    if (oldest != r->version_min || newest != r->version_max || r->tokens != (uint64_t)f->steps * f->rows) {
        return corral_fail(
            err, CORRAL_PROTOCOL,
            "fragment: the header speaks of versions %llu to %llu and %llu tokens, the tensors of %llu "
            "to %llu and %llu",
            (unsigned long long)r->version_min, (unsigned long long)r->version_max,
            (unsigned long long)r->tokens, (unsigned long long)oldest, (unsigned long long)newest,
            (unsigned long long)((uint64_t)f->steps * f->rows));
    }
    return CORRAL_OK;
}

enum corral_status corral_fragment_of(const struct corral_traj_record *r, struct corral_fragment *out,
                                      struct corral_error *err)
{
    const struct corral_traj_tensor *found[CORRAL_FRAGMENT_FRAMES];
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES];
    struct corral_fragment f = {
        .run = r->run, .worker = r->worker, .epoch = r->epoch, .sequence = r->sequence};
    if (r->kind != CORRAL_TRAJ_FRAGMENT) {
        return corral_fail(err, CORRAL_PROTOCOL, "fragment: the record is of kind %u, not a fragment",
                           r->kind);
    }
    match(r, found);
    CORRAL_TRY(take_sizes(found, &f, err));
    if (corral_fragment_sizes(&f, bytes, err) != CORRAL_OK) {
        if (err != NULL) {
            err->status = CORRAL_PROTOCOL;
        }
        return CORRAL_PROTOCOL;
    }
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        const uint32_t dtype = i == PART_ACTION && f.action_continuous ? CORRAL_TRAJ_F32 : parts[i].dtype;
        CORRAL_TRY(check_part(&f, found[i], &parts[i], dtype, bytes[i] > 0, err));
    }
    set_parts(&f, found);
    CORRAL_TRY(check_contents(&f, r, err));
    *out = f;
    return CORRAL_OK;
}
