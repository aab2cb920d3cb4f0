#include "transport/trajectory/record/test_records.h"
#include "base/rng.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t some_number(struct corral_rng *rng)
{
    const uint64_t bits = corral_rng_below(rng, 65);
    return bits == 0 ? 0 : corral_rng_next(rng) >> (64 - bits);
}

static void some_text(struct corral_rng *rng, char *out, size_t bytes_max)
{
    static const char *const characters[] = {"a", "Z", "0", " ", "\n", "\"", "\x01", "é", "—", "日", "🂡"};
    const size_t bytes =
        corral_rng_below(rng, 3) == 0 ? corral_rng_below(rng, bytes_max + 1) : corral_rng_below(rng, 24);
    size_t at = 0;
    for (;;) {
        const char *c = characters[corral_rng_below(rng, sizeof characters / sizeof *characters)];
        if (at + strlen(c) > bytes) {
            break;
        }
        memcpy(out + at, c, strlen(c));
        at += strlen(c);
    }
    out[at] = 0;
}

static void some_name(struct corral_rng *rng, char *out, uint32_t number)
{
    int at = snprintf(out, 8, "%u:", number); /* so that no two are the same */
    const size_t more = corral_rng_below(rng, 8) == 0 ? corral_rng_below(rng, CORRAL_TRAJ_TEXT_MAX - 8)
                                                      : corral_rng_below(rng, 12);
    for (size_t i = 0; i < more; i++) {
        out[at++] = (char)(0x21 + corral_rng_below(rng, 0x7F - 0x21));
    }
    out[at] = 0;
}

static void some_tensor(struct corral_rng *rng, struct corral_traj_tensor *t, void **data)
{
    t->dtype = (uint32_t)corral_rng_below(rng, CORRAL_TRAJ_U32 + 1);
    t->dims = 1 + (uint32_t)corral_rng_below(rng, CORRAL_TRAJ_DIMS_MAX);
    uint64_t bytes = corral_traj_dtype_bytes(t->dtype);
    for (uint32_t d = 0; d < t->dims; d++) {
        t->shape[d] = 1 + corral_rng_below(rng, t->dims == 1 ? 300 : t->dims == 2 ? 20 : 3);
        bytes *= t->shape[d];
    }
    uint8_t *fill = malloc(bytes);
    for (uint64_t i = 0; i < bytes; i++) {
        fill[i] = (uint8_t)(corral_rng_next(rng) >> 56);
    }
    t->data = *data = fill;
}

static void attach(struct test_record *t)
{
    t->record.size = sizeof t->record;
    t->record.tensors = t->tensors;
    t->record.scores = t->scores;
    t->record.env = t->env;
    t->record.task = t->task;
    t->record.finish = t->finish;
}

void test_record_make(struct test_record *t, uint64_t seed)
{
    struct corral_rng rng;
    memset(t, 0, sizeof *t);
    corral_rng_seed(&rng, seed);
    attach(t);
    struct corral_traj_record *r = &t->record;
    r->run = some_number(&rng);
    r->worker = (uint32_t)some_number(&rng);
    r->epoch = (uint32_t)some_number(&rng);
    r->sequence = some_number(&rng);
    r->kind = (uint32_t)corral_rng_below(&rng, 2);
    r->turns = (uint32_t)some_number(&rng);
    some_text(&rng, t->env, CORRAL_TRAJ_TEXT_MAX);
    some_text(&rng, t->task, CORRAL_TRAJ_TASK_MAX);
    some_text(&rng, t->finish, CORRAL_TRAJ_TEXT_MAX);
    r->group_size = (uint32_t)some_number(&rng);
    if (r->group_size > 0) {
        r->group = some_number(&rng);
        r->group_index = (uint32_t)corral_rng_below(&rng, r->group_size);
    }
    r->episode = some_number(&rng);
    r->version_max = some_number(&rng);
    r->version_min = r->version_max == 0 ? 0 : corral_rng_below(&rng, r->version_max);
    r->tokens = some_number(&rng);
    r->score_count = (uint32_t)corral_rng_below(&rng, 6);
    r->tensor_count = (uint32_t)corral_rng_below(&rng, corral_rng_below(&rng, 4) == 0 ? 33 : 14);
    for (uint32_t i = 0; i < r->score_count; i++) {
        some_name(&rng, t->names[i], i);
        const uint64_t bits = corral_rng_next(&rng); /* NaNs and infinities are scores too */
        memcpy(&t->scores[i].value, &bits, sizeof bits);
        t->scores[i].name = t->names[i];
    }
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        char *name = t->names[CORRAL_TRAJ_SCORES_MAX + i];
        some_name(&rng, name, i);
        t->tensors[i].name = name;
        some_tensor(&rng, &t->tensors[i], &t->data[i]);
    }
}

void test_record_largest(struct test_record *t)
{
    memset(t, 0, sizeof *t);
    attach(t);
    struct corral_traj_record *r = &t->record;
    r->worker = r->epoch = r->turns = r->group_size = UINT32_MAX;
    r->group_index = UINT32_MAX - 1;
    r->run = r->sequence = r->group = r->episode = r->version_min = r->version_max = r->tokens = UINT64_MAX;
    r->kind = CORRAL_TRAJ_FRAGMENT;
    memset(t->env, 'e', CORRAL_TRAJ_TEXT_MAX);
    memset(t->finish, 'f', CORRAL_TRAJ_TEXT_MAX);
    memset(t->task, 't', CORRAL_TRAJ_TASK_MAX);
    r->score_count = CORRAL_TRAJ_SCORES_MAX;
    r->tensor_count = CORRAL_TRAJ_TENSORS_MAX;
    for (uint32_t i = 0; i < CORRAL_TRAJ_TENSORS_MAX; i++) {
        memset(t->names[i], 'n', CORRAL_TRAJ_TEXT_MAX);
        t->names[i][60] = (char)('0' + i % 10);
        t->names[i][61] = (char)('0' + i / 10);
        t->scores[i] = (struct corral_traj_score){.name = t->names[i], .value = -0.5};
        t->tensors[i] = (struct corral_traj_tensor){
            .name = t->names[i], .dtype = CORRAL_TRAJ_U8, .dims = 6, .shape = {1, 2, 1, 300, 1, 1}};
        t->tensors[i].data = t->data[i] = calloc(600, 1);
    }
}

