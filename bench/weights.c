/* A whole push of a real model's shapes: 8 trainer ranks with flat FSDP ranges to an engine of tensor parallel 2 with fused qkv and gate_up. Per lane: seconds, GB/s, the share of what the same machine does
 * with the same bytes in the same run (memcpy by all cores for shm, a raw socket per core for tcp), and where the time went. Every push is verified: the protocol compares digests of what arrived in its final
 * place, and the benchmark compares all of them once more with the source's.
 *
 *     weights [--model 9b|qwen3-8b|tiny] [--lanes shm,tcp] [--bucket MiB] [--rounds N] [--in-place] [--delta FRACTION] [--cast e4m3|e5m2]
 *
 * --delta: every push after the first changes that fraction of the elements and goes as a delta. The version before is synthesised as the versions are: another window at the trainer, out of which the engine's
 * side, too, reads what it would have kept (with --in-place the engine has it in its own memory).
 * --cast: linear weights go as fp8 with a scale per 128 elements of a row; GB/s are of what is moved.
 *
 * Memory is bounded whatever the model (weights_memory.h), so the engine's side pays one more copy than an engine would; --in-place gives the engine real memory, all of it.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "bench/weights_memory.h"
#include "bench/weights_model.h"
#include "bench/weights_yardstick.h"
#include "transport/weights/api/buffers.h"
#include "transport/weights/cast/source.h"
#include "transport/weights/push/push.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define RANKS_MAX 16u
#define DEADLINE_S 600u
#define NAME_MAX_BYTES 16u

static const struct corral_push_identity identity = {.run = 1, .generation = 1, .secret = "benchmark"};

struct engine { /* one destination rank; a push target */
    uint32_t rank;
    struct bench *bench;
    struct corral_shard shard;
    struct bench_destination *windows; /* NULL: in place */
    _Atomic uint64_t version;
    struct corral_digest digest;
    struct corral_push_receiver *receiver;
};

struct trainer { /* one source rank and its thread */
    struct bench *bench;
    uint32_t rank;
    struct corral_shard weights; /* as trained */
    struct corral_cast_source *cast;
    struct corral_shard shard; /* as pushed: the same, or cast */
    struct corral_push_sender *sender;
    pthread_t thread;
    struct corral_push_result result;
    enum corral_status status;
    struct corral_error err;
};

struct bench {
    const char *lanes;
    uint64_t bucket_bytes, version;
    uint32_t rounds, trainers, engines;
    bool in_place, cast;
    double delta; /* fraction that changes; negative: whole versions */
    struct corral_cast_rule rule;
    struct corral_shard before[RANKS_MAX]; /* the trainers' memory of the version before */
    double plan_s;
    struct corral_layout *weights; /* the trainer's; `source` is it, or what it is cast to */
    struct corral_layout *source, *destination;
    struct corral_reshard_plan *plan;
    struct corral_link *link[RANKS_MAX][RANKS_MAX]; /* by destination, source */
    struct trainer trainer[RANKS_MAX];
    struct engine engine[RANKS_MAX];
};

static double seconds_since(uint64_t begun)
{
    return (double)(corral_now_ns(&corral_clock_monotonic) - begun) / 1e9;
}

/* ---- the engine's side ---- */

static void engine_current(void *ctx, uint64_t *version, struct corral_digest *digest)
{
    const struct engine *e = ctx;
    *version = atomic_load_explicit(&e->version, memory_order_acquire);
    *digest = e->digest;
}

static enum corral_status engine_begin(void *ctx, uint64_t version, uint64_t base,
                                       struct corral_shard *shadow, struct corral_error *err)
{
    (void)version, (void)base, (void)err;
    *shadow = ((struct engine *)ctx)->shard;
    return CORRAL_OK;
}

static enum corral_status engine_commit(void *ctx, uint64_t version, struct corral_digest digest,
                                        struct corral_error *err)
{
    (void)err;
    struct engine *e = ctx;
    e->digest = digest;
    atomic_store_explicit(&e->version, version, memory_order_release);
    return CORRAL_OK;
}

