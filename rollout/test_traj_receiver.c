/* A trainer as far as a writer sees one, for traj_guide_test.sh: receives COUNT records, shows each as text, acknowledges it.
 *   test_traj_receiver ENDPOINT TOKEN COUNT
 */
#include "base/text.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/record/text.h"
#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

static int fail(const struct corral_error *err)
{
    fprintf(stderr, "test_traj_receiver: %s\n", err->text);
    return 1;
}

static enum corral_status receive(struct corral_traj_receiver *r, uint64_t count, struct corral_error *err)
{
    static struct corral_traj_view view;
    const struct corral_traj_item *item;
    while (count > 0) {
        const enum corral_status status = corral_traj_receiver_next(r, 1000, &item, err);
        if (status == CORRAL_AGAIN) {
            continue;
        }
        CORRAL_TRY(status);
        CORRAL_TRY(corral_traj_record_decode(item->data, item->bytes, &view, err));
        corral_traj_text(stdout, &view.record, NULL);
        corral_traj_receiver_finish(r, item);
        count--;
    }
    for (int i = 0; i < 20; i++) { /* the last acknowledgement goes out, and again when the writer asks */
        (void)corral_traj_receiver_next(r, 50, &item, NULL);
    }
    return CORRAL_OK;
}

int main(int argc, char **argv)
{
    struct corral_error err;
    struct corral_traj_receiver *r = NULL;
    uint64_t count;
    if (argc != 4 || !corral_parse_u64(argv[3], &count)) {
        fprintf(stderr, "usage: test_traj_receiver ENDPOINT TOKEN COUNT\n");
        return 2;
    }
    void *zmq = zmq_ctx_new();
    const struct corral_traj_receiver_config c = {.zmq_context = zmq,
                                                  .run = 1,
                                                  .bind = argv[1],
                                                  .buffer_bytes = 1 << 20,
                                                  .memory = &corral_allocator_heap,
                                                  .token = argv[2]};
    if (corral_traj_receiver_create(&r, &c, &err) != CORRAL_OK || receive(r, count, &err) != CORRAL_OK) {
        return fail(&err);
    }
    corral_traj_receiver_destroy(r);
    zmq_ctx_term(zmq);
    return 0;
}
