"""The bash programs that run on a login host: one for each question, so that each costs one ssh connection.

All of them find a service's job by its exact name, and its folder by its job_id. Nothing is put into them but quoted
values and numbers.
"""

from __future__ import annotations

import shlex

from slurm_labels import job_name
from slurm_script import ENV_FILE, FOLDER, LOG

INCOMPLETE, REFUSED, TAKEN = 90, 91, 92

_SQUEUE = 'squeue --noheader --user="$(id -un)"'
# A submission that has made its folder and not yet said who it is.
_GRACE_SECONDS = 3
_FORMAT = "'%i|%T|%N|%r|%S'"


def submit(job_id: str, secret_bytes: int, script_bytes: int) -> str:
    """Reads the secrets and then the script from standard input; prints `job <number>`.

    The folder is made once: of two submissions, one of which was believed lost, the second does nothing (TAKEN). What
    arrived incomplete is not submitted. `submitter` tells `find` whether this is still at it.
    """
    return f"""\
umask 077
{_folder(job_id)}
mkdir -p "${{folder%/*}}"
if ! mkdir "$folder"; then
    [ -d "$folder" ] && return {TAKEN}
    return {REFUSED}
fi
cd "$folder" || return {REFUSED}
echo "$(hostname) $BASHPID" >submitter
head -c {secret_bytes} >{ENV_FILE}
head -c {script_bytes} >job.sh
if [ "$(wc -c <{ENV_FILE})" -ne {secret_bytes} ] || [ "$(wc -c <job.sh)" -ne {script_bytes} ]; then
    rm -rf "$folder"
    return {INCOMPLETE}
fi
[ {secret_bytes} -gt 0 ] || rm -f {ENV_FILE}
if ! number=$(sbatch --parsable <job.sh); then
    cd / && rm -rf "$folder"
    return {REFUSED}
fi
rm -f submitter
echo "job ${{number%%;*}}\""""


def find(job_id: str, seconds: int) -> str:
    """Prints `job <number>` once the job of that exact name is there, for as long as a submission may still be at it.

    What a submission left that died before it came to sbatch is removed. Fails where the scheduler cannot be asked.
    """
    return f"""\
{_folder(job_id)}
begun=$SECONDS
deadline=$((begun + {seconds}))
while :; do
    busy=
    if read -r host pid <"$folder/submitter" 2>/dev/null; then
        {{ [ "$host" != "$(hostname)" ] || kill -0 "$pid" 2>/dev/null; }} && busy=yes
    elif [ -d "$folder" ] && [ $SECONDS -lt $((begun + {_GRACE_SECONDS})) ]; then
        busy=yes
    fi
    number=$({_SQUEUE} --states=all --name={quoted(job_name(job_id))} --format=%i) || return
    if [ -n "$number" ]; then echo "job ${{number%%[!0-9]*}}"; return; fi
    [ -n "$busy" ] && [ $SECONDS -lt $deadline ] || break
    sleep 0.5
done
rm -rf "$folder\""""


def state(job_id: str, number: str | None, patience: int = 0) -> str:
    """Prints what squeue says of the job, or, where it knows none, `gone` and what sacct and scontrol say.

    For `patience` seconds it waits for a pending job to run. Of a job that has ended no secrets are left.
    """
    name = quoted(job_name(job_id))
    which = f"--jobs={number}" if number else f"--name={name}"
    return f"""\
{_folder(job_id)}
deadline=$((SECONDS + {patience}))
while :; do
    line=$({_SQUEUE} {which} --format={_FORMAT} 2>&1)
    case "$line" in
        *'|PENDING|'* | *'|CONFIGURING|'*) [ $SECONDS -ge $deadline ] || {{ sleep 0.2; continue; }} ;;
    esac
    break
done
printf '%s\\n' "$line"
case "$line" in
    *'|PENDING|'*) {_SQUEUE} {which} --start --format={_FORMAT} 2>/dev/null ;;
    '' | *[Ii]'nvalid job id'*)
        rm -f "$folder/{ENV_FILE}"
        number={quoted(number or "")}
        [ -n "$number" ] || number=$({_SQUEUE} --states=all --name={name} --format=%i 2>/dev/null)
        echo gone
        if [ -n "$number" ]; then sacct -X -n -P -j "$number" -o JobIDRaw,State,ExitCode,NodeList 2>&1
        else sacct -X -n -P --name={name} -S now-7days -o JobIDRaw,State,ExitCode,NodeList 2>&1; fi
        echo scontrol
        [ -z "$number" ] || scontrol --oneliner show job "$number" 2>&1 ;;
esac
return 0"""


