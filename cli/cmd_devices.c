/* rlctl devices: what this machine has, and what a job makes of it. */
#include "base/json.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/set_args.h"
#include "orchestrator/inventory/inventory.h"
#include "orchestrator/job/job.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void usage(FILE *to)
{
    fputs("Usage: rlctl devices [JOB] [--json] [--set SECTION.KEY=VALUE]...\n"
          "\n"
          "Shows the GPUs, CPUs, memory and network interfaces of this machine. With a job file, also every "
          "device of\n"
          "its nodes and the partitions on it.\n"
          "\n"
          "  -j, --json           machine-readable\n"
          "  -s, --set KEY=VALUE  override a value of the job file; may be repeated\n"
          "  -h, --help           this text\n"
          "\n"
          "Examples:\n"
          "  rlctl devices\n"
          "  rlctl devices configs/12gpu-9b.toml --json\n",
          to);
}

static void print_machine(const struct corral_inventory *m)
{
    char a[48], b[48];
    printf("%s  %u package%s, %u core%s, %u CPU%s usable, %u NUMA node%s, memory %s (%s available)\n",
           m->host, m->packages, m->packages == 1 ? "" : "s", m->cores, m->cores == 1 ? "" : "s",
           m->cpu_count, m->cpu_count == 1 ? "" : "s", m->numa_count, m->numa_count == 1 ? "" : "s",
           corral_format_bytes(m->memory_total, a, sizeof a),
           corral_format_bytes(m->memory_available, b, sizeof b));
    if (m->cpu_note[0] != '\0') {
        printf("CPUs: %s\n", m->cpu_note);
    }
    if (m->gpu_count == 0) {
        printf("\nGPUs: none (%s)\n", m->gpu_note);
    } else {
        printf("\n%-4s %-28s %12s %12s %5s  %s\n", "GPU", "NAME", "MEMORY", "USED", "NUMA", "UUID");
    }
    for (uint32_t i = 0; i < m->gpu_count; i++) {
        const struct corral_inventory_gpu *g = &m->gpu[i];
        char numa[16] = "-";
        if (g->numa >= 0) {
            snprintf(numa, sizeof numa, "%d", g->numa);
        }
        printf("%-4u %-28s %12s %12s %5s  %s\n", i, g->name,
               corral_format_bytes(g->memory_total, a, sizeof a),
               corral_format_bytes(g->memory_used, b, sizeof b), numa, g->uuid);
    }
    if (m->gpu_count > 0) {
        printf("driver %s\n", m->driver);
    }
    printf("\n%-16s %-8s %12s  %s\n", "NETWORK", "STATE", "SPEED", "RDMA");
    for (uint32_t i = 0; i < m->nic_count; i++) {
        char speed[32] = "-";
        if (m->nic[i].speed_mbits >= 0) {
            snprintf(speed, sizeof speed, "%" PRId64 " Mb/s", m->nic[i].speed_mbits);
        }
        printf("%-16s %-8s %12s  %s\n", m->nic[i].name, m->nic[i].state, speed, m->nic[i].rdma ? "yes" : "-");
    }
}

static bool on_device(const struct corral_job_partition *p, uint32_t node, uint32_t slot)
{
    for (uint32_t k = 0; k < p->device_count; k++) {
        if (p->device[k].node == node && p->device[k].slot == slot) {
            return true;
        }
    }
    return false;
}

static void print_job(const struct corral_job *job)
{
    printf("\n%-16s %-6s %12s  %s\n", "DEVICE", "KIND", "MEMORY", "PARTITIONS");
    for (uint32_t n = 0; n < job->node_count; n++) {
        for (uint32_t s = 0; s < job->node[n].device_count; s++) {
            char name[64], memory[48];
            printf("%-16s %-6s %12s ", corral_job_device_name(job, n, s, name, sizeof name),
                   corral_device_kind_name(job->node[n].kind),
                   corral_format_bytes(job->node[n].device_memory, memory, sizeof memory));
            bool any = false;
            for (uint32_t p = 0; p < job->partition_count; p++) {
                if (on_device(&job->partition[p], n, s)) {
                    printf(" %s", job->partition[p].name);
                    any = true;
                }
            }
            printf("%s\n", any ? "" : " -");
        }
    }
}

static json_t *job_json(const struct corral_job *job)
{
    json_t *devices = json_array();
    for (uint32_t n = 0; n < job->node_count; n++) {
        for (uint32_t s = 0; s < job->node[n].device_count; s++) {
            char name[64];
            json_t *partitions = json_array();
            for (uint32_t p = 0; p < job->partition_count; p++) {
                if (on_device(&job->partition[p], n, s)) {
                    json_array_append_new(partitions, json_string(job->partition[p].name));
                }
            }
            json_array_append_new(devices, json_pack("{s:s, s:s, s:I, s:o}", "name",
                                                     corral_job_device_name(job, n, s, name, sizeof name),
                                                     "kind", corral_device_kind_name(job->node[n].kind),
                                                     "memory", (json_int_t)job->node[n].device_memory,
                                                     "partitions", partitions));
        }
    }
    return devices;
}

static enum corral_status print_json(const struct corral_inventory *machine, const struct corral_job *job,
                                     struct corral_error *err)
{
    json_t *value = corral_inventory_json(machine);
    if (value == NULL || (job != NULL && json_object_set_new(value, "devices", job_json(job)) != 0)) {
        json_decref(value);
        return corral_fail(err, CORRAL_NOMEM, "cannot print the devices: out of memory");
    }
    enum corral_status status = corral_json_print(stdout, value, err);
    json_decref(value);
    return status;
}

static int show(const char *path, const struct cli_sets *sets, bool json)
{
    struct corral_error err;
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    CORRAL_AUTO_FREE struct corral_inventory *machine = calloc(1, sizeof *machine);
    if (path != NULL) {
        enum corral_status status = corral_job_load(path, sets->text, sets->count, &job, &err);
        if (status != CORRAL_OK) {
            return corral_cli_fail(&err);
        }
    }
    enum corral_status status = machine == NULL ? corral_fail(&err, CORRAL_NOMEM, "out of memory")
                                                : corral_inventory_read(machine, &err);
    if (status == CORRAL_OK && json) {
        status = print_json(machine, job, &err);
    } else if (status == CORRAL_OK) {
        print_machine(machine);
        if (job != NULL) {
            print_job(job);
        }
    }
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    return cli_flush();
}

int corral_cmd_devices(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"set", required_argument, NULL, 's'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct cli_sets sets = {.count = 0};
    bool json = false;
    int c;
    optind = 0; /* starts getopt afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, "js:h", options, NULL)) != -1) {
        switch (c) {
        case 'j':
            json = true;
            break;
        case 's':
            if (!cli_sets_add(&sets, optarg)) {
                return corral_cli_usage("devices", "more than %d --set arguments", CLI_SETS_MAX);
            }
            break;
        case 'h':
            usage(stdout);
            return cli_flush();
        default:
            return corral_cli_usage("devices", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind > 1 || (argc == optind && sets.count > 0)) {
        return corral_cli_usage("devices",
                                argc - optind > 1 ? "name at most one job file" : "--set needs a job file");
    }
    return show(argc > optind ? argv[optind] : NULL, &sets, json);
}
