corral_test(orchestrator_journal_test SOURCES journal/journal_test.c DEPS corral_orchestrator LIBS PkgConfig::SQLITE TIMEOUT 300)
