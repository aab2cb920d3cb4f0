/* Any bytes are a job or one error; a job prints as text that parses to the same text. The part after a NUL byte is a --set argument. */
#include "orchestrator/job/job.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data;
    size_t text_bytes = strnlen(text, bytes);
    CORRAL_AUTO_FREE char *set =
        text_bytes < bytes ? strndup(text + text_bytes + 1, bytes - text_bytes - 1) : NULL;
    const char *sets[] = {set};
    struct corral_error err;
    struct corral_job *job = NULL, *again = NULL;
    const struct corral_job_text source = {.name = "fuzz",
                                           .text = text,
                                           .bytes = text_bytes,
                                           .folder = "/f",
                                           .sets = sets,
                                           .set_count = set != NULL};
    if (corral_job_load_text(&source, &job, &err) != CORRAL_OK) {
        if (err.text[0] == '\0') {
            abort();
        }
        return 0;
    }
    CORRAL_AUTO_FREE char *first = NULL;
    CORRAL_AUTO_FREE char *second = NULL;
    if (corral_job_text_of(job, &first, &err) != CORRAL_OK) {
        abort();
    }
    const struct corral_job_text printed = {
        .name = "printed", .text = first, .bytes = strlen(first), .folder = "/f"};
    if (corral_job_load_text(&printed, &again, &err) != CORRAL_OK ||
        corral_job_text_of(again, &second, &err) != CORRAL_OK || strcmp(first, second) != 0) {
        abort();
    }
    corral_job_destroy(job);
    corral_job_destroy(again);
    return 0;
}
