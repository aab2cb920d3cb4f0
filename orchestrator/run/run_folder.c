#include "orchestrator/run/run_folder.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CREATE_TRIES_MAX 16
#define RUNS_MAX 100000

static enum corral_status make_subfolders(const char *path, struct corral_error *err)
{
    static const struct {
        const char *name;
        mode_t mode;
    } folders[] = {{"logs", 0755}, {"checkpoints", 0755}, {"sock", 0700}};
    for (size_t i = 0; i < CORRAL_COUNT_OF(folders); i++) {
        char sub[CORRAL_RUN_PATH_MAX + 32];
        snprintf(sub, sizeof sub, "%s/%s", path, folders[i].name);
        CORRAL_TRY(corral_mkdirs(sub, folders[i].mode, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_run_folder_create(const char *dir, const char *job_name, uint64_t *run,
                                            char path[CORRAL_RUN_PATH_MAX], struct corral_error *err)
{
    CORRAL_TRY(corral_mkdirs(dir, 0755, err));
    CORRAL_AUTO_FREE char *absolute = realpath(dir, NULL);
    if (!absolute) {
        return corral_fail_sys(err, errno, "job.dir %s", dir);
    }
    for (uint32_t i = 0; i < CREATE_TRIES_MAX; i++) {
        uint64_t id;
        corral_random_bytes(&id, sizeof id);
        id &= UINT64_C(0x7fffffffffffffff);
        int n = snprintf(path, CORRAL_RUN_PATH_MAX, "%s/%s-%08x", absolute, job_name, (unsigned)(id >> 31));
        if (n < 0 || n >= CORRAL_RUN_PATH_MAX) {
            return corral_fail(err, CORRAL_INVALID, "job.dir %s: the path is too long", dir);
        }
        if (mkdir(path, 0755) == 0) {
            enum corral_status status = make_subfolders(path, err);
            if (status != CORRAL_OK) {
                (void)corral_remove_tree(path, NULL);
                return status;
            }
            *run = id;
            return CORRAL_OK;
        }
        if (errno != EEXIST) {
            return corral_fail_sys(err, errno, "creating the run folder %s", path);
        }
    }
    return corral_fail(err, CORRAL_EXISTS, "%s: no free run folder name found", dir);
}

static bool is_run(const char *path)
{
    char file[CORRAL_RUN_PATH_MAX + 32];
    snprintf(file, sizeof file, "%s/job.toml", path);
    return access(file, F_OK) == 0;
}

struct found_run {
    int64_t mtime_ns; /* of job.toml: written once, at launch */
    char path[CORRAL_RUN_PATH_MAX];
};

struct found {
    struct found_run *run;
    size_t count, room;
};

static enum corral_status found_add(struct found *f, const char *path, int64_t mtime_ns,
                                    struct corral_error *err)
{
    if (f->count == RUNS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "more than %d runs in one folder; move some of them away",
                           RUNS_MAX);
    }
    if (f->count == f->room) {
        size_t room = f->room ? f->room * 2 : 64;
        struct found_run *run = reallocarray(f->run, room, sizeof *run);
        if (!run) {
            return corral_fail(err, CORRAL_NOMEM, "listing runs");
        }
        f->run = run;
        f->room = room;
    }
    struct found_run *r = &f->run[f->count++];
    r->mtime_ns = mtime_ns;
    snprintf(r->path, sizeof r->path, "%s", path);
    return CORRAL_OK;
}

static int by_age(const void *a, const void *b)
{
    const struct found_run *x = a, *y = b;
    return x->mtime_ns != y->mtime_ns ? (x->mtime_ns > y->mtime_ns) - (x->mtime_ns < y->mtime_ns)
                                      : strcmp(x->path, y->path);
}

static enum corral_status scan(const char *dir, struct found *f, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *absolute = realpath(dir, NULL);
    DIR *d = absolute ? opendir(absolute) : NULL;
    if (!d) {
        return errno == ENOENT ? CORRAL_OK : corral_fail_sys(err, errno, "reading %s", dir);
    }
    enum corral_status status = CORRAL_OK;
    for (struct dirent *e = readdir(d); e && status == CORRAL_OK; e = readdir(d)) {
        char path[CORRAL_RUN_PATH_MAX], job[CORRAL_RUN_PATH_MAX + 32];
        int n = snprintf(path, sizeof path, "%s/%s", absolute, e->d_name);
        if (e->d_name[0] == '.' || n < 0 || n >= (int)sizeof path || !is_run(path)) {
            continue;
        }
        struct stat st;
        snprintf(job, sizeof job, "%s/job.toml", path);
        if (stat(job, &st) == 0) {
            status = found_add(f, path, (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec, err);
        }
    }
    closedir(d);
    if (f->count > 1) {
        qsort(f->run, f->count, sizeof f->run[0], by_age);
    }
    return status;
}

static void found_free(struct found *f)
{
    free(f->run);
}

enum corral_status corral_run_folder_each(const char *dir, corral_run_folder_fn fn, void *ctx,
                                          struct corral_error *err)
{
    CORRAL_CLEANUP(found_free) struct found f = {0};
    CORRAL_TRY(scan(dir, &f, err));
    for (size_t i = 0; i < f.count; i++) {
        CORRAL_TRY(fn(ctx, f.run[i].path, err));
    }
    return CORRAL_OK;
}

/* "cartpole-7f3a12bc" is named by its whole name, by "7f3a12bc", or by a prefix of that. */
static bool names_run(const char *path, const char *which)
{
    const char *name = strrchr(path, '/') + 1;
    const char *id = strrchr(name, '-');
    return strcmp(name, which) == 0 || (which[0] && id && strncmp(id + 1, which, strlen(which)) == 0);
}

enum corral_status corral_run_folder_find(const char *dir, const char *which, char path[CORRAL_RUN_PATH_MAX],
                                          struct corral_error *err)
{
    if (which && strchr(which, '/') == NULL && strcmp(which, "last") == 0) {
        which = NULL;
    }
    if (which && which[0] && is_run(which)) {
        CORRAL_AUTO_FREE char *absolute = realpath(which, NULL);
        if (!absolute || strlen(absolute) >= CORRAL_RUN_PATH_MAX) {
            return corral_fail(err, CORRAL_INVALID, "%s: the path cannot be resolved or is too long", which);
        }
        memcpy(path, absolute, strlen(absolute) + 1);
        return CORRAL_OK;
    }
    CORRAL_CLEANUP(found_free) struct found f = {0};
    CORRAL_TRY(scan(dir, &f, err));
    const char *match = NULL;
    uint32_t matches = 0;
    for (size_t i = 0; i < f.count; i++) {
        if (!which || names_run(f.run[i].path, which)) {
            match = f.run[i].path;
            matches++;
        }
    }
    if (!match) {
        return which ? corral_fail(err, CORRAL_NOT_FOUND,
                                   "no run `%s` in %s; `rlctl list` shows what there is", which, dir)
                     : corral_fail(err, CORRAL_NOT_FOUND,
                                   "no runs in %s yet; start one with `rlctl launch JOB`", dir);
    }
    if (which && matches > 1) {
        return corral_fail(err, CORRAL_INVALID, "`%s` names %u runs in %s; give more of the id", which,
                           matches, dir);
    }
    snprintf(path, CORRAL_RUN_PATH_MAX, "%s", match);
    return CORRAL_OK;
}

pid_t corral_run_folder_coordinator(const char *path)
{
    char lock[CORRAL_RUN_PATH_MAX + 32];
    snprintf(lock, sizeof lock, "%s/lock", path);
    pid_t pid = 0;
    uint64_t start_time = 0;
    return corral_lock_holder(lock, &pid, &start_time, NULL) == CORRAL_OK ? pid : 0;
}
