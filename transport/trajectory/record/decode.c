/* Every byte is somebody else's: nothing is used before it was checked, nothing is allocated, and the first thing that is wrong is named. */
#include "transport/trajectory/record/map_read.h"
#include "transport/trajectory/record/prologue.h"
#include "transport/trajectory/record/shape.h"
#include <stdio.h>

struct decoder {
    struct map_reader r;
    const uint8_t *map; /* where it begins: for error texts */
    struct corral_traj_view *view;
    char *text; /* the free rest of view->text: no shorter than what is left of the map */
    struct corral_error *err;
};

__attribute__((cold, noinline, format(printf, 2, 3))) static enum corral_status
refuse(const struct decoder *d, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return corral_fail(d->err, CORRAL_PROTOCOL, "record: %s (byte %zu of its header)", what,
                       (size_t)(d->r.at - d->map));
}

/* A text takes a byte more in the map than it has, so that there is always room for its NUL. */
static const char *keep(struct decoder *d, const char *text, size_t bytes)
{
    char *out = d->text;
    copy_short(out, text, bytes);
    out[bytes] = 0;
    d->text += bytes + 1;
    return out;
}

static enum corral_status read_text(struct decoder *d, enum record_key key, size_t bytes_max,
                                    const char **out)
{
    const char *text;
    size_t bytes;
    if (!map_read_str(&d->r, &text, &bytes) || bytes > bytes_max) {
        return refuse(d, "`%s` is no string of at most %zu bytes", corral_traj_keys[key].text, bytes_max);
    }
    if (!corral_traj_text_valid(text, bytes)) {
        return refuse(d, "`%s` is not UTF-8 without NUL", corral_traj_keys[key].text);
    }
    *out = keep(d, text, bytes);
    return CORRAL_OK;
}

static enum corral_status read_u64(struct decoder *d, enum record_key key, uint64_t *out)
{
    if (!map_read_u64(&d->r, out)) {
        return refuse(d, "`%s` is no integer from 0 to 2^64-1", corral_traj_keys[key].text);
    }
    return CORRAL_OK;
}

static enum corral_status read_u32(struct decoder *d, enum record_key key, uint32_t *out)
{
    uint64_t v;
    if (!map_read_u64(&d->r, &v) || v > UINT32_MAX) {
        return refuse(d, "`%s` is no integer from 0 to 2^32-1", corral_traj_keys[key].text);
    }
    *out = (uint32_t)v;
    return CORRAL_OK;
}

static enum corral_status read_name(struct decoder *d, struct name_set *names, const char *what,
                                    const char **out)
{
    const char *text;
    size_t bytes;
    if (!map_read_str(&d->r, &text, &bytes) || !name_valid(text, bytes)) {
        return refuse(d, "the name of %s %u is no string of 1 to %d visible ASCII characters", what,
                      names->count, CORRAL_TRAJ_TEXT_MAX);
    }
    if (!name_set_add(names, text, bytes)) {
        return refuse(d, "two %ss are called `%.*s`", what, (int)bytes, text);
    }
    *out = keep(d, text, bytes);
    return CORRAL_OK;
}

/* [name, dtype, [extents], what later versions may add …] */
static enum corral_status read_tensor(struct decoder *d, uint32_t i, struct name_set *names)
{
    struct corral_traj_tensor *t = &d->view->tensors[i];
    uint32_t members;
    uint64_t dtype;
    if (!map_read_array(&d->r, &members) || members < 3) {
        return refuse(d, "tensor %u is no list of name, dtype and shape", i);
    }
    CORRAL_TRY(read_name(d, names, "tensor", &t->name));
    if (!map_read_u64(&d->r, &dtype) || dtype > UINT32_MAX || corral_traj_dtype_bytes((uint32_t)dtype) == 0) {
        return refuse(d, "tensor `%s`: its dtype is unknown", t->name);
    }
    if (!map_read_array(&d->r, &t->dims) || t->dims == 0 || t->dims > CORRAL_TRAJ_DIMS_MAX) {
        return refuse(d, "tensor `%s`: its shape is no list of 1 to %d extents", t->name,
                      CORRAL_TRAJ_DIMS_MAX);
    }
    for (uint32_t k = 0; k < t->dims; k++) {
        if (!map_read_u64(&d->r, &t->shape[k]) || t->shape[k] == 0) {
            return refuse(d, "tensor `%s`: extent %u is no positive integer", t->name, k);
        }
    }
    t->dtype = (uint32_t)dtype;
    d->view->tensor_bytes[i] = shape_bytes(t->dtype, t->dims, t->shape);
    if (d->view->tensor_bytes[i] == 0) {
        return refuse(d, "tensor `%s`: its shape needs more than %llu bytes", t->name,
                      (unsigned long long)CORRAL_TRAJ_RECORD_MAX);
    }
    for (uint32_t k = 3; k < members; k++) {
        if (!map_read_skip(&d->r, 3)) {
            return refuse(d, "tensor `%s`: member %u is malformed", t->name, k);
        }
    }
    return CORRAL_OK;
}

