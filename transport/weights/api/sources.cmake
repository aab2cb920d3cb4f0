list(APPEND CORRAL_WEIGHTS_SOURCES
  weights/api/layout_bytes.c weights/api/card.c weights/api/memory.c weights/api/buffers.c weights/api/common.c
  weights/api/layout_api.c weights/api/publisher_api.c weights/api/subscriber_api.c)
