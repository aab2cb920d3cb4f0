/* What a coordinator pays for heartbeats: WORKERS simulated workers (DEALER sockets of one client process) log in and send one beat of about 300
 * bytes a second each for SECONDS, spread evenly; the server's process counts its own CPU time, ZeroMQ's thread included.
 *
 *   bench_bus [WORKERS] [SECONDS]      default 1000 and 5
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "transport/bus/bus.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 1
#define TOKEN "bench"

struct server {
    struct corral_loop *loop;
    uint32_t workers, joined;
    uint64_t beats, beats_wanted, bytes;
    uint64_t start_ns, end_ns;
    double process_cpu, thread_cpu; /* seconds at the start, then their difference */
};

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_bus: %s failed\n", what);
        exit(1);
    }
}

static double cpu_seconds(clockid_t which)
{
    struct timespec t;
    clock_gettime(which, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void allow_many_descriptors(void)
{
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit) == 0, "read the descriptor limit");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0, "raise the descriptor limit");
}

static void *context_for(uint32_t sockets)
{
    void *context = zmq_ctx_new();
    must(zmq_ctx_set(context, ZMQ_MAX_SOCKETS, (int)sockets + 64) == 0, "allow that many sockets");
    return context;
}

/* ---- server ---- */

static void on_joined(void *ctx, struct corral_bus_peer *peer)
{
    struct server *s = ctx;
    (void)peer;
    s->joined++;
}

static void on_message(void *ctx, struct corral_bus_peer *peer, const char *type,
                       const struct corral_mpack_node *root)
{
    struct server *s = ctx;
    uint64_t step;
    (void)peer;
    if (strcmp(type, "beat") != 0 || corral_mpack_get_u64(root, "step", &step, NULL) != CORRAL_OK) {
        return;
    }
    if (s->beats++ == 0) {
        s->start_ns = corral_now_ns(&corral_clock_monotonic);
        s->process_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
        s->thread_cpu = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    }
    if (s->beats == s->beats_wanted) {
        s->end_ns = corral_now_ns(&corral_clock_monotonic);
        s->process_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - s->process_cpu;
        s->thread_cpu = cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - s->thread_cpu;
        corral_loop_stop(s->loop);
    }
}

static int serve(const char *endpoint, uint32_t workers, uint64_t beats)
{
    struct corral_error err;
    struct server s = {.workers = workers, .beats_wanted = beats};
    struct corral_bus_server *server = NULL;
    void *context = context_for(16);
    must(corral_loop_create(&s.loop, &err) == CORRAL_OK, "loop");
    struct corral_bus_server_config c = {.loop = s.loop,
                                         .zmq_context = context,
                                         .bind = {endpoint},
                                         .token = TOKEN,
                                         .run = RUN,
                                         .joined = on_joined,
                                         .message = on_message,
                                         .ctx = &s};
    must(corral_bus_server_create(&server, &c, &err) == CORRAL_OK, "server");
    must(corral_loop_run(s.loop, &err) == CORRAL_OK, "loop run");
    double wall = (double)(s.end_ns - s.start_ns) / 1e9;
    printf("%u workers, %llu beats in %.2f s (%.0f /s)\n", s.joined, (unsigned long long)s.beats, wall,
           (double)s.beats / wall);
    printf("  server process (with ZeroMQ's thread)  %5.2f %% of one core\n", 100 * s.process_cpu / wall);
    printf("  server thread alone                    %5.2f %% of one core, %.1f us per beat\n",
           100 * s.thread_cpu / wall, 1e6 * s.thread_cpu / (double)s.beats);
    corral_bus_server_destroy(server);
    corral_loop_destroy(s.loop);
    zmq_ctx_term(context);
    return 0;
}

/* ---- clients ---- */

