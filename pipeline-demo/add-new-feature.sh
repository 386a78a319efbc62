#!/usr/bin/env bash
# Adds a feature to the worker, commits and pushes it, and so sets off a release.
#
#   pipeline-demo/add-new-feature.sh                a good one
#   pipeline-demo/add-new-feature.sh --bad          one that users would suffer from
#   pipeline-demo/add-new-feature.sh --feature NAME one of --list
#   pipeline-demo/add-new-feature.sh --revert       takes the newest of them out again
#   pipeline-demo/add-new-feature.sh --list         what there is
#   … --no-push                                     commits, and no more
#   … --remote NAME                                 pushes to this remote; `origin` if that is a GitLab's
#
# With a GitLab its runner takes over. Without one, a bare repository with a hook runs the same .gitlab-ci.yml on this
# machine, by gitlab-ci-local, and releases into a `cargo demo` that runs; FRIDAY_DEMO names its folder where there are
# several. The exit code is then that of the pipeline: 0 if the release was promoted.
set -euo pipefail

# NAME|good or bad|what it does|what to expect
features=(
    'emoji|good|counts the emoji of each tweet|it is promoted'
    'length|good|counts words and characters|it is promoted'
    'shouting|bad|matches a regular expression that tries every way|it is slower than stable: rolled back on latency'
    'topic|bad|panics on tweets with #worldcup or #monday|it fails more than stable: rolled back on errors'
)

# The version that was tried with our pipeline, and the last for Node 20.
gitlab_ci_local_version=4.73.0

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

complain() {
    echo "add-new-feature: $1" >&2
    exit "${2:-1}"
}

kind=good name= push=yes revert= remote=
while [ $# -gt 0 ]; do
    case "$1" in
        --bad) kind=bad ;;
        --revert) revert=yes ;;
        --no-push) push= ;;
        --feature | --remote)
            [ $# -gt 1 ] || complain "$1 needs a value" 2
            if [ "$1" = --feature ]; then name=$2; else remote=$2; fi
            shift
            ;;
        --list)
            for line in "${features[@]}"; do
                IFS='|' read -r each sort what expect <<<"$line"
                printf '%-10s %-5s %s; %s\n' "$each" "$sort" "$what" "$expect"
            done
            exit
            ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; complain "unknown argument $1" 2 ;;
    esac
    shift
done

repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
source=pipeline-demo/src/features.rs
workflow=pipeline-demo/pipeline.yml
folder=pipeline-demo/src/features

git rev-parse --git-dir >/dev/null 2>&1 || complain "$repository is no git repository: a release needs a commit"
[ -z "$(git status --porcelain -- "$source" "$workflow" "$folder")" ] \
    || complain "there are changes in $folder that are not committed: commit them, or put them away with git stash"

there() { [ -e "$folder/$1.rs" ]; }

# A word with a capital, as Rust names types.
title() { local first=${1:0:1}; echo "${first^}${1:1}"; }

if [ -n "$revert" ]; then
    commit=
    while read -r each name; do
        there "$name" || continue
        commit=$each
        break
    done < <(git log --format='%H %(trailers:key=Adds-feature,valueonly,separator=%x20)' --grep '^Adds-feature: ')
    [ -n "$commit" ] || complain "no feature of this script is there: there is nothing to take out"
    git revert --no-edit "$commit" >/dev/null || { git revert --abort; complain "commit $commit cannot be reverted by itself"; }
    what="takes out the feature $name" expect="it is promoted"
else
    found=
    for line in "${features[@]}"; do
        IFS='|' read -r each sort what expect <<<"$line"
        if [ -n "$name" ]; then
            [ "$each" = "$name" ] || continue
            there "$each" && complain "the feature $each is there already; --revert takes the newest out"
        else
            [ "$sort" = "$kind" ] && ! there "$each" || continue
        fi
        found=yes name=$each
        break
    done
    if [ -z "$found" ]; then
        [ -z "$name" ] || complain "unknown feature $name; --list says which there are" 2
        complain "every $kind feature is there already; --revert takes the newest out"
    fi
    cp "pipeline-demo/features/$name.rs" "$folder/$name.rs"
    sed -i "s/^mod sentiment;\$/&\nmod $name;/; s/^    &sentiment::Sentiment,\$/&\n    \&$name::$(title "$name"),/" "$source"
    sed -i "s/^  sentiment:\$/&\n  $name:/" "$workflow"
    # rustfmt keeps modules in order.
    if command -v rustfmt >/dev/null; then rustfmt --edition 2024 --config skip_children=true "$source" 2>/dev/null || cargo fmt --package pipeline-demo; fi
    git add -- "$source" "$workflow" "$folder/$name.rs"
    git commit --quiet --message "worker: $what

Adds-feature: $name"
    what="adds the feature $name, which $what"
