/* Shared by the files of this folder: a chain being read, and the two ways of writing one. */
#ifndef CORRAL_QUOTA_PROOF_INTERNAL_H
#define CORRAL_QUOTA_PROOF_INTERNAL_H

#include "quota/proof/chain.h"

#define HEX 64 /* digits of a hash */

struct chain_reader {
    const char *path;
    corral_chain_record_fn fn;
    void *ctx;
    struct corral_chain_head head;
    uint64_t bytes; /* of whole records */
    char scratch[CORRAL_CHAIN_LINE_MAX];
};

void corral_chain_first_hash(char hash[CORRAL_CHAIN_HASH_HEX]);
/* From the descriptor's position to the end of the file. */
enum corral_status corral_chain_read_all(int fd, struct chain_reader *r, uint64_t *torn,
                                         struct corral_error *err);

/* How an operating system's fdatasync() is called: tests put a failing disk here. */
extern int (*corral_chain_fdatasync)(int fd);
/* corral_chain_open() without a mapping, as on a file system where room that was taken may still be missing when it is written. */
enum corral_status corral_chain_open_unmapped(const char *path, struct corral_chain **out,
                                              struct corral_error *err);

#endif
