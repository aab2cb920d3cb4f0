/* A trainer and its rollout workers, in processes of their own (docs/guide/trainers.md).
 *     example_trainer worker INDEX ENDPOINT      writes 40 groups of 4 completions, every second completion of each
 *     example_trainer trainer ENDPOINT           trains on groups of 4; goes on from its checkpoint when it is started again */
#include <corral/rollout.h>
#include <corral/trainer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RUN 7
#define TOKEN "example"
#define GROUPS 40
#define GROUP_SIZE 4
#define CURSORS_MAX 65536

static int failed(const char *what, const struct corral_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    return 1;
}

static int worker(uint32_t index, const char *endpoint)
{
    struct corral_error err;
    struct corral_traj_writer *w;
    struct corral_traj_writer_options o = {.size = sizeof o,
                                           .run = RUN,
                                           .token = TOKEN,
                                           .worker = index,
                                           .endpoints = &endpoint,
                                           .endpoint_count = 1};
    if (corral_traj_writer_open(&w, &o, &err) != CORRAL_OK) {
        return failed("worker", &err);
    }
    for (uint32_t n = index; n < GROUPS * GROUP_SIZE; n += 2) {
        int32_t ids[32];
        uint32_t length = 8 + n % 24;
        for (uint32_t i = 0; i < length; i++) {
            ids[i] = (int32_t)(n + i);
        }
        struct corral_traj_score score = {.name = "reward", .value = n % 3 == 0};
        struct corral_traj_tensor tensor = {
            .name = "token_ids", .dtype = CORRAL_TRAJ_I32, .dims = 1, .shape = {length}, .data = ids};
        struct corral_traj_record r = {.size = sizeof r,
                                       .kind = CORRAL_TRAJ_EPISODE,
                                       .env = "example",
                                       .finish = "stop",
                                       .group = n / GROUP_SIZE,
                                       .group_index = n % GROUP_SIZE,
                                       .group_size = GROUP_SIZE,
                                       .episode = n,
                                       .tokens = length,
                                       .scores = &score,
                                       .score_count = 1,
                                       .tensors = &tensor,
                                       .tensor_count = 1};
        if (corral_traj_writer_write(w, 0, &r, 30000, NULL, &err) != CORRAL_OK) {
            return failed("worker", &err);
        }
    }
    if (corral_traj_writer_wait(w, 30000, &err) != CORRAL_OK) {
        return failed("worker", &err);
    }
    corral_traj_writer_close(w);
    printf("worker %u: everything is trained on\n", index);
    return 0;
}

struct checkpoint { /* the weights, and which records they come from, in one file */
    double weight;
    uint64_t steps, cursor_bytes;
    unsigned char cursors[CURSORS_MAX];
};

static int load(struct checkpoint *c)
{
    FILE *f = fopen("checkpoint", "rb");
    if (f == NULL) {
        return 0;
    }
    size_t read = fread(c, sizeof *c, 1, f);
    fclose(f);
    return read == 1;
}

static int save(const struct checkpoint *c)
{
    FILE *f = fopen("checkpoint.new", "wb");
    if (f == NULL) {
        return 0;
    }
    int written = fwrite(c, sizeof *c, 1, f) == 1;
    return fclose(f) == 0 && written && rename("checkpoint.new", "checkpoint") == 0;
}

/* Stands for a gradient step: group-relative advantages, each completion weighed by its length. */
static int train(struct checkpoint *c, const struct corral_trainer_batch *batch, struct corral_error *err)
{
    static struct corral_traj_view view; /* large: kept */
    for (uint32_t g = 0; g < batch->group_count; g++) {
        const struct corral_trainer_group *group = &batch->groups[g];
        for (uint32_t i = group->first; i < group->first + group->count; i++) {
            if (corral_trainer_view(batch, i, &view, err) != CORRAL_OK) {
                return 0;
            }
            const struct corral_traj_tensor *ids = corral_traj_record_find(&view.record, "token_ids");
            double advantage = (batch->records[i].score - group->mean) / (group->deviation + 1e-6);
            c->weight += advantage * (double)ids->shape[0] * 1e-3;
        }
    }
    return 1;
}

static int trainer(const char *endpoint)
{
    static struct checkpoint c;
    struct corral_error err;
    struct corral_trainer *t;
    struct corral_trainer_options o = {.size = sizeof o,
                                       .bind = endpoint,
                                       .run = RUN,
                                       .token = TOKEN,
                                       .workers = 2,
                                       .mode = CORRAL_TRAINER_GROUPS,
                                       .batch = 8,
                                       .group_size = GROUP_SIZE,
                                       .group_ordered = 1,
                                       .pack_tokens = 256};
    if (load(&c)) {
        o.cursors = c.cursors;
        o.cursor_bytes = c.cursor_bytes;
    }
    if (corral_trainer_open(&t, &o, &err) != CORRAL_OK) {
        return failed("trainer", &err);
    }
    while (c.steps < GROUPS / 8) {
        const struct corral_trainer_batch *batch;
        enum corral_status status = corral_trainer_next(t, 10000, &batch, &err);
        if (status == CORRAL_AGAIN) {
            fprintf(stderr, "%s\n", err.text); /* for whom it waits */
            continue;
        }
        if (status != CORRAL_OK || !train(&c, batch, &err)) {
            return failed("trainer", &err);
        }
        c.steps += batch->count > 0;
        c.cursor_bytes = sizeof c.cursors;
        if (corral_trainer_cursors(t, batch, c.cursors, &c.cursor_bytes, &err) != CORRAL_OK) {
            return failed("trainer", &err);
        }
        if (!save(&c)) { /* weights and cursors together … */
            perror("checkpoint");
            return 1;
        }
        printf("step %llu: %u groups, %u bins, %.0f %% padding\n", (unsigned long long)c.steps, batch->group_count,
               batch->bins, 100 * batch->padding);
        corral_trainer_done(t, batch, c.steps); /* … then the workers may forget */
    }
    corral_trainer_close(t);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "worker") == 0) {
        return worker((uint32_t)atoi(argv[2]), argv[3]);
    }
    if (argc == 3 && strcmp(argv[1], "trainer") == 0) {
        return trainer(argv[2]);
    }
    fprintf(stderr, "usage: %s worker INDEX ENDPOINT | trainer ENDPOINT\n", argv[0]);
    return 2;
}
