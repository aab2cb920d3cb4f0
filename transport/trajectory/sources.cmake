set(CORRAL_TRAJECTORY_SOURCES trajectory/fragment.c trajectory/wire.c trajectory/credit.c trajectory/block.c trajectory/sender.c trajectory/sender_rank.c
    trajectory/sender_gather.c trajectory/sender_zmq.c trajectory/sender_ring.c trajectory/receiver.c trajectory/receiver_handle.c trajectory/receiver_hold.c
    trajectory/receiver_log.c trajectory/receiver_zmq.c trajectory/receiver_ring.c)
foreach(trajectory_part record ring wal local)
  include(${CMAKE_CURRENT_SOURCE_DIR}/trajectory/${trajectory_part}/sources.cmake OPTIONAL) # appends to CORRAL_TRAJECTORY_SOURCES
endforeach()
