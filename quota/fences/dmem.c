/* cgroup version 2's controller of device memory. Regions are named by the device's driver; one belongs to a GPU when its name has the GPU's UUID or PCI address in it. */
#include "base/file.h"
#include "quota/fences/internal.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DMEM_FILE_BYTES_MAX ((size_t)1 << 18)
#define DRIVER_GPUS "/proc/driver/nvidia/gpus"

/* "0000:03:00.0" of a GPU, from the folder of the driver whose `information` names the UUID. */
static bool gpu_address(const char *uuid, char *out, size_t out_bytes)
{
    DIR *dir = opendir(DRIVER_GPUS);
    bool found = false;
    for (struct dirent *e = dir ? readdir(dir) : NULL; e && !found; e = readdir(dir)) {
        char path[512];
        CORRAL_AUTO_FREE char *text = NULL;
        size_t bytes;
        fence_text(path, sizeof path, DRIVER_GPUS "/%.200s/information", e->d_name);
        if (e->d_name[0] != '.' &&
            corral_file_read(path, DMEM_FILE_BYTES_MAX, &text, &bytes, NULL) == CORRAL_OK &&
            strstr(text, uuid)) {
            fence_text(out, out_bytes, "%s", e->d_name);
            found = true;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return found;
}

/* Lines "REGION BYTES"; false when no region is the GPU's. */
static bool find_region(char *capacity, const char *uuid, const char *address, char *out, size_t out_bytes)
{
    char *save = NULL;
    for (char *line = strtok_r(capacity, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *space = strrchr(line, ' ');
        if (!space || space == line) {
            continue;
        }
        *space = '\0';
        if (strcasestr(line, uuid) || (address[0] != '\0' && strcasestr(line, address))) {
            fence_text(out, out_bytes, "%s", line);
            return strlen(line) < out_bytes;
        }
    }
    return false;
}

static bool reads_back(const char *path, const char *region, uint64_t bytes)
{
    CORRAL_AUTO_FREE char *text = NULL;
    size_t length;
    if (corral_file_read(path, DMEM_FILE_BYTES_MAX, &text, &length, NULL) != CORRAL_OK) {
        return false;
    }
    char *save = NULL;
    size_t name = strlen(region);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, region, name) == 0 && line[name] == ' ') {
            uint64_t is = strtoull(line + name + 1, NULL, 10);
            return is <= bytes && bytes - is < FENCE_MIB; /* a driver may round down to its pages */
        }
    }
    return false;
}

static bool set_region(const struct cgroup_side *side, const char *group, const char *region, uint64_t bytes,
                       char why[FENCE_WHY_BYTES])
{
    char path[FENCE_PATH_BYTES + 256], value[320];
    fence_text(path, sizeof path, "%s/%s/dmem.max", side->base, group);
    fence_text(value, sizeof value, "%s %" PRIu64, region, bytes);
    CORRAL_AUTO_CLOSE int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) != (ssize_t)strlen(value)) {
        fence_text(why, FENCE_WHY_BYTES, "setting dmem.max of %.60s: %s", region, strerror(errno));
        return false;
    }
    if (!reads_back(path, region, bytes)) {
        fence_text(why, FENCE_WHY_BYTES, "dmem.max of %.60s does not read back as set", region);
        return false;
    }
    return true;
}

/* The text of dmem.capacity, for the caller to free; NULL and why. */
static char *read_capacity(const struct cgroup_side *side, char why[FENCE_WHY_BYTES])
{
    char path[FENCE_PATH_BYTES + 64];
    char *capacity = NULL;
    size_t length;
    if (!side->live) {
        fence_text(why, FENCE_WHY_BYTES, "%s", side->why);
        return NULL;
    }
    fence_text(path, sizeof path, "%s/dmem.capacity", side->mount);
    if (corral_file_read(path, DMEM_FILE_BYTES_MAX, &capacity, &length, NULL) != CORRAL_OK) {
        fence_text(why, FENCE_WHY_BYTES,
                   "dmem.capacity cannot be read: no driver here gives its memory to cgroups");
    }
    return capacity;
}

bool cgroup_set_dmem(const struct cgroup_tree *t, const char *group, const char *gpu_uuid, uint64_t bytes,
                     char why[FENCE_WHY_BYTES])
{
    const struct cgroup_side *side = &t->side[CGROUP_DMEM];
    char address[64] = "", region[256];
    CORRAL_AUTO_FREE char *capacity = read_capacity(side, why);
    if (!capacity) {
        return false;
    }
    (void)gpu_address(gpu_uuid, address, sizeof address);
    if (!fence_uuid_valid(gpu_uuid) || !find_region(capacity, gpu_uuid, address, region, sizeof region)) {
        fence_text(why, FENCE_WHY_BYTES, "dmem.capacity has no region of %.50s", gpu_uuid);
        return false;
    }
    return set_region(side, group, region, bytes, why);
}

#define TRIED_GROUP "dmem"

static bool try_in_group(const struct cgroup_tree *t, const char *gpu_uuid,
                         const struct corral_cuda_limit_result *control, bool *set, char why[FENCE_WHY_BYTES])
{
    char device[128];
    struct corral_cuda_limit_result found;
    uint64_t limit;
    int enter[4];
    if (!fence_canary_plan(control, &limit, why) || !cgroup_set_dmem(t, TRIED_GROUP, gpu_uuid, limit, why)) {
        return false;
    }
    *set = true;
    fence_text(device, sizeof device, "CUDA_VISIBLE_DEVICES=%s", gpu_uuid);
    const char *const env[] = {"CUDA_DEVICE_ORDER=PCI_BUS_ID", device};
    struct fence_canary_spec spec = {.env = env, .env_count = CORRAL_COUNT_OF(env), .enter = enter};
    spec.enter_count = cgroup_enter_fds(t, TRIED_GROUP, enter);
    fence_canary_sizes(limit, &spec);
    bool held = fence_canary_run(&spec, &found, why) && fence_canary_judge(&found, limit, why);
    while (spec.enter_count > 0) {
        close(enter[--spec.enter_count]);
    }
    return held;
}

enum corral_fence_state cgroup_try_dmem(const struct cgroup_tree *t, const char *gpu_uuid,
                                        char why[FENCE_WHY_BYTES])
{
    struct corral_cuda_limit_result control;
    char device[128], text[FENCE_WHY_BYTES];
    bool set = false;
    CORRAL_AUTO_FREE char *capacity = read_capacity(&t->side[CGROUP_DMEM], why);
    if (!capacity) {
        return CORRAL_FENCE_ABSENT;
    }
    fence_text(device, sizeof device, "CUDA_VISIBLE_DEVICES=%s", gpu_uuid);
    const char *const env[] = {"CUDA_DEVICE_ORDER=PCI_BUS_ID", device};
    const struct fence_canary_spec spec = {.env = env, .env_count = gpu_uuid[0] ? 2 : 1};
    if (!fence_canary_run(&spec, &control, why) || !cgroup_group_make(t, TRIED_GROUP, why)) {
        return CORRAL_FENCE_ABSENT;
    }
    bool held = try_in_group(t, control.uuid, &control, &set, why);
    cgroup_group_remove(t, TRIED_GROUP);
    if (set && !held) {
        fence_text(text, sizeof text, "%s", why);
        fence_text(why, FENCE_WHY_BYTES, "a limit was set and read back, but %.140s", text);
    }
    return held ? CORRAL_FENCE_LIVE : set ? CORRAL_FENCE_FAILED : CORRAL_FENCE_ABSENT;
}
