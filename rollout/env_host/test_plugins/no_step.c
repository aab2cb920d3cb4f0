/* A plug-in whose environment lacks step(). */
#include <corral/env.h>

static enum corral_env_status describe(const char *args, struct corral_env_spec *spec, char *error,
                                       size_t room)
{
    (void)args, (void)spec, (void)error, (void)room;
    return CORRAL_ENV_UNSUPPORTED;
}
static enum corral_env_status create(const char *args, const struct corral_env_buffers *io,
                                     const struct corral_env_host *host, struct corral_env **out, char *error,
                                     size_t room)
{
    (void)args, (void)io, (void)host, (void)out, (void)error, (void)room;
    return CORRAL_ENV_UNSUPPORTED;
}
static void destroy(struct corral_env *env)
{
    (void)env;
}
static enum corral_env_status reset(struct corral_env *env, const uint32_t *ids, uint32_t count,
                                    const uint64_t *seeds)
{
    (void)env, (void)ids, (void)count, (void)seeds;
    return CORRAL_ENV_UNSUPPORTED;
}

static const struct corral_env_ops ops = {.size = sizeof ops,
                                          .id = "broken/NoStep-v0",
                                          .summary = "",
                                          .describe = describe,
                                          .create = create,
                                          .destroy = destroy,
                                          .reset = reset};
static const struct corral_env_ops *const list[] = {&ops};
CORRAL_ENV_PLUGIN(list);
