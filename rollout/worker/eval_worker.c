#include "base/clock.h"
#include "base/log.h"
#include "rollout/worker/policy_view.h"
#include "rollout/worker/rollout_worker.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EVAL_INSTANCES_MAX 1024
#define POLL_EVERY_NS (20 * CORRAL_NS_PER_MS)
#define WAIT_MS 50

struct request {
    bool pending;
    uint64_t id, version_min, episodes, seed;
    bool greedy;
};

struct evaluation {
    struct corral_session *session;
    const struct corral_rollout_config *config;
    struct corral_policy_view policy;
    struct corral_mpack_writer *out;
    struct request request;
};

/* Returns and lengths of the episodes played so far. */
struct tally {
    uint32_t count;
    double sum, sum_squares, min, max, length;
    uint64_t steps;
};

static enum corral_status on_message(void *ctx, const char *type, const struct corral_mpack_node *message,
                                     struct corral_error *err)
{
    struct evaluation *e = ctx;
    if (strcmp(type, "eval") != 0) {
        return CORRAL_OK;
    }
    struct request q = {.pending = true};
    CORRAL_TRY(corral_mpack_get_u64(message, "id", &q.id, err));
    CORRAL_TRY(corral_mpack_get_u64(message, "version_min", &q.version_min, err));
    CORRAL_TRY(corral_mpack_get_u64(message, "episodes", &q.episodes, err));
    CORRAL_TRY(corral_mpack_get_u64(message, "seed", &q.seed, err));
    CORRAL_TRY(corral_mpack_get_bool(message, "greedy", &q.greedy, err));
    if (q.episodes == 0 || q.episodes > 1000000) {
        return corral_fail(err, CORRAL_PROTOCOL, "evaluation of %llu episodes",
                           (unsigned long long)q.episodes);
    }
    e->request = q;
    return CORRAL_OK;
}

static void tally_add(struct tally *t, double value, double length)
{
    t->min = t->count == 0 || value < t->min ? value : t->min;
    t->max = t->count == 0 || value > t->max ? value : t->max;
    t->sum += value;
    t->sum_squares += value * value;
    t->length += length;
    t->count++;
}

struct play {
    struct corral_vec *vec;
    struct corral_policy_workspace *workspace;
    const struct corral_vec_view *view;
    double *running; /* [envs] return of agent 0 in the running episode */
    uint32_t *
        left; /* [envs] episodes this instance still has to play: fixed in advance, so that short episodes are not over-counted */
    float *log_prob; /* [rows] scratch */
    struct corral_rng rng;
};

static void play_close(struct play *p)
{
    free(p->running);
    free(p->left);
    free(p->log_prob);
    corral_policy_workspace_destroy(p->workspace);
    corral_vec_destroy(p->vec);
}

static enum corral_status play_open(struct play *p, struct evaluation *e, struct corral_error *err)
{
    const struct request *q = &e->request;
    struct corral_vec_config env = e->config->env;
    env.memory = e->session->memory;
    env.envs = (uint32_t)CORRAL_MIN(q->episodes, EVAL_INSTANCES_MAX);
    env.seed = q->seed;
    env.worker = e->session->launch.index;
    CORRAL_TRY(corral_vec_create(&p->vec, &env, err));
    p->view = corral_vec_view(p->vec);
    CORRAL_TRY(corral_policy_workspace_create(&p->workspace, &e->config->layout, p->view->rows, false,
                                              e->session->memory, err));
    p->running = calloc(env.envs, sizeof *p->running);
    p->left = calloc(env.envs, sizeof *p->left);
    p->log_prob = calloc(p->view->rows, sizeof *p->log_prob);
    if (!p->running || !p->left || !p->log_prob) {
        return corral_fail(err, CORRAL_NOMEM, "evaluation of %u instances", env.envs);
    }
    for (uint32_t i = 0; i < env.envs; i++) {
        p->left[i] = (uint32_t)(q->episodes / env.envs + (i < q->episodes % env.envs));
    }
    corral_rng_seed(&p->rng, corral_seed_derive(q->seed, 0x6576616c, q->id, 0));
    return corral_vec_reset(p->vec, err);
}

static void play_count(struct play *p, struct tally *t)
{
    const struct corral_vec_view *view = p->view;
    for (uint32_t env = 0; env < view->envs; env++) {
        uint32_t row = env * view->agents;
        if (view->status[env] != 0) {
            p->running[env] = 0; /* void: played again */
            continue;
        }
        p->running[env] += view->reward[row];
        if (!(view->terminated[row] | view->truncated[row])) {
            continue;
        }
        if (p->left[env] > 0) {
            p->left[env]--;
            tally_add(t, p->running[env], view->episode_steps[env]);
        }
        p->running[env] = 0;
    }
}

