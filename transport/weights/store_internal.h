/* How a store lies in memory (docs/spec/weights.md), for its writer (store.c) and its readers (store_read.c). */
#ifndef CORRAL_TRANSPORT_WEIGHTS_STORE_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_STORE_INTERNAL_H

#include "transport/weights/store.h"
#include <stdatomic.h>

/* ThreadSanitizer does not model fences. What they order is shared between mappings, which it does not look at either. */
#ifdef __SANITIZE_THREAD__
#pragma GCC diagnostic ignored "-Wtsan"
#endif

#define STORE_MAGIC 0x31535743u /* "CWS1" */
#define STORE_LAYOUT 2u
#define HEADER_BYTES 4096u
#define SLOT_ALIGN 4096u
#define VERSION_MAX ((UINT64_C(1) << 62) - 1)
#define STORE_BYTES_MAX (UINT64_C(1) << 50)

enum digest_kind { DIGEST_OF_BYTES, DIGEST_CHAIN };

struct slot_header {
    _Atomic uint64_t seq; /* odd while the slot is written */
    _Atomic uint64_t version, bytes, digest_lo, digest_hi;
    _Atomic uint64_t kind;                             /* of the digest, enum digest_kind */
    _Atomic uint64_t tainted[CORRAL_STORE_TAINTS_MAX]; /* owner words; 0: nobody */
} __attribute__((aligned(128)));

struct store_header {
    uint32_t magic, layout;
    uint64_t weight_bytes_max, slot_stride;
    _Alignas(64) _Atomic uint64_t current; /* version * 4 + slot */
    _Alignas(64) _Atomic uint32_t wake;
    _Atomic uint32_t waiters;
    _Alignas(64) _Atomic uint64_t owner;
    _Alignas(64) _Atomic uint32_t manifest_set;
    _Atomic uint64_t manifest_lo, manifest_hi, bytes;
    struct slot_header slot[CORRAL_STORE_SLOTS];
};
_Static_assert(offsetof(struct store_header, current) == 64, "docs/spec/weights.md");
_Static_assert(offsetof(struct store_header, wake) == 128, "docs/spec/weights.md");
_Static_assert(offsetof(struct store_header, owner) == 192, "docs/spec/weights.md");
_Static_assert(offsetof(struct store_header, manifest_set) == 256, "docs/spec/weights.md");
_Static_assert(offsetof(struct store_header, slot) == 384, "docs/spec/weights.md");
_Static_assert(sizeof(struct slot_header) == 128, "docs/spec/weights.md");
_Static_assert(sizeof(struct store_header) <= HEADER_BYTES, "docs/spec/weights.md");

struct corral_weight_store {
    struct store_header *header;
    uint8_t *slots;
    size_t mapped;
    uint64_t bytes_max, stride; /* checked copies: nobody can change them under us */
    uint64_t self;              /* our owner word */
    pid_t pid;                  /* the process `self` was made in */
    int fd;
    uint64_t writing; /* version begun and neither committed nor aborted; 0 = none */
    uint32_t writing_slot;
};

/* The manifest of the first version is fixed; another one is CORRAL_INVALID. */
enum corral_status store_check_manifest(struct store_header *h, struct corral_digest manifest, uint64_t bytes,
                                        struct corral_error *err);

#endif
