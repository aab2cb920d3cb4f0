/* A library between the program and the driver, as profilers and other interposers are: it has a cuMemFree_v2 of its own, and looks further with RTLD_NEXT. */
#include <dlfcn.h>

int between_frees;
int cuMemFree_v2(unsigned long long pointer)
{
    between_frees++;
    (void)pointer;
    return 4242;
}
/* Not as a last call, which would leave the stack as if this library's caller asked. */
void *between_next(const char *name)
{
    void *volatile found = dlsym(RTLD_NEXT, name);
    return found;
}
void *between_default(const char *name)
{
    void *volatile found = dlsym(RTLD_DEFAULT, name);
    return found;
}
