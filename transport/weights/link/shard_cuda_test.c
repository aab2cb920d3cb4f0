/* Shards of device memory, on the fake driver: the same bytes as host shards, for links of every shape. */
#include "tests/check.h"

#include "transport/weights/link/shard_cuda.h"
#include "transport/weights/link/test_mesh.h"
#include <dlfcn.h>
#include <pthread.h>

#define BUCKET (64u << 10)

static const struct corral_cuda *cuda;
static corral_cuda_context context;

static struct corral_shard device_shard(uint64_t bytes, const uint8_t *content)
{
    struct corral_error err;
    struct corral_shard shard = {0};
    uint64_t address = 0;
    assert_int_equal(cuda->cuMemAlloc(&address, bytes + 1), CORRAL_CUDA_SUCCESS);
    assert_int_equal(cuda->cuMemcpyHtoD(address, content, bytes), CORRAL_CUDA_SUCCESS);
    check_ok(corral_shard_cuda_open(&shard, address, bytes + 1, -1, NULL, &err));
    return shard;
}

static void drop(struct corral_shard *shard)
{
    uint64_t address = shard->device_address;
    corral_shard_cuda_close(shard);
    assert_int_equal(cuda->cuMemFree(address), CORRAL_CUDA_SUCCESS);
}

static void check_link(struct corral_link *link, const struct test_mesh *m, struct corral_shard *from,
                       struct corral_shard *to, uint8_t *packed, uint8_t *expected)
{
    struct corral_error err;
    for (uint32_t b = 0; b < link->buckets; b++) {
        uint64_t bytes = corral_link_bucket_size(link, b);
        struct corral_digest digest,
            right = corral_link_digest(link, b, CORRAL_LINK_SOURCE, m->source[link->source]);
        corral_link_pack(link, b, m->source[link->source], expected);
        check_ok(from->ops->gather(from, link, b, packed, &err));
        assert_memory_equal(packed, expected, bytes);
        check_ok(from->ops->digest(from, link, CORRAL_LINK_SOURCE, b, &digest, &err));
        assert_true(corral_digest_equal(digest, right));
        check_ok(to->ops->scatter(to, link, b, packed, &err));
        check_ok(to->ops->digest(to, link, CORRAL_LINK_DESTINATION, b, &digest, &err));
        assert_true(corral_digest_equal(digest, right));
    }
}

static void gathers_and_scatters_what_host_shards_do(void **state)
{
    (void)state;
    uint8_t *packed = malloc(BUCKET), *expected = malloc(BUCKET);
    assert_true(packed != NULL && expected != NULL);
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct test_mesh m = test_mesh_make(seed, 2, 2, 4, 60000);
        for (uint32_t d = 0; d < 2; d++) {
            uint64_t bytes = m.to->rank_bytes[d];
            uint8_t *back = test_mesh_buffer(bytes, 0);
            struct corral_shard to = device_shard(bytes, back);
            for (uint32_t s = 0; s < 2; s++) {
                struct corral_error err;
                struct corral_link *link = NULL;
                struct corral_shard from = device_shard(m.from->rank_bytes[s], m.source[s]);
                check_ok(corral_link_create(&link, m.plan, s, d, BUCKET, &err));
                check_link(link, &m, &from, &to, packed, expected);
                corral_link_destroy(link);
                drop(&from);
            }
            assert_int_equal(cuda->cuMemcpyDtoH(back, to.device_address, bytes), CORRAL_CUDA_SUCCESS);
            assert_memory_equal(back, m.expected[d], bytes);
            drop(&to);
            free(back);
        }
        test_mesh_drop(&m);
    }
    free(packed);
    free(expected);
}

/* ---- buckets larger than the staging, several threads ---- */

#define ROWS 3000
#define WIDTH 5000

struct job {
    struct corral_shard *shard;
    struct corral_link *link;
    const uint8_t *source;
    bool right;
};

static void *gather_all(void *arg)
{
    struct job *j = arg;
    uint64_t bytes = j->link->bucket_bytes;
    uint8_t *packed = malloc(bytes), *expected = malloc(bytes);
    j->right = packed != NULL && expected != NULL;
    for (uint32_t b = 0; j->right && b < j->link->buckets; b++) {
        corral_link_pack(j->link, b, j->source, expected);
        j->right = j->shard->ops->gather(j->shard, j->link, b, packed, NULL) == CORRAL_OK &&
                   memcmp(packed, expected, corral_link_bucket_size(j->link, b)) == 0;
    }
    free(packed);
    free(expected);
    return NULL;
}

