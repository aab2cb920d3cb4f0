/* Groups against this machine's kernel where it lets us (a test that it does not let us do is skipped and says why), and version 2's rules against a stand-in: a folder whose groups get the files
 * that the kernel would make. */
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
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a stand-in of version 2 ---- */

static char fake[] = "/tmp/corral-cgroup-XXXXXX";
static int fake_make_error;

static void put(const char *dir, const char *file, const char *text)
{
    char path[FENCE_PATH_BYTES];
    struct corral_error err;
    fence_text(path, sizeof path, "%s/%s", dir, file);
    check_ok(corral_file_write_atomic(path, text, strlen(text), 0644, false, &err));
}

static int fake_make(const char *path)
{
    static const char *const files[] = {
        "cgroup.procs",     "cgroup.subtree_control", "memory.max",  "memory.high",
        "memory.oom.group", "memory.swap.max",        "cpuset.cpus", "cpu.max",
        "dmem.max"};
    if (fake_make_error != 0 || mkdir(path, 0755) != 0) {
        return fake_make_error != 0 ? fake_make_error : errno;
    }
    put(path, "cgroup.controllers", "cpuset cpu memory dmem\n");
    for (size_t i = 0; i < CORRAL_COUNT_OF(files); i++) {
        put(path, files[i], "");
    }
    return 0;
}

static int fake_remove(const char *path)
{
    return corral_remove_tree(path, NULL) == CORRAL_OK ? 0 : EIO;
}
static const struct cgroup_ops fake_ops = {.make = fake_make, .remove = fake_remove};

static void fake_host(struct cgroup_host *h, const char *controllers)
{
    char mounts[256];
    fake_make_error = 0;
    (void)corral_remove_tree(fake, NULL);
    assert_int_equal(fake_make(fake), 0);
    put(fake, "cgroup.controllers", controllers);
    fence_text(mounts, sizeof mounts, "30 23 0:26 / %s rw - cgroup2 cgroup2 rw\n", fake);
    cgroup_find(mounts, "0::/\n", h);
}

static int make_fake(void **state)
{
    (void)state;
    return mkdtemp(fake) ? 0 : -1;
}

static int remove_fake(void **state)
{
    (void)state;
    return corral_remove_tree(fake, NULL) == CORRAL_OK ? 0 : -1;
}

static void is_file(const char *path, const char *text)
{
    char full[FENCE_PATH_BYTES];
    size_t bytes;
    struct corral_error err;
    CORRAL_AUTO_FREE char *got = NULL;
    fence_text(full, sizeof full, "%s/%s", fake, path);
    check_ok(corral_file_read(full, 4096, &got, &bytes, &err));
    assert_string_equal(got, text);
}

static void version_2_gets_its_limits(void **state)
{
    (void)state;
    struct cgroup_host h;
    struct cgroup_tree t;
    char why[FENCE_WHY_BYTES] = "";
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    CPU_SET(1, &cpus);
    CPU_SET(5, &cpus);
    fake_host(&h, "cpuset cpu memory\n");
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    assert_true(t.side[CGROUP_MEMORY].live && t.side[CGROUP_CPUSET].live && t.side[CGROUP_CPU].live);
    assert_false(t.side[CGROUP_DMEM].live);
    assert_non_null(strstr(t.side[CGROUP_DMEM].why, "not given dmem"));
    assert_true(cgroup_group_make(&t, "rollout-a:3", why));
    assert_true(cgroup_set_memory(&t, "rollout-a:3", 64 * FENCE_MIB, true, why));
    is_file("tree/rollout-a:3/memory.max", "67108864");
    is_file("tree/rollout-a:3/memory.high", "max");
    is_file("tree/rollout-a:3/memory.oom.group", "0");
    is_file("tree/rollout-a:3/memory.swap.max", "0");
    assert_true(cgroup_set_cpus(&t, "rollout-a:3", &cpus, why));
    is_file("tree/rollout-a:3/cpuset.cpus", "0-1,5");
    assert_true(cgroup_set_cpu_share(&t, "rollout-a:3", 30000, 100000, why));
    is_file("tree/rollout-a:3/cpu.max", "30000 100000");
    int fd[4];
    assert_int_equal(cgroup_enter_fds(&t, "rollout-a:3", fd), 1);
    close(fd[0]);
    cgroup_tree_close(&t);
    assert_int_not_equal(access(fake, F_OK), -1);
    char gone[FENCE_PATH_BYTES];
    fence_text(gone, sizeof gone, "%s/tree", fake);
    assert_int_equal(access(gone, F_OK), -1);
}

