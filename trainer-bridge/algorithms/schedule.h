/* Schedules over the progress of a job, 0 to 1. Pure; any thread. */
#ifndef CORRAL_TRAINER_ALGORITHMS_SCHEDULE_H
#define CORRAL_TRAINER_ALGORITHMS_SCHEDULE_H

/* The straight line from `first` at 0 to `last` at 1; progress outside is held, not a number counts as 0. */
double corral_schedule_linear(double first, double last, double progress);

#endif
