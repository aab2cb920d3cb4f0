/* The plug-in in a child process: a crash or a hang costs the episodes in flight and nothing else. */
#include "rollout/env_host/process_child.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Loading and creating may take so much longer than a step. */
enum { LOAD_EXTRA_MS = 10000 };

/* ---- bringing a child up ---- */

static void copy_text(const struct corral_process *p, char *out, size_t out_bytes)
{
    size_t n = strnlen(p->control->text, sizeof p->control->text);
    n = CORRAL_MIN(n, out_bytes - 1);
    memcpy(out, p->control->text, n);
    out[n] = '\0';
}

/* Start a child that has the plug-in loaded; its description goes to *spec. */
static enum corral_status load_child(struct corral_process *p, struct corral_env_spec *spec,
                                     struct corral_error *err)
{
    struct corral_process_control *control = p->control;
    memset(control, 0, offsetof(struct corral_process_control, args));
    control->magic = CORRAL_PROCESS_MAGIC;
    control->bytes = sizeof *control;
    memcpy(control->id, p->base.id, sizeof control->id);
    memcpy(control->library, p->library, sizeof control->library);
    p->sequence = 0;
    CORRAL_TRY(corral_process_spawn(p, err));
    CORRAL_TRY(corral_process_command(p, CORRAL_PROCESS_LOAD, LOAD_EXTRA_MS, "loading the plug-in", err));
    char text[sizeof control->text];
    copy_text(p, text, sizeof text);
    int32_t status = control->status;
    if (status != CORRAL_OK) {
        bool known = status > CORRAL_OK && status <= CORRAL_INTERNAL;
        return corral_fail(err, known ? (enum corral_status)status : CORRAL_PROTOCOL, "%s",
                           text[0] ? text : "the plug-in could not be loaded");
    }
    *spec = control->spec;
    memcpy(p->library, control->library, sizeof p->library);
    p->library[sizeof p->library - 1] = '\0';
    memcpy(p->base.id, control->id, sizeof p->base.id);
    p->base.id[sizeof p->base.id - 1] = '\0';
    return corral_env_spec_validate(p->base.id, spec, control->has_snapshots != 0, err);
}

static enum corral_status create_batch(struct corral_process *p, struct corral_error *err)
{
    p->control->layout = p->base.layout;
    memset(p->block, 0, p->base.layout.bytes);
    memset(p->base.buffers.active, 1, p->base.layout.rows);
    CORRAL_TRY(corral_process_command(p, CORRAL_PROCESS_CREATE, LOAD_EXTRA_MS, "create", err));
    int32_t status = p->control->status;
    char text[200];
    copy_text(p, text, sizeof text);
    return status == CORRAL_ENV_OK ? CORRAL_OK
                                   : corral_backend_plugin_error(p->base.id, "create", status, text, err);
}

/* A new child for the same batch. The description must not have changed: the buffers stay where they are. */
static enum corral_status bring_back(struct corral_process *p, struct corral_error *err)
{
    struct corral_env_spec spec;
    CORRAL_TRY(load_child(p, &spec, err));
    if (!corral_env_spec_equal(&spec, &p->base.spec)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "environment %s describes itself differently after a restart; was %s replaced?",
                           p->base.id, p->library);
    }
    return create_batch(p, err);
}

/* The child is gone or useless: replace it. `why` says what happened. */
static enum corral_backend_outcome replace_child(struct corral_process *p, const struct corral_error *why,
                                                 struct corral_error *err)
{
    struct corral_error last = *why;
    corral_process_kill(p);
    while (p->restarts_in_a_row < p->restarts_max) {
        p->restarts_in_a_row++;
        p->base.restarts++;
        p->good_steps = 0;
        if (bring_back(p, &last) == CORRAL_OK) {
            corral_fail(err, CORRAL_INFRA, "%s", why->text);
            return CORRAL_BACKEND_LOST;
        }
        corral_process_kill(p);
    }
    corral_fail(err, CORRAL_INFRA, "%s; gave up after %u restarts", last.text, p->restarts_in_a_row);
    return CORRAL_BACKEND_FAILED;
}

static enum corral_backend_outcome call(struct corral_process *p, enum corral_process_op op,
                                        const char *doing, struct corral_error *err)
{
    struct corral_error why = {0};
    if (p->pid == 0) {
        corral_fail(err, CORRAL_INFRA, "environment %s: its process is gone and its restarts are used up",
                    p->base.id);
        return CORRAL_BACKEND_FAILED;
    }
    if (corral_process_command(p, op, 0, doing, &why) != CORRAL_OK) {
        return replace_child(p, &why, err);
    }
    return CORRAL_BACKEND_OK;
}

