/* quota-node: a node's ledger for the driver's devices, and commands in it; what an agent does, for tests.
 *
 *   quota-node [--overcommit X] [--headroom BYTES] [--pair] [--wait-all] --role NAME=FLOOR:CEILING … -- ROLE COMMAND… [-- ROLE COMMAND…]…
 *
 * Floors and ceilings are per device, in bytes, or in per cent of what a device has. It waits for the last command and then kills the others; with --wait-all it waits for all of them.
 * Exit status: the last command's, or the first that is not 0 of all; 1 when the ledger is not consistent and empty after that; 77 without a driver.
 * --pair: descriptor 9 of the first two commands is a socket between them. Their environment says what device 0 had in use before them (CORRAL_TEST_BASELINE). */
#include "quota/cuda/driver_types.h"
#include "quota/shared.h"
#include "tests/quota/physical_count.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMANDS_MAX 64
#define PAIR_FD 9

struct node {
    struct corral_ledger *plan;
    double overcommit;
    uint64_t headroom;
    bool pair, wait_all;
    const char *roles[CORRAL_LEDGER_ROLES_MAX];
    uint32_t role_count;
    struct {
        const char *role;
        char **argv;
        pid_t pid;
    } command[COMMANDS_MAX];
    uint32_t command_count;
};

static int complain(const struct corral_error *err)
{
    fprintf(stderr, "quota-node: %s\n", err->text);
    return 1;
}

static uint64_t amount(const char **text, uint64_t all)
{
    char *end;
    double n = strtod(*text, &end);
    uint64_t bytes = *end == '%' ? (uint64_t)(n / 100 * (double)all) : strtoull(*text, &end, 10);
    *text = end + (*end == '%');
    return bytes;
}

/* "NAME=FLOOR:CEILING" for a device. */
static enum corral_status set_role(struct node *n, uint32_t device, uint32_t role, struct corral_error *err)
{
    const char *p = strchr(n->roles[role], '=') + 1;
    uint64_t all = n->plan->device[device].physical - n->headroom;
    uint64_t floor = amount(&p, all);
    if (*p++ != ':') {
        return corral_fail(err, CORRAL_INVALID, "%s: expected NAME=FLOOR:CEILING", n->roles[role]);
    }
    return corral_ledger_set_limits(n->plan, device, role, floor, amount(&p, all), err);
}

/* Returns 77 when there is nothing to run on. */
static int plan_devices(struct node *n, struct corral_error *err)
{
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    int count = 0;
    cuInit_fn init = NULL;
    cuDeviceGetCount_fn get_count = NULL;
    cuDeviceGetUuid_fn uuid = NULL;
    cuDeviceTotalMem_v2_fn total = NULL;
    if (lib != NULL) {
        *(void **)&init = dlsym(lib, "cuInit");
        *(void **)&get_count = dlsym(lib, "cuDeviceGetCount");
        *(void **)&uuid = dlsym(lib, "cuDeviceGetUuid");
        *(void **)&total = dlsym(lib, "cuDeviceTotalMem_v2");
    }
    if (init == NULL || init(0) != CUDA_SUCCESS || get_count(&count) != CUDA_SUCCESS || count == 0) {
        fprintf(stderr, "quota-node: skipped: no CUDA driver with a device\n");
        return 77;
    }
    for (int d = 0; d < count; d++) {
        size_t bytes = 0;
        CUuuid id;
        char name[32];
        uint32_t device;
        snprintf(name, sizeof name, "a:%d", d);
        if (total(&bytes, d) != CUDA_SUCCESS || uuid(&id, d) != CUDA_SUCCESS ||
            corral_ledger_add_device(n->plan, name, bytes, n->headroom, &device, err) != CORRAL_OK) {
            return complain(err);
        }
        corral_ledger_set_uuid(n->plan, device, (const uint8_t *)id.bytes);
        for (uint32_t r = 0; r < n->role_count; r++) {
            if (set_role(n, device, r, err) != CORRAL_OK) {
                return complain(err);
            }
        }
    }
    return corral_ledger_check_plan(n->plan, n->overcommit, err) == CORRAL_OK ? 0 : complain(err);
}

static int usage(void)
{
    fprintf(stderr, "usage: quota-node [--overcommit X] [--headroom BYTES] [--pair] [--wait-all] --role "
                    "NAME=FLOOR:CEILING ... -- "
                    "ROLE COMMAND... [-- ROLE "
                    "COMMAND...]\n");
    return 2;
}

