#include "rollout/env_host/registry.h"
#include "base/text.h"
#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef CORRAL_INSTALL_LIBDIR
#define CORRAL_INSTALL_LIBDIR "/usr/local/lib"
#endif
#ifndef CORRAL_INSTALL_LIBDIR_RELATIVE
#define CORRAL_INSTALL_LIBDIR_RELATIVE "lib"
#endif

#define PLUGIN_SYMBOL "corral_env_plugin_v1"
enum { SEARCH_FILES_MAX = 4096 };

/* ---- one plug-in ---- */

/* A plug-in compiled with a newer or older header has a longer or shorter struct: what it lacks reads as zero. */
static bool copy_sized(void *to, size_t to_bytes, const void *from, size_t needed)
{
    uint32_t size = 0;
    memcpy(&size, from, sizeof size);
    memset(to, 0, to_bytes);
    if (size < needed) {
        return false;
    }
    memcpy(to, from, CORRAL_MIN((size_t)size, to_bytes));
    return true;
}

static enum corral_status read_plugin(void *handle, const char *path, struct corral_env_plugin *out,
                                      struct corral_error *err)
{
    const uint32_t *symbol = dlsym(handle, PLUGIN_SYMBOL);
    if (symbol == NULL) {
        return corral_fail(
            err, CORRAL_INVALID,
            "%s exports no " PLUGIN_SYMBOL ": end the plug-in's source with CORRAL_ENV_PLUGIN(list)", path);
    }
    if (symbol[1] != CORRAL_ENV_ABI) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s speaks environment ABI %u and this runtime speaks %u: rebuild it with this "
                           "release's <corral/env.h>",
                           path, symbol[1], CORRAL_ENV_ABI);
    }
    if (!copy_sized(out, sizeof *out, symbol, offsetof(struct corral_env_plugin, envs) + sizeof out->envs)) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s: struct corral_env_plugin has size %u, too small for its own members", path,
                           symbol[0]);
    }
    if (out->count == 0 || out->count > CORRAL_ENV_PLUGIN_ENVS_MAX || out->envs == NULL) {
        return corral_fail(err, CORRAL_INVALID, "%s offers %u environments; 1 to %d are possible", path,
                           out->count, CORRAL_ENV_PLUGIN_ENVS_MAX);
    }
    return CORRAL_OK;
}

static enum corral_status read_ops(const struct corral_env_plugin *plugin, uint32_t index, const char *path,
                                   struct corral_env_ops *out, struct corral_error *err)
{
    const struct corral_env_ops *ops = plugin->envs[index];
    if (ops == NULL) {
        return corral_fail(err, CORRAL_INVALID, "%s: environment %u of its list is NULL", path, index);
    }
    if (!copy_sized(out, sizeof *out, ops, offsetof(struct corral_env_ops, step) + sizeof out->step)) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s: environment %u: .size is %u, smaller than the required members; write .size "
                           "= sizeof(struct corral_env_ops)",
                           path, index, ops->size);
    }
    if (out->id == NULL || out->id[0] == '\0' ||
        strnlen(out->id, CORRAL_ENV_ID_BYTES) >= CORRAL_ENV_ID_BYTES) {
        return corral_fail(err, CORRAL_INVALID, "%s: environment %u has no id of 1 to %d characters", path,
                           index, CORRAL_ENV_ID_BYTES - 1);
    }
    const char *missing = out->describe == NULL  ? "describe"
                          : out->create == NULL  ? "create"
                          : out->destroy == NULL ? "destroy"
                          : out->reset == NULL   ? "reset"
                          : out->step == NULL    ? "step"
                                                 : NULL;
    if (missing != NULL) {
        return corral_fail(err, CORRAL_INVALID, "%s: environment %s lacks the required member .%s", path,
                           out->id, missing);
    }
    if ((out->snapshot == NULL) != (out->restore == NULL)) {
        return corral_fail(err, CORRAL_INVALID, "%s: environment %s has only one of .snapshot and .restore",
                           path, out->id);
    }
    return CORRAL_OK;
}

static void *open_library(const char *library, char *path, size_t path_bytes, struct corral_error *err)
{
    /* A bare file name would make dlopen search the system's library folders instead of the current one. */
    bool bare = strchr(library, '/') == NULL;
    if ((size_t)snprintf(path, path_bytes, "%s%s", bare ? "./" : "", library) >= path_bytes) {
        corral_fail(err, CORRAL_INVALID, "the plug-in path is longer than %zu characters: %.80s...",
                    path_bytes - 1, library);
        return NULL;
    }
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) {
        corral_fail(err, CORRAL_NOT_FOUND, "there is no plug-in file %s", path);
        return NULL;
    }
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        const char *why = dlerror();
        corral_fail(err, CORRAL_INVALID, "cannot load the plug-in %s: %s", path,
                    why ? why : "unknown reason");
    }
    return handle;
}

