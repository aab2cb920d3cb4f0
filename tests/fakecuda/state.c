#include "tests/fakecuda/state.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATE_MAGIC UINT32_C(0x464b4355)

struct process {
    pid_t pid; /* 0: free */
    uint64_t start_time;
    uint32_t busy[FAKE_DEVICES_MAX];
};
struct block {
    uint32_t generation;
    uint32_t owner; /* process + 1; 0: has let go or died */
    uint32_t shares;
    uint32_t device;
    uint32_t used;
    uint32_t next_free; /* block + 1 */
    uint64_t bytes, inode;
};
struct share {
    uint32_t process; /* + 1; 0: free */
    uint32_t block;
};
struct state {
    uint32_t magic, devices;
    uint64_t memory, context_bytes, seed;
    pthread_mutex_t lock;
    uint64_t used[FAKE_DEVICES_MAX];
    uint32_t block_high, free_block, share_high;
    struct process process[FAKE_PROCESSES_MAX];
    struct share share[FAKE_SHARES_MAX];
    struct block block[FAKE_BLOCKS_MAX];
};

static struct state *state;
static uint32_t self; /* process slot + 1 */

static uint64_t parse_bytes(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);
    if (text == NULL || !isdigit((unsigned char)*text)) {
        return otherwise;
    }
    char *unit;
    uint64_t n = strtoull(text, &unit, 10);
    static const struct {
        const char *name;
        unsigned shift;
    } units[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    for (unsigned i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(unit, units[i].name) == 0) {
            return n << units[i].shift;
        }
    }
    return n;
}

/* Start time of a live process; 0 when it is gone or only waits to be collected. */
static uint64_t start_time(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    char *p = strrchr(text, ')'); /* the name before it may hold anything */
    if (p == NULL || p[1] == '\0' || p[2] == 'Z' || p[2] == 'X') {
        return 0;
    }
    p += 2;
    for (int field = 3; field < 22 && p != NULL; field++) {
        p = strchr(p + 1, ' ');
    }
    return p != NULL ? strtoull(p + 1, NULL, 10) : 0;
}

static uint64_t hash_text(const char *text)
{
    uint64_t h = UINT64_C(1469598103934665603);
    for (; *text != '\0'; text++) {
        h = (h ^ (unsigned char)*text) * UINT64_C(1099511628211);
    }
    return h;
}

static void init_state(struct state *s, const char *name)
{
    const char *devices = getenv("CORRAL_FAKECUDA_DEVICES");
    long n = devices != NULL ? strtol(devices, NULL, 10) : 1;
    s->devices = (uint32_t)(n < 0 ? 0 : n > FAKE_DEVICES_MAX ? FAKE_DEVICES_MAX : n);
    s->memory = parse_bytes("CORRAL_FAKECUDA_MEMORY", UINT64_C(1) << 30);
    s->context_bytes = parse_bytes("CORRAL_FAKECUDA_CONTEXT", UINT64_C(16) << 20);
    s->seed = name != NULL ? hash_text(name) : 1;
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&s->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    s->magic = STATE_MAGIC; /* last: a creator that died before is followed by another */
}

static struct state *map_file(const char *name)
{
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return NULL;
    }
    struct stat st;
    struct state *s = NULL;
    if (flock(fd, LOCK_EX) == 0 && fstat(fd, &st) == 0 &&
        ((size_t)st.st_size == sizeof *s || ftruncate(fd, sizeof *s) == 0)) {
        void *p = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        s = p == MAP_FAILED ? NULL : p;
    }
    if (s != NULL && s->magic != STATE_MAGIC) {
        init_state(s, name);
    }
    flock(fd, LOCK_UN); /* the mapping keeps the open file, and with it the lock, alive */
    close(fd);
    return s;
}

static pthread_once_t opened = PTHREAD_ONCE_INIT;

static void open_once(void)
{
    const char *name = getenv("CORRAL_FAKECUDA_STATE");
    if (name != NULL && *name != '\0') {
        state = map_file(name);
        return;
    }
    void *p =
        mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) {
        state = p;
        init_state(state, NULL);
    }
}

bool fake_state_open(void)
{
    pthread_once(&opened, open_once);
    return state != NULL;
}

