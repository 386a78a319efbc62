//! The images that a user's swarm pulls, made of this machine's programs: a lab reaches no registry. They understand what
//! `swarm/stack.yml` says to the public ones.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::broker::tansu;
use crate::lab::Lab;
use crate::postgres::find as postgres_program;
use crate::rootfs::{add_file, add_folder, add_program};

/// Kafka: the broker of the tests, with its records in a file.
pub const KAFKA: &str = "kafka:tests";

/// PostgreSQL: Debian's.
pub const POSTGRES: &str = "postgres:tests";

/// Prometheus: Debian's.
pub const PROMETHEUS: &str = "prometheus:tests";

/// Alertmanager: Debian's.
pub const ALERTMANAGER: &str = "alertmanager:tests";

const KAFKA_FILE: &str = r#"FROM scratch
COPY --chown=1000:1000 data/ /var/lib/kafka/data/
COPY root/ /
USER 1000:1000
WORKDIR /var/lib/kafka/data
ENTRYPOINT ["/usr/bin/tansu", "broker", "--listener-url", "tcp://0.0.0.0:9092", \
    "--advertised-listener-url", "tcp://kafka:9092", "--storage-engine", "sqlite://broker.db"]
"#;

const POSTGRES_FILE: &str = r#"FROM scratch
COPY --chown=999:999 data/ /var/lib/postgresql/data/
COPY root/ /
ENTRYPOINT ["/bin/bash", "/start"]
"#;

/// What the public image does at its first start, as far as the stack asks for it.
const POSTGRES_START: &str = r#"
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust --auth-host=scram-sha-256 \
        --encoding=UTF8 --locale=C --no-sync
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\";" | postgres --single -F -j postgres
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql -c fsync=off
"#;

const PROMETHEUS_FILE: &str = r#"FROM scratch
COPY data/ /prometheus/
COPY root/ /
ENTRYPOINT ["/usr/bin/prometheus"]
"#;

const ALERTMANAGER_FILE: &str = r#"FROM scratch
COPY --chown=65534:65534 data/ /alertmanager/
COPY root/ /
ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]
"#;

/// As much of wget as is asked for: the body of a page to standard output or nowhere, and whether it was there.
const WGET: &str = r#"#!/bin/bash
set -e
while [ $# -gt 1 ]; do
    if [ "$1" = -O ]; then to=$2; shift; fi
    shift
done
url=${1#http://}
path=/${url#*/}
host=${url%%/*}
[ "$to" != - ] || to=/dev/stdout
exec 3<>"/dev/tcp/${host%:*}/${host#*:}"
printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$host" >&3
read -r -u 3 _ status _
while read -r -u 3 line && [ "$line" != $'\r' ]; do :; done
while IFS= read -r -u 3 line || [ -n "$line" ]; do echo "$line"; done >"$to"
[ "$status" = 200 ]
"#;

/// Makes all four on the lab's first node, where the stack keeps its data.
///
/// # Panics
/// A program is missing (then the panic says how to install it), or an image cannot be built.
pub fn make(lab: &Lab) {
    let folder = lab.dir().join("images");
    kafka(lab, &folder.join("kafka"));
    postgres(lab, &folder.join("postgres"));
    prometheus(lab, &folder.join("prometheus"));
    alertmanager(lab, &folder.join("alertmanager"));
}

fn kafka(lab: &Lab, context: &Path) {
    let root = context.join("root");
    add_program(&root, &tansu(), "/usr/bin/tansu");
    add_shell(&root);
    // Whoever writes a file wants a place for temporary ones.
    make_folder(&root.join("tmp"));
    set_mode(&root.join("tmp"), 0o1777);
    build(lab, context, KAFKA, KAFKA_FILE);
}

fn postgres(lab: &Lab, context: &Path) {
    let root = context.join("root");
    let programs = postgres_program("postgres");
    let bin = programs.parent().expect("a program is in a folder");
    assert!(
        bin.is_absolute(),
        "PostgreSQL is missing; tests/run installs it: apt-get install postgresql"
    );
    let version = bin.parent().expect("it is not the root");
    let path = |folder: &str| format!("{}/{folder}", version.display());
    for program in ["initdb", "pg_isready", "postgres"] {
        let to = format!("{}/{program}", path("bin"));
        add_program(&root, &bin.join(program), &to);
    }
    // What compiles queries at run time needs LLVM; without it they are interpreted.
    let left_out = ["llvmjit.so", "llvmjit_types.bc", "bitcode", "pgxs"];
    add_folder(&root, &version.join("lib"), &path("lib"), &left_out);
    let number = version.file_name().and_then(|name| name.to_str());
    let number = number.expect("Debian's folder has the version's name");
    let share = format!("/usr/share/postgresql/{number}");
    add_folder(&root, Path::new(&share), &share, &["man"]);
    let zone = "/usr/share/zoneinfo/UTC";
    add_file(&root, Path::new(zone), zone);
    add_shell(&root);
    write(&root.join("start"), POSTGRES_START);
    make_folder(&root.join("etc"));
    // It wants to know its own name.
    let account = "postgres:x:999:999::/var/lib/postgresql:/bin/bash\n";
    write(&root.join("etc/passwd"), account);
    let file = format!("{POSTGRES_FILE}ENV PATH={}:/bin\n", path("bin"));
    build(lab, context, POSTGRES, &file);
}

fn prometheus(lab: &Lab, context: &Path) {
    let root = context.join("root");
    add_program(
        &root,
        Path::new("/usr/bin/prometheus"),
        "/usr/bin/prometheus",
    );
    add_shell(&root);
    add_wget(&root);
    build(lab, context, PROMETHEUS, PROMETHEUS_FILE);
}

fn alertmanager(lab: &Lab, context: &Path) {
    let root = context.join("root");
    for program in ["/usr/bin/prometheus-alertmanager", "/usr/bin/amtool"] {
        assert!(
            Path::new(program).exists(),
            "{program} is missing; tests/run installs it: apt-get install prometheus-alertmanager"
        );
        add_program(&root, Path::new(program), program);
    }
    // It reads them also where none is used.
    for templates in ["default.tmpl", "email.tmpl"] {
        let path = format!("/usr/share/prometheus/alertmanager/{templates}");
        add_file(&root, Path::new(&path), &path);
    }
    add_shell(&root);
    add_wget(&root);
    build(lab, context, ALERTMANAGER, ALERTMANAGER_FILE);
}

fn add_wget(root: &Path) {
    let wget = root.join("bin/wget");
    write(&wget, WGET);
    set_mode(&wget, 0o755);
}

/// A shell, by both its names.
fn add_shell(root: &Path) {
    add_program(root, Path::new("/bin/bash"), "/bin/bash");
    symlink("bash", root.join("bin/sh")).expect("the folder is new");
}

fn build(lab: &Lab, context: &Path, name: &str, file: &str) {
    make_folder(&context.join("data"));
    write(&context.join("Dockerfile"), file);
    let context = context.display().to_string();
    lab.docker(1, &["build", "--quiet", "--tag", name, &context]);
}

fn make_folder(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder of ours can be written to");
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).expect("a folder of ours can be written to");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it was just made");
}