static void close_handle(void **handle)
{
    if (*handle != NULL) {
        dlclose(*handle);
    }
}

static void list_ids(const struct corral_env_plugin *plugin, char *out, size_t out_bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < plugin->count && used < out_bytes; i++) {
        const char *id = plugin->envs[i] != NULL && plugin->envs[i]->id != NULL ? plugin->envs[i]->id : "?";
        int n = snprintf(out + used, out_bytes - used, "%s%s", i ? ", " : "", id);
        used += n > 0 ? (size_t)n : 0;
    }
}

/* NOT_FOUND when the plug-in is fine and does not offer `id`. */
static enum corral_status open_in(const char *library, const char *id, struct corral_env_def **out,
                                  struct corral_error *err)
{
    char path[CORRAL_ENV_PATH_BYTES];
    struct corral_error local = {0};
    CORRAL_CLEANUP(close_handle) void *handle = open_library(library, path, sizeof path, &local);
    if (handle == NULL) {
        return corral_fail(err, local.status, "%s", local.text);
    }
    struct corral_env_plugin plugin;
    CORRAL_TRY(read_plugin(handle, path, &plugin, err));
    for (uint32_t i = 0; i < plugin.count; i++) {
        struct corral_env_ops ops;
        CORRAL_TRY(read_ops(&plugin, i, path, &ops, err));
        if (id != NULL ? strcmp(ops.id, id) != 0 : plugin.count != 1) {
            continue;
        }
        struct corral_env_def *def = calloc(1, sizeof *def);
        if (def == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "cannot open the environment %s: out of memory", ops.id);
        }
        def->ops = ops;
        snprintf(def->id, sizeof def->id, "%s", ops.id);
        snprintf(def->path, sizeof def->path, "%s", path);
        def->handle = CORRAL_STEAL(handle);
        *out = def;
        return CORRAL_OK;
    }
    char ids[256];
    list_ids(&plugin, ids, sizeof ids);
    if (id == NULL) {
        return corral_fail(err, CORRAL_INVALID, "%s offers %u environments; name one of: %s", path,
                           plugin.count, ids);
    }
    return corral_fail(err, CORRAL_NOT_FOUND, "%s does not offer the environment %s; it offers: %s", path, id,
                       ids);
}

/* ---- the search path ---- */

/* The folder a file is in; false when unknown. */
static bool folder_of_program(char *out, size_t out_bytes)
{
    ssize_t n = readlink("/proc/self/exe", out, out_bytes - 1);
    if (n <= 0) {
        return false;
    }
    out[n] = '\0';
    char *slash = strrchr(out, '/');
    if (slash == NULL) {
        return false;
    }
    *slash = '\0';
    return true;
}

static bool folder_of_this_library(char *out, size_t out_bytes)
{
    static const char anchor;
    Dl_info info;
    char real[PATH_MAX];
    if (dladdr(&anchor, &info) == 0 || info.dli_fname == NULL || realpath(info.dli_fname, real) == NULL) {
        return false;
    }
    char *slash = strrchr(real, '/');
    if (slash == NULL || (size_t)(slash - real) >= out_bytes) {
        return false;
    }
    *slash = '\0';
    memcpy(out, real, strlen(real) + 1);
    return true;
}

/* Call fn with every folder that may be the runtime's own (…/lib/corral): it holds envs/ and corral-env-host. */
static void each_home(void (*fn)(void *ctx, const char *home), void *ctx)
{
    static const char *const relative[] = {"../lib/corral", "../../lib/corral", "corral",
                                           "../" CORRAL_INSTALL_LIBDIR_RELATIVE "/corral"};
    char folder[PATH_MAX], home[PATH_MAX + 128];
    for (int from = 0; from < 2; from++) {
        if (from == 0 ? folder_of_program(folder, sizeof folder)
                      : folder_of_this_library(folder, sizeof folder)) {
            for (size_t i = 0; i < CORRAL_COUNT_OF(relative); i++) {
                snprintf(home, sizeof home, "%s/%s", folder, relative[i]);
                fn(ctx, home);
            }
        }
    }
    fn(ctx, CORRAL_INSTALL_LIBDIR "/corral");
}

enum { SEARCH_PATHS_MAX = 64 };
struct search_paths {
    void (*fn)(void *ctx, const char *path);
    void *ctx;
    uint32_t count;
    char seen[SEARCH_PATHS_MAX][CORRAL_ENV_PATH_BYTES]; /* resolved, so that no folder is searched twice */
};

