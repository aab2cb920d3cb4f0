/* What others ask of a loaded job. */
#include "orchestrator/job/job.h"
#include <string.h>

const char *corral_role_name(enum corral_role role)
{
    static const char *const names[] = {"train", "rollout", "eval", "tenant"};
    return names[role];
}

const char *corral_device_kind_name(enum corral_device_kind kind)
{
    return kind == CORRAL_DEVICE_GPU ? "gpu" : "host";
}

uint32_t corral_job_workers(const struct corral_job *job, struct corral_job_worker *out, uint32_t max)
{
    uint32_t count = 0;
    uint32_t role_next[CORRAL_ROLE_TENANT + 1] = {0};
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *p = &job->partition[i];
        uint32_t workers = p->role == CORRAL_ROLE_TENANT ? 0 : p->device_count * p->workers_per_device;
        for (uint32_t k = 0; k < workers; k++, count++) {
            uint32_t role_index = role_next[p->role]++;
            if (out == NULL || count >= max) {
                continue;
            }
            struct corral_job_worker *w = &out[count];
            *w = (struct corral_job_worker){.role = p->role,
                                            .partition = i,
                                            .index = k,
                                            .role_index = role_index,
                                            .device = p->device[k / p->workers_per_device]};
            snprintf(w->name, sizeof w->name, "%s-%u", p->name, k);
        }
    }
    return count;
}

uint32_t corral_job_role_count(const struct corral_job *job, enum corral_role role)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *p = &job->partition[i];
        count += p->role == role && role != CORRAL_ROLE_TENANT ? p->device_count * p->workers_per_device : 0;
    }
    return count;
}

const char *corral_job_device_name(const struct corral_job *job, uint32_t node, uint32_t slot, char *out,
                                   size_t out_bytes)
{
    snprintf(out, out_bytes, "%s:%u", job->node[node].name, job->node[node].device_index[slot]);
    return out;
}

const char *corral_job_device_set(const struct corral_job *job, const struct corral_job_partition *p,
                                  char *out, size_t out_bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < p->device_count;) {
        const struct corral_job_device *first = &p->device[i];
        uint32_t k = i;
        while (k + 1 < p->device_count && p->device[k + 1].node == first->node &&
               p->device[k + 1].index == p->device[k].index + 1) {
            k++;
        }
        char item[64];
        bool again = i > 0 && p->device[i - 1].node == first->node;
        int n = snprintf(item, sizeof item, "%s%s%s%u",
                         i == 0  ? ""
                         : again ? ","
                                 : " ",
                         again ? "" : job->node[first->node].name, again ? "" : ":", first->index);
        if (k > i) {
            n += snprintf(item + n, sizeof item - (size_t)n, "-%u", p->device[k].index);
        }
        if (used + (size_t)n + sizeof "…" > out_bytes) {
            if (used + sizeof "…" <= out_bytes) {
                memcpy(out + used, "…", sizeof "…");
            }
            return out;
        }
        memcpy(out + used, item, (size_t)n + 1);
        used += (size_t)n;
        i = k + 1;
    }
    return out;
}

uint64_t corral_job_headroom(const struct corral_job *job, uint32_t node)
{
    if (job->memory.headroom != UINT64_MAX) {
        return job->memory.headroom;
    }
    return job->node[node].kind == CORRAL_DEVICE_GPU ? UINT64_C(2) << 30 : UINT64_C(16) << 20;
}

static uint32_t unpack(const char *text, uint32_t count, const char **out)
{
    for (uint32_t i = 0; i < count; i++) {
        out[i] = text;
        text += strlen(text) + 1;
    }
    out[count] = NULL;
    return count;
}

uint32_t corral_job_command(const struct corral_job_partition *p, const char *argv[CORRAL_JOB_ARGV_MAX + 1])
{
    return unpack(p->command, p->command_count, argv);
}

uint32_t corral_job_environment(const struct corral_job_partition *p,
                                const char *env[CORRAL_JOB_ARGV_MAX + 1])
{
    return unpack(p->environment, p->environment_count, env);
}

enum corral_status corral_job_set_tenant_folder(struct corral_job *job, const char *folder,
                                                struct corral_error *err)
{
    for (uint32_t i = 0; i < job->partition_count; i++) {
        struct corral_job_partition *p = &job->partition[i];
        if (p->role != CORRAL_ROLE_TENANT || p->folder[0] != '\0') {
            continue;
        }
        if (strlen(folder) >= sizeof p->folder) {
            return corral_fail(err, CORRAL_INVALID, "tenant.%s.folder: the path %.60s… is too long", p->name,
                               folder);
        }
        strcpy(p->folder, folder);
    }
    return CORRAL_OK;
}

uint64_t corral_job_batch(const struct corral_job *job, uint32_t agents)
{
    if (job->algorithm.batch != 0) {
        return job->algorithm.batch;
    }
    uint64_t rows = (uint64_t)corral_job_role_count(job, CORRAL_ROLE_ROLLOUT) * job->env.instances * agents;
    return rows * job->rollout.fragment;
}

double corral_job_progress(const struct corral_job *job, uint64_t env_steps)
{
    uint64_t end = job->algorithm.schedule_steps;
    if (end == 0) {
        return 0;
    }
    return env_steps >= end ? 1 : (double)env_steps / (double)end;
}

void corral_job_ppo_config(const struct corral_job *job, struct corral_ppo_config *out)
{
    *out = (struct corral_ppo_config){
        .advantage =
            job->algorithm.kind == CORRAL_ALGORITHM_VTRACE ? CORRAL_ADVANTAGE_VTRACE : CORRAL_ADVANTAGE_GAE,
        .gamma = job->algorithm.gamma,
        .lambda = job->algorithm.lambda,
        .clip = job->algorithm.clip,
        .value_clip = job->algorithm.value_clip,
        .vtrace_rho = job->algorithm.vtrace_rho,
        .vtrace_c = job->algorithm.vtrace_c,
        .epochs = job->algorithm.epochs,
        .minibatch = job->algorithm.minibatch,
        .lr = job->algorithm.lr,
        .lr_final = job->algorithm.lr_final,
        .clip_final = job->algorithm.clip_final,
        .adam_beta1 = job->algorithm.adam_beta1,
        .adam_beta2 = job->algorithm.adam_beta2,
        .adam_eps = job->algorithm.adam_eps,
        .entropy_coef = job->algorithm.entropy,
        .value_coef = job->algorithm.value_coef,
        .max_grad_norm = job->algorithm.max_grad_norm,
        .target_kl = job->algorithm.target_kl,
        .normalise_advantage = job->algorithm.normalise_advantage,
        .normalise_reward = job->algorithm.normalise_reward,
        .reward_clip = job->algorithm.reward_clip,
        .seed = job->seed,
    };
}

void corral_job_policy_spec(const struct corral_job *job, uint32_t obs_dim,
                            const struct corral_action_spec *action, struct corral_policy_spec *out)
{
    *out = (struct corral_policy_spec){
        .obs_dim = obs_dim,
        .action = *action,
        .layers = job->model.hidden_count,
        .activation = job->model.activation,
        .log_std_init = (float)job->model.log_std_init,
        .normalise_obs = job->algorithm.normalise_obs,
    };
    memcpy(out->hidden, job->model.hidden, sizeof out->hidden);
}
