#include "rollout/worker/fragment_builder.h"
#include "base/error.h"
#include <string.h>

/* Carve the next array out of the block; a NULL block only counts. */
static void *carve(uint8_t *block, uint64_t *offset, uint64_t bytes)
{
    void *p = block ? block + *offset : NULL;
    *offset += (bytes + 63) / 64 * 64;
    return p;
}

static uint64_t lay_out(struct corral_fragment_builder *b, uint8_t *block)
{
    const struct corral_fragment *f = &b->fragment;
    uint64_t sr = (uint64_t)b->steps_max * f->rows, offset = 0;
    b->obs = carve(block, &offset, sr * f->obs_dim * sizeof(float));
    b->action = carve(block, &offset, sr * f->action_components * 4);
    b->log_prob = carve(block, &offset, sr * sizeof(float));
    b->reward = carve(block, &offset, sr * sizeof(float));
    b->terminated = carve(block, &offset, sr);
    b->truncated = carve(block, &offset, sr);
    b->valid = carve(block, &offset, sr);
    b->version = carve(block, &offset, b->steps_max * sizeof(uint64_t));
    b->mask = carve(block, &offset, sr * f->mask_bytes);
    b->last_obs = carve(block, &offset, (uint64_t)f->rows * f->obs_dim * sizeof(float));
    b->boundary_at = carve(block, &offset, sr * sizeof(uint32_t));
    b->boundary_obs = carve(block, &offset, sr * f->obs_dim * sizeof(float));
    b->episode = carve(block, &offset, sr * 2 * sizeof(float));
    b->episode_return = carve(block, &offset, f->rows * sizeof(double));
    b->rows_done = carve(block, &offset, b->envs * sizeof(uint32_t));
    b->episode_start = carve(block, &offset, b->envs * sizeof(uint32_t));
    b->episode_first = carve(block, &offset, b->envs * sizeof(uint32_t));
    b->episode_env = carve(block, &offset, sr * sizeof(uint32_t));
    return offset;
}

enum corral_status corral_fragment_builder_open(struct corral_fragment_builder *b,
                                                const struct corral_vec_view *view, bool continuous,
                                                uint32_t steps, const struct corral_allocator *memory,
                                                struct corral_error *err)
{
    memset(b, 0, sizeof *b);
    struct corral_fragment *f = &b->fragment;
    f->steps = steps;
    f->rows = view->rows;
    f->obs_dim = view->obs_dim;
    f->action_components = view->action_components;
    f->action_continuous = continuous;
    f->mask_bytes = view->mask_bytes;
    b->steps_max = steps;
    b->envs = view->envs;
    b->block_bytes = lay_out(b, NULL);
    CORRAL_TRY(corral_alloc(memory, b->block_bytes, "trajectory fragment", &b->block, err));
    b->memory = memory;
    lay_out(b, b->block);
    f->obs = b->obs;
    f->action = b->action;
    f->log_prob = b->log_prob;
    f->reward = b->reward;
    f->terminated = b->terminated;
    f->truncated = b->truncated;
    f->valid = b->valid;
    f->version = b->version;
    f->mask = f->mask_bytes ? b->mask : NULL;
    f->last_obs = b->last_obs;
    f->boundary_at = b->boundary_at;
    f->boundary_obs = b->boundary_obs;
    f->episode = b->episode;
    return CORRAL_OK;
}

void corral_fragment_builder_close(struct corral_fragment_builder *b)
{
    if (b->memory) {
        corral_release(b->memory, b->block, b->block_bytes);
    }
    memset(b, 0, sizeof *b);
}

float *corral_fragment_builder_log_prob(struct corral_fragment_builder *b)
{
    return b->log_prob + (uint64_t)b->step * b->fragment.rows;
}

void corral_fragment_builder_before_step(struct corral_fragment_builder *b,
                                         const struct corral_vec_view *view, uint64_t version)
{
    const struct corral_fragment *f = &b->fragment;
    uint64_t at = (uint64_t)b->step * f->rows;
    memcpy(b->obs + at * f->obs_dim, view->obs, (size_t)f->rows * f->obs_dim * sizeof(float));
    memcpy(b->action + at * f->action_components * 4, view->action,
           (size_t)f->rows * f->action_components * 4);
    memcpy(b->valid + at, view->active, f->rows);
    if (f->mask_bytes) {
        memcpy(b->mask + at * f->mask_bytes, view->mask, (size_t)f->rows * f->mask_bytes);
    }
    b->version[b->step] = version;
}

