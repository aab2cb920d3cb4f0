/* Costs of driver calls: interposer_bench ROUNDS alloc|launch|copy|start [PROCESSES]. Run by interposer.sh with and without the interposer, in turns, on the same driver.
 * Prints nanoseconds per call (for alloc: of an allocation and its free): median and 99th percentile. With several processes they start together, none stops before all have done
 * their rounds, and the figures are of all processes' rounds. */
#include "base/error.h"
#include "quota/cuda/driver_types.h"
#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS_MAX 10000000
#define PROCESSES_MAX 64
#define WARM_UP 1000

/* Between the processes. */
struct board {
    _Atomic uint32_t ready, done;
    _Atomic bool failed;
    uint32_t ns[];
};

struct calls {
    cuMemAlloc_v2_fn alloc;
    cuMemFree_v2_fn free;
    cuLaunchKernel_fn launch;
    cuMemcpyHtoD_v2_fn copy;
    CUfunction kernel;
    CUdeviceptr memory;
    char host[4096];
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static int complain(const char *what, int status)
{
    fprintf(stderr, "interposer_bench: %s\n", what);
    return status;
}

static CUresult run_alloc(struct calls *c)
{
    CUdeviceptr p;
    CUresult r = c->alloc(&p, 65536);
    return r == CUDA_SUCCESS ? c->free(p) : r;
}

static CUresult run_launch(struct calls *c)
{
    return c->launch(c->kernel, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
}

static CUresult run_copy(struct calls *c)
{
    return c->copy(c->memory, c->host, sizeof c->host);
}

/* As a program finds it. */
static void *function(void *library, const char *name)
{
    void *f = dlsym(library, name);
    if (f == NULL) {
        fprintf(stderr, "interposer_bench: the driver has no %s\n", name);
        exit(1); // NOLINT: a program
    }
    return f;
}
#define FUNCTION(name) ((name##_fn)function(library, #name))

/* A context, and what the calls need. 0, or the exit status. */
static int set_up(struct calls *c, const char *what)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    CUcontext context;
    CUmodule module;
    if (library == NULL) {
        return complain("no CUDA driver: libcuda.so.1 cannot be loaded", 77);
    }
    c->alloc = FUNCTION(cuMemAlloc_v2);
    c->free = FUNCTION(cuMemFree_v2);
    if (FUNCTION(cuInit)(0) != CUDA_SUCCESS ||
        FUNCTION(cuDevicePrimaryCtxRetain)(&context, 0) != CUDA_SUCCESS ||
        FUNCTION(cuCtxPushCurrent_v2)(context) != CUDA_SUCCESS ||
        c->alloc(&c->memory, sizeof c->host) != CUDA_SUCCESS) {
        return complain("the device cannot be used", 1);
    }
    c->copy = FUNCTION(cuMemcpyHtoD_v2);
    c->launch = FUNCTION(cuLaunchKernel);
    /* The bare driver and the fake one run any image; a real one needs code, which this bench does not carry. */
    if (strcmp(what, "launch") == 0 &&
        (FUNCTION(cuModuleLoadData)(&module, "nothing") != CUDA_SUCCESS ||
         FUNCTION(cuModuleGetFunction)(&c->kernel, module, "nothing") != CUDA_SUCCESS)) {
        return complain("launches cannot be measured on this driver", 77);
    }
    return 0;
}

typedef CUresult (*run_fn)(struct calls *c);

static int rounds(struct calls *c, run_fn run, struct board *board, uint32_t me, uint32_t processes, size_t n)
{
    bool ok = true;
    for (int i = 0; i < WARM_UP && ok; i++) {
        ok = run(c) == CUDA_SUCCESS;
    }
    atomic_fetch_add(&board->ready, 1);
    while (atomic_load(&board->ready) < processes && !atomic_load(&board->failed)) {
        sched_yield();
    }
    for (size_t i = 0; i < n && ok; i++) {
        uint64_t start = now_ns();
        ok = run(c) == CUDA_SUCCESS;
        board->ns[me * n + i] = (uint32_t)(now_ns() - start);
    }
    atomic_fetch_add(&board->done, 1);
    while (ok && atomic_load_explicit(&board->done, memory_order_relaxed) < processes &&
           !atomic_load_explicit(&board->failed, memory_order_relaxed)) {
        ok = run(c) == CUDA_SUCCESS; /* the others are still being measured, against this one */
    }
    return ok ? 0 : complain("a call failed", 1);
}

static int be_process(const char *what, struct board *board, uint32_t me, uint32_t processes, size_t n)
{
    static struct calls c;
    int rc = set_up(&c, what);
    if (rc == 0 && strcmp(what, "start") != 0) {
        run_fn run = strcmp(what, "alloc") == 0    ? run_alloc
                     : strcmp(what, "launch") == 0 ? run_launch
                                                   : run_copy;
        rc = rounds(&c, run, board, me, processes, n);
    }
    if (rc != 0) {
        atomic_store(&board->failed, true);
    }
    return rc;
}

/* Every process starts the driver by itself. */
static int measure(const char *what, struct board *board, uint32_t processes, size_t n)
{
    int rc = 0;
    pid_t pid[PROCESSES_MAX];
    for (uint32_t p = 0; p < processes; p++) {
        pid[p] = fork();
        if (pid[p] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(be_process(what, board, p, processes, n));
        }
    }
    for (uint32_t p = 0; p < processes; p++) {
        int status = 1;
        waitpid(pid[p], &status, 0);
        rc = rc == 0 && status != 0 ? (WIFEXITED(status) ? WEXITSTATUS(status) : 1) : rc;
    }
    if (rc == 0) {
        qsort(board->ns, n * processes, sizeof *board->ns, compare);
        printf("%u %u\n", board->ns[n * processes / 2], board->ns[n * processes / 100 * 99]);
    }
    return rc;
}

int main(int argc, char **argv)
{
    size_t n = argc > 2 ? strtoull(argv[1], NULL, 10) : 0;
    unsigned long processes = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    static const char *const known[] = {"alloc", "launch", "copy", "start"};
    bool is_known = false;
    for (size_t i = 0; i < CORRAL_COUNT_OF(known); i++) {
        is_known = is_known || (argc > 2 && strcmp(argv[2], known[i]) == 0);
    }
    if (!is_known || n == 0 || n > ROUNDS_MAX || processes == 0 || processes > PROCESSES_MAX) {
        fprintf(stderr, "usage: interposer_bench ROUNDS alloc|launch|copy|start [PROCESSES]\n");
        return 2;
    }
    struct board *board = mmap(NULL, sizeof *board + n * processes * sizeof *board->ns,
                               PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED) {
        return complain("no memory", 1);
    }
    if (strcmp(argv[2], "start") == 0) {
        return be_process(argv[2], board, 0, 1, n);
    }
    return measure(argv[2], board, (uint32_t)processes, n);
}
