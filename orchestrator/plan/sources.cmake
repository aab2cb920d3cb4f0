set(CORRAL_PLAN_SOURCES plan/plan.c plan/memory.c plan/print.c)
