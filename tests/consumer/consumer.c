/* Makes environments through libcorral and steps them: in this process and in a child, from the installed plug-ins and from a
 * plug-in of its own. usage: consumer ID [PLUGIN.so] */
#include <corral/rollout.h>
#include <stdio.h>
#include <string.h>

#define ENVS 8
#define STEPS 200

static int fail(const char *what, const struct corral_error *err)
{
    fprintf(stderr, "%s: %s: %s\n", what, corral_status_name(err->status), err->text);
    return 1;
}

/* The sum of all rewards tells whether two runs were the same. */
static int run(const char *id, const struct corral_make_options *options, double *rewards, uint64_t *episodes)
{
    struct corral_error err;
    struct corral_envs *envs;
    if (corral_make(&envs, id, ENVS, options, &err) != CORRAL_OK) {
        return fail("corral_make", &err);
    }
    const struct corral_envs_buffers *b = corral_envs_buffers(envs);
    int code = corral_envs_reset(envs, &err) != CORRAL_OK;
    *rewards = 0;
    for (int t = 0; t < STEPS && code == 0; t++) {
        int32_t *action = b->action;
        for (uint32_t row = 0; row < b->rows; row++) {
            action[row] = (int32_t)((row + (uint32_t)t) % b->choices[0]);
        }
        code = corral_envs_step(envs, &err) != CORRAL_OK;
        for (uint32_t row = 0; row < b->rows && code == 0; row++) {
            *rewards += b->reward[row];
        }
    }
    struct corral_envs_stats stats = {.size = sizeof stats};
    if (code != 0 || corral_envs_stats(envs, &stats, &err) != CORRAL_OK) {
        code = fail("stepping", &err);
    }
    *episodes = stats.episodes;
    corral_envs_close(envs);
    return code;
}

int main(int argc, char **argv)
{
    struct corral_error err;
    struct corral_envs *envs = NULL;
    if (argc < 2) {
        return 2;
    }
    if (corral_make(&envs, "NoSuchGame-v0", 1, NULL, &err) != CORRAL_NOT_FOUND ||
        strstr(err.text, "NoSuchGame-v0") == NULL) {
        fprintf(stderr, "an environment that nobody offers was not refused by name\n");
        return 1;
    }
    struct corral_make_options options = {
        .size = sizeof options, .seed = 7, .library = argc > 2 ? argv[2] : NULL};
    double here, child;
    uint64_t episodes, episodes_child;
    if (run(argv[1], &options, &here, &episodes) != 0) {
        return 1;
    }
    options.isolation = CORRAL_ENVS_CHILD;
    if (run(argv[1], &options, &child, &episodes_child) != 0) {
        return 1;
    }
    if (here != child || episodes != episodes_child || episodes == 0) {
        fprintf(stderr, "in process %g over %llu episodes, in a child %g over %llu\n", here,
                (unsigned long long)episodes, child, (unsigned long long)episodes_child);
        return 1;
    }
    printf("%s: %d environments, %d steps, %llu episodes\n", argv[1], ENVS, STEPS,
           (unsigned long long)episodes);
    return 0;
}
