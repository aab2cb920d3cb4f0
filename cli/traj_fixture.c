/* Makes a folder that looks like a run with trajectory logs of two ranks, for cmd_traj_test.sh.
 * usage: cli_traj_fixture FOLDER */
#include "base/file.h"
#include "transport/trajectory/wal/wal.h"
#include <corral/trajectory.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RUN 0x7f3a
#define STEPS 4u
#define ROWS 2u

static void die(const struct corral_error *err)
{
    fprintf(stderr, "traj_fixture: %s\n", err->text);
    exit(1);
}

static void append(struct corral_wal *w, const struct corral_traj_record *r)
{
    struct corral_error err;
    uint64_t bytes, position;
    if (corral_traj_record_bytes(r, &bytes, &err) != CORRAL_OK) {
        die(&err);
    }
    void *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, bytes);
    if (memory == NULL || corral_traj_record_encode(r, memory, bytes, &err) != CORRAL_OK ||
        corral_wal_append(w, memory, bytes, &position, &err) != CORRAL_OK) {
        die(&err);
    }
    free(memory);
}

/* Of worker `worker` as number `sequence`: every value follows from them. */
static void fragment(struct corral_wal *w, uint32_t worker, uint64_t sequence)
{
    float obs[STEPS * ROWS * 3], reward[STEPS * ROWS], episode[] = {(float)sequence, 9};
    uint64_t version[STEPS];
    for (uint32_t i = 0; i < STEPS * ROWS * 3; i++) {
        obs[i] = (float)sequence * 1000 + (float)i;
    }
    for (uint32_t i = 0; i < STEPS * ROWS; i++) {
        reward[i] = (float)worker + 0.5f;
    }
    for (uint32_t i = 0; i < STEPS; i++) {
        version[i] = sequence;
    }
    struct corral_traj_tensor tensors[] = {
        {.name = "obs", .dtype = CORRAL_TRAJ_F32, .dims = 3, .shape = {STEPS, ROWS, 3}, .data = obs},
        {.name = "reward", .dtype = CORRAL_TRAJ_F32, .dims = 2, .shape = {STEPS, ROWS}, .data = reward},
        {.name = "version", .dtype = CORRAL_TRAJ_U64, .dims = 1, .shape = {STEPS}, .data = version},
        {.name = "episode", .dtype = CORRAL_TRAJ_F32, .dims = 2, .shape = {1, 2}, .data = episode}};
    struct corral_traj_record r = {.size = sizeof r,
                                   .run = RUN,
                                   .worker = worker,
                                   .epoch = 1,
                                   .sequence = sequence,
                                   .kind = CORRAL_TRAJ_FRAGMENT,
                                   .env = "cartpole",
                                   .version_min = sequence,
                                   .version_max = sequence,
                                   .tokens = STEPS * ROWS,
                                   .tensors = tensors,
                                   .tensor_count = CORRAL_COUNT_OF(tensors)};
    append(w, &r);
}

static void conversation(struct corral_wal *w, uint64_t sequence)
{
    static const char text[] = "What is 2+2?It is 4.";
    int32_t ids[] = {11, 12, 13, 14, 15};
    uint32_t turn[] = {0, 0, 0, 0, 0}, end[] = {4, 7, 12, 15, 20};
    uint8_t role[] = {2, 2, 2, 3, 3}, mask[] = {0, 0, 0, 1, 1};
    uint32_t n = sequence == 1 ? 5 : 3; /* lengths differ */
    struct corral_traj_tensor tensors[] = {
        {.name = "token_ids", .dtype = CORRAL_TRAJ_I32, .dims = 1, .shape = {n}, .data = ids},
        {.name = "turn", .dtype = CORRAL_TRAJ_U32, .dims = 1, .shape = {n}, .data = turn},
        {.name = "role", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {n}, .data = role},
        {.name = "loss_mask", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {n}, .data = mask},
        {.name = "text_end", .dtype = CORRAL_TRAJ_U32, .dims = 1, .shape = {n}, .data = end},
        {.name = "text", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {end[n - 1]}, .data = text}};
    struct corral_traj_score scores[] = {{.name = "reward", .value = sequence == 1 ? 1 : 0.25}};
    struct corral_traj_record r = {.size = sizeof r,
                                   .run = RUN,
                                   .worker = 7,
                                   .epoch = 2,
                                   .sequence = sequence,
                                   .kind = CORRAL_TRAJ_EPISODE,
                                   .turns = 1,
                                   .env = "calc",
                                   .task = "add-\033[31mtwo",
                                   .finish = "stop",
                                   .group = 40,
                                   .group_index = (uint32_t)sequence - 1,
                                   .group_size = 2,
                                   .episode = 900 + sequence,
                                   .version_min = 3,
                                   .version_max = 5,
                                   .tokens = n,
                                   .scores = scores,
                                   .score_count = 1,
                                   .tensors = tensors,
                                   .tensor_count = CORRAL_COUNT_OF(tensors)};
    append(w, &r);
}

static struct corral_wal *open_log(const char *folder, uint32_t rank)
{
    struct corral_error err;
    char path[1024];
    snprintf(path, sizeof path, "%s/traj/rank-%u", folder, rank);
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {.folder = path, .run = RUN, .segment_bytes = 4096};
    if (corral_wal_open(&w, &o, &err) != CORRAL_OK) {
        die(&err);
    }
    return w;
}

static void close_log(struct corral_wal *w)
{
    struct corral_error err;
    if (corral_wal_close(w, &err) != CORRAL_OK) {
        die(&err);
    }
}

int main(int argc, char **argv)
{
    struct corral_error err;
    char job[1024];
    if (argc != 2) {
        return 2;
    }
    snprintf(job, sizeof job, "%s/job.toml", argv[1]);
    if (corral_mkdirs(argv[1], 0755, &err) != CORRAL_OK ||
        corral_file_write_atomic(job, "", 0, 0644, false, &err) != CORRAL_OK) {
        die(&err);
    }
    struct corral_wal *w = open_log(argv[1], 0);
    for (uint64_t i = 1; i <= 12; i++) {
        fragment(w, 0, i);
        if (i != 5 && i != 6) { /* a gap of two */
            fragment(w, 1, i);
        }
    }
    close_log(w);
    w = open_log(argv[1], 1);
    conversation(w, 1);
    conversation(w, 2);
    close_log(w);
    return 0;
}
