/* tictactoe_play POLICY.safetensors [GAMES]: how a policy trained on TicTacToe-v0 fares against a random and a perfect opponent, moving first and second,
 * with its most likely moves and with sampled ones. Self-play itself has no score that would tell.
 * The perfect opponent picks uniformly among the moves that full search finds best. Hidden layers are taken to be tanh, as in configs/tictactoe.toml. */
#include "model/policy.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CELLS 9u
#define ALL 0x1ffu
#define OBS 19
#define GAMES_MAX 10000000
#define UNKNOWN 2

struct match {
    struct corral_policy_layout layout;
    struct corral_policy_workspace *workspace;
    float *weights;
    int8_t value[ALL + 1]
                [ALL + 1]; /* of full search, for the one to move, by own and the opponent's stones */
    struct corral_rng rng;
    bool greedy, perfect;
};

static bool has_line(uint32_t stones)
{
    static const uint16_t lines[] = {0007, 0070, 0700, 0111, 0222, 0444, 0421, 0124};
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(lines); i++) {
        if ((stones & lines[i]) == lines[i]) {
            return true;
        }
    }
    return false;
}

static int search(struct match *m, uint32_t own, uint32_t theirs)
{
    int8_t *known = &m->value[own][theirs];
    if (*known != UNKNOWN) {
        return *known;
    }
    if (has_line(theirs) || (own | theirs) == ALL) {
        return *known = has_line(theirs) ? -1 : 0;
    }
    int best = -1;
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        if (!((own | theirs) >> cell & 1)) {
            int value = -search(m, theirs, own | 1u << cell);
            best = CORRAL_MAX(best, value);
        }
    }
    return *known = (int8_t)best;
}

static uint32_t opponent_move(struct match *m, uint32_t own, uint32_t theirs)
{
    uint32_t choice[CELLS], choices = 0;
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        bool is_free = !((own | theirs) >> cell & 1);
        if (is_free && (!m->perfect || -search(m, theirs, own | 1u << cell) == search(m, own, theirs))) {
            choice[choices++] = cell;
        }
    }
    return choice[corral_rng_below(&m->rng, choices)];
}

static uint32_t policy_move(struct match *m, uint32_t own, uint32_t theirs)
{
    float obs[OBS], log_prob;
    uint8_t mask[CELLS];
    int32_t action;
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        obs[cell] = (float)(own >> cell & 1);
        obs[CELLS + cell] = (float)(theirs >> cell & 1);
        mask[cell] = !((own | theirs) >> cell & 1);
    }
    obs[OBS - 1] = 1;
    corral_policy_act(&m->layout, m->weights, m->workspace, obs, mask, 1, m->greedy, &m->rng, &action,
                      &log_prob, NULL);
    return (uint32_t)action;
}

/* 1 when the policy wins, 0 for a draw, -1 when it loses. */
static int play(struct match *m, bool policy_first)
{
    uint32_t stones[2] = {0, 0}; /* the policy's, the opponent's */
    for (uint32_t turn = 0; turn < CELLS; turn++) {
        uint32_t side = (turn & 1) ^ !policy_first;
        uint32_t own = stones[side], theirs = stones[!side];
        stones[side] |= 1u << (side == 0 ? policy_move(m, own, theirs) : opponent_move(m, own, theirs));
        if (has_line(stones[side])) {
            return side == 0 ? 1 : -1;
        }
    }
    return 0;
}

static void report(struct match *m, bool policy_first, uint32_t games)
{
    uint32_t count[3] = {0};
    for (uint32_t i = 0; i < games; i++) {
        count[1 + play(m, policy_first)]++;
    }
    double n = games;
    printf("%-11s  %-8s  %-6s  %6.2f%%  %6.2f%%  %6.2f%%\n", m->greedy ? "most likely" : "sampled",
           m->perfect ? "perfect" : "random", policy_first ? "first" : "second", 100 * count[2] / n,
           100 * count[1] / n, 100 * count[0] / n);
}

static enum corral_status layout_of(const struct corral_safetensors *file, struct corral_policy_layout *out,
                                    struct corral_error *err)
{
    struct corral_policy_spec spec = {
        .obs_dim = OBS,
        .action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {CELLS}},
        .activation = CORRAL_TANH};
    for (; spec.layers < CORRAL_POLICY_LAYERS_MAX; spec.layers++) {
        char name[64];
        snprintf(name, sizeof name, "policy.%u.weight", spec.layers);
        const struct corral_tensor *t = corral_safetensors_find(file, name);
        if (!t || t->rank != 2 || t->shape[0] > CORRAL_POLICY_WIDTH_MAX) {
            break;
        }
        spec.hidden[spec.layers] = (uint32_t)t->shape[0];
    }
    return corral_policy_layout_build(&spec, out, err);
}

static enum corral_status load(struct match *m, const struct corral_safetensors *file,
                               struct corral_error *err)
{
    CORRAL_TRY(layout_of(file, &m->layout, err));
    m->weights = calloc(m->layout.floats, sizeof *m->weights);
    if (!m->weights) {
        return corral_fail(err, CORRAL_NOMEM, "%llu weights", (unsigned long long)m->layout.floats);
    }
    for (uint32_t i = 0; i < m->layout.tensors; i++) {
        const struct corral_policy_tensor *to = &m->layout.tensor[i];
        const struct corral_tensor *from = corral_safetensors_find(file, to->name);
        if (!from || from->dtype != CORRAL_DTYPE_F32 || from->bytes != to->count * sizeof(float)) {
            return corral_fail(err, CORRAL_INVALID,
                               "tensor %s is missing, or is not that of a policy for TicTacToe-v0", to->name);
        }
        memcpy(m->weights + to->offset, from->data, from->bytes);
    }
    return corral_policy_workspace_create(&m->workspace, &m->layout, 1, false, &corral_allocator_heap, err);
}

static enum corral_status play_all(struct match *m, const char *path, uint32_t games,
                                   struct corral_error *err)
{
    struct corral_safetensors *file;
    CORRAL_TRY(corral_safetensors_open(&file, path, err));
    enum corral_status status = load(m, file, err);
    corral_safetensors_close(file);
    CORRAL_TRY(status);
    printf("%-11s  %-8s  %-6s  %7s  %7s  %7s\n", "its moves", "opponent", "moves", "won", "drawn", "lost");
    for (uint32_t i = 0; i < 8; i++) {
        m->greedy = !(i & 4);
        m->perfect = i & 2;
        report(m, !(i & 1), games);
    }
    return CORRAL_OK;
}

int main(int argc, char **argv)
{
    char *end = "";
    unsigned long games = argc > 2 ? strtoul(argv[2], &end, 10) : 10000;
    if (argc < 2 || argc > 3 || *end || games < 1 || games > GAMES_MAX) {
        fprintf(stderr, "Usage: tictactoe_play POLICY.safetensors [GAMES]\n");
        return 2;
    }
    static struct match m; /* a quarter of a megabyte of search results */
    memset(m.value, UNKNOWN, sizeof m.value);
    corral_rng_seed(&m.rng, 1);
    struct corral_error err;
    enum corral_status status = play_all(&m, argv[1], (uint32_t)games, &err);
    if (status != CORRAL_OK) {
        fprintf(stderr, "tictactoe_play: %s\n", err.text);
    }
    corral_policy_workspace_destroy(m.workspace);
    free(m.weights);
    return status == CORRAL_OK ? 0 : 1;
}
