corral_test(orchestrator_job_test SOURCES job/job_test.c DEPS corral_orchestrator)
corral_test(orchestrator_job_errors_test SOURCES job/job_errors_test.c DEPS corral_orchestrator)
corral_fuzz(orchestrator_fuzz_job SOURCES job/fuzz_job.c DEPS corral_orchestrator)
