/* The fences of a run on this machine, whatever it has: what is not here must be reported as such, and what is here must hold. */
#include "base/file.h"
#include "quota/fences/internal.h"
#include "quota/shared.h"
#include "tests/check.h"

#include "quota/fences/test_canary.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN UINT64_C(0xfe0ce5)

static const struct corral_fence_status *row(const struct corral_fence_report *r, const char *name)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (strcmp(r->fence[i].name, name) == 0) {
            return &r->fence[i];
        }
    }
    return NULL;
}

/* ---- reports ---- */

static void a_report_reads_as_one_line(void **state)
{
    (void)state;
    struct corral_fence_report r = {0};
    char text[200];
    assert_string_equal(corral_fence_report_line(&r, text, sizeof text), "");
    corral_fence_report_set(&r, "ledger", CORRAL_FENCE_LIVE, "granted");
    corral_fence_report_set(&r, "cgroup-memory", CORRAL_FENCE_ABSENT, "no permission below /x; do this");
    corral_fence_report_set(&r, "cpuset", CORRAL_FENCE_FAILED, "saw others");
    corral_fence_report_set(&r, "affinity", CORRAL_FENCE_LIVE, "");
    assert_string_equal(
        corral_fence_report_line(&r, text, sizeof text),
        "ledger ok · cgroup-memory: no permission below /x · cpuset FAILED: saw others · affinity ok");
    assert_string_equal(corral_fence_report_live(&r, text, sizeof text), "ledger affinity");
    assert_true(corral_fence_is_live(&r, "ledger"));
    assert_false(corral_fence_is_live(&r, "cpuset"));
    assert_false(corral_fence_is_live(&r, "mps"));
    corral_fence_report_set(&r, "ledger", CORRAL_FENCE_FAILED, "x");
    assert_int_equal(r.count, 4);
    assert_false(corral_fence_is_live(&r, "ledger"));
}

static void a_report_that_is_full_or_a_line_that_is_short_is_cut(void **state)
{
    (void)state;
    struct corral_fence_report r = {0};
    for (int i = 0; i < 3 * CORRAL_FENCES_MAX; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", i);
        corral_fence_report_set(&r, name, CORRAL_FENCE_LIVE, "");
    }
    assert_int_equal(r.count, CORRAL_FENCES_MAX);
    for (size_t n = 1; n < 64; n++) {
        char *exact = malloc(n); /* so that a write beyond it is seen */
        assert_true(strlen(corral_fence_report_line(&r, exact, n)) < n);
        assert_true(strlen(corral_fence_report_live(&r, exact, n)) < n);
        free(exact);
    }
}

/* ---- trying ---- */

static void trying_finds_what_every_machine_has(void **state)
{
    (void)state;
    struct corral_fence_report r;
    struct corral_error err;
    check_ok(corral_fences_try(&r, &err));
    assert_true(corral_fence_is_live(&r, "ledger"));
    assert_true(corral_fence_is_live(&r, "affinity"));
    static const char *const others[] = {"rlimit", "cgroup-memory", "cpuset", "cpu", "dmem", "mps"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(others); i++) {
        const struct corral_fence_status *f = row(&r, others[i]);
        assert_non_null(f);
        assert_true(f->detail[0] != '\0');
        if (f->state == CORRAL_FENCE_FAILED) {
            fail_msg("%s: %s", f->name, f->detail);
        }
    }
}

/* ---- a run ---- */

static struct corral_fence_group_spec host_spec(uint64_t bytes)
{
    return (struct corral_fence_group_spec){
        .role = "rollout", .device = "a:3", .bytes = bytes, .processes = 2, .compute_percent = 100};
}

/* What an agent does with an entry: 0 into each group, the limit, the program. */
static int in_group(const struct corral_fence_entry *entry, int (*fn)(void *ctx), void *ctx)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit limit = {.rlim_cur = entry->rlimit_data, .rlim_max = entry->rlimit_data};
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = 0; i < entry->fd_count; i++) {
            if (write(entry->fd[i], "0", 1) != 1) {
                _exit(99);
            }
        }
        if (entry->rlimit_data && setrlimit(RLIMIT_DATA, &limit) != 0) {
            _exit(98);
        }
        _exit(fn(ctx));
    }
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int touch(void *ctx)
{
    uint64_t bytes = *(uint64_t *)ctx;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return 1;
    }
    for (uint64_t i = 0; i < bytes; i += 4096) {
        ((volatile char *)memory)[i] = 1;
    }
    return 0;
}