/* Everything that can be derived is, from the blocks, owners and shares. */
static void recompute(void)
{
    memset(state->used, 0, sizeof state->used);
    for (uint32_t i = 0; i < state->block_high; i++) {
        state->block[i].shares = 0;
    }
    for (uint32_t i = 0; i < state->share_high; i++) {
        if (state->share[i].process != 0 && state->block[state->share[i].block].used != 0) {
            state->block[state->share[i].block].shares++;
        }
    }
    state->free_block = 0;
    for (uint32_t i = 0; i < state->block_high; i++) {
        struct block *b = &state->block[i];
        if (b->used != 0 && b->owner == 0 && b->shares == 0) {
            b->used = 0;
        }
        if (b->used != 0) {
            state->used[b->device] += b->bytes;
        } else {
            b->next_free = state->free_block;
            state->free_block = i + 1;
        }
    }
}

static void lock_state(void)
{
    if (pthread_mutex_lock(&state->lock) == EOWNERDEAD) {
        recompute();
        pthread_mutex_consistent(&state->lock);
    }
}

static void unlock_state(void)
{
    pthread_mutex_unlock(&state->lock);
}

static void free_block_if_unused(uint32_t i)
{
    struct block *b = &state->block[i];
    if (b->used != 0 && b->owner == 0 && b->shares == 0) {
        state->used[b->device] -= b->bytes;
        b->used = 0;
        b->next_free = state->free_block;
        state->free_block = i + 1;
    }
}

static void forget_process(uint32_t p)
{
    for (uint32_t i = 0; i < state->share_high; i++) {
        if (state->share[i].process == p + 1) {
            state->share[i].process = 0;
            state->block[state->share[i].block].shares--;
            free_block_if_unused(state->share[i].block);
        }
    }
    for (uint32_t i = 0; i < state->block_high; i++) {
        if (state->block[i].owner == p + 1) {
            state->block[i].owner = 0;
            free_block_if_unused(i);
        }
    }
    memset(&state->process[p], 0, sizeof state->process[p]);
}

static void bury_the_dead(void)
{
    for (uint32_t p = 0; p < FAKE_PROCESSES_MAX; p++) {
        struct process *q = &state->process[p];
        if (q->pid != 0 && p + 1 != self && start_time(q->pid) != q->start_time) {
            forget_process(p);
        }
    }
}

static void forked(void)
{
    self = 0;
}

bool fake_state_join(void)
{
    lock_state();
    bury_the_dead();
    for (uint32_t p = 0; self == 0 && p < FAKE_PROCESSES_MAX; p++) {
        if (state->process[p].pid == 0) {
            state->process[p].start_time = start_time(getpid());
            state->process[p].pid = getpid();
            self = p + 1;
            pthread_atfork(NULL, NULL, forked);
        }
    }
    unlock_state();
    return self != 0;
}

uint32_t fake_state_devices(void)
{
    return state->devices;
}

uint64_t fake_state_memory(void)
{
    return state->memory;
}

uint64_t fake_state_context_bytes(void)
{
    return state->context_bytes;
}

void fake_state_uuid(uint32_t device, uint8_t uuid[16])
{
    memcpy(uuid, "fake", 4);
    memcpy(uuid + 4, &state->seed, 8);
    uuid[12] = 0;
    uuid[13] = 0;
    uuid[14] = (uint8_t)(device >> 8);
    uuid[15] = (uint8_t)device;
}

static struct block *by_name(uint64_t name)
{
    struct block *b = &state->block[(uint32_t)name % FAKE_BLOCKS_MAX];
    return b->used != 0 && b->generation == (uint32_t)(name >> 32) ? b : NULL;
}

/* With the lock held. */
static uint64_t left_to_process(uint32_t device)
{
    uint64_t limit = fake_process_limit(device), own = 0;
    for (uint32_t i = 0; limit < UINT64_MAX && i < state->block_high; i++) {
        const struct block *b = &state->block[i];
        own += b->used != 0 && b->owner == self && b->device == device ? b->bytes : 0;
    }
    return own < limit ? limit - own : 0;
}

static bool take(uint32_t device, uint64_t bytes, bool some, uint64_t *name)
{
    lock_state();
    if (bytes > state->memory - state->used[device]) {
        bury_the_dead();
    }
    uint64_t left = state->memory - state->used[device], own = left_to_process(device);
    left = left < own ? left : own;
    if (some && bytes > left) {
        bytes = left;
    }
    uint32_t i = state->free_block != 0 ? state->free_block - 1 : state->block_high;
    bool ok = self != 0 && bytes <= left && i < FAKE_BLOCKS_MAX;
    if (ok) {
        struct block *b = &state->block[i];
        if (state->free_block != 0) {
            state->free_block = b->next_free;
        } else {
            state->block_high++;
        }
        uint32_t generation = b->generation + 1;
        *b = (struct block){.generation = generation, .owner = self, .device = device, .bytes = bytes};
        b->used = 1;
        state->used[device] += bytes;
        *name = (uint64_t)generation << 32 | i;
    }
    unlock_state();
    return ok;
}