static void engine_abort(void *ctx, uint64_t version, int32_t tainted_pid)
{
    (void)ctx, (void)tainted_pid;
    fprintf(stderr, "weights: version %" PRIu64 " was aborted\n", version);
}

/* The version before: in the engine's own memory, which the next one is written over bucket by bucket, or synthesised. */
static enum corral_status engine_source_open(void *ctx, struct corral_push_source *out,
                                             struct corral_error *err)
{
    struct engine *e = ctx;
    *out = (struct corral_push_source){
        .shard = e->windows ? bench_base_shard(e->bench->before, e->shard.bytes) : e->shard,
        .digest = e->digest};
    out->version = atomic_load_explicit(&e->version, memory_order_acquire);
    return out->version ? CORRAL_OK : corral_fail(err, CORRAL_AGAIN, "no version yet");
}

static bool engine_source_intact(void *ctx, const struct corral_push_source *source)
{
    return atomic_load_explicit(&((struct engine *)ctx)->version, memory_order_acquire) == source->version;
}

static void engine_source_close(void *ctx, struct corral_push_source *source)
{
    (void)ctx, (void)source;
}

static const struct corral_push_target_ops engine_target = {.current = engine_current,
                                                            .begin = engine_begin,
                                                            .commit = engine_commit,
                                                            .abort = engine_abort,
                                                            .source_open = engine_source_open,
                                                            .source_intact = engine_source_intact,
                                                            .source_close = engine_source_close};

static enum corral_status engine_memory(struct bench *b, struct engine *e, struct corral_error *err)
{
    uint64_t bytes = b->destination->rank_bytes[e->rank];
    if (!b->in_place) {
        CORRAL_TRY(bench_destination_create(&e->windows, b->link[e->rank], b->trainers, err));
        e->shard = bench_destination_shard(e->windows, bytes);
        return CORRAL_OK;
    }
    int fd = memfd_create("engine", MFD_CLOEXEC);
    int code = fd < 0 ? errno : posix_fallocate(fd, 0, (off_t)bytes);
    void *memory = code == 0 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (memory == MAP_FAILED) {
        return corral_fail_sys(err, code ? code : errno, "taking %" PRIu64 " bytes for an engine", bytes);
    }
    e->shard = corral_shard_host(memory, bytes);
    e->shard.fd = fd;
    return CORRAL_OK;
}

/* ---- one lane ---- */

static enum corral_status open_lane(struct bench *b, const char *lane, struct corral_error *err)
{
    for (uint32_t i = 0; i < b->engines; i++) {
        struct corral_push_receiver_options options = {.name = i ? "engine-1" : "engine-0",
                                                       .host = "127.0.0.1",
                                                       .replica = "engine",
                                                       .rank = i,
                                                       .identity = identity,
                                                       .plan = b->plan,
                                                       .bucket_bytes = b->bucket_bytes,
                                                       .lanes = lane,
                                                       .target = &engine_target,
                                                       .target_ctx = &b->engine[i],
                                                       .silence_ns = DEADLINE_S * CORRAL_NS_PER_S};
        b->engine[i].version = 0;
        CORRAL_TRY(corral_push_receiver_start(&b->engine[i].receiver, &options, err));
    }
    for (uint32_t i = 0; i < b->trainers; i++) {
        struct corral_push_sender_options options = {.rank = i,
                                                     .leader = i == 0,
                                                     .ranks = b->trainers,
                                                     .identity = identity,
                                                     .plan = b->plan,
                                                     .bucket_bytes = b->bucket_bytes,
                                                     .lanes = lane,
                                                     .delta = b->delta >= 0,
                                                     .anchor_every = UINT32_MAX,
                                                     .base = &b->before[i],
                                                     .deadline_ns = DEADLINE_S * CORRAL_NS_PER_S};
        CORRAL_TRY(corral_push_sender_create(&b->trainer[i].sender, &options, err));
        for (uint32_t k = 0; k < b->engines; k++) {
            CORRAL_TRY(corral_push_sender_add(b->trainer[i].sender, k ? "engine-1" : "engine-0",
                                              corral_push_receiver_endpoint(b->engine[k].receiver), k,
                                              "engine", err));
        }
    }
    return CORRAL_OK;
}

