# shellcheck shell=bash
# What the steps of scripts/swarm share: words, limits, and what is asked of engines.

# Longest time of one question to an engine, by ssh as well, in seconds.
CALL_SECONDS_MAX=60

# Longest time until a swarm without a leader has one again, in seconds: an election takes up to 30 with slow beats.
ELECTION_SECONDS_MAX=60

complain() {
    echo "swarm: $1" >&2
    exit 1
}

say() { echo "swarm: $1"; }

# needs PROGRAM…: fails with the name of what is missing.
needs() {
    local program
    [ "${BASH_VERSINFO[0]}" -ge 4 ] || complain "bash ${BASH_VERSION} is too old; expected 4 or newer, first in the PATH"
    for program in "$@"; do
        command -v "$program" >/dev/null || complain "$program is missing here, where Terraform runs; install it and apply again"
    done
}

# at ENGINE ARGUMENT…: docker on an engine, for a while.
at() {
    local engine=$1
    shift
    timeout --kill-after=5 "$CALL_SECONDS_MAX" docker --host "$engine" "$@" </dev/null
}

# first_line TEXT: what a program had to say, for a message on one line.
first_line() {
    local line
    while read -r line; do
        [ -z "$line" ] || { echo "$line"; return; }
    done <<<"$1"
    echo "no answer within $CALL_SECONDS_MAX s"
}

# until_then SECONDS WHAT COMMAND…: waits until the command succeeds; complains with WHAT, and what the command last printed.
until_then() {
    local limit=$1 what=$2 end said
    shift 2
    end=$((SECONDS + limit))
    until said=$("$@" 2>&1); do
        [ $SECONDS -lt $end ] || complain "$what: not within $limit s${said:+; $said}"
        sleep 0.3
    done
}

# --- Hosts: what SWARM_HOSTS says of them, and what their engines say ----------------------------------------------------

keys=()
declare -A role engine address labels
# By host: its state in a swarm (inactive, active, …, or away if it does not answer), whether it is a manager, its node and,
# for managers, the swarm.
declare -A state manages node_of cluster_of trouble