static enum corral_status read_tensors(struct decoder *d)
{
    struct name_set names;
    uint32_t count;
    name_set_clear(&names);
    if (!map_read_array(&d->r, &count) || count > CORRAL_TRAJ_TENSORS_MAX) {
        return refuse(d, "`tensors` is no list of at most %d", CORRAL_TRAJ_TENSORS_MAX);
    }
    for (uint32_t i = 0; i < count; i++) {
        CORRAL_TRY(read_tensor(d, i, &names));
    }
    d->view->record.tensor_count = count;
    return CORRAL_OK;
}

static enum corral_status read_scores(struct decoder *d)
{
    struct name_set names;
    uint32_t count;
    name_set_clear(&names);
    if (!map_read_map(&d->r, &count) || count > CORRAL_TRAJ_SCORES_MAX) {
        return refuse(d, "`scores` is no map of at most %d", CORRAL_TRAJ_SCORES_MAX);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct corral_traj_score *s = &d->view->scores[i];
        CORRAL_TRY(read_name(d, &names, "score", &s->name));
        if (!map_read_f64(&d->r, &s->value)) {
            return refuse(d, "score `%s` is no number", s->name);
        }
    }
    d->view->record.score_count = count;
    return CORRAL_OK;
}

static enum corral_status read_value(struct decoder *d, enum record_key key)
{
    struct corral_traj_record *r = &d->view->record;
    switch (key) {
    case KEY_TENSORS:
        return read_tensors(d);
    case KEY_KIND:
        CORRAL_TRY(read_u32(d, key, &r->kind));
        return r->kind <= CORRAL_TRAJ_FRAGMENT ? CORRAL_OK : refuse(d, "kind %u is unknown", r->kind);
    case KEY_ENV:
        return read_text(d, key, CORRAL_TRAJ_TEXT_MAX, &r->env);
    case KEY_TASK:
        return read_text(d, key, CORRAL_TRAJ_TASK_MAX, &r->task);
    case KEY_FINISH:
        return read_text(d, key, CORRAL_TRAJ_TEXT_MAX, &r->finish);
    case KEY_EPISODE:
        return read_u64(d, key, &r->episode);
    case KEY_TURNS:
        return read_u32(d, key, &r->turns);
    case KEY_TOKENS:
        return read_u64(d, key, &r->tokens);
    case KEY_OLDEST:
        return read_u64(d, key, &r->version_min);
    case KEY_NEWEST:
        return read_u64(d, key, &r->version_max);
    case KEY_GROUP:
        return read_u64(d, key, &r->group);
    case KEY_MEMBER:
        return read_u32(d, key, &r->group_index);
    case KEY_MEMBERS:
        return read_u32(d, key, &r->group_size);
    case KEY_SCORES:
        return read_scores(d);
    default:
        return map_read_skip(&d->r, 1) ? CORRAL_OK : refuse(d, "the value of an unknown key is malformed");
    }
}

/* KEYS when it is none of ours. `from`: the one that is likely. */
static enum record_key key_of(const char *text, size_t bytes, uint32_t from)
{
    const uint64_t word = load_short(text, bytes);
    for (uint32_t n = 0, k = from; bytes < 8 && n < KEYS; n++, k++) {
        k = k == KEYS ? 0 : k;
        if (corral_traj_keys[k].bytes == bytes && load8(corral_traj_keys[k].text) == word) {
            return k;
        }
    }
    return KEYS;
}

static enum corral_status read_map(struct decoder *d, uint32_t *seen)
{
    uint32_t pairs, next = 0;
    if (!map_read_map(&d->r, &pairs)) {
        return refuse(d, "the header is no map that fits its bytes");
    }
    *seen = 0;
    for (uint32_t i = 0; i < pairs; i++) {
        const char *text;
        size_t bytes;
        if (!map_read_str(&d->r, &text, &bytes)) {
            return refuse(d, "key %u is no string", i);
        }
        const enum record_key key = key_of(text, bytes, next);
        if (key != KEYS) {
            if ((*seen & 1u << key) != 0) {
                return refuse(d, "`%s` is there twice", corral_traj_keys[key].text);
            }
            *seen |= 1u << key;
            next = key + 1;
        }
        CORRAL_TRY(read_value(d, key));
    }
    return d->r.at == d->r.end ? CORRAL_OK : refuse(d, "bytes after the end of the map");
}

static enum corral_status check_facts(const struct decoder *d, uint32_t seen)
{
    const struct corral_traj_record *r = &d->view->record;
    const uint32_t required = 1u << KEY_TENSORS | 1u << KEY_KIND;
    if ((seen & required) != required) {
        return refuse(d, "`%s` is missing",
                      corral_traj_keys[(seen & 1u << KEY_TENSORS) == 0 ? KEY_TENSORS : KEY_KIND].text);
    }
    if (r->version_min > r->version_max) {
        return refuse(d, "oldest version %llu is above the newest %llu", (unsigned long long)r->version_min,
                      (unsigned long long)r->version_max);
    }
    if (r->group_size == 0 ? (r->group | r->group_index) != 0 : r->group_index >= r->group_size) {
        return refuse(d, "member %u of a group of %u (number %llu)", r->group_index, r->group_size,
                      (unsigned long long)r->group);
    }
    return CORRAL_OK;
}

