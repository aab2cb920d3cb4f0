/* GET /metrics in Prometheus text format, and /status (status.json), on the coordinator's own loop. Off unless observe.prometheus names an address. */
#include "base/file.h"
#include "base/log.h"
#include "base/metrics.h"
#include "orchestrator/coordinator/internal.h"
#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUEST_BODY_BYTES_MAX 4096
#define REQUEST_TIMEOUT_S 10
#define STATUS_BYTES_MAX (16u << 20)

static void gauge(struct corral_metrics *m, const char *name, const char *help, double value)
{
    corral_metrics_set(m, corral_metrics_family(m, name, CORRAL_METRIC_GAUGE, help), NULL, value);
}

static void counter(struct corral_metrics *m, const char *name, const char *help, uint64_t value)
{
    corral_metrics_set(m, corral_metrics_family(m, name, CORRAL_METRIC_COUNTER, help), NULL, (double)value);
}

static void collect_run(const struct corral_coordinator *c)
{
    struct corral_metrics *m = c->registry;
    const struct corral_run_status *s = &c->status;
    counter(m, "corral_gradient_steps_total", "Gradient steps taken", s->step);
    counter(m, "corral_env_steps_total", "Environment steps trained on", s->env_steps);
    counter(m, "corral_episodes_total", "Training episodes finished", s->episodes);
    counter(m, "corral_weight_versions_total", "Weight versions published", s->versions_pushed);
    counter(m, "corral_restarts_total", "Workers started again", s->restarts);
    counter(m, "corral_fragments_dropped_stale_total", "Fragments dropped because they were too stale",
            s->dropped_stale);
    counter(m, "corral_fragments_duplicate_total", "Fragments received twice and trained once",
            s->duplicates);
    counter(m, "corral_episodes_void_total", "Episodes voided by infrastructure failures", s->void_episodes);
    counter(m, "corral_ledger_violations_total", "Times a memory ledger was found inconsistent",
            s->violations);
    counter(m, "corral_checkpoints_total", "Checkpoints completed", s->checkpoints);
    gauge(m, "corral_weight_version", "Newest weight version", (double)s->version);
    gauge(m, "corral_env_steps_per_second", "Environment steps trained on per second", s->steps_per_s);
    gauge(m, "corral_train_return", "Mean return of the last 100 training episodes", s->window_return);
    gauge(m, "corral_eval_return", "Mean return of the last evaluation",
          s->evaluations ? s->last_eval.mean : 0);
    gauge(m, "corral_staleness_versions_mean", "Mean staleness of trained fragments, in versions",
          s->staleness_mean);
    gauge(m, "corral_staleness_versions_max", "Largest staleness of a trained fragment, in versions",
          (double)s->staleness_max);
    gauge(m, "corral_train_step_seconds", "Time of the last gradient step", s->train_ms / 1e3);
    gauge(m, "corral_wait_batch_seconds", "Time the trainer waited for the last batch", s->wait_ms / 1e3);
    gauge(m, "corral_publish_seconds", "Time the last weight push took", s->publish_ms / 1e3);
}

/* By what their proof records say; `refused` were not taken. */
static void collect_verdicts(const struct corral_coordinator *c)
{
    struct corral_metrics *m = c->registry;
    const struct corral_run_proof *p = &c->status.proof;
    const uint64_t values[] = {p->proven, p->unproven, p->refused};
    static const char *const verdicts[] = {"proven", "unproven", "refused"};
    int steps = corral_metrics_family(m, "corral_steps_total", CORRAL_METRIC_COUNTER,
                                      "Gradient steps of all trainers by the verdict of their proof");
    for (size_t i = 0; i < CORRAL_COUNT_OF(verdicts); i++) {
        const char *labels[] = {"verdict", verdicts[i], NULL};
        corral_metrics_set(m, steps, labels, (double)values[i]);
    }
}

