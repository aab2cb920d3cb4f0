/* A shared object that is no plug-in. */
#include <corral/env.h>

CORRAL_ENV_EXPORT extern const int corral_env_something_else;
const int corral_env_something_else = 1;
