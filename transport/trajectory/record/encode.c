#include "transport/trajectory/record/map_write.h"
#include "transport/trajectory/record/prologue.h"
#include "transport/trajectory/record/shape.h"

/* The largest map: no other bound is checked while it is written. Keys take 8 bytes, an integer 9, a text its length and 3, maps and arrays 3; stores may write 8 bytes beyond. */
#define TENSOR_MOST (3 + CORRAL_TRAJ_TEXT_MAX + 3 + 9 + 3 + CORRAL_TRAJ_DIMS_MAX * 9)
#define SCORE_MOST (CORRAL_TRAJ_TEXT_MAX + 3 + 9)
static_assert(3 + KEYS * (8 + 9) + CORRAL_TRAJ_TENSORS_MAX * TENSOR_MOST +
                      CORRAL_TRAJ_SCORES_MAX * SCORE_MOST + 2 * (CORRAL_TRAJ_TEXT_MAX + 3) +
                      CORRAL_TRAJ_TASK_MAX + 3 + 8 <=
                  CORRAL_TRAJ_HEADER_MAX,
              "the largest map must fit");

const struct record_key_text corral_traj_keys[KEYS] = {
    [KEY_TENSORS] = {"tensors", 7}, [KEY_KIND] = {"kind", 4},     [KEY_ENV] = {"env", 3},
    [KEY_TASK] = {"task", 4},       [KEY_FINISH] = {"finish", 6}, [KEY_EPISODE] = {"episode", 7},
    [KEY_TURNS] = {"turns", 5},     [KEY_TOKENS] = {"tokens", 6}, [KEY_OLDEST] = {"oldest", 6},
    [KEY_NEWEST] = {"newest", 6},   [KEY_GROUP] = {"group", 5},   [KEY_MEMBER] = {"member", 6},
    [KEY_MEMBERS] = {"members", 7}, [KEY_SCORES] = {"scores", 6},
};

uint64_t corral_traj_dtype_bytes(uint32_t dtype)
{
    return dtype_bytes(dtype);
}

struct map {
    uint8_t *at;
    uint32_t pairs;
};

static void put_key(struct map *m, enum record_key key)
{
    m->at = put_str(m->at, corral_traj_keys[key].text, corral_traj_keys[key].bytes);
    m->pairs++;
}

/* Zero is what a reader takes a missing key for. */
static void put_number(struct map *m, enum record_key key, uint64_t value)
{
    if (value != 0) {
        put_key(m, key);
        m->at = put_u64(m->at, value);
    }
}

static enum corral_status put_text(struct map *m, enum record_key key, const char *text, size_t bytes_max,
                                   struct corral_error *err)
{
    if (text == NULL || text[0] == 0) {
        return CORRAL_OK;
    }
    const size_t bytes = strnlen(text, bytes_max + 1);
    if (bytes > bytes_max || !corral_traj_text_valid(text, bytes)) {
        return corral_fail(err, CORRAL_INVALID, "record: `%s` must be UTF-8 of at most %zu bytes",
                           corral_traj_keys[key].text, bytes_max);
    }
    put_key(m, key);
    m->at = put_str(m->at, text, bytes);
    return CORRAL_OK;
}

static enum corral_status put_name(struct map *m, struct name_set *names, const char *what, uint32_t i,
                                   const char *name, struct corral_error *err)
{
    const size_t bytes = name == NULL ? 0 : strnlen(name, CORRAL_TRAJ_TEXT_MAX + 1);
    if (!name_valid(name, bytes)) {
        return corral_fail(err, CORRAL_INVALID,
                           "record: %s %u needs a name of 1 to %d visible ASCII characters", what, i,
                           CORRAL_TRAJ_TEXT_MAX);
    }
    if (!name_set_add(names, name, bytes)) {
        return corral_fail(err, CORRAL_INVALID, "record: two %ss are called `%s`", what, name);
    }
    m->at = put_str(m->at, name, bytes);
    return CORRAL_OK;
}

