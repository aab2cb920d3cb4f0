#include "bench/envs_scalar.h"
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define PI 3.141592653589793

static double clip(double x, double bound)
{
    return x > bound ? bound : x < -bound ? -bound : x;
}

/* Flags, the last observation and the next episode; `width` numbers of observation. */
static inline void finish(const struct scalar_kind *kind, struct scalar_env *env, struct scalar_rows rows,
                          uint32_t i, uint32_t width, bool over, uint32_t limit)
{
    bool late = limit > 0 && ++env->steps >= limit;
    rows.terminated[i] = over;
    rows.truncated[i] = late;
    if (over || late) {
        memcpy(rows.final_obs + (size_t)i * width, rows.obs + (size_t)i * width, width * sizeof(float));
        env->steps = 0;
        kind->reset(env, rows, i);
    }
}

static const struct scalar_kind cartpole, acrobot, mountain_car, mountain_car_continuous, pendulum, gridworld;

/* ---- CartPole ---- */

static void show_plain(const struct scalar_env *env, struct scalar_rows rows, uint32_t i, uint32_t width)
{
    for (uint32_t k = 0; k < width; k++) {
        rows.obs[(size_t)i * width + k] = (float)env->s[k];
    }
}

static void cartpole_reset(struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    for (int k = 0; k < 4; k++) {
        env->s[k] = corral_env_rng_uniform(&env->rng, -0.05, 0.05);
    }
    show_plain(env, rows, i, 4);
}

static void cartpole_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        double *s = envs[i].s;
        double force = rows.choice[i] ? 10.0 : -10.0, sine = sin(s[2]), cosine = cos(s[2]);
        double temp = (force + 0.05 * s[3] * s[3] * sine) / 1.1;
        double ddtheta = (9.8 * sine - cosine * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cosine * cosine / 1.1));
        double ddx = temp - 0.05 * ddtheta * cosine / 1.1;
        s[0] += 0.02 * s[1];
        s[1] += 0.02 * ddx;
        s[2] += 0.02 * s[3];
        s[3] += 0.02 * ddtheta;
        show_plain(&envs[i], rows, i, 4);
        rows.reward[i] = 1.0f;
        finish(&cartpole, &envs[i], rows, i, 4, fabs(s[0]) > 2.4 || fabs(s[2]) > 12 * 2 * PI / 360, 500);
    }
}

/* ---- Acrobot ---- */

static void acrobot_show(const struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    float *obs = rows.obs + (size_t)i * 6;
    for (int k = 0; k < 2; k++) {
        obs[2 * k] = (float)cos(env->s[k]);
        obs[2 * k + 1] = (float)sin(env->s[k]);
    }
    obs[4] = (float)env->s[2];
    obs[5] = (float)env->s[3];
}

static void acrobot_reset(struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    for (int k = 0; k < 4; k++) {
        env->s[k] = (double)(float)corral_env_rng_uniform(&env->rng, -0.1, 0.1);
    }
    acrobot_show(env, rows, i);
}

static void acrobot_rate(const double *s, double torque, double *rate)
{
    double d1 = 3.5 + cos(s[1]), d2 = 1.25 + 0.5 * cos(s[1]);
    double phi2 = 4.9 * sin(s[0] + s[1]);
    double phi1 = -0.5 * s[3] * s[3] * sin(s[1]) - s[3] * s[2] * sin(s[1]) + 14.7 * sin(s[0]) + phi2;
    rate[0] = s[2];
    rate[1] = s[3];
    rate[3] = (torque + d2 / d1 * phi1 - 0.5 * s[2] * s[2] * sin(s[1]) - phi2) / (1.25 - d2 * d2 / d1);
    rate[2] = -(d2 * rate[3] + phi1) / d1;
}

static void acrobot_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    static const double reach[4] = {0.0, 0.1, 0.1, 0.2};
    for (uint32_t i = 0; i < count; i++) {
        double *s = envs[i].s, k[5][4] = {{0}}, at[4];
        for (int stage = 0; stage < 4; stage++) {
            for (int j = 0; j < 4; j++) {
                at[j] = s[j] + reach[stage] * k[stage][j];
            }
            acrobot_rate(at, rows.choice[i] - 1, k[stage + 1]);
        }
        for (int j = 0; j < 4; j++) {
            s[j] += 0.2 / 6 * (k[1][j] + 2 * k[2][j] + 2 * k[3][j] + k[4][j]);
        }
        for (int j = 0; j < 2; j++) {
            while (s[j] > PI) {
                s[j] -= 2 * PI;
            }
            while (s[j] < -PI) {
                s[j] += 2 * PI;
            }
        }
        s[2] = clip(s[2], 4 * PI);
        s[3] = clip(s[3], 9 * PI);
        bool over = -cos(s[0]) - cos(s[0] + s[1]) > 1.0;
        acrobot_show(&envs[i], rows, i);
        rows.reward[i] = over ? 0.0f : -1.0f;
        finish(&acrobot, &envs[i], rows, i, 6, over, 500);
    }
}

