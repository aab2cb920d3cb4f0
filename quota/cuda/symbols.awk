# entry_points.tsv -> what="header": enum corral_cuda_symbol; what="rows": the table of symbols.c; what="hooks": declarations of the hooks; what="map": the linker's version script.
BEGIN { FS = "\t" }
$1 == "# words" { words = $2 }
/^#/ || NF < 5 { next }
{
    count++
    name[count] = $1; base[count] = $2; version[count] = $3; stream[count] = $4; class[count] = $5
    if (!($2 in first)) first[$2] = count - 1
}
function hooked(c) { return c == "charge" || c == "release" || c == "query" || c == "lookup" || c == "count" || c == "deny" }
END {
    if (count == 0) { print "symbols.awk: no rows" > "/dev/stderr"; exit 1 }
    if (what == "header") {
        print "/* Generated from entry_points.tsv. */"
        print "#ifndef CORRAL_CUDA_SYMBOLS_H\n#define CORRAL_CUDA_SYMBOLS_H\n\nenum corral_cuda_symbol {"
        for (i = 1; i <= count; i++) print "    CORRAL_CUDA_SYMBOL_" name[i] ","
        print "    CORRAL_CUDA_SYMBOLS\n};\n\n#endif"
    } else if (what == "rows") {
        print "/* Generated from entry_points.tsv. HOOKED and PLAIN (name, first row of the same base name, version, stream, class); WORD (text). */"
        for (i = 1; i <= count; i++)
            printf "%s(%s, %d, %d, %s, %s)\n", hooked(class[i]) ? "HOOKED" : "PLAIN", name[i], first[base[i]], version[i], toupper(stream[i]), toupper(class[i])
        n = split(words, word, " ")
        for (i = 1; i <= n; i++) print "WORD(\"" word[i] "\")"
    } else if (what == "hooks") {
        print "/* Generated from entry_points.tsv. */\n#ifndef CORRAL_CUDA_HOOKS_H\n#define CORRAL_CUDA_HOOKS_H\n"
        for (i = 1; i <= count; i++)
            if (hooked(class[i]) && class[i] != "deny" && name[i] !~ /^nvml/)
                print "extern __attribute__((visibility(\"default\"))) __typeof__(*(" name[i] "_fn)0) " name[i] ";"
        print "\n#endif"
    } else if (what == "map") {
        print "{\n  global:\n    dlsym;\n    dlvsym;"
        for (i = 1; i <= count; i++) if (hooked(class[i])) print "    " name[i] ";"
        print "  local:\n    *;\n};"
    } else { print "symbols.awk: what?" > "/dev/stderr"; exit 1 }
}
