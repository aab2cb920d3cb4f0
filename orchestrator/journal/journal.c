#include "orchestrator/journal/journal.h"
#include "base/clock.h"
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCHEMA_VERSION 2
#define SCHEMA_WITHOUT_PROOF 1 /* is read, and gets the new table when it is written to */
#define BUSY_MS 5000

static const char schema[] = "CREATE TABLE run(id INTEGER PRIMARY KEY CHECK(id = 1), run INTEGER NOT NULL, "
                             "job TEXT NOT NULL, incarnation INTEGER NOT NULL,"
                             " version_limit INTEGER NOT NULL, started_ns INTEGER NOT NULL, ended_ns "
                             "INTEGER, outcome TEXT, reason TEXT);"
                             "CREATE TABLE checkpoint(step INTEGER PRIMARY KEY, version INTEGER NOT NULL, "
                             "env_steps INTEGER NOT NULL, path TEXT NOT NULL, written_ns INTEGER NOT NULL);"
                             "CREATE TABLE event(id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT "
                             "NOT NULL, subject TEXT NOT NULL, text TEXT NOT NULL);"
                             "CREATE TABLE proof_head(rank INTEGER NOT NULL, count INTEGER NOT NULL, step "
                             "INTEGER NOT NULL, hash TEXT NOT NULL, at_ns INTEGER NOT NULL,"
                             " PRIMARY KEY(rank, count, hash));"
                             "PRAGMA user_version = 2;";
static const char add_proof_head[] =
    "BEGIN;"
    "CREATE TABLE IF NOT EXISTS proof_head(rank INTEGER NOT NULL, count INTEGER NOT NULL, step INTEGER NOT "
    "NULL,"
    " hash TEXT NOT NULL, at_ns INTEGER NOT NULL, PRIMARY KEY(rank, count, hash));"
    "PRAGMA user_version = 2;"
    "COMMIT;";

struct corral_journal {
    sqlite3 *db;
    char path[1024];
    bool has_proof; /* the table of chain heads */
};

static enum corral_status failed(struct corral_journal *j, const char *what, struct corral_error *err)
{
    int code = sqlite3_errcode(j->db);
    enum corral_status status = code == SQLITE_NOMEM                              ? CORRAL_NOMEM
                                : code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? CORRAL_PROTOCOL
                                                                                  : CORRAL_IO;
    return corral_fail(err, status, "journal %s: %s: %s", j->path, what, sqlite3_errmsg(j->db));
}

static enum corral_status run_sql(struct corral_journal *j, const char *sql, const char *what,
                                  struct corral_error *err)
{
    return sqlite3_exec(j->db, sql, NULL, NULL, NULL) == SQLITE_OK ? CORRAL_OK : failed(j, what, err);
}

static enum corral_status open_db(const char *path, int flags, struct corral_journal **out,
                                  struct corral_error *err)
{
    struct corral_journal *j = calloc(1, sizeof *j);
    if (!j) {
        return corral_fail(err, CORRAL_NOMEM, "opening journal %s", path);
    }
    snprintf(j->path, sizeof j->path, "%s", path);
    enum corral_status status = CORRAL_OK;
    if (sqlite3_open_v2(path, &j->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
        status =
            j->db ? failed(j, "opening", err) : corral_fail(err, CORRAL_NOMEM, "opening journal %s", path);
    }
    if (status != CORRAL_OK) {
        corral_journal_close(j);
        return status;
    }
    sqlite3_busy_timeout(j->db, BUSY_MS);
    *out = j;
    return CORRAL_OK;
}

void corral_journal_close(struct corral_journal *j)
{
    if (j) {
        sqlite3_close_v2(j->db);
        free(j);
    }
}

/* A statement that finalises itself. */
static void finalize(sqlite3_stmt **s)
{
    sqlite3_finalize(*s);
}
#define STATEMENT CORRAL_CLEANUP(finalize) sqlite3_stmt

static enum corral_status prepare(struct corral_journal *j, const char *sql, sqlite3_stmt **out,
                                  struct corral_error *err)
{
    return sqlite3_prepare_v2(j->db, sql, -1, out, NULL) == SQLITE_OK
               ? CORRAL_OK
               : failed(j, "preparing a statement", err);
}

static enum corral_status step_done(struct corral_journal *j, sqlite3_stmt *s, const char *what,
                                    struct corral_error *err)
{
    return sqlite3_step(s) == SQLITE_DONE ? CORRAL_OK : failed(j, what, err);
}

static enum corral_status step_row(struct corral_journal *j, sqlite3_stmt *s, const char *what, bool *found,
                                   struct corral_error *err)
{
    int code = sqlite3_step(s);
    *found = code == SQLITE_ROW;
    return code == SQLITE_ROW || code == SQLITE_DONE ? CORRAL_OK : failed(j, what, err);
}

static enum corral_status check_schema(struct corral_journal *j, struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "PRAGMA user_version", &s, err));
    if (sqlite3_step(s) != SQLITE_ROW) {
        return failed(j, "reading its schema version", err);
    }
    int found = sqlite3_column_int(s, 0);
    j->has_proof = found == SCHEMA_VERSION;
    return found == SCHEMA_VERSION || found == SCHEMA_WITHOUT_PROOF
               ? CORRAL_OK
               : corral_fail(err, CORRAL_PROTOCOL, "journal %s: schema %d, this rlctl reads %d", j->path,
                             found, SCHEMA_VERSION);
}

