/* rlctl audit: check the proof chains of a run, or one chain file, against what was noted of them elsewhere. Reads files only: a copied run folder will do. */
#include "base/json.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include "quota/proof/verify.h"
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define RANKS_MAX 4096

static void help(void)
{
    printf(
        "Usage: rlctl audit [RUN|CHAIN] [--dir DIR] [--allow-unproven] [--json]\n\n"
        "Checks the proof that each gradient step left: the chain's hashes, the memory invariant from every "
        "record's\nown numbers, steps without gap or repeat, and the chain's end against what journal and "
        "metrics "
        "noted.\n"
        "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest. CHAIN "
        "is a "
        "chain\nfile; without its run, nothing can tell whether its end is missing.\n\n"
        "      --dir DIR          where runs are (default: runs)\n"
        "      --allow-unproven   steps unproven, or refused and not taken since, are told, but no failure\n"
        "  -j, --json             one object\n"
        "  -h, --help             this text\n\n"
        "Exit code: 0 every step that was taken is proven, 1 a record is broken or missing, or a step "
        "unproven,\nor refused and not taken since, 2 usage or no such run.\n\n"
        "Examples:\n"
        "  rlctl audit\n"
        "  rlctl audit 7f3a --json | jq '.ranks[].steps'\n"
        "  rlctl audit /mnt/archive/cartpole-7f3a12bc\n");
}

struct rank {
    uint32_t rank;
    char path[CORRAL_RUN_PATH_MAX + 64]; /* of its chain */
    struct corral_proof_witness *witness;
    size_t witnesses, witnesses_max;
    struct corral_proof_summary s;
    bool missing; /* it was reported, and there is no file */
};

struct audit {
    char path[CORRAL_RUN_PATH_MAX]; /* run folder, or a chain file */
    bool folder, running, allow_unproven;
    uint64_t run; /* of the journal */
    struct rank *rank;
    size_t ranks;
    char problem[800];                     /* the first thing that is wrong */
    uint64_t unproven, refused, not_taken; /* not_taken: refused, and not taken since */
};

static void audit_free(struct audit *a)
{
    for (size_t i = 0; i < a->ranks; i++) {
        free(a->rank[i].witness);
    }
    free(a->rank);
}

static enum corral_status rank_of(struct audit *a, uint64_t number, struct rank **out,
                                  struct corral_error *err)
{
    for (size_t i = 0; i < a->ranks; i++) {
        if (a->rank[i].rank == number) {
            *out = &a->rank[i];
            return CORRAL_OK;
        }
    }
    if (a->ranks >= RANKS_MAX || number >= RANKS_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: more than %d ranks", a->path, RANKS_MAX);
    }
    struct rank *more = realloc(a->rank, (a->ranks + 1) * sizeof *more);
    if (!more) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", a->path);
    }
    a->rank = more;
    *out = memset(&more[a->ranks++], 0, sizeof *more);
    (*out)->rank = (uint32_t)number;
    (void)snprintf((*out)->path, sizeof(*out)->path, "%s/proof/trainer-%u.chain", a->path, (unsigned)number);
    return CORRAL_OK;
}

static enum corral_status add_witness(struct audit *a, uint64_t number, uint64_t count, uint64_t step,
                                      const char *hash, bool durable, struct corral_error *err)
{
    struct rank *r = NULL;
    CORRAL_TRY(rank_of(a, number, &r, err));
    if (r->witnesses == r->witnesses_max) {
        size_t want = r->witnesses_max ? 2 * r->witnesses_max : 256;
        struct corral_proof_witness *more = realloc(r->witness, want * sizeof *more);
        if (!more) {
            return corral_fail(err, CORRAL_NOMEM, "reading %s", a->path);
        }
        r->witness = more;
        r->witnesses_max = want;
    }
    struct corral_proof_witness *w = &r->witness[r->witnesses++];
    *w = (struct corral_proof_witness){.count = count, .step = step, .durable = durable};
    (void)snprintf(w->hash, sizeof w->hash, "%s", hash);
    return CORRAL_OK;
}

/* ---- what was noted ---- */

static enum corral_status on_head(void *ctx, const struct corral_journal_proof_head *h,
                                  struct corral_error *err)
{
    return add_witness(ctx, h->rank, h->count, h->step, h->hash, true, err);
}

