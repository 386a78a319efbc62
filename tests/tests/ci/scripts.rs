//! The scripts that the pipelines and people call: what they show of secrets, and how they come to a registry.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::site::repository;

pub(crate) fn program(at: &Path, text: &str) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, text).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn copied(name: &str, into: &Path) {
    let to = into.join(name);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let done = Command::new("cp")
        .arg("--recursive")
        .arg(repository().join(name))
        .arg(to)
        .status()
        .unwrap();
    assert!(done.success(), "{name}");
}

pub(crate) fn said(done: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{out}\n{err}");
    format!("{out}\n{err}")
}

#[test]
fn an_image_is_pushed_as_the_job_and_its_password_is_no_argument() {
    for user in [None, Some("gitlab-ci-token")] {
        let dir = tempfile::tempdir().unwrap();
        let checkout = dir.path().join("project");
        copied(".ci/image", &checkout);
        program(&checkout.join("swarm/build"), "#!/bin/sh\n");
        fs::create_dir(checkout.join("programs")).unwrap();
        let told = dir.path().join("told");
        let docker = r#"#!/bin/sh
echo "$*" >>"$TOLD"
[ "$1" != login ] || cat >>"$TOLD"
"#;
        program(&dir.path().join("bin/docker"), docker);
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", dir.path().join("bin").display());
        let mut command = Command::new(checkout.join(".ci/image"));
        command
            .args(["registry.example.com/shop/worker:1", "programs"])
            .current_dir(&checkout)
            .env_remove("FRIDAY_DEMO")
            .env_remove("CI_REGISTRY_USER")
            .env("PATH", path)
            .env("TOLD", &told)
            .env("CI_REGISTRY", "registry.example.com")
            .env("CI_REGISTRY_PASSWORD", "secret");
        if let Some(user) = user {
            command.env("CI_REGISTRY_USER", user);
        }
        said(&command.output().unwrap());
        let login =
            "login --username gitlab-ci-token --password-stdin registry.example.com\nsecret\n";
        let push = "push --quiet registry.example.com/shop/worker:1\n";
        let expected = format!("{}{push}", user.map_or("", |_| login));
        assert_eq!(fs::read_to_string(told).unwrap(), expected);
    }
}
