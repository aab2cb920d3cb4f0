list(APPEND CORRAL_WEIGHTS_SOURCES
  weights/push/frame.c weights/push/account.c weights/push/worker.c weights/push/receiver.c weights/push/receiver_login.c weights/push/receiver_conn.c weights/push/receiver_gather.c weights/push/receiver_push.c
  weights/push/store_target.c weights/push/sender.c weights/push/sender_push.c weights/push/sender_delta.c weights/push/peer.c weights/push/peer_login.c
  weights/push/visit.c weights/push/visitors.c weights/push/pull.c weights/push/pull_attempt.c weights/push/probe_visit.c weights/push/measure.c)
