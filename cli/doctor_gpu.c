#include "cli/doctor_gpu.h"
#include "orchestrator/process.h"
#include "quota/cuda/interposer_path.h"
#include "quota/shared.h"
#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CANARY_WAIT_MS 60000 /* a first context on a large machine takes seconds */
#define QUOTA_BYTES_MAX (UINT64_C(2) << 30)

/* "GPU-8-4-4-4-12" hex digits to 16 bytes. */
static bool parse_uuid(const char *text, uint8_t out[16])
{
    size_t digits = 0;
    if (strncmp(text, "GPU-", 4) != 0) {
        return false;
    }
    for (const char *c = text + 4; *c; c++) {
        if (*c == '-') {
            continue;
        }
        if (!isxdigit((unsigned char)*c) || digits == 32) {
            return false;
        }
        uint8_t value =
            (uint8_t)(isdigit((unsigned char)*c) ? *c - '0' : tolower((unsigned char)*c) - 'a' + 10);
        out[digits / 2] = digits % 2 == 0 ? (uint8_t)(value << 4) : (uint8_t)(out[digits / 2] | value);
        digits++;
    }
    return digits == 32;
}

/* A ledger with one role on that GPU, which may take at most half of what is free. */
static enum corral_status make_quota(const struct corral_inventory_gpu *g, struct corral_quota **out, int *fd,
                                     struct corral_error *err)
{
    uint32_t role, device;
    uint8_t uuid[16];
    CORRAL_AUTO_FREE struct corral_ledger *l = calloc(1, corral_ledger_bytes());
    if (!l) {
        return corral_fail(err, CORRAL_NOMEM, "out of memory");
    }
    if (!parse_uuid(g->uuid, uuid)) {
        return corral_fail(err, CORRAL_INVALID, "the driver names the GPU `%.60s`, which is no UUID",
                           g->uuid);
    }
    uint64_t available = g->memory_total > g->memory_used ? g->memory_total - g->memory_used : 0;
    corral_ledger_init(l);
    CORRAL_TRY(corral_ledger_add_role(l, "doctor", &role, err));
    CORRAL_TRY(corral_ledger_add_device(l, "gpu:0", g->memory_total, 0, &device, err));
    corral_ledger_set_uuid(l, device, uuid);
    CORRAL_TRY(corral_ledger_set_limits(l, device, role, 0, CORRAL_MIN(available / 2, QUOTA_BYTES_MAX), err));
    CORRAL_TRY(corral_ledger_check_plan(l, 1.0, err));
    return corral_quota_create(l, NULL, fd, out, err);
}

/* "rlctl canary" with what an agent would give it. */
static enum corral_status run_canary(const struct corral_inventory_gpu *g, const struct corral_quota *q,
                                     int fd, const char *log, int *code, struct corral_error *err)
{
    char library[PATH_MAX], ledger[64], token[33];
    char env_ledger[128], env_token[96], env_preload[PATH_MAX + 16], env_devices[128];
    CORRAL_TRY(corral_cuda_interposer_path(library, sizeof library, err));
    corral_quota_token(q, 0, token);
    snprintf(ledger, sizeof ledger, "/proc/%d/fd/%d", (int)getpid(), fd);
    snprintf(env_ledger, sizeof env_ledger, CORRAL_QUOTA_ENV_LEDGER "=%s", ledger);
    snprintf(env_token, sizeof env_token, CORRAL_QUOTA_ENV_TOKEN "=%s", token);
    snprintf(env_preload, sizeof env_preload, "LD_PRELOAD=%s", library);
    snprintf(env_devices, sizeof env_devices, "CUDA_VISIBLE_DEVICES=%s", g->uuid);
    /* The refusals are what is wanted; they need no line each. */
    const char *const env[] = {env_ledger,
                               env_token,
                               env_preload,
                               env_devices,
                               "CUDA_DEVICE_ORDER=PCI_BUS_ID",
                               CORRAL_QUOTA_ENV_LOG "=/dev/null"};
    const char *const argv[] = {"rlctl", "canary", NULL};
    const struct corral_process_spec spec = {
        .argv = argv, .log_path = log, .env = env, .env_count = CORRAL_COUNT_OF(env)};
    struct corral_process process;
    CORRAL_TRY(corral_process_start(&spec, &process, err));
    enum corral_status status = corral_process_wait(&process, CANARY_WAIT_MS, code, err);
    if (status == CORRAL_AGAIN) {
        corral_process_signal(&process, SIGKILL);
        (void)corral_process_wait(&process, CANARY_WAIT_MS, code, NULL);
        return corral_fail(err, CORRAL_TIMEOUT, "the canary was not done after %d s", CANARY_WAIT_MS / 1000);
    }
    return status;
}

void corral_doctor_try_interposer(const struct corral_inventory *machine, struct corral_fence_report *report)
{
    struct corral_error err = {0};
    struct corral_quota *q = NULL;
    CORRAL_AUTO_CLOSE int fd = -1;
    char detail[sizeof err.text] = "", log[64];
    if (machine->gpu_count == 0) {
        corral_fence_report_set(report, "interposer", CORRAL_FENCE_ABSENT, machine->gpu_note);
        return;
    }
    /* The canary's words go to a file without a name. */
    CORRAL_AUTO_CLOSE int said = memfd_create("corral-canary", MFD_CLOEXEC);
    snprintf(log, sizeof log, "/proc/%d/fd/%d", (int)getpid(), said);
    int code = -1;
    enum corral_status status = make_quota(&machine->gpu[0], &q, &fd, &err);
    if (status == CORRAL_OK) {
        status = run_canary(&machine->gpu[0], q, fd, said >= 0 ? log : NULL, &code, &err);
    }
    corral_quota_detach(q);
    if (status != CORRAL_OK) {
        snprintf(detail, sizeof detail, "%s", err.text);
    } else if (code != 0) {
        corral_process_reason(code, said >= 0 ? log : NULL, detail, sizeof detail);
    } else {
        snprintf(detail, sizeof detail,
                 "GPU 0: granted within a quota and denied over it, in each API family");
    }
    bool missing = status == CORRAL_NOT_FOUND;
    corral_fence_report_set(report, "interposer",
                            status == CORRAL_OK && code == 0 ? CORRAL_FENCE_LIVE
                            : missing                        ? CORRAL_FENCE_ABSENT
                                                             : CORRAL_FENCE_FAILED,
                            detail);
}
