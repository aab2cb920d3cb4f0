/* Who may send how many bytes: the arithmetic of the credit window, without sockets or time. Private to trajectory/. One thread.
 *
 * Every worker has an account. In a session, offsets count from 0 what records count for: `offset` is what arrived, `limit` what may be sent.
 * `held` is what was handed out and is not finished, over all sessions of the worker. Always: sum of (limit - offset) + sum of held <= buffer.
 * With a share, an account's own (limit - offset) + held stays within it, so that no worker takes the room another one's next
 * record needs; only an account that holds nothing may be granted one record larger than that.
 * Rule (docs/spec/trajectory-stream.md): wants within the share are served whole, oldest first, and while one waits nobody is topped up and idle
 * credit is called back; otherwise each account is topped up to its share, or without shares to max(buffer / sessions, its largest
 * record), as long as there is room.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_CREDIT_H
#define CORRAL_TRANSPORT_TRAJECTORY_CREDIT_H

#include <stdbool.h>
#include <stdint.h>

struct corral_credit_account {
    bool live, reclaiming; /* has a session; its idle credit was asked back and it has not answered yet */
    uint64_t offset, limit, held;
    uint64_t
        firm; /* the limit of its last answer to a reclaim: all of that was sent, there is nothing idle to call back */
    uint64_t want, want_serial; /* wanted limit, 0 when it waits for nothing; first come, first served */
    bool waits;       /* and its share allows it: it waits for room, not for its own records to be finished */
    uint64_t largest; /* record seen of this worker */
    bool raised;      /* limit changed and the worker is to be told */
    bool reclaim_due; /* a reclaim is to be sent */
};

struct corral_credit {
    uint64_t buffer, used;      /* used: the sum above */
    uint64_t share;             /* 0: workers take from the buffer what there is */
    bool all_fit;               /* no record counts for more than a share: nobody is granted more */
    uint32_t sessions, waiting; /* waiting: accounts with `waits` */
    uint64_t serial;
    struct corral_credit_account *accounts;
    uint32_t *live; /* indices of the live accounts, `sessions` of them */
    uint32_t count;
};

bool corral_credit_init(struct corral_credit *c, uint64_t buffer, uint64_t share,
                        uint32_t accounts); /* false: out of memory */
void corral_credit_free(struct corral_credit *c);
void corral_credit_open(struct corral_credit *c, uint32_t i); /* a new session: offsets start again at 0 */
void corral_credit_close(struct corral_credit *c,
                         uint32_t i); /* what was granted and has not arrived is free again */
/* A record arrived: false when it exceeds the limit (nothing changes). */
bool corral_credit_take(struct corral_credit *c, uint32_t i, uint64_t bytes);
/* Held without having been granted: read from a log. May take `used` beyond the buffer; nothing is granted until it is below again. */
void corral_credit_hold(struct corral_credit *c, uint32_t i, uint64_t bytes);
void corral_credit_finish(struct corral_credit *c, uint32_t i, uint64_t bytes);
/* What one worker is topped up to, its largest record aside. */
uint64_t corral_credit_part(const struct corral_credit *c);
/* The worker has a record that ends at `limit`. False when it could never be let in. */
bool corral_credit_want(struct corral_credit *c, uint32_t i, uint64_t limit);
/* The answer to a reclaim: false when `limit` is not between what arrived and what was granted. */
bool corral_credit_returned(struct corral_credit *c, uint32_t i, uint64_t limit);
/* Serve wants and top up every account; sets `raised` and `reclaim_due`. */
void corral_credit_share(struct corral_credit *c);
/* The same for one account, cheap; does nothing while somebody waits. */
void corral_credit_top_up(struct corral_credit *c, uint32_t i);

#endif