static enum corral_status configure(struct corral_journal *j, struct corral_error *err)
{
    return run_sql(j, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;", "setting its modes", err);
}

static enum corral_status write_run(struct corral_journal *j, uint64_t run, const char *job_name,
                                    struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(
        j, "INSERT INTO run(id, run, job, incarnation, version_limit, started_ns) VALUES(1, ?, ?, 1, 0, ?)",
        &s, err));
    sqlite3_bind_int64(s, 1, (sqlite3_int64)run);
    sqlite3_bind_text(s, 2, job_name, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64(s, 3, (sqlite3_int64)corral_wall_ns());
    return step_done(j, s, "writing the run", err);
}

/* All in one transaction: a journal has its run, or it is not there. */
static enum corral_status fill_new(struct corral_journal *j, uint64_t run, const char *job_name,
                                   struct corral_error *err)
{
    CORRAL_TRY(configure(j, err));
    CORRAL_TRY(run_sql(j, "BEGIN", "creating", err));
    CORRAL_TRY(run_sql(j, schema, "creating its tables", err));
    CORRAL_TRY(write_run(j, run, job_name, err));
    j->has_proof = true;
    return run_sql(j, "COMMIT", "creating", err);
}

static void remove_files(const char *path)
{
    static const char *const suffix[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(suffix); i++) {
        char file[1100];
        snprintf(file, sizeof file, "%s%s", path, suffix[i]);
        (void)unlink(file);
    }
}

enum corral_status corral_journal_create(const char *path, uint64_t run, const char *job_name,
                                         struct corral_journal **out, struct corral_error *err)
{
    if (access(path, F_OK) == 0) {
        return corral_fail(err, CORRAL_EXISTS, "journal %s is already there", path);
    }
    struct corral_journal *j = NULL;
    CORRAL_TRY(open_db(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &j, err));
    enum corral_status status = fill_new(j, run, job_name, err);
    if (status != CORRAL_OK) {
        corral_journal_close(j);
        remove_files(path);
        return status;
    }
    *out = j;
    return CORRAL_OK;
}

static enum corral_status open_existing(const char *path, int flags, struct corral_journal **out,
                                        struct corral_error *err)
{
    struct corral_journal *j = NULL;
    CORRAL_TRY(open_db(path, flags, &j, err));
    enum corral_status status = check_schema(j, err);
    if (status == CORRAL_OK && flags == SQLITE_OPEN_READWRITE) {
        status = configure(j, err);
        if (status == CORRAL_OK && !j->has_proof) {
            status = run_sql(j, add_proof_head, "adding the table of chain heads", err);
            j->has_proof = status == CORRAL_OK;
        }
    }
    if (status != CORRAL_OK) {
        corral_journal_close(j);
        return status;
    }
    *out = j;
    return CORRAL_OK;
}

enum corral_status corral_journal_open(const char *path, struct corral_journal **out,
                                       struct corral_error *err)
{
    return open_existing(path, SQLITE_OPEN_READWRITE, out, err);
}

enum corral_status corral_journal_open_readonly(const char *path, struct corral_journal **out,
                                                struct corral_error *err)
{
    return open_existing(path, SQLITE_OPEN_READONLY, out, err);
}

static const char *text_of(sqlite3_stmt *s, int column)
{
    const unsigned char *text = sqlite3_column_text(s, column);
    return text ? (const char *)text : "";
}

static void copy_text(sqlite3_stmt *s, int column, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "%s", text_of(s, column));
}

