#include "transport/trajectory/wire.h"
#include <assert.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are little-endian");
_Static_assert(CORRAL_FRAGMENT_HEADER_BYTES >= CORRAL_TRAJ_AREA_BYTES + CORRAL_FRAGMENT_FRAMES * 63,
               "a frame is never larger than what it counts for");
_Static_assert(CORRAL_TRAJ_AREA_BYTES % 64 == 0, "tensors are aligned behind it");

#define BIT(type) (1u << CORRAL_TRAJ_##type)
#define SESSIONS ((1u << CORRAL_TRAJ_TYPES) - 1)
#define IDENTITY (BIT(HELLO) | BIT(FRAGMENT))

static const char *const type_names[CORRAL_TRAJ_TYPES] = {
    [CORRAL_TRAJ_HELLO] = "hello",     [CORRAL_TRAJ_FRAGMENT] = "fragment", [CORRAL_TRAJ_WANT] = "want",
    [CORRAL_TRAJ_LIMIT] = "limit",     [CORRAL_TRAJ_PING] = "ping",         [CORRAL_TRAJ_WELCOME] = "welcome",
    [CORRAL_TRAJ_REFUSED] = "refused", [CORRAL_TRAJ_REHELLO] = "rehello",   [CORRAL_TRAJ_CREDIT] = "credit",
    [CORRAL_TRAJ_RESEND] = "resend",   [CORRAL_TRAJ_RECLAIM] = "reclaim",
};

enum kind { U64, U32, BOOLEAN, TEXT };
struct field {
    const char *name;
    enum kind kind;
    uint32_t types; /* the messages that carry it */
    size_t offset, bytes;
};
#define FIELD(name, kind, types, member)                                 \
    {                                                                    \
        name, kind, types, offsetof(struct corral_traj_message, member), \
            sizeof(((struct corral_traj_message *)NULL)->member)         \
    }

static const struct field fields[] = {
    FIELD("session", U64, SESSIONS, session),
    FIELD("protocol", U64, BIT(HELLO), protocol),
    FIELD("run", U64, IDENTITY, fragment.run),
    FIELD("worker", U32, IDENTITY, fragment.worker),
    FIELD("epoch", U32, IDENTITY, fragment.epoch),
    FIELD("token", TEXT, BIT(HELLO), token),
    FIELD("first", U64, BIT(HELLO), first),
    FIELD("acked", U64, BIT(WELCOME) | BIT(CREDIT), acked),
    FIELD("received", U64, BIT(WELCOME), received),
    FIELD("bytes", U64, BIT(WELCOME) | BIT(CREDIT) | BIT(WANT) | BIT(LIMIT) | BIT(RECLAIM), bytes),
    FIELD("buffer", U64, BIT(WELCOME), buffer),
    FIELD("reason", TEXT, BIT(REFUSED), reason),
    FIELD("sequence", U64, BIT(FRAGMENT) | BIT(RESEND), fragment.sequence),
    FIELD("format", U64, BIT(FRAGMENT), format),
    FIELD("steps", U32, BIT(FRAGMENT), fragment.steps),
    FIELD("rows", U32, BIT(FRAGMENT), fragment.rows),
    FIELD("obs_dim", U32, BIT(FRAGMENT), fragment.obs_dim),
    FIELD("action_components", U32, BIT(FRAGMENT), fragment.action_components),
    FIELD("mask_bytes", U32, BIT(FRAGMENT), fragment.mask_bytes),
    FIELD("action_continuous", BOOLEAN, BIT(FRAGMENT), fragment.action_continuous),
    FIELD("boundary_count", U32, BIT(FRAGMENT), fragment.boundary_count),
    FIELD("episode_count", U32, BIT(FRAGMENT), fragment.episode_count),
};

static uint32_t field_count(uint32_t type_bit)
{
    uint32_t n = 0;
    for (size_t i = 0; i < CORRAL_COUNT_OF(fields); i++) {
        n += (fields[i].types & type_bit) != 0;
    }
    return n;
}

