#include "quota/process.h"

#include "quota/shared.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct process_stat {
    char state;
    long threads;
    uint64_t start_time;
};

/* Fields 3, 20 and 22 of /proc/PID/stat. The name in field 2 may hold anything, so the fields are counted from its last ')'. */
static bool parse_stat(char *text, struct process_stat *out)
{
    char *at = strrchr(text, ')');
    if (!at) {
        return false;
    }
    char *save = NULL;
    unsigned field = 3;
    for (char *word = strtok_r(at + 1, " \n", &save); word; word = strtok_r(NULL, " \n", &save), field++) {
        if (field == 3) {
            out->state = word[0];
        } else if (field == 20) {
            out->threads = strtol(word, NULL, 10);
        } else if (field == 22) {
            out->start_time = strtoull(word, NULL, 10);
            return true;
        }
    }
    return false;
}

static bool read_stat(pid_t pid, struct process_stat *out)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t got;
    do {
        got = read(fd, text, sizeof text - 1);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) {
        return false;
    }
    text[got] = '\0';
    return parse_stat(text, out);
}

uint64_t corral_process_start_time(pid_t pid)
{
    struct process_stat stat;
    return read_stat(pid, &stat) ? stat.start_time : 0;
}

bool corral_process_is_gone(pid_t pid, uint64_t start_time)
{
    struct process_stat stat;
    if (!read_stat(pid, &stat)) {
        return kill(pid, 0) != 0 && errno == ESRCH;
    }
    if (start_time != 0 && stat.start_time != start_time) {
        return true;
    }
    /* A process whose first thread has ended while others run shows that thread's state, with more than one thread. */
    return (stat.state == 'Z' || stat.state == 'X') && stat.threads <= 1;
}