static void add(struct test_record *t, const char *name, uint32_t dtype, uint64_t rows, uint64_t columns)
{
    const uint32_t i = t->record.tensor_count++;
    t->tensors[i] = (struct corral_traj_tensor){
        .name = name, .dtype = dtype, .dims = columns > 0 ? 2 : 1, .shape = {rows, columns}};
    t->data[i] = calloc(rows * (columns > 0 ? columns : 1), corral_traj_dtype_bytes(dtype));
    t->tensors[i].data = t->data[i];
}

void test_record_episode(struct test_record *t, uint32_t tokens)
{
    memset(t, 0, sizeof *t);
    attach(t);
    strcpy(t->env, "calculator");
    strcpy(t->task, "gsm8k/train/1234");
    strcpy(t->finish, "stop");
    struct corral_traj_record *r = &t->record;
    r->run = 0x7f3a, r->worker = 3, r->epoch = 2, r->sequence = 1234567;
    r->turns = 3, r->group = 812, r->group_index = 5, r->group_size = 8, r->episode = 6501;
    r->version_min = 411, r->version_max = 412, r->tokens = tokens, r->score_count = 2;
    t->scores[0] = (struct corral_traj_score){"reward", 0.75};
    t->scores[1] = (struct corral_traj_score){"success", 1};
    add(t, "token_ids", CORRAL_TRAJ_I32, tokens, 0);
    add(t, "log_prob", CORRAL_TRAJ_F32, tokens, 0);
    add(t, "version", CORRAL_TRAJ_U64, tokens, 0);
    add(t, "loss_mask", CORRAL_TRAJ_U8, tokens, 0);
    add(t, "reward", CORRAL_TRAJ_F32, tokens, 0);
    add(t, "turn", CORRAL_TRAJ_U32, tokens, 0);
    add(t, "role", CORRAL_TRAJ_U8, tokens, 0);
    add(t, "value", CORRAL_TRAJ_F32, tokens, 0);
    for (uint32_t i = 0; i < tokens; i++) {
        const uint32_t turn = i * 3 / tokens;
        const bool agent = i * 6 / tokens % 2 == 1; /* each turn: asked, then answered */
        ((int32_t *)t->data[0])[i] = (int32_t)(i * 7919 % 151936);
        ((float *)t->data[1])[i] = agent ? -0.01f * (float)(i % 90) : 0;
        ((uint64_t *)t->data[2])[i] = turn == 0 ? 411 : 412;
        ((uint8_t *)t->data[3])[i] = agent;
        ((float *)t->data[4])[i] = i + 1 == tokens ? 0.75f : 0;
        ((uint32_t *)t->data[5])[i] = turn;
        ((uint8_t *)t->data[6])[i] = agent ? 3 : i == 0 ? 1 : turn == 0 ? 2 : 4;
        ((float *)t->data[7])[i] = 0.5f;
    }
}

void test_record_free(struct test_record *t)
{
    for (uint32_t i = 0; i < CORRAL_TRAJ_TENSORS_MAX; i++) {
        free(t->data[i]);
        t->data[i] = NULL;
    }
}

void *test_record_encode(const struct corral_traj_record *r, uint64_t *bytes)
{
    struct corral_error err;
    if (corral_traj_record_bytes(r, bytes, &err) != CORRAL_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    void *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, *bytes);
    if (corral_traj_record_encode(r, memory, *bytes, &err) != CORRAL_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return memory;
}

static bool same_text(const char *a, const char *b)
{
    return strcmp(a == NULL ? "" : a, b == NULL ? "" : b) == 0;
}

static bool same_tensor(const struct corral_traj_tensor *a, const struct corral_traj_tensor *b)
{
    uint64_t bytes = corral_traj_dtype_bytes(a->dtype);
    for (uint32_t d = 0; d < a->dims; d++) {
        bytes *= a->shape[d];
    }
    return same_text(a->name, b->name) && a->dtype == b->dtype && a->dims == b->dims &&
           memcmp(a->shape, b->shape, a->dims * sizeof *a->shape) == 0 &&
           memcmp(a->data, b->data, bytes) == 0;
}

bool test_record_equal(const struct corral_traj_record *a, const struct corral_traj_record *b)
{
    bool same = a->run == b->run && a->worker == b->worker && a->epoch == b->epoch &&
                a->sequence == b->sequence && a->kind == b->kind && a->turns == b->turns &&
                same_text(a->env, b->env) && same_text(a->task, b->task) && same_text(a->finish, b->finish) &&
                a->group == b->group && a->group_index == b->group_index && a->group_size == b->group_size &&
                a->episode == b->episode && a->version_min == b->version_min &&
                a->version_max == b->version_max && a->tokens == b->tokens &&
                a->score_count == b->score_count && a->tensor_count == b->tensor_count;
    for (uint32_t i = 0; same && i < a->score_count; i++) {
        same = same_text(a->scores[i].name, b->scores[i].name) &&
               memcmp(&a->scores[i].value, &b->scores[i].value, sizeof(double)) == 0;
    }
    for (uint32_t i = 0; same && i < a->tensor_count; i++) {
        same = same_tensor(&a->tensors[i], &b->tensors[i]);
    }
    return same;
}
