list(APPEND CORRAL_TRAJECTORY_SOURCES trajectory/record/prologue.c trajectory/record/encode.c trajectory/record/decode.c trajectory/record/map_read.c trajectory/record/fragment_record.c
  trajectory/record/text.c trajectory/record/text_parts.c trajectory/record/text_steps.c)
