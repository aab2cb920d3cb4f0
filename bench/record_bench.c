/* Nanoseconds to encode and to decode the prologue and header of a trajectory record, beside msgpack-c packing and unpacking the same map: pack from objects that exist already, unpack
 * into a zone, nothing looked at. Ours checks every field, name and shape besides, and finds the tensors. Tensors are not copied by either. Rounds of both alternate; median (least … most).
 *
 *   record_bench [ROUNDS]
 */
#include "base/clock.h"
#include "base/text.h"
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/record/prologue.h"
#include "transport/trajectory/record/test_records.h"
#include "transport/trajectory/test_support.h"
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS_MAX 1001
#define CALLS 200 /* a round is over before somebody else gets the core */

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "record_bench: %s failed\n", what);
        exit(1);
    }
}

static uint64_t now(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

struct figures {
    double encode[ROUNDS_MAX], decode[ROUNDS_MAX], both[ROUNDS_MAX], msgpack[ROUNDS_MAX], ratio[ROUNDS_MAX];
};

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void show(const char *what, double *v, uint64_t n, const char *unit)
{
    qsort(v, n, sizeof *v, by_value);
    printf("  %-24s %7.2f %s  (%.2f … %.2f)\n", what, v[n / 2], unit, v[0], v[n - 1]);
}

static void ours(const struct corral_traj_record *r, void *memory, uint64_t bytes, double *encode,
                 double *decode)
{
    static struct corral_traj_view view;
    const uint64_t start = now();
    for (int i = 0; i < CALLS; i++) {
        must(corral_traj_record_encode(r, memory, bytes, NULL) == CORRAL_OK, "encode");
    }
    const uint64_t half = now();
    for (int i = 0; i < CALLS; i++) {
        must(corral_traj_record_decode(memory, bytes, &view, NULL) == CORRAL_OK, "decode");
    }
    *encode = (double)(half - start) / CALLS;
    *decode = (double)(now() - half) / CALLS;
}

static double theirs(const msgpack_object *map, msgpack_sbuffer *buffer)
{
    msgpack_packer packer;
    msgpack_unpacked out;
    msgpack_packer_init(&packer, buffer, msgpack_sbuffer_write);
    const uint64_t start = now();
    for (int i = 0; i < CALLS; i++) {
        size_t at = 0;
        msgpack_sbuffer_clear(buffer);
        must(msgpack_pack_object(&packer, *map) == 0, "msgpack-c's pack");
        msgpack_unpacked_init(&out);
        must(msgpack_unpack_next(&out, buffer->data, buffer->size, &at) == MSGPACK_UNPACK_SUCCESS,
             "msgpack-c's unpack");
        msgpack_unpacked_destroy(&out);
    }
    return (double)(now() - start) / CALLS;
}

static void compare(const char *what, const struct corral_traj_record *r, uint64_t rounds)
{
    static struct figures f;
    struct corral_traj_tensor placed[CORRAL_TRAJ_TENSORS_MAX];
    struct corral_traj_record header = *r;
    uint64_t bytes;
    size_t at = 0;
    void *memory = test_record_encode(r, &bytes);
    const struct corral_traj_prologue *p = memory;
    memcpy(placed, r->tensors, r->tensor_count * sizeof *placed);
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        placed[i].data = NULL;
    }
    header.tensors = placed;
    msgpack_unpacked map;
    msgpack_sbuffer buffer;
    msgpack_unpacked_init(&map);
    msgpack_sbuffer_init(&buffer);
    must(msgpack_unpack_next(&map, (char *)memory + sizeof *p, p->header_bytes, &at) ==
             MSGPACK_UNPACK_SUCCESS,
         "msgpack-c's unpack");
    for (uint64_t i = 0; i < rounds; i++) {
        ours(&header, memory, bytes, &f.encode[i], &f.decode[i]);
        f.msgpack[i] = theirs(&map.data, &buffer);
        f.both[i] = f.encode[i] + f.decode[i];
        f.ratio[i] = f.msgpack[i] / f.both[i];
    }
    printf("%s: %u tensors, header of %u bytes, %llu rounds of %d\n", what, r->tensor_count, p->header_bytes,
           (unsigned long long)rounds, CALLS);
    show("encode", f.encode, rounds, "ns");
    show("decode", f.decode, rounds, "ns");
    show("encode + decode", f.both, rounds, "ns");
    show("msgpack-c pack + unpack", f.msgpack, rounds, "ns");
    show("msgpack-c / ours", f.ratio, rounds, "x ");
    msgpack_sbuffer_destroy(&buffer);
    msgpack_unpacked_destroy(&map);
    free(memory);
}

static void fragment(uint64_t rounds)
{
    struct test_fragment t;
    struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES];
    struct corral_traj_record r = {0};
    for (uint64_t seed = 0; r.tensor_count != CORRAL_FRAGMENT_FRAMES; seed++) {
        test_fragment_make(&t, seed, 32);
        must(corral_fragment_record(&t.fragment, &r, tensors, NULL) == CORRAL_OK, "fragment");
        if (r.tensor_count != CORRAL_FRAGMENT_FRAMES) {
            test_fragment_free(&t);
        }
    }
    r.env = "CartPole-v1";
    compare("fragment", &r, rounds);
    test_fragment_free(&t);
}

int main(int argc, char **argv)
{
    uint64_t rounds = 501;
    if (argc > 2 ||
        (argc == 2 && (!corral_parse_u64(argv[1], &rounds) || rounds == 0 || rounds > ROUNDS_MAX))) {
        fprintf(stderr, "usage: record_bench [ROUNDS, 1 to %d]\n", ROUNDS_MAX);
        return 2;
    }
    fragment(rounds);
    static struct test_record episode;
    test_record_episode(&episode, 512);
    compare("token episode", &episode.record, rounds);
    test_record_free(&episode);
    return 0;
}
