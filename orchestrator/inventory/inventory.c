#include "orchestrator/inventory/inventory.h"
#include "orchestrator/inventory/nvml.h"
#include <ctype.h>
#include <dirent.h>
#include <hwloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- CPUs and NUMA nodes ---- */

static void read_cpus(hwloc_topology_t topology, struct corral_inventory *out)
{
    int packages = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PACKAGE);
    int cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
    int pus = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU);
    out->packages = packages > 0 ? (uint32_t)packages : 0;
    out->cores = cores > 0 ? (uint32_t)cores : 0;
    hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
    bool bound = allowed != NULL && hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_PROCESS) == 0;
    for (int i = 0; i < pus && out->cpu_count < CORRAL_INVENTORY_CPUS_MAX; i++) {
        hwloc_obj_t pu = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PU, (unsigned)i);
        if (!bound || hwloc_bitmap_isset(allowed, pu->os_index)) {
            out->cpu[out->cpu_count++] = pu->os_index;
        }
    }
    hwloc_bitmap_free(allowed);
    int nodes = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE);
    for (int i = 0; i < nodes && out->numa_count < CORRAL_INVENTORY_NUMA_MAX; i++) {
        hwloc_obj_t node = hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, (unsigned)i);
        int cpus = node->cpuset != NULL ? hwloc_bitmap_weight(node->cpuset) : 0;
        out->numa[out->numa_count++] =
            (struct corral_inventory_numa){.index = node->os_index,
                                           .memory = node->attr->numanode.local_memory,
                                           .cpus = cpus > 0 ? (uint32_t)cpus : 0};
    }
}

static void read_topology(struct corral_inventory *out)
{
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) != 0) {
        snprintf(out->cpu_note, sizeof out->cpu_note, "hwloc does not start");
        return;
    }
    if (hwloc_topology_load(topology) == 0) {
        read_cpus(topology, out);
    } else {
        snprintf(out->cpu_note, sizeof out->cpu_note, "hwloc cannot read this machine");
    }
    hwloc_topology_destroy(topology);
}

/* ---- memory ---- */

static void read_memory(struct corral_inventory *out)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (f == NULL) {
        return;
    }
    char line[128];
    while (fgets(line, sizeof line, f) != NULL) {
        unsigned long long kib = 0;
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1) {
            out->memory_total = kib << 10;
        } else if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) {
            out->memory_available = kib << 10;
        }
    }
    fclose(f);
}

/* ---- network ---- */

/* First line of a small file, without the newline; "" when it cannot be read. */
static void read_line(const char *folder, const char *name, const char *file, char *out, size_t out_bytes)
{
    char path[512];
    out[0] = '\0';
    snprintf(path, sizeof path, "%s/%s/%s", folder, name, file);
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return;
    }
    if (fgets(out, (int)out_bytes, f) == NULL) {
        out[0] = '\0';
    }
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

static void add_nic(struct corral_inventory *out, const char *folder, const char *name)
{
    struct corral_inventory_nic *nic = &out->nic[out->nic_count];
    char speed[32];
    snprintf(nic->name, sizeof nic->name, "%.31s", name);
    read_line(folder, name, "operstate", nic->state, sizeof nic->state);
    if (nic->state[0] == '\0') {
        strcpy(nic->state, "unknown");
    }
    read_line(folder, name, "speed", speed, sizeof speed);
    char *end = speed;
    long value = strtol(speed, &end, 10);
    nic->speed_mbits = end != speed && value > 0 ? value : -1;
    out->nic_count++;
}

