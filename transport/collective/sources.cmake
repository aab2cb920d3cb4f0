set(CORRAL_COLLECTIVE_SOURCES collective/call.c collective/self.c collective/shm.c collective/shm_segment.c collective/tcp.c collective/tcp_join.c)
