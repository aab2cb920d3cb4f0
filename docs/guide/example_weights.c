/* A trainer of two ranks pushes three versions of a small model to an engine of two shards. Three processes; cards travel as files in a folder.
 *
 *     example_weights trainer 0 DIR &  example_weights trainer 1 DIR &  example_weights engine DIR
 *
 * The run's number and secret are in the environment (CORRAL_WEIGHTS_RUN, CORRAL_WEIGHTS_SECRET), as a launcher would set them. */
#include <corral/weights.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRAINERS = 2, SHARDS = 2, VERSIONS = 3, ROWS = 64, COLUMNS = 32 };
static struct corral_error err;

static void must(enum corral_status status, const char *what)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, corral_status_name(status), err.text);
        exit(1);
    }
}

/* Both sides name the same tensors. The trainer's ranks have flat halves (FSDP); the engine's shards have halves of the rows of "up", of the columns of "down", and all of "norm". */
static struct corral_weights_layout *layout(int engine)
{
    struct corral_weights_layout *l;
    uint64_t whole[2] = {ROWS, COLUMNS}, norm[1] = {COLUMNS};
    uint32_t up, down, scale;
    must(corral_weights_layout_create(&l, engine ? SHARDS : TRAINERS, &err), "layout");
    must(corral_weights_layout_tensor(l, "mlp.up", CORRAL_WEIGHTS_F32, 2, whole, &up, &err), "up");
    must(corral_weights_layout_tensor(l, "mlp.down", CORRAL_WEIGHTS_F32, 2, whole, &down, &err), "down");
    must(corral_weights_layout_tensor(l, "norm", CORRAL_WEIGHTS_F32, 1, norm, &scale, &err), "norm");
    for (uint32_t r = 0; r < 2; r++) {
        const uint64_t half = ROWS * COLUMNS / 2, next = CORRAL_WEIGHTS_NEXT;
        if (engine) {
            must(corral_weights_layout_slice(l, up, r, 0, r * ROWS / 2, ROWS / 2, next, NULL, &err), "rows");
            must(corral_weights_layout_slice(l, down, r, 1, r * COLUMNS / 2, COLUMNS / 2, next, NULL, &err), "columns");
            must(corral_weights_layout_whole(l, scale, r, next, NULL, &err), "norm");
        } else {
            must(corral_weights_layout_flat(l, up, r, r * half, half, next, NULL, &err), "flat");
            must(corral_weights_layout_flat(l, down, r, r * half, half, next, NULL, &err), "flat");
            must(corral_weights_layout_flat(l, scale, r, r * COLUMNS / 2, COLUMNS / 2, next, NULL, &err), "flat");
        }
    }
    return l;
}

/* ---- cards as files: written aside and renamed, so that a reader finds all of one or none ---- */

static void leave(const char *dir, const char *name, const void *card, uint64_t bytes)
{
    char path[512], aside[520];
    snprintf(path, sizeof path, "%s/%s.card", dir, name);
    snprintf(aside, sizeof aside, "%s.new", path);
    FILE *f = fopen(aside, "wb");
    if (!f || fwrite(card, 1, bytes, f) != bytes || fclose(f) != 0 || rename(aside, path) != 0) {
        perror(path);
        exit(1);
    }
}

static uint64_t fetch(const char *dir, const char *name, void *card, uint64_t room)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s.card", dir, name);
    for (int tries = 0; tries < 3000; tries++) {
        FILE *f = fopen(path, "rb");
        if (f) {
            uint64_t bytes = fread(card, 1, room, f);
            fclose(f);
            return bytes;
        }
        usleep(10000);
    }
    fprintf(stderr, "%s did not come\n", path);
    exit(1);
}

/* ---- the trainer ---- */

