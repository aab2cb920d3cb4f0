/* The faults that a test asks for, and what it can count. */
#include "fakeverbs.h"
#include "state.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;
} names[] = {
    {"cqe_error", offsetof(struct fake_faults, cqe_error)},
    {"delay_us", offsetof(struct fake_faults, delay_us)},
    {"drop", offsetof(struct fake_faults, drop)},
    {"drop_after", offsetof(struct fake_faults, drop_after)},
    {"hold_odd_us", offsetof(struct fake_faults, hold_odd_us)},
    {"rnr", offsetof(struct fake_faults, rnr)},
    {"corrupt", offsetof(struct fake_faults, corrupt)},
    {"die_sent", offsetof(struct fake_faults, die_sent)},
    {"die_received", offsetof(struct fake_faults, die_received)},
    {"port_err", offsetof(struct fake_faults, port_err)},
    {"device_fatal", offsetof(struct fake_faults, device_fatal)},
    {"ack_us", offsetof(struct fake_faults, ack_us)},
};

static const char *set_one(struct fake_faults *f, const char *p)
{
    size_t n = strcspn(p, "=");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strlen(names[i].name) == n && strncmp(names[i].name, p, n) == 0 && p[n] == '=') {
            char *end;
            uint64_t value = strtoull(p + n + 1, &end, 10);
            memcpy((char *)f + names[i].offset, &value, sizeof(value));
            return end > p + n + 1 ? end : NULL;
        }
    }
    return NULL;
}

int fake_faults_set(const char *spec)
{
    struct fake_faults f;
    memset(&f, 0, sizeof(f));
    for (const char *p = spec; p != NULL && *p != '\0'; p += *p == ',') {
        p = set_one(&f, p);
        if (p == NULL || (*p != ',' && *p != '\0')) {
            return -1;
        }
    }
    fake_nic.faults = f;
    return 0;
}

FAKE_EXPORT fakeverbs_faults_fn fakeverbs_faults;
int fakeverbs_faults(const char *spec)
{
    pthread_mutex_lock(&fake_nic.lock);
    int rc = fake_faults_set(spec);
    fake_nic.resent = 0;
    pthread_mutex_unlock(&fake_nic.lock);
    return rc;
}

FAKE_EXPORT fakeverbs_live_fn fakeverbs_live;
unsigned fakeverbs_live(void)
{
    pthread_mutex_lock(&fake_nic.lock);
    unsigned n = fake_nic.live;
    pthread_mutex_unlock(&fake_nic.lock);
    return n;
}

FAKE_EXPORT fakeverbs_resent_fn fakeverbs_resent;
unsigned fakeverbs_resent(void)
{
    pthread_mutex_lock(&fake_nic.lock);
    unsigned n = fake_nic.resent;
    pthread_mutex_unlock(&fake_nic.lock);
    return n;
}
