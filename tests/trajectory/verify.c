/* What the ledgers say when all is over, against what producers were told. Recomputes every payload. */
#include "base/hash.h"
#include "tests/trajectory/world.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ENTRIES_AT_ONCE 4096u
#define FILES_MAX 64u /* of one consumer, its log's segments among them */

struct consumed {  /* of one stream */
    uint64_t next; /* all before it are consumed, and nothing after it but what has its bit set */
    uint64_t *bits;
    uint64_t words, beyond;
};

struct audit {
    struct world *w;
    uint32_t rank;
    struct consumed *stream[PRODUCERS_MAX]; /* [EPOCHS_MAX] */
    uint32_t newest[PRODUCERS_MAX];         /* epoch of the last entry */
    uint8_t payload[PAYLOAD_MAX];
    struct verdict *verdict;
};

static uint64_t sent_of(const struct audit *a, uint32_t worker, uint32_t epoch)
{
    return atomic_load_explicit(&a->w->producer[worker].stream[epoch][a->rank].sent, memory_order_acquire);
}

/* False: it was consumed before. Out of memory ends the soak: nothing can be said without it. */
static bool consume(struct audit *a, struct consumed *c, uint64_t sequence, uint64_t sent)
{
    if (sequence < c->next) {
        return false;
    }
    if (sequence == c->next && c->beyond == 0) {
        c->next++;
        return true;
    }
    if (c->bits == NULL) {
        c->words = sent / 64 + 1;
        c->bits = calloc(c->words, sizeof *c->bits);
    }
    if (c->bits == NULL) {
        world_complain(a->w, "no memory to check the ledgers");
        return false;
    }
    uint64_t *word = &c->bits[sequence / 64], bit = UINT64_C(1) << sequence % 64;
    if ((*word & bit) != 0) {
        return false;
    }
    *word |= bit;
    c->beyond++;
    while (c->next / 64 < c->words && (c->bits[c->next / 64] >> c->next % 64 & 1) != 0) {
        c->next++;
        c->beyond--;
    }
    return true;
}

static uint64_t digest_of(struct audit *a, const struct ledger_entry *e)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < e->count; i++) {
        uint32_t bytes = record_bytes(a->w, e->worker, e->epoch, a->rank, e->first + i);
        record_fill(a->w, e->worker, e->epoch, a->rank, e->first + i, a->payload, bytes);
        sum += corral_digest_of(a->payload, bytes).lo;
    }
    return sum;
}

static bool check_entry(struct audit *a, const struct ledger_entry *e)
{
    if (e->worker >= a->w->producers || e->epoch == 0 || e->epoch >= EPOCHS_MAX || e->count == 0) {
        world_complain(a->w, "consumer %u's ledger: an entry of %u/%u", a->rank, e->worker, e->epoch);
        return false;
    }
    struct consumed *c = &a->stream[e->worker][e->epoch];
    uint64_t sent = sent_of(a, e->worker, e->epoch), before = c->next;
    c->next = c->next == 0 ? 1 : c->next;
    for (uint64_t s = e->first; s < e->first + e->count; s++) {
        if (s == 0 || s > sent) {
            world_complain(a->w, "consumer %u consumed %u/%u/%" PRIu64 ", which was never sent", a->rank,
                           e->worker, e->epoch, s);
            return false;
        }
        if (!consume(a, c, s, sent)) {
            world_complain(a->w, "consumer %u consumed %u/%u/%" PRIu64 " twice", a->rank, e->worker, e->epoch,
                           s);
            return false;
        }
    }
    if (world_in_order(a->w, a->rank) &&
        (e->first != (before == 0 ? 1 : before) || e->epoch < a->newest[e->worker])) {
        world_complain(a->w, "consumer %u consumed %u/%u/%" PRIu64 " out of order", a->rank, e->worker,
                       e->epoch, e->first);
        return false;
    }
    a->newest[e->worker] = e->epoch;
    if (!a->w->soak &&
        digest_of(a, e) != e->digest) { /* the soak's are too many: the consumer compared them */
        world_complain(a->w, "consumer %u: payloads of %u/%u/%" PRIu64 " and %u after it are wrong", a->rank,
                       e->worker, e->epoch, e->first, e->count - 1);
        return false;
    }
    a->verdict->consumed += e->count;
    return true;
}