static void close_lane(struct bench *b)
{
    for (uint32_t i = 0; i < b->trainers; i++) {
        corral_push_sender_destroy(b->trainer[i].sender);
        b->trainer[i].sender = NULL;
    }
    for (uint32_t i = 0; i < b->engines; i++) {
        corral_push_receiver_stop(b->engine[i].receiver);
        b->engine[i].receiver = NULL;
    }
}

/* Other bytes than last time, or what a push is found to have brought might have been there before; a delta's few come with its step. */
static void change_sources(struct bench *b)
{
    for (uint32_t i = 0; i < b->trainers && b->delta < 0; i++) {
        bench_source_change(&b->trainer[i].weights, (b->version + 1) * RANKS_MAX + i);
    }
    for (uint32_t i = 0; i < b->engines; i++) {
        if (b->engine[i].windows) {
            bench_destination_forget(b->engine[i].windows);
        }
    }
}

static void *push_main(void *arg)
{
    struct trainer *t = arg;
    if (t->cast != NULL) {
        t->status = corral_cast_source_prepare(t->cast, &t->err);
        if (t->status != CORRAL_OK) {
            return NULL;
        }
    }
    t->status = corral_push_sender_push(t->sender, t->bench->version, t->bench->version - 1, &t->shard,
                                        &t->result, &t->err);
    return NULL;
}

struct stages {
    double total, pack, wire, stage, commit, pause, apply, flip;
    uint32_t resent;
    uint64_t moved;
};

static enum corral_status push(struct bench *b, struct stages *s, struct corral_error *err)
{
    b->version++;
    for (uint32_t i = 0; i < b->trainers && b->delta >= 0; i++) {
        bench_source_step(&b->trainer[i].weights, &b->before[i], b->delta, b->version * RANKS_MAX + i);
    }
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    for (uint32_t i = 0; i < b->trainers; i++) {
        int code = pthread_create(&b->trainer[i].thread, NULL, push_main, &b->trainer[i]);
        if (code != 0) {
            return corral_fail_sys(err, code, "starting a trainer rank");
        }
    }
    *s = (struct stages){0};
    for (uint32_t i = 0; i < b->trainers; i++) {
        pthread_join(b->trainer[i].thread, NULL);
        s->total = CORRAL_MAX(s->total, seconds_since(begun));
    }
    for (uint32_t i = 0; i < b->trainers; i++) {
        const struct trainer *t = &b->trainer[i];
        if (t->status != CORRAL_OK || t->result.applied != b->engines) {
            return t->status != CORRAL_OK ? corral_fail(err, t->status, "rank %u: %s", i, t->err.text)
                                          : corral_fail(err, CORRAL_PEER, "rank %u: applied by %u of %u", i,
                                                        t->result.applied, b->engines);
        }
        s->pack = CORRAL_MAX(s->pack, (double)t->result.pack_ns / 1e9);
        s->wire = CORRAL_MAX(s->wire, (double)t->result.wire_ns / 1e9);
        s->stage = CORRAL_MAX(s->stage, (double)t->result.stage_ns / 1e9);
        s->commit = CORRAL_MAX(s->commit, (double)t->result.commit_ns / 1e9);
        s->pause = CORRAL_MAX(s->pause, (double)t->result.pause_ns / 1e9);
        s->resent += t->result.resent_buckets;
        s->moved += t->result.moved;
    }
    for (uint32_t i = 0; i < b->engines; i++) {
        struct corral_push_receiver_status r;
        corral_push_receiver_status(b->engine[i].receiver, &r);
        s->apply = CORRAL_MAX(s->apply, (double)r.apply_ns / 1e9);
        s->flip = CORRAL_MAX(s->flip, (double)r.flip_ns / 1e9);
    }
    return CORRAL_OK;
}

