/* GridWorld-v0: find the goal in a grid with walls.
 * The map is the same for every environment and episode of a batch; start and goal are drawn anew for each episode among the free cells, all of which are
 * connected. Action: 0 up, 1 right, 2 down, 3 left; a wall or the edge keeps the walker where it is.
 * Observation, 29 numbers in [-1, 1]: goal minus position (rows, columns, over size - 1), position (row, column, scaled to [-1, 1]), then the 5 x 5 cells
 * around, row by row, 1 for a wall or outside.
 * Reward: 1 on reaching the goal, which terminates. With shaping every other step also pays 0.05 x (distance before - distance after - 1), distances along
 * the shortest path: 0 for a step nearer, -0.05 for standing still, -0.1 for a step away. So a shortest walk returns exactly 1, from anywhere.
 * Truncated after `limit` steps.
 * Arguments: size 2..32 (8); walls: how many (size^2 / 5) or a list of cells row * size + column; map: seed of the drawn walls (1); limit (8 x size);
 * shaping 0 or 1 (1).
 * Snapshot: struct snapshot_head {"GRW0"}, then uint32 cell, uint32 goal, uint64 fingerprint of the map.
 */
#include "common.h"

#define SIDE_MAX 32
#define CELLS_MAX (SIDE_MAX * SIDE_MAX)
#define MOVES 4
#define OBS 29
#define LIMIT_MAX 1000000
#define WALKER_KIND SNAPSHOT_KIND('G', 'R', 'W', '0')

struct map {
    uint32_t size, cells, limit;
    bool shaping;
    uint32_t free_count;
    uint16_t free[CELLS_MAX];
    uint8_t wall[CELLS_MAX];
    uint64_t fingerprint;
};

struct walker {
    uint64_t stream_seed, episode;
    uint32_t steps;
    uint16_t cell, goal;
};

struct corral_env {
    struct corral_env_buffers io;
    struct map map;
    struct walker *walkers;
    uint16_t (*next)[MOVES];
    uint16_t *distance; /* [cells][cells] along the shortest path */
    float (*view)[OBS]; /* per cell, without the goal */
    struct memory memory;
    void *block;
    size_t block_bytes;
};

struct tail {
    uint32_t cell, goal;
    uint64_t fingerprint;
};
_Static_assert(sizeof(struct tail) == 16, "the snapshot layout is documented");

/* ---- the map ---- */

static uint32_t neighbour(const struct map *map, uint32_t cell, uint32_t move)
{
    uint32_t row = cell / map->size, column = cell % map->size, last = map->size - 1;
    bool blocked = (move == 0 && row == 0) || (move == 1 && column == last) || (move == 2 && row == last) ||
                   (move == 3 && column == 0);
    if (blocked) {
        return cell;
    }
    uint32_t to = move == 0   ? cell - map->size
                  : move == 1 ? cell + 1
                  : move == 2 ? cell + map->size
                              : cell - 1;
    return map->wall[to] ? cell : to;
}

/* Shortest distances from `from`; UINT16_MAX where there is no way. Returns how many cells were reached. */
static uint32_t flood(const struct map *map, uint32_t from, uint16_t *distance)
{
    uint16_t queue[CELLS_MAX];
    uint32_t head = 0, tail = 0;
    memset(distance, 0xff, map->cells * sizeof *distance);
    distance[from] = 0;
    queue[tail++] = (uint16_t)from;
    while (head < tail) {
        uint32_t cell = queue[head++];
        for (uint32_t move = 0; move < MOVES; move++) {
            uint32_t to = neighbour(map, cell, move);
            if (distance[to] == UINT16_MAX) {
                distance[to] = (uint16_t)(distance[cell] + 1);
                queue[tail++] = (uint16_t)to;
            }
        }
    }
    return tail;
}