/* The ledger denies first: a process that is over its quota but within it and the overhead is not the kernel's business. */
static void the_kernel_s_limit_leaves_room_beside_the_quota(void **state)
{
    (void)state;
    struct corral_fences *f = NULL;
    struct corral_error err;
    struct corral_fence_entry entry;
    struct corral_fence_report r;
    struct corral_fence_group_spec spec = host_spec(8 * FENCE_MIB);
    uint32_t group;
    uint64_t bytes = 40 * FENCE_MIB;
    check_ok(corral_fences_open(RUN, "a", &f, &err));
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_entry(f, group, &entry);
    assert_int_equal(entry.env_count, 0);
    assert_true(entry.rlimit_data == 0);
    assert_int_equal(in_group(&entry, touch, &bytes), 0);
    corral_fences_report(f, &r);
    assert_true(corral_fence_is_live(&r, "ledger"));
    assert_non_null(row(&r, "cgroup-memory"));
    assert_int_not_equal(row(&r, "cgroup-memory")->state, CORRAL_FENCE_FAILED);
    assert_null(row(&r, "mps")); /* nobody asked */
    corral_fences_close(f);
}

static void a_tenant_on_a_host_device_is_held_to_its_quota(void **state)
{
    (void)state;
#if defined(__SANITIZE_THREAD__)
    skip(); /* the sanitizer's shadow memory is several times what the group may have */
#endif
    struct corral_fences *f = NULL;
    struct corral_error err;
    struct corral_fence_entry entry;
    struct corral_fence_report r;
    struct corral_fence_group_spec spec = host_spec(32 * FENCE_MIB);
    uint32_t group;
    uint64_t within = 16 * FENCE_MIB, over = 64 * FENCE_MIB;
    spec.tenant = true;
    spec.processes = 1;
    check_ok(corral_fences_open(RUN, "a", &f, &err));
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_entry(f, group, &entry);
    assert_true(entry.rlimit_data == 32 * FENCE_MIB);
    entry.rlimit_data = 0; /* the cgroup alone */
    corral_fences_report(f, &r);
    assert_int_equal(row(&r, "rlimit")->state, CORRAL_FENCE_LIVE);
    if (corral_fence_is_live(&r, "cgroup-memory")) {
        assert_int_equal(in_group(&entry, touch, &within), 0);
        assert_int_equal(in_group(&entry, touch, &over), -SIGKILL);
        /* And its limit follows a live change. */
        check_ok(corral_fences_resize(f, group, 128 * FENCE_MIB, &err));
        assert_int_equal(in_group(&entry, touch, &over), 0);
        corral_fences_entry(f, group, &entry);
        assert_true(entry.rlimit_data == 128 * FENCE_MIB);
    } else {
        print_message("no memory cgroup here: %s\n", row(&r, "cgroup-memory")->detail);
    }
    corral_fences_close(f);
}

static int count_cpus(void *ctx)
{
    cpu_set_t seen;
    (void)ctx;
    return sched_getaffinity(0, sizeof seen, &seen) == 0 ? CPU_COUNT(&seen) : 97;
}

static void cpus_are_the_ones_given(void **state)
{
    (void)state;
    struct corral_fences *f = NULL;
    struct corral_error err;
    struct corral_fence_entry entry;
    struct corral_fence_report r;
    struct corral_fence_group_spec spec = host_spec(8 * FENCE_MIB);
    cpu_set_t own, one;
    uint32_t group;
    size_t cpu = 0;
    assert_int_equal(sched_getaffinity(0, sizeof own, &own), 0);
    while (!CPU_ISSET(cpu, &own)) {
        cpu++;
    }
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    spec.cpus = &one;
    spec.compute_percent = 50;
    check_ok(corral_fences_open(RUN, "a", &f, &err));
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_entry(f, group, &entry);
    corral_fences_report(f, &r);
    assert_true(corral_fence_is_live(&r, "affinity"));
    assert_int_not_equal(row(&r, "cpuset")->state, CORRAL_FENCE_FAILED);
    assert_int_not_equal(row(&r, "cpu")->state, CORRAL_FENCE_FAILED);
    if (corral_fence_is_live(&r, "cpuset")) {
        assert_int_equal(in_group(&entry, count_cpus, NULL), 1);
    }
    corral_fences_close(f);
}