static void collect_workers(const struct corral_coordinator *c)
{
    struct corral_metrics *m = c->registry;
    int up = corral_metrics_family(m, "corral_worker_up", CORRAL_METRIC_GAUGE, "1 while the worker runs");
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const char *labels[] = {"worker", c->worker[i].job.name, NULL};
        corral_metrics_set(m, up, labels,
                           c->worker[i].state == WORKER_RUNNING || c->worker[i].state == WORKER_READY);
    }
}

static void reply(struct evhttp_request *request, int code, const char *type, const char *text, size_t bytes)
{
    struct evbuffer *body = evbuffer_new();
    if (!body) {
        evhttp_send_error(request, 500, "out of memory");
        return;
    }
    evbuffer_add(body, text, bytes);
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", type);
    evhttp_send_reply(request, code, code == 200 ? "OK" : "Error", body);
    evbuffer_free(body);
}

static void on_metrics(struct evhttp_request *request, void *ctx)
{
    struct corral_coordinator *c = ctx;
    collect_run(c);
    collect_verdicts(c);
    collect_workers(c);
    corral_devices_collect(c);
    corral_weights_collect(c);
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    enum corral_status status = memory ? corral_metrics_print(c->registry, memory, NULL) : CORRAL_NOMEM;
    if (memory) {
        (void)fclose(memory);
    }
    CORRAL_AUTO_FREE char *owned = text;
    if (status != CORRAL_OK || !owned) {
        evhttp_send_error(request, 500, "metrics could not be printed");
        return;
    }
    reply(request, 200, "text/plain; version=0.0.4; charset=utf-8", owned, bytes);
}

static void on_status(struct evhttp_request *request, void *ctx)
{
    (void)ctx;
    CORRAL_AUTO_FREE char *text = NULL;
    size_t bytes;
    struct corral_error err;
    if (corral_file_read("status.json", STATUS_BYTES_MAX, &text, &bytes, &err) == CORRAL_OK) {
        reply(request, 200, "application/json", text, bytes);
    } else {
        evhttp_send_error(request, HTTP_SERVUNAVAIL, "no status yet");
    }
}

enum corral_status corral_http_open(struct corral_coordinator *c, struct corral_error *err)
{
    const char *address = c->job->observe.prometheus;
    const char *colon = strrchr(address, ':');
    if (!address[0]) {
        return CORRAL_OK;
    }
    char host[200];
    snprintf(host, sizeof host, "%.*s", (int)(colon ? colon - address : 0), address);
    uint16_t port = (uint16_t)(colon ? strtoul(colon + 1, NULL, 10) : 0);
    c->http = evhttp_new(corral_loop_event_base(c->loop));
    if (!c->http) {
        return corral_fail(err, CORRAL_NOMEM, "observe.prometheus %s", address);
    }
    evhttp_set_max_body_size(c->http, REQUEST_BODY_BYTES_MAX);
    evhttp_set_timeout(c->http, REQUEST_TIMEOUT_S);
    evhttp_set_allowed_methods(c->http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD);
    evhttp_set_cb(c->http, "/metrics", on_metrics, c);
    evhttp_set_cb(c->http, "/status", on_status, c);
    struct evhttp_bound_socket *bound =
        evhttp_bind_socket_with_handle(c->http, host[0] ? host : "127.0.0.1", port);
    if (!bound) {
        return corral_fail_sys(
            err, errno, "observe.prometheus: cannot listen on %s; choose another port, or 0 for any free one",
            address);
    }
    struct sockaddr_in where = {0};
    socklen_t bytes = sizeof where;
    if (getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&where, &bytes) == 0) {
        port = ntohs(where.sin_port);
    }
    snprintf(c->http_endpoint, sizeof c->http_endpoint, "http://%.100s:%u/metrics",
             host[0] ? host : "127.0.0.1", port);
    return CORRAL_OK;
}

void corral_http_close(struct corral_coordinator *c)
{
    if (c->http) {
        evhttp_free(c->http);
    }
    c->http = NULL;
}
