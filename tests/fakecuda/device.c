/* Devices. */
#include "tests/fakecuda/fake.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- devices: CUDA_VISIBLE_DEVICES chooses and orders them ---- */
static int visible[FAKE_DEVICES_MAX];
static int visible_count = -1;

static int device_named(const char *name, size_t length)
{
    char *end;
    long n = strtol(name, &end, 10);
    if (end == name + length && length > 0) {
        return n >= 0 && n < (long)fake_state_devices() ? (int)n : -1;
    }
    for (uint32_t d = 0; d < fake_state_devices(); d++) {
        uint8_t u[16];
        char text[48];
        fake_state_uuid(d, u);
        snprintf(text, sizeof text,
                 "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
                 u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
        if (length >= 5 && strncmp(text, name, length) == 0) {
            return (int)d;
        }
    }
    return -1;
}

static void choose_devices(void)
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    visible_count = 0;
    if (list == NULL) {
        for (; visible_count < (int)fake_state_devices(); visible_count++) {
            visible[visible_count] = visible_count;
        }
        return;
    }
    while (*list != '\0' && visible_count < FAKE_DEVICES_MAX) {
        size_t length = strcspn(list, ",");
        int d = device_named(list, length);
        if (d < 0) {
            break; /* as the driver: nothing after a name it does not know */
        }
        visible[visible_count++] = d;
        list += length + (list[length] == ',');
    }
}

static int device_count(void)
{
    FAKE_LOCKED;
    if (visible_count < 0) {
        choose_devices();
    }
    return visible_count;
}

bool fake_device_valid(CUdevice device)
{
    return device >= 0 && device < device_count();
}

uint32_t fake_device_physical(CUdevice device)
{
    return (uint32_t)visible[device];
}

static CUresult get_device(CUdevice *out, int ordinal)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!fake_device_valid(ordinal)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *out = ordinal;
    return CUDA_SUCCESS;
}

static CUresult get_count(int *count)
{
    if (count == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *count = device_count();
    return CUDA_SUCCESS;
}

static CUresult get_name(char *name, int bytes, CUdevice device, bool bus)
{
    if (name == NULL || bytes <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (bus) {
        snprintf(name, (size_t)bytes, "0000:%02X:00.0", fake_device_physical(device) + 1);
    } else {
        snprintf(name, (size_t)bytes, "Corral Fake GPU");
    }
    return CUDA_SUCCESS;
}

static CUresult by_bus_id(CUdevice *out, const char *bus_id)
{
    unsigned domain, bus;
    if (out == NULL || bus_id == NULL || sscanf(bus_id, "%x:%x", &domain, &bus) != 2) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (CUdevice d = 0; d < device_count(); d++) {
        if (fake_device_physical(d) + 1 == bus) {
            *out = d;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

static CUresult get_uuid(CUuuid *uuid, CUdevice device)
{
    if (uuid == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    fake_state_uuid(fake_device_physical(device), (uint8_t *)uuid->bytes);
    return CUDA_SUCCESS;
}

static CUresult get_attribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    if (value == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    const char *multicast = getenv("CORRAL_FAKECUDA_MULTICAST");
    if (attribute == CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED && multicast != NULL) {
        *value = strcmp(multicast, "0") != 0;
        return CUDA_SUCCESS;
    }
    *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT       ? fake_processors()
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 0
                                                                         : 1;
    return CUDA_SUCCESS;
}

static CUresult total_memory(size_t *bytes, CUdevice device)
{
    if (bytes == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *bytes = fake_state_memory();
    return CUDA_SUCCESS;
}

static CUresult total_memory_old(unsigned *bytes, CUdevice device)
{
    size_t all = 0;
    CUresult r = total_memory(bytes != NULL ? &all : NULL, device);
    if (r == CUDA_SUCCESS) {
        *bytes = all > UINT32_MAX ? UINT32_MAX : (unsigned)all;
    }
    return r;
}

FAKE(cuDeviceGet, cuDeviceGet, 2000, (CUdevice * device, int ordinal), get_device(device, ordinal))
FAKE(cuDeviceGetCount, cuDeviceGetCount, 2000, (int *count), get_count(count))
FAKE(cuDeviceGetName, cuDeviceGetName, 2000, (char *name, int bytes, CUdevice device),
     get_name(name, bytes, device, false))
FAKE(cuDeviceGetPCIBusId, cuDeviceGetPCIBusId, 4010, (char *name, int bytes, CUdevice device),
     get_name(name, bytes, device, true))
FAKE(cuDeviceGetByPCIBusId, cuDeviceGetByPCIBusId, 4010, (CUdevice * device, const char *bus_id),
     by_bus_id(device, bus_id))
FAKE(cuDeviceGetUuid, cuDeviceGetUuid, 9020, (CUuuid * uuid, CUdevice device), get_uuid(uuid, device))
FAKE(cuDeviceGetUuid_v2, cuDeviceGetUuid, 11040, (CUuuid * uuid, CUdevice device), get_uuid(uuid, device))
FAKE(cuDeviceGetAttribute, cuDeviceGetAttribute, 2000,
     (int *value, CUdevice_attribute attribute, CUdevice device), get_attribute(value, attribute, device))
FAKE(cuDeviceTotalMem, cuDeviceTotalMem, 2000, (unsigned *bytes, CUdevice device),
     total_memory_old(bytes, device))
FAKE(cuDeviceTotalMem_v2, cuDeviceTotalMem, 3020, (size_t * bytes, CUdevice device),
     total_memory(bytes, device))

uint64_t fakecuda_used(int device)
{
    return fake_device_valid(device) ? fake_state_used(fake_device_physical(device)) : 0;
}

void fakecuda_busy(int device, unsigned percent)
{
    if (fake_device_valid(device)) {
        fake_state_set_busy(fake_device_physical(device), percent);
    }
}
