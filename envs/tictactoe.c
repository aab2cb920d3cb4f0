/* TicTacToe-v0: two agents (rows 2 x env and 2 x env + 1) take turns; `active` names the one to move.
 * Observation of a row, 19 numbers, from its own point of view: nine cells 1 where its own stones lie, nine where the opponent's, then 1 when it is its turn.
 * Action: the cell 0..8 (row by row) of the row to move; the other row's action is ignored. Choosing a taken cell fails the step and moves nothing.
 * Mask: the empty cells, the same for both rows.
 * Reward: on the last move 1 for the winner and -1 for the loser, 0 for both on a draw; 0 before. Both rows terminate together; nothing is truncated.
 * Arguments: starter 0 or 1, the agent that begins, or 2: drawn for every episode (0).
 * Snapshot: struct snapshot_head {"TTT0"}, then uint32 stones of agent 0, stones of agent 1 (bit = cell), starter, 0.
 */
#include "common.h"

#define CELLS 9u
#define OBS 19
#define ALL_CELLS 0x1ffu
#define STARTER_DRAWN 2
#define GAME_KIND SNAPSHOT_KIND('T', 'T', 'T', '0')

struct game {
    uint64_t stream_seed, episode;
    uint16_t stones[2];
    uint8_t moves, starter;
};

struct corral_env {
    struct corral_env_buffers io;
    uint32_t starter;
    struct game *games;
    struct cell_set *sets; /* [ALL_CELLS + 1] */
    struct memory memory;
    void *block;
    size_t block_bytes;
};

struct tail {
    uint32_t stones[2];
    uint32_t starter, reserved;
};
_Static_assert(sizeof(struct tail) == 16, "the snapshot layout is documented");

/* What follows from a set of cells, worked out once per batch. */
struct cell_set {
    float plane[CELLS];  /* 1 where a member */
    uint8_t free[CELLS]; /* 1 where not */
    bool line;           /* three in a row */
};

static bool has_line(uint32_t stones)
{
    static const uint16_t lines[] = {0007, 0070, 0700, 0111, 0222, 0444, 0421, 0124};
    bool found = false;
    for (uint32_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        found |= (stones & lines[i]) == lines[i];
    }
    return found;
}

static void chart(struct cell_set *sets)
{
    for (uint32_t stones = 0; stones <= ALL_CELLS; stones++) {
        for (uint32_t cell = 0; cell < CELLS; cell++) {
            sets[stones].plane[cell] = (float)(stones >> cell & 1);
            sets[stones].free[cell] = (stones >> cell & 1) == 0;
        }
        sets[stones].line = has_line(stones);
    }
}

static uint32_t mover(const struct game *game)
{
    return (game->starter + game->moves) & 1u;
}

static uint32_t empty_cells(const struct game *game)
{
    return ALL_CELLS & ~(uint32_t)(game->stones[0] | game->stones[1]);
}

static void observe(const struct corral_env *env, uint32_t id, void *rows, bool live)
{
    const struct game *game = &env->games[id];
    for (uint32_t agent = 0; agent < 2; agent++) {
        float *obs = (float *)((char *)rows + ((size_t)id * 2 + agent) * env->io.obs_stride);
        memcpy(obs, env->sets[game->stones[agent]].plane, sizeof env->sets->plane);
        memcpy(obs + CELLS, env->sets[game->stones[1 - agent]].plane, sizeof env->sets->plane);
        obs[2 * CELLS] = live && mover(game) == agent ? 1.0f : 0.0f;
    }
}

/* What both agents see before the next move. */
static void show(struct corral_env *env, uint32_t id)
{
    const struct game *game = &env->games[id];
    const struct cell_set *taken = &env->sets[game->stones[0] | game->stones[1]];
    observe(env, id, env->io.obs, true);
    for (uint32_t agent = 0; agent < 2; agent++) {
        size_t row = (size_t)id * 2 + agent;
        memcpy(env->io.mask + row * env->io.mask_stride, taken->free, sizeof taken->free);
        env->io.active[row] = mover(game) == agent;
    }
}

static void begin_episode(struct corral_env *env, uint32_t id)
{
    struct game *game = &env->games[id];
    game->stones[0] = 0;
    game->stones[1] = 0;
    game->moves = 0;
    game->starter = (uint8_t)env->starter;
    if (env->starter == STARTER_DRAWN) {
        struct corral_env_rng rng = {corral_env_episode_seed(game->stream_seed, game->episode)};
        game->starter = (uint8_t)corral_env_rng_below(&rng, 2);
    }
    show(env, id);
}

