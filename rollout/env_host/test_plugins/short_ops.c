/* A plug-in that forgot .size. */
#include <corral/env.h>

static const struct corral_env_ops ops = {.size = 0, .id = "broken/ShortOps-v0"};
static const struct corral_env_ops *const list[] = {&ops};
CORRAL_ENV_PLUGIN(list);
