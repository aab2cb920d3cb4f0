#include "base/log.h"
#include "quota/fences/internal.h"
#include "quota/shared.h"
#include "quota/test_node.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct node {
    int fd;
    struct corral_quota *q;
    uint32_t holder;
};

static struct node open_node(void)
{
    struct node n = {.fd = -1};
    struct corral_error err;
    n.q = test_node(&n.fd);
    check_ok(corral_quota_join(n.q, "a:0", "trainer", &n.holder, &err));
    return n;
}

static void close_node(struct node *n)
{
    corral_quota_detach(n->q);
    close(n->fd);
}

static const struct corral_ledger_role *trainer(const struct node *n)
{
    return &corral_quota_ledger(n->q)->device[0].role[TRAINER];
}

static void passes_and_leaves_no_trace(void **state)
{
    (void)state;
    struct corral_error err;
    struct node n = open_node();
    int log = memfd_create("log", MFD_CLOEXEC);
    assert_true(log >= 0);
    corral_log_configure(CORRAL_LOG_DEBUG, false, log, "test");
    check_ok(corral_fence_preflight_host(n.q, n.holder, &err));
    corral_log_configure(CORRAL_LOG_INFO, false, 2, "test");
    assert_true(trainer(&n)->used == 0);
    assert_true(trainer(&n)->denied == 0);
    assert_int_equal(lseek(log, 0, SEEK_END), 0);
    close(log);
    close_node(&n);
}

/* What was held before stays charged; the refusal comes although most of the quota is free. */
static void passes_beside_what_is_held_already(void **state)
{
    (void)state;
    struct corral_error err;
    struct node n = open_node();
    check_ok(corral_quota_reserve(n.q, n.holder, 5 * MIB, "weights", &err));
    corral_quota_commit(n.q, n.holder, 5 * MIB);
    check_ok(corral_fence_preflight_host(n.q, n.holder, &err));
    assert_true(trainer(&n)->used == 5 * MIB);
    close_node(&n);
}

static void refuses_to_start_without_room_for_the_smallest_buffer(void **state)
{
    (void)state;
    struct corral_error err;
    struct node n = open_node();
    uint64_t rest = corral_ledger_available(corral_quota_ledger(n.q), n.holder);
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "test");
    check_ok(corral_quota_reserve(n.q, n.holder, rest, "everything", &err));
    check_status(corral_fence_preflight_host(n.q, n.holder, &err), CORRAL_DENIED);
    assert_non_null(strstr(err.text, "host small"));
    /* The family that is large enough not to fit is named, not another. */
    corral_quota_rollback(n.q, n.holder, 64 * 1024);
    check_status(corral_fence_preflight_host(n.q, n.holder, &err), CORRAL_DENIED);
    assert_non_null(strstr(err.text, "host mapped"));
    corral_log_configure(CORRAL_LOG_INFO, false, 2, "test");
    close_node(&n);
}

/* A rehearsal is the same check with more in use: what fits is granted in earnest, and only itself is charged. */
static void a_rehearsal_refuses_only_what_would_be_over(void **state)
{
    (void)state;
    struct corral_error err;
    struct node n = open_node();
    corral_quota_rehearse(n.q, MIB);
    check_ok(corral_quota_reserve(n.q, n.holder, MIB, "buffer", &err));
    assert_true(trainer(&n)->used == MIB);
    uint64_t room = corral_ledger_available(corral_quota_ledger(n.q), n.holder);
    corral_quota_rehearse(n.q, room);
    check_ok(corral_quota_reserve(n.q, n.holder, 0, "buffer", &err));
    check_status(corral_quota_reserve(n.q, n.holder, 1, "buffer", &err), CORRAL_DENIED);
    corral_quota_rehearse(n.q, UINT64_MAX);
    check_status(corral_quota_reserve(n.q, n.holder, UINT64_MAX, "buffer", &err), CORRAL_DENIED);
    assert_true(trainer(&n)->denied == 0);
    corral_quota_rehearse(n.q, 0);
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "test");
    check_status(corral_quota_reserve(n.q, n.holder, trainer(&n)->ceiling, "buffer", &err), CORRAL_DENIED);
    corral_log_configure(CORRAL_LOG_INFO, false, 2, "test");
    assert_true(trainer(&n)->denied == 1);
    corral_quota_rollback(n.q, n.holder, MIB);
    close_node(&n);
}

static void refuses_a_holder_that_is_none(void **state)
{
    (void)state;
    struct corral_error err;
    struct node n = open_node();
    check_status(corral_fence_preflight_host(n.q, 400, &err), CORRAL_INVALID);
    check_status(corral_fence_preflight_host(n.q, CORRAL_LEDGER_NONE, &err), CORRAL_INVALID);
    close_node(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_and_leaves_no_trace),
        cmocka_unit_test(passes_beside_what_is_held_already),
        cmocka_unit_test(refuses_to_start_without_room_for_the_smallest_buffer),
        cmocka_unit_test(a_rehearsal_refuses_only_what_would_be_over),
        cmocka_unit_test(refuses_a_holder_that_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
