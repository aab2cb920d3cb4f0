/* A canary process under a limit of device memory, for MPS and dmem: one allocation that must be granted and one over the limit that must be denied, by whom the limit was given to. */
#include "base/clock.h"
#include "base/text.h"
#include "quota/fences/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CANARY_WAIT_MS 30000
#define SAID_BYTES 1024
#define LIMIT_BYTES_MAX (2048 * FENCE_MIB) /* with room for a context on every device, which counts */
#define LIMIT_BYTES_MIN (64 * FENCE_MIB)
#define WITHIN_BYTES FENCE_MIB

static const char *program; /* set before there are threads, read after; so is wait_ms */
static uint32_t wait_ms = CANARY_WAIT_MS;

void corral_fence_canary_is(const char *path)
{
    program = path;
}

void corral_fence_canary_wait(uint32_t ms)
{
    wait_ms = ms;
}

bool fence_read_answer(int fd, uint64_t deadline_ns, char *out, size_t out_bytes)
{
    size_t used = 0;
    for (;;) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        struct pollfd poller = {.fd = fd, .events = POLLIN};
        int ready =
            now >= deadline_ns ? 0 : poll(&poller, 1, (int)((deadline_ns - now) / CORRAL_NS_PER_MS) + 1);
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

/* ---- its environment ---- */

static bool same_name(const char *a, const char *b)
{
    size_t name = strcspn(b, "=");
    return strncmp(a, b, name) == 0 && a[name] == '=';
}

/* What stands in LD_PRELOAD without the interposer: the limit's denial must not be the ledger's. */
static void strip_interposer(const char *value, char *out, size_t out_bytes)
{
    size_t used = 0;
    while (*value) {
        size_t bytes = strcspn(value, ": ");
        char one[PATH_MAX];
        fence_text(one, sizeof one, "%.*s", (int)bytes, value);
        if (bytes > 0 && !strstr(one, "libcorral-quota") && used + bytes + 2 < out_bytes) {
            fence_text(out + used, out_bytes - used, "%s%s", used ? ":" : "", one);
            used += strlen(out + used);
        }
        value += bytes + (value[bytes] != '\0');
    }
    out[used] = '\0';
}

/* This process's environment without what `drop` names and with `add`; for the caller to free, its strings are not. `preload` holds one of them. */
static const char **make_environment(const char *const *add, size_t add_count, char *preload,
                                     size_t preload_bytes)
{
    static const char *const drop[] = {
        "LD_PRELOAD=", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="};
    size_t count = 0, used = 0;
    while (environ[count]) {
        count++;
    }
    const char **out = calloc(count + add_count + 2, sizeof *out);
    for (size_t i = 0; out && i < count; i++) {
        bool keep = true;
        for (size_t k = 0; k < CORRAL_COUNT_OF(drop); k++) {
            keep = keep && !same_name(environ[i], drop[k]);
        }
        for (size_t k = 0; k < add_count; k++) {
            keep = keep && !same_name(environ[i], add[k]);
        }
        if (keep) {
            out[used++] = environ[i];
        }
    }
    for (size_t i = 0; out && i < add_count; i++) {
        out[used++] = add[i];
    }
    const char *now = getenv("LD_PRELOAD");
    if (out && now) {
        fence_text(preload, preload_bytes, "LD_PRELOAD=");
        strip_interposer(now, preload + strlen(preload), preload_bytes - strlen(preload));
        out[used] = preload;
    }
    return out;
}

/* ---- one run ---- */

struct start {
    char *const *argv;
    char *const *environment;
    const int *enter;
    uint32_t enter_count;
    int out;
};

static int run_child(void *ctx)
{
    const struct start *s = ctx;
    for (uint32_t i = 0; i < s->enter_count; i++) {
        if (write(s->enter[i], "0", 1) != 1) {
            return 126;
        }
    }
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(s->out, 1) < 0 || dup2(s->out, 2) < 0) {
        return 126;
    }
    execve(program, s->argv, s->environment);
    return 127;
}

/* What it said, and its exit code as fence_reap() gives it. */
static int run_program(const struct fence_canary_spec *spec, const char *const *environment,
                       char said[SAID_BYTES])
{
    char within[24], over[24], name[] = "rlctl", command[] = "canary", option[] = "--limit";
    char *const argv[] = {name, command, option, within, over, NULL};
    int pipe[2], pidfd = -1;
    said[0] = '\0';
    fence_text(within, sizeof within, "%llu", (unsigned long long)spec->within);
    fence_text(over, sizeof over, "%llu", (unsigned long long)spec->over);
    if (pipe2(pipe, O_CLOEXEC) != 0) {
        return INT_MIN;
    }
    struct start s = {.argv = argv,
                      .environment = (char *const *)(uintptr_t)environment,
                      .enter = spec->enter,
                      .enter_count = spec->enter_count,
                      .out = pipe[1]};
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + wait_ms * CORRAL_NS_PER_MS;
    pid_t pid = fence_fork(&pidfd);
    if (pid == 0) {
        _exit(run_child(&s));
    }
    close(pipe[1]);
    bool whole = pid > 0 && fence_read_answer(pipe[0], deadline, said, SAID_BYTES);
    close(pipe[0]);
    return pid < 0 ? INT_MIN : fence_reap(pid, pidfd, whole ? deadline : 0);
}

bool fence_canary_run(const struct fence_canary_spec *spec, struct corral_cuda_limit_result *out,
                      char why[FENCE_WHY_BYTES])
{
    char preload[PATH_MAX], said[SAID_BYTES];
    struct corral_error err = {0};
    if (!program) {
        fence_text(why, FENCE_WHY_BYTES, "not tried: this program has no canary");
        return false;
    }
    CORRAL_AUTO_FREE const char **environment =
        make_environment(spec->env, spec->env_count, preload, sizeof preload);
    if (!environment) {
        fence_text(why, FENCE_WHY_BYTES, "not tried: out of memory");
        return false;
    }
    int code = run_program(spec, environment, said);
    if (code == 0 && corral_cuda_limit_parse(said, out, &err) == CORRAL_OK) {
        return true;
    }
    said[strcspn(said, "\n")] = '\0';
    if (code == INT_MIN) {
        fence_text(why, FENCE_WHY_BYTES, "a canary process hung for %.1f s and was killed", wait_ms / 1e3);
    } else {
        fence_text(why, FENCE_WHY_BYTES, "a canary process failed (end: %d): %.120s", code, said);
    }
    return false;
}

/* ---- control and experiment ---- */

/* Half of what is free, so that what is asked for above the limit is there to be had, and nobody but the limit denies it. */
bool fence_canary_plan(const struct corral_cuda_limit_result *control, uint64_t *limit,
                       char why[FENCE_WHY_BYTES])
{
    char size[48];
    uint64_t bytes = CORRAL_MIN(control->free_bytes / 2, LIMIT_BYTES_MAX) / FENCE_MIB * FENCE_MIB;
    if (bytes < LIMIT_BYTES_MIN) {
        fence_text(why, FENCE_WHY_BYTES, "not tried: only %s of the device are free",
                   corral_format_bytes(control->free_bytes, size, sizeof size));
        return false;
    }
    *limit = bytes;
    return true;
}

void fence_canary_sizes(uint64_t limit, struct fence_canary_spec *spec)
{
    spec->within = WITHIN_BYTES;
    spec->over = limit + FENCE_MIB;
}

bool fence_canary_judge(const struct corral_cuda_limit_result *r, uint64_t limit, char why[FENCE_WHY_BYTES])
{
    char size[48];
    corral_format_bytes(limit, size, sizeof size);
    bool held = r->within == CORRAL_LIMIT_GRANTED && r->over == CORRAL_LIMIT_DENIED;
    fence_text(why, FENCE_WHY_BYTES,
               held ? "a process with a limit of %s was granted less and denied more"
               : r->over == CORRAL_LIMIT_DENIED
                   ? "a process with a limit of %s was denied even 1 MiB"
                   : "its limit is not enforced: a process with a limit of %s got more",
               size);
    return held;
}
