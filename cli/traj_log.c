#include "cli/traj_log.h"
#include "base/text.h"
#include "orchestrator/run/run_folder.h"
#include "transport/trajectory/record/text.h"
#include "transport/trajectory/wal/wal.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rank_log {
    uint32_t rank;
    char folder[CORRAL_RUN_PATH_MAX + 64];
    struct corral_wal_reader *reader;
};

struct traj_log {
    char path[CORRAL_RUN_PATH_MAX + 16]; /* RUN/traj */
    struct traj_filter filter;
    uint64_t last;
    struct rank_log *ranks;
    uint32_t count, at;
    struct corral_traj_view view;
};

void traj_log_close(struct traj_log *l)
{
    if (l == NULL) {
        return;
    }
    for (uint32_t i = 0; i < l->count; i++) {
        corral_wal_reader_close(l->ranks[i].reader);
    }
    free(l->ranks);
    free(l);
}

CORRAL_DEFINE_CLEANUP(struct traj_log, traj_log_close)

static int by_rank(const void *a, const void *b)
{
    const struct rank_log *x = a, *y = b;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static enum corral_status add_rank(struct traj_log *l, uint32_t rank, struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        if (l->ranks[i].rank == rank) {
            return CORRAL_OK;
        }
    }
    struct rank_log *r = &l->ranks[l->count];
    *r = (struct rank_log){.rank = rank};
    snprintf(r->folder, sizeof r->folder, "%s/rank-%u", l->path, rank);
    uint64_t from = 0;
    if (l->last != UINT64_MAX) {
        struct corral_wal_extent extent;
        CORRAL_TRY(corral_wal_measure(r->folder, &extent, err));
        from = extent.last > l->last ? extent.last - l->last + 1 : 0;
    }
    if (l->filter.position != UINT64_MAX) {
        from = l->filter.position;
    }
    CORRAL_TRY(corral_wal_reader_open(&r->reader, r->folder, from, err));
    l->count++;
    return CORRAL_OK;
}

enum corral_status traj_log_look_again(struct traj_log *l, struct corral_error *err)
{
    DIR *d = opendir(l->path);
    if (d == NULL) {
        return errno == ENOENT ? CORRAL_OK : corral_fail_sys(err, errno, "reading %s", l->path);
    }
    enum corral_status status = CORRAL_OK;
    for (struct dirent *e = readdir(d); e != NULL && status == CORRAL_OK; e = readdir(d)) {
        uint64_t rank;
        if (strncmp(e->d_name, "rank-", 5) == 0 && corral_parse_u64(e->d_name + 5, &rank) &&
            rank < TRAJ_RANKS_MAX && l->count < TRAJ_RANKS_MAX &&
            (l->filter.rank == UINT64_MAX || l->filter.rank == rank)) {
            status = add_rank(l, (uint32_t)rank, err);
        }
    }
    closedir(d);
    qsort(l->ranks, l->count, sizeof l->ranks[0], by_rank);
    l->at = 0;
    return status;
}

enum corral_status traj_log_open(struct traj_log **out, const char *run_path,
                                 const struct traj_filter *filter, uint64_t last, struct corral_error *err)
{
    CORRAL_CLEANUP(traj_log_closep) struct traj_log *l = calloc(1, sizeof *l);
    if (l == NULL || (l->ranks = calloc(TRAJ_RANKS_MAX, sizeof l->ranks[0])) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to read the trajectory log of %s", run_path);
    }
    snprintf(l->path, sizeof l->path, "%s/traj", run_path);
    l->filter = *filter;
    l->last = last;
    CORRAL_TRY(traj_log_look_again(l, err));
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

uint32_t traj_log_ranks(const struct traj_log *l)
{
    return l->count;
}

const char *traj_log_folder(const struct traj_log *l, uint32_t i)
{
    return l->ranks[i].folder;
}

static bool any_or(uint64_t wanted, uint64_t value)
{
    return wanted == UINT64_MAX || wanted == value;
}

static bool wanted(const struct traj_filter *f, const struct corral_traj_record *r, uint64_t position)
{
    return any_or(f->worker, r->worker) && any_or(f->epoch, r->epoch) && any_or(f->sequence, r->sequence) &&
           any_or(f->episode, r->episode) && any_or(f->position, position) &&
           (f->group == UINT64_MAX || (r->group_size > 0 && f->group == r->group)) &&
           (f->env == NULL || strcmp(f->env, r->env) == 0) && r->version_max >= f->version_from &&
           r->version_min <= f->version_to;
}

enum corral_status traj_log_next(struct traj_log *l, struct traj_entry *out, struct corral_error *err)
{
    while (l->at < l->count) {
        struct rank_log *r = &l->ranks[l->at];
        struct corral_wal_item item;
        enum corral_status status = corral_wal_reader_next(r->reader, &item, err);
        if (status == CORRAL_AGAIN) {
            l->at++;
            continue;
        }
        CORRAL_TRY(status);
        status = corral_traj_record_decode(item.data, item.bytes, &l->view, err);
        if (status != CORRAL_OK) {
            return corral_error_prefix(err, status, "%s: record %" PRIu64, r->folder, item.position);
        }
        if (wanted(&l->filter, &l->view.record, item.position)) {
            *out = (struct traj_entry){.rank = r->rank,
                                       .position = item.position,
                                       .bytes = item.bytes,
                                       .record = &l->view.record,
                                       .view = &l->view};
            return CORRAL_OK;
        }
    }
    l->at = 0;
    return corral_fail(err, CORRAL_AGAIN, "%s: the end", l->path);
}

static json_t *scores_json(const struct corral_traj_record *r)
{
    json_t *scores = json_object();
    for (uint32_t i = 0; i < r->score_count; i++) {
        json_object_set_new(scores, r->scores[i].name, corral_json_real(r->scores[i].value));
    }
    return scores;
}

static json_t *tensors_json(const struct corral_traj_record *r)
{
    json_t *tensors = json_object();
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        const struct corral_traj_tensor *t = &r->tensors[i];
        json_t *shape = json_array();
        for (uint32_t d = 0; d < t->dims; d++) {
            json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        }
        json_object_set_new(
            tensors, t->name,
            json_pack("{s:s, s:o}", "dtype", corral_traj_dtype_name(t->dtype), "shape", shape));
    }
    return tensors;
}

json_t *traj_entry_json(const struct traj_entry *e)
{
    const struct corral_traj_record *r = e->record;
    json_t *o = json_pack(
        "{s:i, s:I, s:s, s:i, s:i, s:I, s:s, s:s, s:s, s:s, s:I, s:i, s:I, s:I, s:I, s:I, s:o, s:o}", "rank",
        (int)e->rank, "position", (json_int_t)e->position, "kind",
        r->kind == CORRAL_TRAJ_EPISODE ? "episode" : "fragment", "worker", (int)r->worker, "epoch",
        (int)r->epoch, "sequence", (json_int_t)r->sequence, "env", r->env, "task", r->task, "finish",
        r->finish, "group", "", "episode", (json_int_t)r->episode, "turns", (int)r->turns, "version_min",
        (json_int_t)r->version_min, "version_max", (json_int_t)r->version_max, "tokens",
        (json_int_t)r->tokens, "bytes", (json_int_t)e->bytes, "scores", scores_json(r), "tensors",
        tensors_json(r));
    if (o != NULL && r->group_size > 0) {
        json_object_set_new(o, "group",
                            json_pack("{s:I, s:i, s:i}", "id", (json_int_t)r->group, "member",
                                      (int)r->group_index, "members", (int)r->group_size));
    } else {
        json_object_set_new(o, "group", json_null());
    }
    return o;
}