static void add_path(struct search_paths *s, const char *path, bool even_if_missing)
{
    char real[PATH_MAX];
    bool exists = realpath(path, real) != NULL;
    if ((!exists && !even_if_missing) || s->count == SEARCH_PATHS_MAX) {
        return;
    }
    const char *use = exists ? real : path;
    if (strlen(use) >= CORRAL_ENV_PATH_BYTES) {
        return;
    }
    for (uint32_t i = 0; i < s->count; i++) {
        if (strcmp(s->seen[i], use) == 0) {
            return;
        }
    }
    memcpy(s->seen[s->count++], use, strlen(use) + 1);
    s->fn(s->ctx, use);
}

static void add_home(void *ctx, const char *home)
{
    char path[PATH_MAX + 160];
    snprintf(path, sizeof path, "%s/envs", home);
    add_path(ctx, path, strcmp(home, CORRAL_INSTALL_LIBDIR "/corral") == 0);
}

void corral_env_search_path(void (*fn)(void *ctx, const char *path), void *ctx)
{
    CORRAL_AUTO_FREE struct search_paths *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return;
    }
    s->fn = fn;
    s->ctx = ctx;
    const char *list = getenv("CORRAL_ENV_PATH");
    while (list != NULL && *list != '\0') {
        size_t n = strcspn(list, ":");
        char entry[CORRAL_ENV_PATH_BYTES];
        if (n > 0 && n < sizeof entry) {
            memcpy(entry, list, n);
            entry[n] = '\0';
            add_path(s, entry, true);
        }
        list += n + (list[n] == ':');
    }
    each_home(add_home, s);
}

struct host_search {
    char *out;
    size_t out_bytes;
    bool found;
};

static void try_host(void *ctx, const char *home)
{
    struct host_search *s = ctx;
    char path[PATH_MAX + 160], real[PATH_MAX];
    snprintf(path, sizeof path, "%s/corral-env-host", home);
    if (!s->found && realpath(path, real) != NULL && access(real, X_OK) == 0 && strlen(real) < s->out_bytes) {
        memcpy(s->out, real, strlen(real) + 1);
        s->found = true;
    }
}

enum corral_status corral_env_host_program(char *out, size_t out_bytes, struct corral_error *err)
{
    const char *named = getenv("CORRAL_ENV_HOST");
    if (named != NULL && *named != '\0') {
        if (access(named, X_OK) != 0 || strlen(named) >= out_bytes) {
            return corral_fail(err, CORRAL_NOT_FOUND, "CORRAL_ENV_HOST names %s, which is no program", named);
        }
        memcpy(out, named, strlen(named) + 1);
        return CORRAL_OK;
    }
    struct host_search search = {.out = out, .out_bytes = out_bytes};
    each_home(try_host, &search);
    if (!search.found) {
        return corral_fail(err, CORRAL_NOT_FOUND,
                           "cannot find corral-env-host, which process isolation runs plug-ins in: install "
                           "it in " CORRAL_INSTALL_LIBDIR "/corral, or name it in CORRAL_ENV_HOST");
    }
    return CORRAL_OK;
}

/* ---- walking the search path ---- */

struct walk {
    void (*fn)(void *ctx, const char *file);
    void *ctx;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_names(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(names[i]);
    }
    free((void *)names);
}

/* Sorted, so that which of two plug-ins with the same id wins does not depend on the file system. */
static void walk_folder(void *ctx, const char *path)
{
    const struct walk *walk = ctx;
    DIR *dir = opendir(path);
    if (dir == NULL) {
        struct stat st;
        if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
            walk->fn(walk->ctx, path);
        }
        return;
    }
    char **names = NULL;
    size_t count = 0;
    for (struct dirent *entry; count < SEARCH_FILES_MAX && (entry = readdir(dir)) != NULL;) {
        size_t n = strlen(entry->d_name);
        if (n < 4 || strcmp(entry->d_name + n - 3, ".so") != 0) {
            continue;
        }
        char **more = (char **)realloc((void *)names, (count + 1) * sizeof *names);
        if (more == NULL) {
            break;
        }
        names = more;
        if (asprintf(&names[count], "%s/%s", path, entry->d_name) < 0) {
            break;
        }
        count++;
    }
    closedir(dir);
    if (count > 0) {
        qsort((void *)names, count, sizeof *names, by_name);
    }
    for (size_t i = 0; i < count; i++) {
        walk->fn(walk->ctx, names[i]);
    }
    free_names(names, count);
}

static void walk_search_path(void (*fn)(void *ctx, const char *file), void *ctx)
{
    struct walk walk = {.fn = fn, .ctx = ctx};
    corral_env_search_path(walk_folder, &walk);
}

/* ---- listing ---- */

struct listing {
    corral_env_listed_fn fn;
    void *ctx;
};