static int parse(struct node *n, int argc, char **argv)
{
    int i = 1;
    for (; i + 1 < argc && strcmp(argv[i], "--") != 0; i += 2) {
        if (strcmp(argv[i], "--pair") == 0 || strcmp(argv[i], "--wait-all") == 0) {
            *(argv[i][2] == 'p' ? &n->pair : &n->wait_all) = true;
            i--;
        } else if (strcmp(argv[i], "--overcommit") == 0) {
            n->overcommit = strtod(argv[i + 1], NULL);
        } else if (strcmp(argv[i], "--headroom") == 0) {
            n->headroom = strtoull(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--role") == 0 && strchr(argv[i + 1], '=') != NULL &&
                   n->role_count < CORRAL_LEDGER_ROLES_MAX) {
            n->roles[n->role_count++] = argv[i + 1];
        } else {
            return usage();
        }
    }
    while (i < argc && n->command_count < COMMANDS_MAX) {
        argv[i++] = NULL; /* the "--": ends the command before */
        if (i + 1 >= argc) {
            return usage();
        }
        n->command[n->command_count].role = argv[i++];
        n->command[n->command_count++].argv = &argv[i];
        while (i < argc && strcmp(argv[i], "--") != 0) {
            i++;
        }
    }
    return n->command_count > 0 && n->role_count > 0 ? 0 : usage();
}

/* In the child. */
static void become(const struct corral_quota *q, uint32_t role, int fd, char **argv, const char *interposer)
{
    char token[33], path[64];
    corral_quota_token(q, role, token);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getppid(), fd);
    setenv(CORRAL_QUOTA_ENV_LEDGER, path, 1);
    setenv(CORRAL_QUOTA_ENV_TOKEN, token, 1);
    setenv("LD_PRELOAD", interposer, 1);
    execvp(argv[0], argv);
    fprintf(stderr, "quota-node: cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

/* What device 0 has in use before anybody of ours: where NVML does not know our processes, all above it is theirs. */
static void set_baseline(const struct corral_ledger *l)
{
    char uuid[PHYSICAL_UUID_TEXT], text[32];
    int64_t process, device = -1;
    physical_uuid_text(l->device[0].uuid, uuid);
    if (physical_read_nvml(uuid, getpid(), &process, &device) && device >= 0) {
        snprintf(text, sizeof text, "%lld", (long long)device);
        setenv(PHYSICAL_ENV_BASELINE, text, 1);
    }
}

static int exit_status(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The last command's end, or everybody's. */
static int wait_for(const struct node *n)
{
    int status = 1, rc = 0;
    uint32_t last = n->command_count - 1;
    for (uint32_t c = 0; n->wait_all && c < last; c++) {
        waitpid(n->command[c].pid, &status, 0);
        rc = rc != 0 ? rc : exit_status(status);
    }
    status = 1;
    waitpid(n->command[last].pid, &status, 0);
    for (uint32_t c = 0; !n->wait_all && c < last; c++) {
        int killed;
        kill(n->command[c].pid, SIGKILL);
        waitpid(n->command[c].pid, &killed, 0);
    }
    return rc != 0 ? rc : exit_status(status);
}

static int run(struct node *n, struct corral_quota *q, int fd)
{
    /* CORRAL_TEST_PRELOAD: another one, or several. */
    const char *interposer = getenv("CORRAL_TEST_PRELOAD");
    int pair[2] = {-1, -1};
    if (n->pair && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        fprintf(stderr, "quota-node: no socket pair\n");
        return 1;
    }
    set_baseline(corral_quota_ledger(q));
    for (uint32_t c = 0; c < n->command_count; c++) {
        uint32_t role = corral_ledger_find_role(corral_quota_ledger(q), n->command[c].role);
        if (role == UINT32_MAX || interposer == NULL) {
            fprintf(stderr, "quota-node: %s\n",
                    interposer == NULL ? "CORRAL_TEST_PRELOAD is not set" : "no such role");
            return 2;
        }
        pid_t pid = fork();
        if (pid == 0) {
            if (n->pair && c < 2) {
                dup2(pair[c], PAIR_FD);
            }
            become(q, role, fd, n->command[c].argv, interposer);
        }
        n->command[c].pid = pid;
    }
    if (n->pair) {
        close(pair[0]);
        close(pair[1]);
    }
    return wait_for(n);
}

/* Everybody is dead: nothing may be left, and the ledger says so itself. */
static int check_empty(struct corral_quota *q, struct corral_ledger *copy)
{
    corral_quota_reap(q);
    corral_quota_snapshot(q, copy);
    int rc = corral_ledger_consistent(corral_quota_ledger(q)) ? 0 : 1;
    for (uint32_t d = 0; d < copy->device_count; d++) {
        for (uint32_t r = 0; r < copy->role_count; r++) {
            const struct corral_ledger_role *role = &copy->device[d].role[r];
            if (role->used != 0) {
                fprintf(stderr, "quota-node: %s has %llu bytes left on %s\n", copy->role_name[r],
                        (unsigned long long)role->used, copy->device[d].name);
                rc = 1;
            }
            if (role->peak > role->ceiling) {
                fprintf(stderr, "quota-node: %s had %llu bytes on %s, above its ceiling\n",
                        copy->role_name[r], (unsigned long long)role->peak, copy->device[d].name);
                rc = 1;
            }
        }
    }
    return rc;
}

int main(int argc, char **argv)
{
    static struct node n = {.overcommit = 1.0};
    struct corral_error err = {0};
    int rc = parse(&n, argc, argv);
    if (rc != 0) {
        return rc;
    }
    n.plan = malloc(corral_ledger_bytes());
    if (n.plan == NULL) {
        return 1;
    }
    corral_ledger_init(n.plan);
    for (uint32_t r = 0; r < n.role_count; r++) {
        char name[CORRAL_LEDGER_NAME_MAX];
        uint32_t role;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(n.roles[r], "="), n.roles[r]);
        if (corral_ledger_add_role(n.plan, name, &role, &err) != CORRAL_OK) {
            return complain(&err);
        }
    }
    rc = plan_devices(&n, &err);
    int fd = -1;
    struct corral_quota *q = NULL;
    if (rc == 0 && corral_quota_create(n.plan, NULL, &fd, &q, &err) != CORRAL_OK) {
        rc = complain(&err);
    }
    if (rc == 0) {
        rc = run(&n, q, fd);
        int left = check_empty(q, n.plan);
        rc = rc != 0 ? rc : left;
    }
    corral_quota_detach(q);
    if (fd >= 0) {
        close(fd);
    }
    free(n.plan);
    return rc;
}
