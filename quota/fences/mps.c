/* NVIDIA's MPS as a second fence: a limit of pinned device memory and a thread percentage per process. Two traps are avoided here: a wrong pipe folder makes a process run
 * without MPS and without limits, silently, so the control daemon is really asked; and one bad entry in the limit's variable drops every limit, so the text is parsed back. */
#include "base/clock.h"
#include "quota/fences/internal.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
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

/* Everything it says until it closes its output or the time is over. False: time is over. */
static bool read_answer(int fd, uint64_t deadline, char *out, size_t out_bytes)
{
    size_t used = 0;
    for (;;) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        struct pollfd poller = {.fd = fd, .events = POLLIN};
        int ready = now >= deadline ? 0 : poll(&poller, 1, (int)((deadline - now) / CORRAL_NS_PER_MS) + 1);
        if (ready < 0 && errno == EINTR) {
            continue;
        }
        char rest[256];
        bool room = used + 1 < out_bytes;
        ssize_t got =
            ready <= 0 ? -1 : read(fd, room ? out + used : rest, room ? out_bytes - 1 - used : sizeof rest);
        if (got <= 0) {
            out[used] = '\0';
            return got == 0;
        }
        used += room ? (size_t)got : 0;
    }
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
    bool whole = read_answer(answer, deadline, said, sizeof said);
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
        m->live = true;
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
