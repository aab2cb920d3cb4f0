#include "tests/check.h"

#include "rollout/worker/policy_view.h"
#include "worker/policy_manifest.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A store, the trainer's side of it, and an allocator that counts and can refuse. */
struct node {
    struct corral_policy_layout layout;
    struct corral_weight_store *store;
    int fd;
    struct corral_manifest *manifest;
    struct corral_allocator memory;
    size_t used, limit;
};

static enum corral_status count_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                      struct corral_error *err)
{
    struct node *n = ctx;
    if (n->used + bytes > n->limit) {
        return corral_fail(err, CORRAL_DENIED, "%s: denied", what);
    }
    n->used += bytes;
    return corral_alloc(&corral_allocator_heap, bytes, what, out, err);
}

static void count_release(void *ctx, void *memory, size_t bytes)
{
    struct node *n = ctx;
    n->used -= memory ? bytes : 0;
    corral_release(&corral_allocator_heap, memory, bytes);
}

static void layout_of(uint32_t hidden, struct corral_policy_layout *out)
{
    struct corral_error err = {0};
    const struct corral_policy_spec spec = {
        .obs_dim = 3,
        .action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}},
        .layers = 1,
        .hidden = {hidden},
        .normalise_obs = true};
    check_ok(corral_policy_layout_build(&spec, out, &err));
}

static void node_open(struct node *n)
{
    struct corral_error err = {0};
    *n = (struct node){.fd = -1, .limit = SIZE_MAX / 2};
    layout_of(8, &n->layout);
    n->memory = (struct corral_allocator){.alloc = count_alloc, .release = count_release, .ctx = n};
    check_ok(corral_weight_store_create(n->layout.floats * sizeof(float), &n->fd, &err));
    check_ok(corral_weight_store_attach(n->fd, &n->store, &err));
    check_ok(corral_policy_manifest(&n->layout, &n->manifest, &err));
}

static void node_close(struct node *n)
{
    assert_int_equal(n->used, 0);
    corral_manifest_destroy(n->manifest);
    corral_weight_store_detach(n->store);
    close(n->fd);
}

static void publish(struct node *n, uint64_t version, float value)
{
    struct corral_error err = {0};
    struct corral_digest digest;
    void *slot = NULL;
    check_ok(corral_weight_store_begin(n->store, version, corral_manifest_hash(n->manifest),
                                       n->manifest->bytes, &slot, &err));
    for (uint64_t i = 0; i < n->manifest->bytes / sizeof(float); i++) {
        ((float *)slot)[i] = value;
    }
    check_ok(corral_weight_store_commit(n->store, version, &digest, &err));
}

static void expect_view(const struct corral_policy_view *v, uint64_t version, float value)
{
    assert_int_equal(v->version, version);
    for (uint64_t i = 0; i < v->bytes / sizeof(float); i++) {
        assert_true(v->weights[i] == value);
    }
}

static void has_no_version_before_the_first_is_published(void **state)
{
    (void)state;
    struct node n;
    struct corral_error err = {0};
    struct corral_policy_view v;
    node_open(&n);
    check_ok(corral_policy_view_open(&v, &n.layout, n.store, CORRAL_WEIGHT_CAST_NONE, &n.memory, &err));
    check_ok(corral_policy_view_refresh(&v, &err));
    assert_int_equal(v.version, 0);
    assert_int_equal(n.used, 2 * n.layout.floats * sizeof(float));
    corral_policy_view_close(&v);
    node_close(&n);
}

static void takes_the_newest_version_whole(void **state)
{
    (void)state;
    struct node n;
    struct corral_error err = {0};
    struct corral_policy_view v;
    node_open(&n);
    check_ok(corral_policy_view_open(&v, &n.layout, n.store, CORRAL_WEIGHT_CAST_NONE, &n.memory, &err));
    for (uint64_t version = 1; version < 10; version++) {
        publish(&n, 2 * version, (float)version);
        check_ok(corral_policy_view_refresh(&v, &err));
        expect_view(&v, 2 * version, (float)version);
        const float *before = v.weights;
        check_ok(corral_policy_view_refresh(&v, &err)); /* nothing newer: nothing moves */
        assert_ptr_equal(v.weights, before);
    }
    publish(&n, 30, 30);
    publish(&n, 31, 31);
    check_ok(corral_policy_view_refresh(&v, &err));
    expect_view(&v, 31, 31);
    corral_policy_view_close(&v);
    node_close(&n);
}

