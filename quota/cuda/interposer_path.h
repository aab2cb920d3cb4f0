/* Where libcorral-quota.so is, for whoever starts processes with it. */
#ifndef CORRAL_QUOTA_CUDA_INTERPOSER_PATH_H
#define CORRAL_QUOTA_CUDA_INTERPOSER_PATH_H

#include "base/error.h"

#define CORRAL_QUOTA_ENV_INTERPOSER \
    "CORRAL_QUOTA_INTERPOSER" /* names it; for programs that do not lie beside it */

/* Beside the running program: in ../lib/corral, ../../lib/corral or corral of its folder (a build folder, an installation that was moved), or where it was to be installed.
 * The absolute path without links. CORRAL_NOT_FOUND: it is in none of them, or this build has none. */
enum corral_status corral_cuda_interposer_path(char *out, size_t out_bytes, struct corral_error *err);

#endif
