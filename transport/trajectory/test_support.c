#include "transport/trajectory/test_support.h"
#include "base/file.h"
#include "base/rng.h"
#include "transport/trajectory/record/prologue.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool test_rings(void)
{
    return getenv("CORRAL_TEST_RINGS") != NULL;
}

enum corral_traj_transport test_transport(void)
{
    return test_rings() ? CORRAL_TRAJ_AUTO : CORRAL_TRAJ_ZMQ;
}

static void get_tensors(const struct corral_fragment *f, const void *out[CORRAL_FRAGMENT_FRAMES])
{
    const void *const in[CORRAL_FRAGMENT_FRAMES] = {
        f->obs,     f->action, f->log_prob, f->reward,      f->terminated,   f->truncated, f->valid,
        f->version, f->mask,   f->last_obs, f->boundary_at, f->boundary_obs, f->episode,
    };
    memcpy(out, in, sizeof in);
}

static void set_tensors(struct corral_fragment *f, const void *const in[CORRAL_FRAGMENT_FRAMES])
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

static void fill(struct test_fragment *t, struct corral_rng *rng)
{
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES];
    if (corral_fragment_sizes(&t->fragment, bytes, NULL) != CORRAL_OK) {
        abort();
    }
    const void *views[CORRAL_FRAGMENT_FRAMES];
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        t->tensors[i] = bytes[i] > 0 ? malloc(bytes[i]) : NULL;
        for (uint64_t at = 0; at < bytes[i]; at++) {
            ((uint8_t *)t->tensors[i])[at] = (uint8_t)(corral_rng_next(rng) >> 56);
        }
        views[i] = t->tensors[i];
    }
    uint32_t *boundary = t->tensors[10];
    for (uint32_t i = 0; i < t->fragment.boundary_count; i++) {
        boundary[i] = i;
    }
    set_tensors(&t->fragment, views);
}

void test_fragment_make(struct test_fragment *t, uint64_t seed, uint32_t size)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    memset(t, 0, sizeof *t);
    struct corral_fragment *f = &t->fragment;
    f->steps = 1 + (uint32_t)corral_rng_below(&rng, size);
    f->rows = 1 + (uint32_t)corral_rng_below(&rng, size);
    f->obs_dim = 1 + (uint32_t)corral_rng_below(&rng, 17);
    f->action_components = 1 + (uint32_t)corral_rng_below(&rng, 3);
    f->mask_bytes = (uint32_t)corral_rng_below(&rng, 2) * 5;
    f->action_continuous = corral_rng_below(&rng, 2) != 0;
    f->boundary_count = (uint32_t)corral_rng_below(&rng, (uint64_t)f->steps * f->rows + 1);
    f->episode_count = (uint32_t)corral_rng_below(&rng, (uint64_t)f->steps * f->rows + 1);
    fill(t, &rng);
}

void test_fragment_sized(struct test_fragment *t, uint64_t bytes)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, bytes);
    memset(t, 0, sizeof *t);
    t->fragment = (struct corral_fragment){.steps = 16, .rows = 1, .obs_dim = 1, .action_components = 1};
    /* One row costs 16 * (4 * D + 15) + 4 * D + 8 bytes; D grows until it fits. */
    while (corral_fragment_bytes(&t->fragment) - CORRAL_FRAGMENT_HEADER_BYTES + 68 <= bytes) {
        t->fragment.obs_dim++;
    }
    fill(t, &rng);
}

void test_fragment_free(struct test_fragment *t)
{
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        free(t->tensors[i]);
        t->tensors[i] = NULL;
    }
}

