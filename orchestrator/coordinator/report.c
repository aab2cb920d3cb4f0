#include "base/file.h"
#include "base/log.h"
#include "base/metrics.h"
#include "orchestrator/coordinator/internal.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum corral_status corral_report_open(struct corral_coordinator *c, struct corral_error *err)
{
    c->metrics = fopen("metrics.jsonl", "ae");
    if (!c->metrics) {
        return corral_fail_sys(err, errno, "opening metrics.jsonl");
    }
    c->registry = corral_metrics_create();
    return c->registry ? CORRAL_OK : corral_fail(err, CORRAL_NOMEM, "metrics registry");
}

/* A full disk costs metrics, not the run. */
void corral_report_line(struct corral_coordinator *c, json_t *line)
{
    struct corral_error err = {0};
    enum corral_status status = c->metrics ? corral_json_line(c->metrics, line, &err) : CORRAL_STATE;
    json_decref(line);
    if (status != CORRAL_OK && c->metrics_dropped++ == 0 && c->metrics) {
        corral_log_warn("metrics are being dropped; the run goes on", LOG_STR("reason", err.text));
        clearerr(c->metrics);
    }
}

static json_t *evaluation_json(const struct corral_evaluation *e)
{
    return json_pack("{s:I, s:i, s:o, s:o, s:o, s:o, s:o, s:o}", "version", (json_int_t)e->version,
                     "episodes", (int)e->episodes, "mean", corral_json_real(e->mean), "std",
                     corral_json_real(e->std), "min", corral_json_real(e->min), "max",
                     corral_json_real(e->max), "length_mean", corral_json_real(e->length_mean), "t",
                     corral_json_real((double)e->at_ns / 1e9));
}

static json_t *workers_json(const struct corral_coordinator *c)
{
    static const char *const states[WORKER_STATES] = {"starting", "ready", "running", "backoff", "gone"};
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const struct coordinator_worker *w = &c->worker[i];
        char device[64];
        corral_job_device_name(c->job, w->job.device.node, w->job.device.slot, device, sizeof device);
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:i, s:I, s:I, s:I, s:I, s:I}", "name",
                            w->job.name, "role", corral_role_name(w->job.role), "device", device, "state",
                            states[w->state], "activity", w->activity[0] ? w->activity : "starting",
                            "activity_ms", (json_int_t)w->activity_ms, "pid", (json_int_t)w->pid, "restarts",
                            (int)w->restarts, "env_steps", (json_int_t)w->counter[CORRAL_BOARD_ENV_STEPS],
                            "episodes", (json_int_t)w->counter[CORRAL_BOARD_EPISODES], "fragments",
                            (json_int_t)w->counter[CORRAL_BOARD_FRAGMENTS], "version",
                            (json_int_t)w->counter[CORRAL_BOARD_VERSION], "memory",
                            (json_int_t)w->counter[CORRAL_BOARD_MEMORY_BYTES]));
    }
    return list;
}

static json_t *memory_json(const struct corral_coordinator *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->job->partition_count; i++) {
        const struct corral_partition_memory *p = &c->status.memory[i];
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "partition", c->job->partition[i].name, "used",
                            (json_int_t)p->used_max, "peak", (json_int_t)p->peak_max, "floor",
                            (json_int_t)(p->ceiling ? p->floor : c->job->partition[i].floor), "ceiling",
                            (json_int_t)(p->ceiling ? p->ceiling : c->job->partition[i].ceiling), "denied",
                            (json_int_t)p->denied));
    }
    return list;
}

