/* zstd behind one file, where the build has it. Private to wal/. One thread per packer. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_COMPRESS_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_COMPRESS_H

#include "base/error.h"
#include <stdint.h>

#define WAL_ZSTD_LEVEL_MAX 19

struct wal_packer;

/* CORRAL_UNSUPPORTED in a build without zstd. */
enum corral_status wal_packer_create(struct wal_packer **out, struct corral_error *err);
void wal_packer_destroy(struct wal_packer *p);
/* *packed is valid until the next call; *packed_bytes is 0 when it would not be smaller. */
enum corral_status wal_pack(struct wal_packer *p, int level, const void *data, uint64_t bytes,
                            const void **packed, uint64_t *packed_bytes, struct corral_error *err);
/* Into memory aligned to 64 bytes, valid until the next call. CORRAL_PROTOCOL when it is not one zstd frame of exactly `bytes` bytes. */
enum corral_status wal_unpack(struct wal_packer *p, const void *packed, uint64_t packed_bytes, uint64_t bytes,
                              const void **out, struct corral_error *err);

#endif