static void device_memory_goes_to_the_gpu_s_region(void **state)
{
    (void)state;
    struct cgroup_host h;
    struct cgroup_tree t;
    char why[FENCE_WHY_BYTES] = "";
    static const char uuid[] = "GPU-01234567-89ab-cdef-0123-456789abcdef";
    fake_host(&h, "memory dmem\n");
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    assert_true(t.side[CGROUP_DMEM].live);
    assert_true(cgroup_group_make(&t, "g", why));
    assert_false(cgroup_set_dmem(&t, "g", uuid, FENCE_MIB, why));
    assert_non_null(strstr(why, "dmem.capacity"));
    put(fake, "dmem.capacity", "drm/0000:03:00.0/vram0 8514437120\n");
    assert_false(cgroup_set_dmem(&t, "g", uuid, FENCE_MIB, why));
    assert_non_null(strstr(why, "no region"));
    put(fake, "dmem.capacity", "drm/x 1\nnvidia/gpu-01234567-89ab-cdef-0123-456789abcdef 8514437120\n");
    assert_true(cgroup_set_dmem(&t, "g", uuid, 1000 * FENCE_MIB, why));
    is_file("tree/g/dmem.max", "nvidia/gpu-01234567-89ab-cdef-0123-456789abcdef 1048576000");
    cgroup_tree_close(&t);
}

/* The stand-in's groups hold nobody; what a driver that keeps to its limit would do, the fake one does when it is told the limit. */
static void device_memory_is_tried_by_a_process_in_the_group(void **state)
{
    (void)state;
    struct cgroup_host h;
    struct cgroup_tree t;
    char why[FENCE_WHY_BYTES] = "", uuid[64], state_file[] = "/tmp/corral-cgroup-gpus-XXXXXX", text[160];
    int fd = mkstemp(state_file);
    assert_true(fd >= 0);
    close(fd);
    fake_host(&h, "memory dmem\n");
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    test_fake_gpu(state_file);
    test_gpu_uuid(uuid);
    assert_int_equal(cgroup_try_dmem(&t, "", why), CORRAL_FENCE_ABSENT);
    assert_non_null(strstr(why, "dmem.capacity"));
    put(fake, "dmem.capacity", "drm/other 8514437120\n");
    assert_int_equal(cgroup_try_dmem(&t, "", why), CORRAL_FENCE_ABSENT);
    assert_non_null(strstr(why, "no region"));
    fence_text(text, sizeof text, "nvidia/%s 1073741824\n", uuid);
    put(fake, "dmem.capacity", text);
    assert_int_equal(cgroup_try_dmem(&t, uuid, why), CORRAL_FENCE_FAILED);
    assert_non_null(strstr(why, "not enforced"));
    setenv("CORRAL_FAKECUDA_LIMIT", "530000000",
           1); /* a little above half of what is free beside a context */
    assert_int_equal(cgroup_try_dmem(&t, uuid, why), CORRAL_FENCE_LIVE);
    unsetenv("CORRAL_FAKECUDA_LIMIT");
    assert_int_equal(cgroup_populated(fake), 0);
    test_no_gpu();
    assert_int_equal(cgroup_try_dmem(&t, uuid, why), CORRAL_FENCE_ABSENT);
    cgroup_tree_close(&t);
    unlink(state_file);
}

static void what_cannot_be_had_says_what_to_do(void **state)
{
    (void)state;
    struct cgroup_host h;
    struct cgroup_tree t;
    fake_host(&h, "memory\n");
    fake_make_error = EACCES;
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    assert_false(t.side[CGROUP_MEMORY].live);
    assert_non_null(strstr(t.side[CGROUP_MEMORY].why, "Delegate=yes"));
    cgroup_tree_close(&t);
    fake_make_error = EROFS;
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    assert_non_null(strstr(t.side[CGROUP_MEMORY].why, "read-only"));
    cgroup_tree_close(&t);
    fake_host(&h, "\n");
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    assert_false(t.side[CGROUP_MEMORY].live);
    assert_non_null(strstr(t.side[CGROUP_MEMORY].why, "not given memory (it has: none)"));
    cgroup_tree_close(&t);
}

