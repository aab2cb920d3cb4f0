set(CORRAL_BUS_SOURCES bus/socket.c bus/idmap.c bus/server.c bus/client.c)
