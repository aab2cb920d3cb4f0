// The one C++ file: toml++ behind the C interface of toml.h. No exception leaves it.
extern "C" {
#include "base/toml.h"
}

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#define TOML_ENABLE_WINDOWS_COMPAT 0
// Together with KEY_PARTS_MAX this bounds the depth of the tree, and so the stack its recursive destructor needs.
#define TOML_MAX_NESTED_VALUES 32
// toml++ 3.3 has assertions that input can reach (`[ = 1`). They are kept in every build and made errors: see corral_toml_parse().
namespace
{
struct parser_gave_up {
};

[[noreturn]] void parser_gives_up()
{
    throw parser_gave_up{};
}
} // namespace
#undef NDEBUG
#define TOML_ASSERT(expr) (static_cast<bool>(expr) ? static_cast<void>(0) : parser_gives_up())
#include <toml++/toml.h>

namespace
{
constexpr unsigned KEY_PARTS_MAX = 32;

struct entry;
} // namespace

struct corral_toml_node {
    enum corral_toml_kind kind = CORRAL_TOML_TABLE;
    uint32_t line = 0, column = 0;
    std::string string;
    int64_t integer = 0;
    double real = 0;
    bool boolean = false;
    std::vector<entry> entries; // a table's, in the order of the file; an array's, with empty keys
};

namespace
{
struct entry {
    std::string key;
    uint32_t line = 0, column = 0;
    corral_toml_node value;
};
} // namespace

struct corral_toml_doc {
    corral_toml_node root;
};

namespace
{
struct context {
    const char *name;
    struct corral_error *err;
};

// One line, whatever the text quotes from the file.
std::string in_one_line(std::string_view text)
{
    std::string out;
    for (char c : text) {
        char escaped[8];
        if (c == '\n') {
            out += "\\n";
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(c));
            out += escaped;
        } else {
            out += c;
        }
    }
    return out;
}

enum corral_status refuse(const context &at, toml::source_position where, const char *text)
{
    return corral_fail(at.err, CORRAL_INVALID, "%s:%u:%u: error: %s", at.name,
                       static_cast<unsigned>(where.line), static_cast<unsigned>(where.column), text);
}

// Line and column (in characters) of a byte.
toml::source_position position_of(std::string_view text, size_t byte)
{
    toml::source_position p{1, 1};
    for (size_t k = 0; k < byte && k < text.size(); k++) {
        if (text[k] == '\n') {
            p = {p.line + 1, 1};
        } else {
            p.column += (static_cast<unsigned char>(text[k]) & 0xC0) != 0x80;
        }
    }
    return p;
}

// What toml++ must not see. It bounds nested values but not the parts of a dotted key, and its tables are destroyed
// recursively: a megabyte of "a.a.a…" would overflow the stack. And outside strings and comments, where TOML 1.0 is plain
// ASCII, some other characters lead its tables to an unreachable place. Strings and comments are skipped the way TOML does.
class early_scan
{
  public:
    explicit early_scan(std::string_view s) : text(s)
    {
    }

    // NULL, or what is wrong at byte `at`.
    const char *run(size_t &at)
    {
        constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
        if (text.substr(0, byte_order_mark.size()) == byte_order_mark) {
            i = byte_order_mark.size();
        }
        unsigned parts = 1;
        while (i < text.size()) {
            char c = text[i];
            if (c == '"' || c == '\'') {
                skip_string(c);
                continue;
            }
            if (c == '#') {
                skip_line();
                continue;
            }
            if (c == '.') {
                parts++;
            } else if (c == '\n' || c == '=' || c == ',' || c == '{' || c == '[' || c == ']') {
                parts = 1;
            }
            at = i;
            if (parts > KEY_PARTS_MAX) {
                return "a dotted key has more than 32 parts";
            }
            if (static_cast<unsigned char>(c) >= 0x80) {
                return "a character that is not ASCII stands outside quotes; quote the key or the value";
            }
            i++;
        }
        return nullptr;
    }

  private:
    std::string_view text;
    size_t i = 0;

    void skip_line()
    {
        while (i < text.size() && text[i] != '\n') {
            i++;
        }
    }

    bool triple_at(size_t at, char quote) const
    {
        return at + 2 < text.size() && text[at] == quote && text[at + 1] == quote && text[at + 2] == quote;
    }

