set(CORRAL_INVENTORY_SOURCES inventory/inventory.c inventory/nvml.c)
