/* JSON through jansson. Reading refuses duplicate keys and more than CORRAL_JSON_BYTES_MAX bytes and names line and column in
 * its errors. `json_t` is jansson's own type: code above uses jansson's getters and packers directly, and only this file
 * decides flags. corral_json_line() writes one compact line, keys in insertion order.
 */
#ifndef CORRAL_BASE_JSON_H
#define CORRAL_BASE_JSON_H

#include "base/error.h"
#include <jansson.h>
#include <stdio.h>

#define CORRAL_JSON_BYTES_MAX (64u << 20)

enum corral_status corral_json_parse(json_t **out, const char *name, const char *text, size_t bytes,
                                     struct corral_error *err);
enum corral_status corral_json_read_file(json_t **out, const char *path, struct corral_error *err);
/* One compact line + newline to a stream, or an indented document. */
enum corral_status corral_json_line(FILE *to, const json_t *value, struct corral_error *err);
enum corral_status corral_json_print(FILE *to, const json_t *value, struct corral_error *err);
/* NaN and infinities become null: JSON has no spelling for them. */
json_t *corral_json_real(double value);

#endif
