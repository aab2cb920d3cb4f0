#include "quota/cuda/interposer_path.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_NAME "libcorral-quota.so"

static bool take(const char *folder, char *out, size_t out_bytes)
{
    char path[2 * PATH_MAX], real[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, FILE_NAME);
    if (!realpath(path, real) || access(real, R_OK) != 0 || strlen(real) >= out_bytes) {
        return false;
    }
    memcpy(out, real, strlen(real) + 1);
    return true;
}

enum corral_status corral_cuda_interposer_path(char *out, size_t out_bytes, struct corral_error *err)
{
    const char *named = getenv(CORRAL_QUOTA_ENV_INTERPOSER);
    if (named && *named) {
        char real[PATH_MAX];
        if (!realpath(named, real) || access(real, R_OK) != 0 || strlen(real) >= out_bytes) {
            return corral_fail(err, CORRAL_NOT_FOUND,
                               CORRAL_QUOTA_ENV_INTERPOSER " names %s, which is no library", named);
        }
        memcpy(out, real, strlen(real) + 1);
        return CORRAL_OK;
    }
    char program[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    char *slash = n > 0 ? memrchr(program, '/', (size_t)n) : NULL;
    if (slash) {
        static const char *const relative[] = {"../lib/corral", "../../lib/corral",
                                               "../" CORRAL_INSTALL_LIBDIR_RELATIVE "/corral", "corral", "."};
        *slash = '\0';
        for (size_t i = 0; i < CORRAL_COUNT_OF(relative); i++) {
            char folder[PATH_MAX + 128];
            snprintf(folder, sizeof folder, "%s/%s", program, relative[i]);
            if (take(folder, out, out_bytes)) {
                return CORRAL_OK;
            }
        }
    }
    if (take(CORRAL_INSTALL_LIBDIR "/corral", out, out_bytes)) {
        return CORRAL_OK;
    }
    return corral_fail(err, CORRAL_NOT_FOUND,
                       "cannot find " FILE_NAME
                       ", which fences processes on GPU devices: install it in " CORRAL_INSTALL_LIBDIR
                       "/corral, or name it in " CORRAL_QUOTA_ENV_INTERPOSER);
}
