/* Trainer processes are killed anywhere in a push, over and over: what a receiver has is always one version, whole, and never an older one. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/test_group.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#define ROUNDS 25
#define RANKS 2
#define SEED 21
#define ELEMENTS 150000
#define VERSIONS_MAX 100000

extern char **environ;

static uint64_t number(const char *text)
{
    return strtoull(text, NULL, 10);
}

/* argv: rank, generation, first version, lanes, endpoints. Pushes until it is killed; says each applied version on standard output. */
static int trainer(char **argv)
{
    struct test_group g = {.lanes = argv[3],
                           .generation = number(argv[1]),
                           .senders = RANKS,
                           .receivers = RANKS,
                           .deadline_ns = TEST_DEADLINE_NS};
    struct corral_error err = {0};
    uint32_t rank = (uint32_t)number(argv[0]);
    g.mesh = test_mesh_make(SEED, RANKS, RANKS, 3, ELEMENTS);
    test_sender_create(&g, rank);
    for (uint32_t i = 0; i < RANKS; i++) {
        char name[16];
        snprintf(name, sizeof name, "r%u", i);
        check_ok(corral_push_sender_add(g.tx[rank].sender, name, argv[4 + i], i, "", &err));
    }
    for (uint64_t version = number(argv[2]); version < VERSIONS_MAX; version++) {
        test_mesh_fill(&g.mesh, version);
        (void)corral_push_sender_push(g.tx[rank].sender, version, 0, &g.tx[rank].source, &g.tx[rank].result,
                                      &err);
        if (rank == 0) {
            (void)!write(1, "v", 1);
        }
    }
    return 0;
}

static pid_t start(uint32_t rank, uint64_t generation, uint64_t version, const char *lanes, char **endpoint,
                   int out)
{
    char text[3][24], exe[] = "/proc/self/exe", child[] = "trainer", lane[16];
    snprintf(text[0], 24, "%u", rank);
    snprintf(text[1], 24, "%llu", (unsigned long long)generation);
    snprintf(text[2], 24, "%llu", (unsigned long long)version);
    snprintf(lane, sizeof lane, "%s", lanes);
    char *argv[] = {exe, child, text[0], text[1], text[2], lane, endpoint[0], endpoint[1], NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    pid_t pid = 0;
    assert_int_equal(posix_spawn(&pid, exe, &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

/* What is current is whole, and one of the versions that were pushed. */
static uint64_t check_whole(struct test_group *g, uint32_t i)
{
    struct test_target *t = &g->target[i];
    uint8_t *copy = test_mesh_buffer(t->bytes, 0);
    pthread_mutex_lock(&t->lock);
    uint64_t version = t->version;
    memcpy(copy, t->buffer[t->at], t->bytes);
    pthread_mutex_unlock(&t->lock);
    if (version > 0) {
        test_mesh_fill(&g->mesh, version);
        assert_memory_equal(copy, g->mesh.expected[i], t->bytes);
    }
    free(copy);
    return version;
}

static void kill_trainers(const char *lanes)
{
    struct test_group g = {
        .lanes = lanes, .senders = 0, .receivers = RANKS, .silence_ns = 5 * CORRAL_NS_PER_S};
    struct corral_rng rng;
    corral_rng_seed(&rng, 9);
    g.mesh = test_mesh_make(SEED, RANKS, RANKS, 3, ELEMENTS);
    char endpoint[RANKS][64], *endpoints[RANKS];
    for (uint32_t i = 0; i < RANKS; i++) {
        g.rank[i] = i;
        test_target_make(&g.target[i], g.mesh.to->rank_bytes[i]);
        test_receiver_start(&g, i);
        snprintf(endpoint[i], sizeof endpoint[i], "%s", corral_push_receiver_endpoint(g.rx[i]));
        endpoints[i] = endpoint[i];
    }
    uint64_t had[RANKS] = {0}, next = 1;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        int out[2];
        assert_int_equal(pipe2(out, O_CLOEXEC), 0);
        pid_t pid[RANKS];
        for (uint32_t r = 0; r < RANKS; r++) {
            pid[r] = start(r, round + 1, next, lanes, endpoints, out[1]);
        }
        close(out[1]);
        char byte;
        for (uint64_t n = corral_rng_below(&rng, 4); n > 0; n--) {
            assert_int_equal(read(out[0], &byte, 1),
                             1); /* a version is over: the kill falls into one after it */
        }
        struct pollfd p = {.fd = out[0], .events = POLLIN};
        (void)poll(&p, 1, (int)corral_rng_below(&rng, 12)); /* or somewhere into the first */
        uint32_t first = (uint32_t)corral_rng_below(&rng, RANKS);
        for (uint32_t r = 0; r < RANKS; r++) {
            kill(pid[(first + r) % RANKS], SIGKILL);
        }
        for (uint32_t r = 0; r < RANKS; r++) {
            assert_int_equal(waitpid(pid[r], NULL, 0), pid[r]);
        }
        close(out[0]);
        for (uint32_t i = 0; i < RANKS; i++) {
            uint64_t has = check_whole(&g, i);
            assert_true(has >= had[i]);
            had[i] = has;
            next = CORRAL_MAX(next, has + 1);
        }
    }
    assert_true(had[0] > 0 && had[1] > 0);
    for (uint32_t i = 0; i < RANKS; i++) {
        struct corral_push_receiver_status s;
        corral_push_receiver_status(g.rx[i], &s);
        assert_true(s.generation > 1 && s.generation <= ROUNDS); /* the last may have died before its login */
    }
    test_group_drop(&g);
}

static void over_tcp_a_killed_trainer_leaves_whole_versions(void **state)
{
    (void)state;
    kill_trainers("tcp");
}

static void over_shm_a_killed_trainer_leaves_whole_versions(void **state)
{
    (void)state;
    kill_trainers("shm");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(over_tcp_a_killed_trainer_leaves_whole_versions),
        cmocka_unit_test(over_shm_a_killed_trainer_leaves_whole_versions),
    };
    corral_log_configure(getenv("PUSH_TEST_LOG") ? CORRAL_LOG_DEBUG : CORRAL_LOG_ERROR, false, 2,
                         "push_crash_test");
    if (argc == 2 + 4 + RANKS && strcmp(argv[1], "trainer") == 0) {
        return trainer(argv + 2);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