static enum corral_status list_file(const char *library, const struct listing *l, struct corral_error *err)
{
    struct corral_env_listed item = {0};
    struct corral_error local = {0};
    CORRAL_CLEANUP(close_handle) void *handle = open_library(library, item.path, sizeof item.path, &local);
    if (handle == NULL) {
        return corral_fail(err, local.status, "%s", local.text);
    }
    struct corral_env_plugin plugin;
    CORRAL_TRY(read_plugin(handle, item.path, &plugin, err));
    for (uint32_t i = 0; i < plugin.count; i++) {
        struct corral_env_ops ops;
        CORRAL_TRY(read_ops(&plugin, i, item.path, &ops, err));
        snprintf(item.id, sizeof item.id, "%s", ops.id);
        snprintf(item.summary, sizeof item.summary, "%s", ops.summary ? ops.summary : "");
        l->fn(l->ctx, &item);
    }
    return CORRAL_OK;
}

static void list_found(void *ctx, const char *file)
{
    const struct listing *l = ctx;
    struct corral_error err = {0};
    if (list_file(file, l, &err) != CORRAL_OK) {
        struct corral_env_listed broken = {0};
        snprintf(broken.path, sizeof broken.path, "%s", file);
        snprintf(broken.summary, sizeof broken.summary, "%.*s", (int)sizeof broken.summary - 1, err.text);
        l->fn(l->ctx, &broken);
    }
}

enum corral_status corral_env_each(const char *library, corral_env_listed_fn fn, void *ctx,
                                   struct corral_error *err)
{
    struct listing l = {.fn = fn, .ctx = ctx};
    if (library != NULL) {
        return list_file(library, &l, err);
    }
    walk_search_path(list_found, &l);
    return CORRAL_OK;
}

/* ---- opening by id ---- */

struct lookup {
    const char *id;
    struct corral_env_def *found;
    uint32_t broken;
    char first_broken[200];
    char nearest[CORRAL_ENV_ID_BYTES];
    uint32_t nearest_distance;
    char looked_in[200];
};

static void note_id(void *ctx, const struct corral_env_listed *item)
{
    struct lookup *l = ctx;
    const char *candidate = item->id;
    if (candidate[0] != '\0' && corral_nearest(l->id, &candidate, 1) != NULL) {
        uint32_t distance = corral_edit_distance(l->id, candidate);
        if (l->nearest[0] == '\0' || distance < l->nearest_distance) {
            l->nearest_distance = distance;
            snprintf(l->nearest, sizeof l->nearest, "%s", candidate);
        }
    }
}

static void look_in_file(void *ctx, const char *file)
{
    struct lookup *l = ctx;
    if (l->found != NULL) {
        return;
    }
    struct corral_error err = {0};
    enum corral_status status = open_in(file, l->id, &l->found, &err);
    if (status == CORRAL_NOT_FOUND) {
        (void)corral_env_each(file, note_id, l, NULL);
    } else if (status != CORRAL_OK && l->broken++ == 0) {
        snprintf(l->first_broken, sizeof l->first_broken, "%.*s", (int)sizeof l->first_broken - 1, err.text);
    }
}

static void note_place(void *ctx, const char *path)
{
    struct lookup *l = ctx;
    size_t used = strlen(l->looked_in);
    snprintf(l->looked_in + used, sizeof l->looked_in - used, "%s%s", used ? ", " : "", path);
}

enum corral_status corral_env_open(struct corral_env_def **out, const char *id, const char *library,
                                   struct corral_error *err)
{
    if (library != NULL && library[0] != '\0') {
        return open_in(library, id, out, err);
    }
    if (id == NULL || id[0] == '\0') {
        return corral_fail(err, CORRAL_INVALID,
                           "no environment named: give an id such as CartPole-v1, or a plug-in file");
    }
    struct lookup l = {.id = id};
    walk_search_path(look_in_file, &l);
    if (l.found != NULL) {
        *out = l.found;
        return CORRAL_OK;
    }
    corral_env_search_path(note_place, &l);
    char hint[CORRAL_ENV_ID_BYTES + 32] = "", broken[240] = "";
    if (l.nearest[0] != '\0') {
        snprintf(hint, sizeof hint, "; did you mean %s?", l.nearest);
    }
    if (l.broken > 0) {
        snprintf(broken, sizeof broken, "; %u unusable: %s", l.broken, l.first_broken);
    }
    return corral_fail(err, CORRAL_NOT_FOUND, "there is no environment %s%s (looked in %s%s)", id, hint,
                       l.looked_in, broken);
}

void corral_env_close(struct corral_env_def *def)
{
    if (def != NULL) {
        dlclose(def->handle);
        free(def);
    }
}