/* Lists the free cells; false when there are fewer than two or they are not connected. */
static bool map_survey(struct map *map)
{
    uint16_t distance[CELLS_MAX];
    map->free_count = 0;
    map->fingerprint = map->size;
    for (uint32_t cell = 0; cell < map->cells; cell++) {
        map->fingerprint = corral_env_episode_seed(map->fingerprint, map->wall[cell]);
        if (!map->wall[cell]) {
            map->free[map->free_count++] = (uint16_t)cell;
        }
    }
    return map->free_count >= 2 && flood(map, map->free[0], distance) == map->free_count;
}

/* Tries the cells in random order and keeps each wall that leaves the rest connected. */
static bool map_draw(struct map *map, uint32_t walls, uint64_t seed)
{
    struct corral_env_rng rng = {corral_env_episode_seed(seed, map->size)};
    uint16_t order[CELLS_MAX];
    for (uint32_t i = 0; i < map->cells; i++) {
        uint32_t j = corral_env_rng_below(&rng, i + 1);
        order[i] = order[j];
        order[j] = (uint16_t)i;
    }
    uint32_t placed = 0;
    for (uint32_t i = 0; i < map->cells && placed < walls; i++) {
        map->wall[order[i]] = 1;
        bool kept = map_survey(map);
        map->wall[order[i]] = kept;
        placed += kept;
    }
    return map_survey(map) && placed == walls;
}

static bool map_open(struct map *map, const char *args_json, char *error, size_t room)
{
    int64_t walls[ARG_VALUES_MAX];
    struct arg args[] = {
        {.name = "size", .low = 2, .high = SIDE_MAX, .value = 8},
        {.name = "walls", .low = 0, .high = CELLS_MAX - 1, .list = true, .values = walls},
        {.name = "map", .low = 0, .high = INT32_MAX, .value = 1},
        {.name = "limit", .low = 1, .high = LIMIT_MAX},
        {.name = "shaping", .low = 0, .high = 1, .value = 1},
    };
    if (!args_parse(args_json, args, sizeof args / sizeof args[0], error, room)) {
        return false;
    }
    memset(map, 0, sizeof *map);
    map->size = (uint32_t)args[0].value;
    map->cells = map->size * map->size;
    map->limit = args[3].given ? (uint32_t)args[3].value : 8 * map->size;
    map->shaping = args[4].value != 0;
    if (!args[1].given_list) {
        uint32_t count = args[1].given ? (uint32_t)args[1].value : map->cells / 5;
        bool drawn = map_draw(map, count, (uint64_t)args[2].value);
        if (!drawn) {
            snprintf(error, room, "argument \"walls\": %u walls do not fit without cutting cells off", count);
        }
        return drawn;
    }
    for (uint32_t i = 0; i < args[1].count; i++) {
        if (walls[i] >= map->cells) {
            snprintf(error, room, "argument \"walls\": cell %d is outside the grid", (int)walls[i]);
            return false;
        }
        map->wall[walls[i]] = 1;
    }
    bool connected = map_survey(map);
    if (!connected) {
        snprintf(error, room, "argument \"walls\": at least two free cells, all connected, must remain");
    }
    return connected;
}

static void view_of(const struct map *map, uint32_t cell, float *view)
{
    int row = (int)(cell / map->size), column = (int)(cell % map->size), size = (int)map->size;
    float scale = 2.0f / (float)(size - 1);
    view[0] = 0.0f;
    view[1] = 0.0f;
    view[2] = (float)row * scale - 1.0f;
    view[3] = (float)column * scale - 1.0f;
    for (int i = 0; i < 25; i++) {
        int r = row + i / 5 - 2, c = column + i % 5 - 2;
        bool outside = r < 0 || c < 0 || r >= size || c >= size;
        view[4 + i] = outside || map->wall[r * size + c] ? 1.0f : 0.0f;
    }
}

/* ---- the batch ---- */

static void look(struct corral_env *env, uint32_t id)
{
    const struct walker *walker = &env->walkers[id];
    float *obs = (float *)((char *)env->io.obs + (size_t)id * env->io.obs_stride);
    const float *here = env->view[walker->cell], *goal = env->view[walker->goal];
    memcpy(obs, here, sizeof env->view[0]);
    obs[0] = 0.5f * (goal[2] - here[2]);
    obs[1] = 0.5f * (goal[3] - here[3]);
}

