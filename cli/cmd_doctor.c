/* rlctl doctor: what this machine has, each fence tried, and what runs that are gone have left behind. */
#include "base/json.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/doctor_gpu.h"
#include "cli/set_args.h"
#include "orchestrator/inventory/inventory.h"
#include "quota/fences/fence.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define LEFTOVERS_MAX 256
#define NOFILE_LEAST 1024 /* a node's agent holds about four descriptors per worker */

struct machine {
    struct corral_inventory inventory;
    char kernel[160], kernel_trouble[160], cgroups[200];
    uint64_t shm_bytes, shm_free;
    bool shm;
    struct rlimit memlock, nofile;
};

struct examination {
    struct machine machine;
    struct corral_fence_report fences;
    struct corral_fence_leftover leftover[LEFTOVERS_MAX];
    bool removed[LEFTOVERS_MAX];
    char removal_error[LEFTOVERS_MAX][200];
    uint32_t leftover_count, leftover_shown;
    bool clean;
};

/* Beside the fences, for whoever wonders. */
static const struct {
    const char *name, *why;
} not_used[] = {
    {"driver memory limits",
     "nvidia-smi memory-limits and its library call need driver 615 or later and root"},
    {"green contexts", "they divide the processors of one process; roles are processes of their own"},
};

static void help(void)
{
    printf(
        "Usage: rlctl doctor [--clean] [--json]\n\n"
        "Shows what this machine has and tries every fence with a process of its own: ok, absent (with what "
        "to do "
        "about\nit) or FAILED. Lists groups that runs which are gone have left.\n\n"
        "      --clean     remove those groups, and what still runs in them\n"
        "  -j, --json      machine-readable\n"
        "  -h, --help      this text\n\n"
        "Exit code 0: jobs on host devices can run here; 1: something is broken (absent is not broken).\n\n"
        "Examples:\n"
        "  rlctl doctor\n"
        "  rlctl doctor --json | jq -r '.fences[] | select(.state != \"ok\") | .name + \": \" + .detail'\n");
}

/* ---- looking ---- */

static void look_at_kernel(struct machine *m)
{
    struct utsname u;
    snprintf(m->kernel, sizeof m->kernel, "unknown");
    if (uname(&u) == 0) {
        snprintf(m->kernel, sizeof m->kernel, "%.60s %.60s", u.sysname, u.release);
    }
    CORRAL_AUTO_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (pidfd < 0) {
        snprintf(m->kernel_trouble, sizeof m->kernel_trouble,
                 "no pidfd_open: %s; Linux 5.3 or later is needed", strerror(errno));
        return;
    }
    CORRAL_AUTO_CLOSE int memory = memfd_create("corral-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory < 0) {
        snprintf(m->kernel_trouble, sizeof m->kernel_trouble, "no sealed shared memory (memfd_create): %s",
                 strerror(errno));
    }
}

static enum corral_status look_at_machine(struct machine *m, struct corral_error *err)
{
    struct statvfs shm;
    CORRAL_TRY(corral_inventory_read(&m->inventory, err));
    look_at_kernel(m);
    corral_fence_cgroups_line(m->cgroups, sizeof m->cgroups);
    m->shm = statvfs("/dev/shm", &shm) == 0;
    if (m->shm) {
        m->shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
        m->shm_free = (uint64_t)shm.f_bavail * shm.f_frsize;
    }
    if (getrlimit(RLIMIT_MEMLOCK, &m->memlock) != 0 || getrlimit(RLIMIT_NOFILE, &m->nofile) != 0) {
        return corral_fail_sys(err, errno, "reading this process's limits");
    }
    return CORRAL_OK;
}

static void look_for_leftovers(struct examination *e)
{
    e->leftover_count = corral_fence_leftovers(e->leftover, LEFTOVERS_MAX);
    e->leftover_shown = CORRAL_MIN(e->leftover_count, (uint32_t)LEFTOVERS_MAX);
    for (uint32_t i = 0; e->clean && i < e->leftover_shown; i++) {
        struct corral_error err = {0};
        e->removed[i] = corral_fence_leftover_remove(&e->leftover[i], &err) == CORRAL_OK;
        snprintf(e->removal_error[i], sizeof e->removal_error[i], "%.199s", err.text);
    }
}