static void begin_episode(struct corral_fragment_builder *b, uint32_t env)
{
    b->rows_done[env] = 0;
    b->episode_start[env] = b->step + 1;
    b->episode_first[env] = b->fragment.episode_count;
}

static void forget_entry(struct corral_fragment_builder *b, uint32_t i)
{
    struct corral_fragment *f = &b->fragment;
    uint32_t after = --f->episode_count - i;
    memmove(b->episode + 2 * (uint64_t)i, b->episode + 2 * (uint64_t)(i + 1), after * 2 * sizeof(float));
    memmove(b->episode_env + i, b->episode_env + i + 1, after * sizeof(uint32_t));
    for (uint32_t env = 0; env < b->envs; env++) {
        b->episode_first[env] -= b->episode_first[env] > i;
    }
}

/* Agents that were done before the others have their entries already: take them out again. */
static void forget_entries(struct corral_fragment_builder *b, uint32_t env)
{
    for (uint32_t i = b->fragment.episode_count; i > b->episode_first[env]; i--) {
        if (b->episode_env[i - 1] == env) {
            forget_entry(b, i - 1);
        }
    }
}

static void void_episode(struct corral_fragment_builder *b, const struct corral_vec_view *view, uint32_t env)
{
    uint32_t rows = b->fragment.rows, first = env * view->agents;
    bool playing = false; /* an environment that cannot be reset reports again and again, of no episode */
    for (uint32_t row = first; row < first + view->agents; row++) {
        uint64_t at = (uint64_t)b->step * rows + row;
        playing |= b->valid[at] != 0;
        for (uint32_t t = b->episode_start[env]; t <= b->step; t++) {
            b->valid[(uint64_t)t * rows + row] = 0;
            b->reward[(uint64_t)t * rows + row] = 0;
        }
        b->terminated[at] = 1;
        b->truncated[at] = 0;
        b->episode_return[row] = 0;
    }
    b->void_episodes += playing;
    if (b->rows_done[env] > 0) {
        forget_entries(b, env);
    }
    begin_episode(b, env);
}

static void end_row(struct corral_fragment_builder *b, const struct corral_vec_view *view, uint32_t env,
                    uint32_t row)
{
    struct corral_fragment *f = &b->fragment;
    uint64_t at = (uint64_t)b->step * f->rows + row;
    if (b->truncated[at] && !b->terminated[at]) {
        b->boundary_at[f->boundary_count] = (uint32_t)at;
        memcpy(b->boundary_obs + (uint64_t)f->boundary_count * f->obs_dim,
               view->final_obs + (uint64_t)row * f->obs_dim, f->obs_dim * sizeof(float));
        f->boundary_count++;
    }
    b->episode[2 * (uint64_t)f->episode_count] = (float)b->episode_return[row];
    b->episode[2 * (uint64_t)f->episode_count + 1] = (float)view->episode_steps[env];
    b->episode_env[f->episode_count++] = env;
    b->episode_return[row] = 0;
    b->rows_done[env]++;
}

void corral_fragment_builder_after_step(struct corral_fragment_builder *b, const struct corral_vec_view *view)
{
    const struct corral_fragment *f = &b->fragment;
    uint64_t at = (uint64_t)b->step * f->rows;
    memcpy(b->reward + at, view->reward, f->rows * sizeof(float));
    memcpy(b->terminated + at, view->terminated, f->rows);
    memcpy(b->truncated + at, view->truncated, f->rows);
    for (uint32_t env = 0; env < view->envs; env++) {
        if (view->status[env] != 0) {
            void_episode(b, view, env);
            continue;
        }
        for (uint32_t row = env * view->agents; row < (env + 1) * view->agents; row++) {
            b->episode_return[row] += view->reward[row];
            if (view->terminated[row] | view->truncated[row]) {
                end_row(b, view, env, row);
            }
        }
        if (b->rows_done[env] == view->agents) {
            begin_episode(b, env);
        }
    }
    b->step++;
    if (corral_fragment_builder_full(b)) {
        memcpy(b->last_obs, view->obs, (size_t)f->rows * f->obs_dim * sizeof(float));
    }
}

void corral_fragment_builder_next(struct corral_fragment_builder *b)
{
    b->step = 0;
    b->fragment.boundary_count = 0;
    b->fragment.episode_count = 0;
    memset(b->episode_start, 0, b->envs * sizeof(uint32_t));
    memset(b->episode_first, 0, b->envs * sizeof(uint32_t));
}