static void a_limit_that_does_not_read_back_is_no_limit(void **state)
{
    (void)state;
    struct cgroup_host h;
    struct cgroup_tree t;
    char why[FENCE_WHY_BYTES], path[FENCE_PATH_BYTES];
    fake_host(&h, "memory\n");
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    assert_true(cgroup_group_make(&t, "g", why));
    fence_text(path, sizeof path, "%s/tree/g/memory.max", fake);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/dev/null", path), 0); /* takes anything, keeps nothing */
    assert_false(cgroup_set_memory(&t, "g", FENCE_MIB, false, why));
    assert_non_null(strstr(why, "reads back"));
    cgroup_tree_close(&t);
}

/* Files that keep what is written to them and a kernel that does nothing about it. */
static void a_limit_that_does_not_hold_is_reported_as_failed(void **state)
{
    (void)state;
    struct cgroup_host h;
    struct cgroup_tree t;
    struct fence_probe p;
    cpu_set_t own;
    assert_int_equal(sched_getaffinity(0, sizeof own, &own), 0);
    struct fence_probe_want want = {
        .memory = true, .cpuset = CPU_COUNT(&own) > 1, .memory_bytes = 4 * FENCE_MIB};
    fake_host(&h, "cpuset memory\n");
    cgroup_tree_open(&t, &h, "tree", &fake_ops);
    fence_probe_start(&p, &t, "probe", &want);
    fence_probe_finish(&p, &t);
    assert_int_equal(p.memory, CORRAL_FENCE_FAILED);
    assert_non_null(strstr(p.why_memory, "got three times as much"));
    assert_int_equal(p.cpuset, want.cpuset ? CORRAL_FENCE_FAILED : CORRAL_FENCE_ABSENT);
    assert_int_equal(p.cpu, CORRAL_FENCE_ABSENT);
    cgroup_tree_close(&t);
}

/* ---- names ---- */

static void a_tree_s_name_names_its_owner(void **state)
{
    (void)state;
    char name[CGROUP_NAME_BYTES];
    struct cgroup_owner o;
    cgroup_tree_name(UINT64_C(0xabcdef0123456789), "node-1", name);
    assert_true(cgroup_parse_tree_name(name, &o));
    assert_true(o.run == UINT64_C(0xabcdef0123456789));
    assert_int_equal(o.pid, getpid());
    assert_true(o.start_time == corral_process_start_time(getpid()));
    assert_string_equal(o.node, "node-1");
    assert_false(cgroup_owner_is_gone(&o));
    o.start_time++;
    assert_true(cgroup_owner_is_gone(&o));
    /* Seen from another pid namespace, a pid says nothing. */
    o.pid_namespace++;
    assert_false(cgroup_owner_is_gone(&o));
    cgroup_tree_name(1, "../../x y", name);
    assert_null(strchr(name, '/'));
}

static void other_names_are_not_ours(void **state)
{
    (void)state;
    static const char *const names[] = {
        "",
        "corral-",
        "corral-self",
        "corral-0123456789abcde-1-2-3-a",
        "corral-0123456789abcdef",
        "corral-0123456789abcdef-0-2-3-a",
        "corral-0123456789abcdef-1-0-3-a",
        "corral-0123456789abcdef-99999999999-2-3-a",
        "corral-0123456789ABCDEF-1-2-3-a",
        "corral-0123456789abcdef-1-2-3",
        "corral-0123456789abcdef--1-2-3-a",
        "corral-0123456789abcdef-1-2-3-0123456789012345678901234567890123456789"};
    struct cgroup_owner o;
    for (size_t i = 0; i < CORRAL_COUNT_OF(names); i++) {
        assert_false(cgroup_parse_tree_name(names[i], &o));
    }
}

/* ---- this machine's kernel ---- */

static bool open_real(struct cgroup_tree *t, enum cgroup_controller need)
{
    struct cgroup_host h;
    char name[CGROUP_NAME_BYTES];
    cgroup_find_here(&h);
    cgroup_tree_name(0, "test", name);
    cgroup_tree_open(t, &h, name, &cgroup_kernel_ops);
    if (!t->side[need].live) {
        print_message("skipped: no %s cgroup: %s\n", cgroup_controller_name(need), t->side[need].why);
        cgroup_tree_close(t);
    }
    return t->side[need].live;
}

