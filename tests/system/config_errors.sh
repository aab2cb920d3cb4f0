#!/bin/bash
# A wrong job file, or a folder that cannot take a run: one line that names the place, exit code 2, and nothing started or made.
source "$(dirname "$0")/lib.sh"
cartpole good.toml tiny

# refused NAME ARGS... : exit 2, one line on stderr, nothing on stdout; $line is what it said
refused()
{
    local name=$1
    shift
    rl "$name" "$@"
    line=$(err_of "$name")
    same "$name: exit code 2" "$rc" 2
    same "$name: exactly one line" "$(wc -l <"$T/$name.err")" 1
    same "$name: nothing on stdout" "$(out_of "$name")" ""
    check "$name: no run folder" test ! -e "$T/runs"
}
# edit FILE SED-SCRIPT
edit() { sed -E "$2" "$T/good.toml" >"$T/$1"; }
line_of() { grep -nE "$2" "$T/$1" | head -n 1 | cut -d: -f1; }

edit unknown_key.toml 's/^fragment/fragmnet/'
refused unknown_key launch unknown_key.toml
matches "unknown_key: place and nearest name" "$line" "^unknown_key\.toml:$(line_of unknown_key.toml fragmnet):1: error: .*fragmnet.*did you mean .*fragment"

edit unknown_section.toml 's/^\[rollout\]/[rolout]/'
refused unknown_section launch unknown_section.toml
matches "unknown_section: place and nearest name" "$line" "^unknown_section\.toml:$(line_of unknown_section.toml 'rolout\]$'):[0-9]+: error: .*did you mean"

edit wrong_type.toml 's/^fragment = 32/fragment = "32"/'
refused wrong_type launch wrong_type.toml
matches "wrong_type: place" "$line" "^wrong_type\.toml:$(line_of wrong_type.toml ^fragment):12: error: .*rollout\.fragment"

edit bad_unit.toml '0,/^floor = .*/s//floor = "16"/'
refused bad_unit launch bad_unit.toml
matches "bad_unit: place" "$line" "^bad_unit\.toml:$(line_of bad_unit.toml ^floor):9: error: .*floor"

edit duplicate_device.toml 's/"a:1"/"a:0"/'
refused duplicate_device launch duplicate_device.toml
matches "duplicate_device: place" "$line" "^duplicate_device\.toml:[0-9]+:[0-9]+: error: .*a:0"

edit no_such_device.toml 's/"a:1"/"a:7"/'
refused no_such_device launch no_such_device.toml
matches "no_such_device: place" "$line" "^no_such_device\.toml:$(line_of no_such_device.toml a:7):[0-9]+: error: "

edit duplicate_key.toml 's/^fragment = 32/fragment = 32\nfragment = 33/'
refused duplicate_key launch duplicate_key.toml
matches "duplicate_key: place" "$line" "^duplicate_key\.toml:[0-9]+:[0-9]+: error: "

edit no_stop.toml '/^train_steps/d'
refused no_stop launch no_stop.toml
matches "no_stop: place" "$line" "^no_stop\.toml:[0-9]+:[0-9]+: error: .*stop"

edit no_fit.toml 's/^floor = "16MiB"/floor = "90MiB"/;s/^ceiling = .*/ceiling = "96MiB"/'
refused no_fit launch no_fit.toml
matches "no_fit: names the file" "$line" "no_fit\.toml"

edit no_env.toml 's/CartPole-v1/CartPole-v9/'
refused no_env launch no_env.toml
matches "no_env: names it" "$line" "CartPole-v9"

# Cut in the middle of a value, at every tenth byte: always one line, never a start.
cut_ok=0 cut_all=0
for ((bytes = 0; bytes < $(stat -c %s "$T/good.toml"); bytes += 37)); do
    head -c "$bytes" "$T/good.toml" >"$T/cut.toml"
    rl cut launch cut.toml --set nothing.such=1
    cut_all=$((cut_all + 1))
    [[ $rc -eq 2 && $(wc -l <"$T/cut.err") -eq 1 && ! -e $T/runs ]] && cut_ok=$((cut_ok + 1))
done
same "a truncated file is refused wherever it is cut" "$cut_ok" "$cut_all"
head -c 100 "$T/good.toml" >"$T/truncated.toml"
refused truncated launch truncated.toml
matches "truncated: place" "$line" "^truncated\.toml:[0-9]+:[0-9]+: error: "

refused missing launch missing.toml
matches "missing: names it" "$line" "missing\.toml"
mkdir "$T/folder.toml"
refused folder launch folder.toml
matches "folder: names it" "$line" "folder\.toml"
head -c 4096 /dev/urandom >"$T/garbage.toml"
refused garbage launch garbage.toml
matches "garbage: names it" "$line" "^garbage\.toml:"

refused bad_set launch good.toml --set rollout.fragmnet=3
matches "bad_set: nearest name" "$line" "did you mean .*fragment"
refused bad_set_value launch good.toml --set rollout.fragment=often
matches "bad_set_value: names the key" "$line" "rollout\.fragment"
refused no_job launch
refused no_command nonsense
refused near_command lanch good.toml
matches "near_command: nearest name" "$line" "did you mean .launch"

# Folders that cannot take a run.
echo "not a folder" >"$T/file"
refused dir_is_file launch good.toml --dir "$T/file"
matches "dir_is_file: names it" "$line" "$T/file"
refused dir_below_file launch good.toml --dir "$T/file/runs"
matches "dir_below_file: names it" "$line" "$T/file"
refused dir_proc launch good.toml --dir /proc/corral-runs
matches "dir_proc: names it" "$line" "/proc"
refused job_dir_proc launch good.toml --set 'job.dir="/proc/1/runs"'
matches "job_dir_proc: names it" "$line" "/proc"
mkdir "$T/read-only"
if [[ $(id -u) -eq 0 ]] && mount -t tmpfs -o ro,size=64k none "$T/read-only" 2>/dev/null; then
    MOUNTS+=("$T/read-only")
    refused dir_read_only launch good.toml --dir "$T/read-only/runs"
    matches "dir_read_only: says so" "$line" "Read-only file system"
else
    note "no right to mount: a read-only folder is not tried"
fi

# Commands about runs that are not there.
for command in status logs stop resume; do
    refused "${command}_none" "$command"
    refused "${command}_unknown" "$command" ffff
    matches "${command}_unknown: names it" "$line" "ffff"
done
rl list_none list
same "list without runs is no error" "$rc" 0
finish
