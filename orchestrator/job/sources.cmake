set(CORRAL_JOB_SOURCES job/options.c job/value.c job/load.c job/names.c job/set.c job/devices.c job/check.c job/job.c job/print.c)
