set(CORRAL_TRAJECTORY_SOURCES trajectory/fragment.c trajectory/wire.c trajectory/credit.c trajectory/block.c trajectory/sender.c trajectory/sender_rank.c
    trajectory/receiver.c trajectory/receiver_handle.c)
