/* rlctl completion: a shell script made from the command table and the option table. */
#include "cli/cli.h"
#include "cli/set_args.h"
#include "orchestrator/job/options.h"
#include <getopt.h>
#include <string.h>

static void usage(FILE *to)
{
    fputs("Usage: rlctl completion bash\n"
          "\n"
          "Prints a completion script: commands, options, job files, runs, environments, and the keys and "
          "choices of --set.\n"
          "\n"
          "  -h, --help  this text\n"
          "\n"
          "Examples:\n"
          "  source <(rlctl completion bash)\n"
          "  rlctl completion bash > ~/.local/share/bash-completion/completions/rlctl\n",
          to);
}

static void print_commands(void)
{
    fputs("    local commands=\"", stdout);
    for (const struct corral_command *c = corral_commands; c->name != NULL; c++) {
        if (!c->hidden) {
            printf("%s%s", c == corral_commands ? "" : " ", c->name);
        }
    }
    fputs("\"\n", stdout);
}

static const char *section_placeholder(const struct corral_option *o)
{
    const struct corral_option_section *s = corral_option_section_find(o->section);
    return s != NULL && s->kind != CORRAL_SECTION_TABLE ? ".NAME" : "";
}

/* partition.NAME.floor= : the script puts the names of the job's partitions in. */
static void print_keys(void)
{
    fputs("    local keys=\"", stdout);
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        if (o->section[0] != '\0') {
            printf("%s%s%s.%s=", i > 1 ? " " : "", o->section, section_placeholder(o), o->name);
        }
    }
    fputs("\"\n", stdout);
}

static void print_choices(void)
{
    fputs("    case $key in\n", stdout);
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        if ((o->choices == NULL && o->type != CORRAL_OPTION_BOOL) || o->type == CORRAL_OPTION_SET) {
            continue; /* a set is written as a list, in the shell's quotes */
        }
        printf("    %s%s.%s) choices=\"", o->section, section_placeholder(o)[0] != '\0' ? ".*" : "", o->name);
        if (o->choices == NULL) {
            fputs("true false", stdout);
        }
        for (uint32_t k = 0; o->choices != NULL && o->choices[k] != NULL; k++) {
            printf("%s%s", k > 0 ? " " : "", o->choices[k]);
        }
        fputs("\" ;;\n", stdout);
    }
    fputs("    esac\n", stdout);
}

