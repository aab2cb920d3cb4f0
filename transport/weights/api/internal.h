/* What the files of the public API share. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_API_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_API_INTERNAL_H

#include "transport/weights/api/card.h"
#include "transport/weights/push/push.h"
#include <corral/weights.h>

struct corral_weights_layout {
    struct corral_layout *l;
};

#define CORRAL_API_LANES "shm,tcp" /* when nothing else is asked for */

/* A caller compiled with another release has a shorter or longer struct: what it lacks is zero. CORRAL_INVALID: *size cannot be. */
enum corral_status corral_api_take(void *to, uint32_t room, const void *from, const char *what,
                                   struct corral_error *err);
/* And the other way: as much as the caller has room for. `from` begins with its own size, which is not copied. */
enum corral_status corral_api_give(void *to, const void *from, uint32_t bytes, const char *what,
                                   struct corral_error *err);
/* In libcorral what is below logs nothing, unless CORRAL_WEIGHTS_LOG names a level ("warn"): a library does not print. In Corral's own programs it logs as they do. */
void corral_api_quiet(void);
/* NULL stays NULL. */
enum corral_status corral_api_copy_text(char **to, const char *text, struct corral_error *err);
/* Members that are zero, and all of NULL, from the environment. */
enum corral_status corral_api_identity(const struct corral_weights_identity *given,
                                       struct corral_push_identity *out, struct corral_error *err);
enum corral_status corral_api_copy_layout(const struct corral_layout *l, struct corral_layout **out,
                                          struct corral_error *err);
/* Into the caller's room, as <corral/weights.h> says of *bytes. */
enum corral_status corral_api_give_card(const struct corral_card *card, const uint8_t secret[32], void *out,
                                        uint64_t *bytes, struct corral_error *err);

#endif