void corral_traj_encode(struct corral_mpack_writer *w, const struct corral_traj_message *m)
{
    uint32_t type_bit = 1u << m->type;
    corral_mpack_writer_reset(w);
    corral_mpack_map(w, 1 + field_count(type_bit));
    corral_mpack_kv_str(w, "type", type_names[m->type]);
    for (size_t i = 0; i < CORRAL_COUNT_OF(fields); i++) {
        const struct field *f = &fields[i];
        const char *at = (const char *)m + f->offset;
        if ((f->types & type_bit) == 0) {
            continue;
        }
        switch (f->kind) {
        case U64:
            corral_mpack_kv_u64(w, f->name, *(const uint64_t *)(const void *)at);
            break;
        case U32:
            corral_mpack_kv_u64(w, f->name, *(const uint32_t *)(const void *)at);
            break;
        case BOOLEAN:
            corral_mpack_kv_bool(w, f->name, *(const bool *)at);
            break;
        case TEXT:
            corral_mpack_kv_str(w, f->name, at);
            break;
        }
    }
}

static enum corral_status decode_field(const struct corral_mpack_node *root, const struct field *f,
                                       struct corral_traj_message *out, struct corral_error *err)
{
    char *at = (char *)out + f->offset;
    uint64_t value;
    switch (f->kind) {
    case U64:
        return corral_mpack_get_u64(root, f->name, (uint64_t *)(void *)at, err);
    case BOOLEAN:
        return corral_mpack_get_bool(root, f->name, (bool *)at, err);
    case TEXT:
        return corral_mpack_get_str(root, f->name, at, f->bytes, err);
    case U32:
        break;
    }
    CORRAL_TRY(corral_mpack_get_u64(root, f->name, &value, err));
    if (value > UINT32_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "\"%s\" is larger than 32 bits", f->name);
    }
    *(uint32_t *)(void *)at = (uint32_t)value;
    return CORRAL_OK;
}

static enum corral_status decode_map(const void *data, size_t bytes, struct corral_traj_message *out,
                                     struct corral_error *err)
{
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
    CORRAL_TRY(corral_mpack_read(&reader, data, bytes, err));
    const struct corral_mpack_node *root = corral_mpack_root(reader);
    char name[16];
    CORRAL_TRY(corral_mpack_get_str(root, "type", name, sizeof name, err));
    struct corral_traj_message m = {.type = CORRAL_TRAJ_HELLO};
    while (m.type < CORRAL_TRAJ_TYPES && strcmp(name, type_names[m.type]) != 0) {
        m.type++;
    }
    if (m.type == CORRAL_TRAJ_TYPES) {
        return corral_fail(err, CORRAL_PROTOCOL, "unknown message type");
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(fields); i++) {
        if ((fields[i].types & (1u << m.type)) != 0) {
            CORRAL_TRY(decode_field(root, &fields[i], &m, err));
        }
    }
    *out = m;
    return CORRAL_OK;
}

enum corral_status corral_traj_encode_area(struct corral_mpack_writer *w, const struct corral_traj_message *m,
                                           uint8_t area[CORRAL_TRAJ_AREA_BYTES], struct corral_error *err)
{
    const void *data;
    size_t bytes;
    corral_traj_encode(w, m);
    CORRAL_TRY(corral_mpack_finish(w, &data, &bytes, err));
    const uint32_t lead[2] = {CORRAL_TRAJ_MAGIC, (uint32_t)bytes};
    assert(bytes + sizeof lead <= CORRAL_TRAJ_AREA_BYTES);
    memset(area, 0, CORRAL_TRAJ_AREA_BYTES);
    memcpy(area, lead, sizeof lead);
    memcpy(area + sizeof lead, data, bytes);
    return CORRAL_OK;
}

