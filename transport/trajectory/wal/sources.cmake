list(APPEND CORRAL_TRAJECTORY_SOURCES trajectory/wal/compress.c trajectory/wal/files.c trajectory/wal/format.c trajectory/wal/reader.c trajectory/wal/segment.c
     trajectory/wal/stream_log.c trajectory/wal/wal.c trajectory/wal/wal_repair.c trajectory/wal/wal_segments.c trajectory/wal/wal_sync.c)
if(ZSTD_FOUND)
  set_source_files_properties(trajectory/wal/compress.c PROPERTIES COMPILE_DEFINITIONS CORRAL_HAVE_ZSTD)
endif()