static enum corral_status read_journal(struct audit *a, struct corral_error *err)
{
    char path[CORRAL_RUN_PATH_MAX + 32];
    struct corral_journal *journal = NULL;
    (void)snprintf(path, sizeof path, "%s/journal.db", a->path);
    CORRAL_TRY(corral_journal_open_readonly(path, &journal, err));
    struct corral_journal_run run;
    enum corral_status status = corral_journal_read_run(journal, &run, err);
    if (status == CORRAL_OK) {
        a->run = run.run;
        status = corral_journal_each_proof_head(journal, on_head, a, err);
    }
    corral_journal_close(journal);
    return status;
}

static enum corral_status read_metrics_line(struct audit *a, const char *line, size_t bytes,
                                            struct corral_error *err)
{
    json_t *object = NULL, *head;
    size_t i;
    if (!strstr(line, "\"proof\"") ||
        corral_json_parse(&object, "metrics.jsonl", line, bytes, NULL) != CORRAL_OK) {
        return CORRAL_OK; /* a crash may cut a line */
    }
    enum corral_status status = CORRAL_OK;
    json_array_foreach(json_object_get(object, "proof"), i, head)
    {
        uint64_t count = corral_view_count(head, "count");
        if (status == CORRAL_OK && count > 0) {
            status = add_witness(a, corral_view_count(head, "rank"), count, corral_view_count(head, "step"),
                                 corral_view_text(head, "hash"), false, err);
        }
    }
    json_decref(object);
    return status;
}

static enum corral_status read_metrics(struct audit *a, struct corral_error *err)
{
    char path[CORRAL_RUN_PATH_MAX + 32];
    (void)snprintf(path, sizeof path, "%s/metrics.jsonl", a->path);
    FILE *f = fopen(path, "re");
    if (!f) {
        return errno == ENOENT ? CORRAL_OK : corral_fail_sys(err, errno, "opening %s", path);
    }
    enum corral_status status = CORRAL_OK;
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    while (status == CORRAL_OK && (bytes = getline(&line, &room, f)) > 0) {
        status = read_metrics_line(a, line, (size_t)bytes, err);
    }
    free(line);
    (void)fclose(f);
    return status;
}

static enum corral_status find_chains(struct audit *a, struct corral_error *err)
{
    char path[CORRAL_RUN_PATH_MAX + 32];
    (void)snprintf(path, sizeof path, "%s/proof", a->path);
    DIR *d = opendir(path);
    enum corral_status status = CORRAL_OK;
    for (struct dirent *e = d ? readdir(d) : NULL; e && status == CORRAL_OK; e = readdir(d)) {
        unsigned number;
        char name[64];
        struct rank *ignored;
        if (sscanf(e->d_name, "trainer-%u.", &number) == 1 &&
            snprintf(name, sizeof name, "trainer-%u.chain", number) > 0 && strcmp(name, e->d_name) == 0) {
            status = rank_of(a, number, &ignored, err);
        }
    }
    if (d) {
        closedir(d);
    }
    return status;
}

/* ---- judging ---- */

static void problem(struct audit *a, const struct rank *r, uint64_t record, const char *what)
{
    if (a->problem[0]) {
        return;
    }
    if (record) {
        (void)snprintf(a->problem, sizeof a->problem, "%.300s: record %" PRIu64 ": %.400s", r->path, record,
                       what);
    } else {
        (void)snprintf(a->problem, sizeof a->problem, "%.300s: %.400s", r->path, what);
    }
}

static void judge(struct audit *a, struct rank *r)
{
    struct corral_proof_summary *s = &r->s;
    char what[160];
    if (!s->broken[0] && !a->folder && s->torn_bytes > 0) {
        s->broken_record = s->head.count + 1;
        (void)snprintf(s->broken, sizeof s->broken, "it is torn: %" PRIu64 " bytes without an end",
                       s->torn_bytes);
    }
    if (s->broken[0]) {
        problem(a, r, s->broken_record, s->broken);
    } else if (a->folder && s->first_step > 1) {
        (void)snprintf(what, sizeof what,
                       "it begins with step %" PRIu64 ": the steps before it have no record", s->first_step);
        (void)snprintf(s->broken, sizeof s->broken, "%s", what);
        problem(a, r, 0, what);
    } else if (a->folder && s->own_role[0] && (s->rank != r->rank || s->run != a->run)) {
        (void)snprintf(s->broken, sizeof s->broken, "it is of rank %u of run %016" PRIx64, s->rank, s->run);
        problem(a, r, 0, s->broken);
    }
    a->unproven += s->unproven;
    a->refused += s->refused;
    a->not_taken += s->refused_last;
}