static void print_bash(void)
{
    fputs("# bash completion for rlctl; made by `rlctl completion bash`\n"
          "_rlctl_set()\n"
          "{\n"
          "    local word=$1 key choices=\"\" names name w kind\n",
          stdout);
    print_keys();
    fputs("    if [[ $word == *=* ]]; then\n"
          "        key=${word%%=*}\n",
          stdout);
    print_choices();
    fputs("        mapfile -t COMPREPLY < <(compgen -P \"$key=\" -W \"$choices\" -- \"${word#*=}\")\n"
          "    else\n"
          "        # names of partitions and nodes come from the job file on the command line\n"
          "        for w in \"${COMP_WORDS[@]}\"; do\n"
          "            [[ $w == *.toml && -r $w ]] || continue\n"
          "            names=$(sed -n 's/^\\[partition\\.\\([a-z0-9-]*\\)\\].*/\\1/p' \"$w\")\n"
          "            for kind in $names; do\n"
          "                keys+=\" $(compgen -W \"$keys\" -- partition.NAME. | sed \"s/NAME/$kind/\" | tr "
          "'\\n' ' ')\"\n"
          "            done\n"
          "            for kind in tenant node; do\n"
          "                names=$(awk -v kind=\"[[$kind]]\" '/^\\[/ { on = index($0, kind) == 1 }\n"
          "                    on && /^name *=/ { gsub(/^[^\"]*\"|\".*/, \"\"); print }' \"$w\")\n"
          "                for name in $names; do\n"
          "                    keys+=\" $(compgen -W \"$keys\" -- $kind.NAME. | sed \"s/NAME/$name/\" | tr "
          "'\\n' ' ')\"\n"
          "                done\n"
          "            done\n"
          "        done\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$keys\" -- \"$word\" | grep -v '\\.NAME\\.')\n"
          "        compopt -o nospace\n"
          "    fi\n"
          "    # the word before '=' is a word of its own for readline\n"
          "    if [[ $COMP_WORDBREAKS == *=* && $word == *=* ]]; then\n"
          "        COMPREPLY=(\"${COMPREPLY[@]#*=}\")\n"
          "    fi\n"
          "}\n"
          "_rlctl()\n"
          "{\n",
          stdout);
    print_commands();
    fputs("    local line=${COMP_LINE:0:COMP_POINT} word options=\"\"\n"
          "    word=${line##*[[:space:]]}\n"
          "    COMPREPLY=()\n"
          "    if [[ $line =~ (--set|-s)[[:space:]]+[^[:space:]]*$ || $word == --set=* ]]; then\n"
          "        _rlctl_set \"${word#--set=}\"\n"
          "    elif ((COMP_CWORD == 1)); then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$commands\" -- \"$word\")\n"
          "    elif [[ $word == -* ]]; then\n"
          "        case ${COMP_WORDS[1]} in\n"
          "        launch) options=\"--set --dir --detach --json --quiet\" ;;\n"
          "        resume) options=\"--dir --detach --json --quiet\" ;;\n"
          "        plan | devices) options=\"--set --json\" ;;\n"
          "        audit) options=\"--dir --allow-unproven --json\" ;;\n"
          "        status | list) options=\"--dir --json\" ;;\n"
          "        logs) options=\"--lines --follow --dir --json\" ;;\n"
          "        stop) options=\"--timeout --dir --json\" ;;\n"
          "        quota) options=\"--allocations --wait --dir --json\" ;;\n"
          "        weights) options=\"--lanes --bytes --dir --json\" ;;\n"
          "        traj) options=\"--lines --follow --row --all --format --output --no-tensors --dir --json "
          "--env --rank --worker --epoch --sequence --episode --group --position --versions --last\" ;;\n"
          "        doctor) options=\"--clean --json\" ;;\n"
          "        config) options=\"--set --plain\" ;;\n"
          "        env) options=\"--id --library --args --timeout --envs --seconds --json\" ;;\n"
          "        agent) options=\"--node --dir\" ;;\n"
          "        esac\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$options --help\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == config && $COMP_CWORD == 2 ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"reference show\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == quota && $COMP_CWORD == 2 ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"show set\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == weights && $COMP_CWORD == 2 ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"status probe\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == traj && $COMP_CWORD == 2 ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"tail show stats export\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == env && $COMP_CWORD == 2 ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"list check bench\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == env ]]; then\n"
          "        compopt -o filenames\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$(${COMP_WORDS[0]} env list 2>/dev/null | sort -u | "
          "sed -n "
          "'s/^\\([^ ]\\{1,\\}\\).*/\\1/p')\" -- "
          "\"$word\"; compgen -f -X '!*.so' -- \"$word\"; compgen -d -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} =~ ^(status|audit|stop|resume|logs)$ && $COMP_CWORD == 2 ||\n"
          "            ${COMP_WORDS[1]} =~ ^(quota|weights|traj)$ && $COMP_CWORD == 3 ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"last $(${COMP_WORDS[0]} list 2>/dev/null | sed '1d; "
          "s/ .*//')\" -- \"$word\")\n"
          "    elif [[ ${COMP_WORDS[1]} == completion ]]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"bash\" -- \"$word\")\n"
          "    else\n"
          "        compopt -o filenames\n"
          "        mapfile -t COMPREPLY < <(compgen -f -X '!*.toml' -- \"$word\"; compgen -d -- \"$word\")\n"
          "    fi\n"
          "}\n"
          "complete -F _rlctl rlctl\n",
          stdout);
}

int corral_cmd_completion(int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    int c;
    optind = 0; /* starts getopt afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (c != 'h') {
            return corral_cli_usage("completion", "unknown option %s", argv[optind - 1]);
        }
        usage(stdout);
        return cli_flush();
    }
    if (argc - optind != 1 || strcmp(argv[optind], "bash") != 0) {
        return corral_cli_usage("completion", "name one shell: bash");
    }
    print_bash();
    return cli_flush();
}
