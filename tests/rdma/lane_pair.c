/* lane-pair LANE [host=ADDRESS] [device=NAME] [streams=N] [window=N] [mib=N] [bucket-kib=N] [pushes=N] [memory=host|device] [strided] [deadline-s=N] [sender-dies=N | receiver-dies=N]
 * Moves weights over one lane between two processes and checks every byte. Prints one line, "LANE: N MiB, X MB/s", of the fastest push. With a death after N buckets of the last push, it checks instead that the
 * other process notices within its deadline, and prints how. Exit status 0, 1, 2 for wrong usage, 77 with the reason when the lane is not available here. */
#include "base/clock.h"
#include "transport/weights/lanes/nccl/test_pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool take(const char *argument, struct pair_options *o, uint64_t *mib)
{
    const char *value = strchr(argument, '=');
    size_t name = value != NULL ? (size_t)(value - argument) : strlen(argument);
    uint64_t number = value != NULL ? strtoull(++value, NULL, 10) : 0;
#define IS(text) (strlen(text) == name && strncmp(argument, text, name) == 0)
    if (IS("strided") && value == NULL) {
        o->first = 1;
    } else if (IS("host") && value != NULL) {
        o->options.local_host = value;
    } else if (IS("device") && value != NULL) {
        o->options.device = value;
    } else if (IS("memory") && value != NULL) {
        o->source = o->destination = strcmp(value, "device") == 0 ? PAIR_DEVICE : PAIR_HOST;
    } else if (number == 0) {
        return false;
    } else if (IS("streams")) {
        o->options.streams = (uint32_t)number;
    } else if (IS("window")) {
        o->options.window = (uint32_t)number;
    } else if (IS("mib")) {
        *mib = number;
    } else if (IS("bucket-kib")) {
        o->bucket_bytes = number << 10;
    } else if (IS("pushes")) {
        o->pushes = (uint32_t)number;
    } else if (IS("deadline-s")) {
        o->deadline_ns = number * CORRAL_NS_PER_S;
    } else if (IS("sender-dies")) {
        o->sender_dies_after = (uint32_t)number;
    } else if (IS("receiver-dies")) {
        o->receiver_dies_after = (uint32_t)number;
    } else {
        return false;
    }
    return true;
}

static int judge_death(const struct pair_options *o, const struct pair_result *dead,
                       const struct pair_result *survivor)
{
    bool noticed = !dead->reported && survivor->reported && survivor->status != CORRAL_OK &&
                   survivor->pushed == o->pushes - 1;
    printf("%s: %s is killed: the other end %s: %s\n", o->lane,
           o->sender_dies_after != 0 ? "the sender" : "the receiver", noticed ? "notices" : "DOES NOT NOTICE",
           survivor->text);
    return noticed ? 0 : 1;
}

int main(int argc, char **argv)
{
    uint64_t mib = 64;
    struct pair_options o = {.lane = argc > 1 ? argv[1] : "",
                             .options = {.open_timeout_ns = 20 * CORRAL_NS_PER_S},
                             .rows = 256,
                             .bucket_bytes = 1 << 20,
                             .pushes = 2,
                             .deadline_ns = 60 * CORRAL_NS_PER_S};
    bool good = argc > 1;
    for (int i = 2; i < argc; i++) {
        good = take(argv[i], &o, &mib) && good;
    }
    if (!good) {
        fprintf(stderr,
                "usage: %s LANE [host=ADDRESS] [device=NAME] [streams=N] [window=N] [mib=N] [bucket-kib=N] "
                "[pushes=N] [memory=host|device] [strided] [sender-dies=N | receiver-dies=N]\n",
                argv[0]);
        return 2;
    }
    /* Strided: half of each row. */
    bool strided = o.first != 0;
    o.count = (mib << 20) / o.rows;
    o.columns = strided ? 2 * o.count : o.count;
    o.first = strided ? o.count / 2 : 0;
    struct pair_result receiver, sender;
    if (!pair_run(&o, &receiver, &sender)) {
        fprintf(stderr, "cannot start two processes\n");
        return 1;
    }
    if (receiver.reported && (receiver.status == CORRAL_UNSUPPORTED || receiver.status == CORRAL_NOT_FOUND)) {
        printf("skipped: %s\n", receiver.text);
        return 77;
    }
    if (o.sender_dies_after != 0 || o.receiver_dies_after != 0) {
        bool sends = o.sender_dies_after != 0;
        return judge_death(&o, sends ? &sender : &receiver, sends ? &receiver : &sender);
    }
    if (receiver.status != CORRAL_OK || sender.status != CORRAL_OK) {
        printf("%s: FAILED: receiver: %s; sender: %s\n", o.lane, receiver.text, sender.text);
        return 1;
    }
    double seconds = (double)CORRAL_MAX(sender.push_ns, (uint64_t)1) / 1e9;
    printf("%s: %llu MiB, %.1f MB/s\n", o.lane, (unsigned long long)mib, (double)(mib << 20) / 1e6 / seconds);
    return 0;
}