static enum corral_status verify_ranks(struct audit *a, struct corral_error *err)
{
    for (size_t i = 0; i < a->ranks; i++) {
        struct rank *r = &a->rank[i];
        enum corral_status status = corral_proof_verify(r->path, r->witness, r->witnesses, &r->s, err);
        r->missing = status == CORRAL_NOT_FOUND;
        if (r->missing) {
            problem(a, r, 0, "there is no such file, but steps of this rank were reported");
            continue;
        }
        CORRAL_TRY(status);
        judge(a, r);
    }
    if (a->ranks == 0) {
        (void)snprintf(a->problem, sizeof a->problem, "%.300s: no proof of any step", a->path);
    }
    return CORRAL_OK;
}

static int by_rank(const void *x, const void *y)
{
    const struct rank *a = x, *b = y;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

/* Witnesses before chains: of a run that goes on, a chain may be ahead of what was noted, never behind. */
static enum corral_status audit_run(struct audit *a, struct corral_error *err)
{
    a->folder = true;
    a->running = corral_run_folder_coordinator(a->path) != 0;
    CORRAL_TRY(read_journal(a, err));
    CORRAL_TRY(read_metrics(a, err));
    CORRAL_TRY(find_chains(a, err));
    if (a->ranks > 0) {
        qsort(a->rank, a->ranks, sizeof *a->rank, by_rank);
    }
    return verify_ranks(a, err);
}

static enum corral_status audit_file(struct audit *a, struct corral_error *err)
{
    struct rank *r = NULL;
    CORRAL_TRY(rank_of(a, 0, &r, err));
    (void)snprintf(r->path, sizeof r->path, "%s", a->path);
    CORRAL_TRY(verify_ranks(a, err));
    r->rank = r->s.rank;
    return CORRAL_OK;
}

/* ---- telling ---- */

static bool passed(const struct audit *a)
{
    return !a->problem[0] && (a->allow_unproven || a->unproven + a->not_taken == 0);
}

static void size_text(uint64_t bytes, char out[32])
{
    if (bytes == UINT64_MAX) {
        (void)snprintf(out, 32, "-");
    } else {
        corral_format_bytes(bytes, out, 32);
    }
}

static void print_rank(const struct rank *r)
{
    const struct corral_proof_summary *s = &r->s;
    char peak[32], ceiling[32], of[72], slack[32], drift[32], steps[48], fences[80];
    if (r->missing) {
        printf("  %4u  missing\n", r->rank);
        return;
    }
    size_text(s->own_peak, peak);
    size_text(s->own_ceiling, ceiling);
    (void)snprintf(of, sizeof of, "%s of %s", peak, ceiling);
    size_text(s->slack_min, slack);
    size_text(s->drift_max > 0 ? (uint64_t)s->drift_max : 0, drift);
    (void)snprintf(steps, sizeof steps, "%" PRIu64 "-%" PRIu64, s->first_step, s->last_step);
    char device[CORRAL_LEDGER_NAME_MAX];
    printf("  %4u  %-8s %-12s %8" PRIu64 " %9" PRIu64 " %8" PRIu64 " %22s %12s %10s %7" PRIu64 "  %s\n",
           r->rank, s->device[0] ? corral_view_plain(s->device, device, sizeof device) : "-",
           s->steps ? steps : "-", s->proven, s->unproven, s->refused, s->steps ? of : "-", slack, drift,
           s->denied, s->broken[0] ? "BROKEN" : corral_view_plain(s->fences, fences, sizeof fences));
}

static void print_others(const struct audit *a, const struct rank *r)
{
    const struct corral_proof_summary *s = &r->s;
    char name[CORRAL_LEDGER_NAME_MAX], low[32], peak[32], high[32];
    char intact[96];
    uint32_t others = 0;
    if (s->proven == s->steps && !s->broken[0]) {
        (void)snprintf(intact, sizeof intact, "intact in all %" PRIu64 " steps", s->steps);
    } else {
        (void)snprintf(intact, sizeof intact, "shown intact in %" PRIu64 " of %" PRIu64 " steps%s", s->proven,
                       s->steps, s->broken[0] ? ", up to what is broken" : "");
    }
    for (uint32_t i = 0; i < s->role_count; i++) {
        const struct corral_proof_role *role = &s->role[i];
        if (strcmp(role->name, s->own_role) == 0) {
            continue;
        }
        size_text(role->floor, low);
        size_text(role->peak, peak);
        size_text(role->ceiling, high);
        printf("  rank %u: %s floor %s %s; peak %s of %s, %" PRIu64 " denied\n", r->rank,
               corral_view_plain(role->name, name, sizeof name), low, intact, peak, high, role->denied);
        others++;
    }
    if (others == 0 && s->role_count > 0) {
        printf("  rank %u: no other role has memory on %s, and this one used none elsewhere\n", r->rank,
               corral_view_plain(s->device, name, sizeof name));
    }
    if (s->spilled_max > 0) {
        size_text(s->spilled_max, peak);
        printf("  rank %u: up to %s beside the quota, spilled to host memory (memory.spill)\n", r->rank,
               peak);
    }
    if (s->torn_bytes > 0) {
        printf("  rank %u: %" PRIu64 " bytes of a record that was never finished follow the last\n", r->rank,
               s->torn_bytes);
    }
    if (!s->ended && !a->running && s->steps > 0 && !s->broken[0]) {
        printf("  rank %u: no end record: its trainer was killed%s\n", r->rank,
               a->folder ? "" : ", or its end is missing");
    }
    if (s->limit_changes) {
        printf("  rank %u: limits changed live %" PRIu64
               " time%s; those told are the last, the trainer's ceiling "
               "the highest\n",
               r->rank, s->limit_changes, s->limit_changes == 1 ? "" : "s");
    }
    if (s->restarts || s->superseded || s->lost) {
        printf("  rank %u: %" PRIu64 " restart%s, %" PRIu64 " step%s taken again", r->rank, s->restarts,
               s->restarts == 1 ? "" : "s", s->superseded, s->superseded == 1 ? "" : "s");
        if (s->lost) {
            printf(", records of %" PRIu64 " of them lost", s->lost);
        }
        printf("\n");
    }
}

static void print_doubts(const struct rank *r)
{
    char plain[200];
    if (r->s.doubt_step) {
        printf("unproven  rank %u, step %" PRIu64 " (record %" PRIu64 "): %s\n", r->rank, r->s.doubt_step,
               r->s.doubt_record, corral_view_plain(r->s.doubt, plain, sizeof plain));
    }
    if (r->s.refused) {
        printf("refused   rank %u, record %" PRIu64 ": %s\n", r->rank, r->s.refused_record,
               corral_view_plain(r->s.refusal, plain, sizeof plain));
    }
}

static void print_text(const struct audit *a)
{
    char plain[900];
    printf("%s%s\n", a->path, a->running ? "  (it is running)" : "");
    printf("  %4s  %-8s %-12s %8s %9s %8s %22s %12s %10s %7s  %s\n", "rank", "device", "steps", "proven",
           "unproven", "refused", "peak of ceiling", "least slack", "drift max", "denied", "fences");
    for (size_t i = 0; i < a->ranks; i++) {
        print_rank(&a->rank[i]);
    }
    for (size_t i = 0; i < a->ranks; i++) {
        print_others(a, &a->rank[i]);
    }
    for (size_t i = 0; i < a->ranks; i++) {
        print_doubts(&a->rank[i]);
    }
    if (a->problem[0]) {
        printf("broken    %s\nverdict   broken: nothing from there on is proven\n",
               corral_view_plain(a->problem, plain, sizeof plain));
    } else if (a->unproven + a->not_taken > 0) {
        printf("verdict   chain ok; %" PRIu64 " steps unproven, %" PRIu64 " refused and not taken since\n",
               a->unproven, a->not_taken);
    } else if (a->refused > 0) {
        printf("verdict   every step that was taken is proven (refused before they fitted: %" PRIu64
               "); chain ok\n",
               a->refused);
    } else {
        printf("verdict   every step is proven; chain ok%s\n",
               a->folder ? "" : " (nothing was compared with its end: give the run's folder for that)");
    }
}

static json_t *roles_json(const struct corral_proof_summary *s)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < s->role_count; i++) {
        const struct corral_proof_role *r = &s->role[i];
        json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:b}", "name", r->name, "floor",
                                              (json_int_t)r->floor, "ceiling", (json_int_t)r->ceiling, "peak",
                                              (json_int_t)r->peak, "denied", (json_int_t)r->denied, "spilled",
                                              (json_int_t)r->spilled, "floor_intact",
                                              s->proven == s->steps && !s->broken[0]));
    }
    return list;
}

