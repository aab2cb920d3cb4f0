/* NVIDIA's MPS as a second fence: a limit of pinned device memory and a thread percentage per process. Two traps are avoided here: a wrong pipe folder makes a process run
 * without MPS and without limits, silently, so the control daemon is really asked; and one bad entry in the limit's variable drops every limit, so the text is parsed back.
 * That it answers says nothing of limits: a process is started under one and tries to cross it. */
#include "base/clock.h"
#include "quota/fences/internal.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL_PROGRAM "nvidia-cuda-mps-control"
#define CONTROL_WAIT_MS 2000
#define QUESTION "get_server_list\n"
#define DEFAULT_PIPE "/tmp/nvidia-mps"
#define SAID_BYTES 512

bool fence_uuid_valid(const char *uuid)
{
    static const unsigned groups[] = {8, 4, 4, 4, 12};
    if (strncmp(uuid, "GPU-", 4) != 0) {
        return false;
    }
    const char *at = uuid + 4;
    for (unsigned g = 0; g < CORRAL_COUNT_OF(groups); g++) {
        for (unsigned i = 0; i < groups[g]; i++, at++) {
            if (!isxdigit((unsigned char)*at)) {
                return false;
            }
        }
        if (*at != (g + 1 < CORRAL_COUNT_OF(groups) ? '-' : '\0')) {
            return false;
        }
        at += *at == '-';
    }
    return true;
}

bool fence_mps_parse_limit(const char *text, char uuid[64], uint64_t *bytes)
{
    const char *equals = strchr(text, '=');
    char name[64], *end;
    if (!equals || (size_t)(equals - text) >= sizeof name || !isdigit((unsigned char)equals[1])) {
        return false;
    }
    fence_text(name, sizeof name, "%.*s", (int)(equals - text), text);
    errno = 0;
    uint64_t mib = strtoull(equals + 1, &end, 10);
    if (!fence_uuid_valid(name) || errno != 0 || mib == 0 || mib > UINT64_MAX / FENCE_MIB ||
        strcmp(end, "M") != 0) {
        return false;
    }
    memcpy(uuid, name, sizeof name);
    *bytes = mib * FENCE_MIB;
    return true;
}

bool fence_mps_limit(const char *uuid, uint64_t bytes, char *out, size_t out_bytes)
{
    char text[128], back_uuid[64];
    uint64_t back;
    uint64_t mib = bytes / FENCE_MIB + (bytes % FENCE_MIB != 0);
    fence_text(text, sizeof text, "%.63s=%" PRIu64 "M", uuid, mib);
    if (!fence_mps_parse_limit(text, back_uuid, &back) || strcmp(back_uuid, uuid) != 0 || back < bytes ||
        back - bytes >= FENCE_MIB || strlen(text) >= out_bytes) {
        return false;
    }
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static void close_pair(int fd[2])
{
    close(fd[0]);
    close(fd[1]);
}

/* The question is in the pipe before the program starts: it is far smaller than a pipe, and nobody has to be waited for. */
static bool start_control(const char *const *environment, pid_t *pid, int *answer, char why[FENCE_WHY_BYTES])
{
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0) {
        fence_text(why, FENCE_WHY_BYTES, "no pipe: %s", strerror(errno));
        return false;
    }
    if (pipe2(out, O_CLOEXEC) != 0) {
        fence_text(why, FENCE_WHY_BYTES, "no pipe: %s", strerror(errno));
        close_pair(in);
        return false;
    }
    (void)!write(in[1], QUESTION, strlen(QUESTION));
    char program[] = CONTROL_PROGRAM;
    char *const arguments[] = {program, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, out[1], 2);
    int error = posix_spawnp(pid, program, &actions, NULL, arguments, (char *const *)(uintptr_t)environment);
    posix_spawn_file_actions_destroy(&actions);
    close_pair(in);
    close(out[1]);
    if (error != 0) {
        close(out[0]);
        fence_text(why, FENCE_WHY_BYTES, CONTROL_PROGRAM " cannot be started: %s", strerror(error));
        return false;
    }
    *answer = out[0];
    return true;
}

/* The environment with the pipe folder in it, so that the program asks the daemon that the workers would. */
static const char **environment_with(const char *variable)
{
    size_t count = 0, used = 0;
    size_t name = strcspn(variable, "=") + 1;
    while (environ[count]) {
        count++;
    }
    const char **out = calloc(count + 2, sizeof *out);
    for (size_t i = 0; out && i < count; i++) {
        if (strncmp(environ[i], variable, name) != 0) {
            out[used++] = environ[i];
        }
    }
    if (out) {
        out[used] = variable;
    }
    return out;
}