bool test_fragment_equal(const struct corral_fragment *a, const struct corral_fragment *b)
{
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES], bytes_b[CORRAL_FRAGMENT_FRAMES];
    const void *in_a[CORRAL_FRAGMENT_FRAMES], *in_b[CORRAL_FRAGMENT_FRAMES];
    if (corral_fragment_sizes(a, bytes, NULL) != CORRAL_OK ||
        corral_fragment_sizes(b, bytes_b, NULL) != CORRAL_OK || memcmp(bytes, bytes_b, sizeof bytes) != 0 ||
        a->action_continuous != b->action_continuous) {
        return false;
    }
    get_tensors(a, in_a);
    get_tensors(b, in_b);
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        if (bytes[i] == 0 ? in_b[i] != NULL
                          : ((uintptr_t)in_b[i] % 64 != 0 || memcmp(in_a[i], in_b[i], bytes[i]) != 0)) {
            return false;
        }
    }
    return true;
}

uint64_t test_fragment_cost(const struct corral_fragment *f)
{
    struct corral_traj_record record;
    struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES];
    uint64_t bytes;
    if (corral_fragment_record(f, &record, tensors, NULL) != CORRAL_OK ||
        corral_traj_record_bytes(&record, &bytes, NULL) != CORRAL_OK) {
        abort();
    }
    return corral_traj_cost(bytes);
}

bool test_item_fragment(const struct corral_traj_item *item, struct corral_fragment *out)
{
    static _Thread_local struct corral_traj_view view;
    return corral_traj_record_decode(item->data, item->bytes, &view, NULL) == CORRAL_OK &&
           corral_fragment_of(&view.record, out, NULL) == CORRAL_OK && out->worker == item->worker &&
           out->epoch == item->epoch && out->sequence == item->sequence;
}

bool test_item_equal(const struct corral_fragment *expected, const struct corral_traj_item *item)
{
    struct corral_fragment f;
    return test_item_fragment(item, &f) && test_fragment_equal(expected, &f);
}

void *test_numbered_record(uint64_t run, uint32_t worker, uint32_t epoch, uint64_t sequence, uint64_t payload,
                           uint64_t *bytes)
{
    struct corral_traj_tensor tensor = {
        .name = "token_ids", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {payload}};
    struct corral_traj_record record = {.size = sizeof record,
                                        .run = run,
                                        .worker = worker,
                                        .epoch = epoch,
                                        .sequence = sequence,
                                        .tensor_count = 1,
                                        .tensors = &tensor};
    void *memory = NULL;
    if (corral_traj_record_bytes(&record, bytes, NULL) != CORRAL_OK ||
        (memory = aligned_alloc(64, *bytes)) == NULL ||
        corral_traj_record_encode(&record, memory, *bytes, NULL) != CORRAL_OK) {
        abort();
    }
    memset(corral_traj_record_place(memory, 0), (int)(sequence & 0x7f), payload);
    return memory;
}

static enum corral_status counted_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                        struct corral_error *err)
{
    struct test_allocator *t = ctx;
    if (t->used + bytes > t->limit) {
        t->denials++;
        return corral_fail(err, CORRAL_DENIED, "%s: denied by the test", what);
    }
    CORRAL_TRY(corral_alloc(&corral_allocator_heap, bytes, what, out, err));
    t->used += bytes;
    t->peak = CORRAL_MAX(t->peak, t->used);
    return CORRAL_OK;
}

static void counted_release(void *ctx, void *memory, size_t bytes)
{
    struct test_allocator *t = ctx;
    t->used -= memory != NULL ? bytes : 0;
    corral_release(&corral_allocator_heap, memory, bytes);
}

void test_allocator_init(struct test_allocator *t, uint64_t limit)
{
    *t = (struct test_allocator){.limit = limit};
    t->allocator = (struct corral_allocator){.alloc = counted_alloc, .release = counted_release, .ctx = t};
}

void test_folder_make(char path[TEST_PATH_MAX])
{
    snprintf(path, TEST_PATH_MAX, "/tmp/corral-traj-XXXXXX");
    if (mkdtemp(path) == NULL) {
        abort();
    }
}

void test_folder_remove(const char *path)
{
    (void)corral_remove_tree(path, NULL);
}