static json_t *rank_json(const struct rank *r)
{
    const struct corral_proof_summary *s = &r->s;
    json_t *root = json_object();
    json_object_set_new(root, "rank", json_integer(r->rank));
    json_object_set_new(root, "file", json_string(r->path));
    json_object_set_new(root, "missing", json_boolean(r->missing));
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        {"records", s->head.count},
        {"first_step", s->first_step},
        {"last_step", s->last_step},
        {"steps", s->steps},
        {"proven", s->proven},
        {"unproven", s->unproven},
        {"refused", s->refused},
        {"superseded", s->superseded},
        {"restarts", s->restarts},
        {"lost", s->lost},
        {"limit_changes", s->limit_changes},
        {"trainer_peak", s->own_peak},
        {"trainer_ceiling", s->own_ceiling},
        {"denied", s->denied},
        {"spilled_max", s->spilled_max},
        {"unproven_step", s->doubt_step},
        {"torn_bytes", s->torn_bytes},
        {"broken_record", s->broken_record},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(counts); i++) {
        json_object_set_new(root, counts[i].key, json_integer((json_int_t)counts[i].value));
    }
    json_object_set_new(root, "slack_min",
                        s->slack_min == UINT64_MAX ? json_null() : json_integer((json_int_t)s->slack_min));
    json_object_set_new(root, "drift_max", json_integer(s->drift_max));
    json_object_set_new(root, "ended", json_boolean(s->ended));
    json_object_set_new(root, "device", json_string(s->device));
    json_object_set_new(root, "role", json_string(s->own_role));
    json_object_set_new(root, "fences", json_string(s->fences));
    json_object_set_new(root, "hash", json_string(s->head.hash));
    json_object_set_new(root, "why_unproven", json_string(s->doubt));
    json_object_set_new(root, "why_refused", json_string(s->refusal));
    json_object_set_new(root, "broken", json_string(s->broken));
    json_object_set_new(root, "roles", roles_json(s));
    return root;
}

