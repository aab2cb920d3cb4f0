#include "quota/fences/internal.h"
#include "tests/check.h"
#include <string.h>

#define V2_MOUNT "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MOUNTS                                                                          \
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"                           \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n" \
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"                    \
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"                    \
    "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
#define V1_SELF "8:pids:/\n4:memory:/user/me\n3:cpuset:/\n1:cpu,cpuacct:/user/me\n0::/me\n"

static void finds_all_controllers_of_version_2(void **state)
{
    (void)state;
    struct cgroup_host h;
    cgroup_find(V2_MOUNT, "0::/user.slice/run-7.scope\n", &h);
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        assert_true(h.place[c].found && h.place[c].v2);
        assert_string_equal(h.place[c].own, "/sys/fs/cgroup/user.slice/run-7.scope");
        assert_string_equal(h.place[c].mount, "/sys/fs/cgroup");
    }
}

static void finds_each_controller_of_a_mixed_system(void **state)
{
    (void)state;
    struct cgroup_host h;
    cgroup_find(V1_MOUNTS, V1_SELF, &h);
    assert_string_equal(h.place[CGROUP_MEMORY].own, "/sys/fs/cgroup/memory/user/me");
    assert_string_equal(h.place[CGROUP_CPUSET].own, "/sys/fs/cgroup/cpuset");
    assert_string_equal(h.place[CGROUP_CPU].own, "/sys/fs/cgroup/cpu,cpuacct/user/me");
    assert_string_equal(h.place[CGROUP_DMEM].own, "/sys/fs/cgroup/unified/me");
    assert_false(h.place[CGROUP_MEMORY].v2);
    assert_true(h.place[CGROUP_DMEM].v2);
}

static void a_bind_mount_in_a_container_is_resolved(void **state)
{
    (void)state;
    struct cgroup_host h;
    cgroup_find("35 31 0:32 /docker/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                "4:memory:/docker/c1/job\n", &h);
    assert_string_equal(h.place[CGROUP_MEMORY].own, "/sys/fs/cgroup/memory/job");
    /* A name that only begins like the root is another group. */
    cgroup_find("35 31 0:32 /docker/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                "4:memory:/docker/c12\n", &h);
    assert_false(h.place[CGROUP_MEMORY].found);
    assert_non_null(strstr(h.place[CGROUP_MEMORY].why, "outside"));
    cgroup_find(V2_MOUNT, "0::/../elsewhere\n", &h);
    assert_false(h.place[CGROUP_MEMORY].found);
}

static void escaped_mount_points_are_read(void **state)
{
    (void)state;
    struct cgroup_host h;
    cgroup_find("30 23 0:26 / /my\\040groups rw - cgroup2 none rw\n", "0::/\n", &h);
    assert_string_equal(h.place[CGROUP_CPU].own, "/my groups");
}

static void says_what_is_missing(void **state)
{
    (void)state;
    struct cgroup_host h;
    cgroup_find("", "", &h);
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        assert_false(h.place[c].found);
        assert_non_null(strstr(h.place[c].why, cgroup_controller_name((enum cgroup_controller)c)));
    }
}

static void damaged_texts_are_survived(void **state)
{
    (void)state;
    static const char *const mounts[] = {"\n\n",
                                         "- - - - - - -",
                                         "1 2 3 / /x rw -",
                                         "1 2 3 / /x rw - cgroup2",
                                         "30 23 0:26 / /x\\0 rw - cgroup2 a rw\n",
                                         V2_MOUNT};
    static const char *const selves[] = {"", ":", "::", "0:", "0::", "x\n\n:::\n", "0::no-slash"};
    char longest[3 * FENCE_PATH_BYTES];
    struct cgroup_host h;
    for (size_t m = 0; m < CORRAL_COUNT_OF(mounts); m++) {
        for (size_t s = 0; s < CORRAL_COUNT_OF(selves); s++) {
            cgroup_find(mounts[m], selves[s], &h);
            for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
                assert_int_equal(h.place[c].found, h.place[c].own[0] != '\0');
            }
        }
    }
    memset(longest, 'a', sizeof longest - 1);
    memcpy(longest, "0::/", 4);
    longest[sizeof longest - 1] = '\0';
    cgroup_find(V2_MOUNT, longest, &h);
    assert_false(h.place[CGROUP_MEMORY].found);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_all_controllers_of_version_2),
        cmocka_unit_test(finds_each_controller_of_a_mixed_system),
        cmocka_unit_test(a_bind_mount_in_a_container_is_resolved),
        cmocka_unit_test(escaped_mount_points_are_read),
        cmocka_unit_test(says_what_is_missing),
        cmocka_unit_test(damaged_texts_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
