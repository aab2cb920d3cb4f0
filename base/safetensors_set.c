#include "base/safetensors_set.h"

#include "base/json.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define ONE_FILE "model.safetensors"
#define INDEX_FILE "model.safetensors.index.json"

struct corral_safetensors_set {
    struct corral_safetensors **file;
    char **name; /* of the files, without folder */
    uint32_t files, tensors;
    const struct corral_tensor **tensor; /* by name */
};

void corral_safetensors_set_close(struct corral_safetensors_set *set)
{
    if (set == NULL) {
        return;
    }
    for (uint32_t i = 0; i < set->files; i++) {
        corral_safetensors_close(set->file[i]);
        free(set->name[i]);
    }
    free(set->file);
    free(set->name);
    free(set->tensor);
    free(set);
}

static void cleanup_json(json_t **j)
{
    json_decref(*j);
}

static enum corral_status join(char out[PATH_MAX], const char *folder, size_t folder_bytes, const char *name,
                               struct corral_error *err)
{
    size_t length = strlen(name);
    bool slash = folder_bytes > 0 && folder[folder_bytes - 1] != '/';
    if (folder_bytes + slash + length + 1 > PATH_MAX) {
        return corral_fail(err, CORRAL_INVALID, "the path of %.64s is longer than %d bytes", name,
                           PATH_MAX - 1);
    }
    memcpy(out, folder, folder_bytes);
    if (slash) {
        out[folder_bytes++] = '/';
    }
    memcpy(out + folder_bytes, name, length + 1);
    return CORRAL_OK;
}

/* ---- files ---- */

static enum corral_status add_file(struct corral_safetensors_set *set, const char *name, const char *path,
                                   struct corral_error *err)
{
    if (set->files == CORRAL_SAFETENSORS_FILES_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: more than %u files", path,
                           CORRAL_SAFETENSORS_FILES_MAX);
    }
    if (set->file == NULL) {
        set->file = calloc(CORRAL_SAFETENSORS_FILES_MAX, sizeof(struct corral_safetensors *));
        set->name = calloc(CORRAL_SAFETENSORS_FILES_MAX, sizeof(char *));
    }
    CORRAL_AUTO_FREE char *copy = strdup(name);
    if (set->file == NULL || set->name == NULL || copy == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%s: out of memory", path);
    }
    CORRAL_TRY(corral_safetensors_open(&set->file[set->files], path, err));
    set->name[set->files++] = CORRAL_STEAL(copy);
    return CORRAL_OK;
}

static uint32_t find_file(const struct corral_safetensors_set *set, const char *name)
{
    uint32_t i = 0;
    while (i < set->files && strcmp(set->name[i], name) != 0) {
        i++;
    }
    return i;
}

/* A name that stays in the folder. */
static bool plain_name(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    static const char ending[] = ".safetensors";
    return length > strlen(ending) && strcmp(name + length - strlen(ending), ending) == 0 &&
           strchr(name, '/') == NULL && name[0] != '.';
}

/* Each file that the index names, once. Indices usually list a file's tensors together, so the last file is looked at first. */
static enum corral_status open_files(struct corral_safetensors_set *set, const char *index,
                                     size_t folder_bytes, json_t *map, struct corral_error *err)
{
    const char *tensor, *last = NULL;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!plain_name(name)) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "%s: tensor '%.64s' is not in a safetensors file beside it", index, tensor);
        }
        if ((last && strcmp(last, name) == 0) || find_file(set, name) < set->files) {
            last = name;
            continue;
        }
        char path[PATH_MAX];
        CORRAL_TRY(join(path, index, folder_bytes, name, err));
        CORRAL_TRY(add_file(set, name, path, err));
        last = name;
    }
    return CORRAL_OK;
}

/* ---- tensors ---- */