static void cpus_that_are_not_ours_are_not_claimed(void **state)
{
    (void)state;
    struct corral_fences *f = NULL;
    struct corral_error err;
    struct corral_fence_report r;
    struct corral_fence_group_spec spec = host_spec(8 * FENCE_MIB);
    cpu_set_t none;
    uint32_t group;
    CPU_ZERO(&none);
    CPU_SET(CPU_SETSIZE - 1, &none);
    spec.cpus = &none;
    check_ok(corral_fences_open(RUN, "a", &f, &err));
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_report(f, &r);
    assert_int_equal(row(&r, "affinity")->state, CORRAL_FENCE_ABSENT);
    assert_int_equal(row(&r, "cpuset")->state, CORRAL_FENCE_ABSENT);
    corral_fences_close(f);
}

static void a_gpu_s_fences_are_absent_with_reasons_where_there_is_none(void **state)
{
    (void)state;
    struct corral_fences *f = NULL;
    struct corral_error err;
    struct corral_fence_report r;
    struct corral_fence_entry entry;
    struct corral_fence_group_spec spec = {.role = "trainer",
                                           .device = "a:0",
                                           .gpu = true,
                                           .bytes = 64 * FENCE_MIB,
                                           .processes = 1,
                                           .compute_percent = 40,
                                           .gpu_uuid = "GPU-01234567-89ab-cdef-0123-456789abcdef"};
    uint32_t group;
    assert_int_equal(setenv("CUDA_MPS_PIPE_DIRECTORY", "/nonexistent/pipe", 1), 0);
    check_ok(corral_fences_open(RUN, "a", &f, &err));
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_entry(f, group, &entry);
    assert_int_equal(entry.env_count, 0);
    corral_fences_report(f, &r);
    assert_int_equal(row(&r, "mps")->state, CORRAL_FENCE_ABSENT);
    assert_non_null(strstr(row(&r, "mps")->detail, "/nonexistent/pipe"));
    assert_int_equal(row(&r, "dmem")->state, CORRAL_FENCE_ABSENT);
    assert_null(row(&r, "cgroup-memory"));
    corral_fences_close(f);
    unsetenv("CUDA_MPS_PIPE_DIRECTORY");
}