static void ask(struct fence_mps *m)
{
    char variable[MPS_PIPE_BYTES + 64], said[SAID_BYTES];
    pid_t pid;
    int answer, status = 0;
    fence_text(variable, sizeof variable, "CUDA_MPS_PIPE_DIRECTORY=%s", m->pipe);
    CORRAL_AUTO_FREE const char **environment = environment_with(variable);
    if (!environment || !start_control(environment, &pid, &answer, m->why)) {
        return;
    }
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + CONTROL_WAIT_MS * CORRAL_NS_PER_MS;
    bool whole = fence_read_answer(answer, deadline, said, sizeof said);
    close(answer);
    if (!whole) {
        kill(pid, SIGKILL);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    said[strcspn(said, "\n")] = '\0';
    if (!whole) {
        fence_text(m->why, sizeof m->why, "the MPS control daemon at %.80s does not answer", m->pipe);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || strcasestr(said, "cannot find")) {
        fence_text(m->why, sizeof m->why,
                   "no MPS control daemon at %.60s%s%.80s; `" CONTROL_PROGRAM " -d` starts one", m->pipe,
                   said[0] ? ": " : "", said);
    } else {
        m->answers = true;
        fence_text(m->why, sizeof m->why, "control daemon at %.100s answers", m->pipe);
    }
}

void fence_mps_detect(struct fence_mps *out)
{
    const char *set = getenv("CUDA_MPS_PIPE_DIRECTORY");
    struct stat st;
    memset(out, 0, sizeof *out);
    if (set && strlen(set) >= sizeof out->pipe) {
        fence_text(out->why, sizeof out->why, "CUDA_MPS_PIPE_DIRECTORY is too long");
        return;
    }
    fence_text(out->pipe, sizeof out->pipe, "%s", set && set[0] ? set : DEFAULT_PIPE);
    if (stat(out->pipe, &st) != 0 || !S_ISDIR(st.st_mode)) {
        fence_text(out->why, sizeof out->why,
                   "no MPS: there is no folder %.100s; `" CONTROL_PROGRAM " -d` starts it", out->pipe);
        return;
    }
    ask(out);
}

/* ---- trying it ---- */

#define TRIED_PERCENT 50

/* The control: what a process under MPS and no limit finds. It also says which GPU it was. */
static bool run_control(const struct fence_mps *m, const char *gpu_uuid, char *pipe, char *device,
                        size_t text_bytes, struct corral_cuda_limit_result *out, char why[FENCE_WHY_BYTES])
{
    fence_text(pipe, text_bytes, "CUDA_MPS_PIPE_DIRECTORY=%s", m->pipe);
    fence_text(device, text_bytes, "CUDA_VISIBLE_DEVICES=%s", gpu_uuid);
    const char *const env[] = {pipe, "CUDA_DEVICE_ORDER=PCI_BUS_ID", device};
    const struct fence_canary_spec spec = {.env = env, .env_count = gpu_uuid[0] ? 3 : 2};
    return fence_canary_run(&spec, out, why);
}

void fence_mps_try(const char *gpu_uuid, struct fence_mps *m)
{
    char pipe[MPS_PIPE_BYTES + 64], device[MPS_PIPE_BYTES + 64], limit_env[160], limit_text[128], share[64],
        why[FENCE_WHY_BYTES];
    struct corral_cuda_limit_result control, found;
    uint64_t limit;
    fence_mps_detect(m);
    if (!m->answers) {
        return;
    }
    bool ran = run_control(m, gpu_uuid, pipe, device, sizeof pipe, &control, why) &&
               fence_canary_plan(&control, &limit, why);
    if (ran && !fence_mps_limit(control.uuid, limit, limit_text, sizeof limit_text)) {
        ran = false;
        fence_text(why, sizeof why, "not tried: `%.50s` is no GPU UUID", control.uuid);
    }
    if (ran) {
        fence_text(limit_env, sizeof limit_env, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=%s", limit_text);
        fence_text(share, sizeof share, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=%d", TRIED_PERCENT);
        fence_text(device, sizeof device, "CUDA_VISIBLE_DEVICES=%s", control.uuid);
        const char *const env[] = {pipe, "CUDA_DEVICE_ORDER=PCI_BUS_ID", device, limit_env, share};
        struct fence_canary_spec spec = {.env = env, .env_count = CORRAL_COUNT_OF(env)};
        fence_canary_sizes(limit, &spec);
        ran = fence_canary_run(&spec, &found, why);
    }
    if (!ran) {
        fence_text(m->why, sizeof m->why, "answers, but %.180s", why);
        return;
    }
    m->tried = true;
    m->live = fence_canary_judge(&found, limit, why);
    m->shares = found.processors < control.processors;
    if (m->live) {
        fence_text(m->why, sizeof m->why, "%.90s; with %d %% it has %u of %u processors%s", why,
                   TRIED_PERCENT, found.processors, control.processors,
                   m->shares ? "" : ": shares are NOT enforced");
    } else {
        fence_text(m->why, sizeof m->why, "answers, but %.180s", why);
    }
}