/* The cell chosen by the row to move. */
static uint32_t choice_of(const struct corral_env *env, uint32_t id)
{
    size_t row = (size_t)id * 2 + mover(&env->games[id]);
    uint32_t choice;
    memcpy(&choice, (const char *)env->io.action + row * env->io.action_stride, sizeof choice);
    return choice;
}

static bool legal(const struct corral_env *env, uint32_t id)
{
    uint32_t cell = choice_of(env, id);
    return cell < CELLS && (empty_cells(&env->games[id]) >> cell & 1) != 0;
}

static void step_one(struct corral_env *env, uint32_t id)
{
    struct game *game = &env->games[id];
    uint32_t agent = mover(game);
    game->stones[agent] |= (uint16_t)(1u << choice_of(env, id));
    game->moves++;
    bool won = env->sets[game->stones[agent]].line;
    bool over = won || empty_cells(game) == 0;
    size_t row = (size_t)id * 2;
    env->io.reward[row + agent] = won ? 1.0f : 0.0f;
    env->io.reward[row + 1 - agent] = won ? -1.0f : 0.0f;
    memset(env->io.terminated + row, over, 2);
    memset(env->io.truncated + row, 0, 2);
    if (over) {
        observe(env, id, env->io.final_obs, false);
        game->episode++;
        begin_episode(env, id);
    } else {
        show(env, id);
    }
}

