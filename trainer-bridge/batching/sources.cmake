set(CORRAL_BATCHING_SOURCES batching/assembly.c batching/assembly_batch.c batching/assembly_state.c batching/best_fit.c batching/group_index.c batching/groups.c batching/handoff.c batching/lease.c batching/limiter.c
    batching/packing.c batching/partition.c batching/replay.c batching/rounds.c batching/share.c batching/trainer_api.c)
