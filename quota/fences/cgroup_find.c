/* Finding cgroup controllers. Either may be a version 1 hierarchy of its own or part of the version 2 one; both are common at the same time. */
#include "base/file.h"
#include "quota/fences/internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROC_FILE_BYTES_MAX ((size_t)1 << 20)

void fence_text(char *out, size_t out_bytes, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(out, out_bytes, fmt, args);
    va_end(args);
}

const char *cgroup_controller_name(enum cgroup_controller c)
{
    static const char *const names[CGROUP_CONTROLLERS] = {"memory", "cpuset", "cpu", "dmem"};
    return names[c];
}

/* Is `word` an element of a list separated by `separator`? */
static bool listed(const char *list, char separator, const char *word)
{
    size_t bytes = strlen(word);
    for (const char *at = list; at && *at;) {
        const char *end = strchrnul(at, separator);
        if ((size_t)(end - at) == bytes && memcmp(at, word, bytes) == 0) {
            return true;
        }
        at = *end ? end + 1 : NULL;
    }
    return false;
}

/* mountinfo writes space, tab, newline and backslash as \ooo. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' &&
            from[3] >= '0' && from[3] <= '7') {
            *to = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

struct mount_line {
    char *root, *point, *type, *options;
};

/* "31 23 0:28 ROOT POINT OPTIONS [optional]… - TYPE SOURCE SUPER_OPTIONS" */
static bool parse_mount(char *line, struct mount_line *out)
{
    char *save = NULL, *word = strtok_r(line, " ", &save);
    *out = (struct mount_line){0};
    bool after = false;
    for (unsigned field = 0, tail = 0; word; word = strtok_r(NULL, " ", &save), field++) {
        if (after) {
            out->type = tail == 0 ? word : out->type;
            out->options = tail == 2 ? word : out->options;
            tail++;
        } else if (field == 3) {
            out->root = word;
        } else if (field == 4) {
            out->point = word;
        } else if (field > 5 && strcmp(word, "-") == 0) {
            after = true;
        }
    }
    if (!out->root || !out->point || !out->type || !out->options) {
        return false;
    }
    unescape(out->root);
    unescape(out->point);
    return true;
}

/* The path of this process's group in the hierarchy of `controller` (NULL: version 2), from lines "ID:CONTROLLERS:PATH". */
static bool membership_path(const char *membership, const char *controller, char *out, size_t out_bytes)
{
    for (const char *line = membership; *line;) {
        const char *end = strchrnul(line, '\n');
        const char *first = memchr(line, ':', (size_t)(end - line));
        const char *second = first ? memchr(first + 1, ':', (size_t)(end - first - 1)) : NULL;
        if (second) {
            char list[256];
            fence_text(list, sizeof list, "%.*s", (int)(second - first - 1), first + 1);
            if (controller ? listed(list, ',', controller) : list[0] == '\0') {
                fence_text(out, out_bytes, "%.*s", (int)(end - second - 1), second + 1);
                return (size_t)(end - second - 1) < out_bytes;
            }
        }
        line = *end ? end + 1 : end;
    }
    return false;
}

/* Where `path` of the hierarchy is below a mount that shows it from `root` on. */
static bool resolve(const struct mount_line *m, const char *path, struct cgroup_place *out)
{
    size_t root_bytes = strcmp(m->root, "/") == 0 ? 0 : strlen(m->root);
    bool inside =
        strncmp(path, m->root, root_bytes) == 0 && (path[root_bytes] == '/' || path[root_bytes] == '\0');
    if (!inside || strncmp(path, "/..", 3) == 0) {
        fence_text(out->why, sizeof out->why,
                   "this process's group %.60s is outside of what is mounted at %.60s (a container)", path,
                   m->point);
        return false;
    }
    const char *rest = path + root_bytes;
    if (strcmp(rest, "/") == 0) {
        rest = "";
    }
    if (strlen(m->point) + strlen(rest) >= sizeof out->own) {
        fence_text(out->why, sizeof out->why, "the path of this process's group is too long");
        return false;
    }
    fence_text(out->mount, sizeof out->mount, "%s", m->point);
    fence_text(out->own, sizeof out->own, "%s%s", m->point, rest);
    out->found = true;
    out->why[0] = '\0';
    return true;
}

static void take_mount(const struct mount_line *m, const char *membership, struct cgroup_host *out)
{
    bool v1 = strcmp(m->type, "cgroup") == 0, v2 = strcmp(m->type, "cgroup2") == 0;
    for (unsigned c = 0; (v1 || v2) && c < CGROUP_CONTROLLERS; c++) {
        struct cgroup_place *place = &out->place[c];
        const char *name = cgroup_controller_name(c);
        char path[FENCE_PATH_BYTES];
        /* A controller that is in a version 1 hierarchy is not in the version 2 one. */
        bool here =
            v1 ? listed(m->options, ',', name) : !membership_path(membership, name, path, sizeof path);
        if (!here || place->found) {
            continue;
        }
        if (!membership_path(membership, v1 ? name : NULL, path, sizeof path)) {
            fence_text(place->why, sizeof place->why, "/proc/self/cgroup does not name this process's group");
            continue;
        }
        place->v2 = v2;
        (void)resolve(m, path, place);
    }
}

void cgroup_find(const char *mountinfo, const char *membership, struct cgroup_host *out)
{
    memset(out, 0, sizeof *out);
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        fence_text(out->place[c].why, sizeof out->place[c].why, "no cgroup hierarchy with %s is mounted here",
                   cgroup_controller_name(c));
    }
    CORRAL_AUTO_FREE char *text = strdup(mountinfo);
    char *save = NULL;
    for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
        struct mount_line m;
        if (parse_mount(line, &m)) {
            take_mount(&m, membership, out);
        }
    }
}

void cgroup_find_here(struct cgroup_host *out)
{
    CORRAL_AUTO_FREE char *mounts = NULL;
    CORRAL_AUTO_FREE char *membership = NULL;
    size_t bytes;
    bool read =
        corral_file_read("/proc/self/mountinfo", PROC_FILE_BYTES_MAX, &mounts, &bytes, NULL) == CORRAL_OK &&
        corral_file_read("/proc/self/cgroup", PROC_FILE_BYTES_MAX, &membership, &bytes, NULL) == CORRAL_OK;
    cgroup_find(read ? mounts : "", read ? membership : "", out);
}