static enum corral_status put_tensors(struct map *m, const struct corral_traj_record *r,
                                      uint64_t *tensor_bytes, struct corral_error *err)
{
    struct name_set names;
    name_set_clear(&names);
    if (r->tensor_count > CORRAL_TRAJ_TENSORS_MAX || (r->tensor_count > 0 && r->tensors == NULL)) {
        return corral_fail(err, CORRAL_INVALID, "record: %u tensors%s, at most %d are allowed",
                           r->tensor_count, r->tensors == NULL ? " at NULL" : "", CORRAL_TRAJ_TENSORS_MAX);
    }
    put_key(m, KEY_TENSORS);
    m->at = put_array(m->at, r->tensor_count);
    *tensor_bytes = 0;
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        const struct corral_traj_tensor *t = &r->tensors[i];
        const uint64_t bytes = shape_bytes(t->dtype, t->dims, t->shape);
        m->at = put_array(m->at, 3);
        CORRAL_TRY(put_name(m, &names, "tensor", i, t->name, err));
        if (bytes == 0) {
            return corral_fail(err, CORRAL_INVALID,
                               "record: tensor `%s`: dtype %u and %u dimensions must be known, 1 to %d, each "
                               "extent at least 1, at most %llu bytes",
                               t->name, t->dtype, t->dims, CORRAL_TRAJ_DIMS_MAX,
                               (unsigned long long)CORRAL_TRAJ_RECORD_MAX);
        }
        m->at = put_u64(m->at, t->dtype);
        m->at = put_array(m->at, t->dims);
        for (uint32_t d = 0; d < t->dims; d++) {
            m->at = put_u64(m->at, t->shape[d]);
        }
        *tensor_bytes += corral_traj_align(bytes); /* 32 times 2^30 at most */
    }
    return CORRAL_OK;
}

static enum corral_status put_scores(struct map *m, const struct corral_traj_record *r,
                                     struct corral_error *err)
{
    struct name_set names;
    name_set_clear(&names);
    if (r->score_count > CORRAL_TRAJ_SCORES_MAX || (r->score_count > 0 && r->scores == NULL)) {
        return corral_fail(err, CORRAL_INVALID, "record: %u scores%s, at most %d are allowed", r->score_count,
                           r->scores == NULL ? " at NULL" : "", CORRAL_TRAJ_SCORES_MAX);
    }
    if (r->score_count == 0) {
        return CORRAL_OK;
    }
    put_key(m, KEY_SCORES);
    m->at = put_map(m->at, r->score_count);
    for (uint32_t i = 0; i < r->score_count; i++) {
        CORRAL_TRY(put_name(m, &names, "score", i, r->scores[i].name, err));
        m->at = put_f64(m->at, r->scores[i].value);
    }
    return CORRAL_OK;
}

static enum corral_status check_facts(const struct corral_traj_record *r, struct corral_error *err)
{
    if (r->size < sizeof *r) {
        return corral_fail(err, CORRAL_INVALID, "record: its size member is %zu, must be %zu", r->size,
                           sizeof *r);
    }
    if (r->kind > CORRAL_TRAJ_FRAGMENT) {
        return corral_fail(err, CORRAL_INVALID, "record: kind %u is unknown", r->kind);
    }
    if (r->version_min > r->version_max) {
        return corral_fail(err, CORRAL_INVALID, "record: its oldest version %llu is above its newest %llu",
                           (unsigned long long)r->version_min, (unsigned long long)r->version_max);
    }
    if (r->group_size == 0 ? (r->group | r->group_index) != 0 : r->group_index >= r->group_size) {
        return corral_fail(
            err, CORRAL_INVALID,
            "record: member %u of a group of %u (number %llu) cannot be: with a group, its size is "
            "set and the index below it",
            r->group_index, r->group_size, (unsigned long long)r->group);
    }
    return CORRAL_OK;
}

/* The map, into `out` of CORRAL_TRAJ_HEADER_MAX bytes. */
static enum corral_status write_map(const struct corral_traj_record *r, uint8_t *out, uint32_t *header_bytes,
                                    uint64_t *tensor_bytes, struct corral_error *err)
{
    struct map m = {.at = out + 1};
    CORRAL_TRY(check_facts(r, err));
    CORRAL_TRY(put_tensors(&m, r, tensor_bytes, err));
    put_key(&m, KEY_KIND);
    m.at = put_u64(m.at, r->kind);
    CORRAL_TRY(put_text(&m, KEY_ENV, r->env, CORRAL_TRAJ_TEXT_MAX, err));
    CORRAL_TRY(put_text(&m, KEY_TASK, r->task, CORRAL_TRAJ_TASK_MAX, err));
    CORRAL_TRY(put_text(&m, KEY_FINISH, r->finish, CORRAL_TRAJ_TEXT_MAX, err));
    put_number(&m, KEY_EPISODE, r->episode);
    put_number(&m, KEY_TURNS, r->turns);
    put_number(&m, KEY_TOKENS, r->tokens);
    put_number(&m, KEY_OLDEST, r->version_min);
    put_number(&m, KEY_NEWEST, r->version_max);
    put_number(&m, KEY_GROUP, r->group);
    put_number(&m, KEY_MEMBER, r->group_index);
    put_number(&m, KEY_MEMBERS, r->group_size);
    CORRAL_TRY(put_scores(&m, r, err));
    static_assert(KEYS < 16, "the short form of a map");
    out[0] = (uint8_t)(0x80 | m.pairs);
    *header_bytes = (uint32_t)(m.at - out);
    return CORRAL_OK;
}