/* Every bucket, from the source's memory as it is now against what the engine has. */
static enum corral_status verify(const struct bench *b, struct corral_error *err)
{
    for (uint32_t d = 0; d < b->engines; d++) {
        const struct engine *e = &b->engine[d];
        for (uint32_t s = 0; s < b->trainers; s++) {
            const struct corral_link *link = b->link[d][s];
            for (uint32_t i = 0; i < link->buckets; i++) {
                struct corral_shard *from = (struct corral_shard *)(uintptr_t)&b->trainer[s].shard;
                struct corral_digest want;
                CORRAL_TRY(from->ops->digest(from, link, CORRAL_LINK_SOURCE, i, &want, err));
                struct corral_digest have =
                    e->windows ? bench_destination_digest(e->windows, s, i)
                               : corral_link_digest(link, i, CORRAL_LINK_DESTINATION, e->shard.host);
                if (!corral_digest_equal(want, have)) {
                    return corral_fail(err, CORRAL_PROTOCOL,
                                       "bucket %u from rank %u to rank %u is not what was sent", i, s, d);
                }
            }
        }
    }
    return CORRAL_OK;
}

static enum corral_status measure(struct bench *b, const char *lane, struct corral_error *err)
{
    struct stages best = {0};
    double gb = (double)b->plan->bytes / 1e9, yardstick, share = 0;
    CORRAL_TRY(open_lane(b, lane, err));
    for (uint32_t i = 0; i <= b->rounds;
         i++) { /* the first one connects and touches every page: not counted */
        struct stages s = {0};
        change_sources(b);
        CORRAL_TRY(push(b, &s, err));
        CORRAL_TRY(verify(b, err));
        CORRAL_TRY(bench_yardstick(lane, b->plan->bytes, &yardstick, err));
        if (i > 0 && (best.total == 0 || s.total < best.total)) {
            best = s;
            share = yardstick / s.wire * ((double)s.moved / (double)b->plan->bytes);
        }
    }
    close_lane(b);
    printf("%-5s %8.3f %8.2f %7.0f %%  %8.3f %8.3f %8.3f %8.3f %9.3f %9.3f  %u\n", lane, best.total,
           gb / best.total, 100 * share, best.pack, best.wire, best.apply, best.commit, best.flip * 1e3,
           best.pause * 1e3, best.resent);
    if (b->delta >= 0) {
        printf("      delta: %.2f %% of the elements changed; moved %.1f MB for %.2f GB of weights (%.2f "
               "%%), %.2f "
               "GB/s of weights\n",
               100 * b->delta, (double)best.moved / 1e6, gb, (double)best.moved / 1e7 / gb, gb / best.total);
    }
    return CORRAL_OK;
}

/* ---- set-up ---- */

static enum corral_status trainer_memory(struct bench *b, struct trainer *t, struct corral_error *err)
{
    CORRAL_TRY(bench_source(&t->weights, b->weights->rank_bytes[t->rank], t->rank + 1, err));
    t->shard = t->weights;
    if (b->delta >= 0) {
        CORRAL_TRY(bench_source(&b->before[t->rank], b->weights->rank_bytes[t->rank], t->rank + 1, err));
    }
    if (b->cast) {
        struct corral_cast_memory memory = {.host = t->weights.host};
        CORRAL_TRY(corral_cast_source_create(&t->cast, b->weights, &b->rule, 1, t->rank, &memory, err));
        t->shard = corral_cast_source_shard(t->cast);
    }
    return CORRAL_OK;
}

