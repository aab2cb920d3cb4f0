#include "base/file.h"
#include "base/log.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE_FILE_BYTES_MAX (UINT64_C(1) << 36)

static enum corral_status write_policy(struct corral_trainer *t, const char *folder, struct corral_error *err)
{
    struct corral_tensor tensors[CORRAL_POLICY_TENSORS_MAX];
    uint32_t count = corral_policy_tensors(&t->config->layout, corral_ppo_weights(t->ppo), tensors,
                                           CORRAL_POLICY_TENSORS_MAX);
    char path[1200], step[24], version[24];
    snprintf(path, sizeof path, "%s/policy.safetensors", folder);
    snprintf(step, sizeof step, "%" PRIu64, t->state.counters.step);
    snprintf(version, sizeof version, "%" PRIu64, t->state.counters.version);
    const struct corral_safetensors_pair metadata[] = {
        {"format", "corral-policy-1"}, {"step", step}, {"version", version}};
    return corral_safetensors_write(path, tensors, count, metadata, CORRAL_COUNT_OF(metadata), true, err);
}

static enum corral_status write_state(struct corral_trainer *t, const char *folder, struct corral_error *err)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/trainer-%u.state", folder, t->rank);
    uint64_t bytes = corral_trainer_state_bytes(t->ppo);
    void *state = NULL;
    CORRAL_TRY(corral_alloc(t->session->memory, bytes, "checkpoint state", &state, err));
    corral_trainer_state_pack(&t->state, t->ppo, state);
    enum corral_status status = corral_file_write_atomic(path, state, bytes, 0644, true, err);
    corral_release(t->session->memory, state, bytes);
    return status;
}

enum corral_status corral_trainer_checkpoint(struct corral_trainer *t, struct corral_error *err)
{
    corral_board_enter(t->session->slot, CORRAL_ACTIVITY_CHECKPOINT);
    char folder[64];
    /* Numbered, because the last checkpoint may be of the same step as one that is not complete yet. Ranks of a group start and count together. */
    snprintf(folder, sizeof folder, "checkpoints/.step-%09" PRIu64 "-%u.tmp", t->state.counters.step,
             t->checkpoints++);
    struct corral_error failure = {0};
    t->state.log_low = t->log ? corral_stream_log_low(t->log) : 0;
    /* The coordinator notes the head durably: the chain must be as durable first. */
    enum corral_status status = corral_step_guard_sync(t->guard, &failure);
    if (status == CORRAL_OK) {
        status = corral_mkdirs(folder, 0755, &failure);
    }
    if (status == CORRAL_OK) {
        status = write_state(t, folder, &failure);
    }
    if (status == CORRAL_OK && t->rank == 0) {
        status = write_policy(t, folder, &failure);
    }
    corral_trainer_log_trim(t);
    struct corral_chain_head head;
    corral_step_guard_head(t->guard, &head);
    corral_mpack_map(t->out, 10);
    corral_mpack_kv_str(t->out, "type", "checkpointed");
    corral_mpack_kv_u64(t->out, "proof_count", head.count);
    corral_mpack_kv_str(t->out, "proof_hash", head.hash);
    corral_mpack_kv_u64(t->out, "step", t->state.counters.step);
    corral_mpack_kv_u64(t->out, "version", t->state.counters.version);
    corral_mpack_kv_u64(t->out, "env_steps", t->state.counters.env_steps);
    corral_mpack_kv_str(t->out, "path", folder);
    corral_mpack_kv_u64(t->out, "rank", t->rank);
    corral_mpack_kv_bool(t->out, "written", status == CORRAL_OK);
    corral_mpack_kv_str(t->out, "reason", status == CORRAL_OK ? "" : failure.text);
    return corral_session_send(t->session, t->out, err);
}

enum corral_status corral_trainer_restore_checkpoint(struct corral_trainer *t, struct corral_error *err)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/trainer-%u.state", t->config->resume, t->rank);
    CORRAL_AUTO_FREE char *file = NULL;
    size_t bytes = 0;
    CORRAL_TRY(corral_file_read(path, STATE_FILE_BYTES_MAX, &file, &bytes, err));
    enum corral_status status = corral_trainer_state_unpack(&t->state, t->ppo, file, bytes, err);
    if (status != CORRAL_OK) {
        return corral_error_prefix(err, status, "%s", path);
    }
    if (!t->log) {
        t->state.cursor_count = 0; /* every rollout worker starts a new epoch */
    }
    return CORRAL_OK;
}