static void train(uint32_t rank, const char *dir)
{
    static unsigned char card[1 << 16];
    struct corral_weights_layout *l = layout(0);
    uint64_t bytes = corral_weights_layout_bytes(l, rank), card_bytes = sizeof card;
    float *weights = calloc(1, bytes);
    struct corral_weights_region memory = {.size = sizeof memory, .device = -1, .bytes = bytes, .address = weights};
    struct corral_weights_publisher_options options = {
        .size = sizeof options, .rank = rank, .layout = l, .regions = &memory, .region_count = 1};
    struct corral_weights_publisher *p;
    must(corral_weights_publisher_open(&p, &options, &err), "publisher");
    if (rank == 0) {
        must(corral_weights_publisher_card(p, card, &card_bytes, &err), "card");
        leave(dir, "trainer", card, card_bytes);
    }
    for (int s = 0; s < SHARDS; s++) {
        const char *const name[SHARDS] = {"engine.tp0", "engine.tp1"};
        must(corral_weights_publisher_add(p, card, fetch(dir, name[s], card, sizeof card), &err), name[s]);
    }
    for (uint64_t version = 1; version <= VERSIONS; version++) {
        for (uint64_t i = 0; i < bytes / 4; i++) { /* a gradient step */
            weights[i] = (float)version;
        }
        struct corral_weights_result r = {.size = sizeof r};
        must(corral_weights_publish(p, version, &r, &err), "publish");
        if (rank == 0) {
            printf("trainer: version %llu applied by %u of %u shards\n", (unsigned long long)version, r.applied, r.subscribers);
        }
    }
    corral_weights_publisher_close(p);
    corral_weights_layout_destroy(l);
    free(weights);
}

/* ---- the engine ---- */

static void serve(const char *dir)
{
    static unsigned char trainer[1 << 16], card[1 << 16];
    struct corral_weights_layout *l = layout(1);
    struct corral_weights_subscriber *shard[SHARDS];
    uint64_t trainer_bytes = fetch(dir, "trainer", trainer, sizeof trainer);
    for (uint32_t s = 0; s < SHARDS; s++) {
        const char *const name[SHARDS] = {"engine.tp0", "engine.tp1"};
        struct corral_weights_subscriber_options options = {.size = sizeof options, .rank = s, .layout = l, .trainer_card = trainer,
            .trainer_card_bytes = trainer_bytes, .name = name[s], .replica = "engine"};
        must(corral_weights_subscriber_open(&shard[s], &options, &err), "subscriber");
        uint64_t bytes = sizeof card;
        must(corral_weights_subscriber_card(shard[s], card, &bytes, &err), "card");
        leave(dir, name[s], card, bytes);
    }
    for (uint64_t current = 0; current < VERSIONS;) {
        /* Between two decode steps: shard 0 says which version is next, and all flip to that one. */
        uint64_t next, pause;
        must(corral_weights_wait(shard[0], current + 1, 30000, &next, &err), "wait");
        for (int s = 0; s < SHARDS; s++) {
            must(corral_weights_flip(shard[s], next, 30000, &pause, &err), "flip");
        }
        for (int s = 0; s < SHARDS; s++) { /* a decode step */
            struct corral_weights_view view = {.size = sizeof view};
            must(corral_weights_acquire(shard[s], &view, &err), "acquire");
            const float *up = view.base, *norm = up + 2 * ROWS * COLUMNS / 2;
            if (view.version != next || up[0] != (float)next || norm[COLUMNS - 1] != (float)next) {
                fprintf(stderr, "shard %d has %g in version %llu\n", s, (double)up[0], (unsigned long long)next);
                exit(1);
            }
            corral_weights_release(shard[s], &view);
        }
        printf("engine: both shards decode with version %llu\n", (unsigned long long)next);
        current = next;
    }
    for (int s = 0; s < SHARDS; s++) {
        corral_weights_subscriber_close(shard[s]);
    }
    corral_weights_layout_destroy(l);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "trainer") == 0) {
        train((uint32_t)atoi(argv[2]), argv[3]);
    } else if (argc == 3 && strcmp(argv[1], "engine") == 0) {
        serve(argv[2]);
    } else {
        fprintf(stderr, "usage: %s trainer RANK DIR | engine DIR\n", argv[0]);
        return 2;
    }
    return 0;
}
