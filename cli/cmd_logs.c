/* rlctl logs: what a run's processes wrote, each line whole, and what they go on to write. */
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILES_MAX 4096
#define NAME_MAX_BYTES 128
/* A longer line is printed in pieces. */
#define LINE_BYTES_MAX (64u << 10)
#define LINES_ALL UINT64_MAX

static void help(void)
{
    printf("Usage: rlctl logs [RUN [WORKER...]] [-n LINES] [-f] [--dir DIR] [--json]\n\n"
           "Prints what a run's coordinator, agents and workers logged, or only those named (`coordinator`,\n"
           "`agent-NODE`, a worker as `rlctl status` names it).\n"
           "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n\n"
           "  -n, --lines LINES  only the last LINES of each\n"
           "  -f, --follow       go on until the run ends\n"
           "      --dir DIR      where runs are (default: runs)\n"
           "  -j, --json         an object per line: {\"log\": NAME, \"line\": TEXT}\n"
           "  -h, --help         this text\n\n"
           "Exit code: 0 printed, 1 a log cannot be read, 2 no such run or worker.\n\n"
           "Examples:\n"
           "  rlctl logs\n"
           "  rlctl logs 7f3a trainer-0 -n 20\n"
           "  rlctl logs last -f\n");
}

struct log_file {
    char name[NAME_MAX_BYTES]; /* without ".log" */
    uint64_t at;               /* everything before has been printed */
};

struct logs {
    char folder[CORRAL_RUN_PATH_MAX + 32];
    struct log_file *file;
    size_t count, room;
    bool named; /* the user chose; files that appear later are not shown */
    bool json, follow, headers;
    const char *shown; /* whose header came last */
    char *line;        /* LINE_BYTES_MAX */
};

static enum corral_status add_file(struct logs *l, const char *name, size_t name_bytes,
                                   struct corral_error *err)
{
    if (l->count == FILES_MAX || name_bytes >= NAME_MAX_BYTES) {
        return corral_fail(err, CORRAL_INVALID, "%s: more than %d logs, or too long a name", l->folder,
                           FILES_MAX);
    }
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 32;
        struct log_file *grown = realloc(l->file, room * sizeof *grown);
        if (!grown) {
            return corral_fail(err, CORRAL_NOMEM, "no room for the names of logs");
        }
        l->file = grown;
        l->room = room;
    }
    struct log_file *f = &l->file[l->count++];
    *f = (struct log_file){.at = 0};
    memcpy(f->name, name, name_bytes);
    return CORRAL_OK;
}

static int rank_of(const char *name)
{
    return strcmp(name, "coordinator") == 0 ? 0 : strncmp(name, "agent-", 6) == 0 ? 1 : 2;
}

/* Coordinator, agents, workers; rollout-2 before rollout-10. */
static int compare_files(const void *a, const void *b)
{
    const struct log_file *left = a, *right = b;
    int by_rank = rank_of(left->name) - rank_of(right->name);
    return by_rank ? by_rank : strverscmp(left->name, right->name);
}

static bool is_log(const char *name, size_t *stem)
{
    size_t n = strlen(name);
    *stem = n > 4 && name[0] != '.' && strcmp(name + n - 4, ".log") == 0 ? n - 4 : 0;
    return *stem > 0;
}

static enum corral_status scan(struct logs *l, struct corral_error *err)
{
    DIR *d = opendir(l->folder);
    if (!d) {
        return corral_fail_sys(err, errno, "reading %s", l->folder);
    }
    enum corral_status status = CORRAL_OK;
    for (struct dirent *e = readdir(d); e && status == CORRAL_OK; e = readdir(d)) {
        size_t stem;
        if (is_log(e->d_name, &stem)) {
            status = add_file(l, e->d_name, stem, err);
        }
    }
    closedir(d);
    if (status == CORRAL_OK && l->count > 0) {
        qsort(l->file, l->count, sizeof l->file[0], compare_files);
    }
    return status;
}

static struct log_file *find_file(struct logs *l, const char *name, size_t name_bytes)
{
    for (size_t i = 0; i < l->count; i++) {
        if (strlen(l->file[i].name) == name_bytes && memcmp(l->file[i].name, name, name_bytes) == 0) {
            return &l->file[i];
        }
    }
    return NULL;
}

static enum corral_status fail_unknown(const struct logs *l, const char *name, struct corral_error *err)
{
    CORRAL_AUTO_FREE const char **names = calloc(l->count + 1, sizeof *names);
    for (size_t i = 0; names && i < l->count; i++) {
        names[i] = l->file[i].name;
    }
    const char *near = names ? corral_nearest(name, names, l->count) : NULL;
    return near ? corral_fail(err, CORRAL_NOT_FOUND, "no log of `%s`; did you mean `%s`?", name, near)
                : corral_fail(err, CORRAL_NOT_FOUND, "no log of `%s`; %s holds what there is", name,
                              l->folder);
}

