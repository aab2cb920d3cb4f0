/* What is physically taken on a device, to hold against the ledger: by the fake driver's own count where it is the driver, otherwise by NVML, of the process or of the device.
 *
 * NVML is read in a child without the interposer, which would answer with the quota. In a container NVML may not know the process (another pid namespace) or its bytes; then the device's
 * use counts, less what was used before the program started (CORRAL_TEST_BASELINE, which quota-node sets): nobody else may use the device meanwhile.
 *
 * CORRAL_TEST_PHYSICAL: "nvml" leaves the fake driver's count out, "none" everything. CORRAL_TEST_TOLERANCE: bytes, instead of PHYSICAL_TOLERANCE.
 */
#ifndef CORRAL_TESTS_QUOTA_PHYSICAL_COUNT_H
#define CORRAL_TESTS_QUOTA_PHYSICAL_COUNT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* docs/spec/charging.md: the driver's pieces, and what it keeps of them. The fake driver counts to the byte. */
#define PHYSICAL_TOLERANCE (UINT64_C(16) << 20)
#define PHYSICAL_UUID_TEXT 48
#define PHYSICAL_ENV_BASELINE "CORRAL_TEST_BASELINE"

enum physical_source { PHYSICAL_NONE, PHYSICAL_FAKE_DRIVER, PHYSICAL_NVML_PROCESS, PHYSICAL_NVML_DEVICE };
enum physical_scope {
    PHYSICAL_OF_PROCESS,
    PHYSICAL_OF_DEVICE, /* of everybody that the ledger knows */
};
enum physical_bound {
    PHYSICAL_EQUAL,
    PHYSICAL_AT_MOST, /* what is charged before it is taken: managed pages, graphs that have not run, an owner's memory that may have gone with it */
};

struct physical {
    char uuid[PHYSICAL_UUID_TEXT];
    pid_t pid;
    uint64_t (*fake)(int device);
    uint64_t tolerance;
    /* of the comparisons so far */
    uint32_t compared, left_out;
    enum physical_source source;
    uint64_t ledger, counted; /* where they were furthest apart */
};

void physical_uuid_text(const uint8_t uuid[16], char out[PHYSICAL_UUID_TEXT]);
/* NVML in this process, which has no interposer. Bytes, or -1 where it does not tell. False: there is no NVML. */
bool physical_read_nvml(const char *uuid, pid_t pid, int64_t *process, int64_t *device);
/* `driver`: the libcuda.so.1 that is loaded. */
void physical_open(struct physical *p, const uint8_t uuid[16], pid_t pid, void *driver);
enum physical_source physical_count(const struct physical *p, enum physical_scope scope, uint64_t *bytes);
/* False: they differ by more than they may, and stderr has both. Without any source it is counted as left out. */
bool physical_compare(struct physical *p, enum physical_scope scope, enum physical_bound bound,
                      uint64_t ledger, const char *when);
/* The same for a count that has been taken. */
bool physical_judge(struct physical *p, enum physical_source source, uint64_t counted,
                    enum physical_bound bound, uint64_t ledger, const char *when);
/* Both figures and the source on stdout. False: something was left out; a SKIPPED line says so. */
bool physical_report(const struct physical *p, const char *what);
/* The child's main: UUID PID. */
int physical_reader_main(const char *uuid, const char *pid);

#endif
