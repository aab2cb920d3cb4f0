#include "base/log.h"
#include "rollout/env_host/backend.h"
#include <stdlib.h>
#include <string.h>

struct in_process {
    struct corral_env_backend base;
    const struct corral_allocator *memory;
    struct corral_env_def *def;
    struct corral_env *env;
    void *block;
    struct corral_env_host host;
};

void corral_backend_bind(struct corral_env_backend *b, void *block)
{
    corral_env_layout_bind(&b->layout, block, &b->buffers);
    b->action = (char *)block + b->layout.action;
    b->ids = (uint32_t *)(void *)((char *)block + b->layout.ids);
    b->seeds = (uint64_t *)(void *)((char *)block + b->layout.seeds);
}

enum corral_status corral_backend_plugin_error(const char *id, const char *what, int plugin_status,
                                               const char *text, struct corral_error *err)
{
    enum corral_status status = CORRAL_INFRA;
    switch (plugin_status) {
    case CORRAL_ENV_INVALID:
    case CORRAL_ENV_TASK:
        status = CORRAL_INVALID;
        break;
    case CORRAL_ENV_NOMEM:
        status = CORRAL_NOMEM;
        break;
    case CORRAL_ENV_UNSUPPORTED:
        status = CORRAL_UNSUPPORTED;
        break;
    default:
        break;
    }
    return corral_fail(err, status, "environment %s: %s failed for the whole batch: %s (%s, %d)", id, what,
                       text && text[0] ? text : "no reason given", corral_env_status_name(plugin_status),
                       plugin_status);
}

static void host_log(void *ctx, int level, const char *message)
{
    const struct in_process *b = ctx;
    enum corral_log_level at = level <= 0   ? CORRAL_LOG_DEBUG
                               : level == 1 ? CORRAL_LOG_INFO
                               : level == 2 ? CORRAL_LOG_WARN
                                            : CORRAL_LOG_ERROR;
    CORRAL_LOG_AT(at, "environment says", LOG_STR("env", b->base.id),
                  LOG_STR("message", message ? message : ""));
}

static void *host_alloc(void *ctx, size_t bytes)
{
    const struct in_process *b = ctx;
    void *memory = NULL;
    return corral_alloc(b->memory, bytes, "environment", &memory, NULL) == CORRAL_OK ? memory : NULL;
}

static void host_release(void *ctx, void *memory, size_t bytes)
{
    const struct in_process *b = ctx;
    corral_release(b->memory, memory, bytes);
}

static enum corral_backend_outcome outcome(struct in_process *b, const char *what,
                                           enum corral_env_status status, struct corral_error *err)
{
    if (status == CORRAL_ENV_OK) {
        return CORRAL_BACKEND_OK;
    }
    corral_backend_plugin_error(b->base.id, what, status, NULL, err);
    return CORRAL_BACKEND_FAILED;
}

static enum corral_backend_outcome in_process_reset(struct corral_env_backend *base, bool all, uint32_t count,
                                                    struct corral_error *err)
{
    struct in_process *b = (struct in_process *)base;
    return outcome(b, "reset", b->def->ops.reset(b->env, all ? NULL : base->ids, count, base->seeds), err);
}

static enum corral_backend_outcome in_process_step(struct corral_env_backend *base, bool all, uint32_t count,
                                                   struct corral_error *err)
{
    struct in_process *b = (struct in_process *)base;
    return outcome(b, "step", b->def->ops.step(b->env, all ? NULL : base->ids, count), err);
}

static enum corral_backend_outcome in_process_snapshot(struct corral_env_backend *base, uint32_t id,
                                                       void *buffer, size_t *bytes, bool *fits,
                                                       struct corral_error *err)
{
    struct in_process *b = (struct in_process *)base;
    size_t room = *bytes, used = room;
    enum corral_env_status status = b->def->ops.snapshot(b->env, id, buffer, &used);
    *fits = status == CORRAL_ENV_OK;
    if (used > CORRAL_ENV_SNAPSHOT_BYTES_MAX || (*fits && used > room)) {
        corral_fail(err, CORRAL_INVALID,
                    "environment %s: snapshot() reports %zu bytes, with room for %zu and a limit of %u",
                    base->id, used, room, CORRAL_ENV_SNAPSHOT_BYTES_MAX);
        return CORRAL_BACKEND_FAILED;
    }
    *bytes = used;
    return status == CORRAL_ENV_TOO_SMALL ? CORRAL_BACKEND_OK : outcome(b, "snapshot", status, err);
}

static enum corral_backend_outcome in_process_restore(struct corral_env_backend *base, uint32_t id,
                                                      const void *buffer, size_t bytes,
                                                      struct corral_error *err)
{
    struct in_process *b = (struct in_process *)base;
    return outcome(b, "restore", b->def->ops.restore(b->env, id, buffer, bytes), err);
}

static void in_process_destroy(struct corral_env_backend *base)
{
    struct in_process *b = (struct in_process *)base;
    if (b->env != NULL) {
        b->def->ops.destroy(b->env);
    }
    if (b->block != NULL) {
        corral_release(b->memory, b->block, b->base.layout.bytes);
    }
    corral_env_close(b->def);
    free(b);
}

static const struct corral_backend_ops in_process_ops = {
    .reset = in_process_reset,
    .step = in_process_step,
    .snapshot = in_process_snapshot,
    .restore = in_process_restore,
    .destroy = in_process_destroy,
};

enum corral_status corral_backend_in_process(struct corral_env_backend **out,
                                             const struct corral_vec_config *config, struct corral_error *err)
{
    struct in_process *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot host the environment %s: out of memory",
                           config->id ? config->id : "");
    }
    made->base.ops = &in_process_ops;
    CORRAL_CLEANUP(corral_backend_destroyp) struct corral_env_backend *guard = &made->base;
    struct in_process *b = made;
    b->memory = config->memory;
    CORRAL_TRY(corral_env_open(&b->def, config->id, config->library, err));
    memcpy(b->base.id, b->def->id, sizeof b->base.id);
    CORRAL_TRY(corral_env_describe(&b->def->ops, config->args_json, &b->base.spec, err));
    CORRAL_TRY(corral_env_layout_build(&b->base.layout, &b->base.spec, config->envs, err));
    CORRAL_TRY(corral_alloc(b->memory, b->base.layout.bytes, "environment buffers", &b->block, err));
    corral_backend_bind(&b->base, b->block);
    b->host = (struct corral_env_host){
        .size = sizeof b->host, .ctx = b, .log = host_log, .alloc = host_alloc, .release = host_release};
    char text[256] = "";
    struct corral_env *env = NULL;
    enum corral_env_status status = b->def->ops.create(config->args_json ? config->args_json : "{}",
                                                       &b->base.buffers, &b->host, &env, text, sizeof text);
    text[sizeof text - 1] = '\0';
    if (status != CORRAL_ENV_OK || env == NULL) {
        return corral_backend_plugin_error(b->base.id, "create", status,
                                           status == CORRAL_ENV_OK ? "it made no batch" : text, err);
    }
    b->env = env;
    *out = CORRAL_STEAL(guard);
    return CORRAL_OK;
}
