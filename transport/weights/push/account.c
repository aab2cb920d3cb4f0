#include "transport/weights/push/account.h"

void push_account_make(struct push_account *a, const struct corral_push_budget *budget)
{
    a->budget = *budget;
    pthread_mutex_init(&a->lock, NULL);
    atomic_init(&a->total, 0);
}

void push_account_end(struct push_account *a)
{
    pthread_mutex_destroy(&a->lock);
}

enum corral_status push_account_hold(struct push_account *a, uint64_t *held, uint64_t bytes, const char *what,
                                     struct corral_error *err)
{
    enum corral_status status = CORRAL_OK;
    if (*held == bytes) {
        return CORRAL_OK;
    }
    pthread_mutex_lock(&a->lock);
    uint64_t total = atomic_load_explicit(&a->total, memory_order_relaxed) - *held + bytes;
    if (a->budget.hold != NULL) {
        struct corral_error less; /* giving back is not refused */
        status = a->budget.hold(a->budget.ctx, total, what, bytes < *held ? &less : err);
        status = bytes < *held ? CORRAL_OK : status;
    }
    if (status == CORRAL_OK) {
        atomic_store_explicit(&a->total, total, memory_order_relaxed);
        *held = bytes;
    }
    pthread_mutex_unlock(&a->lock);
    return status;
}

void push_account_drop(struct push_account *a, uint64_t *held)
{
    (void)push_account_hold(a, held, 0, "", NULL);
}

uint64_t push_account_total(struct push_account *a)
{
    return atomic_load_explicit(&a->total, memory_order_relaxed);
}
