/* A checkpoint of one or several safetensors files, as Hugging Face lays them out: a folder with `model.safetensors`, or with `model.safetensors.index.json`, whose "weight_map" says which file each tensor is in.
 * The index and the files have to say the same: a tensor that is missing, in another file than the index says, or in two files is CORRAL_PROTOCOL. File names lead nowhere but into the folder. One thread may open;
 * any may read. */
#ifndef CORRAL_BASE_SAFETENSORS_SET_H
#define CORRAL_BASE_SAFETENSORS_SET_H

#include "base/safetensors.h"

#define CORRAL_SAFETENSORS_FILES_MAX 1024u

struct corral_safetensors_set; /* mapped files; tensors borrow from it */
/* `path`: the folder, the index, or one file. */
enum corral_status corral_safetensors_set_open(struct corral_safetensors_set **out, const char *path,
                                               struct corral_error *err);
void corral_safetensors_set_close(struct corral_safetensors_set *set);
CORRAL_DEFINE_CLEANUP(struct corral_safetensors_set, corral_safetensors_set_close)

uint32_t corral_safetensors_set_files(const struct corral_safetensors_set *set);
uint32_t corral_safetensors_set_count(const struct corral_safetensors_set *set);
/* In the order of their names; NULL beyond the end. */
const struct corral_tensor *corral_safetensors_set_at(const struct corral_safetensors_set *set, uint32_t i);
const struct corral_tensor *corral_safetensors_set_find(const struct corral_safetensors_set *set,
                                                        const char *name);       /* NULL if absent */
uint64_t corral_safetensors_set_bytes(const struct corral_safetensors_set *set); /* of all tensors */

#endif