static enum corral_status total_bytes(uint32_t header_bytes, uint64_t tensor_bytes, uint64_t *out,
                                      struct corral_error *err)
{
    const uint64_t total = CORRAL_TRAJ_PROLOGUE_BYTES + corral_traj_align(header_bytes) + tensor_bytes;
    if (total > CORRAL_TRAJ_RECORD_MAX) {
        return corral_fail(err, CORRAL_INVALID, "record: %llu bytes, at most %llu are allowed",
                           (unsigned long long)total, (unsigned long long)CORRAL_TRAJ_RECORD_MAX);
    }
    *out = total;
    return CORRAL_OK;
}

enum corral_status corral_traj_record_bytes(const struct corral_traj_record *r, uint64_t *bytes,
                                            struct corral_error *err)
{
    uint8_t map[CORRAL_TRAJ_HEADER_MAX];
    uint32_t header_bytes;
    uint64_t tensor_bytes;
    CORRAL_TRY(write_map(r, map, &header_bytes, &tensor_bytes, err));
    return total_bytes(header_bytes, tensor_bytes, bytes, err);
}

/* So that the gap behind `bytes` is zero. Returns where the next part begins. */
static uint8_t *last_line_zeroed(uint8_t *at, uint64_t bytes)
{
    at += corral_traj_align(bytes);
    memset(at - CORRAL_TRAJ_ALIGN, 0, CORRAL_TRAJ_ALIGN);
    return at;
}

enum corral_status corral_traj_record_encode(const struct corral_traj_record *r, void *memory, uint64_t bytes,
                                             struct corral_error *err)
{
    uint8_t map[CORRAL_TRAJ_HEADER_MAX], *at = memory;
    uint32_t header_bytes;
    uint64_t tensor_bytes, total = 0;
    CORRAL_TRY(write_map(r, map, &header_bytes, &tensor_bytes, err));
    CORRAL_TRY(total_bytes(header_bytes, tensor_bytes, &total, err));
    if (total != bytes || (uintptr_t)memory % CORRAL_TRAJ_ALIGN != 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "record: needs %llu bytes aligned to %u, was given %llu at %p",
                           (unsigned long long)total, CORRAL_TRAJ_ALIGN, (unsigned long long)bytes, memory);
    }
    const struct corral_traj_prologue p = {.magic = CORRAL_TRAJ_RECORD_MAGIC,
                                           .format = CORRAL_TRAJ_RECORD_FORMAT,
                                           .header_bytes = header_bytes,
                                           .bytes = total,
                                           .run = r->run,
                                           .worker = r->worker,
                                           .epoch = r->epoch,
                                           .sequence = r->sequence};
    memcpy(at, &p, sizeof p);
    at += sizeof p;
    at = last_line_zeroed(at, header_bytes);
    memcpy(at - corral_traj_align(header_bytes), map, header_bytes);
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        const struct corral_traj_tensor *t = &r->tensors[i];
        const uint64_t n = shape_bytes(t->dtype, t->dims, t->shape);
        at = last_line_zeroed(at, n);
        if (t->data != NULL) {
            memcpy(at - corral_traj_align(n), t->data, n);
        }
    }
    return CORRAL_OK;
}

void corral_traj_record_stamp(void *memory, uint64_t run, uint32_t worker, uint32_t epoch, uint64_t sequence)
{
    struct corral_traj_prologue *p = memory;
    p->run = run;
    p->worker = worker;
    p->epoch = epoch;
    p->sequence = sequence;
}