fi
commit=$(git rev-parse --short=8 HEAD)
echo "commit:     $commit $what"
echo "expected:   $expect"
[ -n "$push" ] || { echo "next:       git push"; exit 0; }

# --- With a GitLab --------------------------------------------------------------------------------------------------

if [ -z "$remote" ] && git remote get-url origin 2>/dev/null | grep --quiet --ignore-case gitlab; then
    remote=origin
fi
if [ -n "$remote" ]; then
    url=$(git remote get-url "$remote") || complain "there is no remote $remote"
    git push "$remote" HEAD
    # A name and a token may stand in the address; they are nobody else's to read.
    page=$(sed -E 's#^(https?://)[^/@]*@#\1#; s#^(ssh://)?git@([^:/]+)(:[0-9]+)?[:/]#https://\2/#; s#\.git$##' <<<"$url")
    echo "watch:      $page/-/pipelines, job canary"
    echo "or:         friday get SERVICE -w, and the controller's board"
    echo "back:       job rollback of the same pipeline, or $0 --revert"
    exit 0
fi

# --- Without one ----------------------------------------------------------------------------------------------------

demo=${FRIDAY_DEMO:-}
if [ -z "$demo" ]; then
    for file in "${TMPDIR:-/tmp}"/friday-demo-*/processes.yml; do
        # Somebody else may have made one, to be given what we release.
        [ -f "$file" ] && [ -O "$file" ] && [ -O "${file%/*}" ] || continue
        [ -z "$demo" ] || [ "$file" -nt "$demo/processes.yml" ] || continue
        demo=${file%/*}
    done
fi
[ -n "$demo" ] && [ -f "$demo/processes.yml" ] \
    || complain "no demo runs: start \`cargo demo\` in another terminal, or name its folder with FRIDAY_DEMO"
for need in jq rsync flock; do
    command -v "$need" >/dev/null || complain "$need is missing; it is the Debian package ${need/flock/util-linux}"
done
runner=${FRIDAY_GITLAB_CI_LOCAL:-}
if [ -z "$runner" ]; then
    root=${XDG_CACHE_HOME:-$HOME/.cache}/friday/gitlab-ci-local-$gitlab_ci_local_version
    runner=$root/node_modules/.bin/gitlab-ci-local
    if [ ! -x "$runner" ]; then
        command -v npm >/dev/null || complain "npm is missing (Debian package npm, with Node 20 or newer): it installs gitlab-ci-local"
        echo "installs gitlab-ci-local $gitlab_ci_local_version to $root"
        npm install --silent --no-audit --no-fund --prefix "$root" "gitlab-ci-local@$gitlab_ci_local_version"
    fi
fi
url=http://$(jq --raw-output .listen "$demo/controller.addresses")

bare=$demo/gitlab.git
if [ ! -d "$bare" ]; then git init --quiet --bare --initial-branch main "$bare"; fi
cat >"$bare/hooks/post-receive" <<'HOOK'
#!/usr/bin/env bash
# What GitLab and its runner do after a push: the pipeline of the pushed commit, in a checkout of its own.
set -uo pipefail
bare=$(pwd)
unset GIT_DIR GIT_QUARANTINE_PATH
checkout=$bare/checkout
if [ ! -d "$checkout" ]; then git clone --quiet "$bare" "$checkout"; fi
cd "$checkout" || exit 1
git fetch --quiet "$bare" main && git checkout --quiet -B main FETCH_HEAD || exit 1
# It wants to know the project's name, and which branch is the default one.
git remote set-url origin git@gitlab.localhost:friday/demo.git
git update-ref refs/remotes/origin/main HEAD
git symbolic-ref refs/remotes/origin/HEAD refs/remotes/origin/main
"$PIPELINE_RUNNER" --force-shell-executor --shell-isolation --variable FRIDAY_DEMO="$FRIDAY_DEMO" 2>&1
echo $? >"$bare/exit-code"
HOOK
chmod +x "$bare/hooks/post-receive"
rm -f "$bare/exit-code"

echo "watch:      $url/ and, in another terminal, cargo friday --url $url get tweets-worker -w"
echo "pipeline:   format, files, programs (minutes, the first time), container, canary"
PIPELINE_RUNNER=$runner FRIDAY_DEMO=$demo FRIDAY_URL=$url CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target} \
    git push --quiet --force "$bare" HEAD:refs/heads/main
code=$(cat "$bare/exit-code" 2>/dev/null || echo 1)
report=$bare/checkout/friday-report/demo/tweets-worker/friday.json
if [ -f "$report" ]; then echo "outcome:    $(jq --raw-output '.outcome + ": " + .message' "$report")"; fi
echo "why:        cargo friday --url $url explain tweets-worker"
echo "back:       $0 --revert"
exit "$code"
