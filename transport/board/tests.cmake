corral_test(transport_board_test SOURCES board/board_test.c DEPS corral_transport)