static enum corral_status choose(struct logs *l, char **names, int count, struct corral_error *err)
{
    if (count == 0) {
        return CORRAL_OK;
    }
    struct logs chosen = {.file = NULL};
    enum corral_status status = CORRAL_OK;
    for (int i = 0; i < count && status == CORRAL_OK; i++) {
        size_t bytes = strlen(names[i]);
        if (!find_file(l, names[i], bytes)) {
            status = fail_unknown(l, names[i], err);
        } else if (!find_file(&chosen, names[i], bytes)) {
            status = add_file(&chosen, names[i], bytes, err);
        }
    }
    if (status != CORRAL_OK) {
        free(chosen.file);
        return status;
    }
    free(l->file);
    l->file = chosen.file;
    l->count = chosen.count;
    l->room = chosen.room;
    l->named = true;
    return CORRAL_OK;
}

static int open_log(const struct logs *l, const struct log_file *f, struct corral_error *err)
{
    char path[CORRAL_RUN_PATH_MAX + NAME_MAX_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s.log", l->folder, f->name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        corral_fail_sys(err, errno, "reading %s", path);
    } else if (!S_ISREG(st.st_mode)) {
        corral_fail(err, CORRAL_IO, "%s is not a regular file", path);
    } else {
        return fd;
    }
    corral_cleanup_close(&fd);
    return -1;
}

static void print_header(struct logs *l, const struct log_file *f)
{
    if (l->headers && !l->json && l->shown != f->name) {
        printf("%s==> %s <==\n", l->shown ? "\n" : "", f->name);
        l->shown = f->name;
    }
}

static void print_line(struct logs *l, const struct log_file *f, const char *text, size_t bytes)
{
    if (l->json) {
        json_t *line = json_stringn(text, bytes);
        if (!line) { /* not UTF-8 */
            CORRAL_AUTO_FREE char *ascii = calloc(1, bytes + 1);
            for (size_t i = 0; ascii && i < bytes; i++) {
                ascii[i] = '?';
                if ((unsigned char)text[i] < 0x80) {
                    ascii[i] = text[i];
                }
            }
            line = ascii ? json_stringn(ascii, bytes) : NULL;
        }
        json_t *row = json_pack("{s:s, s:o}", "log", f->name, "line", line);
        (void)corral_json_line(stdout, row, NULL);
        json_decref(row);
        return;
    }
    print_header(l, f);
    (void)fwrite(text, 1, bytes, stdout);
    fputc('\n', stdout);
}

/* Print the lines from f->at on; what has no newline yet only when it is the last there will be. */
static enum corral_status print_new(struct logs *l, struct log_file *f, bool last, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open_log(l, f, err);
    if (fd < 0) {
        return CORRAL_IO;
    }
    for (;;) {
        ssize_t n = pread(fd, l->line, LINE_BYTES_MAX, (off_t)f->at);
        if (n < 0) {
            return corral_fail_sys(err, errno, "reading %s.log", f->name);
        }
        size_t used = 0;
        for (char *end; (end = memchr(l->line + used, '\n', (size_t)n - used)) != NULL;) {
            print_line(l, f, l->line + used, (size_t)(end - l->line) - used);
            used = (size_t)(end - l->line) + 1;
        }
        if (used == 0 && n > 0 && (last || (size_t)n == LINE_BYTES_MAX)) {
            print_line(l, f, l->line, (size_t)n);
            used = (size_t)n;
        }
        if (used == 0) {
            return CORRAL_OK;
        }
        f->at += used;
    }
}

/* Move f->at to where the last `lines` lines begin. */
static enum corral_status skip_to_last(struct logs *l, struct log_file *f, uint64_t lines,
                                       struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open_log(l, f, err);
    if (fd < 0) {
        return CORRAL_IO;
    }
    off_t size = lseek(fd, 0, SEEK_END);
    uint64_t at = size > 0 ? (uint64_t)size : 0, end = at, seen = 0;
    while (at > 0) {
        size_t part = CORRAL_MIN(at, (uint64_t)LINE_BYTES_MAX);
        ssize_t n = pread(fd, l->line, part, (off_t)(at - part));
        if (n != (ssize_t)part) {
            return corral_fail(err, CORRAL_IO, "reading %s.log: it changed meanwhile", f->name);
        }
        for (size_t i = part; i > 0; i--) {
            /* The newline that ends the last line begins nothing. */
            uint64_t after = at - part + i;
            if (l->line[i - 1] == '\n' && after != end && ++seen == lines) {
                f->at = after;
                return CORRAL_OK;
            }
        }
        at -= part;
    }
    f->at = lines == 0 ? end : 0;
    return CORRAL_OK;
}

static enum corral_status print_all(struct logs *l, bool last, struct corral_error *err)
{
    for (size_t i = 0; i < l->count; i++) {
        if (!l->follow) {
            print_header(l, &l->file[i]); /* also of an empty one: it is there */
        }
        CORRAL_TRY(print_new(l, &l->file[i], last, err));
    }
    return CORRAL_OK;
}

