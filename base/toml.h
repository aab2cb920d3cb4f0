/* Reading TOML 1.0 through toml++ (one C++ file, toml.cpp). Gives a tree of nodes that know their line and column, so
 * that every later error can name the place. Read-only, one thread at a time, owned by the document.
 */
#ifndef CORRAL_BASE_TOML_H
#define CORRAL_BASE_TOML_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_TOML_FILE_BYTES_MAX (1u << 20)

enum corral_toml_kind {
    CORRAL_TOML_TABLE,
    CORRAL_TOML_ARRAY,
    CORRAL_TOML_STRING,
    CORRAL_TOML_INTEGER,
    CORRAL_TOML_FLOAT,
    CORRAL_TOML_BOOL,
    CORRAL_TOML_DATE, /* any date or time: no option takes one */
};

struct corral_toml_doc;
struct corral_toml_node; /* borrowed from the document */

/* Parse `text` (bytes long). `name` is used in errors: "name:LINE:COL: error: …". Syntax error or duplicate key: CORRAL_INVALID. */
enum corral_status corral_toml_parse(struct corral_toml_doc **out, const char *name, const char *text,
                                     size_t bytes, struct corral_error *err);
void corral_toml_destroy(struct corral_toml_doc *doc);
const struct corral_toml_node *corral_toml_root(const struct corral_toml_doc *doc);

enum corral_toml_kind corral_toml_kind(const struct corral_toml_node *n);
const char *corral_toml_kind_name(enum corral_toml_kind kind); /* "a table", "a string", … */
uint32_t corral_toml_line(const struct corral_toml_node *n);   /* of the value, from 1 */
uint32_t corral_toml_column(const struct corral_toml_node *n);

/* Tables: entries in the order of the file; key position is where the key is written. NULL or 0 when n is not a table. */
uint32_t corral_toml_table_size(const struct corral_toml_node *n);
const char *corral_toml_table_key(const struct corral_toml_node *n, uint32_t i);
uint32_t corral_toml_table_key_line(const struct corral_toml_node *n, uint32_t i);
uint32_t corral_toml_table_key_column(const struct corral_toml_node *n, uint32_t i);
const struct corral_toml_node *corral_toml_table_at(const struct corral_toml_node *n, uint32_t i);
const struct corral_toml_node *corral_toml_table_get(const struct corral_toml_node *n,
                                                     const char *key); /* NULL if absent */

uint32_t corral_toml_array_size(const struct corral_toml_node *n);
const struct corral_toml_node *corral_toml_array_at(const struct corral_toml_node *n, uint32_t i);

/* Scalars: only valid for their kind. */
const char *corral_toml_string(
    const struct corral_toml_node *n); /* NUL-terminated; strings with NUL inside are refused at parse */
int64_t corral_toml_integer(const struct corral_toml_node *n);
double corral_toml_float(const struct corral_toml_node *n);
bool corral_toml_bool(const struct corral_toml_node *n);

#endif
