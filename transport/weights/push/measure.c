#include "transport/weights/push/measure.h"
#include "transport/weights/push/frame.h"

#include "base/clock.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS_MAX 4u
#define COPIES 3 /* the first touches the pages and is not counted */

uint32_t corral_lanes_measure(const char *endpoint, const struct corral_push_identity *identity,
                              const char *lanes, const struct corral_lane_probe_options *options,
                              struct corral_lane_measure out[CORRAL_LANE_KINDS])
{
    uint32_t count = 0;
    bool here = !endpoint || !endpoint[0];
    for (int kind = 0; kind < CORRAL_LANE_KINDS; kind++) {
        const struct corral_lane_ops *ops = corral_lane_ops_of((enum corral_lane_kind)kind);
        if (!ops || (lanes && lanes[0] && !push_lane_listed(lanes, ops->name))) {
            continue;
        }
        struct corral_error why = {0};
        struct corral_lane_measure *m = &out[count++];
        *m = (struct corral_lane_measure){.ops = ops};
        m->status = here ? corral_lane_probe(ops, options, &m->result, &why)
                         : corral_push_probe(endpoint, identity, ops, options, &m->result, &why);
        if (m->status != CORRAL_OK) {
            snprintf(m->reason, sizeof m->reason, "%.199s", why.text);
        }
    }
    return count;
}

enum corral_status corral_lanes_check_names(const char *lanes, struct corral_error *err)
{
    for (const char *at = lanes; at && *at; at += strcspn(at, ","), at += *at == ',') {
        char name[PUSH_LANE_NAME_MAX];
        size_t length = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)CORRAL_MIN(length, sizeof name - 1), at);
        if (!corral_lane_named(name)) {
            return corral_fail(err, CORRAL_INVALID, "there is no lane `%s`: shm, tcp, rdma, nccl, cuda_ipc",
                               name);
        }
    }
    return CORRAL_OK;
}

/* ---- the yardstick ---- */

struct share {
    const uint8_t *from;
    uint8_t *to;
    uint64_t bytes;
};

static void *copy_share(void *arg)
{
    const struct share *s = arg;
    memcpy(s->to, s->from, s->bytes);
    return NULL;
}

/* A thread that does not start leaves its share to this one. */
static void copy(uint8_t *to, const uint8_t *from, uint64_t bytes, uint32_t threads)
{
    struct share share[THREADS_MAX];
    pthread_t thread[THREADS_MAX];
    bool started[THREADS_MAX] = {false};
    for (uint32_t i = 0; i < threads; i++) {
        uint64_t at = bytes / threads * i, end = i + 1 == threads ? bytes : bytes / threads * (i + 1);
        share[i] = (struct share){.from = from + at, .to = to + at, .bytes = end - at};
        started[i] = i > 0 && pthread_create(&thread[i], NULL, copy_share, &share[i]) == 0;
    }
    for (uint32_t i = 0; i < threads; i++) {
        if (started[i]) {
            pthread_join(thread[i], NULL);
        } else {
            copy_share(&share[i]);
        }
    }
}

double corral_memcpy_rate(uint64_t bytes)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t threads = (uint32_t)CORRAL_MAX(1, CORRAL_MIN(cpus, (long)THREADS_MAX));
    uint8_t *memory =
        mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (bytes == 0 || memory == MAP_FAILED) {
        return 0;
    }
    memset(memory, 1, bytes);
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < COPIES; i++) {
        uint64_t start = corral_now_ns(&corral_clock_monotonic);
        copy(memory + bytes, memory, bytes, threads);
        uint64_t took = corral_now_ns(&corral_clock_monotonic) - start;
        best = i == 0 ? best : CORRAL_MIN(best, took);
    }
    munmap(memory, 2 * bytes);
    return (double)bytes / (double)CORRAL_MAX(best, 1u);
}