static enum corral_status prepare(struct bench *b, const char *model, struct corral_error *err)
{
    CORRAL_TRY(bench_model(model, &b->source, &b->destination, err));
    b->weights = b->source;
    if (b->cast) {
        struct corral_layout *engines = b->destination;
        CORRAL_TRY(corral_cast_layout(b->weights, &b->rule, 1, &b->source, err));
        CORRAL_TRY(corral_cast_layout(engines, &b->rule, 1, &b->destination, err));
        corral_layout_destroy(engines);
    }
    b->trainers = b->source->ranks;
    b->engines = b->destination->ranks;
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(corral_reshard_plan_build(b->source, b->destination, &b->plan, err));
    b->plan_s = seconds_since(begun);
    uint64_t windows = 0, all = 0;
    for (uint32_t d = 0; d < b->engines; d++) {
        for (uint32_t s = 0; s < b->trainers; s++) {
            CORRAL_TRY(corral_link_create(&b->link[d][s], b->plan, s, d, b->bucket_bytes, err));
        }
        b->engine[d].rank = d;
        b->engine[d].bench = b;
        CORRAL_TRY(engine_memory(b, &b->engine[d], err));
        windows += b->in_place ? b->engine[d].shard.bytes : bench_destination_memory(b->engine[d].windows);
        all += b->destination->rank_bytes[d];
    }
    for (uint32_t s = 0; s < b->trainers; s++) {
        b->trainer[s].bench = b;
        b->trainer[s].rank = s;
        CORRAL_TRY(trainer_memory(b, &b->trainer[s], err));
    }
    printf("%s: %u tensors, %.2f GB, %u FSDP ranks -> TP%u; buckets of %.1f MiB; engines hold %.2f GB in "
           "%.2f GB of "
           "memory\n",
           model, b->source->tensor_count, (double)b->plan->bytes / 1e9, b->trainers, b->engines,
           (double)b->bucket_bytes / (1 << 20), (double)all / 1e9, (double)windows / 1e9);
    return CORRAL_OK;
}

/* ---- the flip ---- */

struct watcher {
    struct corral_buffers *buffers;
    atomic_bool stop;
    uint64_t longest_ns, reads;
};

static void *watch(void *arg)
{
    struct watcher *w = arg;
    struct corral_weights_view view = {.size = sizeof view};
    while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
        uint64_t begun = corral_now_ns(&corral_clock_monotonic);
        if (corral_buffers_acquire(w->buffers, &view, NULL) == CORRAL_OK) {
            uint64_t took = corral_now_ns(&corral_clock_monotonic) - begun;
            w->longest_ns = CORRAL_MAX(w->longest_ns, took);
            w->reads++;
            corral_buffers_release(w->buffers, view.buffer);
        }
    }
    return NULL;
}

/* A reader that wants the weights all the time, while versions become current. */
static enum corral_status measure_flip(uint64_t bytes, struct corral_error *err)
{
    struct corral_buffers_options o = {
        .bytes = bytes, .count = 2, .auto_flip = true, .busy_wait_ns = CORRAL_NS_PER_S};
    CORRAL_CLEANUP(corral_buffers_destroyp) struct corral_buffers *buffers = NULL;
    CORRAL_TRY(corral_buffers_create(&buffers, &o, err));
    struct watcher w = {.buffers = buffers};
    pthread_t thread;
    int code = pthread_create(&thread, NULL, watch, &w);
    if (code != 0) {
        return corral_fail_sys(err, code, "starting a reader");
    }
    enum corral_status status = CORRAL_OK;
    const uint32_t flips = 200;
    for (uint64_t v = 1; v <= flips && status == CORRAL_OK; v++) {
        struct corral_shard shadow;
        (void)nanosleep(&(struct timespec){.tv_nsec = 500000},
                        NULL); /* the reader is at it between any two */
        status = corral_buffers_target.begin(buffers, v, 0, &shadow, err);
        if (status == CORRAL_OK) {
            *(uint64_t *)shadow.host = v;
            status = corral_buffers_target.commit(buffers, v, (struct corral_digest){v, v}, err);
        }
    }
    atomic_store_explicit(&w.stop, true, memory_order_relaxed);
    pthread_join(thread, NULL);
    uint64_t last, longest;
    corral_buffers_times(buffers, &last, &longest);
    printf("flip  %8.0f MiB staged: a reader waited at most %.4f ms over %u flips (%" PRIu64
           " reads); a flip took at most %.4f ms\n",
           (double)bytes / (1 << 20), (double)w.longest_ns / 1e6, flips, w.reads, (double)longest / 1e6);
    return status;
}