def stop(job_id: str, number: str | None, seconds: int) -> str:
    """Cancels the job and waits until Slurm has ended it, then removes its folder."""
    name = quoted(job_name(job_id))
    # A service that another tool registered has a job of another name; of a job that is gone scancel complains.
    by_number = f"scancel {number} 2>/dev/null" if number else ":"
    left = f"{_SQUEUE} {f'--jobs={number}' if number else f'--name={name}'} --format=%T"
    return f"""\
{_folder(job_id)}
rm -f "$folder/{ENV_FILE}"
scancel --user="$(id -un)" --name={name} || return
{by_number}
deadline=$((SECONDS + {seconds}))
while :; do
    left=$({_SQUEUE} --name={name} --format=%T) || return
    {f'[ -n "$left" ] || left=$({left} 2>/dev/null)' if number else ":"}
    [ -n "$left" ] || break
    if [ $SECONDS -ge $deadline ]; then
        # On a node that does not answer, a job stays completing; Slurm ends what is left of it there.
        [ "$left" = COMPLETING ] && break
        echo "the job is still $left" >&2
        return 1
    fi
    sleep 0.2
done
rm -rf "$folder\""""


def log(job_id: str, tail: int | None) -> str:
    """Prints the log's last lines, all of them without `tail`; fails with status 2 where there is no log."""
    lines = "+1" if tail is None else str(tail)
    return f"""\
{_folder(job_id)}
[ -e "$folder/{LOG}" ] || return 2
tail -n {lines} "$folder/{LOG}\""""


def follow(job_id: str, tail: int | None) -> str:
    """Prints the log as it grows until the job has ended, or nobody holds the standard input open any more."""
    lines = "+1" if tail is None else str(tail)
    name = quoted(job_name(job_id))
    return f"""\
{_folder(job_id)}
tail -n {lines} -F "$folder/{LOG}" 2>/dev/null &
reader=$!
while :; do
    read -r -t 1 _
    [ $? -gt 128 ] || break
    left=$({_SQUEUE} --name={name} --format=%T 2>&1)
    [ -n "$left" ] || {{ sleep 1.2; break; }}
done
kill "$reader" 2>/dev/null
wait "$reader" 2>/dev/null
return 0"""


def discover() -> str:
    """Prints the user's jobs that carry our names, `number|state|node|reason|start|comment`.

    Secrets that a job never fetched, because it was cancelled before it began, are removed on the way.
    """
    return f"""\
jobs=$({_SQUEUE} --format='%j|%i|%T|%N|%r|%S|%k') || return
printf '%s\\n' "$jobs" | sed -n 's/^tao-[0-9a-f-]*|//p'
find "$HOME/{FOLDER}" -mindepth 2 -maxdepth 2 -name {ENV_FILE} -mmin +2 2>/dev/null | while read -r file; do
    folder=${{file%/*}}
    case "$jobs" in *"tao-${{folder##*/}}|"*) ;; *) rm -f "$file" ;; esac
done
return 0"""


def quoted(text: str) -> str:
    """The text as one word of a shell."""
    return shlex.quote(text)


def _folder(job_id: str) -> str:
    return f"folder=$HOME/{FOLDER}/{quoted(job_id)}"
