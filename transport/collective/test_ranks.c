#include "transport/collective/test_ranks.h"

#include "tests/check.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct rank {
    const struct test_lane *lane;
    test_body_fn body;
    struct test_shared *shared;
    struct corral_collective_listener *listener;
    const char *endpoint;
    int segment;
    uint32_t rank;
    int result;
};

static const uint8_t secret[32] = {7, 7, 7};

static enum corral_status make(const struct rank *r, struct corral_collective **out, struct corral_error *err)
{
    const struct test_lane *lane = r->lane;
    switch (lane->kind) {
    case TEST_SELF:
        return corral_collective_self_create(out, err);
    case TEST_SHM:
        return corral_collective_shm_create(r->segment, r->rank, lane->ranks, 1, lane->timeout_ms, out, err);
    case TEST_TCP:
        return corral_collective_tcp_create(r->rank == 0 ? r->listener : NULL, r->endpoint, r->rank,
                                            lane->ranks, 1, secret, lane->timeout_ms, out, err);
    }
    return CORRAL_INTERNAL;
}

static int run_rank(struct rank *r)
{
    struct corral_collective *c = NULL;
    if (make(r, &c, NULL) != CORRAL_OK) {
        return __LINE__;
    }
    int result = r->body(c, r->shared);
    corral_collective_destroy(c);
    return result;
}

static void *rank_thread(void *arg)
{
    struct rank *r = arg;
    r->result = run_rank(r);
    return NULL;
}

static void run_threads(struct rank *ranks, uint32_t count)
{
    pthread_t thread[CORRAL_COLLECTIVE_RANKS_MAX];
    for (uint32_t r = 0; r < count; r++) {
        assert_int_equal(pthread_create(&thread[r], NULL, rank_thread, &ranks[r]), 0);
    }
    for (uint32_t r = 0; r < count; r++) {
        pthread_join(thread[r], NULL);
    }
}

static void run_processes(struct rank *ranks, uint32_t count)
{
    pid_t child[CORRAL_COLLECTIVE_RANKS_MAX];
    int *results = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(results, MAP_FAILED);
    for (uint32_t r = 0; r < count; r++) {
        child[r] = fork();
        assert_true(child[r] >= 0);
        if (child[r] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            results[r] = run_rank(&ranks[r]);
            _exit(0);
        }
    }
    if (ranks[0].listener) {
        corral_collective_listener_destroy(ranks[0].listener); /* rank 0's process has its own */
    }
    for (uint32_t r = 0; r < count; r++) {
        int status = -1;
        while (waitpid(child[r], &status, 0) < 0 && errno == EINTR) {
        }
        ranks[r].result = status == 0 ? results[r] : TEST_DIED;
    }
    munmap(results, 4096);
}

void test_run_ranks(const struct test_lane *lane, test_body_fn body, int *result)
{
    struct corral_error err;
    struct corral_collective_listener *listener = NULL;
    char endpoint[128] = "";
    int segment = -1;
    struct test_shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
    if (lane->kind == TEST_SHM) {
        check_ok(corral_collective_shm_segment(lane->ranks, 4096, &segment, &err));
    } else if (lane->kind == TEST_TCP) {
        check_ok(corral_collective_tcp_listen("127.0.0.1", &listener, endpoint, sizeof endpoint, &err));
    }
    struct rank ranks[CORRAL_COLLECTIVE_RANKS_MAX];
    for (uint32_t r = 0; r < lane->ranks; r++) {
        ranks[r] = (struct rank){.lane = lane,
                                 .body = body,
                                 .shared = shared,
                                 .listener = listener,
                                 .endpoint = endpoint,
                                 .segment = segment,
                                 .rank = r};
    }
    if (lane->forked) {
        run_processes(ranks, lane->ranks);
    } else {
        run_threads(ranks, lane->ranks);
    }
    for (uint32_t r = 0; r < lane->ranks; r++) {
        result[r] = ranks[r].result;
    }
    if (segment >= 0) {
        close(segment);
    }
    munmap(shared, 4096);
}

void test_all_ranks(const struct test_lane *lane, test_body_fn body)
{
    static const char *const kind[] = {"self", "shm", "tcp"};
    int result[CORRAL_COLLECTIVE_RANKS_MAX];
    test_run_ranks(lane, body, result);
    for (uint32_t r = 0; r < lane->ranks; r++) {
        if (result[r] != 0) {
            fail_msg("%s, %s, rank %u of %u: failed at line %d", kind[lane->kind],
                     lane->forked ? "processes" : "threads", r, lane->ranks, result[r]);
        }
    }
}
