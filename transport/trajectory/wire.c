#include "transport/trajectory/wire.h"
#include <assert.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are little-endian");

#define BIT(type) (1u << CORRAL_TRAJ_##type)
#define SESSIONS ((1u << CORRAL_TRAJ_TYPES) - 1)

static const char *const type_names[CORRAL_TRAJ_TYPES] = {
    [CORRAL_TRAJ_HELLO] = "hello",     [CORRAL_TRAJ_WANT] = "want",       [CORRAL_TRAJ_LIMIT] = "limit",
    [CORRAL_TRAJ_PING] = "ping",       [CORRAL_TRAJ_WELCOME] = "welcome", [CORRAL_TRAJ_REFUSED] = "refused",
    [CORRAL_TRAJ_REHELLO] = "rehello", [CORRAL_TRAJ_CREDIT] = "credit",   [CORRAL_TRAJ_RESEND] = "resend",
    [CORRAL_TRAJ_RECLAIM] = "reclaim",
};

enum kind { U64, U32, TEXT };
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
    FIELD("run", U64, BIT(HELLO), run),
    FIELD("worker", U32, BIT(HELLO), worker),
    FIELD("epoch", U32, BIT(HELLO), epoch),
    FIELD("token", TEXT, BIT(HELLO), token),
    FIELD("first", U64, BIT(HELLO), first),
    FIELD("acked", U64, BIT(WELCOME) | BIT(CREDIT), acked),
    FIELD("finished", U64, BIT(WELCOME) | BIT(CREDIT), finished),
    FIELD("older", U64, BIT(WELCOME) | BIT(CREDIT), older),
    FIELD("received", U64, BIT(WELCOME), received),
    FIELD("bytes", U64, BIT(WELCOME) | BIT(CREDIT) | BIT(WANT) | BIT(LIMIT) | BIT(RECLAIM), bytes),
    FIELD("buffer", U64, BIT(WELCOME), buffer),
    FIELD("reason", TEXT, BIT(REFUSED), reason),
    FIELD("sequence", U64, BIT(RESEND), sequence),
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

enum corral_status corral_traj_decode(const void *data, size_t bytes, struct corral_traj_message *out,
                                      struct corral_error *err)
{
    if (bytes > CORRAL_TRAJ_CONTROL_BYTES_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "a message of %zu bytes, at most %d are allowed", bytes,
                           CORRAL_TRAJ_CONTROL_BYTES_MAX);
    }
    return decode_map(data, bytes, out, err);
}

/* ---- records ---- */

bool corral_traj_is_batch(const void *data, size_t bytes)
{
    return bytes >= sizeof(struct corral_traj_batch) &&
           memcmp(data, &(uint32_t){CORRAL_TRAJ_BATCH_MAGIC}, sizeof(uint32_t)) == 0;
}

static enum corral_status check_header(const struct corral_traj_batch *b, size_t frame_bytes,
                                       struct corral_error *err)
{
    if (b->magic != CORRAL_TRAJ_BATCH_MAGIC || b->protocol != CORRAL_TRAJ_PROTOCOL) {
        return corral_fail(err, CORRAL_PROTOCOL, "records of protocol %u, this program speaks %u",
                           b->protocol, CORRAL_TRAJ_PROTOCOL);
    }
    if (b->bytes != frame_bytes - sizeof *b || b->count == 0 || b->first == 0 ||
        b->first > UINT64_MAX - b->count ||
        (b->reserved0 | b->reserved1[0] | b->reserved1[1] | b->reserved1[2]) != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%u records from %llu on, %llu bytes in a frame of %zu",
                           b->count, (unsigned long long)b->first, (unsigned long long)b->bytes, frame_bytes);
    }
    return CORRAL_OK;
}

enum corral_status corral_traj_batch_check(const void *frame, size_t bytes, struct corral_traj_batch *out,
                                           struct corral_traj_prologue *first, struct corral_error *err)
{
    struct corral_traj_batch b;
    _Alignas(CORRAL_TRAJ_ALIGN) struct corral_traj_prologue p; /* ZeroMQ's buffers are not aligned */
    if (bytes < sizeof b) {
        return corral_fail(err, CORRAL_PROTOCOL, "records in a frame of %zu bytes", bytes);
    }
    memcpy(&b, frame, sizeof b);
    CORRAL_TRY(check_header(&b, bytes, err));
    const uint8_t *at = (const uint8_t *)frame + sizeof b;
    uint64_t left = b.bytes, size;
    for (uint32_t i = 0; i < b.count; i++, at += size, left -= size) {
        if (left < sizeof p) {
            return corral_fail(err, CORRAL_PROTOCOL, "record %u of %u is not in the frame", i, b.count);
        }
        memcpy(&p, at, sizeof p);
        CORRAL_TRY(corral_traj_prologue_check(&p, left, &size, err));
        if (i == 0) {
            *first = p;
        }
        if (p.run != first->run || p.worker != first->worker || p.epoch != first->epoch ||
            p.sequence != b.first + i) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "record %u of %u is %u/%u/%llu and does not continue the ones before it", i,
                               b.count, p.worker, p.epoch, (unsigned long long)p.sequence);
        }
    }
    if (left != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%llu bytes behind the last record",
                           (unsigned long long)left);
    }
    *out = b;
    return CORRAL_OK;
}
