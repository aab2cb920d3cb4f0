/* msgpack, behind one wrapper: a growing writer, and a reader that checks a message before msgpack-c sees it.
 *
 * Control messages are maps with short string keys. The reader walks the raw bytes first and refuses more than
 * CORRAL_MPACK_DEPTH_MAX levels, more than CORRAL_MPACK_OBJECTS_MAX objects, element counts larger than the bytes that
 * are left, and trailing bytes, because msgpack-c allocates for declared counts before data arrives (its issue 1013).
 * Values returned by the getters point into the caller's buffer and live as long as both it and the reader.
 */
#ifndef CORRAL_BASE_MPACK_H
#define CORRAL_BASE_MPACK_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_MPACK_DEPTH_MAX 16
#define CORRAL_MPACK_OBJECTS_MAX 65536

/* ---- writing ---- */
struct corral_mpack_writer; /* one thread; grows as needed; a failed growth is reported by _finish */
struct corral_mpack_writer *corral_mpack_writer_create(void); /* NULL when out of memory */
void corral_mpack_writer_destroy(struct corral_mpack_writer *w);
void corral_mpack_map(struct corral_mpack_writer *w, uint32_t pairs);
void corral_mpack_array(struct corral_mpack_writer *w, uint32_t count);
void corral_mpack_str(struct corral_mpack_writer *w, const char *value);
void corral_mpack_u64(struct corral_mpack_writer *w, uint64_t value);
void corral_mpack_i64(struct corral_mpack_writer *w, int64_t value);
void corral_mpack_f64(struct corral_mpack_writer *w, double value);
void corral_mpack_bool(struct corral_mpack_writer *w, bool value);
void corral_mpack_bin(struct corral_mpack_writer *w, const void *data, size_t bytes);
/* key + value in one call */
void corral_mpack_kv_str(struct corral_mpack_writer *w, const char *key, const char *value);
void corral_mpack_kv_u64(struct corral_mpack_writer *w, const char *key, uint64_t value);
void corral_mpack_kv_i64(struct corral_mpack_writer *w, const char *key, int64_t value);
void corral_mpack_kv_f64(struct corral_mpack_writer *w, const char *key, double value);
void corral_mpack_kv_bool(struct corral_mpack_writer *w, const char *key, bool value);
void corral_mpack_kv_bin(struct corral_mpack_writer *w, const char *key, const void *data, size_t bytes);
/* The finished bytes, owned by the writer until it is destroyed or reset. CORRAL_NOMEM if any growth failed. */
enum corral_status corral_mpack_finish(struct corral_mpack_writer *w, const void **data, size_t *bytes,
                                       struct corral_error *err);
void corral_mpack_writer_reset(struct corral_mpack_writer *w); /* empty, keeps its memory */

/* ---- reading ---- */
struct corral_mpack_reader; /* one decoded message */
struct corral_mpack_node;   /* one value inside it, borrowed from the reader */
/* Validate limits and decode. The top value must be a map. Malformed: CORRAL_PROTOCOL with the byte offset. */
enum corral_status corral_mpack_read(struct corral_mpack_reader **out, const void *data, size_t bytes,
                                     struct corral_error *err);
void corral_mpack_reader_destroy(struct corral_mpack_reader *r);
const struct corral_mpack_node *corral_mpack_root(const struct corral_mpack_reader *r);

/* Map look-up. Missing key or wrong type: CORRAL_PROTOCOL naming the key. Strings are copied, NUL-terminated, into `out`
 * and must fit (else CORRAL_PROTOCOL). u64 accepts non-negative integers, f64 any number. */
enum corral_status corral_mpack_get_str(const struct corral_mpack_node *map, const char *key, char *out,
                                        size_t out_bytes, struct corral_error *err);
enum corral_status corral_mpack_get_u64(const struct corral_mpack_node *map, const char *key, uint64_t *out,
                                        struct corral_error *err);
enum corral_status corral_mpack_get_i64(const struct corral_mpack_node *map, const char *key, int64_t *out,
                                        struct corral_error *err);
enum corral_status corral_mpack_get_f64(const struct corral_mpack_node *map, const char *key, double *out,
                                        struct corral_error *err);
enum corral_status corral_mpack_get_bool(const struct corral_mpack_node *map, const char *key, bool *out,
                                         struct corral_error *err);
enum corral_status corral_mpack_get_bin(const struct corral_mpack_node *map, const char *key,
                                        const void **out, size_t *bytes, struct corral_error *err);
/* A nested map or array. */
enum corral_status corral_mpack_get_node(const struct corral_mpack_node *map, const char *key,
                                         const struct corral_mpack_node **out, struct corral_error *err);
bool corral_mpack_has(const struct corral_mpack_node *map, const char *key);
/* Arrays: count, or 0 when not an array; element i, or NULL. */
uint32_t corral_mpack_count(const struct corral_mpack_node *array);
const struct corral_mpack_node *corral_mpack_at(const struct corral_mpack_node *array, uint32_t i);
/* The value of a scalar node itself (array elements). */
enum corral_status corral_mpack_node_u64(const struct corral_mpack_node *n, uint64_t *out,
                                         struct corral_error *err);
enum corral_status corral_mpack_node_f64(const struct corral_mpack_node *n, double *out,
                                         struct corral_error *err);
enum corral_status corral_mpack_node_str(const struct corral_mpack_node *n, char *out, size_t out_bytes,
                                         struct corral_error *err);

CORRAL_DEFINE_CLEANUP(struct corral_mpack_writer, corral_mpack_writer_destroy)
CORRAL_DEFINE_CLEANUP(struct corral_mpack_reader, corral_mpack_reader_destroy)

#endif