/* What is in the way of a job on host devices, or claims to be there and does not hold. NULL: nothing. */
static const char *trouble(const struct examination *e)
{
    if (e->machine.kernel_trouble[0]) {
        return e->machine.kernel_trouble;
    }
    for (uint32_t i = 0; i < e->fences.count; i++) {
        const struct corral_fence_status *f = &e->fences.fence[i];
        bool needed = strcmp(f->name, "ledger") == 0 || strcmp(f->name, "affinity") == 0;
        if (f->state == CORRAL_FENCE_FAILED || (needed && f->state != CORRAL_FENCE_LIVE)) {
            return f->detail;
        }
    }
    for (uint32_t i = 0; i < e->leftover_shown; i++) {
        if (e->clean && !e->removed[i]) {
            return e->removal_error[i];
        }
    }
    return NULL;
}

/* ---- telling ---- */

static const char *state_name(enum corral_fence_state state)
{
    return state == CORRAL_FENCE_LIVE ? "ok" : state == CORRAL_FENCE_ABSENT ? "absent" : "FAILED";
}

static const char *limit_text(rlim_t limit, bool bytes, char *out, size_t out_bytes)
{
    if (limit == RLIM_INFINITY) {
        snprintf(out, out_bytes, "unlimited");
    } else if (bytes) {
        corral_format_bytes(limit, out, out_bytes);
    } else {
        snprintf(out, out_bytes, "%" PRIu64, (uint64_t)limit);
    }
    return out;
}

static void print_machine(const struct machine *m)
{
    char a[48], b[48];
    printf("%-14s %s%s%s\n", "kernel", m->kernel, m->kernel_trouble[0] ? "  FAILED: " : "",
           m->kernel_trouble);
    printf("%-14s %u usable\n", "cpus", m->inventory.cpu_count);
    printf("%-14s %s (%s available)\n", "memory", corral_format_bytes(m->inventory.memory_total, a, sizeof a),
           corral_format_bytes(m->inventory.memory_available, b, sizeof b));
    if (m->inventory.gpu_count == 0) {
        printf("%-14s none (%s)\n", "gpus", m->inventory.gpu_note);
    } else {
        printf("%-14s %u, driver %s\n", "gpus", m->inventory.gpu_count, m->inventory.driver);
    }
    printf("%-14s %s\n", "cgroups", m->cgroups);
    if (m->shm) {
        printf("%-14s %s (%s free)\n", "/dev/shm", corral_format_bytes(m->shm_bytes, a, sizeof a),
               corral_format_bytes(m->shm_free, b, sizeof b));
    } else {
        printf("%-14s none\n", "/dev/shm");
    }
    printf("%-14s %s\n", "locked memory", limit_text(m->memlock.rlim_cur, true, a, sizeof a));
    printf("%-14s %s%s\n", "open files", limit_text(m->nofile.rlim_cur, false, a, sizeof a),
           m->nofile.rlim_cur < NOFILE_LEAST ? "  low: raise it with `ulimit -n`" : "");
}

static void print_leftovers(const struct examination *e)
{
    if (e->leftover_count == 0) {
        printf("\nNo run that is gone has left a group.\n");
        return;
    }
    printf("\n%-18s %-12s %9s  %s\n", "LEFT BY RUN", "NODE", "PROCESSES", "GROUP");
    for (uint32_t i = 0; i < e->leftover_shown; i++) {
        const struct corral_fence_leftover *l = &e->leftover[i];
        printf("%016" PRIx64 "   %-12s %9u  %s%s%s\n", l->run, l->node, l->processes, l->path,
               e->removed[i] ? "  removed"
               : e->clean    ? "  NOT removed: "
                             : "",
               e->clean ? e->removal_error[i] : "");
    }
    if (e->leftover_count > e->leftover_shown) {
        printf("and %u more\n", e->leftover_count - e->leftover_shown);
    }
    if (!e->clean) {
        printf("`rlctl doctor --clean` removes them.\n");
    }
}

static void print_text(const struct examination *e)
{
    print_machine(&e->machine);
    printf("\n%-14s %-8s\n", "FENCE", "STATE");
    for (uint32_t i = 0; i < e->fences.count; i++) {
        const struct corral_fence_status *f = &e->fences.fence[i];
        printf("%-14s %-8s %s\n", f->name, state_name(f->state), f->detail);
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(not_used); i++) {
        printf("%s%s: %s\n", i == 0 ? "Not used: " : "          ", not_used[i].name, not_used[i].why);
    }
    print_leftovers(e);
    const char *broken = trouble(e);
    printf("\n%s%s\n", broken ? "Broken: " : "Jobs on host devices can run here.", broken ? broken : "");
}