static void add_rdma(struct corral_inventory *out, const char *folder, const char *name)
{
    struct corral_inventory_nic *nic = &out->nic[out->nic_count];
    char text[64];
    snprintf(nic->name, sizeof nic->name, "%.31s", name);
    nic->rdma = true;
    read_line(folder, name, "ports/1/state", text, sizeof text); /* "4: ACTIVE" */
    const char *colon = strchr(text, ':');
    snprintf(nic->state, sizeof nic->state, "%.15s",
             colon == NULL ? "unknown" : colon + 1 + (colon[1] == ' '));
    for (char *p = nic->state; *p != '\0'; p++) {
        *p = (char)tolower((unsigned char)*p);
    }
    read_line(folder, name, "ports/1/rate", text, sizeof text); /* "400 Gb/sec (4X NDR)" */
    char *end = text;
    double rate = strtod(text, &end);
    nic->speed_mbits = end != text && rate > 0 && rate < 1e9 ? (int64_t)(rate * 1000) : -1;
    out->nic_count++;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct corral_inventory_nic *)a)->name,
                  ((const struct corral_inventory_nic *)b)->name);
}

static void read_nics(struct corral_inventory *out)
{
    static const char *const folders[] = {"/sys/class/net", "/sys/class/infiniband"};
    for (int rdma = 0; rdma < 2; rdma++) {
        DIR *d = opendir(folders[rdma]);
        if (d == NULL) {
            continue;
        }
        const struct dirent *e;
        while ((e = readdir(d)) != NULL && out->nic_count < CORRAL_INVENTORY_NICS_MAX) {
            if (e->d_name[0] == '.' || strcmp(e->d_name, "bonding_masters") == 0) {
                continue;
            }
            if (rdma != 0) {
                add_rdma(out, folders[rdma], e->d_name);
            } else {
                add_nic(out, folders[rdma], e->d_name);
            }
        }
        closedir(d);
    }
    qsort(out->nic, out->nic_count, sizeof out->nic[0], by_name);
}

/* ---- all of it ---- */

enum corral_status corral_inventory_read(struct corral_inventory *out, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_inventory *found = calloc(1, sizeof *found);
    if (found == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot look at this machine: out of memory");
    }
    if (gethostname(found->host, sizeof found->host - 1) != 0) {
        strcpy(found->host, "unknown");
    }
    nvml_read(NVML_LIBRARY, found);
    read_topology(found);
    read_memory(found);
    read_nics(found);
    *out = *found;
    return CORRAL_OK;
}

static json_t *gpus_json(const struct corral_inventory *in)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < in->gpu_count; i++) {
        const struct corral_inventory_gpu *g = &in->gpu[i];
        json_array_append_new(array, json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:i}", "index", (int)i, "name",
                                               g->name, "uuid", g->uuid, "pci", g->pci, "memory_total",
                                               (json_int_t)g->memory_total, "memory_used",
                                               (json_int_t)g->memory_used, "numa", (int)g->numa));
    }
    return array;
}

static json_t *numa_json(const struct corral_inventory *in)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < in->numa_count; i++) {
        json_array_append_new(array,
                              json_pack("{s:i, s:I, s:i}", "index", (int)in->numa[i].index, "memory",
                                        (json_int_t)in->numa[i].memory, "cpus", (int)in->numa[i].cpus));
    }
    return array;
}

static json_t *nics_json(const struct corral_inventory *in)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < in->nic_count; i++) {
        const struct corral_inventory_nic *n = &in->nic[i];
        json_t *speed = n->speed_mbits >= 0 ? json_integer(n->speed_mbits) : json_null();
        json_array_append_new(array, json_pack("{s:s, s:s, s:o, s:b}", "name", n->name, "state", n->state,
                                               "speed_mbits", speed, "rdma", n->rdma));
    }
    return array;
}

json_t *corral_inventory_json(const struct corral_inventory *in)
{
    json_t *cpus = json_array();
    for (uint32_t i = 0; i < in->cpu_count; i++) {
        json_array_append_new(cpus, json_integer(in->cpu[i]));
    }
    return json_pack("{s:s, s:o, s:s, s:s, s:{s:i, s:i, s:o, s:o}, s:{s:I, s:I}, s:o}", "host", in->host,
                     "gpus", gpus_json(in), "driver", in->driver, "gpu_note", in->gpu_note, "cpu", "packages",
                     (int)in->packages, "cores", (int)in->cores, "cpus", cpus, "numa", numa_json(in),
                     "memory", "total", (json_int_t)in->memory_total, "available",
                     (json_int_t)in->memory_available, "nics", nics_json(in));
}