/* A status for the whole batch means the batch is useless; a fresh child may do better. */
static enum corral_backend_outcome call_batch(struct corral_process *p, enum corral_process_op op, bool all,
                                              uint32_t count, const char *doing, struct corral_error *err)
{
    p->control->all = all;
    p->control->count = count;
    enum corral_backend_outcome outcome = call(p, op, doing, err);
    int32_t status = p->control->status;
    if (outcome == CORRAL_BACKEND_OK && status != CORRAL_ENV_OK) {
        struct corral_error why = {0};
        corral_backend_plugin_error(p->base.id, doing, status, NULL, &why);
        return replace_child(p, &why, err);
    }
    return outcome;
}

/* ---- the backend ---- */

static enum corral_backend_outcome process_reset(struct corral_env_backend *base, bool all, uint32_t count,
                                                 struct corral_error *err)
{
    return call_batch((struct corral_process *)base, CORRAL_PROCESS_RESET, all, count, "reset", err);
}

static enum corral_backend_outcome process_step(struct corral_env_backend *base, bool all, uint32_t count,
                                                struct corral_error *err)
{
    struct corral_process *p = (struct corral_process *)base;
    enum corral_backend_outcome outcome = call_batch(p, CORRAL_PROCESS_STEP, all, count, "step", err);
    if (outcome == CORRAL_BACKEND_OK && ++p->good_steps == CORRAL_BACKEND_FORGIVE_STEPS) {
        p->restarts_in_a_row = 0;
    }
    return outcome;
}

static enum corral_backend_outcome process_snapshot(struct corral_env_backend *base, uint32_t id,
                                                    void *buffer, size_t *bytes, bool *fits,
                                                    struct corral_error *err)
{
    struct corral_process *p = (struct corral_process *)base;
    p->control->env = id;
    p->control->room = *bytes;
    enum corral_backend_outcome outcome = call(p, CORRAL_PROCESS_SNAPSHOT, "snapshot", err);
    if (outcome != CORRAL_BACKEND_OK) {
        return outcome;
    }
    int32_t status = p->control->status;
    uint64_t used = p->control->result_bytes;
    *fits = status == CORRAL_ENV_OK;
    if (status != CORRAL_ENV_OK && status != CORRAL_ENV_TOO_SMALL) {
        corral_backend_plugin_error(p->base.id, "snapshot", status, NULL, err);
        return CORRAL_BACKEND_FAILED;
    }
    if (used > CORRAL_ENV_SNAPSHOT_BYTES_MAX ||
        (*fits && (used > *bytes || pread(p->snapshot, buffer, used, 0) != (ssize_t)used))) {
        corral_fail(err, CORRAL_INVALID,
                    "environment %s: snapshot() reports %llu bytes, with room for %zu and a limit of %u",
                    base->id, (unsigned long long)used, *bytes, CORRAL_ENV_SNAPSHOT_BYTES_MAX);
        return CORRAL_BACKEND_FAILED;
    }
    *bytes = used;
    return CORRAL_BACKEND_OK;
}

static enum corral_backend_outcome process_restore(struct corral_env_backend *base, uint32_t id,
                                                   const void *buffer, size_t bytes, struct corral_error *err)
{
    struct corral_process *p = (struct corral_process *)base;
    if (ftruncate(p->snapshot, 0) != 0 || pwrite(p->snapshot, buffer, bytes, 0) != (ssize_t)bytes) {
        corral_fail_sys(err, errno, "environment %s: cannot hand over a snapshot of %zu bytes", base->id,
                        bytes);
        return CORRAL_BACKEND_FAILED;
    }
    p->control->env = id;
    p->control->room = bytes;
    enum corral_backend_outcome outcome = call(p, CORRAL_PROCESS_RESTORE, "restore", err);
    int32_t status = p->control->status;
    if (outcome == CORRAL_BACKEND_OK && status != CORRAL_ENV_OK) {
        corral_backend_plugin_error(p->base.id, "restore", status, NULL, err);
        return CORRAL_BACKEND_FAILED;
    }
    return outcome;
}

static void process_destroy(struct corral_env_backend *base)
{
    struct corral_process *p = (struct corral_process *)base;
    corral_process_quit(p);
    if (p->block != NULL) {
        munmap(p->block, p->base.layout.bytes);
    }
    if (p->control != NULL) {
        munmap(p->control, CORRAL_PROCESS_CONTROL_BYTES);
    }
    if (p->block_charge != NULL) {
        corral_release(p->memory, p->block_charge, p->base.layout.bytes);
    }
    corral_cleanup_close(&p->shared);
    corral_cleanup_close(&p->snapshot);
    corral_cleanup_close(&p->parent_fd);
    free(p);
}

