/* A libnvidia-ml.so.1 that knows one device, the tiny driver's. */
#include <stdio.h>
#include <string.h>

#define MIB (1ULL << 20)

int nvmlInit_v2(void)
{
    return 0;
}
/* Handle 1 is the node's device, handle 2 one that it does not know. */
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length)
{
    const char *text = device == (void *)1 ? "GPU-42424242-4242-4242-4242-424242424242"
                                           : "GPU-00000000-0000-0000-0000-000000000001";
    return snprintf(uuid, length, "%s", text) < (int)length ? 0 : 7;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long memory[3])
{
    memory[0] = 100 * MIB;
    memory[1] = 90 * MIB;
    memory[2] = 10 * MIB;
    return device ? 0 : 2;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, void *memory)
{
    struct {
        unsigned int version;
        unsigned long long total, reserved, free, used;
    } now = {0, 100 * MIB, 2 * MIB, 90 * MIB, 8 * MIB};
    memcpy(&now.version, memory, sizeof now.version);
    memcpy(memory, &now, sizeof now);
    return device ? 0 : 2;
}