read_hosts() {
    local key its_role its_engine its_address its_labels
    while IFS='|' read -r key its_role its_engine its_address its_labels; do
        [ -n "$key" ] || continue
        keys+=("$key")
        role[$key]=$its_role
        engine[$key]=$its_engine
        address[$key]=$its_address
        labels[$key]=$its_labels
    done <<<"$SWARM_HOSTS"
    [ ${#keys[@]} -gt 0 ] || complain "there are no hosts"
}

# look KEY: asks a host's engine.
look() {
    local key=$1 said format errors
    errors=$(mktemp)
    format='{{.Swarm.LocalNodeState}}|{{.Swarm.ControlAvailable}}|{{.Swarm.NodeID}}|{{with .Swarm.Cluster}}{{.ID}}{{end}}'
    if said=$(at "${engine[$key]}" info --format "$format" 2>"$errors") && [[ $said =~ ^(inactive|pending|active|error|locked)\| ]]; then
        IFS='|' read -r "state[$key]" "manages[$key]" "node_of[$key]" "cluster_of[$key]" <<<"$said"
        trouble[$key]=
    else
        state[$key]=away manages[$key]=false node_of[$key]='' cluster_of[$key]=''
        trouble[$key]=$(first_line "$(cat "$errors")")
    fi
    rm -f "$errors"
}

look_at_all() {
    local key
    for key in "${keys[@]}"; do look "$key"; done
}

# Every engine that is to be in the swarm has to answer, before anything is changed.
all_answer() {
    local key words=''
    for key in "${keys[@]}"; do
        case "${state[$key]}" in
            active | inactive) ;;
            away) words+="
  host $key at ${engine[$key]} does not answer: ${trouble[$key]}" ;;
            *) words+="
  host $key is ${state[$key]} in a swarm: \`docker swarm unlock\` or \`docker swarm leave\` there" ;;
        esac
    done
    [ -z "$words" ] || complain "nothing was changed:$words
  Bring it back, or take it out of hosts."
}

# --- The swarm, by one of its managers ------------------------------------------------------------------------------------

control=

# Finds a manager that can be asked; none is left in `control` if no host is one.
find_control() {
    local key end managers=0 said=
    control=
    end=$((SECONDS + ELECTION_SECONDS_MAX))
    while :; do
        for key in "${keys[@]}"; do
            [ "${manages[$key]}" = true ] || continue
            managers=$((managers + 1))
            if said=$(at "${engine[$key]}" node ls --quiet 2>&1); then
                control=${engine[$key]}
                return
            fi
        done
        [ $managers -gt 0 ] || return 0
        [ $SECONDS -lt $end ] || complain "the swarm takes no orders: $(first_line "$said")
  Most of its managers must be up. If they are lost for good: \`docker swarm init --force-new-cluster\` on one that is left, and apply again."
        sleep 1
    done
}

# By node: what the swarm says of it. `host_of` is the key of the host whose label it bears, `other` if it is not of this module.
nodes=()
declare -A hostname is_manager reachable ready host_of docker_host_of recorded draining

survey() {
    local format ids said id name its_role its_state reach label docker_host their_labels drains
    format='{{.ID}}|{{.Description.Hostname}}|{{.Spec.Role}}|{{.Status.State}}|{{with .ManagerStatus}}{{.Reachability}}{{end}}'
    format+='|{{index .Spec.Labels "friday.host"}}|{{index .Spec.Labels "friday.docker-host"}}'
    format+='|{{index .Spec.Labels "friday.labels"}}|{{index .Spec.Labels "friday.draining"}}'
    said=
    for _ in $(seq 20); do
        # Nobody may answer while a new leader is elected.
        if mapfile -t ids < <(at "$control" node ls --quiet 2>/dev/null) && [ ${#ids[@]} -gt 0 ] \
            && said=$(at "$control" node inspect --format "$format" "${ids[@]}" 2>&1); then
            break
        fi
        ids=()
        sleep 1
    done
    [ ${#ids[@]} -gt 0 ] || complain "the manager at $control does not list the nodes${said:+: $(first_line "$said")}"
    nodes=()
    while IFS='|' read -r id name its_role its_state reach label docker_host their_labels drains; do
        nodes+=("$id")
        hostname[$id]=$name
        is_manager[$id]=$([ "$its_role" != manager ] || echo yes)
        reachable[$id]=$([ "$reach" != reachable ] || echo yes)
        ready[$id]=$([ "$its_state" != ready ] || echo yes)
        case "$label" in "$SWARM_NAME"/*) host_of[$id]=${label#*/} ;; *) host_of[$id]=other ;; esac
        docker_host_of[$id]=$docker_host
        recorded[$id]=$their_labels
        draining[$id]=$drains
    done <<<"$said"
}

# key_of NODE: the host whose engine is this node.
key_of() {
    local key
    for key in "${keys[@]}"; do
        [ "${node_of[$key]}" != "$1" ] || { echo "$key"; return; }
    done
}

# --- Quorum -------------------------------------------------------------------------------------------------------------

# Counts managers, and those that can be reached.
count_managers() {
    local id
    managers=0 reached=0
    for id in "${nodes[@]}"; do
        [ -n "${is_manager[$id]}" ] || continue
        managers=$((managers + 1))
        [ -z "${reachable[$id]}" ] || reached=$((reached + 1))
    done
}

# without NODE: the counts when this manager is none any more; fails if those that are left could decide nothing.
without() {
    managers=$((managers - 1))
    [ -z "${reachable[$1]}" ] || reached=$((reached - 1))
    [ $((reached * 2)) -gt $managers ]
}

quorum_words() {
    echo "without manager ${hostname[$1]} only $reached of $managers managers could be reached, and $((managers / 2 + 1)) are needed:
  the swarm would take no more orders. Bring the others back first (\`docker node ls\` shows them), or add a manager in the same apply."
}

# --- Leaving ------------------------------------------------------------------------------------------------------------

# order ARGUMENT…: of the swarm's manager, again while it says that somebody else changed the same at the same time.
order() {
    local said
    for _ in $(seq 10); do
        if said=$(at "$control" "$@" 2>&1); then return; fi
        case "$said" in *"out of sequence"* | *"does not have a leader"* | *"deadline exceeded"*) sleep 1 ;; *) break ;; esac
    done
    complain "docker $*: $(first_line "$said")"
}

has_no_tasks() {
    local left
    left=$(at "$control" node ps --format '{{.Name}}: {{.CurrentState}}' "$1") || return 1
    left=$(grep -E ': (Running|Starting|Preparing|Ready) ' <<<"$left") || return 0
    echo "still there: ${left//$'\n'/, }"
    return 1
}

is_worker() {
    local said
    said=$(at "$control" node inspect --format '{{.Spec.Role}} {{with .ManagerStatus}}still a manager{{end}}' "$1") || return 1
    [ "$said" = "worker " ]
}

has_left() { [ "$(at "$1" info --format '{{.Swarm.LocalNodeState}}')" = inactive ]; }

is_down() { [ "$(at "$control" node inspect --format '{{.Status.State}}' "$1")" = down ]; }

# demote NODE: refuses where the others could decide nothing.
demote() {
    count_managers
    without "$1" || complain "$(quorum_words "$1")"
    order node demote "$1"
    until_then "$SWARM_WAIT_SECONDS" "${hostname[$1]} does not become a worker" is_worker "$1"
}

# remove NODE: its tasks go elsewhere, it gives up its vote, leaves, and is forgotten.
remove() {
    local id=$1 key from name said
    survey
    key=$(key_of "$id")
    from=${docker_host_of[$id]:-${key:+${engine[$key]}}} name=${hostname[$id]}
    if [ -n "${is_manager[$id]}" ]; then
        count_managers
        without "$id" || complain "$(quorum_words "$id")"
    fi
    say "removes $name"
    order node update --availability drain --label-add friday.draining=yes "$id"
    if [ -n "${ready[$id]}" ]; then
        until_then "$SWARM_DRAIN_SECONDS" "the tasks of $name do not end" has_no_tasks "$id"
    fi
    [ -z "${is_manager[$id]}" ] || demote "$id"
    if [ -z "$from" ] || ! said=$(at "$from" info --format '{{.Swarm.LocalNodeState}} {{.Swarm.NodeID}}' 2>/dev/null); then
        say "$name${from:+ at $from} does not answer; if it comes back, run \`docker swarm leave --force\` there"
    elif [ "${said#* }" = "$id" ]; then
        # Where another engine has taken its place, or it has left by itself, it is not asked to.
        at "$from" swarm leave --force >/dev/null || complain "$name does not leave; docker on $from said why above"
        until_then "$SWARM_WAIT_SECONDS" "$name is not seen to leave" is_down "$id"
    fi
    order node rm --force "$id"
}