static void begin_episode(struct corral_env *env, uint32_t id)
{
    struct walker *walker = &env->walkers[id];
    struct corral_env_rng rng = {corral_env_episode_seed(walker->stream_seed, walker->episode)};
    uint32_t start = corral_env_rng_below(&rng, env->map.free_count);
    uint32_t goal = corral_env_rng_below(&rng, env->map.free_count - 1);
    goal += goal >= start; /* any other cell */
    walker->steps = 0;
    walker->cell = env->map.free[start];
    walker->goal = env->map.free[goal];
    look(env, id);
}

static uint32_t choice_of(const struct corral_env *env, uint32_t id)
{
    uint32_t choice;
    memcpy(&choice, (const char *)env->io.action + (size_t)id * env->io.action_stride, sizeof choice);
    return choice;
}

static void step_one(struct corral_env *env, uint32_t id)
{
    struct walker *walker = &env->walkers[id];
    uint32_t from = walker->cell, to = env->next[from][choice_of(env, id)];
    const uint16_t *distance = env->distance + (size_t)walker->goal * env->map.cells;
    walker->cell = (uint16_t)to;
    walker->steps++;
    bool arrived = to == walker->goal, late = walker->steps >= env->map.limit;
    float shaped = 0.05f * (float)(distance[from] - distance[to] - 1);
    env->io.reward[id] = (arrived ? 1.0f : 0.0f) + (env->map.shaping ? shaped : 0.0f);
    env->io.terminated[id] = arrived;
    env->io.truncated[id] = late;
    look(env, id);
    if (arrived || late) {
        size_t at = (size_t)id * env->io.obs_stride;
        memcpy((char *)env->io.final_obs + at, (const char *)env->io.obs + at, OBS * sizeof(float));
        walker->episode++;
        begin_episode(env, id);
    }
}