static void several_threads_share_a_shard(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_layout *from = NULL, *to = NULL;
    struct corral_reshard_plan *plan = NULL;
    struct corral_link *link = NULL;
    uint32_t t;
    check_ok(corral_layout_create(&from, 1, &err));
    check_ok(corral_layout_add_tensor(from, "w", CORRAL_DTYPE_U8, 2, (uint64_t[]){ROWS, WIDTH}, &t, &err));
    check_ok(corral_layout_add_whole(from, t, 0, 0, &err));
    check_ok(corral_layout_create(&to, 2, &err));
    check_ok(corral_layout_add_tensor(to, "w", CORRAL_DTYPE_U8, 2, (uint64_t[]){ROWS, WIDTH}, &t, &err));
    check_ok(corral_layout_add_slice(to, t, 0, 1, 0, 3000, 0, &err));
    check_ok(corral_layout_add_slice(to, t, 1, 1, 3000, 2000, 0, &err));
    check_ok(corral_reshard_plan_build(from, to, &plan, &err));
    check_ok(corral_link_create(&link, plan, 0, 0, 8u << 20, &err));
    assert_true(link->bytes > 2 * CORRAL_SHARD_CUDA_HALF_BYTES); /* both halves are used again */
    uint8_t *source = test_mesh_buffer((uint64_t)ROWS * WIDTH, 0);
    for (uint32_t i = 0; i < ROWS * WIDTH; i++) {
        source[i] = (uint8_t)((i * UINT64_C(2654435761)) >> 13);
    }
    struct corral_shard shard = device_shard((uint64_t)ROWS * WIDTH, source);
    struct job job[2 * CORRAL_SHARD_CUDA_SLOTS];
    pthread_t thread[2 * CORRAL_SHARD_CUDA_SLOTS];
    for (size_t i = 0; i < CORRAL_COUNT_OF(job); i++) {
        job[i] = (struct job){&shard, link, source, false};
        assert_int_equal(pthread_create(&thread[i], NULL, gather_all, &job[i]), 0);
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(job); i++) {
        pthread_join(thread[i], NULL);
        assert_true(job[i].right);
    }
    assert_true(corral_shard_cuda_memory(&shard) <=
                CORRAL_SHARD_CUDA_SLOTS * 2 * (uint64_t)CORRAL_SHARD_CUDA_HALF_BYTES);
    drop(&shard);
    free(source);
    corral_link_destroy(link);
    corral_reshard_plan_destroy(plan);
    corral_layout_destroy(from);
    corral_layout_destroy(to);
}

/* ---- what goes wrong ---- */

static void a_failing_driver_is_an_error_and_the_next_call_works(void **state)
{
    (void)state;
    static const char *const calls[] = {"cuMemcpyAsync", "cuEventRecord",  "cuStreamCreate",
                                        "cuEventCreate", "cuMemHostAlloc", "cuCtxPushCurrent_v2"};
    bool (*fail_next)(const char *, int) =
        (bool (*)(const char *, int))dlsym(dlopen("libcuda.so.1", RTLD_NOW), "fakecuda_fail_next");
    assert_non_null(fail_next);
    struct test_mesh m = test_mesh_make(3, 1, 1, 4, 60000);
    struct corral_link *link = NULL;
    struct corral_error err;
    uint8_t *packed = malloc(BUCKET), *expected = malloc(BUCKET);
    assert_true(packed != NULL && expected != NULL);
    check_ok(corral_link_create(&link, m.plan, 0, 0, BUCKET, &err));
    assert_true(link->buckets > 0);
    corral_link_pack(link, 0, m.source[0], expected);
    for (size_t i = 0; i < CORRAL_COUNT_OF(calls); i++) {
        struct corral_shard shard = device_shard(m.from->rank_bytes[0], m.source[0]);
        assert_true(fail_next(calls[i], 2));
        enum corral_status status = shard.ops->gather(&shard, link, 0, packed, &err);
        assert_int_equal(status, CORRAL_NOMEM);
        assert_non_null(strstr(err.text, "CUDA_ERROR_OUT_OF_MEMORY"));
        check_ok(shard.ops->gather(&shard, link, 0, packed, &err));
        assert_memory_equal(packed, expected, corral_link_bucket_size(link, 0));
        drop(&shard);
    }
    corral_link_destroy(link);
    test_mesh_drop(&m);
    free(packed);
    free(expected);
}

static void refuses_memory_that_is_not_a_devices(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_shard shard = {0};
    uint64_t address = 0;
    char here;
    check_status(corral_shard_cuda_open(&shard, (uint64_t)(uintptr_t)&here, 1, -1, NULL, &err),
                 CORRAL_INVALID);
    check_status(corral_shard_cuda_open(&shard, 0, 1, -1, NULL, &err), CORRAL_INVALID);
    assert_int_equal(cuda->cuMemAlloc(&address, 4096), CORRAL_CUDA_SUCCESS);
    check_status(corral_shard_cuda_open(&shard, address, 4096, 5, NULL, &err), CORRAL_INVALID);
    check_status(corral_shard_cuda_open(&shard, address, UINT64_MAX, -1, NULL, &err), CORRAL_INVALID);
    check_ok(corral_shard_cuda_open(&shard, address, 4096, -1, context, &err));
    assert_int_equal(shard.device, 0);
    assert_true(corral_shard_on_device(&shard));
    drop(&shard);
    corral_shard_cuda_close(&shard); /* closed already */
}

static void makes_no_context_of_its_own(void **state)
{
    (void)state;
    int (*get_state)(int, unsigned *, int *) = (int (*)(int, unsigned *, int *))dlsym(
        dlopen("libcuda.so.1", RTLD_NOW), "cuDevicePrimaryCtxGetState");
    uint8_t content[100] = {1};
    unsigned flags;
    int active = 0;
    struct corral_shard shard = device_shard(sizeof content, content);
    assert_ptr_equal(corral_shard_cuda_context(&shard), context);
    drop(&shard);
    assert_non_null(get_state);
    assert_int_equal(get_state(0, &flags, &active), CORRAL_CUDA_SUCCESS);
    assert_int_equal(active, 1); /* the test's own use of it goes on */
}

int main(void)
{
    struct corral_error err;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gathers_and_scatters_what_host_shards_do),
        cmocka_unit_test(several_threads_share_a_shard),
        cmocka_unit_test(a_failing_driver_is_an_error_and_the_next_call_works),
        cmocka_unit_test(refuses_memory_that_is_not_a_devices),
        cmocka_unit_test(makes_no_context_of_its_own),
    };
    if (corral_cuda_open(&cuda, &err) != CORRAL_OK) {
        printf("skipped: %s\n", err.text);
        return CORRAL_TEST_SKIPPED;
    }
    if (corral_cuda_primary(cuda, 0, &context, &err) != CORRAL_OK || cuda->cuCtxPushCurrent(context) != 0) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
