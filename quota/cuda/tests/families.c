#include "quota/cuda/tests/families.h"
#include <dlfcn.h>
#include <limits.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEVICES 2

struct node {
    int fd;
    struct corral_quota *quota;
    char folder[64], state[128], log[128], ledger[64], token[33];
};

static const struct family_case *running;

/* ---- in a case ---- */
static void *driver_library(void)
{
    static void *library;
    if (library == NULL) {
        library = dlopen("libcuda.so.1", RTLD_NOW);
    }
    EXPECT(library != NULL);
    return library;
}

void *family_symbol(const char *name)
{
    void *found = dlsym(driver_library(), name);
    if (found == NULL) {
        fprintf(stderr, "no %s\n", name);
        exit(1);
    }
    return found;
}

uint64_t family_calls(const char *symbol)
{
    return ((uint64_t(*)(const char *))family_symbol("fakecuda_calls"))(symbol);
}

uint64_t family_physical(CUdevice device)
{
    return ((uint64_t(*)(int))family_symbol("fakecuda_used"))(device);
}

static const struct corral_ledger *ledger(void)
{
    static struct corral_quota *quota;
    uint32_t role;
    if (quota == NULL) {
        EXPECT(corral_quota_attach_environment(&quota, &role, NULL) == CORRAL_OK);
    }
    return corral_quota_ledger(quota);
}

static const struct corral_ledger_holder *self(CUdevice device)
{
    const struct corral_ledger *l = ledger();
    for (uint32_t i = 0; i < l->holder_high; i++) {
        if (l->holder[i].pid == getpid() && l->holder[i].device == (uint32_t)device) {
            return &l->holder[i];
        }
    }
    static const struct corral_ledger_holder none;
    return &none;
}

uint64_t family_kind(CUdevice device, enum corral_ledger_kind kind)
{
    return self(device)->kind_bytes[kind];
}

uint32_t family_holders(void)
{
    const struct corral_ledger *l = ledger();
    uint32_t count = 0;
    for (uint32_t i = 0; i < l->holder_high; i++) {
        count += l->holder[i].pid == getpid();
    }
    return count;
}

uint64_t family_used(CUdevice device)
{
    return ledger()->device[device].role[0].used;
}

uint64_t family_pinned(CUdevice device)
{
    return self(device)->pinned;
}

uint64_t family_spilled(CUdevice device)
{
    return self(device)->spilled;
}

unsigned family_denials(void)
{
    char line[4096];
    unsigned count = 0;
    FILE *f = fopen(getenv(CORRAL_QUOTA_ENV_LOG), "r");
    while (f != NULL && fgets(line, sizeof(line), f)) {
        count += strstr(line, "denied") != NULL;
    }
    if (f != NULL) {
        fclose(f);
    }
    return count;
}

void family_start(CUdevice device)
{
    CUcontext context;
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, device) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxSetCurrent)(context) == CUDA_SUCCESS);
}

pid_t family_spawn(const char *name, const char *argument)
{
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "families", name, argument, (char *)NULL);
        _exit(127);
    }
    return pid;
}

int family_wait(pid_t pid)
{
    int status = -1;
    while (waitpid(pid, &status, 0) != pid) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* ---- around it ---- */
static void uuids(uint8_t uuid[DEVICES][16])
{
    void *library = dlopen(FAKE_DRIVER "/libcuda.so.1", RTLD_NOW);
    assert_non_null(library);
    assert_int_equal(((cuInit_fn)dlsym(library, "cuInit"))(0), CUDA_SUCCESS);
    for (int d = 0; d < DEVICES; d++) {
        CUuuid u;
        assert_int_equal(((cuDeviceGetUuid_v2_fn)dlsym(library, "cuDeviceGetUuid_v2"))(&u, d), CUDA_SUCCESS);
        memcpy(uuid[d], u.bytes, 16);
    }
}

static void plan_node(struct node *n)
{
    struct corral_error err;
    uint32_t out;
    uint8_t uuid[DEVICES][16];
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    assert_non_null(plan);
    uuids(uuid);
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(plan, "rollout", &out, &err));
    for (uint32_t d = 0; d < DEVICES; d++) {
        char name[8];
        snprintf(name, sizeof(name), "a:%u", d);
        check_ok(corral_ledger_add_device(plan, name, 256 * MIB, 16 * MIB, &out, &err));
        corral_ledger_set_uuid(plan, d, uuid[d]);
        check_ok(corral_ledger_set_limits(plan, d, 0, 32 * MIB, CEILING, &err));
        check_ok(corral_ledger_set_limits(plan, d, 1, 64 * MIB, 128 * MIB, &err));
    }
    check_ok(corral_ledger_check_plan(plan, 1.3, &err));
    check_ok(corral_quota_create(plan, NULL, &n->fd, &n->quota, &err));
    free(plan);
}