static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    uint32_t steps = ids == NULL ? env->io.envs : count, bad = 0;
    if (!ids_valid(ids, count, env->io.envs)) {
        return CORRAL_ENV_INVALID;
    }
    for (uint32_t i = 0; i < steps; i++) {
        bad |= choice_of(env, ids == NULL ? i : ids[i]) >= MOVES;
    }
    if (bad) {
        return CORRAL_ENV_INVALID; /* and nobody has moved */
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
        env->walkers[id].stream_seed = seeds[i];
        env->walkers[id].episode = 0;
        env->io.reward[id] = 0.0f;
        env->io.terminated[id] = 0;
        env->io.truncated[id] = 0;
        begin_episode(env, id);
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status snapshot(struct corral_env *env, uint32_t id, void *buffer, size_t *bytes)
{
    if (id >= env->io.envs || bytes == NULL) {
        return CORRAL_ENV_INVALID;
    }
    const struct walker *walker = &env->walkers[id];
    struct snapshot_head head = {WALKER_KIND,     SNAPSHOT_VERSION, walker->stream_seed,
                                 walker->episode, walker->steps,    0};
    struct tail tail = {walker->cell, walker->goal, env->map.fingerprint};
    enum corral_env_status status = snapshot_room(buffer, bytes, sizeof head + sizeof tail);
    if (status == CORRAL_ENV_OK) {
        memcpy(buffer, &head, sizeof head);
        memcpy((char *)buffer + sizeof head, &tail, sizeof tail);
    }
    return status;
}

static enum corral_env_status restore(struct corral_env *env, uint32_t id, const void *buffer, size_t bytes)
{
    struct snapshot_head head;
    struct tail tail;
    if (id >= env->io.envs ||
        !snapshot_head_read(&head, buffer, bytes, sizeof head + sizeof tail, WALKER_KIND, env->map.limit)) {
        return CORRAL_ENV_INVALID;
    }
    memcpy(&tail, (const char *)buffer + sizeof head, sizeof tail);
    if (tail.fingerprint != env->map.fingerprint || tail.cell >= env->map.cells ||
        tail.goal >= env->map.cells || tail.cell == tail.goal || env->map.wall[tail.cell] ||
        env->map.wall[tail.goal]) {
        return CORRAL_ENV_INVALID;
    }
    env->walkers[id] =
        (struct walker){head.stream_seed, head.episode, head.steps, (uint16_t)tail.cell, (uint16_t)tail.goal};
    look(env, id);
    return CORRAL_ENV_OK;
}

static enum corral_env_status describe(const char *args_json, struct corral_env_spec *spec, char *error,
                                       size_t error_bytes)
{
    struct map map;
    if (!map_open(&map, args_json, error, error_bytes)) {
        return CORRAL_ENV_INVALID;
    }
    struct corral_env_spec mine = {
        .size = sizeof mine,
        .flags = CORRAL_ENV_SNAPSHOTS,
        .agents = 1,
        .autoreset = CORRAL_ENV_AUTORESET_SAME_STEP,
        .obs_dtype = CORRAL_ENV_F32,
        .obs_rank = 1,
        .obs_shape = {OBS},
        .obs_low = -1.0,
        .obs_high = 1.0,
        .action_kind = CORRAL_ENV_DISCRETE,
        .components = 1,
        .choices = {MOVES},
        .max_episode_steps = map.limit,
        .reward_low = map.shaping ? -0.1 : 0.0,
        .reward_high = 1.0,
        .reward_threshold = 0.9,
    };
    return spec_write(spec, &mine);
}

static struct corral_env *lay_out(struct carver *carver, const struct map *map, uint32_t envs)
{
    struct corral_env *env = carve(carver, 1, sizeof *env);
    struct walker *walkers = carve(carver, envs, sizeof *walkers);
    uint16_t(*next)[MOVES] = carve(carver, map->cells, sizeof *next);
    uint16_t *distance = carve(carver, (size_t)map->cells * map->cells, sizeof *distance);
    float(*view)[OBS] = carve(carver, map->cells, sizeof *view);
    if (env != NULL) {
        env->walkers = walkers;
        env->next = next;
        env->distance = distance;
        env->view = view;
    }
    return env;
}

static void chart(struct corral_env *env)
{
    for (uint32_t cell = 0; cell < env->map.cells; cell++) {
        view_of(&env->map, cell, env->view[cell]);
        for (uint32_t move = 0; move < MOVES; move++) {
            env->next[cell][move] = (uint16_t)neighbour(&env->map, cell, move);
        }
        if (!env->map.wall[cell]) {
            flood(&env->map, cell, env->distance + (size_t)cell * env->map.cells);
        }
    }
}

static enum corral_env_status create(const char *args_json, const struct corral_env_buffers *buffers,
                                     const struct corral_env_host *host, struct corral_env **out, char *error,
                                     size_t error_bytes)
{
    struct map map;
    struct corral_env_buffers io;
    sized_copy(&io, sizeof io, buffers, buffers->size);
    if (!map_open(&map, args_json, error, error_bytes) ||
        !buffers_fit(&io, 1, OBS * sizeof(float), sizeof(int32_t), error, error_bytes)) {
        return CORRAL_ENV_INVALID;
    }
    struct carver carver = {0};
    (void)lay_out(&carver, &map, io.envs);
    struct memory memory;
    memory_open(&memory, host);
    size_t bytes = carver.used + 64;
    void *block = memory_get(&memory, bytes);
    if (block == NULL) {
        snprintf(error, error_bytes, "no memory for %u environments", io.envs);
        return CORRAL_ENV_NOMEM;
    }
    carver = (struct carver){.block = cache_aligned(block)};
    struct corral_env *env = lay_out(&carver, &map, io.envs);
    env->io = io;
    env->map = map;
    env->memory = memory;
    env->block = block;
    env->block_bytes = bytes;
    chart(env);
    for (uint32_t id = 0; id < io.envs; id++) {
        begin_episode(env, id); /* so that a step before the first reset is harmless */
    }
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
    .id = "GridWorld-v0",
    .summary = "walk to a goal among walls; size, walls and limit are arguments",
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