static void a_live_mps_gets_both_limits(void **state)
{
    (void)state;
    char folder[] = "/tmp/corral-fences-mps-XXXXXX", path[2048], program[256];
    struct corral_fences *f = NULL;
    struct corral_error err;
    struct corral_fence_report r;
    struct corral_fence_entry entry;
    struct corral_fence_group_spec spec = {.role = "trainer",
                                           .device = "a:0",
                                           .gpu = true,
                                           .bytes = 64 * FENCE_MIB,
                                           .processes = 2,
                                           .compute_percent = 40,
                                           .overhead = 100 * FENCE_MIB};
    uint32_t group;
    char state_file[128], limit[160];
    assert_non_null(mkdtemp(folder));
    fence_text(state_file, sizeof state_file, "%s/gpus", folder);
    test_fake_gpu(state_file);
    test_gpu_uuid(spec.gpu_uuid);
    const char *before = getenv("PATH");
    char *old = strdup(before ? before : "/bin");
    fence_text(path, sizeof path, "%s:%s", folder, old);
    fence_text(program, sizeof program, "%s/nvidia-cuda-mps-control", folder);
    check_ok(corral_file_write_atomic(program, "#!/bin/sh\nread q\n", 17, 0755, false, &err));
    fence_text(program, sizeof program, "%s/control", folder);
    check_ok(corral_file_write_atomic(program, "", 0, 0644, false, &err));
    assert_int_equal(setenv("PATH", path, 1), 0);
    assert_int_equal(setenv("CUDA_MPS_PIPE_DIRECTORY", folder, 1), 0);
    check_ok(corral_fences_open(RUN, "a", &f, &err));
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_entry(f, group, &entry);
    assert_int_equal(entry.env_count, 3);
    assert_string_equal(entry.env[0] + strlen("CUDA_MPS_PIPE_DIRECTORY="), folder);
    fence_text(limit, sizeof limit, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=%s=164M", spec.gpu_uuid);
    assert_string_equal(entry.env[1], limit);
    assert_string_equal(entry.env[2], "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=40");
    corral_fences_report(f, &r);
    assert_true(corral_fence_is_live(&r, "mps"));
    assert_non_null(strstr(row(&r, "mps")->detail, "per process"));
    /* A name that is no UUID would drop every limit: nothing is set then. */
    memcpy(spec.gpu_uuid, "0", 2);
    check_ok(corral_fences_add(f, &spec, &group, &err));
    corral_fences_entry(f, group, &entry);
    assert_int_equal(entry.env_count, 0);
    corral_fences_report(f, &r);
    assert_int_equal(row(&r, "mps")->state, CORRAL_FENCE_ABSENT);
    corral_fences_close(f);
    /* Somebody answers, and the driver holds nobody to a limit; or to a share, which matters where one is wanted. */
    test_gpu_uuid(spec.gpu_uuid);
    for (int share = 0; share < 2; share++) {
        setenv("CORRAL_FAKECUDA_MPS", share ? "no-share" : "ignore", 1);
        check_ok(corral_fences_open(RUN, "a", &f, &err));
        check_ok(corral_fences_add(f, &spec, &group, &err));
        corral_fences_entry(f, group, &entry);
        assert_int_equal(entry.env_count, 0);
        corral_fences_report(f, &r);
        assert_false(corral_fence_is_live(&r, "mps"));
        const char *detail = row(&r, "mps")->detail, *want = share ? "NOT enforced" : "not enforced";
        assert_non_null(strstr(detail, want));
        corral_fences_close(f);
    }
    unsetenv("CORRAL_FAKECUDA_MPS");
    test_no_gpu();
    setenv("PATH", old, 1);
    free(old);
    unsetenv("CUDA_MPS_PIPE_DIRECTORY");
    check_ok(corral_remove_tree(folder, &err));
}

/* ---- what is left ---- */

static uint32_t leftovers_of(uint64_t run, struct corral_fence_leftover *out)
{
    static struct corral_fence_leftover all[64];
    uint32_t count = corral_fence_leftovers(all, CORRAL_COUNT_OF(all)), found = 0;
    for (uint32_t i = 0; i < CORRAL_MIN(count, (uint32_t)CORRAL_COUNT_OF(all)); i++) {
        if (all[i].run == run) {
            found++;
            *out = all[i];
        }
    }
    return found;
}

/* Opens fences as an agent would and dies without closing them, with a process in a group that nobody waits for: its number. */
static pid_t die_as_an_agent(uint64_t run)
{
    int ready[2], in_group[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(in_group), 0);
    pid_t agent = fork();
    assert_true(agent >= 0);
    if (agent == 0) {
        struct corral_fences *f;
        struct corral_fence_report r;
        struct corral_fence_entry entry;
        struct corral_fence_group_spec spec = host_spec(8 * FENCE_MIB);
        uint32_t group;
        if (corral_fences_open(run, "a", &f, NULL) != CORRAL_OK ||
            corral_fences_add(f, &spec, &group, NULL) != CORRAL_OK) {
            _exit(1);
        }
        corral_fences_report(f, &r);
        corral_fences_entry(f, group, &entry);
        if (fork() == 0) {
            for (uint32_t i = 0; i < entry.fd_count; i++) {
                (void)!write(entry.fd[i], "0", 1);
            }
            pid_t me = getpid();
            (void)!write(ready[1], &me, sizeof me);
            (void)!write(in_group[1], "r", 1);
            close(ready[1]);
            close(in_group[1]);
            pause();
            _exit(0);
        }
        (void)!read(in_group[0], &byte, 1);
        kill(getpid(), SIGKILL);
    }
    close(ready[1]);
    close(in_group[0]);
    close(in_group[1]);
    int status;
    pid_t left = -1;
    assert_int_equal(waitpid(agent, &status, 0), agent);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(read(ready[0], &left, sizeof left), sizeof left);
    close(ready[0]);
    return left;
}

/* Where there are no cgroups, nobody else would end it. */
static void end(pid_t left)
{
    assert_int_equal(kill(left, SIGKILL), 0);
    assert_int_equal(waitpid(left, NULL, 0), left);
}

static void groups_of_an_agent_that_was_killed_are_found_and_removed(void **state)
{
    (void)state;
    struct corral_fence_leftover left;
    struct corral_error err;
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* what the dead agent leaves is ours to reap */
    pid_t worker = die_as_an_agent(RUN + 1);
    uint32_t found = leftovers_of(RUN + 1, &left);
    if (found == 0) {
        end(worker);
        print_message("no cgroups here\n");
        skip();
    }
    assert_string_equal(left.node, "a");
    assert_int_equal(left.processes, 1);
    while ((found = leftovers_of(RUN + 1, &left)) > 0) {
        check_ok(corral_fence_leftover_remove(&left, &err));
        assert_true(leftovers_of(RUN + 1, &left) < found);
    }
    int status;
    assert_true(wait(&status) > 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void the_next_agent_of_the_run_removes_them(void **state)
{
    (void)state;
    struct corral_fence_leftover left;
    struct corral_fences *f;
    struct corral_error err;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t worker = die_as_an_agent(RUN + 2);
    if (leftovers_of(RUN + 2, &left) == 0) {
        end(worker);
        skip();
    }
    check_ok(corral_fences_open(RUN + 2, "a", &f, &err));
    assert_int_equal(leftovers_of(RUN + 2, &left), 0);
    corral_fences_close(f);
    int status;
    assert_true(wait(&status) > 0);
}

static void groups_of_a_live_agent_are_left_alone(void **state)
{
    (void)state;
    struct corral_fences *f, *other;
    struct corral_error err;
    struct corral_fence_leftover left = {.node = "a"};
    check_ok(corral_fences_open(RUN + 3, "a", &f, &err));
    check_ok(corral_fences_open(RUN + 3, "b", &other, &err));
    assert_int_equal(leftovers_of(RUN + 3, &left), 0);
    char name[CGROUP_NAME_BYTES];
    cgroup_tree_name(RUN + 3, "a", name);
    fence_text(left.path, sizeof left.path, "/sys/fs/cgroup/%s", name);
    check_status(corral_fence_leftover_remove(&left, &err), CORRAL_STATE);
    fence_text(left.path, sizeof left.path, "/sys/fs/cgroup/user.slice");
    check_status(corral_fence_leftover_remove(&left, &err), CORRAL_INVALID);
    corral_fences_close(other);
    corral_fences_close(f);
}

int main(int argc, char **argv)
{
    int code;
    if (test_canary(argc, argv, &code)) {
        return code;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_report_reads_as_one_line),
        cmocka_unit_test(a_report_that_is_full_or_a_line_that_is_short_is_cut),
        cmocka_unit_test(trying_finds_what_every_machine_has),
        cmocka_unit_test(the_kernel_s_limit_leaves_room_beside_the_quota),
        cmocka_unit_test(a_tenant_on_a_host_device_is_held_to_its_quota),
        cmocka_unit_test(cpus_are_the_ones_given),
        cmocka_unit_test(cpus_that_are_not_ours_are_not_claimed),
        cmocka_unit_test(a_gpu_s_fences_are_absent_with_reasons_where_there_is_none),
        cmocka_unit_test(a_live_mps_gets_both_limits),
        cmocka_unit_test(groups_of_an_agent_that_was_killed_are_found_and_removed),
        cmocka_unit_test(the_next_agent_of_the_run_removes_them),
        cmocka_unit_test(groups_of_a_live_agent_are_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
