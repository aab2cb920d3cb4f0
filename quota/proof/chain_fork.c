/* A child that a trainer forks has a copy of the chain and of its descriptors. It must neither write the chain, nor end it when it cleans up, nor hold its lock when the trainer is gone. */
#include "quota/proof/internal.h"
#include <unistd.h>

static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* guards first, and the files of a chain against a fork */
static struct corral_chain *first;
static int cannot_watch; /* 0, or the error: forks are not told of */

static void close_files(struct corral_chain *c)
{
    int *const fds[] = {&c->watch_fd, &c->fd, &c->folder_fd};
    for (size_t i = 0; i < CORRAL_COUNT_OF(fds); i++) {
        if (*fds[i] >= 0) {
            (void)close(*fds[i]);
            *fds[i] = -1;
        }
    }
}

static void before_fork(void)
{
    pthread_mutex_lock(&mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&mutex);
}

static void in_child(void)
{
    for (struct corral_chain *c = first; c; c = c->next) {
        c->foreign = true;
        corral_chain_unmap(c);
        close_files(c);
    }
    first = NULL;
    pthread_mutex_unlock(&mutex);
}

static void watch_forks(void)
{
    cannot_watch = pthread_atfork(before_fork, after_fork, in_child);
}

enum corral_status corral_chain_open_files(struct corral_chain *c,
                                           enum corral_status (*open_them)(struct corral_chain *c,
                                                                           struct corral_error *err),
                                           struct corral_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    if (cannot_watch != 0) {
        return corral_fail_sys(err, cannot_watch, "opening %s", c->path);
    }
    pthread_mutex_lock(&mutex);
    c->next = first;
    first = c;
    enum corral_status status = open_them(c, err);
    pthread_mutex_unlock(&mutex);
    return status;
}

void corral_chain_close_files(struct corral_chain *c)
{
    pthread_mutex_lock(&mutex);
    close_files(c);
    for (struct corral_chain **at = &first; *at; at = &(*at)->next) {
        if (*at == c) {
            *at = c->next;
            break;
        }
    }
    pthread_mutex_unlock(&mutex);
}
