/* Full random games against a rules checker that shares nothing with the environment: a board of characters, lines found by coordinates. */
#include "envs/batch_for_tests.h"

struct referee {
    char board[3][3]; /* ' ', or '0' or '1' for the agent */
    int to_move;
};

static void referee_begin(struct referee *r, int starter)
{
    memset(r->board, ' ', sizeof r->board);
    r->to_move = starter;
}

static bool referee_sees_three(const struct referee *r, char who)
{
    int down = 0, up = 0;
    for (int i = 0; i < 3; i++) {
        int across = 0, along = 0;
        for (int j = 0; j < 3; j++) {
            across += r->board[i][j] == who;
            along += r->board[j][i] == who;
        }
        if (across == 3 || along == 3) {
            return true;
        }
        down += r->board[i][i] == who;
        up += r->board[2 - i][i] == who;
    }
    return down == 3 || up == 3;
}

/* What `agent` should see. */
static void check_view(const struct referee *r, int agent, const float *obs, bool live)
{
    for (int cell = 0; cell < 9; cell++) {
        char stone = r->board[cell / 3][cell % 3];
        assert_true(obs[cell] == (stone == '0' + agent ? 1.0f : 0.0f));
        assert_true(obs[9 + cell] == (stone == '1' - agent ? 1.0f : 0.0f));
    }
    assert_true(obs[18] == (live && r->to_move == agent ? 1.0f : 0.0f));
}

static void check_live(const struct batch *b, uint32_t id, const struct referee *r)
{
    for (int agent = 0; agent < 2; agent++) {
        uint32_t row = 2 * id + (uint32_t)agent;
        check_view(r, agent, batch_obs(b, row), true);
        assert_int_equal(b->io.active[row], r->to_move == agent);
        for (int cell = 0; cell < 9; cell++) {
            assert_int_equal(b->io.mask[row * b->io.mask_stride + (uint32_t)cell],
                             r->board[cell / 3][cell % 3] == ' ');
        }
    }
}

struct tally {
    uint32_t wins[2], draws;
};

/* After the agent to move chose `cell`. */
static void check_step(const struct batch *b, uint32_t id, struct referee *r, int cell, struct tally *tally)
{
    int agent = r->to_move;
    r->board[cell / 3][cell % 3] = (char)('0' + agent);
    bool won = referee_sees_three(r, (char)('0' + agent));
    bool full = memchr(r->board, ' ', sizeof r->board) == NULL;
    const float *reward = b->io.reward + 2 * id;
    assert_true(reward[agent] == (won ? 1.0f : 0.0f) && reward[1 - agent] == (won ? -1.0f : 0.0f));
    for (uint32_t row = 2 * id; row < 2 * id + 2; row++) {
        assert_int_equal(b->io.terminated[row], won || full);
        assert_int_equal(b->io.truncated[row], 0);
    }
    if (!won && !full) {
        r->to_move = 1 - agent;
        return;
    }
    check_view(r, 0, batch_final_obs(b, 2 * id), false);
    check_view(r, 1, batch_final_obs(b, 2 * id + 1), false);
    tally->wins[agent] += won;
    tally->draws += !won;
    referee_begin(r, b->io.active[2 * id] ? 0 : 1);
}

static void play(const char *args, struct tally *tally)
{
    struct batch b;
    struct referee referees[16];
    struct corral_env_rng rng = {42};
    batch_open_padded(&b, "tictactoe", 16, args, 0);
    batch_reset(&b);
    for (uint32_t id = 0; id < 16; id++) {
        referee_begin(&referees[id], b.io.active[2 * id] ? 0 : 1);
    }
    for (uint32_t step = 0; step < 10000; step++) {
        int cells[16];
        for (uint32_t id = 0; id < 16; id++) {
            check_live(&b, id, &referees[id]);
            uint32_t row = 2 * id + (uint32_t)referees[id].to_move;
            batch_act(&b, row ^ 1, 1e6); /* the other's action does not count */
            batch_act_randomly(&b, row, &rng);
            memcpy(&cells[id], (const char *)b.io.action + row * b.io.action_stride, sizeof cells[id]);
        }
        batch_step(&b);
        for (uint32_t id = 0; id < 16; id++) {
            check_step(&b, id, &referees[id], cells[id], tally);
        }
    }
    batch_close(&b);
}

static void games_follow_the_rules(void **state)
{
    (void)state;
    struct tally tally = {0};
    play("{}", &tally);
    double games = tally.wins[0] + tally.wins[1] + tally.draws;
    assert_true(games > 15000);
    assert_true(tally.wins[0] > tally.wins[1] &&
                tally.wins[1] > tally.draws); /* moving first is worth much */
}

static void the_starter_can_be_chosen_or_drawn(void **state)
{
    (void)state;
    struct tally second = {0}, drawn = {0};
    play("{\"starter\":1}", &second);
    assert_true(second.wins[1] > second.wins[0] * 3 / 2);
    play("{\"starter\":2}", &drawn);
    double ratio = (double)drawn.wins[0] / drawn.wins[1];
    assert_true(ratio > 0.9 && ratio < 1.1);
}

static void a_taken_cell_is_refused(void **state)
{
    (void)state;
    struct batch b;
    batch_open(&b, "tictactoe", 2);
    batch_reset(&b);
    batch_act(&b, 0, 4);
    batch_act(&b, 2, 0);
    batch_step(&b);
    batch_act(&b, 1, 4); /* taken */
    batch_act(&b, 3, 4);
    assert_int_equal(b.ops->step(b.env, NULL, 2), CORRAL_ENV_INVALID);
    assert_true(batch_obs(&b, 3)[4] == 0.0f);
    batch_act(&b, 1, 5);
    batch_step(&b);
    assert_true(batch_obs(&b, 3)[4] == 1.0f);
    batch_close(&b);
}

static void refuses_positions_no_game_reaches(void **state)
{
    (void)state;
    struct {
        uint32_t kind, version;
        uint64_t stream_seed, episode;
        uint32_t steps, reserved, stones[2], starter, zero;
    } s;
    static const struct {
        uint32_t steps, stones[2], starter;
        enum corral_env_status expected;
    } cases[] = {
        {0, {0, 0}, 0, CORRAL_ENV_OK},          {1, {1, 0}, 0, CORRAL_ENV_OK},
        {1, {0, 1}, 1, CORRAL_ENV_OK},          {1, {0, 1}, 0, CORRAL_ENV_INVALID},
        {2, {3, 0}, 0, CORRAL_ENV_INVALID},     {2, {1, 1}, 0, CORRAL_ENV_INVALID},
        {1, {0x200, 0}, 0, CORRAL_ENV_INVALID}, {5, {7, 0x18}, 0, CORRAL_ENV_INVALID},
        {0, {0, 0}, 2, CORRAL_ENV_INVALID},     {3, {1, 0}, 0, CORRAL_ENV_INVALID},
    };
    struct batch b;
    batch_open(&b, "tictactoe", 1);
    batch_reset(&b);
    assert_int_equal(batch_snapshot(&b, 0, &s), sizeof s);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        s.steps = cases[i].steps;
        memcpy(s.stones, cases[i].stones, sizeof s.stones);
        s.starter = cases[i].starter;
        assert_int_equal(b.ops->restore(b.env, 0, &s, sizeof s), cases[i].expected);
    }
    assert_int_equal(b.io.active[1], 1 - b.io.active[0]);
    batch_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(games_follow_the_rules),
        cmocka_unit_test(the_starter_can_be_chosen_or_drawn),
        cmocka_unit_test(a_taken_cell_is_refused),
        cmocka_unit_test(refuses_positions_no_game_reaches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
