/* What the tests and benchmarks of records share: records that follow from a seed, and realistic ones. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_TEST_RECORDS_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_TEST_RECORDS_H

#include <corral/trajectory.h>
#include <stdbool.h>

struct test_record {
    struct corral_traj_record record;
    struct corral_traj_tensor tensors[CORRAL_TRAJ_TENSORS_MAX];
    struct corral_traj_score scores[CORRAL_TRAJ_SCORES_MAX];
    char names[CORRAL_TRAJ_TENSORS_MAX + CORRAL_TRAJ_SCORES_MAX][CORRAL_TRAJ_TEXT_MAX + 1];
    char env[CORRAL_TRAJ_TEXT_MAX + 1], finish[CORRAL_TRAJ_TEXT_MAX + 1], task[CORRAL_TRAJ_TASK_MAX + 1];
    void *data[CORRAL_TRAJ_TENSORS_MAX];
};
/* Anything that can be encoded, from the seed alone. */
void test_record_make(struct test_record *t, uint64_t seed);
/* The most of everything: as many tensors and scores as there may be, with the longest names and texts. */
void test_record_largest(struct test_record *t);
/* An episode of `tokens` tokens in three turns with eight tensors. */
void test_record_episode(struct test_record *t, uint32_t tokens);
void test_record_free(struct test_record *t);
/* Encoded, in memory of its own (free()). */
void *test_record_encode(const struct corral_traj_record *r, uint64_t *bytes);
/* Same facts, scores and tensors, bit for bit. */
bool test_record_equal(const struct corral_traj_record *a, const struct corral_traj_record *b);

#endif
