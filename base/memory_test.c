#include "base/memory.h"
#include "tests/check.h"
#include <string.h>

static void gives_zeroed_memory_aligned_to_64(void **state)
{
    (void)state;
    struct corral_error err;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4097, 1000003};
    for (size_t i = 0; i < CORRAL_COUNT_OF(sizes); i++) {
        void *p = NULL;
        check_ok(corral_alloc(&corral_allocator_heap, sizes[i], "test", &p, &err));
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        const unsigned char *bytes = p;
        for (size_t j = 0; j < sizes[i]; j++) {
            assert_int_equal(bytes[j], 0);
        }
        memset(p, 0xA5, sizes[i]); /* dirty it for the next round */
        corral_release(&corral_allocator_heap, p, sizes[i]);
    }
    corral_release(&corral_allocator_heap, NULL, 0);
}

static void two_empty_allocations_differ(void **state)
{
    (void)state;
    struct corral_error err;
    void *a = NULL;
    void *b = NULL;
    check_ok(corral_alloc(&corral_allocator_heap, 0, "a", &a, &err));
    check_ok(corral_alloc(&corral_allocator_heap, 0, "b", &b, &err));
    assert_ptr_not_equal(a, b);
    corral_release(&corral_allocator_heap, a, 0);
    corral_release(&corral_allocator_heap, b, 0);
}

static void an_impossible_size_is_no_memory_and_names_the_use(void **state)
{
    (void)state;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 63, (size_t)PTRDIFF_MAX};
    for (size_t i = 0; i < CORRAL_COUNT_OF(sizes); i++) {
        struct corral_error err;
        int mark;
        void *p = &mark;
        check_status(corral_alloc(&corral_allocator_heap, sizes[i], "adam moments", &p, &err), CORRAL_NOMEM);
        assert_non_null(strstr(err.text, "adam moments"));
        assert_ptr_equal(p, &mark);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_zeroed_memory_aligned_to_64),
        cmocka_unit_test(two_empty_allocations_differ),
        cmocka_unit_test(an_impossible_size_is_no_memory_and_names_the_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
