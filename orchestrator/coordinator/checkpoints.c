/* A checkpoint becomes real in this order: every trainer rank has written its state into checkpoints/.step-N-K.tmp, the rollout workers have added their environments
 * (those that can), checkpoint.json is there, the folder is renamed to step-N, and the journal names it. A crash anywhere leaves the one before. */
#include "base/file.h"
#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECKPOINT_DEADLINE_NS (10 * CORRAL_NS_PER_S)

static bool bit_get(const uint64_t *bits, uint32_t i)
{
    return (bits[i / 64] >> (i % 64) & 1) != 0;
}

static void bit_set(uint64_t *bits, uint32_t i, bool value)
{
    uint64_t bit = UINT64_C(1) << (i % 64);
    bits[i / 64] = value ? bits[i / 64] | bit : bits[i / 64] & ~bit;
}

static uint32_t bit_count(const uint64_t *bits)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < CORRAL_WORKER_WORDS; i++) {
        n += (uint32_t)__builtin_popcountll(bits[i]);
    }
    return n;
}

/* The folder of checkpoint `number` of a group, at `step`. What a message names must be just that: it is going to be renamed or removed. */
static enum corral_status unfinished_path(const char *said, uint64_t step, uint32_t *number, char out[64],
                                          struct corral_error *err)
{
    char head[48];
    int length = snprintf(head, sizeof head, "checkpoints/.step-%09" PRIu64 "-", step);
    const char *digits = strncmp(said, head, (size_t)length) == 0 ? said + length : "";
    char *end = NULL;
    unsigned long value = digits[0] >= '0' && digits[0] <= '9' ? strtoul(digits, &end, 10) : 0;
    *number = (uint32_t)value;
    snprintf(out, 64, "%s%" PRIu32 ".tmp", head, *number);
    return end && value <= UINT32_MAX && strcmp(out, said) == 0
               ? CORRAL_OK
               : corral_fail(err, CORRAL_PROTOCOL, "a checkpoint of step %" PRIu64 " in %s", step, said);
}

static void abandon(struct corral_coordinator *c, const char *why)
{
    struct pending_checkpoint *p = &c->checkpoint;
    corral_log_warn("checkpoint abandoned; the one before stays", LOG_U64("step", p->step),
                    LOG_STR("reason", why));
    corral_coordinator_event(c, "checkpoint-failed", p->path, "%s", why);
    (void)corral_remove_tree(p->path, NULL);
    p->active = false;
}

/* What a crash left half-written: nobody will complete it, and its files must not get into a later checkpoint of the same step. */
void corral_checkpoint_clean(void)
{
    DIR *d = opendir("checkpoints");
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        char path[300];
        if (strncmp(e->d_name, ".step-", 6) == 0) {
            snprintf(path, sizeof path, "checkpoints/%s", e->d_name);
            (void)corral_remove_tree(path, NULL);
        }
    }
    if (d) {
        closedir(d);
    }
}

static enum corral_status sync_folder(const char *path, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        return corral_fail_sys(err, errno, "syncing %s", path);
    }
    return CORRAL_OK;
}

static enum corral_status need_file(const char *folder, const char *name, struct corral_error *err)
{
    char path[160];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (stat(path, &st) != 0) {
        return corral_fail_sys(err, errno, "the trainers have written their checkpoint, but here is no %s",
                               path);
    }
    return S_ISREG(st.st_mode) && st.st_size > 0 ? CORRAL_OK
                                                 : corral_fail(err, CORRAL_IO, "%s is empty", path);
}

/* What was said to be written must be here: a trainer whose node has another file system wrote it elsewhere. */
static enum corral_status check_files(const struct corral_coordinator *c, struct corral_error *err)
{
    for (uint32_t rank = 0; rank < c->trainers; rank++) {
        char name[40];
        snprintf(name, sizeof name, "trainer-%u.state", rank);
        CORRAL_TRY(need_file(c->checkpoint.path, name, err));
    }
    return need_file(c->checkpoint.path, "policy.safetensors", err);
}

static enum corral_status write_description(const struct corral_coordinator *c, struct corral_error *err)
{
    const struct pending_checkpoint *p = &c->checkpoint;
    json_t *root =
        json_pack("{s:i, s:s, s:I, s:I, s:I, s:i, s:i}", "format", 1, "job", c->job->name, "step",
                  (json_int_t)p->step, "version", (json_int_t)p->version, "env_steps",
                  (json_int_t)p->env_steps, "trainers", (int)c->trainers, "environments", (int)p->snapshots);
    CORRAL_AUTO_FREE char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) {
        return corral_fail(err, CORRAL_NOMEM, "describing the checkpoint");
    }
    char path[320];
    snprintf(path, sizeof path, "%s/checkpoint.json", p->path);
    return corral_file_write_atomic(path, text, strlen(text), 0644, true, err);
}

struct prune {
    struct corral_coordinator *c;
    uint32_t count, seen, keep;
};