static const struct corral_backend_ops process_ops = {
    .reset = process_reset,
    .step = process_step,
    .snapshot = process_snapshot,
    .restore = process_restore,
    .destroy = process_destroy,
};

static int above_standard(int fd)
{
    if (fd < 0) {
        return fd;
    }
    /* The numbers the child expects must not be clobbered while they are being put in place. */
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 16);
    close(fd);
    return moved;
}

static enum corral_status make_files(struct corral_process *p, struct corral_error *err)
{
    p->shared = above_standard(memfd_create("corral-env", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    p->snapshot = above_standard(memfd_create("corral-env-snapshot", MFD_CLOEXEC));
    p->parent_fd = above_standard((int)syscall(SYS_pidfd_open, getpid(), 0));
    if (p->shared < 0 || p->snapshot < 0 || p->parent_fd < 0 ||
        ftruncate(p->shared, CORRAL_PROCESS_CONTROL_BYTES) != 0) {
        return corral_fail_sys(err, errno, "cannot set up the memory shared with the environment process");
    }
    void *control =
        mmap(NULL, CORRAL_PROCESS_CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, p->shared, 0);
    if (control == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map the memory shared with the environment process");
    }
    p->control = control;
    return CORRAL_OK;
}

/* The pages are taken now (a full memory fails here, not as SIGBUS later) and the size is sealed (the child cannot cut it off under us). */
static enum corral_status make_block(struct corral_process *p, uint32_t envs, struct corral_error *err)
{
    CORRAL_TRY(corral_env_layout_build(&p->base.layout, &p->base.spec, envs, err));
    uint64_t bytes = p->base.layout.bytes;
    if (p->charges_real) {
        CORRAL_TRY(corral_alloc(p->memory, bytes, "environment buffers", &p->block_charge, err));
    }
    int rc = posix_fallocate(p->shared, 0, (off_t)(CORRAL_PROCESS_CONTROL_BYTES + bytes));
    if (rc != 0) {
        return corral_fail_sys(err, rc, "cannot get %llu bytes of shared memory for the buffers of %s",
                               (unsigned long long)bytes, p->base.id);
    }
    if (fcntl(p->shared, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return corral_fail_sys(err, errno, "cannot seal the memory shared with the environment process");
    }
    void *block =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->shared, CORRAL_PROCESS_CONTROL_BYTES);
    if (block == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map the buffers of %s", p->base.id);
    }
    p->block = block;
    corral_backend_bind(&p->base, block);
    return CORRAL_OK;
}

static enum corral_status take_names(struct corral_process *p, const struct corral_vec_config *config,
                                     struct corral_error *err)
{
    const char *id = config->id ? config->id : "", *library = config->library ? config->library : "";
    if (strlen(id) >= sizeof p->base.id || strlen(library) >= sizeof p->library ||
        strlen(config->args_json) > CORRAL_ENV_ARGS_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "environment %.60s: its id, plug-in path or arguments are too long (at most %zu, "
                           "%zu and %u characters)",
                           id, sizeof p->base.id - 1, sizeof p->library - 1, CORRAL_ENV_ARGS_BYTES_MAX);
    }
    memcpy(p->base.id, id, strlen(id));
    memcpy(p->library, library, strlen(library));
    return CORRAL_OK;
}

enum corral_status corral_backend_process(struct corral_env_backend **out,
                                          const struct corral_vec_config *config, struct corral_error *err)
{
    struct corral_process *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot host the environment %s: out of memory",
                           config->id ? config->id : "");
    }
    p->base.ops = &process_ops;
    p->shared = p->snapshot = p->parent_fd = p->pidfd = -1;
    CORRAL_CLEANUP(corral_backend_destroyp) struct corral_env_backend *guard = &p->base;
    p->memory = config->memory;
    p->charges_real = p->memory != &corral_allocator_heap;
    p->step_timeout_ms = config->step_timeout_ms ? config->step_timeout_ms : CORRAL_VEC_STEP_TIMEOUT_MS;
    p->restarts_max = config->restarts_max;
    CORRAL_TRY(take_names(p, config, err));
    CORRAL_TRY(corral_env_host_program(p->program, sizeof p->program, err));
    CORRAL_TRY(make_files(p, err));
    memcpy(p->control->args, config->args_json, strlen(config->args_json) + 1);
    CORRAL_TRY(load_child(p, &p->base.spec, err));
    CORRAL_TRY(make_block(p, config->envs, err));
    CORRAL_TRY(create_batch(p, err));
    *out = CORRAL_STEAL(guard);
    return CORRAL_OK;
}
