/* One line for each event, to the file that CORRAL_QUOTA_LOG names or to stderr. The file is opened for each line: a descriptor that is kept could be closed by the application
 * and be one of its own files by the next time.
 */
#include "quota/cuda/core.h"

#include "base/log.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void __real_corral_log_write(enum corral_log_level level, const char *phrase,
                             const struct corral_log_field *fields, size_t count);
void __wrap_corral_log_write(enum corral_log_level level, const char *phrase,
                             const struct corral_log_field *fields, size_t count);

static char path[4096];
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

/* As the agent set it: read before the program runs. */
__attribute__((constructor)) static void read_path(void)
{
    const char *named = getenv(CORRAL_QUOTA_ENV_LOG);
    if (named && strlen(named) < sizeof path) {
        memcpy(path, named, strlen(named) + 1);
    }
}

void corral_cuda_log_after_fork(void)
{
    pthread_mutex_init(&writing, NULL);
}

/* The quota's own lines come here too: the linker puts this in the place of corral_log_write. */
void __wrap_corral_log_write(enum corral_log_level level, const char *phrase,
                             const struct corral_log_field *fields, size_t count)
{
    int saved = errno;
    int fd =
        path[0] ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0644) : -1;
    pthread_mutex_lock(&writing);
    corral_log_configure(CORRAL_LOG_INFO, false, fd < 0 ? STDERR_FILENO : fd, "corral-quota");
    __real_corral_log_write(level, phrase, fields, count);
    pthread_mutex_unlock(&writing);
    if (fd >= 0) {
        close(fd);
    }
    errno = saved;
}

void corral_cuda_log(const char *event, const char *fmt, ...)
{
    char text[700];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    corral_log_warn(event, LOG_STR("reason", text), LOG_I64("pid", getpid()));
}
