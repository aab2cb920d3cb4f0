#include "base/mpack_scan.h"
#include "base/mpack.h"
#include <inttypes.h>
#include <stdbool.h>

enum kind { KIND_SCALAR, KIND_STR, KIND_ARRAY, KIND_MAP, KIND_REFUSED };

struct head {
    enum kind kind;
    uint32_t size_bytes; /* how many bytes after the first hold the count or length */
    uint64_t body;       /* payload bytes of a scalar, or the count when it is in the first byte */
};

/* The meaning of the first byte of a value (https://github.com/msgpack/msgpack/blob/master/spec.md). */
static struct head head_of(uint8_t b)
{
    if (b < 0x80 || b >= 0xE0) {
        return (struct head){.kind = KIND_SCALAR}; /* small integers */
    }
    if (b < 0x90) {
        return (struct head){.kind = KIND_MAP, .body = b & 0x0F};
    }
    if (b < 0xA0) {
        return (struct head){.kind = KIND_ARRAY, .body = b & 0x0F};
    }
    if (b < 0xC0) {
        return (struct head){.kind = KIND_STR, .body = b & 0x1F};
    }
    switch (b) {
    case 0xC0: /* nil */
    case 0xC2: /* false */
    case 0xC3: /* true */
        return (struct head){.kind = KIND_SCALAR};
    case 0xC4: /* bin 8, 16, 32 */
    case 0xC5:
    case 0xC6:
        return (struct head){.kind = KIND_SCALAR, .size_bytes = 1u << (b - 0xC4)};
    case 0xCA: /* float 32, 64 */
    case 0xCB:
        return (struct head){.kind = KIND_SCALAR, .body = 4u << (b - 0xCA)};
    case 0xCC: /* unsigned 8 ... 64 */
    case 0xCD:
    case 0xCE:
    case 0xCF:
        return (struct head){.kind = KIND_SCALAR, .body = 1u << (b - 0xCC)};
    case 0xD0: /* signed 8 ... 64 */
    case 0xD1:
    case 0xD2:
    case 0xD3:
        return (struct head){.kind = KIND_SCALAR, .body = 1u << (b - 0xD0)};
    case 0xD9: /* str 8, 16, 32 */
    case 0xDA:
    case 0xDB:
        return (struct head){.kind = KIND_STR, .size_bytes = 1u << (b - 0xD9)};
    case 0xDC: /* array 16, 32 */
    case 0xDD:
        return (struct head){.kind = KIND_ARRAY, .size_bytes = 2u << (b - 0xDC)};
    case 0xDE: /* map 16, 32 */
    case 0xDF:
        return (struct head){.kind = KIND_MAP, .size_bytes = 2u << (b - 0xDE)};
    default: /* extensions, and 0xC1, which is never used */
        return (struct head){.kind = KIND_REFUSED};
    }
}

struct level {
    uint64_t left; /* values still to come in this map or array */
    bool map;      /* keys are those that leave an odd number to come, themselves taken off */
};

struct scan {
    const uint8_t *p;
    size_t bytes;
    size_t at;
    uint32_t objects;
    uint32_t depth;
    struct level levels[CORRAL_MPACK_DEPTH_MAX];
};

static enum corral_status malformed(const struct scan *s, const char *problem, struct corral_error *err)
{
    return corral_fail(err, CORRAL_PROTOCOL, "malformed message at byte %zu: %s", s->at, problem);
}

static enum corral_status enter(struct scan *s, const struct head *head, uint64_t count,
                                struct corral_error *err)
{
    const uint64_t values = head->kind == KIND_MAP ? count * 2 : count;
    if (s->depth == CORRAL_MPACK_DEPTH_MAX) {
        return malformed(s, "nested too deep", err);
    }
    /* A value takes a byte at least. */
    if (values > s->bytes - s->at) {
        return malformed(s, "declares more elements than there are bytes", err);
    }
    s->levels[s->depth++] = (struct level){.left = values, .map = head->kind == KIND_MAP};
    return CORRAL_OK;
}

static enum corral_status scan_value(struct scan *s, bool key, struct corral_error *err)
{
    if (s->at == s->bytes) {
        return malformed(s, "ends early", err);
    }
    const struct head head = head_of(s->p[s->at]);
    if (head.kind == KIND_REFUSED) {
        return malformed(s, "a type that messages do not use", err);
    }
    if (key && head.kind != KIND_STR) {
        return malformed(s, "a key that is not a string", err);
    }
    if (head.size_bytes > s->bytes - s->at - 1) {
        return malformed(s, "ends early", err);
    }
    s->at++;
    uint64_t body = head.body;
    for (uint32_t i = 0; i < head.size_bytes; i++) {
        body = body << 8 | s->p[s->at++];
    }
    if (head.kind == KIND_MAP || head.kind == KIND_ARRAY) {
        return enter(s, &head, body, err);
    }
    if (body > s->bytes - s->at) {
        return malformed(s, "declares more bytes than there are", err);
    }
    s->at += body;
    return CORRAL_OK;
}

enum corral_status corral_mpack_scan(const void *data, size_t bytes, uint32_t objects_max,
                                     struct corral_error *err)
{
    struct scan s = {.p = data, .bytes = bytes};
    bool key = false;
    do {
        if (s.objects++ == objects_max) {
            return malformed(&s, "too many objects", err);
        }
        CORRAL_TRY(scan_value(&s, key, err));
        while (s.depth > 0 && s.levels[s.depth - 1].left == 0) {
            s.depth--;
        }
        if (s.depth > 0) {
            struct level *level = &s.levels[s.depth - 1];
            key = level->map && level->left % 2 == 0;
            level->left--;
        }
    } while (s.depth > 0 || s.objects == 0);
    return s.at == bytes ? CORRAL_OK : malformed(&s, "bytes after the end", err);
}
