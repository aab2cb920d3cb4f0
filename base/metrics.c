#include "base/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define FAMILIES_MAX 512
#define LABELS_BYTES_MAX 1024
/* Twice the series, a power of two: chains stay short and there is always a free place. */
#define INDEX_SIZE 16384u
_Static_assert(INDEX_SIZE >= 2 * CORRAL_METRIC_SERIES_MAX && (INDEX_SIZE & (INDEX_SIZE - 1)) == 0,
               "index size");

struct series {
    int family;
    uint32_t next; /* of the family, as an index + 1; 0 ends */
    uint64_t hash;
    char *labels; /* as printed, `{worker="rollout-0"}`, or "" */
    double value;
};

struct family {
    const char *name, *help;
    enum corral_metric_kind kind;
    uint32_t first, last; /* series, as an index + 1 */
};

struct corral_metrics {
    struct family family[FAMILIES_MAX];
    int families;
    struct series *series;
    uint32_t count, capacity;
    uint32_t index[INDEX_SIZE]; /* open addressing; series index + 1 */
    uint64_t dropped;
};

struct corral_metrics *corral_metrics_create(void)
{
    return calloc(1, sizeof(struct corral_metrics));
}

void corral_metrics_destroy(struct corral_metrics *m)
{
    if (m == NULL) {
        return;
    }
    for (uint32_t i = 0; i < m->count; i++) {
        free(m->series[i].labels);
    }
    free(m->series);
    free(m);
}

static bool name_valid(const char *name)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:";
    static const char all[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:0123456789";
    return name[0] != '\0' && strchr(first, name[0]) != NULL && name[strspn(name, all)] == '\0';
}

int corral_metrics_family(struct corral_metrics *m, const char *name, enum corral_metric_kind kind,
                          const char *help)
{
    for (int i = 0; i < m->families; i++) {
        if (strcmp(m->family[i].name, name) == 0) {
            return m->family[i].kind == kind ? i : -1;
        }
    }
    if (m->families == FAMILIES_MAX || !name_valid(name)) {
        return -1;
    }
    m->family[m->families] = (struct family){.name = name, .help = help, .kind = kind};
    return m->families++;
}

struct text {
    char bytes[LABELS_BYTES_MAX];
    size_t used;
    bool full;
};

static void put(struct text *t, char c)
{
    if (t->used + 1 >= sizeof t->bytes) {
        t->full = true;
        return;
    }
    t->bytes[t->used++] = c;
}

static void put_escaped(struct text *t, const char *value)
{
    for (; *value != '\0'; value++) {
        if (*value == '\n') {
            put(t, '\\');
            put(t, 'n');
            continue;
        }
        if (*value == '\\' || *value == '"') {
            put(t, '\\');
        }
        put(t, *value);
    }
}

/* False when the labels are longer than LABELS_BYTES_MAX or one is without a value. */
static bool render_labels(struct text *t, const char *const *labels)
{
    t->used = 0;
    t->full = false;
    for (size_t i = 0; labels != NULL && labels[i] != NULL; i += 2) {
        if (labels[i + 1] == NULL) {
            return false;
        }
        put(t, i == 0 ? '{' : ',');
        for (const char *c = labels[i]; *c != '\0'; c++) {
            put(t, *c);
        }
        put(t, '=');
        put(t, '"');
        put_escaped(t, labels[i + 1]);
        put(t, '"');
    }
    if (t->used > 0) {
        put(t, '}');
    }
    t->bytes[t->used] = '\0';
    return !t->full;
}

/* The place of the series in the index: its own, or the free one where it would go. */
static uint32_t *find_place(struct corral_metrics *m, int family, uint64_t hash, const char *labels)
{
    for (uint32_t i = (uint32_t)hash;; i++) {
        uint32_t *place = &m->index[i & (INDEX_SIZE - 1)];
        if (*place == 0) {
            return place;
        }
        const struct series *s = &m->series[*place - 1];
        if (s->hash == hash && s->family == family && strcmp(s->labels, labels) == 0) {
            return place;
        }
    }
}

