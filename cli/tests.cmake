corral_test(cli_run_view_test SOURCES run_view_test.c run_view.c DEPS corral_orchestrator corral_base)
