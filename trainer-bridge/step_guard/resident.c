#include "trainer-bridge/step_guard/resident.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#define PAGE_KINDS 3 /* anonymous, of files, of shared memory: counted apart */

bool corral_resident_has_bound(const char *release)
{
    char *end;
    unsigned long major = strtoul(release, &end, 10), minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;
    return major > 6 || (major == 6 && minor >= 2);
}

/* On each CPU the kernel counts up to max(32, 2 x CPUs) pages of a kind before it adds them up. */
enum corral_status corral_resident_open(struct corral_resident *r, struct corral_error *err)
{
    uint64_t cpus = (uint64_t)CORRAL_MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L);
    r->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    r->uncounted = PAGE_KINDS * cpus * CORRAL_MAX(2 * cpus, UINT64_C(32)) * r->page_bytes;
    r->peak = 0;
    struct utsname system;
    r->has_bound = uname(&system) == 0 && corral_resident_has_bound(system.release);
    r->statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    return r->statm_fd >= 0 ? CORRAL_OK : corral_fail_sys(err, errno, "opening /proc/self/statm");
}

void corral_resident_close(struct corral_resident *r)
{
    if (r->statm_fd >= 0) {
        (void)close(r->statm_fd);
        r->statm_fd = -1;
    }
}

/* The next decimal number of `text`; no scanf: this may be in every step. */
static uint64_t take_number(const char **text)
{
    uint64_t value = 0;
    for (; **text == ' '; ++*text) {
    }
    for (; **text >= '0' && **text <= '9'; ++*text) {
        value = value * 10 + (uint64_t)(**text - '0');
    }
    return value;
}

uint64_t corral_resident_now(const struct corral_resident *r)
{
    char text[160];
    const char *at = text;
    ssize_t n = pread(r->statm_fd, text, sizeof text - 1, 0);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    (void)take_number(&at); /* all that is mapped */
    uint64_t all = take_number(&at), shared = take_number(&at);
    return all > shared ? (all - shared) * r->page_bytes : 0;
}

uint64_t corral_resident_peak(struct corral_resident *r)
{
    struct rusage use;
    if (!r->has_bound || getrusage(RUSAGE_THREAD, &use) != 0 ||
        use.ru_maxrss <= 0) { /* this field is the process's */
        return 0;
    }
    r->peak = (uint64_t)use.ru_maxrss * 1024 + r->uncounted;
    return r->peak;
}
