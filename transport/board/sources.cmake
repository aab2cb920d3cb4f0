set(CORRAL_BOARD_SOURCES board/board.c board/segment.c)
