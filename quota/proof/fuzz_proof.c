/* Any bytes as the body of a record, and as a chain file: what is accepted is written and read back the same, what is not is refused. */
#include "base/hash.h"
#include "quota/proof/verify.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* The reader would refuse almost anything by its hash: give it the right ones, line by line. */
static void write_chain(int fd, const uint8_t *data, size_t bytes)
{
    char hash[65], line[CORRAL_CHAIN_LINE_MAX];
    memset(hash, '0', 64);
    while (bytes > 0) {
        const uint8_t *end = memchr(data, '\n', bytes);
        size_t n = end ? (size_t)(end - data) : bytes;
        if (n > sizeof line - 66) {
            return;
        }
        uint8_t digest[32];
        memcpy(line, hash, 64);
        line[64] = ' ';
        memcpy(line + 65, data, n);
        corral_sha256(line, 65 + n, digest);
        corral_hex(digest, sizeof digest, hash);
        memcpy(line, hash, 64);
        line[65 + n] = '\n';
        if (write(fd, line, 66 + n) < 0 || !end) {
            return;
        }
        data += n + 1;
        bytes -= n + 1;
    }
}

static void verify(int fd)
{
    char path[64];
    static struct corral_proof_summary summary;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    (void)corral_proof_verify(path, NULL, 0, &summary, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct corral_proof_record r, back;
    static char text[CORRAL_CHAIN_LINE_MAX];
    if (corral_proof_parse((const char *)data, bytes, &r, NULL) == CORRAL_OK) {
        size_t n = corral_proof_write(&r, text, sizeof text);
        if (n == 0 || corral_proof_parse(text, n, &back, NULL) != CORRAL_OK || back.type != r.type ||
            back.step != r.step || back.claim_peak != r.claim_peak || back.role_count != r.role_count ||
            corral_proof_check(&r, NULL) != corral_proof_check(&back, NULL)) {
            abort();
        }
    }
    int fd = memfd_create("chain", MFD_CLOEXEC);
    if (fd < 0) {
        abort();
    }
    write_chain(fd, data, bytes);
    verify(fd);
    if (ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0 && write(fd, data, bytes) == (ssize_t)bytes) {
        verify(fd);
    }
    close(fd);
    return 0;
}