/* The cases of one program run in one process of the tests, one after the other: the fake driver's state is theirs all, and empty between them. */
static void set_environment(const struct node *n, const struct family_case *c)
{
    setenv("LD_LIBRARY_PATH", FAKE_DRIVER, 1);
    if (!c->no_ledger) {
        setenv(CORRAL_QUOTA_ENV_LEDGER, n->ledger, 1);
        setenv(CORRAL_QUOTA_ENV_TOKEN, n->token, 1);
    }
    setenv(CORRAL_QUOTA_ENV_LOG, n->log, 1);
    if (c->faults != NULL) {
        setenv("CORRAL_FAKECUDA_FAULTS", c->faults, 1);
    }
    if (c->spill != NULL) {
        setenv(CORRAL_QUOTA_ENV_SPILL, c->spill, 1);
    }
    setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
    setenv("LD_PRELOAD", INTERPOSER, 1);
}

static void run_case(void **state)
{
    struct node *n = *state;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        set_environment(n, running);
        execl("/proc/self/exe", "families", running->name, (char *)NULL);
        _exit(127);
    }
    int status = family_wait(pid);
    corral_quota_reap(n->quota);
    assert_int_equal(status, 0);
    const struct corral_ledger *l = corral_quota_ledger(n->quota);
    assert_true(corral_ledger_consistent(l));
    for (uint32_t d = 0; d < DEVICES; d++) {
        assert_int_equal(l->device[d].role[0].used, 0);
        assert_int_equal(l->device[d].role[0].pinned, 0);
        assert_int_equal(l->device[d].role[0].spilled, 0);
    }
}

static int start_node(void **state)
{
    struct node *n = calloc(1, sizeof(*n));
    assert_non_null(n);
    strcpy(n->folder, "/tmp/corral-families-XXXXXX");
    assert_non_null(mkdtemp(n->folder));
    snprintf(n->state, sizeof(n->state), "%s/state", n->folder);
    snprintf(n->log, sizeof(n->log), "%s/log", n->folder);
    setenv("CORRAL_FAKECUDA_STATE", n->state, 1);
    setenv("CORRAL_FAKECUDA_DEVICES", "2", 1);
    setenv("CORRAL_FAKECUDA_MEMORY", "256MiB", 1);
    setenv("CORRAL_FAKECUDA_CONTEXT", "4MiB", 1);
    plan_node(n);
    snprintf(n->ledger, sizeof(n->ledger), "/proc/%d/fd/%d", (int)getpid(), n->fd);
    corral_quota_token(n->quota, 0, n->token);
    *state = n;
    return 0;
}

static int stop_node(void **state)
{
    struct node *n = *state;
    corral_quota_detach(n->quota);
    close(n->fd);
    unlink(n->state);
    unlink(n->log);
    rmdir(n->folder);
    free(n);
    return 0;
}

static int next_case(void **state)
{
    struct node *n = *state;
    running++;
    unlink(n->log);
    return 0;
}

int family_main(int argc, char **argv, const struct family_case *cases, size_t count)
{
    for (size_t i = 0; argc > 1 && i < count; i++) {
        if (strcmp(cases[i].name, argv[1]) == 0) {
            cases[i].run();
            return 0;
        }
    }
    if (argc > 1) {
        return 127;
    }
    struct CMUnitTest *tests = calloc(count, sizeof(*tests));
    running = cases - 1;
    for (size_t i = 0; tests != NULL && i < count; i++) {
        tests[i] = (struct CMUnitTest){.name = cases[i].name, .test_func = run_case, .setup_func = next_case};
    }
    int failed = tests == NULL ? 1 : _cmocka_run_group_tests("families", tests, count, start_node, stop_node);
    free(tests);
    return failed;
}