static struct series *series_new(struct corral_metrics *m, int family, uint64_t hash,
                                 const struct text *labels, uint32_t *place)
{
    if (m->count == CORRAL_METRIC_SERIES_MAX) {
        return NULL;
    }
    if (m->count == m->capacity) {
        uint32_t capacity = m->capacity == 0 ? 64 : 2 * m->capacity;
        struct series *grown = realloc(m->series, capacity * sizeof *grown);
        if (grown == NULL) {
            return NULL;
        }
        m->series = grown;
        m->capacity = capacity;
    }
    char *copy = strdup(labels->bytes);
    if (copy == NULL) {
        return NULL;
    }
    struct family *f = &m->family[family];
    m->series[m->count] = (struct series){.family = family, .hash = hash, .labels = copy};
    *place = ++m->count;
    if (f->last == 0) {
        f->first = m->count;
    } else {
        m->series[f->last - 1].next = m->count;
    }
    f->last = m->count;
    return &m->series[m->count - 1];
}

static struct series *series_get(struct corral_metrics *m, int family, const char *const *labels)
{
    struct text text;
    if (family < 0 || family >= m->families || !render_labels(&text, labels)) {
        return NULL;
    }
    uint64_t hash = XXH3_64bits_withSeed(text.bytes, text.used, (uint64_t)family);
    uint32_t *place = find_place(m, family, hash, text.bytes);
    return *place != 0 ? &m->series[*place - 1] : series_new(m, family, hash, &text, place);
}

void corral_metrics_set(struct corral_metrics *m, int family, const char *const *labels, double value)
{
    struct series *s = series_get(m, family, labels);
    if (s == NULL) {
        m->dropped++;
        return;
    }
    s->value = value;
}

void corral_metrics_add(struct corral_metrics *m, int family, const char *const *labels, double delta)
{
    struct series *s = series_get(m, family, labels);
    if (s == NULL) {
        m->dropped++;
        return;
    }
    s->value += delta;
}

uint64_t corral_metrics_dropped(const struct corral_metrics *m)
{
    return m->dropped;
}

static void print_value(FILE *to, double value)
{
    if (isnan(value)) {
        fputs("NaN\n", to);
    } else if (isinf(value)) {
        fputs(value > 0 ? "+Inf\n" : "-Inf\n", to);
    } else if (value == floor(value) && fabs(value) < 9007199254740992.0) {
        fprintf(to, "%.0f\n", value);
    } else {
        char text[40];
        snprintf(text, sizeof text, "%.15g", value);
        if (strtod(text, NULL) != value) {
            snprintf(text, sizeof text, "%.17g", value);
        }
        fprintf(to, "%s\n", text);
    }
}

static void print_family(const struct corral_metrics *m, const struct family *f, FILE *to)
{
    fprintf(to, "# HELP %s ", f->name);
    for (const char *c = f->help; *c != '\0'; c++) {
        if (*c == '\n') {
            fputs("\\n", to);
        } else if (*c == '\\') {
            fputs("\\\\", to);
        } else {
            fputc(*c, to);
        }
    }
    fprintf(to, "\n# TYPE %s %s\n", f->name, f->kind == CORRAL_METRIC_COUNTER ? "counter" : "gauge");
    for (uint32_t i = f->first; i != 0; i = m->series[i - 1].next) {
        fprintf(to, "%s%s ", f->name, m->series[i - 1].labels);
        print_value(to, m->series[i - 1].value);
    }
}

enum corral_status corral_metrics_print(const struct corral_metrics *m, FILE *to, struct corral_error *err)
{
    for (int i = 0; i < m->families; i++) {
        if (m->family[i].first != 0) {
            print_family(m, &m->family[i], to);
        }
    }
    if (ferror(to)) {
        return corral_fail_sys(err, errno, "cannot print the metrics");
    }
    return CORRAL_OK;
}
