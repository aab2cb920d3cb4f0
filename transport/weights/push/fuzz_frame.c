/* Any bytes as what a peer of the push protocol sends: frames come out whole and within their limits, or an error does, however the bytes are cut. */
#include "transport/weights/push/frame.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void look_at(const struct push_frame *f, const uint8_t *payload)
{
    struct push_hello hello, same;
    struct push_prepare prepare;
    struct corral_error err;
    uint8_t back[PUSH_HELLO_BYTES], header[PUSH_HEADER_BYTES];
    struct push_frame again;
    push_put_header(header, f);
    if (f->bytes > PUSH_PAYLOAD_MAX || push_read_header(header, &again, &err) != CORRAL_OK ||
        memcmp(&again, f, sizeof again) != 0) {
        abort();
    }
    if (f->type == PUSH_HELLO) {
        push_get_hello(payload, &hello);
        push_put_hello(back, &hello);
        push_get_hello(back, &same);
        if (memcmp(&same.nonce, &hello.nonce, sizeof same.nonce) != 0 || same.rank != hello.rank) {
            abort();
        }
    }
    if (f->type == PUSH_PREPARE) {
        push_get_prepare(payload, &prepare);
    }
    if (f->type == PUSH_ERROR && push_get_error(payload, f->bytes, "peer", &err) <= CORRAL_AGAIN) {
        abort();
    }
    if (f->type == PUSH_WELCOME) {
        char list[PUSH_LANES_MAX + 1], name[PUSH_LANE_NAME_MAX];
        memcpy(list, payload + 20, f->bytes - 20);
        list[f->bytes - 20] = '\0';
        for (uint32_t i = 0; i < 4; i++) {
            if (push_common_lane(list, "shm,tcp", i, name) && !push_lane_listed("shm,tcp", name)) {
                abort();
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct push_io io;
    struct corral_error err;
    io = (struct push_io){.fd = -1};
    uint32_t step = bytes > 0 ? 1u + data[0] * 17u : 1;
    for (size_t at = 0; at < bytes;) {
        if (io.in_from > 0) {
            memmove(io.in, io.in + io.in_from, io.in_to - io.in_from);
            io.in_to -= io.in_from;
            io.in_from = 0;
        }
        size_t n = CORRAL_MIN(CORRAL_MIN(bytes - at, step), PUSH_IN_BYTES - io.in_to);
        if (n == 0) {
            abort(); /* a buffer full of bytes holds a whole frame */
        }
        memcpy(io.in + io.in_to, data + at, n);
        io.in_to += (uint32_t)n;
        at += n;
        struct push_frame f;
        const uint8_t *payload;
        enum corral_status status;
        while ((status = push_io_next(&io, &f, &payload, &err)) == CORRAL_OK) {
            look_at(&f, payload);
        }
        if (status != CORRAL_AGAIN) {
            return 0;
        }
    }
    return 0;
}