static struct corral_mpack_writer *beat(uint64_t step)
{
    static const char *const counters[] = {"fragments", "episodes", "env_steps", "bytes_sent",
                                           "blocked",   "resent",   "version",   "rows"};
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    must(w != NULL, "writer");
    corral_mpack_map(w, 5 + sizeof counters / sizeof *counters);
    corral_mpack_kv_str(w, "type", "beat");
    corral_mpack_kv_str(w, "activity", "stepping environments in lock step with the policy");
    corral_mpack_kv_u64(w, "step", step);
    corral_mpack_kv_f64(w, "return_mean", 0.125 * (double)step);
    corral_mpack_kv_str(w, "padding", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++) {
        corral_mpack_kv_u64(w, counters[i], UINT64_C(1) << 40);
    }
    return w;
}

static void log_all_in(void *context, const char *endpoint, struct corral_bus_client **clients,
                       uint32_t workers)
{
    struct corral_error err;
    for (uint32_t i = 0; i < workers; i++) {
        struct corral_bus_client_config c = {.zmq_context = context,
                                             .endpoint = endpoint,
                                             .token = TOKEN,
                                             .run = RUN,
                                             .hello = {.kind = "worker", .epoch = 1, .node = "a"}};
        snprintf(c.hello.name, sizeof c.hello.name, "worker-%u", i);
        if (corral_bus_client_create(&clients[i], &c, 20000, &err) != CORRAL_OK) {
            fprintf(stderr, "bench_bus: %s\n", err.text);
            exit(1);
        }
    }
}

static void send_beats(struct corral_bus_client **clients, uint32_t workers, uint64_t seconds)
{
    uint64_t start = corral_now_ns(&corral_clock_monotonic), count = workers * seconds;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t due = start + i * CORRAL_NS_PER_S / workers, now = corral_now_ns(&corral_clock_monotonic);
        if (now < due) {
            nanosleep(&(struct timespec){.tv_nsec = (long)(due - now)}, NULL);
        }
        struct corral_mpack_writer *w = beat(i);
        must(corral_bus_client_send(clients[i % workers], w, NULL) == CORRAL_OK, "send a beat");
        const void *data;
        size_t bytes;
        if (i == 0 && corral_mpack_finish(w, &data, &bytes, NULL) == CORRAL_OK) {
            printf("a beat is %zu bytes\n", bytes);
        }
        corral_mpack_writer_destroy(w);
    }
}

int main(int argc, char **argv)
{
    uint64_t workers = 1000, seconds = 5;
    if (argc > 3 || (argc > 1 && !corral_parse_u64(argv[1], &workers)) ||
        (argc > 2 && !corral_parse_u64(argv[2], &seconds)) || workers == 0 ||
        workers > CORRAL_BUS_PEERS_MAX || seconds == 0) {
        fprintf(stderr, "usage: bench_bus [WORKERS, at most %d] [SECONDS]\n", CORRAL_BUS_PEERS_MAX);
        return 2;
    }
    char folder[64] = "/tmp/corral-bench-XXXXXX", endpoint[96];
    must(mkdtemp(folder) != NULL, "folder");
    snprintf(endpoint, sizeof endpoint, "ipc://%s/control", folder);
    allow_many_descriptors();
    pid_t child = fork(); /* before any ZeroMQ context */
    must(child >= 0, "fork");
    if (child == 0) {
        exit(serve(endpoint, (uint32_t)workers, workers * seconds));
    }
    void *context = context_for((uint32_t)workers);
    struct corral_bus_client **clients = calloc(workers, sizeof(struct corral_bus_client *));
    must(clients != NULL, "memory");
    log_all_in(context, endpoint, clients, (uint32_t)workers);
    send_beats(clients, (uint32_t)workers, seconds);
    fflush(stdout);
    int status;
    must(waitpid(child, &status, 0) == child && status == 0, "the server's process");
    for (uint64_t i = 0; i < workers; i++) {
        corral_bus_client_destroy(clients[i]);
    }
    free(clients);
    zmq_ctx_term(context);
    (void)corral_remove_tree(folder, NULL);
    return 0;
}
