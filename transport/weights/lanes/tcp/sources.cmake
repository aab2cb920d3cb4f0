list(APPEND CORRAL_WEIGHTS_SOURCES weights/lanes/tcp/wire.c weights/lanes/tcp/accept.c weights/lanes/tcp/rx.c weights/lanes/tcp/rx_stream.c weights/lanes/tcp/tx.c weights/lanes/tcp/tx_stream.c)