static enum corral_status on_name(struct logs *l, const char *name, struct corral_error *err)
{
    size_t stem;
    if (!is_log(name, &stem)) {
        return CORRAL_OK;
    }
    struct log_file *f = find_file(l, name, stem);
    if (!f && !l->named) {
        const char *shown = l->shown;
        size_t which = 0;
        while (shown && which < l->count && shown != l->file[which].name) {
            which++;
        }
        CORRAL_TRY(add_file(l, name, stem, err));
        f = &l->file[l->count - 1];
        l->shown = shown ? l->file[which].name : NULL; /* the table may have moved */
        l->headers = l->count > 1;
    }
    return f ? print_new(l, f, false, err) : CORRAL_OK;
}

static enum corral_status on_events(struct logs *l, int watch, struct corral_error *err)
{
    char buffer[16384] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t n = read(watch, buffer, sizeof buffer);
    const struct inotify_event *event;
    for (ssize_t at = 0; at < n; at += (ssize_t)(sizeof *event + event->len)) {
        event = (const void *)(buffer + at);
        if (event->mask & IN_Q_OVERFLOW) {
            CORRAL_TRY(print_all(l, false, err));
        } else if (event->len > 0) {
            CORRAL_TRY(on_name(l, event->name, err));
        }
    }
    return CORRAL_OK;
}

/* Until the coordinator is gone, or nobody reads us any more. */
static enum corral_status follow(struct logs *l, int watch, int pidfd, struct corral_error *err)
{
    struct pollfd fds[] = {
        {.fd = watch, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}, {.fd = 1, .events = 0}};
    while (fflush(stdout) == 0) {
        if (poll(fds, CORRAL_COUNT_OF(fds), -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return corral_fail_sys(err, errno, "waiting for new lines");
        }
        if (fds[0].revents) {
            CORRAL_TRY(on_events(l, watch, err));
        }
        if (fds[1].revents || fds[2].revents) {
            break;
        }
    }
    return CORRAL_OK;
}

static enum corral_status show(struct logs *l, const char *path, char **names, int count, uint64_t lines,
                               struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int watch = -1;
    CORRAL_AUTO_CLOSE int pidfd = -1;
    if (l->follow) {
        /* Watched before the first look, so that nothing falls between the two. */
        watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
        if (watch < 0 || inotify_add_watch(watch, l->folder, IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0) {
            return corral_fail_sys(err, errno, "watching %s", l->folder);
        }
        CORRAL_TRY(corral_run_view_coordinator(path, &pidfd, NULL, err));
    }
    CORRAL_TRY(scan(l, err));
    CORRAL_TRY(choose(l, names, count, err));
    l->headers = l->count > 1;
    for (size_t i = 0; i < l->count && lines != LINES_ALL; i++) {
        CORRAL_TRY(skip_to_last(l, &l->file[i], lines, err));
    }
    if (pidfd < 0) {
        return print_all(l, true, err);
    }
    CORRAL_TRY(print_all(l, false, err));
    CORRAL_TRY(follow(l, watch, pidfd, err));
    return print_all(l, true, err);
}

struct arguments {
    const char *dir;
    uint64_t lines;
    bool json, follow;
};

/* Returns an exit code, or -1 to go on. */
static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'}, {"lines", required_argument, NULL, 'n'},
        {"follow", no_argument, NULL, 'f'},    {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},      {0}};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "n:fjh", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            a->dir = optarg;
            break;
        case 'n':
            if (!corral_parse_u64(optarg, &a->lines)) {
                return corral_cli_usage("logs", "-n wants a number of lines, not `%s`", optarg);
            }
            break;
        case 'f':
            a->follow = true;
            break;
        case 'j':
            a->json = true;
            break;
        case 'h':
            help();
            return cli_flush();
        default:
            return corral_cli_usage("logs", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    return -1;
}

int corral_cmd_logs(int argc, char **argv)
{
    struct arguments a = {.dir = "runs", .lines = LINES_ALL};
    int code = parse(argc, argv, &a);
    if (code >= 0) {
        return code;
    }
    struct corral_error err;
    char path[CORRAL_RUN_PATH_MAX];
    if (corral_run_folder_find(a.dir, optind < argc ? argv[optind] : NULL, path, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    struct logs l = {.json = a.json, .follow = a.follow};
    snprintf(l.folder, sizeof l.folder, "%s/logs", path);
    CORRAL_AUTO_FREE char *line = malloc(LINE_BYTES_MAX);
    l.line = line;
    int first = CORRAL_MIN(optind + 1, argc);
    enum corral_status status = line ? show(&l, path, argv + first, argc - first, a.lines, &err)
                                     : corral_fail(&err, CORRAL_NOMEM, "no room for a line");
    free(l.file);
    int flushed = cli_flush();
    return status == CORRAL_OK ? flushed : corral_cli_fail(&err);
}
