/* A registry of counters and gauges with labels, printed in Prometheus text format 0.0.4. One owner thread (the
 * coordinator's loop); no locks. Names and help are literals; label values are copied.
 */
#ifndef CORRAL_BASE_METRICS_H
#define CORRAL_BASE_METRICS_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CORRAL_METRIC_SERIES_MAX 8192

enum corral_metric_kind { CORRAL_METRIC_COUNTER, CORRAL_METRIC_GAUGE };

struct corral_metrics;
struct corral_metrics *corral_metrics_create(void);
void corral_metrics_destroy(struct corral_metrics *m);
/* Declares a family once; the same name again returns the same id. Returns a negative number when out of memory or the kind differs. */
int corral_metrics_family(struct corral_metrics *m, const char *name, enum corral_metric_kind kind,
                          const char *help);
/* Set (gauge, or a counter read from elsewhere that only grows) one series. `labels` is "worker", "rollout-0", NULL-terminated pairs
 * and may be NULL. Beyond CORRAL_METRIC_SERIES_MAX series the value is dropped and corral_metrics_dropped() counts it. */
void corral_metrics_set(struct corral_metrics *m, int family, const char *const *labels, double value);
void corral_metrics_add(struct corral_metrics *m, int family, const char *const *labels, double delta);
uint64_t corral_metrics_dropped(const struct corral_metrics *m);
enum corral_status corral_metrics_print(const struct corral_metrics *m, FILE *to, struct corral_error *err);

#endif
