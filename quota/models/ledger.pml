/* The ledger's protocol for two roles and three processes on one device: reserve, commit, release, borrow, step booking, crash.
 *
 * What the C code does under its lock is one atomic step here, as the redo record makes it (docs/spec/ledger.md); a crash may
 * come between any two steps of a process. Checked in every state: invariant 1, that an unused floor can always be taken, and
 * that a step gets what it booked. quota/explorer_test.c checks that the code's operations are the steps assumed here.
 *
 * -DSPLIT breaks the rule on purpose: check and charge are two steps. The checker must find that.
 */
#define PHYSICAL 7
#define HEADROOM 1
#define PROCESSES 3
#define ROLE(p) (p == 2)
#define MAX(a, b) (a > b -> a : b)

byte floor_of[2], ceiling_of[2];
byte used[2];              /* reserved + committed */
byte booked[2];            /* declared by open steps and not yet taken */
byte reserved[PROCESSES], committed[PROCESSES];
byte booking[PROCESSES];   /* the process's part of booked */
bool stepping[PROCESSES];
bool dead[PROCESSES];

#define BASE(r) (used[r] + booked[r])
#define CLAIM(r) (MAX(floor_of[r], BASE(r)))
#define OPEN (stepping[0] || stepping[1] || stepping[2])
#define ROOM(r, n) (BASE(r) + n <= ceiling_of[r] && BASE(r) + n + CLAIM(1 - r) + HEADROOM <= PHYSICAL)
#define MAY_GROW(r, n) (ROOM(r, n) && (!OPEN || BASE(r) + n <= floor_of[r]))

#define INVARIANT (CLAIM(0) + CLAIM(1) + HEADROOM <= PHYSICAL && used[0] <= ceiling_of[0] && used[1] <= ceiling_of[1])
/* The rest of a floor can be taken by whoever is in the role, whatever the others do; a role that has it all needs nothing. */
#define FLOOR_FREE(r) (BASE(r) >= floor_of[r] || MAY_GROW(r, floor_of[r] - BASE(r)))
#define SUMS (used[0] == reserved[0] + committed[0] + reserved[1] + committed[1] && used[1] == reserved[2] + committed[2] && booked[0] == booking[0] + booking[1] && booked[1] == booking[2])

inline check() {
    assert(INVARIANT);
    assert(FLOOR_FREE(0));
    assert(FLOOR_FREE(1));
    assert(SUMS)
}

/* n bytes for process p of role r: first out of its own booking, which is never refused. */
inline take(p, r, n) {
    atomic {
        if
        :: booking[p] >= n -> booking[p] = booking[p] - n; booked[r] = booked[r] - n;
           used[r] = used[r] + n; reserved[p] = reserved[p] + n
        :: booking[p] < n && MAY_GROW(r, n - booking[p]) ->
           booked[r] = booked[r] - booking[p]; booking[p] = 0;
           used[r] = used[r] + n; reserved[p] = reserved[p] + n
        :: booking[p] < n && !MAY_GROW(r, n - booking[p]) -> skip /* denied: nothing changes */
        fi;
        check()
    }
}

/* The broken one: looked, then charged. */
inline take_split(p, r, n) {
    bool fits;
    atomic { fits = (booking[p] == 0 && MAY_GROW(r, n)) }
    atomic {
        if
        :: fits -> used[r] = used[r] + n; reserved[p] = reserved[p] + n
        :: else -> skip
        fi;
        fits = 0;
        check()
    }
}

inline leave(p, r) {
    used[r] = used[r] - reserved[p] - committed[p];
    booked[r] = booked[r] - booking[p];
    reserved[p] = 0; committed[p] = 0; booking[p] = 0; stepping[p] = 0;
    check()
}

inline open_step(p, r, n) {
    atomic {
        if
        :: ROOM(r, n) -> booking[p] = n; booked[r] = booked[r] + n; stepping[p] = 1
        :: else -> skip /* the step is refused */
        fi;
        check()
    }
}

inline close_step(p, r) {
    atomic {
        booked[r] = booked[r] - booking[p]; booking[p] = 0; stepping[p] = 0;
        check()
    }
}

proctype worker(byte me) {
    do
#ifdef SPLIT
    :: !dead[me] -> take_split(me, ROLE(me), 1)
    :: !dead[me] -> take_split(me, ROLE(me), 2)
#else
    :: !dead[me] -> take(me, ROLE(me), 1)
    :: !dead[me] -> take(me, ROLE(me), 2)
#endif
    :: atomic { !dead[me] && reserved[me] > 0 -> committed[me] = committed[me] + reserved[me]; reserved[me] = 0; check() }
    :: atomic { !dead[me] && reserved[me] > 0 -> reserved[me] = reserved[me] - 1; used[ROLE(me)] = used[ROLE(me)] - 1; check() }
    :: atomic { !dead[me] && committed[me] > 0 -> committed[me] = committed[me] - 1; used[ROLE(me)] = used[ROLE(me)] - 1; check() }
    :: !dead[me] && !stepping[me] -> open_step(me, ROLE(me), 2)
    :: !dead[me] && stepping[me] -> close_step(me, ROLE(me))
    :: atomic { !dead[me] -> dead[me] = 1 } /* killed: its charges stay */
    :: atomic { dead[me] -> leave(me, ROLE(me)); dead[me] = 0 } /* reaped by somebody; another takes its place */
    od
}

init {
    atomic {
        floor_of[0] = 2; ceiling_of[0] = 4;
        floor_of[1] = 2; ceiling_of[1] = 3;
        run worker(0); run worker(1); run worker(2)
    }
}