/* They lie behind the map in the order of the list, each at a multiple of 64, up to the record's end. */
static enum corral_status place_tensors(const struct decoder *d, const uint8_t *memory, uint64_t at,
                                        uint64_t bytes)
{
    struct corral_traj_view *v = d->view;
    for (uint32_t i = 0; i < v->record.tensor_count; i++) {
        const uint64_t n = corral_traj_align(v->tensor_bytes[i]);
        if (n > bytes - at) {
            return refuse(d, "tensor `%s` reaches beyond the record's %llu bytes", v->tensors[i].name,
                          (unsigned long long)bytes);
        }
        v->tensors[i].data = memory + at;
        at += n;
    }
    return at == bytes ? CORRAL_OK
                       : refuse(d, "its tensors end at byte %llu of %llu", (unsigned long long)at,
                                (unsigned long long)bytes);
}

enum corral_status corral_traj_record_decode(const void *memory, uint64_t bytes,
                                             struct corral_traj_view *view, struct corral_error *err)
{
    uint64_t total;
    CORRAL_TRY(corral_traj_prologue_check(memory, bytes, &total, err));
    if (total != bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "record: claims %llu bytes, there are %llu",
                           (unsigned long long)total, (unsigned long long)bytes);
    }
    const struct corral_traj_prologue *p = memory;
    const uint8_t *map = (const uint8_t *)memory + sizeof *p;
    struct decoder d = {.r = {.at = map, .end = map + p->header_bytes},
                        .map = map,
                        .view = view,
                        .text = view->text,
                        .err = err};
    view->record = (struct corral_traj_record){.size = sizeof view->record,
                                               .run = p->run,
                                               .worker = p->worker,
                                               .epoch = p->epoch,
                                               .sequence = p->sequence,
                                               .env = "",
                                               .task = "",
                                               .finish = "",
                                               .scores = view->scores,
                                               .tensors = view->tensors};
    uint32_t seen = 0;
    CORRAL_TRY(read_map(&d, &seen));
    CORRAL_TRY(check_facts(&d, seen));
    return place_tensors(&d, memory, sizeof *p + corral_traj_align(p->header_bytes), bytes);
}

const struct corral_traj_tensor *corral_traj_record_find(const struct corral_traj_record *r, const char *name)
{
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        if (strcmp(r->tensors[i].name, name) == 0) {
            return &r->tensors[i];
        }
    }
    return NULL;
}

/* Bytes of the tensor that is next in the list. */
static bool next_tensor(struct map_reader *r, uint64_t *bytes)
{
    uint32_t members, dims;
    uint64_t dtype, shape[CORRAL_TRAJ_DIMS_MAX];
    const char *text;
    size_t text_bytes;
    if (!map_read_array(r, &members) || members < 3 || !map_read_str(r, &text, &text_bytes) ||
        !map_read_u64(r, &dtype) || dtype > UINT32_MAX || !map_read_array(r, &dims) ||
        dims > CORRAL_TRAJ_DIMS_MAX) {
        return false;
    }
    for (uint32_t k = 0; k < dims; k++) {
        if (!map_read_u64(r, &shape[k])) {
            return false;
        }
    }
    *bytes = shape_bytes((uint32_t)dtype, dims, shape);
    for (uint32_t k = 3; k < members; k++) {
        if (!map_read_skip(r, 3)) {
            return false;
        }
    }
    return *bytes > 0;
}

void *corral_traj_record_place(void *memory, uint32_t i)
{
    const struct corral_traj_prologue *p = memory;
    uint8_t *map = (uint8_t *)memory + sizeof *p;
    uint64_t total, bytes, at = sizeof *p + corral_traj_align(p->header_bytes);
    struct map_reader r = {.at = map, .end = map + p->header_bytes};
    uint32_t pairs, count;
    const char *text;
    size_t text_bytes;
    if (corral_traj_prologue_check(memory, p->bytes, &total, NULL) != CORRAL_OK ||
        !map_read_map(&r, &pairs)) {
        return NULL;
    }
    do { /* it is the first key of whatever encode() wrote */
        if (pairs-- == 0 || !map_read_str(&r, &text, &text_bytes)) {
            return NULL;
        }
    } while (key_of(text, text_bytes, KEY_TENSORS) != KEY_TENSORS && map_read_skip(&r, 1));
    if (!map_read_array(&r, &count) || i >= count) {
        return NULL;
    }
    for (uint32_t k = 0; k < i; k++) {
        if (!next_tensor(&r, &bytes)) {
            return NULL;
        }
        at += corral_traj_align(bytes);
    }
    return next_tensor(&r, &bytes) && at <= total && bytes <= total - at ? (uint8_t *)memory + at : NULL;
}
