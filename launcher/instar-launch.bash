# SPDX-License-Identifier: MIT
#
# bash completion of instar-launch. Verbs, options and the values of an option that takes one of a
# few (--accel=auto|kvm|tcg) are read from the program's own --help, so that nothing has to be kept
# in step. Where nothing is offered, bash completes file names.

# What follows the heading $2 in a --help of program $1 (and verb $3), up to an empty line.
_instar_launch_help()
{
    "$1" ${3:+"$3"} --help 2>/dev/null | sed -n "/^$2/,/^\$/p"
}

_instar_launch()
{
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local verb=${COMP_WORDS[1]} offer values options

    if [ "$COMP_CWORD" -eq 1 ]; then
        offer="--help --version $(_instar_launch_help "$1" Commands |
            sed -n 's/^  \([a-z]\+\) .*/\1/p')"
    else
        # To bash, --option=value is three words, and --option value two.
        [ "$word" = = ] && word=
        [ "$before" = = ] && before=${COMP_WORDS[COMP_CWORD-2]}
        case $before in -f) before=--format ;; -F) before=--backing-format ;; esac
        options=$(_instar_launch_help "$1" Options "$verb" |
            sed -n 's/^  \(-., \|    \)\(--[^ ]*\) .*/\2/p')
        values=$(sed -n "s/^$before\[\{0,1\}=\([^]]*\).*/\1/p" <<< "$options")
        case $values in
            *\|*) offer=${values//|/ } ;;
            FMT) offer="raw qcow2 vpc vhdx vmdk" ;;
            unallocated) offer=$values ;;
            '') [ "${word:0:1}" = - ] && offer=$(sed 's/\[=.*//; s/=.*/=/' <<< "$options") ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$offer" -- "$word"))
    [ "${COMPREPLY: -1}" = = ] && compopt -o nospace 2>/dev/null
    return 0
}

complete -o default -F _instar_launch instar-launch