enum corral_status corral_traj_decode(const void *data, size_t bytes, struct corral_traj_message *out,
                                      struct corral_error *err)
{
    uint32_t lead[2];
    struct corral_traj_message m;
    bool fragment = bytes >= CORRAL_TRAJ_AREA_BYTES && memcmp(data, &(uint32_t){CORRAL_TRAJ_MAGIC}, 4) == 0;
    if (fragment) {
        memcpy(lead, data, sizeof lead);
        if (lead[1] > CORRAL_TRAJ_AREA_BYTES - sizeof lead) {
            return corral_fail(err, CORRAL_PROTOCOL, "a fragment header of %u bytes does not fit its area",
                               lead[1]);
        }
        CORRAL_TRY(decode_map((const uint8_t *)data + sizeof lead, lead[1], &m, err));
    } else if (bytes <= CORRAL_TRAJ_CONTROL_BYTES_MAX) {
        CORRAL_TRY(decode_map(data, bytes, &m, err));
    } else {
        return corral_fail(err, CORRAL_PROTOCOL, "a message of %zu bytes, at most %d are allowed", bytes,
                           CORRAL_TRAJ_CONTROL_BYTES_MAX);
    }
    if (fragment != (m.type == CORRAL_TRAJ_FRAGMENT)) {
        return corral_fail(err, CORRAL_PROTOCOL, "a %s in the frame of %s", type_names[m.type],
                           fragment ? "a fragment" : "another message");
    }
    *out = m;
    return CORRAL_OK;
}

enum corral_status corral_traj_check_frame(const struct corral_traj_message *m, size_t frame_bytes,
                                           uint64_t bytes[CORRAL_FRAGMENT_FRAMES],
                                           uint64_t offsets[CORRAL_FRAGMENT_FRAMES], uint64_t *total,
                                           struct corral_error *err)
{
    if (m->format != CORRAL_FRAGMENT_FORMAT || m->fragment.sequence == 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "a fragment of unknown format or without a sequence");
    }
    CORRAL_TRY(corral_fragment_sizes(&m->fragment, bytes, err));
    *total = corral_fragment_offsets(bytes, offsets);
    if (frame_bytes != CORRAL_TRAJ_AREA_BYTES + *total) {
        return corral_fail(err, CORRAL_PROTOCOL, "a fragment's frame has %zu bytes, its shapes need %llu",
                           frame_bytes, (unsigned long long)(CORRAL_TRAJ_AREA_BYTES + *total));
    }
    return CORRAL_OK;
}

void corral_fragment_tensors(const struct corral_fragment *f, const void *out[CORRAL_FRAGMENT_FRAMES])
{
    const void *const in[CORRAL_FRAGMENT_FRAMES] = {
        f->obs,     f->action, f->log_prob, f->reward,      f->terminated,   f->truncated, f->valid,
        f->version, f->mask,   f->last_obs, f->boundary_at, f->boundary_obs, f->episode,
    };
    memcpy(out, in, sizeof in);
}

void corral_fragment_set_tensors(struct corral_fragment *f, const void *const in[CORRAL_FRAGMENT_FRAMES])
{
    f->obs = in[0];
    f->action = in[1];
    f->log_prob = in[2];
    f->reward = in[3];
    f->terminated = in[4];
    f->truncated = in[5];
    f->valid = in[6];
    f->version = in[7];
    f->mask = in[8];
    f->last_obs = in[9];
    f->boundary_at = in[10];
    f->boundary_obs = in[11];
    f->episode = in[12];
}

bool corral_fragment_boundaries_valid(const struct corral_fragment *f)
{
    uint64_t cells = (uint64_t)f->steps * f->rows;
    for (uint32_t i = 0; i < f->boundary_count; i++) {
        if (f->boundary_at[i] >= cells || (i > 0 && f->boundary_at[i] <= f->boundary_at[i - 1])) {
            return false;
        }
    }
    return true;
}

uint64_t corral_fragment_offsets(const uint64_t bytes[CORRAL_FRAGMENT_FRAMES],
                                 uint64_t offsets[CORRAL_FRAGMENT_FRAMES])
{
    uint64_t at = 0;
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        offsets[i] = at;
        at += (bytes[i] + 63) & ~UINT64_C(63);
    }
    return at;
}