    void skip_string(char quote)
    {
        bool multi = triple_at(i, quote);
        i += multi ? 3 : 1;
        while (i < text.size()) {
            if (quote == '"' && text[i] == '\\') {
                i += 2;
                continue;
            }
            if (!multi && (text[i] == quote || text[i] == '\n')) {
                i += text[i] == quote; // a line break is left for run()
                return;
            }
            if (multi && triple_at(i, quote)) {
                i += 3;
                for (int extra = 0; extra < 2 && i < text.size() && text[i] == quote; extra++) {
                    i++; // up to two quotes may stand before the closing three
                }
                return;
            }
            i++;
        }
    }
};

bool gives_up_on(std::string_view text)
{
    try {
        (void)toml::parse(text);
        return false;
    } catch (const parser_gave_up &) {
        return true;
    }
}

// The parser does not say where it gave up. The shortest beginning of the text that it gives up on ends there.
size_t where_it_gives_up(std::string_view text)
{
    size_t fine = 0, bad = text.size();
    while (bad - fine > 1) {
        size_t middle = fine + (bad - fine) / 2;
        (gives_up_on(text.substr(0, middle)) ? bad : fine) = middle;
    }
    return bad > 0 ? bad - 1 : 0;
}

enum corral_status convert(const context &at, const toml::node &from, corral_toml_node &to);

enum corral_status convert_table(const context &at, const toml::table &from, corral_toml_node &to)
{
    struct pair {
        const toml::key *key;
        const toml::node *value;
    };
    std::vector<pair> order;
    for (auto &&[key, value] : from) {
        order.push_back({&key, &value});
    }
    std::stable_sort(order.begin(), order.end(), [](const pair &a, const pair &b) {
        return a.key->source().begin < b.key->source().begin;
    });
    to.kind = CORRAL_TOML_TABLE;
    to.entries.resize(order.size());
    for (size_t i = 0; i < order.size(); i++) {
        entry &e = to.entries[i];
        toml::source_position where = order[i].key->source().begin;
        e.key = std::string(order[i].key->str());
        e.line = where.line;
        e.column = where.column;
        if (e.key.find('\0') != std::string::npos) {
            return refuse(at, where, "a key holds a NUL character");
        }
        CORRAL_TRY(convert(at, *order[i].value, e.value));
    }
    return CORRAL_OK;
}

enum corral_status convert_array(const context &at, const toml::array &from, corral_toml_node &to)
{
    to.kind = CORRAL_TOML_ARRAY;
    to.entries.resize(from.size());
    for (size_t i = 0; i < from.size(); i++) {
        CORRAL_TRY(convert(at, from[i], to.entries[i].value));
        to.entries[i].line = to.entries[i].value.line;
        to.entries[i].column = to.entries[i].value.column;
    }
    return CORRAL_OK;
}

enum corral_status convert(const context &at, const toml::node &from, corral_toml_node &to)
{
    to.line = from.source().begin.line;
    to.column = from.source().begin.column;
    switch (from.type()) {
    case toml::node_type::table:
        return convert_table(at, *from.as_table(), to);
    case toml::node_type::array:
        return convert_array(at, *from.as_array(), to);
    case toml::node_type::string:
        to.kind = CORRAL_TOML_STRING;
        to.string = from.as_string()->get();
        if (to.string.find('\0') != std::string::npos) {
            return refuse(at, from.source().begin, "a string holds a NUL character");
        }
        return CORRAL_OK;
    case toml::node_type::integer:
        to.kind = CORRAL_TOML_INTEGER;
        to.integer = from.as_integer()->get();
        return CORRAL_OK;
    case toml::node_type::floating_point:
        to.kind = CORRAL_TOML_FLOAT;
        to.real = from.as_floating_point()->get();
        return CORRAL_OK;
    case toml::node_type::boolean:
        to.kind = CORRAL_TOML_BOOL;
        to.boolean = from.as_boolean()->get();
        return CORRAL_OK;
    default:
        to.kind = CORRAL_TOML_DATE;
        return CORRAL_OK;
    }
}

enum corral_status parse(struct corral_toml_doc **out, const context &at, std::string_view text)
{
    if (text.size() > CORRAL_TOML_FILE_BYTES_MAX) {
        return refuse(at, {1, 1}, "the file is larger than 1 MiB");
    }
    size_t byte = 0;
    const char *wrong = early_scan(text).run(byte);
    if (wrong != nullptr) {
        return refuse(at, position_of(text, byte), wrong);
    }
    toml::parse_result result = toml::parse(text);
    if (!result) {
        const toml::parse_error &e = result.error();
        return refuse(at, e.source().begin, in_one_line(e.description()).c_str());
    }
    auto doc = std::make_unique<corral_toml_doc>();
    CORRAL_TRY(convert(at, result.table(), doc->root));
    *out = doc.release();
    return CORRAL_OK;
}