static json_t *status_json(const struct corral_coordinator *c)
{
    const struct corral_run_status *s = &c->status;
    char run[24];
    snprintf(run, sizeof run, "%08x", (unsigned)(c->launch.run >> 31));
    json_t *root = json_object();
    json_object_set_new(root, "format", json_integer(1));
    json_object_set_new(root, "job", json_string(c->job->name));
    json_object_set_new(root, "run", json_string(run));
    json_object_set_new(root, "incarnation", json_integer(c->launch.incarnation));
    json_object_set_new(root, "phase", json_string(s->phase));
    json_object_set_new(root, "outcome", json_string(corral_outcome_name(s->outcome)));
    json_object_set_new(root, "reason", json_string(s->reason));
    json_object_set_new(root, "elapsed_s", corral_json_real((double)s->elapsed_ns / 1e9));
    json_object_set_new(root, "first_step_s",
                        s->first_step_ns ? corral_json_real((double)s->first_step_ns / 1e9) : json_null());
    json_object_set_new(root, "learned_s",
                        s->learned_ns ? corral_json_real((double)s->learned_ns / 1e9) : json_null());
    json_object_set_new(root, "step", json_integer((json_int_t)s->step));
    json_object_set_new(root, "version", json_integer((json_int_t)s->version));
    json_object_set_new(root, "versions_pushed", json_integer((json_int_t)s->versions_pushed));
    json_object_set_new(root, "env_steps", json_integer((json_int_t)s->env_steps));
    json_object_set_new(root, "transitions", json_integer((json_int_t)s->transitions));
    json_object_set_new(root, "episodes", json_integer((json_int_t)s->episodes));
    json_object_set_new(root, "steps_per_s", corral_json_real(s->steps_per_s));
    json_object_set_new(root, "return_first", s->episodes ? corral_json_real(s->first_return) : json_null());
    json_object_set_new(root, "return_mean", corral_json_real(s->window_return));
    json_object_set_new(root, "return_episodes", json_integer(s->window_count));
    json_object_set_new(root, "staleness_mean", corral_json_real(s->staleness_mean));
    json_object_set_new(root, "staleness_max", json_integer((json_int_t)s->staleness_max));
    json_object_set_new(root, "dropped_stale", json_integer((json_int_t)s->dropped_stale));
    json_object_set_new(root, "duplicates", json_integer((json_int_t)s->duplicates));
    json_object_set_new(root, "resent", json_integer((json_int_t)s->resent));
    json_object_set_new(root, "void_episodes", json_integer((json_int_t)s->void_episodes));
    json_object_set_new(root, "restarts", json_integer(s->restarts));
    json_object_set_new(root, "violations", json_integer((json_int_t)s->violations));
    json_object_set_new(root, "checkpoints", json_integer((json_int_t)s->checkpoints));
    json_object_set_new(root, "progress", corral_json_real(s->progress));
    json_object_set_new(root, "eta_s",
                        s->eta_ns == UINT64_MAX ? json_null() : corral_json_real((double)s->eta_ns / 1e9));
    json_object_set_new(root, "eval_first", s->evaluations ? evaluation_json(&s->first_eval) : json_null());
    json_object_set_new(root, "eval_last", s->evaluations ? evaluation_json(&s->last_eval) : json_null());
    json_object_set_new(root, "eval_best", s->evaluations ? evaluation_json(&s->best_eval) : json_null());
    json_object_set_new(root, "prometheus", json_string(c->http_endpoint));
    json_object_set_new(root, "memory", memory_json(c));
    json_object_set_new(root, "proof", corral_proof_json(c));
    json_object_set_new(root, "devices", corral_devices_json(c));
    json_object_set_new(root, "utilisation", corral_devices_groups_json(c));
    json_object_set_new(root, "weights", corral_weights_json(c));
    json_object_set_new(root, "fences", corral_fences_json(c));
    json_object_set_new(root, "tenants", corral_tenants_json(c));
    json_object_set_new(root, "workers", workers_json(c));
    return root;
}

void corral_report_status(struct corral_coordinator *c)
{
    json_t *root = status_json(c);
    CORRAL_AUTO_FREE char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(10));
    json_decref(root);
    struct corral_error err;
    if (text && corral_file_write_atomic("status.json", text, strlen(text), 0644, false, &err) != CORRAL_OK &&
        c->metrics_dropped++ == 0) {
        corral_log_warn("status.json cannot be written; the run goes on", LOG_ERR(&err));
    }
    if (c->metrics) {
        (void)fflush(c->metrics);
    }
}

void corral_report_close(struct corral_coordinator *c)
{
    if (c->metrics) {
        (void)fclose(c->metrics);
    }
    c->metrics = NULL;
    corral_metrics_destroy(c->registry);
}
