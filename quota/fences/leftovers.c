#include "quota/fences/internal.h"
#include <stdlib.h>
#include <string.h>

struct listing {
    struct corral_fence_leftover *out;
    uint32_t count, max;
};

static void list_one(void *ctx, const char *path, const struct cgroup_owner *owner)
{
    struct listing *l = ctx;
    if (!cgroup_owner_is_gone(owner)) {
        return;
    }
    if (l->count < l->max) {
        struct corral_fence_leftover *one = &l->out[l->count];
        memset(one, 0, sizeof *one);
        fence_text(one->path, sizeof one->path, "%s", path);
        fence_text(one->node, sizeof one->node, "%s", owner->node);
        one->run = owner->run;
        one->processes = cgroup_populated(path);
    }
    l->count++;
}

uint32_t corral_fence_leftovers(struct corral_fence_leftover *out, uint32_t max)
{
    struct cgroup_host host;
    struct listing l = {.out = out, .max = max};
    cgroup_find_here(&host);
    cgroup_each_tree(&host, list_one, &l);
    return l.count;
}

enum corral_status corral_fence_leftover_remove(const struct corral_fence_leftover *l,
                                                struct corral_error *err)
{
    struct cgroup_owner owner;
    const char *name = strrchr(l->path, '/');
    if (!name || !cgroup_parse_tree_name(name + 1, &owner)) {
        return corral_fail(err, CORRAL_INVALID, "%s is no group of a run", l->path);
    }
    if (!cgroup_owner_is_gone(&owner)) {
        return corral_fail(err, CORRAL_STATE, "%s: its agent, process %d, lives", l->path, (int)owner.pid);
    }
    int error = cgroup_remove_path(&cgroup_kernel_ops, l->path);
    return error == 0 ? CORRAL_OK : corral_fail_sys(err, error, "removing %s", l->path);
}

const char *corral_fence_cgroups_line(char *out, size_t out_bytes)
{
    struct cgroup_host host;
    char version[2][128] = {"", ""};
    cgroup_find_here(&host);
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        const struct cgroup_place *place = &host.place[c];
        if (place->found &&
            (!place->v2 || cgroup_offered(place->own, cgroup_controller_name((enum cgroup_controller)c)))) {
            char *list = version[place->v2];
            size_t used = strlen(list);
            fence_text(list + used, sizeof version[0] - used, " %s",
                       cgroup_controller_name((enum cgroup_controller)c));
        }
    }
    fence_text(out, out_bytes, "version 1:%s; version 2:%s", version[0][0] ? version[0] : " none",
               version[1][0] ? version[1] : " none");
    return out;
}