static enum corral_status play_episodes(struct evaluation *e, struct play *p, struct tally *t,
                                        struct corral_error *err)
{
    uint64_t polled_ns = corral_now_ns(&corral_clock_monotonic);
    while (t->count < e->request.episodes && !e->session->finish) {
        corral_policy_act(&e->config->layout, e->policy.weights, p->workspace, p->view->obs, p->view->mask,
                          p->view->rows, e->request.greedy, &p->rng, p->view->action, p->log_prob, NULL);
        corral_board_enter(e->session->slot, CORRAL_ACTIVITY_EVALUATE);
        CORRAL_TRY(corral_vec_step(p->vec, err));
        t->steps += p->view->envs;
        play_count(p, t);
        if (corral_now_ns(&corral_clock_monotonic) - polled_ns > POLL_EVERY_NS) {
            CORRAL_TRY(corral_session_poll(e->session, 0, on_message, e, err));
            polled_ns = corral_now_ns(&corral_clock_monotonic);
        }
    }
    return CORRAL_OK;
}

static enum corral_status report(struct evaluation *e, const struct request *q, const struct tally *t,
                                 uint64_t wall_ns, struct corral_error *err)
{
    double n = t->count, mean = t->sum / n;
    double variance = n > 1 ? fmax(0, (t->sum_squares - n * mean * mean) / (n - 1)) : 0;
    corral_mpack_map(e->out, 11);
    corral_mpack_kv_str(e->out, "type", "evaluated");
    corral_mpack_kv_u64(e->out, "id", q->id);
    corral_mpack_kv_u64(e->out, "version", e->policy.version);
    corral_mpack_kv_u64(e->out, "episodes", t->count);
    corral_mpack_kv_f64(e->out, "mean", mean);
    corral_mpack_kv_f64(e->out, "std", sqrt(variance));
    corral_mpack_kv_f64(e->out, "min", t->min);
    corral_mpack_kv_f64(e->out, "max", t->max);
    corral_mpack_kv_f64(e->out, "length_mean", t->length / n);
    corral_mpack_kv_u64(e->out, "steps", t->steps);
    corral_mpack_kv_f64(e->out, "wall_ms", (double)wall_ns / 1e6);
    return corral_session_send(e->session, e->out, err);
}

static enum corral_status evaluate(struct evaluation *e, struct corral_error *err)
{
    const struct request q = e->request;
    corral_board_enter(e->session->slot, CORRAL_ACTIVITY_WAIT_VERSION);
    while (e->policy.version < q.version_min || e->policy.version == 0) {
        (void)corral_weight_store_wait(e->session->store, e->policy.version, WAIT_MS, NULL);
        CORRAL_TRY(corral_policy_view_refresh(&e->policy, err));
        CORRAL_TRY(corral_session_poll(e->session, 0, on_message, e, err));
        if (e->session->finish) {
            return CORRAL_OK;
        }
    }
    /* From here on the version is pinned: nothing refreshes the view until the episodes are over. */
    uint64_t begun_ns = corral_now_ns(&corral_clock_monotonic);
    struct play play = {0};
    struct tally tally = {0};
    corral_board_enter(e->session->slot, CORRAL_ACTIVITY_STARTING);
    enum corral_status status = play_open(&play, e, err);
    if (status == CORRAL_OK) {
        status = play_episodes(e, &play, &tally, err);
    }
    play_close(&play);
    CORRAL_TRY(status);
    e->request.pending = e->request.id != q.id; /* a newer request may have arrived meanwhile */
    corral_board_set(e->session->slot, CORRAL_BOARD_VERSION, e->policy.version);
    corral_board_add(e->session->slot, CORRAL_BOARD_EPISODES, tally.count);
    corral_board_add(e->session->slot, CORRAL_BOARD_ENV_STEPS, tally.steps);
    corral_board_set(e->session->slot, CORRAL_BOARD_MEMORY_BYTES, corral_session_memory_used(e->session));
    if (e->session->finish) {
        return CORRAL_OK;
    }
    return report(e, &q, &tally, corral_now_ns(&corral_clock_monotonic) - begun_ns, err);
}

static enum corral_status eval_loop(struct evaluation *e, struct corral_error *err)
{
    corral_mpack_map(e->out, 2);
    corral_mpack_kv_str(e->out, "type", "ready");
    corral_mpack_kv_str(e->out, "endpoint", "");
    CORRAL_TRY(corral_session_send(e->session, e->out, err));
    while (!e->session->finish) {
        corral_board_enter(e->session->slot, CORRAL_ACTIVITY_IDLE);
        CORRAL_TRY(corral_session_poll(e->session, WAIT_MS, on_message, e, err));
        if (e->request.pending && !e->session->finish) {
            CORRAL_TRY(corral_policy_view_refresh(&e->policy, err));
            CORRAL_TRY(evaluate(e, err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_eval_worker_run(struct corral_session *session,
                                          const struct corral_rollout_config *config,
                                          struct corral_error *err)
{
    struct evaluation e = {.session = session, .config = config};
    CORRAL_TRY(corral_policy_view_open(&e.policy, &config->layout, session->store, config->cast,
                                       session->memory, err));
    e.out = corral_mpack_writer_create();
    enum corral_status status =
        e.out ? eval_loop(&e, err)
              : corral_fail(err, CORRAL_NOMEM, "worker %s: no message buffer", session->launch.name);
    corral_mpack_writer_destroy(e.out);
    corral_policy_view_close(&e.policy);
    return status;
}