static enum corral_status count_one(void *ctx, uint64_t step, const char *path, struct corral_error *err)
{
    (void)step, (void)path, (void)err;
    ((struct prune *)ctx)->count++;
    return CORRAL_OK;
}

static enum corral_status prune_one(void *ctx, uint64_t step, const char *path, struct corral_error *err)
{
    struct prune *p = ctx;
    if (p->count - p->seen++ <= p->keep) {
        return CORRAL_OK;
    }
    /* Forget first: a journal that names a missing checkpoint would be worse than a folder nobody names. */
    CORRAL_TRY(corral_journal_forget_checkpoint(p->c->journal, step, err));
    return corral_remove_tree(path, err);
}

/* The new checkpoint is safe, whatever becomes of the old ones. */
static void prune_old(struct corral_coordinator *c)
{
    struct prune prune = {.c = c, .keep = c->job->checkpoint.keep};
    struct corral_error err;
    if (corral_journal_each_checkpoint(c->journal, count_one, &prune, &err) != CORRAL_OK ||
        corral_journal_each_checkpoint(c->journal, prune_one, &prune, &err) != CORRAL_OK) {
        corral_log_warn("an old checkpoint could not be removed", LOG_ERR(&err));
    }
}

/* Put the folder in its place. A step reached a second time has one there already: the two change places in one go, so that the journal never names what is not there; the
 * old one is then at `from`, or at `aside`. */
static enum corral_status put_in_place(const char *from, const char *to, const char *aside, bool *replaced,
                                       struct corral_error *err)
{
    struct stat st;
    *replaced = lstat(to, &st) == 0;
    if (!*replaced) {
        return rename(from, to) == 0 ? CORRAL_OK
                                     : corral_fail_sys(err, errno, "completing checkpoint %s", to);
    }
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) {
        return CORRAL_OK;
    }
    /* A file system that cannot exchange: for a moment the name is missing, and a resume would go on from the checkpoint before. */
    if ((errno != EINVAL && errno != ENOSYS) || rename(to, aside) != 0) {
        return corral_fail_sys(err, errno, "replacing checkpoint %s", to);
    }
    if (rename(from, to) != 0) {
        enum corral_status status = corral_fail_sys(err, errno, "replacing checkpoint %s", to);
        (void)rename(aside, to);
        return status;
    }
    return CORRAL_OK;
}

static enum corral_status complete(struct corral_coordinator *c, struct corral_error *err)
{
    struct pending_checkpoint *p = &c->checkpoint;
    char path[64], aside[64];
    bool replaced;
    snprintf(path, sizeof path, "checkpoints/step-%09" PRIu64, p->step);
    snprintf(aside, sizeof aside, "checkpoints/.step-%09" PRIu64 ".old", p->step);
    CORRAL_TRY(check_files(c, err));
    CORRAL_TRY(write_description(c, err));
    CORRAL_TRY(sync_folder(p->path, err));
    CORRAL_TRY(put_in_place(p->path, path, aside, &replaced, err));
    enum corral_status status = sync_folder("checkpoints", err);
    if (status == CORRAL_OK) {
        status = corral_proof_note(c, err);
    }
    if (status == CORRAL_OK) {
        status = corral_journal_checkpoint(c->journal, p->step, p->version, p->env_steps, path, err);
    }
    if (status != CORRAL_OK && !replaced) {
        (void)corral_remove_tree(path, NULL); /* nothing names it */
    }
    if (replaced) {
        (void)corral_remove_tree(p->path, NULL);
        (void)corral_remove_tree(aside, NULL);
    }
    return status;
}

static void advance(struct corral_coordinator *c)
{
    struct pending_checkpoint *p = &c->checkpoint;
    /* Once the group is broken nobody waits for environments: its successor may come to this step again and write into the same folder. */
    if (!p->active || bit_count(p->answered) < c->trainers || (bit_count(p->asked) > 0 && c->grouped)) {
        return;
    }
    if (bit_count(p->failed) > 0) {
        abandon(c, p->reason);
        return;
    }
    struct corral_error failure;
    if (complete(c, &failure) != CORRAL_OK) {
        abandon(c, failure.text);
        return;
    }
    c->status.checkpoints++;
    c->checkpoint_step = p->step;
    p->active = false;
    corral_log_info("checkpoint written", LOG_U64("step", p->step), LOG_U64("version", p->version),
                    LOG_U64("environments", p->snapshots));
    prune_old(c);
}

static void ask_for_snapshots(struct corral_coordinator *c)
{
    struct pending_checkpoint *p = &c->checkpoint;
    for (uint32_t i = 0; i < c->worker_count; i++) {
        struct coordinator_worker *w = &c->worker[i];
        /* Only a worker that shares this file system can write into the checkpoint; the others' environments start afresh. */
        bool here = strcmp(c->job->node[w->job.device.node].address, "local") == 0;
        if (w->job.role != CORRAL_ROLE_ROLLOUT || w->state != WORKER_RUNNING || !w->peer || !here) {
            continue;
        }
        corral_mpack_map(c->out, 2);
        corral_mpack_kv_str(c->out, "type", "checkpoint");
        corral_mpack_kv_str(c->out, "path", p->path);
        corral_coordinator_send(c, w->peer);
        bit_set(p->asked, w->job.role_index, true);
    }
}

