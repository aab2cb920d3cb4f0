/* MPS as a client sees it: with a control daemon's file in the pipe folder, the limits of the environment hold. */
#include "tests/fakecuda/state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROCESSORS 132

static bool obeys(void)
{
    char path[512];
    const char *pipe = getenv("CUDA_MPS_PIPE_DIRECTORY"), *mode = getenv("CORRAL_FAKECUDA_MPS");
    snprintf(path, sizeof path, "%s/control", pipe != NULL ? pipe : "/tmp/nvidia-mps");
    return access(path, F_OK) == 0 && (mode == NULL || strcmp(mode, "ignore") != 0);
}

/* "GPU-…=100M", one or several with commas. */
static uint64_t limit_of(const char *list, uint32_t device)
{
    uint8_t u[16];
    char name[48];
    fake_state_uuid(device, u);
    snprintf(name, sizeof name,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x=", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    const char *at = strstr(list, name);
    char *unit;
    uint64_t n = at != NULL ? strtoull(at + strlen(name), &unit, 10) : 0;
    return at == NULL ? UINT64_MAX : *unit == 'M' ? n << 20 : *unit == 'G' ? n << 30 : n;
}

uint64_t fake_process_limit(uint32_t device)
{
    const char *mps = getenv("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"), *other = getenv("CORRAL_FAKECUDA_LIMIT");
    uint64_t limit = mps != NULL && obeys() ? limit_of(mps, device) : UINT64_MAX;
    uint64_t cgroup = other != NULL ? strtoull(other, NULL, 10) : UINT64_MAX;
    return limit < cgroup ? limit : cgroup;
}

int fake_processors(void)
{
    const char *text = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    const char *mode = getenv("CORRAL_FAKECUDA_MPS");
    long percent = text != NULL && obeys() && (mode == NULL || strcmp(mode, "no-share") != 0)
                       ? strtol(text, NULL, 10)
                       : 100;
    return percent > 0 && percent < 100 ? (int)(PROCESSORS * percent / 100) : PROCESSORS;
}
