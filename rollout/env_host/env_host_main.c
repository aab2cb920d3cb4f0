/* corral-env-host: the child process of a vector in process isolation. Started by vec_process.c only, with its descriptors in place. */
#include "base/log.h"
#include "base/sync.h"
#include "rollout/env_host/process_protocol.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 200 };

struct child {
    struct corral_process_control *control;
    struct corral_env_def *def;
    struct corral_env *env;
    void *block;
    struct corral_env_layout layout; /* this process's own copy */
    struct corral_env_buffers buffers;
    const uint32_t *ids;
    const uint64_t *seeds;
    pthread_mutex_t requests; /* plug-ins may call the host's services from threads of their own */
};

/* ---- life and death ---- */

/* Ends this process with its parent, even while the plug-in hangs. PR_SET_PDEATHSIG would fire when the thread that started us ends, which may be long before the
 * process does. */
static void *watch_parent(void *unused)
{
    (void)unused;
    struct pollfd p = {.fd = CORRAL_PROCESS_FD_PARENT, .events = POLLIN};
    while (poll(&p, 1, -1) < 0 && errno == EINTR) {
    }
    _exit(0);
}

static bool start_watch(void)
{
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    bool ok = pthread_create(&thread, &attr, watch_parent, NULL) == 0;
    pthread_attr_destroy(&attr);
    return ok;
}

/* ---- services for the plug-in ---- */

static void raise_event(struct corral_process_control *control)
{
    /* release: pairs with the parent's acquire load of event, which then reads results or request */
    atomic_fetch_add_explicit(&control->event, 1, memory_order_release);
    corral_futex_wake_all(&control->event);
}

static bool ask(struct child *c, enum corral_process_request what, size_t bytes)
{
    pthread_mutex_lock(&c->requests);
    struct corral_process_control *control = c->control;
    uint32_t before = atomic_load_explicit(&control->answer, memory_order_relaxed);
    control->request_bytes = bytes;
    atomic_store_explicit(&control->request, what, memory_order_relaxed); /* published by raise_event */
    raise_event(control);
    /* acquire: pairs with the parent's release of answer, which makes `granted` visible */
    while (atomic_load_explicit(&control->answer, memory_order_acquire) == before) {
        corral_futex_wait(&control->answer, before, UINT64_MAX);
    }
    bool granted = control->granted;
    pthread_mutex_unlock(&c->requests);
    return granted;
}

static void *host_alloc(void *ctx, size_t bytes)
{
    if (!ask(ctx, CORRAL_PROCESS_ASK_CHARGE, bytes)) {
        return NULL;
    }
    void *memory = NULL;
    if (corral_alloc(&corral_allocator_heap, bytes, "environment", &memory, NULL) != CORRAL_OK) {
        ask(ctx, CORRAL_PROCESS_ASK_RELEASE, bytes);
        return NULL;
    }
    return memory;
}

static void host_release(void *ctx, void *memory, size_t bytes)
{
    if (memory != NULL) {
        corral_release(&corral_allocator_heap, memory, bytes);
        ask(ctx, CORRAL_PROCESS_ASK_RELEASE, bytes);
    }
}

static void host_log(void *ctx, int level, const char *message)
{
    const struct child *c = ctx;
    enum corral_log_level at = level <= 0   ? CORRAL_LOG_DEBUG
                               : level == 1 ? CORRAL_LOG_INFO
                               : level == 2 ? CORRAL_LOG_WARN
                                            : CORRAL_LOG_ERROR;
    CORRAL_LOG_AT(at, "environment says", LOG_STR("env", c->def->id),
                  LOG_STR("message", message ? message : ""));
}

/* ---- commands ---- */

static void do_load(struct child *c)
{
    struct corral_process_control *control = c->control;
    struct corral_error err = {0};
    struct corral_env_spec spec;
    enum corral_status status = corral_env_open(&c->def, control->id[0] ? control->id : NULL,
                                                control->library[0] ? control->library : NULL, &err);
    if (status == CORRAL_OK) {
        status = corral_env_describe(&c->def->ops, control->args, &spec, &err);
    }
    if (status == CORRAL_OK) {
        control->spec = spec;
        control->has_snapshots = c->def->ops.snapshot != NULL && c->def->ops.restore != NULL;
        memcpy(control->id, c->def->id, sizeof control->id);
        memcpy(control->library, c->def->path, sizeof control->library);
    }
    snprintf(control->text, sizeof control->text, "%.*s", (int)sizeof control->text - 1, err.text);
    control->status = (int32_t)status;
}

static enum corral_env_status do_create(struct child *c)
{
    static struct corral_env_host host;
    struct corral_process_control *control = c->control;
    c->layout = control->layout;
    void *block = mmap(NULL, c->layout.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, CORRAL_PROCESS_FD_SHARED,
                       CORRAL_PROCESS_CONTROL_BYTES);
    if (c->def == NULL || block == MAP_FAILED) {
        snprintf(control->text, sizeof control->text, "cannot map the buffers: %s", strerror(errno));
        return CORRAL_ENV_NOMEM;
    }
    c->block = block;
    corral_env_layout_bind(&c->layout, block, &c->buffers);
    c->ids = (const uint32_t *)(const void *)((char *)block + c->layout.ids);
    c->seeds = (const uint64_t *)(const void *)((char *)block + c->layout.seeds);
    host = (struct corral_env_host){
        .size = sizeof host, .ctx = c, .log = host_log, .alloc = host_alloc, .release = host_release};
    char text[256] = "";
    enum corral_env_status status =
        c->def->ops.create(control->args, &c->buffers, &host, &c->env, text, sizeof text);
    text[sizeof text - 1] = '\0';
    if (status == CORRAL_ENV_OK && c->env == NULL) {
        snprintf(text, sizeof text, "it made no batch");
        status = CORRAL_ENV_INVALID;
    }
    snprintf(control->text, sizeof control->text, "%s", text);
    return status;
}

