/* Writes a small proof chain, for the test of the shell check. usage: quota_proof_sample FILE RECORDS */
#include "quota/proof/chain.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    struct corral_chain *chain = NULL;
    struct corral_error err;
    if (argc != 3 || corral_chain_open(argv[1], &chain, &err) != CORRAL_OK) {
        return 1;
    }
    for (long i = 0, n = strtol(argv[2], NULL, 10); i < n; i++) {
        char body[96];
        snprintf(body, sizeof body, "{\"type\":\"sample\",\"text\":\"a \\\\ b  c %%s $(x)\",\"i\":%ld}", i);
        if (corral_chain_append(chain, body, &err) != CORRAL_OK) {
            return 1;
        }
    }
    struct corral_chain_head head;
    corral_chain_head(chain, &head);
    corral_chain_close(chain);
    printf("%llu %s\n", (unsigned long long)head.count, head.hash);
    return 0;
}
