/* What all processes on the fake devices share: how much of each device is taken, in blocks with an owner and further users. Used by both libraries.
 * Every function takes the state's lock itself; a process that dies inside it leaves totals that the next one recomputes from the blocks. */
#ifndef CORRAL_TESTS_FAKECUDA_STATE_H
#define CORRAL_TESTS_FAKECUDA_STATE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define FAKE_DEVICES_MAX 64
#define FAKE_PROCESSES_MAX 512
#define FAKE_BLOCKS_MAX 65536
#define FAKE_SHARES_MAX 8192

struct fake_usage {
    pid_t pid;
    uint64_t bytes;
    uint32_t busy; /* per cent of the device */
};

/* Open or create the state; false: the file cannot be used. Once per process. */
bool fake_state_open(void);
/* Be known as a process that may own blocks. False: too many processes. */
bool fake_state_join(void);
uint32_t fake_state_devices(void);
uint64_t fake_state_memory(void);
uint64_t fake_state_context_bytes(void);
void fake_state_uuid(uint32_t device, uint8_t uuid[16]);
/* What this process may have of the device, by MPS or by CORRAL_FAKECUDA_LIMIT (as a cgroup would); UINT64_MAX: all. And its share of the processors. */
uint64_t fake_process_limit(uint32_t device);
int fake_processors(void);

/* A block is named by a number that is never used twice. False: the device has not that much left, even without the dead. */
bool fake_block_take(uint32_t device, uint64_t bytes, uint64_t *block);
/* Like take, but takes what there is when there is less (managed memory lives elsewhere then). */
bool fake_block_take_some(uint32_t device, uint64_t bytes, uint64_t *block);
bool fake_block_resize(uint64_t block, uint64_t bytes);
void fake_block_drop(uint64_t block);
/* Use a block that another owns: it lives until the last of both lets go. False: gone already. */
bool fake_block_share(uint64_t block);
void fake_block_unshare(uint64_t block);
/* Find a block again by the file that holds its bytes. */
void fake_block_set_file(uint64_t block, uint64_t inode);
bool fake_block_by_file(uint64_t inode, uint64_t *block, uint32_t *device);

uint64_t fake_state_used(uint32_t device);
/* Processes with memory on the device; returns how many there are. */
uint32_t fake_state_usage(uint32_t device, struct fake_usage *out, uint32_t max);
void fake_state_set_busy(uint32_t device, uint32_t percent); /* of this process */

#endif