static enum corral_env_status do_snapshot(struct child *c)
{
    struct corral_process_control *control = c->control;
    size_t room = CORRAL_MIN(control->room, (uint64_t)CORRAL_ENV_SNAPSHOT_BYTES_MAX), used = room;
    CORRAL_AUTO_FREE char *buffer = malloc(room + 1);
    if (buffer == NULL) {
        return CORRAL_ENV_NOMEM;
    }
    enum corral_env_status status = c->def->ops.snapshot(c->env, control->env, buffer, &used);
    control->result_bytes = used;
    if (status != CORRAL_ENV_OK || used > room) {
        return status;
    }
    if (ftruncate(CORRAL_PROCESS_FD_SNAPSHOT, 0) != 0 ||
        pwrite(CORRAL_PROCESS_FD_SNAPSHOT, buffer, used, 0) != (ssize_t)used) {
        return CORRAL_ENV_NOMEM;
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status do_restore(struct child *c)
{
    struct corral_process_control *control = c->control;
    size_t bytes = CORRAL_MIN(control->room, (uint64_t)CORRAL_ENV_SNAPSHOT_BYTES_MAX);
    CORRAL_AUTO_FREE char *buffer = malloc(bytes + 1);
    if (buffer == NULL || pread(CORRAL_PROCESS_FD_SNAPSHOT, buffer, bytes, 0) != (ssize_t)bytes) {
        return CORRAL_ENV_NOMEM;
    }
    return c->def->ops.restore(c->env, control->env, buffer, bytes);
}

static bool perform(struct child *c)
{
    struct corral_process_control *control = c->control;
    control->text[0] = '\0';
    switch (control->op) {
    case CORRAL_PROCESS_LOAD:
        do_load(c);
        return true;
    case CORRAL_PROCESS_CREATE:
        control->status = do_create(c);
        return true;
    case CORRAL_PROCESS_RESET:
        control->status = c->def->ops.reset(c->env, control->all ? NULL : c->ids, control->count, c->seeds);
        return true;
    case CORRAL_PROCESS_STEP:
        control->status = c->def->ops.step(c->env, control->all ? NULL : c->ids, control->count);
        return true;
    case CORRAL_PROCESS_SNAPSHOT:
        control->status = do_snapshot(c);
        return true;
    case CORRAL_PROCESS_RESTORE:
        control->status = do_restore(c);
        return true;
    default:
        return false;
    }
}

static void serve(struct child *c)
{
    struct corral_process_control *control = c->control;
    for (uint32_t last = 0;;) {
        uint32_t now = last;
        for (int i = 0; i < SPINS && now == last; i++) {
            /* acquire: pairs with the parent's release of command, which makes the arguments visible */
            now = atomic_load_explicit(&control->command, memory_order_acquire);
        }
        if (now == last) {
            corral_futex_wait(&control->command, last, UINT64_MAX);
            continue;
        }
        last = now;
        if (!perform(c)) {
            return;
        }
        atomic_store_explicit(&control->done, now, memory_order_relaxed); /* published by raise_event */
        raise_event(control);
    }
}

int main(void)
{
    /* The parent decides when this ends; an interrupt typed at the terminal reaches the whole process group. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_NAME, "corral-env-host");
    syscall(SYS_close_range, CORRAL_PROCESS_FD_PARENT + 1, ~0u, 0);
    struct stat st;
    if (fstat(CORRAL_PROCESS_FD_SHARED, &st) != 0 || st.st_size < (off_t)CORRAL_PROCESS_CONTROL_BYTES ||
        fcntl(CORRAL_PROCESS_FD_PARENT, F_GETFD) < 0) {
        fprintf(stderr, "corral-env-host runs environments for a rollout worker, which starts it; there is "
                        "nothing to run here by hand\n");
        return 2;
    }
    dup2(STDERR_FILENO,
         STDOUT_FILENO); /* results belong to the parent's stdout; a plug-in's chatter does not */
    static struct child c = {.requests = PTHREAD_MUTEX_INITIALIZER};
    void *control = mmap(NULL, CORRAL_PROCESS_CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                         CORRAL_PROCESS_FD_SHARED, 0);
    if (control == MAP_FAILED || !start_watch()) {
        return 1;
    }
    c.control = control;
    if (c.control->magic != CORRAL_PROCESS_MAGIC || c.control->bytes != sizeof *c.control) {
        fprintf(stderr, "corral-env-host is of another build than the program that started it\n");
        return 1;
    }
    serve(&c);
    if (c.env != NULL) {
        c.def->ops.destroy(c.env);
    }
    corral_env_close(c.def);
    return 0;
}
