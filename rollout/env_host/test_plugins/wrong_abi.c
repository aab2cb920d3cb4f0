/* A plug-in of a later ABI. */
#include <corral/env.h>

CORRAL_ENV_EXPORT extern const struct corral_env_plugin corral_env_plugin_v1;
const struct corral_env_plugin corral_env_plugin_v1 = {sizeof(struct corral_env_plugin), CORRAL_ENV_ABI + 1,
                                                       1, 0, NULL};