static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    uint32_t steps = ids == NULL ? env->io.envs : count;
    if (!ids_valid(ids, count, env->io.envs)) {
        return CORRAL_ENV_INVALID;
    }
    for (uint32_t i = 0; i < steps; i++) {
        if (!legal(env, ids == NULL ? i : ids[i])) {
            return CORRAL_ENV_INVALID; /* and nobody has moved */
        }
    }
    for (uint32_t i = 0; i < steps; i++) {
        step_one(env, ids == NULL ? i : ids[i]);
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status reset(struct corral_env *env, const uint32_t *ids, uint32_t count,
                                    const uint64_t *seeds)
{
    if (seeds == NULL || !ids_valid(ids, count, env->io.envs) || (ids == NULL && count != env->io.envs)) {
        return CORRAL_ENV_INVALID;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids == NULL ? i : ids[i];
        size_t row = (size_t)id * 2;
        env->games[id].stream_seed = seeds[i];
        env->games[id].episode = 0;
        memset(env->io.reward + row, 0, 2 * sizeof(float));
        memset(env->io.terminated + row, 0, 2);
        memset(env->io.truncated + row, 0, 2);
        begin_episode(env, id);
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status snapshot(struct corral_env *env, uint32_t id, void *buffer, size_t *bytes)
{
    if (id >= env->io.envs || bytes == NULL) {
        return CORRAL_ENV_INVALID;
    }
    const struct game *game = &env->games[id];
    struct snapshot_head head = {GAME_KIND,     SNAPSHOT_VERSION, game->stream_seed,
                                 game->episode, game->moves,      0};
    struct tail tail = {{game->stones[0], game->stones[1]}, game->starter, 0};
    enum corral_env_status status = snapshot_room(buffer, bytes, sizeof head + sizeof tail);
    if (status == CORRAL_ENV_OK) {
        memcpy(buffer, &head, sizeof head);
        memcpy((char *)buffer + sizeof head, &tail, sizeof tail);
    }
    return status;
}

/* Reachable and not over. */
static bool plausible(const struct tail *tail, uint32_t moves)
{
    if (tail->starter > 1 || tail->reserved != 0 || ((tail->stones[0] | tail->stones[1]) & ~ALL_CELLS) != 0 ||
        (tail->stones[0] & tail->stones[1]) != 0) {
        return false;
    }
    uint32_t first = (uint32_t)__builtin_popcount(tail->stones[tail->starter]);
    uint32_t second = (uint32_t)__builtin_popcount(tail->stones[1 - tail->starter]);
    return first == (moves + 1) / 2 && second == moves / 2 && !has_line(tail->stones[0]) &&
           !has_line(tail->stones[1]);
}

static enum corral_env_status restore(struct corral_env *env, uint32_t id, const void *buffer, size_t bytes)
{
    struct snapshot_head head;
    struct tail tail;
    if (id >= env->io.envs ||
        !snapshot_head_read(&head, buffer, bytes, sizeof head + sizeof tail, GAME_KIND, CELLS)) {
        return CORRAL_ENV_INVALID;
    }
    memcpy(&tail, (const char *)buffer + sizeof head, sizeof tail);
    if (!plausible(&tail, head.steps)) {
        return CORRAL_ENV_INVALID;
    }
    env->games[id] = (struct game){
        .stream_seed = head.stream_seed,
        .episode = head.episode,
        .stones = {(uint16_t)tail.stones[0], (uint16_t)tail.stones[1]},
        .moves = (uint8_t)head.steps,
        .starter = (uint8_t)tail.starter,
    };
    show(env, id);
    return CORRAL_ENV_OK;
}

static bool read_args(const char *args_json, uint32_t *starter, char *error, size_t room)
{
    struct arg arg = {.name = "starter", .low = 0, .high = STARTER_DRAWN};
    if (!args_parse(args_json, &arg, 1, error, room)) {
        return false;
    }
    *starter = (uint32_t)arg.value;
    return true;
}

static enum corral_env_status describe(const char *args_json, struct corral_env_spec *spec, char *error,
                                       size_t error_bytes)
{
    uint32_t starter;
    if (!read_args(args_json, &starter, error, error_bytes)) {
        return CORRAL_ENV_INVALID;
    }
    struct corral_env_spec mine = {
        .size = sizeof mine,
        .flags = CORRAL_ENV_MASKS | CORRAL_ENV_TURNS | CORRAL_ENV_SNAPSHOTS,
        .agents = 2,
        .autoreset = CORRAL_ENV_AUTORESET_SAME_STEP,
        .obs_dtype = CORRAL_ENV_F32,
        .obs_rank = 1,
        .obs_shape = {OBS},
        .obs_low = 0.0,
        .obs_high = 1.0,
        .action_kind = CORRAL_ENV_DISCRETE,
        .components = 1,
        .choices = {CELLS},
        .reward_low = -1.0,
        .reward_high = 1.0,
        .reward_threshold = NAN,
    };
    return spec_write(spec, &mine);
}

static struct corral_env *lay_out(struct carver *carver, uint32_t envs)
{
    struct corral_env *env = carve(carver, 1, sizeof *env);
    struct game *games = carve(carver, envs, sizeof *games);
    struct cell_set *sets = carve(carver, ALL_CELLS + 1, sizeof *sets);
    if (env != NULL) {
        env->games = games;
        env->sets = sets;
    }
    return env;
}

static enum corral_env_status create(const char *args_json, const struct corral_env_buffers *buffers,
                                     const struct corral_env_host *host, struct corral_env **out, char *error,
                                     size_t error_bytes)
{
    uint32_t starter;
    struct corral_env_buffers io;
    sized_copy(&io, sizeof io, buffers, buffers->size);
    if (!read_args(args_json, &starter, error, error_bytes) ||
        !buffers_fit(&io, 2, OBS * sizeof(float), sizeof(int32_t), error, error_bytes)) {
        return CORRAL_ENV_INVALID;
    }
    if (io.active == NULL || io.mask == NULL || io.mask_stride < CELLS) {
        snprintf(error, error_bytes, "the active or mask buffer is missing or too small");
        return CORRAL_ENV_INVALID;
    }
    struct carver carver = {0};
    (void)lay_out(&carver, io.envs);
    struct memory memory;
    memory_open(&memory, host);
    size_t bytes = carver.used + 64;
    void *block = memory_get(&memory, bytes);
    if (block == NULL) {
        snprintf(error, error_bytes, "no memory for %u environments", io.envs);
        return CORRAL_ENV_NOMEM;
    }
    carver = (struct carver){.block = cache_aligned(block)};
    struct corral_env *env = lay_out(&carver, io.envs);
    env->io = io;
    env->starter = starter;
    env->memory = memory;
    env->block = block;
    env->block_bytes = bytes;
    chart(env->sets);
    *out = env;
    return CORRAL_ENV_OK;
}

static void destroy(struct corral_env *env)
{
    if (env != NULL) {
        struct memory memory = env->memory;
        memory_put(&memory, env->block, env->block_bytes);
    }
}

static const struct corral_env_ops ops = {
    .size = sizeof ops,
    .id = "TicTacToe-v0",
    .summary = "two agents take turns; masks, zero-sum",
    .describe = describe,
    .create = create,
    .destroy = destroy,
    .reset = reset,
    .step = step,
    .snapshot = snapshot,
    .restore = restore,
};
static const struct corral_env_ops *const list[] = {&ops};
CORRAL_ENV_PLUGIN(list);