enum corral_status corral_journal_read_run(struct corral_journal *j, struct corral_journal_run *out,
                                           struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "SELECT run, incarnation, version_limit FROM run WHERE id = 1", &s, err));
    bool found;
    CORRAL_TRY(step_row(j, s, "reading the run", &found, err));
    if (!found) {
        return corral_fail(err, CORRAL_PROTOCOL, "journal %s has no run", j->path);
    }
    struct corral_journal_run run = {.run = (uint64_t)sqlite3_column_int64(s, 0),
                                     .incarnation = (uint32_t)sqlite3_column_int64(s, 1),
                                     .version_limit = (uint64_t)sqlite3_column_int64(s, 2)};
    STATEMENT *c = NULL;
    CORRAL_TRY(prepare(j, "SELECT step, path FROM checkpoint ORDER BY step DESC LIMIT 1", &c, err));
    /* An unreadable table is not one without checkpoints: that would start the training over. */
    CORRAL_TRY(step_row(j, c, "reading the newest checkpoint", &found, err));
    if (found) {
        run.checkpoint_step = (uint64_t)sqlite3_column_int64(c, 0);
        copy_text(c, 1, run.checkpoint_path, sizeof run.checkpoint_path);
    }
    *out = run;
    return CORRAL_OK;
}

enum corral_status corral_journal_next_incarnation(struct corral_journal *j, uint32_t *incarnation,
                                                   struct corral_error *err)
{
    CORRAL_TRY(run_sql(
        j, "UPDATE run SET incarnation = incarnation + 1, ended_ns = NULL, outcome = NULL, reason = NULL",
        "resuming", err));
    struct corral_journal_run run;
    CORRAL_TRY(corral_journal_read_run(j, &run, err));
    *incarnation = run.incarnation;
    return CORRAL_OK;
}

enum corral_status corral_journal_lease_versions(struct corral_journal *j, uint64_t version_limit,
                                                 struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "UPDATE run SET version_limit = MAX(version_limit, ?)", &s, err));
    sqlite3_bind_int64(s, 1, (sqlite3_int64)version_limit);
    return step_done(j, s, "leasing versions", err);
}

enum corral_status corral_journal_checkpoint(struct corral_journal *j, uint64_t step, uint64_t version,
                                             uint64_t env_steps, const char *path, struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(
        j,
        "INSERT OR REPLACE INTO checkpoint(step, version, env_steps, path, written_ns) VALUES(?, ?, ?, ?, ?)",
        &s, err));
    sqlite3_bind_int64(s, 1, (sqlite3_int64)step);
    sqlite3_bind_int64(s, 2, (sqlite3_int64)version);
    sqlite3_bind_int64(s, 3, (sqlite3_int64)env_steps);
    sqlite3_bind_text(s, 4, path, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64(s, 5, (sqlite3_int64)corral_wall_ns());
    return step_done(j, s, "recording a checkpoint", err);
}

enum corral_status corral_journal_end_run(struct corral_journal *j, const struct corral_journal_end *end,
                                          struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "UPDATE run SET ended_ns = ?, outcome = ?, reason = ?", &s, err));
    sqlite3_bind_int64(s, 1, (sqlite3_int64)corral_wall_ns());
    sqlite3_bind_text(s, 2, end->outcome, -1, SQLITE_TRANSIENT);
    sqlite3_bind_text(s, 3, end->reason, -1, SQLITE_TRANSIENT);
    return step_done(j, s, "recording the end", err);
}

enum corral_status corral_journal_read_end(struct corral_journal *j, struct corral_journal_end *out,
                                           struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "SELECT outcome, reason FROM run WHERE id = 1 AND outcome IS NOT NULL", &s, err));
    bool found;
    CORRAL_TRY(step_row(j, s, "reading the end", &found, err));
    if (!found) {
        return corral_fail(err, CORRAL_NOT_FOUND, "the run has not ended");
    }
    copy_text(s, 0, out->outcome, sizeof out->outcome);
    copy_text(s, 1, out->reason, sizeof out->reason);
    return CORRAL_OK;
}

/* Events are history, not decisions: they wait for the next durable write, so that one costs no fsync. Not OFF: a WAL checkpoint would then overwrite pages that are not
 * safely in the log, durable ones included. */
