set(CORRAL_ROLLOUT_WORKER_SOURCES worker/fragment_builder.c worker/policy_view.c worker/env_snapshot.c worker/rollout_worker.c worker/eval_worker.c)