/* ---- the program ---- */

static enum corral_status run(struct bench *b, const char *model, struct corral_error *err)
{
    CORRAL_TRY(prepare(b, model, err));
    printf("plan  %8.3f s, %u copies, %.1f %% of the bytes in one run each\n", b->plan_s, b->plan->copy_count,
           100.0 * (double)b->plan->contiguous_bytes / (double)b->plan->bytes);
    printf("%-5s %8s %8s %9s  %8s %8s %8s %8s %9s %9s  %s\n", "lane", "seconds", "GB/s", "of limit", "pack s",
           "wire s", "apply s", "commit s", "flip ms", "pause ms", "resent");
    char list[64];
    snprintf(list, sizeof list, "%s", b->lanes);
    char *rest = list;
    for (char *lane; (lane = strsep(&rest, ",")) != NULL;) {
        CORRAL_TRY(measure(b, lane, err));
        (void)fflush(stdout);
    }
    bool small = strcmp(model, "tiny") == 0;
    for (uint64_t mib = 16; mib <= (small ? 16 : 1024); mib *= 8) {
        CORRAL_TRY(measure_flip(mib << 20, err));
    }
    return CORRAL_OK;
}

int main(int argc, char **argv)
{
    static struct bench b = {.lanes = "shm,tcp", .bucket_bytes = 8u << 20, .rounds = 3, .delta = -1};
    struct corral_error err = {0};
    const char *model = "9b";
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "weights"); /* closing a lane is told as a warning */
    for (int i = 1; i < argc; i++) {
        uint64_t number = 0;
        bool with_value = i + 1 < argc;
        if (strcmp(argv[i], "--in-place") == 0) {
            b.in_place = true;
        } else if (strcmp(argv[i], "--model") == 0 && with_value) {
            model = argv[++i];
        } else if (strcmp(argv[i], "--lanes") == 0 && with_value) {
            b.lanes = argv[++i];
        } else if (strcmp(argv[i], "--bucket") == 0 && with_value && corral_parse_u64(argv[++i], &number)) {
            b.bucket_bytes = number << 20;
        } else if (strcmp(argv[i], "--rounds") == 0 && with_value && corral_parse_u64(argv[++i], &number)) {
            b.rounds = (uint32_t)CORRAL_MAX(number, 1u);
        } else if (strcmp(argv[i], "--delta") == 0 && with_value) {
            b.delta = strtod(argv[++i], NULL);
        } else if (strcmp(argv[i], "--cast") == 0 && with_value) {
            b.cast = true;
            b.rule.to = strcmp(argv[++i], "e5m2") == 0 ? CORRAL_DTYPE_F8_E5M2 : CORRAL_DTYPE_F8_E4M3;
            b.rule.scaling = CORRAL_CAST_BLOCKS;
        } else {
            fprintf(stderr,
                    "usage: weights [--model 9b|qwen3-8b|tiny] [--lanes LIST] [--bucket MiB] [--rounds N] "
                    "[--in-place] [--delta FRACTION] [--cast e4m3|e5m2]\n");
            return 2;
        }
    }
    if (b.delta > 1 || (b.delta >= 0 && b.cast)) {
        fprintf(stderr, "weights: --delta is a fraction of 1, and not with --cast\n");
        return 2;
    }
    if (strcmp(model, "tiny") == 0) {
        b.bucket_bytes = CORRAL_MIN(b.bucket_bytes, 64u << 10);
    }
    if (run(&b, model, &err) != CORRAL_OK) {
        fprintf(stderr, "weights: %s\n", err.text);
        return 1;
    }
    return 0;
}
