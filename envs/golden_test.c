/* Transitions of the original environments (golden/generate.py), boundaries included: the same state and action give the same next state. */
#include "envs/batch_for_tests.h"

#define TOLERANCE 1e-12
#define SINGLE_TOLERANCE 2e-7 /* relative; observations are single precision */
#define COLUMNS_MAX 24

struct transition {
    uint32_t steps;
    double state[4], action, next[4], obs[6], reward;
    int terminated, truncated;
};

static const double *read_numbers(char *line, double *out, uint32_t want)
{
    char *at = line;
    for (uint32_t i = 0; i < want; i++) {
        char *end;
        out[i] = strtod(at, &end);
        assert_true(end != at && *end == (i + 1 < want ? ',' : '\n'));
        at = end + 1;
    }
    return out;
}

static struct transition read_transition(char *line, uint32_t states, uint32_t observations)
{
    double columns[COLUMNS_MAX];
    const double *at = read_numbers(line, columns, 1 + 2 * states + 1 + observations + 3);
    struct transition t = {.steps = (uint32_t)at[0], .action = at[1 + states]};
    memcpy(t.state, at + 1, states * sizeof *at);
    memcpy(t.next, at + 2 + states, states * sizeof *at);
    at += 2 + 2 * states;
    memcpy(t.obs, at, observations * sizeof *at);
    t.reward = at[observations];
    t.terminated = (int)at[observations + 1];
    t.truncated = (int)at[observations + 2];
    return t;
}

static void close_to(const char *what, uint32_t line, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fmax(1.0, fabs(want)))) {
        fail_msg("line %u, %s: %.17g, expected %.17g", line, what, got, want);
    }
}

static void check_transition(struct batch *b, uint32_t id, const struct transition *t, uint32_t line,
                             double tolerance)
{
    uint32_t observations = b->spec.obs_shape[0];
    bool over = t->terminated || t->truncated;
    const float *obs = over ? batch_final_obs(b, id) : batch_obs(b, id);
    for (uint32_t k = 0; k < observations; k++) {
        close_to("observation", line, (double)obs[k], t->obs[k], SINGLE_TOLERANCE);
    }
    close_to("reward", line, (double)b->io.reward[id], t->reward, SINGLE_TOLERANCE);
    if (b->io.terminated[id] != t->terminated || b->io.truncated[id] != t->truncated) {
        fail_msg("line %u: terminated %d, truncated %d", line, b->io.terminated[id], b->io.truncated[id]);
    }
    struct snapshot_view after;
    size_t bytes = batch_snapshot(b, id, &after);
    assert_int_equal(after.episode, over ? 1 : 0);
    assert_int_equal(after.steps, over ? 0 : t->steps + 1);
    for (uint32_t k = 0; !over && k < (bytes - 32) / 8; k++) {
        close_to("state", line, after.state[k], t->next[k], tolerance);
    }
}

/* Every transition at its own place in one batch, so that the vector path is what gets compared; and again one by one through ids. */
static void check_file(const char *name, double tolerance, uint32_t expected_min)
{
    char path[1024], line[1024];
    struct transition transitions[1024];
    struct batch b;
    snprintf(path, sizeof path, "%s/%s.csv", CORRAL_ENV_GOLDEN_DIR, name);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    batch_open(&b, name, 1024);
    batch_reset(&b);
    struct snapshot_view view;
    size_t bytes = batch_snapshot(&b, 0, &view);
    uint32_t states = (uint32_t)(bytes - 32) / 8, count = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] != '#') {
            assert_true(count < 1024);
            transitions[count++] = read_transition(line, states, b.spec.obs_shape[0]);
        }
    }
    fclose(file);
    assert_true(count >= expected_min);
    for (int through_ids = 0; through_ids < 2; through_ids++) {
        for (uint32_t i = 0; i < 1024; i++) {
            const struct transition *t = &transitions[i % count];
            view.steps = t->steps;
            view.episode = 0;
            memcpy(view.state, t->state, states * sizeof(double));
            assert_int_equal(b.ops->restore(b.env, i, &view, bytes), CORRAL_ENV_OK);
            batch_act(&b, i, t->action);
        }
        for (uint32_t i = 0; through_ids && i < 1024; i++) {
            assert_int_equal(b.ops->step(b.env, &i, 1), CORRAL_ENV_OK);
        }
        if (!through_ids) {
            batch_step(&b);
        }
        for (uint32_t i = 0; i < 1024; i++) {
            check_transition(&b, i, &transitions[i % count], i % count + 2, tolerance);
        }
    }
    batch_close(&b);
}

static void cartpole_moves_as_the_original(void **state)
{
    (void)state;
    check_file("cartpole", TOLERANCE, 300);
}

static void acrobot_moves_as_the_original(void **state)
{
    (void)state;
    check_file("acrobot", TOLERANCE, 300);
}

static void mountain_car_moves_as_the_original(void **state)
{
    (void)state;
    check_file("mountain_car", TOLERANCE, 300);
}

static void mountain_car_continuous_moves_as_the_original(void **state)
{
    (void)state;
    check_file("mountain_car_continuous", SINGLE_TOLERANCE,
               300); /* the original's state is single precision */
}

static void pendulum_moves_as_the_original(void **state)
{
    (void)state;
    check_file("pendulum", TOLERANCE, 300);
}

/* Away from the start, three steps in a row, as worked out by hand from the equations. */
static void cartpole_follows_a_known_path(void **state)
{
    (void)state;
    static const double path[3][4] = {{0.0096, 0.174679195748, 0.0308, -0.24306871796},
                                      {0.013093583915, -0.020868848948, 0.025938625641, 0.059167999939},
                                      {0.012676206936, 0.173871774873, 0.02712198564, -0.22521957256}};
    struct batch b;
    struct snapshot_view view;
    batch_open(&b, "cartpole", 1);
    batch_reset(&b);
    size_t bytes = batch_snapshot(&b, 0, &view);
    memcpy(view.state, (double[]){0.01, -0.02, 0.03, 0.04}, sizeof view.state);
    assert_int_equal(b.ops->restore(b.env, 0, &view, bytes), CORRAL_ENV_OK);
    for (uint32_t i = 0; i < 3; i++) {
        batch_act(&b, 0, i != 1);
        batch_step(&b);
        batch_snapshot(&b, 0, &view);
        for (uint32_t k = 0; k < 4; k++) {
            close_to("state", i, view.state[k], path[i][k], 1e-11);
        }
    }
    batch_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cartpole_moves_as_the_original),
        cmocka_unit_test(acrobot_moves_as_the_original),
        cmocka_unit_test(mountain_car_moves_as_the_original),
        cmocka_unit_test(mountain_car_continuous_moves_as_the_original),
        cmocka_unit_test(pendulum_moves_as_the_original),
        cmocka_unit_test(cartpole_follows_a_known_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