/* ---- the two mountain cars ---- */

static void car_reset(struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    env->s[0] = corral_env_rng_uniform(&env->rng, -0.6, -0.4);
    env->s[1] = 0.0;
    show_plain(env, rows, i, 2);
}

static void car_move(double *s, double push)
{
    s[1] = clip(s[1] + push - 0.0025 * cos(3 * s[0]), 0.07);
    s[0] += s[1];
    s[0] = s[0] > 0.6 ? 0.6 : s[0];
    if (s[0] <= -1.2) {
        s[0] = -1.2;
        s[1] = s[1] < 0 ? 0 : s[1];
    }
}

static void mountain_car_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        double *s = envs[i].s;
        car_move(s, (rows.choice[i] - 1) * 0.001);
        show_plain(&envs[i], rows, i, 2);
        rows.reward[i] = -1.0f;
        finish(&mountain_car, &envs[i], rows, i, 2, s[0] >= 0.5 && s[1] >= 0, 200);
    }
}

static void mountain_car_continuous_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        double *s = envs[i].s, push = (double)rows.number[i];
        car_move(s, clip(push, 1.0) * 0.0015);
        s[0] = (double)(float)s[0];
        s[1] = (double)(float)s[1];
        bool over = s[0] >= (double)0.45f && s[1] >= 0;
        show_plain(&envs[i], rows, i, 2);
        rows.reward[i] = (float)((over ? 100.0 : 0.0) - 0.1 * push * push);
        finish(&mountain_car_continuous, &envs[i], rows, i, 2, over, 999);
    }
}

/* ---- Pendulum ---- */

static void pendulum_show(const struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    float *obs = rows.obs + (size_t)i * 3;
    obs[0] = (float)cos(env->s[0]);
    obs[1] = (float)sin(env->s[0]);
    obs[2] = (float)env->s[1];
}

static void pendulum_reset(struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    env->s[0] = corral_env_rng_uniform(&env->rng, -PI, PI);
    env->s[1] = corral_env_rng_uniform(&env->rng, -1.0, 1.0);
    pendulum_show(env, rows, i);
}

static void pendulum_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        double *s = envs[i].s, torque = clip((double)rows.number[i], 2.0);
        double wrapped = fmod(s[0] + PI, 2 * PI);
        wrapped += wrapped < 0 ? PI : -PI;
        rows.reward[i] = (float)-(wrapped * wrapped + 0.1 * s[1] * s[1] + 0.001 * torque * torque);
        s[1] = clip(s[1] + (15.0 * sin(s[0]) + 3.0 * torque) * 0.05, 8.0);
        s[0] += s[1] * 0.05;
        pendulum_show(&envs[i], rows, i);
        finish(&pendulum, &envs[i], rows, i, 3, false, 200);
    }
}

/* ---- GridWorld: 8 x 8, twelve walls, Manhattan shaping (the plug-in's distances go around walls) ---- */

static const char grid[8][9] = {"........", ".#...#..", "...#....", ".#....#.",
                                "....#...", ".#......", "...#.#..", "#.....#."};

static bool grid_wall(int row, int column)
{
    return row < 0 || column < 0 || row > 7 || column > 7 || grid[row][column] == '#';
}

static int grid_distance(uint32_t a, uint32_t b)
{
    int rows = (int)(a / 8) - (int)(b / 8), columns = (int)(a % 8) - (int)(b % 8);
    return (rows < 0 ? -rows : rows) + (columns < 0 ? -columns : columns);
}

static void gridworld_show(const struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    float *obs = rows.obs + (size_t)i * 29;
    int row = (int)env->cell / 8, column = (int)env->cell % 8;
    obs[0] = (float)((int)env->goal / 8 - row) / 7.0f;
    obs[1] = (float)((int)env->goal % 8 - column) / 7.0f;
    obs[2] = (float)row * (2.0f / 7.0f) - 1.0f;
    obs[3] = (float)column * (2.0f / 7.0f) - 1.0f;
    for (int k = 0; k < 25; k++) {
        obs[4 + k] = grid_wall(row + k / 5 - 2, column + k % 5 - 2) ? 1.0f : 0.0f;
    }
}

