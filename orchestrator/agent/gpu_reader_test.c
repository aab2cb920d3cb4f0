/* Against whichever driver LD_LIBRARY_PATH shows: the fake one in ctest, a real one by hand. */
#include "orchestrator/agent/gpu_reader.h"
#include "tests/check.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static struct {
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*uuid)(uint8_t *, int);
    int (*retain)(void **, int);
    int (*set_current)(void *);
    int (*allocate)(uint64_t *, size_t);
    int (*release)(uint64_t);
} cuda;

static bool symbol(void *library, const char *name, void *pointer_to_function)
{
    void *found = dlsym(library, name);
    memcpy(pointer_to_function, &found, sizeof found);
    return found != NULL;
}

static bool open_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return library && symbol(library, "cuInit", &cuda.init) && symbol(library, "cuDeviceGet", &cuda.device) &&
           symbol(library, "cuDeviceGetUuid", &cuda.uuid) &&
           symbol(library, "cuDevicePrimaryCtxRetain", &cuda.retain) &&
           symbol(library, "cuCtxSetCurrent", &cuda.set_current) &&
           symbol(library, "cuMemAlloc_v2", &cuda.allocate) &&
           symbol(library, "cuMemFree_v2", &cuda.release) && cuda.init(0) == 0;
}

static uint64_t bytes_here(struct corral_gpu_reader *r, uint32_t device, uint64_t *used)
{
    struct corral_gpu_reading reading;
    corral_gpu_reader_memory(r, device, &reading);
    *used = reading.used;
    for (uint32_t i = 0; i < reading.process_count; i++) {
        if (reading.process[i].pid == getpid() && reading.process[i].bytes_known) {
            return reading.process[i].bytes;
        }
    }
    return 0;
}

static void reads_what_this_process_holds_and_how_busy_a_device_is(void **state)
{
    (void)state;
    struct corral_gpu_reader *r;
    struct corral_error err;
    uint8_t uuid[16], foreign[16] = {1, 2, 3};
    uint32_t number;
    int device;
    void *context;
    uint64_t pointer, used_before, used_after;
    assert_int_equal(cuda.device(&device, 0), 0);
    assert_int_equal(cuda.uuid(uuid, device), 0);
    assert_int_equal(cuda.retain(&context, device), 0);
    assert_int_equal(cuda.set_current(context), 0);
    check_ok(corral_gpu_reader_open(&r, &err));
    assert_int_equal(corral_gpu_reader_find(r, foreign, &number, &err), CORRAL_NOT_FOUND);
    check_ok(corral_gpu_reader_find(r, uuid, &number, &err));
    uint64_t before = bytes_here(r, number, &used_before);
    assert_true(before > 0); /* the context */
    assert_int_equal(cuda.allocate(&pointer, 64 * MIB), 0);
    uint64_t after = bytes_here(r, number, &used_after);
    assert_true(after >= before + 64 * MIB);
    assert_true(used_after >= used_before + 64 * MIB);
    assert_int_equal(cuda.release(pointer), 0);
    struct corral_gpu_busy busy;
    corral_gpu_reader_busy(r, number, &busy);
    assert_true(busy.device >= 0 && busy.device <= 1);
    corral_gpu_reader_close(r);
}

int main(void)
{
    /* The fake driver's two libraries share their devices through a file. */
    char folder[] = "/tmp/corral-gpu-reader.XXXXXX", state[64];
    if (!mkdtemp(folder)) {
        return 1;
    }
    snprintf(state, sizeof state, "%s/state", folder);
    setenv("CORRAL_FAKECUDA_STATE", state, 1);
    if (!open_driver()) {
        rmdir(folder);
        puts("skipped: no CUDA driver");
        return CORRAL_TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_this_process_holds_and_how_busy_a_device_is),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(state);
    rmdir(folder);
    return failed;
}