static enum corral_status print_json(const struct audit *a, struct corral_error *err)
{
    json_t *root = json_object(), *ranks = json_array();
    json_object_set_new(root, "path", json_string(a->path));
    json_object_set_new(root, "ok", json_boolean(passed(a)));
    json_object_set_new(root, "running", json_boolean(a->running));
    json_object_set_new(root, "witnessed", json_boolean(a->folder));
    json_object_set_new(root, "broken", json_string(a->problem));
    json_object_set_new(root, "unproven", json_integer((json_int_t)a->unproven));
    json_object_set_new(root, "refused", json_integer((json_int_t)a->refused));
    json_object_set_new(root, "not_taken", json_integer((json_int_t)a->not_taken));
    for (size_t i = 0; i < a->ranks; i++) {
        json_array_append_new(ranks, rank_json(&a->rank[i]));
    }
    json_object_set_new(root, "ranks", ranks);
    enum corral_status status = corral_json_print(stdout, root, err);
    json_decref(root);
    return status;
}

static int audit(const char *dir, const char *which, bool allow_unproven, bool json)
{
    struct corral_error err;
    struct stat st;
    CORRAL_CLEANUP(audit_free) struct audit a = {.allow_unproven = allow_unproven};
    bool file = which && stat(which, &st) == 0 && S_ISREG(st.st_mode);
    enum corral_status status = CORRAL_OK;
    if (file) {
        (void)snprintf(a.path, sizeof a.path, "%s", which);
        status = audit_file(&a, &err);
    } else {
        if (corral_run_folder_find(dir, which, a.path, &err) != CORRAL_OK) {
            return corral_cli_fail(&err);
        }
        status = audit_run(&a, &err);
    }
    if (status == CORRAL_OK && json) {
        status = print_json(&a, &err);
    }
    if (status != CORRAL_OK) {
        (void)corral_cli_fail(&err);
        return CORRAL_EXIT_FAILED; /* the run is there, and what is to prove it cannot be read */
    }
    if (!json) {
        print_text(&a);
    }
    int flushed = cli_flush();
    return passed(&a) ? flushed : CORRAL_EXIT_FAILED;
}

int corral_cmd_audit(int argc, char **argv)
{
    static const struct option options[] = {{"dir", required_argument, NULL, 'd'},
                                            {"allow-unproven", no_argument, NULL, 'u'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *dir = "runs";
    bool json = false, allow_unproven = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            dir = optarg;
            break;
        case 'u':
            allow_unproven = true;
            break;
        case 'j':
            json = true;
            break;
        case 'h':
            help();
            return cli_flush();
        default:
            return corral_cli_usage("audit", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind > 1) {
        return corral_cli_usage("audit", "one run at a time");
    }
    return audit(dir, optind < argc ? argv[optind] : NULL, allow_unproven, json);
}