static int by_name(const void *a, const void *b)
{
    const struct corral_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* All tensors of all files. `map`, when there is one, has to agree. */
static enum corral_status collect(struct corral_safetensors_set *set, const char *path, const json_t *map,
                                  struct corral_error *err)
{
    size_t count = 0;
    for (uint32_t i = 0; i < set->files; i++) {
        count += corral_safetensors_count(set->file[i]);
    }
    set->tensor = calloc(count + 1, sizeof(const struct corral_tensor *));
    if (set->tensor == NULL || count > UINT32_MAX) {
        return corral_fail(err, CORRAL_NOMEM, "%s: no memory for %zu tensors", path, count);
    }
    for (uint32_t i = 0; i < set->files; i++) {
        for (uint32_t k = 0; k < corral_safetensors_count(set->file[i]); k++) {
            const struct corral_tensor *t = corral_safetensors_at(set->file[i], k);
            const char *said = json_string_value(json_object_get(map, t->name));
            if (map && (said == NULL || strcmp(said, set->name[i]) != 0)) {
                return corral_fail(err, CORRAL_PROTOCOL,
                                   "%s: %.64s has tensor '%s', which the index puts into %.64s", path,
                                   set->name[i], t->name, said ? said : "no file");
            }
            set->tensor[set->tensors++] = t;
        }
    }
    qsort(set->tensor, set->tensors, sizeof(const struct corral_tensor *), by_name);
    return CORRAL_OK;
}

static enum corral_status check_complete(const struct corral_safetensors_set *set, const char *index,
                                         json_t *map, struct corral_error *err)
{
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        if (corral_safetensors_set_find(set, tensor) == NULL) {
            return corral_fail(err, CORRAL_PROTOCOL, "%s: tensor '%.64s' is not in %.64s", index, tensor,
                               json_string_value(value));
        }
    }
    return CORRAL_OK;
}

static enum corral_status open_index(struct corral_safetensors_set *set, const char *index,
                                     struct corral_error *err)
{
    CORRAL_CLEANUP(cleanup_json) json_t *root = NULL;
    CORRAL_TRY(corral_json_read_file(&root, index, err));
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: there is no weight_map with tensors", index);
    }
    const char *slash = strrchr(index, '/');
    CORRAL_TRY(open_files(set, index, slash ? (size_t)(slash + 1 - index) : 0, map, err));
    CORRAL_TRY(collect(set, index, map, err));
    return check_complete(set, index, map, err);
}

static enum corral_status open_one(struct corral_safetensors_set *set, const char *path,
                                   struct corral_error *err)
{
    CORRAL_TRY(add_file(set, path, path, err));
    return collect(set, path, NULL, err);
}

static bool ends_with(const char *text, const char *ending)
{
    size_t a = strlen(text), b = strlen(ending);
    return a >= b && strcmp(text + a - b, ending) == 0;
}

static enum corral_status open_path(struct corral_safetensors_set *set, const char *path,
                                    struct corral_error *err)
{
    struct stat st;
    char inside[PATH_MAX];
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
        return ends_with(path, ".json") ? open_index(set, path, err) : open_one(set, path, err);
    }
    CORRAL_TRY(join(inside, path, strlen(path), INDEX_FILE, err));
    if (stat(inside, &st) == 0) {
        return open_index(set, inside, err);
    }
    CORRAL_TRY(join(inside, path, strlen(path), ONE_FILE, err));
    return open_one(set, inside, err);
}

enum corral_status corral_safetensors_set_open(struct corral_safetensors_set **out, const char *path,
                                               struct corral_error *err)
{
    CORRAL_CLEANUP(corral_safetensors_set_closep) struct corral_safetensors_set *set = calloc(1, sizeof *set);
    if (set == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%s: out of memory", path);
    }
    CORRAL_TRY(open_path(set, path, err));
    *out = CORRAL_STEAL(set);
    return CORRAL_OK;
}

uint32_t corral_safetensors_set_files(const struct corral_safetensors_set *set)
{
    return set->files;
}

uint32_t corral_safetensors_set_count(const struct corral_safetensors_set *set)
{
    return set->tensors;
}

const struct corral_tensor *corral_safetensors_set_at(const struct corral_safetensors_set *set, uint32_t i)
{
    return i < set->tensors ? set->tensor[i] : NULL;
}

const struct corral_tensor *corral_safetensors_set_find(const struct corral_safetensors_set *set,
                                                        const char *name)
{
    uint32_t low = 0, high = set->tensors;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(name, set->tensor[middle]->name);
        if (order == 0) {
            return set->tensor[middle];
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

uint64_t corral_safetensors_set_bytes(const struct corral_safetensors_set *set)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < set->tensors; i++) {
        sum += set->tensor[i]->bytes;
    }
    return sum;
}