bool fake_block_take(uint32_t device, uint64_t bytes, uint64_t *block)
{
    return take(device, bytes, false, block);
}

bool fake_block_take_some(uint32_t device, uint64_t bytes, uint64_t *block)
{
    return take(device, bytes, true, block);
}

bool fake_block_resize(uint64_t name, uint64_t bytes)
{
    lock_state();
    struct block *b = by_name(name);
    bool ok = b != NULL && (bytes <= b->bytes || bytes - b->bytes <= state->memory - state->used[b->device]);
    if (ok) {
        state->used[b->device] += bytes - b->bytes;
        b->bytes = bytes;
    }
    unlock_state();
    return ok;
}

void fake_block_drop(uint64_t name)
{
    lock_state();
    struct block *b = by_name(name);
    if (b != NULL && b->owner == self) {
        b->owner = 0;
        free_block_if_unused((uint32_t)name);
    }
    unlock_state();
}

bool fake_block_share(uint64_t name)
{
    lock_state();
    struct block *b = by_name(name);
    uint32_t s = 0;
    while (s < state->share_high && state->share[s].process != 0) {
        s++;
    }
    bool ok = b != NULL && s < FAKE_SHARES_MAX && self != 0;
    if (ok) {
        state->share_high += s == state->share_high;
        state->share[s].block = (uint32_t)name;
        state->share[s].process = self;
        b->shares++;
    }
    unlock_state();
    return ok;
}

void fake_block_unshare(uint64_t name)
{
    lock_state();
    struct block *b = by_name(name);
    for (uint32_t s = 0; b != NULL && s < state->share_high; s++) {
        if (state->share[s].process == self && state->share[s].block == (uint32_t)name) {
            state->share[s].process = 0;
            b->shares--;
            free_block_if_unused((uint32_t)name);
            break;
        }
    }
    unlock_state();
}

void fake_block_set_file(uint64_t name, uint64_t inode)
{
    lock_state();
    struct block *b = by_name(name);
    if (b != NULL) {
        b->inode = inode;
    }
    unlock_state();
}

bool fake_block_by_file(uint64_t inode, uint64_t *name, uint32_t *device)
{
    lock_state();
    bury_the_dead();
    bool found = false;
    for (uint32_t i = 0; !found && i < state->block_high; i++) {
        const struct block *b = &state->block[i];
        if (b->used != 0 && b->inode == inode) {
            *name = (uint64_t)b->generation << 32 | i;
            *device = b->device;
            found = true;
        }
    }
    unlock_state();
    return found;
}

uint64_t fake_state_used(uint32_t device)
{
    lock_state();
    bury_the_dead();
    uint64_t used = state->used[device];
    unlock_state();
    return used;
}

uint32_t fake_state_usage(uint32_t device, struct fake_usage *out, uint32_t max)
{
    static _Thread_local uint64_t bytes[FAKE_PROCESSES_MAX];
    memset(bytes, 0, sizeof bytes);
    lock_state();
    bury_the_dead();
    for (uint32_t i = 0; i < state->block_high; i++) {
        const struct block *b = &state->block[i];
        if (b->used != 0 && b->device == device && b->owner != 0) {
            bytes[b->owner - 1] += b->bytes;
        }
    }
    /* What outlived its owner shows with the first that still uses it. */
    for (uint32_t s = 0; s < state->share_high; s++) {
        const struct block *b = &state->block[state->share[s].block];
        bool first = state->share[s].process != 0 && b->owner == 0 && b->device == device;
        for (uint32_t t = 0; first && t < s; t++) {
            first = state->share[t].process == 0 || state->share[t].block != state->share[s].block;
        }
        if (first) {
            bytes[state->share[s].process - 1] += b->bytes;
        }
    }
    uint32_t n = 0;
    for (uint32_t p = 0; p < FAKE_PROCESSES_MAX; p++) {
        if (bytes[p] > 0 && n < max) {
            out[n] = (struct fake_usage){state->process[p].pid, bytes[p], state->process[p].busy[device]};
        }
        n += bytes[p] > 0;
    }
    unlock_state();
    return n;
}

void fake_state_set_busy(uint32_t device, uint32_t percent)
{
    lock_state();
    if (self != 0) {
        state->process[self - 1].busy[device] = percent > 100 ? 100 : percent;
    }
    unlock_state();
}