const entry *entry_at(const struct corral_toml_node *n, uint32_t i, enum corral_toml_kind kind)
{
    return n->kind == kind && i < n->entries.size() ? &n->entries[i] : nullptr;
}
} // namespace

extern "C" {
enum corral_status corral_toml_parse(struct corral_toml_doc **out, const char *name, const char *text,
                                     size_t bytes, struct corral_error *err)
{
    try {
        std::string_view source(text, bytes);
        try {
            return parse(out, context{name, err}, source);
        } catch (const parser_gave_up &) {
            return refuse(context{name, err}, position_of(source, where_it_gives_up(source)),
                          "a key or a value is missing or malformed here");
        }
    } catch (const std::bad_alloc &) {
        return corral_fail(err, CORRAL_NOMEM, "%s: cannot parse: out of memory", name);
    } catch (...) {
        return corral_fail(err, CORRAL_INTERNAL, "%s: cannot parse: the TOML parser failed", name);
    }
}

void corral_toml_destroy(struct corral_toml_doc *doc)
{
    delete doc;
}

const struct corral_toml_node *corral_toml_root(const struct corral_toml_doc *doc)
{
    return &doc->root;
}

enum corral_toml_kind corral_toml_kind(const struct corral_toml_node *n)
{
    return n->kind;
}

const char *corral_toml_kind_name(enum corral_toml_kind kind)
{
    switch (kind) {
    case CORRAL_TOML_TABLE:
        return "a table";
    case CORRAL_TOML_ARRAY:
        return "an array";
    case CORRAL_TOML_STRING:
        return "a string";
    case CORRAL_TOML_INTEGER:
        return "an integer";
    case CORRAL_TOML_FLOAT:
        return "a float";
    case CORRAL_TOML_BOOL:
        return "a boolean";
    case CORRAL_TOML_DATE:
        return "a date or time";
    }
    return "an unknown value";
}

uint32_t corral_toml_line(const struct corral_toml_node *n)
{
    return n->line;
}

uint32_t corral_toml_column(const struct corral_toml_node *n)
{
    return n->column;
}

uint32_t corral_toml_table_size(const struct corral_toml_node *n)
{
    return n->kind == CORRAL_TOML_TABLE ? static_cast<uint32_t>(n->entries.size()) : 0;
}

const char *corral_toml_table_key(const struct corral_toml_node *n, uint32_t i)
{
    const entry *e = entry_at(n, i, CORRAL_TOML_TABLE);
    return e != nullptr ? e->key.c_str() : nullptr;
}

uint32_t corral_toml_table_key_line(const struct corral_toml_node *n, uint32_t i)
{
    const entry *e = entry_at(n, i, CORRAL_TOML_TABLE);
    return e != nullptr ? e->line : 0;
}

uint32_t corral_toml_table_key_column(const struct corral_toml_node *n, uint32_t i)
{
    const entry *e = entry_at(n, i, CORRAL_TOML_TABLE);
    return e != nullptr ? e->column : 0;
}

const struct corral_toml_node *corral_toml_table_at(const struct corral_toml_node *n, uint32_t i)
{
    const entry *e = entry_at(n, i, CORRAL_TOML_TABLE);
    return e != nullptr ? &e->value : nullptr;
}

const struct corral_toml_node *corral_toml_table_get(const struct corral_toml_node *n, const char *key)
{
    for (uint32_t i = 0; i < corral_toml_table_size(n); i++) {
        if (n->entries[i].key == key) {
            return &n->entries[i].value;
        }
    }
    return nullptr;
}

uint32_t corral_toml_array_size(const struct corral_toml_node *n)
{
    return n->kind == CORRAL_TOML_ARRAY ? static_cast<uint32_t>(n->entries.size()) : 0;
}

const struct corral_toml_node *corral_toml_array_at(const struct corral_toml_node *n, uint32_t i)
{
    const entry *e = entry_at(n, i, CORRAL_TOML_ARRAY);
    return e != nullptr ? &e->value : nullptr;
}

const char *corral_toml_string(const struct corral_toml_node *n)
{
    return n->string.c_str();
}

int64_t corral_toml_integer(const struct corral_toml_node *n)
{
    return n->integer;
}

double corral_toml_float(const struct corral_toml_node *n)
{
    return n->real;
}

bool corral_toml_bool(const struct corral_toml_node *n)
{
    return n->boolean;
}
}
