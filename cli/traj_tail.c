/* rlctl traj tail and show. */
#include "base/text.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include "cli/traj_log.h"
#include "transport/trajectory/record/text.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FOLLOW_MS 200

CORRAL_DEFINE_CLEANUP(struct traj_log, traj_log_close)

static void print_line(const struct traj_entry *e)
{
    const struct corral_traj_record *r = e->record;
    char env[CORRAL_TRAJ_TEXT_MAX + 1], finish[CORRAL_TRAJ_TEXT_MAX + 1], bytes[32], versions[64];
    if (r->version_min == r->version_max) {
        snprintf(versions, sizeof versions, "v%" PRIu64, r->version_min);
    } else {
        snprintf(versions, sizeof versions, "v%" PRIu64 "-%" PRIu64, r->version_min, r->version_max);
    }
    printf("%u:%-7" PRIu64 " %-14s %-8s worker %u.%u #%-6" PRIu64 " %-9s %6" PRIu64 " tokens %9s", e->rank,
           e->position, corral_view_plain(r->env, env, sizeof env),
           r->kind == CORRAL_TRAJ_EPISODE ? "episode" : "fragment", r->worker, r->epoch, r->sequence,
           versions, r->tokens, corral_format_bytes(e->bytes, bytes, sizeof bytes));
    if (r->kind == CORRAL_TRAJ_EPISODE) {
        printf("  episode %" PRIu64 " %s", r->episode, corral_view_plain(r->finish, finish, sizeof finish));
    }
    if (r->group_size > 0) {
        printf("  group %" PRIu64 " (%u of %u)", r->group, r->group_index + 1, r->group_size);
    }
    for (uint32_t i = 0; i < r->score_count && i < 4; i++) {
        printf("  %s %.4g", r->scores[i].name, r->scores[i].value);
    }
    putchar('\n');
}

static enum corral_status print_entry(const struct traj_entry *e, bool json, struct corral_error *err)
{
    if (!json) {
        print_line(e);
        return CORRAL_OK;
    }
    json_t *o = traj_entry_json(e);
    enum corral_status status = o != NULL ? corral_json_line(stdout, o, err)
                                          : corral_fail(err, CORRAL_NOMEM, "no memory to print a record");
    json_decref(o);
    return status;
}

static enum corral_status print_new(struct traj_log *l, bool json, struct corral_error *err)
{
    for (;;) {
        struct traj_entry e;
        enum corral_status status = traj_log_next(l, &e, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        CORRAL_TRY(print_entry(&e, json, err));
    }
}

/* Until the coordinator is gone, or nobody reads us any more. */
static enum corral_status follow(struct traj_log *l, const struct traj_arguments *a, struct corral_error *err)
{
    char path[CORRAL_RUN_PATH_MAX];
    CORRAL_AUTO_CLOSE int pidfd = -1;
    CORRAL_TRY(corral_run_folder_find(a->dir, a->run, path, err));
    CORRAL_TRY(corral_run_view_coordinator(path, &pidfd, NULL, err));
    struct pollfd fds[] = {{.fd = pidfd, .events = POLLIN}, {.fd = 1, .events = 0}};
    while (pidfd >= 0 && fflush(stdout) == 0 && fds[0].revents == 0 && fds[1].revents == 0) {
        if (poll(fds, CORRAL_COUNT_OF(fds), FOLLOW_MS) < 0 && errno != EINTR) {
            return corral_fail_sys(err, errno, "waiting for new records");
        }
        CORRAL_TRY(traj_log_look_again(l, err));
        CORRAL_TRY(print_new(l, a->json, err));
    }
    return CORRAL_OK;
}

int traj_tail(int argc, char **argv)
{
    struct traj_arguments a;
    struct corral_error err;
    int code = traj_parse(argc, argv, " lines follow ", &a);
    if (code >= 0) {
        return code;
    }
    CORRAL_CLEANUP(traj_log_closep) struct traj_log *l = NULL;
    code = traj_open(&a, a.lines, &l);
    if (code >= 0) {
        return code;
    }
    enum corral_status status = print_new(l, a.json, &err);
    if (status == CORRAL_OK && a.follow) {
        status = follow(l, &a, &err);
    }
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

static uint32_t columns(void)
{
    struct winsize size;
    return isatty(1) && ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 0;
}

/* Rank and position of the last record that fits. */
static enum corral_status find_last(struct traj_log *l, struct traj_filter *found, struct corral_error *err)
{
    bool any = false;
    for (;;) {
        struct traj_entry e;
        enum corral_status status = traj_log_next(l, &e, err);
        if (status == CORRAL_AGAIN) {
            return any ? CORRAL_OK
                       : corral_fail(err, CORRAL_NOT_FOUND, "no record in the log fits the filters");
        }
        CORRAL_TRY(status);
        found->rank = e.rank;
        found->position = e.position;
        any = true;
    }
}

static bool selective(const struct traj_filter *f)
{
    return f->env != NULL || f->version_from != 0 || f->version_to != UINT64_MAX ||
           (f->worker & f->epoch & f->sequence & f->episode & f->group) != UINT64_MAX;
}

int traj_show(int argc, char **argv)
{
    struct traj_arguments a;
    struct corral_error err;
    int code = traj_parse(argc, argv, " row all last ", &a);
    if (code >= 0) {
        return code;
    }
    CORRAL_CLEANUP(traj_log_closep) struct traj_log *l = NULL, *one = NULL;
    /* Without filters, the last one need not be looked for. */
    code = traj_open(&a, selective(&a.filter) || a.filter.position != UINT64_MAX ? UINT64_MAX : 1, &l);
    if (code >= 0) {
        return code;
    }
    if (find_last(l, &a.filter, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    code = traj_open(&a, UINT64_MAX, &one);
    if (code >= 0) {
        return code;
    }
    struct traj_entry e;
    if (traj_log_next(one, &e, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    if (a.json) {
        enum corral_status status = print_entry(&e, true, &err);
        return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
    }
    printf("rank %u, record %" PRIu64 " of its log\n", e.rank, e.position);
    struct corral_traj_text_options options = {.columns = columns(),
                                               .row = (uint32_t)CORRAL_MIN(a.row, UINT32_MAX),
                                               .everything = a.everything ? 1 : 0};
    corral_traj_text(stdout, e.record, &options);
    return cli_flush();
}