static void a_version_being_written_is_not_seen(void **state)
{
    (void)state;
    struct node n;
    struct corral_error err = {0};
    struct corral_policy_view v;
    void *slot = NULL;
    node_open(&n);
    check_ok(corral_policy_view_open(&v, &n.layout, n.store, CORRAL_WEIGHT_CAST_NONE, &n.memory, &err));
    publish(&n, 1, 1);
    check_ok(corral_weight_store_begin(n.store, 2, corral_manifest_hash(n.manifest), n.manifest->bytes, &slot,
                                       &err));
    memset(slot, 0x7f, n.manifest->bytes);
    check_ok(corral_policy_view_refresh(&v, &err));
    expect_view(&v, 1, 1);
    corral_weight_store_abort(n.store);
    corral_policy_view_close(&v);
    node_close(&n);
}

static void damaged_weights_are_refused_and_the_old_ones_kept(void **state)
{
    (void)state;
    struct node n;
    struct corral_error err = {0};
    struct corral_policy_view v;
    void *slot = NULL;
    node_open(&n);
    check_ok(corral_policy_view_open(&v, &n.layout, n.store, CORRAL_WEIGHT_CAST_NONE, &n.memory, &err));
    publish(&n, 1, 1);
    check_ok(corral_policy_view_refresh(&v, &err));
    check_ok(corral_weight_store_begin(n.store, 2, corral_manifest_hash(n.manifest), n.manifest->bytes, &slot,
                                       &err));
    memset(slot, 0, n.manifest->bytes);
    check_ok(corral_weight_store_commit_digest(n.store, 2, (struct corral_digest){.lo = 1, .hi = 2}, &err));
    check_status(corral_policy_view_refresh(&v, &err), CORRAL_PROTOCOL);
    expect_view(&v, 1, 1);
    publish(&n, 3, 3);
    check_ok(corral_policy_view_refresh(&v, &err));
    expect_view(&v, 3, 3);
    corral_policy_view_close(&v);
    node_close(&n);
}

static void refuses_the_weights_of_another_policy(void **state)
{
    (void)state;
    struct node n;
    struct corral_error err = {0};
    struct corral_policy_view v;
    struct corral_policy_layout other;
    layout_of(4, &other);
    node_open(&n);
    check_ok(corral_policy_view_open(&v, &other, n.store, CORRAL_WEIGHT_CAST_NONE, &n.memory, &err));
    publish(&n, 1, 1);
    check_status(corral_policy_view_refresh(&v, &err), CORRAL_INVALID);
    assert_int_equal(v.version, 0);
    corral_policy_view_close(&v);
    node_close(&n);
}

static void a_denied_buffer_leaves_nothing_charged(void **state)
{
    (void)state;
    struct node n;
    struct corral_error err = {0};
    struct corral_policy_view v;
    node_open(&n);
    for (uint32_t buffers = 0; buffers < 2; buffers++) {
        n.limit = buffers * n.layout.floats * sizeof(float) + 1;
        check_status(
            corral_policy_view_open(&v, &n.layout, n.store, CORRAL_WEIGHT_CAST_NONE, &n.memory, &err),
            CORRAL_DENIED);
        corral_policy_view_close(&v);
        assert_int_equal(n.used, 0);
    }
    node_close(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_no_version_before_the_first_is_published),
        cmocka_unit_test(takes_the_newest_version_whole),
        cmocka_unit_test(a_version_being_written_is_not_seen),
        cmocka_unit_test(damaged_weights_are_refused_and_the_old_ones_kept),
        cmocka_unit_test(refuses_the_weights_of_another_policy),
        cmocka_unit_test(a_denied_buffer_leaves_nothing_charged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
