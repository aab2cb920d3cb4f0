#include "rollout/worker/env_snapshot.h"
#include "base/file.h"
#include "base/hash.h"
#include <stdlib.h>
#include <string.h>

#define SNAPSHOT_MAGIC UINT64_C(0x564e454c52524f43) /* "CORRLENV" */
#define SNAPSHOT_BYTES_MAX (UINT64_C(1) << 32)

struct snapshot_header {
    uint64_t magic;
    uint64_t vec_bytes;
    uint32_t rows, envs;
    struct corral_rng rng;
    struct corral_digest digest; /* of the whole file with zeros here */
};

/* Behind the header: episode_return [rows], rows_done [envs], the vector's snapshot. */
static uint64_t tables_bytes(const struct corral_fragment_builder *b)
{
    return (b->fragment.rows * sizeof(double) + b->envs * sizeof(uint32_t) + 7) / 8 * 8;
}

static void *at(void *file, uint64_t offset)
{
    return (uint8_t *)file + sizeof(struct snapshot_header) + offset;
}

static struct corral_digest seal(void *file, size_t bytes)
{
    struct snapshot_header *header = file;
    header->digest = (struct corral_digest){0};
    return corral_digest_of(file, bytes);
}

enum corral_status corral_env_snapshot_write(const char *path, struct corral_vec *vec,
                                             const struct corral_rng *rng,
                                             const struct corral_fragment_builder *builder,
                                             struct corral_error *err)
{
    uint64_t vec_bytes = 0, tables = tables_bytes(builder), returns = builder->fragment.rows * sizeof(double);
    CORRAL_TRY(corral_vec_snapshot(vec, NULL, &vec_bytes, err));
    size_t bytes = sizeof(struct snapshot_header) + tables + vec_bytes;
    CORRAL_AUTO_FREE void *file = calloc(1, bytes);
    if (!file) {
        return corral_fail(err, CORRAL_NOMEM, "snapshot of %zu bytes", bytes);
    }
    CORRAL_TRY(corral_vec_snapshot(vec, at(file, tables), &vec_bytes, err));
    memcpy(at(file, 0), builder->episode_return, returns);
    memcpy(at(file, returns), builder->rows_done, builder->envs * sizeof(uint32_t));
    struct snapshot_header *header = file;
    header->magic = SNAPSHOT_MAGIC;
    header->vec_bytes = vec_bytes;
    header->rows = builder->fragment.rows;
    header->envs = builder->envs;
    header->rng = *rng;
    header->digest = seal(file, bytes);
    return corral_file_write_atomic(path, file, bytes, 0644, true, err);
}

static enum corral_status check(const char *path, void *file, size_t bytes,
                                const struct corral_fragment_builder *builder, struct corral_error *err)
{
    struct snapshot_header *header = file;
    if (bytes < sizeof *header || header->magic != SNAPSHOT_MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: not an environment snapshot (%zu bytes)", path, bytes);
    }
    struct corral_digest said = header->digest;
    if (!corral_digest_equal(said, seal(file, bytes))) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: damaged environment snapshot (digest differs)", path);
    }
    if (header->rows != builder->fragment.rows || header->envs != builder->envs ||
        header->vec_bytes != bytes - sizeof *header - tables_bytes(builder)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "%s: a snapshot of %u rows in %u environments, this job has %u in %u", path,
                           header->rows, header->envs, builder->fragment.rows, builder->envs);
    }
    return CORRAL_OK;
}

enum corral_status corral_env_snapshot_read(const char *path, struct corral_vec *vec, struct corral_rng *rng,
                                            struct corral_fragment_builder *builder, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *file = NULL;
    size_t bytes = 0;
    CORRAL_TRY(corral_file_read(path, SNAPSHOT_BYTES_MAX, &file, &bytes, err));
    CORRAL_TRY(check(path, file, bytes, builder, err));
    const struct snapshot_header *header = (const void *)file;
    CORRAL_TRY(corral_vec_restore(vec, at(file, tables_bytes(builder)), header->vec_bytes, err));
    uint64_t returns = builder->fragment.rows * sizeof(double);
    memcpy(builder->episode_return, at(file, 0), returns);
    memcpy(builder->rows_done, at(file, returns), builder->envs * sizeof(uint32_t));
    *rng = header->rng;
    return CORRAL_OK;
}
