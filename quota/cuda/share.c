/* Memory that comes from other processes: recognised by what names it, so that it is charged once. Where it cannot be recognised the importer is charged as well: counted twice is
 * safe, not counted is not. */
#include "quota/cuda/families.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DMA_BUF_FS_MAGIC 0x444d4142
#define KEY_INODE UINT64_C(0x434b494e00000000) /* high half of key[0]: "CKIN" */
#define KEY_FILE \
    UINT64_C(0x434b464400000000) /* "CKFD": key[0] low half is the exporter's pid, key[1] its descriptor */
#define HELD_FD_MIN 256          /* out of the way of programs that expect the next number */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Our own few lines, so that no library comes into every process of a job for it. Two hashes with different seeds, each over every byte; not made against forgery: whoever can make
 * up a handle can only have itself charged less for memory that it cannot map. */
void corral_cuda_handle_key(const void *handle, size_t bytes, uint64_t key[2])
{
    const uint8_t *at = handle;
    key[0] = UINT64_C(0x9e3779b97f4a7c15);
    key[1] = UINT64_C(0xc2b2ae3d27d4eb4f) + bytes;
    for (size_t i = 0; i < bytes; i++) {
        key[0] = mix(key[0] ^ at[i]);
        key[1] = mix(key[1] + at[i] + 1);
    }
    key[0] &= ~(UINT64_C(0xff) << 56); /* apart from KEY_INODE and KEY_FILE */
}

/* Where the descriptor's inode is the memory's own. The driver's descriptors are of a device node that all of them share. */
static bool inode_key(int fd, uint64_t key[2])
{
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0 ||
        (fs.f_type != TMPFS_MAGIC && fs.f_type != DMA_BUF_FS_MAGIC) || S_ISCHR(st.st_mode)) {
        return false;
    }
    key[0] = KEY_INODE | (uint32_t)st.st_dev;
    key[1] = (uint64_t)st.st_ino;
    return true;
}

void corral_cuda_export_key(const struct corral_quota_charge *charge, const uint64_t key[2])
{
    int saved = errno;
    struct corral_error err = {0};
    struct corral_quota *q = corral_cuda_quota();
    if (q != NULL && corral_cuda_is_charged(charge) && charge->allocation != CORRAL_LEDGER_NONE &&
        corral_quota_export(q, charge, key, &err) != CORRAL_OK) {
        corral_cuda_log("export", "reason=\"%s\" effect=\"importers are charged too\"", err.text);
    }
    errno = saved;
}

void corral_cuda_export_fd(const struct corral_quota_charge *charge, int fd, int *held_fd)
{
    int saved = errno;
    uint64_t key[2];
    if (inode_key(fd, key)) {
        corral_cuda_export_key(charge, key);
    } else if (*held_fd < 0) {
        *held_fd = fcntl(fd, F_DUPFD_CLOEXEC, HELD_FD_MIN);
        if (*held_fd >= 0) {
            key[0] = KEY_FILE | (uint32_t)getpid();
            key[1] = (uint64_t)*held_fd;
            corral_cuda_export_key(charge, key);
        }
    }
    errno = saved;
}

/* The holder of the device first, then those of the process's other devices: memory may be imported with another device current. */
bool corral_cuda_import_key(CUdevice device, const uint64_t key[2], uint32_t *share)
{
    int saved = errno;
    int count = 0;
    uint32_t holder;
    struct corral_quota *q = corral_cuda_quota();
    bool ok = q != NULL && device >= 0 && corral_cuda_holder(device, &holder) &&
              corral_quota_import(q, holder, key, share, NULL) == CORRAL_OK;
    if (!ok && q != NULL && REAL(cuDeviceGetCount)(&count) == CUDA_SUCCESS) {
        for (CUdevice d = 0; d < count && !ok; d++) {
            ok = d != device && corral_cuda_holder(d, &holder) &&
                 corral_quota_import(q, holder, key, share, NULL) == CORRAL_OK;
        }
    }
    errno = saved;
    return ok;
}

static bool same_file(pid_t pid, int their_fd, int fd)
{
    return syscall(SYS_kcmp, (long)getpid(), (long)pid, (long)KCMP_FILE, (unsigned long)fd,
                   (unsigned long)their_fd) == 0;
}

/* Exports by descriptor are compared with ours, file by file. The table is read without its lock, so a key may be of two exports, or of one that ends now: it is only a hint. The import finds it under the lock
 * or not at all; and as the exporter may have used its descriptor's number again since the comparison, that is made once more when the share is held. */
static bool find_file(CUdevice device, int fd, uint32_t *share)
{
    const struct corral_ledger *l = corral_quota_ledger(corral_cuda_quota());
    uint32_t high = CORRAL_MIN(l->share_high, (uint32_t)CORRAL_LEDGER_SHARES_MAX);
    for (uint32_t i = 0; i < high; i++) {
        const struct corral_ledger_share *s = &l->share[i];
        uint64_t key[2] = {__atomic_load_n(&s->key[0], __ATOMIC_RELAXED),
                           __atomic_load_n(&s->key[1], __ATOMIC_RELAXED)};
        if (__atomic_load_n(&s->allocation, __ATOMIC_RELAXED) != 0 && key[0] >> 32 == KEY_FILE >> 32 &&
            key[1] <= INT32_MAX && same_file((pid_t)(uint32_t)key[0], (int)key[1], fd)) {
            uint32_t found;
            if (!corral_cuda_import_key(device, key, &found)) {
                continue;
            }
            if (same_file((pid_t)(uint32_t)key[0], (int)key[1], fd)) {
                *share = found;
                return true;
            }
            corral_quota_drop_share(corral_cuda_quota(), found);
        }
    }
    return false;
}

bool corral_cuda_import_fd(CUdevice device, int fd, uint32_t *share)
{
    int saved = errno;
    uint64_t key[2];
    bool ok = corral_cuda_quota() != NULL && (inode_key(fd, key) ? corral_cuda_import_key(device, key, share)
                                                                 : find_file(device, fd, share));
    errno = saved;
    return ok;
}

/* Size of what a pointer is in; 0: the driver does not tell. */
static uint64_t size_of(CUdeviceptr pointer)
{
    CUdeviceptr base = 0;
    size_t bytes = 0;
    return REAL(cuMemGetAddressRange_v2)(&base, &bytes, pointer) == CUDA_SUCCESS ? bytes : 0;
}

bool corral_cuda_adopt(CUdevice device, enum corral_cuda_space space, CUdeviceptr pointer,
                       const uint64_t key[2], const char *api)
{
    struct corral_quota_charge charge = corral_cuda_no_charge();
    uint32_t share = 0;
    bool shared = corral_cuda_import_key(device, key, &share);
    if (!shared) {
        uint64_t bytes = size_of(pointer);
        corral_cuda_log("import",
                        "api=%s device=%d size=%llu reason=\"owner unknown\" effect=\"charged here\"", api,
                        device, (unsigned long long)bytes);
        if (bytes == 0 || !corral_cuda_reserve(device, bytes, CORRAL_KIND_EXTERNAL, api, &charge)) {
            return false;
        }
    }
    struct corral_cuda_object *object = corral_cuda_object_create(device, &charge);
    if (object == NULL) {
        corral_cuda_rollback(&charge);
        if (shared) {
            corral_quota_drop_share(corral_cuda_quota(), share);
        }
        return false;
    }
    object->shared = shared;
    object->share = share;
    if (space == CORRAL_CUDA_POINTER) {
        object->handles = 0;
        object->maps = 1;
    }
    corral_cuda_object_put(space, pointer, object, corral_cuda_current_context());
    return true;
}