enum corral_status corral_journal_event(struct corral_journal *j, const char *kind, const char *subject,
                                        const char *text, struct corral_error *err)
{
    CORRAL_TRY(run_sql(j, "PRAGMA synchronous = NORMAL", "recording an event", err));
    STATEMENT *s = NULL;
    enum corral_status status =
        prepare(j, "INSERT INTO event(at_ns, kind, subject, text) VALUES(?, ?, ?, ?)", &s, err);
    if (status == CORRAL_OK) {
        sqlite3_bind_int64(s, 1, (sqlite3_int64)corral_wall_ns());
        sqlite3_bind_text(s, 2, kind, -1, SQLITE_TRANSIENT);
        sqlite3_bind_text(s, 3, subject, -1, SQLITE_TRANSIENT);
        sqlite3_bind_text(s, 4, text, -1, SQLITE_TRANSIENT);
        status = step_done(j, s, "recording an event", err);
    }
    CORRAL_TRY(run_sql(j, "PRAGMA synchronous = FULL", "recording an event", err));
    return status;
}

enum corral_status corral_journal_each_event(struct corral_journal *j, corral_journal_event_fn fn, void *ctx,
                                             struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "SELECT at_ns, kind, subject, text FROM event ORDER BY id", &s, err));
    int code;
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        fn(ctx, (uint64_t)sqlite3_column_int64(s, 0), text_of(s, 1), text_of(s, 2), text_of(s, 3));
    }
    return code == SQLITE_DONE ? CORRAL_OK : failed(j, "reading events", err);
}

enum corral_status corral_journal_each_checkpoint(struct corral_journal *j, corral_journal_checkpoint_fn fn,
                                                  void *ctx, struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "SELECT step, path FROM checkpoint ORDER BY step", &s, err));
    int code;
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        CORRAL_TRY(fn(ctx, (uint64_t)sqlite3_column_int64(s, 0), text_of(s, 1), err));
    }
    return code == SQLITE_DONE ? CORRAL_OK : failed(j, "reading checkpoints", err);
}

enum corral_status corral_journal_forget_checkpoint(struct corral_journal *j, uint64_t step,
                                                    struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "DELETE FROM checkpoint WHERE step = ?", &s, err));
    sqlite3_bind_int64(s, 1, (sqlite3_int64)step);
    return step_done(j, s, "forgetting a checkpoint", err);
}

static enum corral_status insert_head(struct corral_journal *j, const struct corral_journal_proof_head *head,
                                      struct corral_error *err)
{
    STATEMENT *s = NULL;
    CORRAL_TRY(
        prepare(j, "INSERT OR IGNORE INTO proof_head(rank, count, step, hash, at_ns) VALUES(?, ?, ?, ?, ?)",
                &s, err));
    sqlite3_bind_int64(s, 1, head->rank);
    sqlite3_bind_int64(s, 2, (sqlite3_int64)head->count);
    sqlite3_bind_int64(s, 3, (sqlite3_int64)head->step);
    sqlite3_bind_text(s, 4, head->hash, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64(s, 5, (sqlite3_int64)corral_wall_ns());
    return step_done(j, s, "noting a chain head", err);
}

enum corral_status corral_journal_proof_heads(struct corral_journal *j,
                                              const struct corral_journal_proof_head *head, uint32_t count,
                                              struct corral_error *err)
{
    CORRAL_TRY(run_sql(j, "BEGIN", "noting chain heads", err));
    enum corral_status status = CORRAL_OK;
    for (uint32_t i = 0; i < count && status == CORRAL_OK; i++) {
        status = insert_head(j, &head[i], err);
    }
    if (status == CORRAL_OK) {
        status = run_sql(j, "COMMIT", "noting chain heads", err);
    }
    if (status != CORRAL_OK) {
        (void)run_sql(j, "ROLLBACK", "noting chain heads", NULL);
    }
    return status;
}

enum corral_status corral_journal_each_proof_head(struct corral_journal *j, corral_journal_proof_fn fn,
                                                  void *ctx, struct corral_error *err)
{
    if (!j->has_proof) {
        return CORRAL_OK;
    }
    STATEMENT *s = NULL;
    CORRAL_TRY(prepare(j, "SELECT rank, count, step, hash FROM proof_head ORDER BY rank, count", &s, err));
    int code;
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        struct corral_journal_proof_head head = {.rank = (uint32_t)sqlite3_column_int64(s, 0),
                                                 .count = (uint64_t)sqlite3_column_int64(s, 1),
                                                 .step = (uint64_t)sqlite3_column_int64(s, 2)};
        copy_text(s, 3, head.hash, sizeof head.hash);
        CORRAL_TRY(fn(ctx, &head, err));
    }
    return code == SQLITE_DONE ? CORRAL_OK : failed(j, "reading chain heads", err);
}
