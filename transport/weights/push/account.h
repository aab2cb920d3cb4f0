/* What a sender or a receiver holds of memory beside the weights themselves: one sum, for which its budget (push.h) is asked. Lanes tell what they took only when they have it, so they are asked for right afterwards,
 * before a byte moves through it, and closed when it is refused. Internal to push/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_ACCOUNT_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_ACCOUNT_H

#include "transport/weights/push/push.h"
#include <pthread.h>
#include <stdatomic.h>

struct push_account {
    struct corral_push_budget budget;
    pthread_mutex_t lock;   /* guards the order in which the budget hears of sums */
    _Atomic uint64_t total; /* relaxed: read by itself */
};

void push_account_make(struct push_account *a, const struct corral_push_budget *budget);
/* Everything must have been given back. */
void push_account_end(struct push_account *a);
/* One part of the sum, *held, becomes `bytes`. A refusal leaves it as it was. Any thread, each with parts of its own. */
enum corral_status push_account_hold(struct push_account *a, uint64_t *held, uint64_t bytes, const char *what,
                                     struct corral_error *err);
/* The part becomes 0. */
void push_account_drop(struct push_account *a, uint64_t *held);
uint64_t push_account_total(struct push_account *a);

#endif