static uint32_t grid_free(struct scalar_env *env)
{
    uint32_t cell = corral_env_rng_below(&env->rng, 64);
    while (grid[cell / 8][cell % 8] == '#') {
        cell = corral_env_rng_below(&env->rng, 64);
    }
    return cell;
}

static void gridworld_reset(struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    env->cell = grid_free(env);
    do {
        env->goal = grid_free(env);
    } while (env->goal == env->cell);
    gridworld_show(env, rows, i);
}

static void gridworld_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    static const int down[] = {-1, 0, 1, 0}, right[] = {0, 1, 0, -1};
    for (uint32_t i = 0; i < count; i++) {
        struct scalar_env *env = &envs[i];
        int row = (int)env->cell / 8 + down[rows.choice[i]],
            column = (int)env->cell % 8 + right[rows.choice[i]];
        uint32_t from = env->cell;
        env->cell = grid_wall(row, column) ? from : (uint32_t)(row * 8 + column);
        bool arrived = env->cell == env->goal;
        int nearer = grid_distance(from, env->goal) - grid_distance(env->cell, env->goal);
        rows.reward[i] = (arrived ? 1.0f : 0.0f) + 0.05f * (float)(nearer - 1);
        gridworld_show(env, rows, i);
        finish(&gridworld, env, rows, i, 29, arrived, 64);
    }
}

/* ---- TicTacToe: two rows per environment ---- */

static void tictactoe_show(const struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    for (uint32_t agent = 0; agent < 2; agent++) {
        float *obs = rows.obs + ((size_t)i * 2 + agent) * 19;
        for (uint32_t cell = 0; cell < 9; cell++) {
            obs[cell] = (float)(env->stones[agent] >> cell & 1);
            obs[9 + cell] = (float)(env->stones[1 - agent] >> cell & 1);
            rows.mask[((size_t)i * 2 + agent) * 9 + cell] =
                ((env->stones[0] | env->stones[1]) >> cell & 1) == 0;
        }
        obs[18] = env->steps % 2 == agent ? 1.0f : 0.0f;
    }
}

static void tictactoe_reset(struct scalar_env *env, struct scalar_rows rows, uint32_t i)
{
    env->stones[0] = 0;
    env->stones[1] = 0;
    env->steps = 0;
    tictactoe_show(env, rows, i);
}

static void tictactoe_step(struct scalar_env *envs, struct scalar_rows rows, uint32_t count)
{
    static const uint32_t lines[] = {0007, 0070, 0700, 0111, 0222, 0444, 0421, 0124};
    for (uint32_t i = 0; i < count; i++) {
        struct scalar_env *env = &envs[i];
        uint32_t agent = env->steps % 2, row = 2 * i;
        env->stones[agent] |= 1u << rows.choice[row + agent];
        env->steps++;
        bool won = false;
        for (uint32_t k = 0; k < 8; k++) {
            won = won || (env->stones[agent] & lines[k]) == lines[k];
        }
        bool over = won || env->steps == 9;
        rows.reward[row + agent] = won ? 1.0f : 0.0f;
        rows.reward[row + 1 - agent] = won ? -1.0f : 0.0f;
        memset(rows.terminated + row, over, 2);
        memset(rows.truncated + row, 0, 2);
        tictactoe_show(env, rows, i);
        if (over) {
            memcpy(rows.final_obs + (size_t)row * 19, rows.obs + (size_t)row * 19, 2 * 19 * sizeof(float));
            tictactoe_reset(env, rows, i);
        }
    }
}

static const struct scalar_kind cartpole = {"CartPole-v1", cartpole_reset, cartpole_step};
static const struct scalar_kind acrobot = {"Acrobot-v1", acrobot_reset, acrobot_step};
static const struct scalar_kind mountain_car = {"MountainCar-v0", car_reset, mountain_car_step};
static const struct scalar_kind mountain_car_continuous = {"MountainCarContinuous-v0", car_reset,
                                                           mountain_car_continuous_step};
static const struct scalar_kind pendulum = {"Pendulum-v1", pendulum_reset, pendulum_step};
static const struct scalar_kind gridworld = {"GridWorld-v0", gridworld_reset, gridworld_step};
static const struct scalar_kind tictactoe = {"TicTacToe-v0", tictactoe_reset, tictactoe_step};

const struct scalar_kind *scalar_find(const char *id)
{
    static const struct scalar_kind *const kinds[] = {
        &cartpole, &acrobot, &mountain_car, &mountain_car_continuous, &pendulum, &gridworld, &tictactoe};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(kinds[i]->id, id) == 0) {
            return kinds[i];
        }
    }
    return NULL;
}
