corral_test(orchestrator_journal_test SOURCES journal/journal_test.c DEPS corral_orchestrator TIMEOUT 300)
