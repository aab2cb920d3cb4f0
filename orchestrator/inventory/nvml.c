#include "orchestrator/inventory/nvml.h"
#include <dlfcn.h>
#include <string.h>

/* The parts of NVML's stable C ABI that are used here; 0 is success in every version. */
typedef void *nvml_device;
struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_pci {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_string)(int);
    int (*driver_version)(char *, unsigned int);
    int (*count)(unsigned int *);
    int (*handle)(unsigned int, nvml_device *);
    int (*name)(nvml_device, char *, unsigned int);
    int (*uuid)(nvml_device, char *, unsigned int);
    int (*memory)(nvml_device, struct nvml_memory *);
    int (*pci)(nvml_device, struct nvml_pci *); /* may be missing */
};

static void nvml_close(struct nvml *n)
{
    if (n->library != NULL) {
        dlclose(n->library);
    }
}

static bool symbol(const struct nvml *n, const char *name, void *pointer_to_function)
{
    void *found = dlsym(n->library, name);
    memcpy(pointer_to_function, &found, sizeof found);
    return found != NULL;
}

/* Opened and initialised, or false and the reason in `note`. */
static bool nvml_open(struct nvml *n, const char *library, char *note, size_t note_bytes)
{
    memset(n, 0, sizeof *n);
    n->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (n->library == NULL) {
        snprintf(note, note_bytes, "no NVIDIA driver: %s cannot be loaded", library);
        return false;
    }
    bool complete = symbol(n, "nvmlInit_v2", &n->init) && symbol(n, "nvmlShutdown", &n->shutdown) &&
                    symbol(n, "nvmlErrorString", &n->error_string) &&
                    symbol(n, "nvmlSystemGetDriverVersion", &n->driver_version) &&
                    symbol(n, "nvmlDeviceGetCount_v2", &n->count) &&
                    symbol(n, "nvmlDeviceGetHandleByIndex_v2", &n->handle) &&
                    symbol(n, "nvmlDeviceGetName", &n->name) && symbol(n, "nvmlDeviceGetUUID", &n->uuid) &&
                    symbol(n, "nvmlDeviceGetMemoryInfo", &n->memory);
    symbol(n, "nvmlDeviceGetPciInfo_v3", &n->pci);
    if (!complete) {
        snprintf(note, note_bytes, "%s lacks functions this program needs", library);
        nvml_close(n);
        return false;
    }
    int rc = n->init();
    if (rc != 0) {
        const char *why = n->error_string(rc);
        snprintf(note, note_bytes, "NVML does not start: %.100s", why != NULL ? why : "unknown error");
        nvml_close(n);
        return false;
    }
    return true;
}

static int32_t pci_numa(const char *bus_id)
{
    /* NVML prints an eight-digit domain, sysfs a four-digit one, in lower case. */
    char path[96];
    unsigned domain = 0, bus = 0, device = 0, function = 0;
    if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &device, &function) != 4) {
        return -1;
    }
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%04x:%02x:%02x.%x/numa_node", domain, bus, device,
             function);
    FILE *f = fopen(path, "re");
    int node = -1;
    if (f != NULL) {
        if (fscanf(f, "%d", &node) != 1) {
            node = -1;
        }
        fclose(f);
    }
    return node;
}

static void read_gpu(const struct nvml *n, unsigned index, struct corral_inventory_gpu *g)
{
    nvml_device device = NULL;
    struct nvml_memory memory = {0};
    struct nvml_pci pci = {0};
    g->numa = -1;
    if (n->handle(index, &device) != 0) {
        snprintf(g->name, sizeof g->name, "not readable");
        return;
    }
    if (n->name(device, g->name, sizeof g->name) != 0) {
        snprintf(g->name, sizeof g->name, "unnamed");
    }
    if (n->uuid(device, g->uuid, sizeof g->uuid) != 0) {
        g->uuid[0] = '\0';
    }
    if (n->memory(device, &memory) == 0) {
        g->memory_total = memory.total;
        g->memory_used = memory.used;
    }
    if (n->pci != NULL && n->pci(device, &pci) == 0) {
        snprintf(g->pci, sizeof g->pci, "%.31s", pci.bus_id);
        g->numa = pci_numa(g->pci);
    }
}

void nvml_read(const char *library, struct corral_inventory *out)
{
    struct nvml n;
    if (!nvml_open(&n, library, out->gpu_note, sizeof out->gpu_note)) {
        return;
    }
    unsigned count = 0;
    if (n.driver_version(out->driver, sizeof out->driver) != 0) {
        out->driver[0] = '\0';
    }
    if (n.count(&count) != 0) {
        snprintf(out->gpu_note, sizeof out->gpu_note, "NVML cannot count the GPUs");
    } else if (count == 0) {
        snprintf(out->gpu_note, sizeof out->gpu_note, "the driver sees no GPU");
    }
    out->gpu_count = CORRAL_MIN(count, (unsigned)CORRAL_INVENTORY_GPUS_MAX);
    for (unsigned i = 0; i < out->gpu_count; i++) {
        read_gpu(&n, i, &out->gpu[i]);
    }
    n.shutdown();
    nvml_close(&n);
}

enum corral_status corral_inventory_gpu_memory(uint32_t index, uint64_t *total, uint64_t *used,
                                               struct corral_error *err)
{
    struct nvml n;
    char note[160];
    if (!nvml_open(&n, NVML_LIBRARY, note, sizeof note)) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "cannot read GPU memory: %s", note);
    }
    nvml_device device = NULL;
    struct nvml_memory memory = {0};
    bool ok = n.handle(index, &device) == 0 && n.memory(device, &memory) == 0;
    n.shutdown();
    nvml_close(&n);
    if (!ok) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "cannot read the memory of GPU %u", index);
    }
    *total = memory.total;
    *used = memory.used;
    return CORRAL_OK;
}