/* Another checkpoint begins: this one is good as it is when only environments are missing. */
static void end_pending(struct corral_coordinator *c, const char *why)
{
    struct pending_checkpoint *p = &c->checkpoint;
    if (bit_count(p->answered) < c->trainers) {
        abandon(c, why);
        return;
    }
    memset(p->asked, 0, sizeof p->asked);
    advance(c);
}

/* One that nobody needs: an earlier one that was given up, or the last of the run at a step that has, or is about to have, its own. */
static bool superfluous(const struct corral_coordinator *c, const struct coordinator_worker *w, uint64_t step,
                        uint32_t number)
{
    const struct pending_checkpoint *p = &c->checkpoint;
    if (step != 0 && step == c->checkpoint_step) {
        return true;
    }
    if (!p->active || w->generation != p->generation) {
        return p->active && w->generation < p->generation;
    }
    bool good = bit_count(p->answered) == c->trainers && bit_count(p->failed) == 0;
    return number < p->number || (number > p->number && step == p->step && good);
}

/* Make this one the pending checkpoint, if it is not. */
static void make_pending(struct corral_coordinator *c, const struct coordinator_worker *w, uint64_t step,
                         uint32_t number, const char *path)
{
    struct pending_checkpoint *p = &c->checkpoint;
    if (p->active && w->generation == p->generation && number == p->number && step == p->step) {
        return;
    }
    if (p->active) {
        end_pending(c, "a later checkpoint began before it was complete");
    }
    *p = (struct pending_checkpoint){.active = true,
                                     .generation = w->generation,
                                     .number = number,
                                     .step = step,
                                     .deadline_ns = corral_coordinator_now() + CHECKPOINT_DEADLINE_NS};
    memcpy(p->path, path, sizeof p->path);
    ask_for_snapshots(c);
}

enum corral_status corral_checkpoint_written(struct corral_coordinator *c, struct coordinator_worker *w,
                                             const struct corral_mpack_node *m, struct corral_error *err)
{
    struct pending_checkpoint *p = &c->checkpoint;
    uint64_t step, version, env_steps;
    uint32_t number;
    bool written;
    char said[256], path[64], reason[400];
    CORRAL_TRY(corral_mpack_get_u64(m, "step", &step, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "version", &version, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "env_steps", &env_steps, err));
    CORRAL_TRY(corral_mpack_get_str(m, "path", said, sizeof said, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    CORRAL_TRY(corral_mpack_get_bool(m, "written", &written, err));
    CORRAL_TRY(unfinished_path(said, step, &number, path, err));
    if (w->job.role != CORRAL_ROLE_TRAIN) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s is no trainer and writes no checkpoints", w->job.name);
    }
    w->final_said |= c->phase >= RUN_FINISHING;
    if (written) {
        CORRAL_TRY(corral_proof_synced(c, w, m, err));
    }
    if (superfluous(c, w, step, number)) {
        (void)corral_remove_tree(path, NULL);
        return CORRAL_OK;
    }
    make_pending(c, w, step, number, path);
    p->version = CORRAL_MAX(p->version, version);
    p->env_steps = env_steps;
    bit_set(p->answered, w->job.role_index, true);
    bit_set(p->failed, w->job.role_index, !written);
    if (!written) {
        memcpy(p->reason, reason, sizeof p->reason);
    }
    advance(c);
    return CORRAL_OK;
}

enum corral_status corral_checkpoint_snapshotted(struct corral_coordinator *c, struct coordinator_worker *w,
                                                 const struct corral_mpack_node *m, struct corral_error *err)
{
    struct pending_checkpoint *p = &c->checkpoint;
    bool written;
    char path[1024], reason[400];
    CORRAL_TRY(corral_mpack_get_bool(m, "written", &written, err));
    CORRAL_TRY(corral_mpack_get_str(m, "path", path, sizeof path, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    if (!p->active || strcmp(path, p->path) != 0 || w->job.role != CORRAL_ROLE_ROLLOUT ||
        !bit_get(p->asked, w->job.role_index)) {
        return CORRAL_OK;
    }
    bit_set(p->asked, w->job.role_index, false);
    p->snapshots += written;
    if (reason[0]) {
        corral_log_warn("environment snapshot not written; these environments will start afresh",
                        LOG_STR("worker", w->job.name), LOG_STR("reason", reason));
    }
    advance(c);
    return CORRAL_OK;
}

void corral_checkpoint_tick(struct corral_coordinator *c)
{
    if (c->checkpoint.active && corral_coordinator_now() >= c->checkpoint.deadline_ns) {
        end_pending(
            c,
            "not every trainer wrote its part in time"); /* without the environments of a rollout worker that died or is slow, it is good */
    }
}

void corral_checkpoint_trainer_lost(struct corral_coordinator *c)
{
    if (c->checkpoint.active) {
        end_pending(c, "a trainer ended before it was complete");
    }
}