static json_t *limit_json(rlim_t limit)
{
    return limit == RLIM_INFINITY ? json_null() : json_integer((json_int_t)limit);
}

static json_t *fences_json(const struct examination *e)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < e->fences.count; i++) {
        const struct corral_fence_status *f = &e->fences.fence[i];
        json_array_append_new(rows,
                              json_pack("{s:s, s:s, s:s}", "name", f->name, "state",
                                        f->state == CORRAL_FENCE_FAILED ? "failed" : state_name(f->state),
                                        "detail", f->detail));
    }
    return rows;
}

static json_t *leftovers_json(const struct examination *e)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < e->leftover_shown; i++) {
        const struct corral_fence_leftover *l = &e->leftover[i];
        char run[17];
        snprintf(run, sizeof run, "%016" PRIx64, l->run);
        json_array_append_new(rows, json_pack("{s:s, s:s, s:I, s:s, s:b}", "run", run, "node", l->node,
                                              "processes", (json_int_t)l->processes, "group", l->path,
                                              "removed", e->removed[i]));
    }
    return rows;
}

static enum corral_status print_json(const struct examination *e, struct corral_error *err)
{
    const struct machine *m = &e->machine;
    const char *broken = trouble(e);
    json_t *unused = json_array();
    for (size_t i = 0; i < CORRAL_COUNT_OF(not_used); i++) {
        json_array_append_new(unused,
                              json_pack("{s:s, s:s}", "name", not_used[i].name, "why", not_used[i].why));
    }
    json_t *machine = json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:s, s:s, s:o, s:o, s:o, s:o}", "kernel", m->kernel, "cpus",
        (json_int_t)m->inventory.cpu_count, "memory", (json_int_t)m->inventory.memory_total, "gpus",
        (json_int_t)m->inventory.gpu_count, "gpu_note", m->inventory.gpu_note, "driver", m->inventory.driver,
        "cgroups", m->cgroups, "shm_bytes", m->shm ? json_integer((json_int_t)m->shm_bytes) : json_null(),
        "shm_free", m->shm ? json_integer((json_int_t)m->shm_free) : json_null(), "memlock",
        limit_json(m->memlock.rlim_cur), "nofile", limit_json(m->nofile.rlim_cur));
    json_t *root =
        json_pack("{s:b, s:s?, s:o?, s:o?, s:o?, s:o?}", "ok", broken == NULL, "broken", broken, "machine",
                  machine, "fences", fences_json(e), "not_used", unused, "leftovers", leftovers_json(e));
    enum corral_status status =
        root ? corral_json_print(stdout, root, err)
             : corral_fail(err, CORRAL_NOMEM, "cannot print the findings: out of memory");
    json_decref(root);
    return status;
}

static int examine(bool clean, bool json)
{
    struct corral_error err;
    CORRAL_AUTO_FREE struct examination *e = calloc(1, sizeof *e);
    if (!e) {
        (void)corral_fail(&err, CORRAL_NOMEM, "out of memory");
        return corral_cli_fail(&err);
    }
    e->clean = clean;
    corral_fence_canary_is("/proc/self/exe");
    enum corral_status status = look_at_machine(&e->machine, &err);
    if (status == CORRAL_OK) {
        status = corral_fences_try(&e->fences, &err);
    }
    if (status == CORRAL_OK) {
        corral_doctor_try_interposer(&e->machine.inventory, &e->fences);
        look_for_leftovers(e);
        status = json ? print_json(e, &err) : CORRAL_OK;
    }
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    if (!json) {
        print_text(e);
    }
    int flushed = cli_flush();
    return trouble(e) ? CORRAL_EXIT_FAILED : flushed;
}

int corral_cmd_doctor(int argc, char **argv)
{
    static const struct option options[] = {{"clean", no_argument, NULL, 'c'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    bool clean = false, json = false;
    int option;
    optind = 0; /* starts getopt afresh */
    opterr = 0;
    while ((option = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            clean = true;
            break;
        case 'j':
            json = true;
            break;
        case 'h':
            help();
            return cli_flush();
        default:
            return corral_cli_usage("doctor", "unknown option %s", argv[optind - 1]);
        }
    }
    if (optind < argc) {
        return corral_cli_usage("doctor", "it takes no argument; it looks at this machine");
    }
    return examine(clean, json);
}
