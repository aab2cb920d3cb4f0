#include "trainer-bridge/worker/trainer_state.h"
#include "base/hash.h"
#include "worker/state_vault.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATE_MAGIC UINT64_C(0x3254535254524f43) /* "CORTRST2" */

struct state_header {
    uint64_t magic;
    uint64_t ppo_bytes;
    struct corral_digest digest; /* of `state`; the learner's state behind it has its own */
    struct corral_trainer_state state;
};

enum corral_status corral_trainer_state_peek(int vault_fd, struct corral_trainer_counters *out,
                                             struct corral_error *err)
{
    CORRAL_AUTO_FREE struct state_header *header = malloc(sizeof *header);
    uint64_t step;
    if (!header) {
        return corral_fail(err, CORRAL_NOMEM, "looking at the saved trainer state");
    }
    CORRAL_TRY(corral_state_vault_peek(vault_fd, &step, header, sizeof *header, err));
    if (header->magic != STATE_MAGIC || header->state.counters.step != step) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "the state vault holds something else than a trainer's state");
    }
    *out = header->state.counters;
    return CORRAL_OK;
}

enum corral_status corral_trainer_state_log_low(const char *path, uint64_t *out, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct state_header *header = malloc(sizeof *header);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (!header) {
        return corral_fail(err, CORRAL_NOMEM, "looking at %s", path);
    }
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot open %s", path);
    }
    if (pread(fd, header, sizeof *header, 0) != (ssize_t)sizeof *header || header->magic != STATE_MAGIC ||
        !corral_digest_equal(header->digest, corral_digest_of(&header->state, sizeof header->state))) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s holds no trainer's state", path);
    }
    *out = header->state.log_low;
    return CORRAL_OK;
}

void corral_trainer_state_add_rebase(struct corral_trainer_state *s, uint64_t from, uint64_t to)
{
    if (s->rebase_count == CORRAL_REBASES_MAX) {
        memmove(s->rebase, s->rebase + 1, (CORRAL_REBASES_MAX - 1) * sizeof s->rebase[0]);
        s->rebase_count--;
    }
    s->rebase[s->rebase_count++] = (struct corral_version_rebase){.from = from, .to = to};
}

uint64_t corral_trainer_state_bytes(const struct corral_ppo *ppo)
{
    return sizeof(struct state_header) + corral_ppo_state_bytes(ppo);
}

void corral_trainer_state_pack(const struct corral_trainer_state *s, const struct corral_ppo *ppo, void *out)
{
    struct state_header *header = out;
    memset(header, 0, sizeof *header); /* also what lies between the fields: equal states are equal bytes */
    header->magic = STATE_MAGIC;
    header->ppo_bytes = corral_ppo_state_bytes(ppo);
    header->state.counters = s->counters;
    header->state.log_low = s->log_low;
    header->state.rebase_count = s->rebase_count;
    memcpy(header->state.rebase, s->rebase, s->rebase_count * sizeof s->rebase[0]);
    header->state.cursor_count = s->cursor_count;
    memcpy(header->state.cursor, s->cursor, s->cursor_count * sizeof s->cursor[0]);
    header->digest = corral_digest_of(&header->state, sizeof header->state);
    corral_ppo_state_save(ppo, header + 1);
}

enum corral_status corral_trainer_state_unpack(struct corral_trainer_state *s, struct corral_ppo *ppo,
                                               const void *in, uint64_t bytes, struct corral_error *err)
{
    const struct state_header *header = in;
    if (bytes != corral_trainer_state_bytes(ppo) || header->magic != STATE_MAGIC ||
        header->ppo_bytes != corral_ppo_state_bytes(ppo)) {
        return corral_fail(
            err, CORRAL_PROTOCOL,
            "the saved trainer state (%llu bytes) is not one of this job's learner (%llu bytes)",
            (unsigned long long)bytes, (unsigned long long)corral_trainer_state_bytes(ppo));
    }
    if (!corral_digest_equal(header->digest, corral_digest_of(&header->state, sizeof header->state))) {
        return corral_fail(err, CORRAL_PROTOCOL, "the saved trainer state is damaged (digest differs)");
    }
    if (header->state.rebase_count > CORRAL_REBASES_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "the saved trainer state names %u changes of versions",
                           header->state.rebase_count);
    }
    if (header->state.cursor_count > CORRAL_TRAJ_WORKERS_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "the saved trainer state names %u streams",
                           header->state.cursor_count);
    }
    CORRAL_TRY(corral_ppo_state_load(ppo, header + 1, header->ppo_bytes, err));
    *s = header->state;
    return CORRAL_OK;
}