static void probe_finds(enum cgroup_controller c)
{
    struct cgroup_tree t;
    struct fence_probe p;
    cpu_set_t own;
    int cpu = 0;
    if (!open_real(&t, c)) {
        skip();
    }
    assert_int_equal(sched_getaffinity(0, sizeof own, &own), 0);
    while (!CPU_ISSET((size_t)cpu, &own)) {
        cpu++;
    }
    struct fence_probe_want want = {.memory = c == CGROUP_MEMORY,
                                    .cpuset = c == CGROUP_CPUSET,
                                    .cpu = c == CGROUP_CPU,
                                    .memory_bytes = 8 * FENCE_MIB,
                                    .cpu_number = cpu};
    fence_probe_start(&p, &t, "probe", &want);
    fence_probe_finish(&p, &t);
    const char *why = c == CGROUP_MEMORY ? p.why_memory : c == CGROUP_CPUSET ? p.why_cpuset : p.why_cpu;
    enum corral_fence_state found = c == CGROUP_MEMORY ? p.memory : c == CGROUP_CPUSET ? p.cpuset : p.cpu;
    cgroup_tree_close(&t);
    if (found != CORRAL_FENCE_LIVE) {
        fail_msg("%s: %s", cgroup_controller_name(c), why);
    }
}

static void the_kernel_stops_a_process_at_its_memory_limit(void **state)
{
    (void)state;
    probe_finds(CGROUP_MEMORY);
}

static void the_kernel_keeps_a_process_on_its_cpu(void **state)
{
    (void)state;
    probe_finds(CGROUP_CPUSET);
}

static void the_kernel_holds_a_process_to_its_cpu_share(void **state)
{
    (void)state;
    probe_finds(CGROUP_CPU);
}

/* Two processes that ignore every polite signal, one of them in a nested group. */
static void removal_kills_what_is_left(void **state)
{
    (void)state;
    struct cgroup_tree t;
    char why[FENCE_WHY_BYTES], nested[FENCE_PATH_BYTES];
    if (!open_real(&t, CGROUP_CPU)) {
        skip();
    }
    pid_t child[2];
    assert_true(cgroup_group_make(&t, "g", why));
    fence_text(nested, sizeof nested, "%s/g/nested", t.side[CGROUP_CPU].base);
    assert_int_equal(mkdir(nested, 0755), 0);
    for (int i = 0; i < 2; i++) {
        char procs[FENCE_PATH_BYTES + 64];
        int ready[2];
        char byte;
        fence_text(procs, sizeof procs, i == 0 ? "%s/g/cgroup.procs" : "%s/g/nested/cgroup.procs",
                   t.side[CGROUP_CPU].base);
        assert_int_equal(pipe(ready), 0);
        child[i] = fork();
        if (child[i] == 0) {
            FILE *f = fopen(procs, "w");
            signal(SIGTERM, SIG_IGN);
            if (!f || fputs("0", f) < 0 || fclose(f) != 0 || write(ready[1], "r", 1) != 1) {
                _exit(1);
            }
            for (;;) {
                pause();
            }
        }
        close(ready[1]);
        assert_int_equal(read(ready[0], &byte, 1), 1);
        close(ready[0]);
    }
    assert_int_equal(cgroup_populated(t.side[CGROUP_CPU].base), 2);
    char base[FENCE_PATH_BYTES];
    fence_text(base, sizeof base, "%s", t.side[CGROUP_CPU].base);
    cgroup_tree_close(&t);
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    assert_int_equal(access(base, F_OK), -1);
}

int main(int argc, char **argv)
{
    int code;
    if (test_canary(argc, argv, &code)) {
        return code;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_2_gets_its_limits),
        cmocka_unit_test(device_memory_goes_to_the_gpu_s_region),
        cmocka_unit_test(device_memory_is_tried_by_a_process_in_the_group),
        cmocka_unit_test(what_cannot_be_had_says_what_to_do),
        cmocka_unit_test(a_limit_that_does_not_read_back_is_no_limit),
        cmocka_unit_test(a_tree_s_name_names_its_owner),
        cmocka_unit_test(other_names_are_not_ours),
        cmocka_unit_test(the_kernel_stops_a_process_at_its_memory_limit),
        cmocka_unit_test(the_kernel_keeps_a_process_on_its_cpu),
        cmocka_unit_test(the_kernel_holds_a_process_to_its_cpu_share),
        cmocka_unit_test(a_limit_that_does_not_hold_is_reported_as_failed),
        cmocka_unit_test(removal_kills_what_is_left),
    };
    return cmocka_run_group_tests(tests, make_fake, remove_fake);
}
