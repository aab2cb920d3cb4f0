/* Plays a guessing game and sends every game to a trainer as a trajectory record. Build and run: docs/guide/trajectories.md. */
#include <corral/rollout.h>
#include <stdio.h>
#include <stdlib.h>

#define GROUPS 5
#define MEMBERS 4 /* games with the same number to find: a trainer compares them */
#define TURNS_MAX 8

static int fail(const char *what, const struct corral_error *err)
{
    fprintf(stderr, "player: %s: %s\n", what, err->text);
    return 1;
}

/* One game: halve the range each turn, sometimes badly. Returns the turns taken; the last one is right or the game is cut off. */
static uint32_t play(int secret, float *obs, int32_t *action, float *log_prob, float *reward)
{
    int low = 0, high = 64;
    for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
        const int clever = rand() % 4 != 0;
        const int guess = clever ? (low + high) / 2 : low + rand() % (high - low);
        obs[2 * turn] = (float)low;
        obs[2 * turn + 1] = (float)high;
        action[turn] = guess;
        log_prob[turn] = clever ? -0.3f : -4.0f;
        reward[turn] = guess == secret ? 1.0f : -0.1f;
        if (guess == secret) {
            return turn + 1;
        }
        *(guess < secret ? &low : &high) = guess < secret ? guess + 1 : guess;
    }
    return TURNS_MAX;
}

static enum corral_status send_game(struct corral_traj_writer *w, uint64_t group, uint32_t member, int secret,
                                    struct corral_error *err)
{
    float obs[2 * TURNS_MAX], log_prob[TURNS_MAX], reward[TURNS_MAX], sum = 0;
    int32_t action[TURNS_MAX];
    const uint64_t version = 1; /* of the weights that chose: the same for the whole game here */
    const uint32_t turns = play(secret, obs, action, log_prob, reward);
    for (uint32_t i = 0; i < turns; i++) {
        sum += reward[i];
    }
    const struct corral_traj_tensor tensors[] = {
        {.name = "obs", .dtype = CORRAL_TRAJ_F32, .dims = 2, .shape = {turns, 2}, .data = obs},
        {.name = "action", .dtype = CORRAL_TRAJ_I32, .dims = 1, .shape = {turns}, .data = action},
        {.name = "log_prob", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {turns}, .data = log_prob},
        {.name = "reward", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {turns}, .data = reward},
        {.name = "version", .dtype = CORRAL_TRAJ_U64, .dims = 1, .shape = {1}, .data = &version},
    };
    const struct corral_traj_score score = {"reward", sum};
    const struct corral_traj_record record = {.size = sizeof record,
                                              .env = "guess",
                                              .task = "0 to 63",
                                              .finish = reward[turns - 1] > 0 ? "stop" : "length",
                                              .turns = turns,
                                              .tokens = turns,
                                              .episode = group * MEMBERS + member + 1,
                                              .group = group,
                                              .group_index = member,
                                              .group_size = MEMBERS,
                                              .version_min = version,
                                              .version_max = version,
                                              .scores = &score,
                                              .score_count = 1,
                                              .tensors = tensors,
                                              .tensor_count = 5};
    /* Waits while the trainer has no room. */
    return corral_traj_writer_write(w, CORRAL_TRAJ_ANY_RANK, &record, 10000, NULL, err);
}

int main(int argc, char **argv)
{
    struct corral_error err;
    struct corral_traj_writer *w;
    if (argc != 3) {
        fprintf(stderr, "usage: player ENDPOINT TOKEN\n");
        return 2;
    }
    const char *endpoint = argv[1];
    const struct corral_traj_writer_options options = {
        .size = sizeof options, .run = 1, .token = argv[2], .endpoints = &endpoint, .endpoint_count = 1};
    if (corral_traj_writer_open(&w, &options, &err) != CORRAL_OK) {
        return fail("open", &err);
    }
    for (uint64_t group = 0; group < GROUPS; group++) {
        const int secret = rand() % 64;
        for (uint32_t member = 0; member < MEMBERS; member++) {
            if (send_game(w, group, member, secret, &err) != CORRAL_OK) {
                return fail("write", &err);
            }
        }
    }
    if (corral_traj_writer_wait(w, 10000, &err) != CORRAL_OK) {
        return fail("wait", &err);
    }
    printf("player: %d games are with the trainer\n", GROUPS * MEMBERS);
    corral_traj_writer_close(w);
    return 0;
}
