#include "trainer-bridge/batching/lease.h"
#include <stdlib.h>

#define NONE UINT32_MAX

struct lease {
    uint32_t worker, generation; /* generation: odd while it runs */
    uint64_t tokens, version;
    uint32_t before, next; /* in the order of granting; free ones: `next` only */
};

struct corral_leases {
    struct corral_lease_config config;
    struct corral_lease_stats stats;
    uint64_t newest_version;
    uint32_t oldest, newest, spare;
    uint64_t seen_ns[CORRAL_LEASE_WORKERS_MAX];
    struct lease lease[];
};

enum corral_status corral_leases_create(struct corral_leases **out, const struct corral_lease_config *config,
                                        struct corral_error *err)
{
    uint64_t capacity;
    if (config->per_version == 0 || config->leases_max == 0 || config->leases_max > CORRAL_LEASES_MAX ||
        __builtin_mul_overflow(config->per_version, (uint64_t)config->max_staleness + 1, &capacity)) {
        return corral_fail(err, CORRAL_INVALID,
                           "leases: %llu tokens per version, staleness up to %u, %u leases: out of range",
                           (unsigned long long)config->per_version, config->max_staleness,
                           config->leases_max);
    }
    struct corral_leases *l = calloc(1, sizeof *l + config->leases_max * sizeof l->lease[0]);
    if (l == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "room for %u leases", config->leases_max);
    }
    l->config = *config;
    l->stats.capacity = capacity;
    l->oldest = l->newest = NONE;
    for (uint32_t i = 0; i < config->leases_max; i++) {
        l->lease[i].next = i + 1 < config->leases_max ? i + 1 : NONE;
    }
    *out = l;
    return CORRAL_OK;
}

void corral_leases_destroy(struct corral_leases *l)
{
    free(l);
}

enum corral_status corral_lease_grant(struct corral_leases *l, uint32_t worker, uint64_t tokens,
                                      uint64_t version, uint64_t now_ns, uint64_t *lease,
                                      struct corral_error *err)
{
    struct corral_lease_stats *s = &l->stats;
    if (worker >= CORRAL_LEASE_WORKERS_MAX || tokens == 0 || version < l->newest_version) {
        return corral_fail(err, CORRAL_INVALID,
                           "a lease of %llu tokens at version %llu for worker %u: out of range",
                           (unsigned long long)tokens, (unsigned long long)version, worker);
    }
    uint64_t under_way = s->running_tokens + s->queued_tokens;
    if (under_way > 0 && (under_way >= s->capacity || tokens > s->capacity - under_way)) {
        s->refused++;
        return corral_fail(
            err, CORRAL_AGAIN,
            "rollouts wait for the trainer: %llu tokens run and %llu wait to be trained on, of "
            "%llu for a staleness of at most %u",
            (unsigned long long)s->running_tokens, (unsigned long long)s->queued_tokens,
            (unsigned long long)s->capacity, l->config.max_staleness);
    }
    if (l->spare == NONE) {
        s->refused++;
        return corral_fail(err, CORRAL_AGAIN, "rollouts wait: all %u leases are out", l->config.leases_max);
    }
    uint32_t i = l->spare;
    struct lease *e = &l->lease[i];
    l->spare = e->next;
    *e = (struct lease){.worker = worker,
                        .generation = e->generation + 1,
                        .tokens = tokens,
                        .version = version,
                        .before = l->newest,
                        .next = NONE};
    *(l->newest != NONE ? &l->lease[l->newest].next : &l->oldest) = i;
    l->newest = i;
    l->newest_version = version;
    l->seen_ns[worker] = CORRAL_MAX(l->seen_ns[worker], now_ns);
    s->running++;
    s->running_tokens += tokens;
    s->granted++;
    *lease = (uint64_t)e->generation << 32 | i;
    return CORRAL_OK;
}

void corral_lease_seen(struct corral_leases *l, uint32_t worker, uint64_t now_ns)
{
    if (worker < CORRAL_LEASE_WORKERS_MAX) {
        l->seen_ns[worker] = CORRAL_MAX(l->seen_ns[worker], now_ns);
    }
}

static void end_lease(struct corral_leases *l, uint32_t i)
{
    struct lease *e = &l->lease[i];
    *(e->before != NONE ? &l->lease[e->before].next : &l->oldest) = e->next;
    *(e->next != NONE ? &l->lease[e->next].before : &l->newest) = e->before;
    l->stats.running--;
    l->stats.running_tokens -= e->tokens;
    e->generation++;
    e->next = l->spare;
    l->spare = i;
}

static bool end_by_id(struct corral_leases *l, uint64_t lease)
{
    uint32_t i = (uint32_t)lease, generation = (uint32_t)(lease >> 32);
    if (i >= l->config.leases_max || (generation & 1) == 0 || l->lease[i].generation != generation) {
        return false;
    }
    end_lease(l, i);
    return true;
}

bool corral_lease_arrived(struct corral_leases *l, uint64_t lease, uint64_t tokens)
{
    l->stats.arrived++;
    l->stats.queued_tokens += tokens;
    return end_by_id(l, lease);
}

bool corral_lease_void(struct corral_leases *l, uint64_t lease)
{
    bool ran = end_by_id(l, lease);
    l->stats.voided += ran;
    return ran;
}

void corral_lease_consumed(struct corral_leases *l, uint64_t tokens)
{
    l->stats.queued_tokens -= CORRAL_MIN(tokens, l->stats.queued_tokens);
}

uint32_t corral_lease_expire(struct corral_leases *l, uint64_t now_ns)
{
    uint32_t count = 0;
    for (uint32_t i = l->config.ttl_ns > 0 ? l->oldest : NONE; i != NONE;) {
        uint32_t next = l->lease[i].next;
        uint64_t seen = l->seen_ns[l->lease[i].worker];
        if (now_ns > seen && now_ns - seen >= l->config.ttl_ns) {
            end_lease(l, i);
            count++;
        }
        i = next;
    }
    l->stats.expired += count;
    return count;
}

uint32_t corral_lease_end_worker(struct corral_leases *l, uint32_t worker)
{
    uint32_t count = 0;
    for (uint32_t i = l->oldest; i != NONE;) {
        uint32_t next = l->lease[i].next;
        if (l->lease[i].worker == worker) {
            end_lease(l, i);
            count++;
        }
        i = next;
    }
    l->stats.expired += count;
    return count;
}

uint32_t corral_lease_late(const struct corral_leases *l, uint64_t version)
{
    uint32_t count = 0;
    for (uint32_t i = l->oldest; i != NONE && l->lease[i].version + l->config.max_staleness <= version;
         i = l->lease[i].next) {
        count++;
    }
    return count;
}

void corral_lease_stats(const struct corral_leases *l, struct corral_lease_stats *out)
{
    *out = l->stats;
}
