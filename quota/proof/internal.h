/* Shared by the files of this folder: a chain being read, a chain being written, and the two ways of writing one. */
#ifndef CORRAL_QUOTA_PROOF_INTERNAL_H
#define CORRAL_QUOTA_PROOF_INTERNAL_H

#include "quota/proof/chain.h"
#include "quota/proof/record.h"
#include <pthread.h>
#include <stdatomic.h>

#define HEX 64 /* digits of a hash */
#define PATH_BYTES 1024
#define WINDOW_BYTES ((uint64_t)4 << 20) /* mapped at a time; reaches beyond the file's end */

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

/* Whether records of the type say what was in force. */
static inline bool corral_proof_has_limits(enum corral_proof_type type)
{
    return type != CORRAL_PROOF_RECOVERED && type != CORRAL_PROOF_END;
}

/* What the syncing thread has to do. The writer sets SYNC_WANTED; the rest is the thread's. */
enum sync_state { SYNC_ASLEEP, SYNC_AWAKE, SYNC_WANTED };

struct corral_chain {
    struct corral_chain *next; /* of those that this process has open */
    char path[PATH_BYTES];
    int fd;
    _Atomic uint64_t size; /* bytes of whole records; written by the writer's thread alone */
    uint64_t room_to;      /* up to where the disk has given room */
    bool broken;           /* half a line could not be taken back: the next open does it */
    bool mapped;           /* room is a promise here: records go through the window */
    bool no_reserve;       /* the file system cannot */
    bool foreign;          /* this is a child of the process that opened it */
    bool has_name;         /* the file system tells reliably what the file's name in its folder means */
    int folder_fd;
    const char *name; /* in there */
    int watch_fd; /* told by the kernel of whatever is done to the file otherwise than through a mapping; -1: not */
    atomic_bool look; /* something was done to it */
    char *window;     /* of the file, from window_at; NULL: none */
    uint64_t window_at;
    struct corral_chain_head head;
    char *
        found; /* when it was opened: body of the last record that says where the trainer is, "" when there is none */
    const char *last;                 /* that body now: the one found, or in the line */
    size_t number_bytes;              /* of the next record's start, up to where its body goes on */
    char line[CORRAL_CHAIN_LINE_MAX]; /* 64 digits, space, body, newline */
    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex; /* guards stop, and the window against the thread's warming of it */
    pthread_cond_t cond;
    bool stop;
    _Atomic enum sync_state state;
    pthread_mutex_t
        sync_mutex; /* one fdatasync at a time: the kernel tells of a failure once, to whoever asks first */
    atomic_int sync_error; /* the first failure; stays */
};

/* ---- chain_sync.c ---- */
/* 0, or the error of the first sync that has failed. */
int corral_chain_sync_now(struct corral_chain *c);
enum corral_status corral_chain_start_thread(struct corral_chain *c, struct corral_error *err);
void corral_chain_mark_dirty(struct corral_chain *c); /* a record has come */
void corral_chain_unmap(struct corral_chain *c);
int corral_chain_cut(struct corral_chain *c); /* room that is not used, and half a record */
bool corral_chain_keeps_room(int fd);
bool corral_chain_fits_window(const struct corral_chain *c, uint64_t bytes);

/* ---- chain_watch.c ---- */
void corral_chain_watch(struct corral_chain *c);
/* Whether a record that is written now is in the file that has the chain's name, behind all others. */
enum corral_status corral_chain_check_file(struct corral_chain *c, struct corral_error *err);

/* ---- chain_fork.c ---- */
/* Between these two a fork closes them in the child. */
enum corral_status corral_chain_open_files(struct corral_chain *c,
                                           enum corral_status (*open_them)(struct corral_chain *c,
                                                                           struct corral_error *err),
                                           struct corral_error *err);
void corral_chain_close_files(struct corral_chain *c);
static inline enum corral_status corral_chain_check_process(const struct corral_chain *c,
                                                            struct corral_error *err)
{
    return c->foreign ? corral_fail(err, CORRAL_STATE,
                                    "%s belongs to the process that opened it, not to its child", c->path)
                      : CORRAL_OK;
}

/* How an operating system's fdatasync() is called: tests put a failing disk here. */
extern int (*corral_chain_fdatasync)(int fd);
/* corral_chain_open() without a mapping, as on a file system where room that was taken may still be missing when it is written. */
enum corral_status corral_chain_open_unmapped(const char *path, struct corral_chain **out,
                                              struct corral_error *err);

#endif