static bool read_ledger(struct audit *a)
{
    static struct ledger_entry entries[ENTRIES_AT_ONCE];
    char path[PATH_BYTES];
    uint64_t left;
    world_path(a->w, a->rank, "ledger", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !checkpoint_ledger_bytes(a->w, a->rank, &left)) {
        world_complain(a->w, "consumer %u left no ledger or no checkpoint", a->rank);
        left = 0;
    }
    bool right = fd >= 0;
    while (right && left > 0) {
        uint64_t want = left < sizeof entries ? left : sizeof entries;
        ssize_t n = read(fd, entries, want);
        if (n <= 0 || n % (ssize_t)sizeof entries[0] != 0) {
            world_complain(a->w, "consumer %u's ledger ends before what its checkpoint counts", a->rank);
            right = false;
        }
        for (uint64_t i = 0; right && i < (uint64_t)n / sizeof entries[0]; i++) {
            right = check_entry(a, &entries[i]);
        }
        left -= right ? (uint64_t)n : 0;
    }
    if (fd >= 0) {
        close(fd);
    }
    return right;
}

/* All that producers were told is there, and nothing is missing before what else is there. */
static bool check_streams(struct audit *a)
{
    for (uint32_t p = 0; p < a->w->producers; p++) {
        uint32_t epochs = atomic_load_explicit(&a->w->producer[p].epoch, memory_order_acquire);
        for (uint32_t e = 1; e <= epochs; e++) {
            struct consumed *c = &a->stream[p][e];
            uint64_t last = c->next == 0 ? 0 : c->next - 1;
            uint64_t acked =
                atomic_load_explicit(&a->w->producer[p].stream[e][a->rank].acked, memory_order_acquire);
            if (last < acked || c->beyond > 0) {
                world_complain(a->w,
                               "LOST: consumer %u consumed %u/%u up to %" PRIu64 " and %" PRIu64
                               " beyond, but %" PRIu64 " are acknowledged",
                               a->rank, p, e, last, c->beyond, acked);
                return false;
            }
            a->verdict->streams += sent_of(a, p, e) > 0;
            a->verdict->acked += acked;
            a->verdict->unacked += last - acked;
        }
    }
    return true;
}

/* Nothing piles up beside the ledger: temporary files, segments, sockets. */
static bool check_files(struct audit *a, const char *name)
{
    char path[PATH_BYTES];
    uint32_t files = 0;
    world_path(a->w, a->rank, name, path);
    DIR *folder = opendir(path);
    for (struct dirent *e = folder ? readdir(folder) : NULL; e; e = readdir(folder)) {
        struct stat st;
        if (e->d_name[0] != '.' && fstatat(dirfd(folder), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            files++;
            a->verdict->log_bytes += strcmp(name, "log") == 0 ? (uint64_t)st.st_size : 0;
            if (strstr(e->d_name, "tmp") != NULL) {
                world_complain(a->w, "consumer %u left %s/%s behind", a->rank, path, e->d_name);
            }
        }
    }
    if (folder) {
        closedir(folder);
    }
    if (!folder || files > FILES_MAX) {
        world_complain(a->w, "consumer %u has %u files in %s", a->rank, files, path);
    }
    return folder && files <= FILES_MAX;
}

bool verify_ledgers(struct world *w, struct verdict *out)
{
    static struct audit a;
    bool right = true;
    memset(out, 0, sizeof *out);
    for (uint32_t rank = 0; right && rank < w->consumers; rank++) {
        memset(&a, 0, sizeof a);
        a.w = w;
        a.rank = rank;
        a.verdict = out;
        for (uint32_t p = 0; right && p < w->producers; p++) {
            right = (a.stream[p] = calloc(EPOCHS_MAX, sizeof *a.stream[p])) != NULL;
        }
        right =
            right && read_ledger(&a) && check_streams(&a) && check_files(&a, "") && check_files(&a, "log");
        for (uint32_t p = 0; p < w->producers; p++) {
            for (uint32_t e = 0; a.stream[p] && e < EPOCHS_MAX; e++) {
                free(a.stream[p][e].bits);
            }
            free(a.stream[p]);
        }
    }
    return right && atomic_load_explicit(&w->complaints, memory_order_acquire) == 0;
}
