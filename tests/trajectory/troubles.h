/* The driver's hands: it starts, kills, stops, and knows how each process ended. */
#ifndef CORRAL_TESTS_TRAJECTORY_TROUBLES_H
#define CORRAL_TESTS_TRAJECTORY_TROUBLES_H

#include "base/rng.h"
#include "tests/trajectory/world.h"

enum trouble {
    KILL_PRODUCER,
    KILL_CONSUMER,
    KILL_COORDINATOR,
    KILL_SEVERAL,
    KILL_ALL,
    LOSE_CHECKPOINT, /* kill a consumer, which does not find its newest checkpoint again */
    STOP,            /* what follows do not kill */
    STOP_LONG,
    CUT,
    DISK_FULL,
    LOG_FULL,
    TROUBLES
};
extern const char *const trouble_name[TROUBLES];

struct place { /* a role's process */
    pid_t pid; /* 0: none */
    bool killed;
    uint64_t stopped_until_ns; /* 0: it runs */
};

struct theatre {
    struct world *w;
    struct corral_rng rng;
    struct place role[ROLES_MAX], coordinator, network;
    bool spare_first; /* producer 0 lives on, so that somebody sees all the others come and go */
    bool patient;     /* long stops are allowed */
    uint64_t count[TROUBLES], kills, coordinator_lives;
};

/* Starts what is ordered, notes who died, lets go on what was stopped long enough. False: there is a complaint. */
bool theatre_serve(struct theatre *t);
/* Serves meanwhile. */
bool theatre_nap(struct theatre *t, uint64_t us);
void theatre_begin(struct theatre *t);
/* One that kills, and one that does not. */
void theatre_kill_somebody(struct theatre *t);
void theatre_disturb_somebody(struct theatre *t);
/* Everybody goes on, and checkpoints are allowed again. */
void theatre_let_go(struct theatre *t);
void theatre_end(struct theatre *t);

#endif
