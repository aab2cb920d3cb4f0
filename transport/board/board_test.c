#include "transport/board/board.h"

#include "tests/check.h"
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static struct corral_error err;

static void another_process_reads_what_a_worker_writes(void **state)
{
    (void)state;
    int fd;
    struct corral_board *b;
    check_ok(corral_board_create(3, &fd, &b, &err));
    assert_int_equal(corral_board_slot(b, 1)->beat_ns, 0);
    pid_t child = fork();
    if (child == 0) {
        struct corral_board *mine;
        if (corral_board_attach(fd, &mine, NULL) != CORRAL_OK) {
            _exit(1);
        }
        struct corral_board_slot *s = corral_board_slot(mine, 1);
        corral_board_enter(s, CORRAL_ACTIVITY_STARTING);
        corral_board_add(s, CORRAL_BOARD_ENV_STEPS, 40);
        corral_board_add(s, CORRAL_BOARD_ENV_STEPS, 2);
        corral_board_set(s, CORRAL_BOARD_VERSION, 7);
        corral_board_enter(s, CORRAL_ACTIVITY_TRAIN);
        corral_board_detach(mine);
        _exit(0);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    struct corral_board_slot *s = corral_board_slot(b, 1);
    assert_true(atomic_load_explicit(&s->beat_ns, memory_order_acquire) > 0);
    assert_int_equal(s->beat_ns, s->activity_ns);
    assert_int_equal(s->activity, CORRAL_ACTIVITY_TRAIN);
    assert_int_equal(s->pid, child);
    assert_int_equal(s->counter[CORRAL_BOARD_ENV_STEPS], 42);
    assert_int_equal(s->counter[CORRAL_BOARD_VERSION], 7);
    assert_int_equal(corral_board_slot(b, 0)->beat_ns, 0);
    corral_board_detach(b);
    close(fd);
}

static void a_beat_moves_only_the_beat(void **state)
{
    (void)state;
    int fd;
    struct corral_board *b;
    check_ok(corral_board_create(1, &fd, &b, &err));
    struct corral_board_slot *s = corral_board_slot(b, 0);
    corral_board_enter(s, CORRAL_ACTIVITY_IDLE);
    uint64_t entered = s->activity_ns;
    while (s->beat_ns == entered) {
        corral_board_beat(s);
    }
    assert_true(s->beat_ns > entered);
    assert_int_equal(s->activity_ns, entered);
    corral_board_detach(b);
    close(fd);
}

static void slots_are_bounded(void **state)
{
    (void)state;
    int fd = -1;
    struct corral_board *b = NULL;
    assert_int_equal(corral_board_create(0, &fd, &b, &err), CORRAL_INVALID);
    assert_int_equal(corral_board_create(CORRAL_BOARD_SLOTS_MAX + 1, &fd, &b, &err), CORRAL_INVALID);
    assert_int_equal(fd, -1);
    check_ok(corral_board_create(CORRAL_BOARD_SLOTS_MAX, &fd, &b, &err));
    assert_non_null(corral_board_slot(b, CORRAL_BOARD_SLOTS_MAX - 1));
    assert_null(corral_board_slot(b, CORRAL_BOARD_SLOTS_MAX));
    assert_int_equal((uintptr_t)corral_board_slot(b, 1) % 128, 0);
    assert_int_not_equal(ftruncate(fd, 4096), 0);
    corral_board_detach(b);
    close(fd);
}

static void a_foreign_descriptor_is_refused(void **state)
{
    (void)state;
    struct corral_board *b = NULL;
    int plain = memfd_create("plain", MFD_CLOEXEC);
    assert_int_equal(corral_board_attach(plain, &b, &err), CORRAL_INVALID);
    close(plain);
    int zeros = memfd_create("zeros", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(zeros, 1 << 16), 0);
    assert_int_equal(fcntl(zeros, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    assert_int_equal(corral_board_attach(zeros, &b, &err), CORRAL_INVALID);
    /* A header that promises more slots than the mapping has. */
    uint32_t header[4] = {UINT32_C(0x44425143), 1, 256, sizeof(struct corral_board_slot)};
    assert_int_equal(pwrite(zeros, header, sizeof header, 0), sizeof header);
    bool too_small = sizeof(struct corral_board_slot) * 256 > 1 << 16;
    assert_int_equal(corral_board_attach(zeros, &b, &err), too_small ? CORRAL_INVALID : CORRAL_OK);
    corral_board_detach(b);
    close(zeros);
    assert_int_equal(corral_board_attach(-1, &b, &err), CORRAL_IO);
}

static void every_activity_has_a_name(void **state)
{
    (void)state;
    for (uint32_t a = 0; a < CORRAL_ACTIVITY_COUNT; a++) {
        assert_string_not_equal(corral_activity_name((enum corral_activity)a), "unknown");
    }
    assert_string_equal(corral_activity_name((enum corral_activity)9999), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_process_reads_what_a_worker_writes),
        cmocka_unit_test(a_beat_moves_only_the_beat),
        cmocka_unit_test(slots_are_bounded),
        cmocka_unit_test(a_foreign_descriptor_is_refused),
        cmocka_unit_test(every_activity_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
