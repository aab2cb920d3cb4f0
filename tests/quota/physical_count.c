#include "tests/quota/physical_count.h"

#include "quota/cuda/nvml_types.h"
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES_MAX 256

static const char *const source_name[] = {"none", "the fake driver", "NVML, of the process",
                                          "NVML, of the device"};

void physical_uuid_text(const uint8_t uuid[16], char out[PHYSICAL_UUID_TEXT])
{
    const uint8_t *u = uuid;
    snprintf(out, PHYSICAL_UUID_TEXT,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

/* ---- NVML ---- */
static int64_t process_bytes(void *library, nvmlDevice_t device, pid_t pid)
{
    static nvmlProcessInfo_v2_t info[PROCESSES_MAX];
    unsigned count = PROCESSES_MAX;
    nvmlDeviceGetComputeRunningProcesses_v3_fn list;
    *(void **)&list = dlsym(library, "nvmlDeviceGetComputeRunningProcesses_v3");
    if (list == NULL || list(device, &count, info) != NVML_SUCCESS) {
        return -1;
    }
    for (unsigned i = 0; i < count && i < PROCESSES_MAX; i++) {
        if (info[i].pid == (unsigned)pid && info[i].usedGpuMemory != NVML_VALUE_UNKNOWN) {
            return (int64_t)info[i].usedGpuMemory;
        }
    }
    return -1;
}

static int64_t device_bytes(void *library, nvmlDevice_t device)
{
    nvmlMemory_t memory;
    nvmlDeviceGetMemoryInfo_fn get;
    *(void **)&get = dlsym(library, "nvmlDeviceGetMemoryInfo");
    return get != NULL && get(device, &memory) == NVML_SUCCESS ? (int64_t)memory.used : -1;
}

bool physical_read_nvml(const char *uuid, pid_t pid, int64_t *process, int64_t *device)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    nvmlInit_v2_fn init = NULL;
    nvmlDeviceGetHandleByUUID_fn by_uuid = NULL;
    nvmlDevice_t handle;
    if (library != NULL) {
        *(void **)&init = dlsym(library, "nvmlInit_v2");
        *(void **)&by_uuid = dlsym(library, "nvmlDeviceGetHandleByUUID");
    }
    if (init == NULL || by_uuid == NULL || init() != NVML_SUCCESS || by_uuid(uuid, &handle) != NVML_SUCCESS) {
        return false;
    }
    *process = process_bytes(library, handle, pid);
    *device = device_bytes(library, handle);
    return true;
}

int physical_reader_main(const char *uuid, const char *pid)
{
    int64_t process, device;
    if (!physical_read_nvml(uuid, (pid_t)strtol(pid, NULL, 10), &process, &device)) {
        return 1;
    }
    printf("%" PRId64 " %" PRId64 "\n", process, device);
    return 0;
}

/* The same program again, as a reader. */
static bool read_in_child(const struct physical *p, int64_t *process, int64_t *device)
{
    int ends[2];
    char pid[16], line[64] = "";
    snprintf(pid, sizeof pid, "%d", (int)p->pid);
    if (pipe(ends) != 0) {
        return false;
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        unsetenv("LD_PRELOAD");
        execl("/proc/self/exe", "conformance", "physical", p->uuid, pid, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    ssize_t got = 0;
    for (size_t at = 0; at < sizeof line - 1; at += (size_t)got) {
        got = read(ends[0], line + at, sizeof line - 1 - at);
        if (got <= 0) {
            break;
        }
    }
    close(ends[0]);
    int status = 1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0 &&
           sscanf(line, "%" SCNd64 " %" SCNd64, process, device) == 2;
}

/* ---- the source ---- */
void physical_open(struct physical *p, const uint8_t uuid[16], pid_t pid, void *driver)
{
    const char *wanted = getenv("CORRAL_TEST_PHYSICAL"), *tolerance = getenv("CORRAL_TEST_TOLERANCE");
    *p = (struct physical){.pid = pid, .tolerance = PHYSICAL_TOLERANCE};
    physical_uuid_text(uuid, p->uuid);
    if (tolerance != NULL) {
        p->tolerance = strtoull(tolerance, NULL, 10);
    }
    if (wanted == NULL && driver != NULL) {
        *(void **)&p->fake = dlsym(driver, "fakecuda_used");
    }
}

enum physical_source physical_count(const struct physical *p, enum physical_scope scope, uint64_t *bytes)
{
    const char *wanted = getenv("CORRAL_TEST_PHYSICAL"), *baseline = getenv(PHYSICAL_ENV_BASELINE);
    int64_t process = -1, device = -1;
    if (p->fake != NULL) {
        *bytes = p->fake(0);
        return PHYSICAL_FAKE_DRIVER;
    }
    if ((wanted != NULL && strcmp(wanted, "none") == 0) || !read_in_child(p, &process, &device)) {
        return PHYSICAL_NONE;
    }
    if (scope == PHYSICAL_OF_PROCESS && process >= 0) {
        *bytes = (uint64_t)process;
        return PHYSICAL_NVML_PROCESS;
    }
    if (device >= 0 && baseline != NULL) {
        uint64_t before = strtoull(baseline, NULL, 10);
        *bytes = (uint64_t)device > before ? (uint64_t)device - before : 0;
        return PHYSICAL_NVML_DEVICE;
    }
    return PHYSICAL_NONE;
}

static uint64_t apart(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

bool physical_compare(struct physical *p, enum physical_scope scope, enum physical_bound bound,
                      uint64_t ledger, const char *when)
{
    uint64_t counted = 0;
    enum physical_source source = physical_count(p, scope, &counted);
    return physical_judge(p, source, counted, bound, ledger, when);
}

bool physical_judge(struct physical *p, enum physical_source source, uint64_t counted,
                    enum physical_bound bound, uint64_t ledger, const char *when)
{
    if (source == PHYSICAL_NONE) {
        p->left_out++;
        return true;
    }
    uint64_t tolerance = source == PHYSICAL_FAKE_DRIVER ? 0 : p->tolerance;
    /* What is charged ahead says nothing about the largest difference, but on the fake driver it is never ahead. */
    bool equal = bound == PHYSICAL_EQUAL || source == PHYSICAL_FAKE_DRIVER;
    p->compared++;
    if (p->source == PHYSICAL_NONE ||
        ((equal || counted > ledger) && apart(counted, ledger) > apart(p->counted, p->ledger))) {
        p->ledger = ledger;
        p->counted = counted;
        p->source = source;
    }
    if (counted > ledger + tolerance || (equal && counted + tolerance < ledger)) {
        fprintf(stderr,
                "%s: the ledger has %" PRIu64 " bytes, %s says %" PRIu64 ": apart by %" PRIu64
                ", allowed %" PRIu64 "\n",
                when, ledger, source_name[source], counted, apart(counted, ledger), tolerance);
        return false;
    }
    return true;
}

bool physical_report(const struct physical *p, const char *what)
{
    if (p->compared > 0) {
        printf("physical: %s, %u comparisons; furthest apart: ledger %" PRIu64 ", counted %" PRIu64
               ", allowed %" PRIu64 "\n",
               source_name[p->source], p->compared, p->ledger, p->counted,
               p->source == PHYSICAL_FAKE_DRIVER ? 0 : p->tolerance);
    }
    if (p->left_out > 0) {
        printf("SKIPPED %s, %u comparisons of the ledger with the device's memory: no NVML that tells it\n",
               what, p->left_out);
    }
    return p->left_out == 0;
}
