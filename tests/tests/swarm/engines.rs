//! Engines elsewhere, and registries that want to know who asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use controller_testing::contract::{IMAGE, NEXT_IMAGE};
use friday::clock::SystemClock;
use friday::orchestrator::swarm::{EngineAddress, Swarm, SwarmConfig};
use friday::orchestrator::{Orchestrator, OrchestratorError};
use system_tests::{Lab, Part, START_TRIES, friday, pause};

use crate::failures::ends_as_not_ready;
use crate::seats::Seats;
use crate::stage::{Stage, listed};
use crate::world::{LIMIT, World, service, spec, until};

/// Where a registry listens in a node's network. Engines trust loopback without TLS.
const REGISTRY: &str = "127.0.0.1:5000";

/// `deploy` with the password `s3cret`, as the registry wants it.
const ACCOUNTS: &str = "deploy:$2b$04$Q.6urcDbej2.n1yEVrzMbeG1Fv8q12bYWonndgk6IXNm2cEJHSYuW\n";

/// A registry that lets nobody in without a password. It ends with it.
struct Registry {
    folder: tempfile::TempDir,
    child: Child,
}

impl Registry {
    /// Starts it beside a lab's engine, and logs the lab's command line in.
    fn start(lab: &Lab) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("accounts"), ACCOUNTS).unwrap();
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http: {{ addr: {REGISTRY} }}\nauth: {{ htpasswd: {{ realm: tests, path: {} }} }}\n",
            path("storage"),
            path("accounts"),
        );
        fs::write(path("config.yml"), text).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = lab.spawn_in_node(1, command);
        let registry = Self { folder, child };
        let login = [
            "login",
            "--username",
            "deploy",
            "--password",
            "s3cret",
            REGISTRY,
        ];
        for left in (0..START_TRIES).rev() {
            match lab.try_docker(1, &login, Stdio::null()) {
                Ok(_) => break,
                Err(said) => assert!(left > 0, "the registry takes nobody in: {said}"),
            }
            pause();
        }
        registry
    }

    /// Takes an image of the lab in under this name, and lets the engine forget it.
    fn take(&self, lab: &Lab, image: &str, name: &str) {
        lab.docker(1, &["tag", image, name]);
        lab.docker(1, &["push", "--quiet", name]);
        lab.docker(1, &["rmi", name]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn open_with(socket: PathBuf, state: &Path, docker_config: Option<PathBuf>) -> Arc<Swarm> {
    let config = SwarmConfig {
        engine: EngineAddress::Unix(socket),
        state_dir: state.to_owned(),
        network: Some("mesh".to_owned()),
        docker_config,
    };
    let swarm = Swarm::open(config, SystemClock::new()).await.unwrap();
    swarm.lead(1);
    swarm.know(&spec());
    swarm
}

#[test]
fn a_private_registry_is_told_who_asks_and_its_own_words_are_passed_on() {
    let world = World::new();
    let registry = Registry::start(world.lab());
    let image = format!("{REGISTRY}/worker:v2");
    registry.take(world.lab(), NEXT_IMAGE, &image);
    world.create(&[]);
    let socket = world.lab().socket(1);
    let config = world.lab().docker_config();
    world.lab().within(move || async move {
        let state = tempfile::tempdir().unwrap();
        let stranger = open_with(socket.clone(), state.path(), None).await;
        let error = stranger
            .resolve(&service(), &image, None)
            .await
            .unwrap_err();
        assert!(
            matches!(error, OrchestratorError::UnknownImage { .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains("no basic auth credentials"),
            "{error}"
        );

        let swarm = open_with(socket.clone(), state.path(), Some(config)).await;
        let none = swarm
            .resolve(&service(), &format!("{REGISTRY}/worker:none"), None)
            .await
            .unwrap_err();
        assert!(none.to_string().contains("manifest unknown"), "{none}");

        let release = swarm.resolve(&service(), &image, None).await.unwrap();
        swarm.ensure_canary(&service(), &release, 1).await.unwrap();
        // The node had to fetch it, with what it was told of us.
        until(&swarm, "the canary runs", |state| {
            state
                .canary
                .as_ref()
                .is_some_and(|group| group.ready(&release.id) == 1)
        })
        .await;
        swarm.ensure_no_canary(&service()).await.unwrap();
        swarm.ensure_stable(&service(), &release).await.unwrap();
        until(&swarm, "the service runs it", |state| {
            state.stable.ready(&release.id) == 2
        })
        .await;
        controller_testing::eventually(
            "the users' service shows the image by its name",
            LIMIT,
            async || listed(&socket),
            |listed| *listed == [format!("worker {image} 2/2")],
        )
        .await;
    });
}

#[test]
fn f47_an_image_that_its_registry_lost_ends_with_exit_14_and_the_engines_words() {
    let world = World::new();
    let registry = Registry::start(world.lab());
    let lab = world.lab();
    lab.image("worker:gone", &["tag", "gone"]);
    let id = lab.docker(
        1,
        &["image", "inspect", "--format", "{{.Id}}", "worker:gone"],
    );
    registry.take(lab, "worker:gone", "127.0.0.1:5000/worker:gone");
    lab.docker(1, &["rmi", "worker:gone"]);
    // Its manifest says what it is made of, and that is gone.
    let digits = id.trim_start_matches("sha256:");
    let blob = format!(
        "storage/docker/registry/v2/blobs/sha256/{}/{digits}/data",
        &digits[..2]
    );
    fs::remove_file(registry.folder.path().join(blob)).unwrap();
    ends_as_not_ready(
        &world,
        &[],
        "127.0.0.1:5000/worker:gone",
        &["No such image: 127.0.0.1:5000/worker:gone@sha256:"],
    );
}

#[test]
fn f47_a_tag_that_its_registry_does_not_have_ends_with_exit_14_and_the_registrys_words() {
    let world = World::new();
    let registry = Registry::start(world.lab());
    registry.take(world.lab(), NEXT_IMAGE, "127.0.0.1:5000/worker:v2");
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket).await;
        let file = stage.path("friday.yml");
        let image = "127.0.0.1:5000/worker:typo";
        let ended = stage
            .command(&["deploy", "-f", &file, "--image", image, "--wait"])
            .await;
        assert_eq!(ended.code, 14, "{}{}", ended.out, ended.err);
        for words in [image, "127.0.0.1:5000 says: ", "manifest unknown"] {
            assert!(ended.err.contains(words), "{words:?} in {}", ended.err);
        }
        // Nothing was started for it.
        let services = stage.client.services().await.unwrap();
        assert!(services[0].rollout.is_none(), "{services:?}");
        stage.until_alone("worker worker:v1 2/2").await;
        controller_testing::eventually(
            "both stable tasks get requests, and no canary",
            LIMIT,
            async || stage.endpoints(0).await,
            |seen| *seen == (2, 0),
        )
        .await;
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
    });
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {said}");
}

/// An authority, the engine's certificate, and one for whoever may command it.
fn certificates(lab: &Path) {
    let folder = lab.join("tls");
    fs::create_dir(&folder).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        &folder,
        &format!("req -x509 {key} -keyout ca-key.pem -out ca.pem -days 2 -subj /CN=tests"),
    );
    fs::write(folder.join("server.ext"), "subjectAltName=IP:10.77.0.11\n").unwrap();
    fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for (name, file, key_file) in [
        ("server", "server.pem", "server-key.pem"),
        ("client", "cert.pem", "key.pem"),
    ] {
        openssl(
            &folder,
            &format!("req -new {key} -keyout {key_file} -out {name}.csr -subj /CN={name}"),
        );
        openssl(
            &folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -out {file} -extfile {name}.ext"
            ),
        );
    }
    let strange = folder.join("strange");
    fs::create_dir(&strange).unwrap();
    openssl(
        &strange,
        &format!("req -x509 {key} -keyout key.pem -out cert.pem -days 2 -subj /CN=strange"),
    );
    fs::copy(folder.join("ca.pem"), strange.join("ca.pem")).unwrap();
}

#[test]
fn an_engine_over_tcp_is_commanded_with_a_certificate_and_not_without() {
    let _seats = Seats::take(1);
    let lab = Lab::start_with(1, certificates);
    lab.image(IMAGE, &["tag", "one"]);
    let folder = lab.dir().join("tls");
    let world = World::of(lab);
    world.create(&[]);
    world.lab().within_node(1, move || async move {
        let state = tempfile::tempdir().unwrap();
        let open = async |certificates: PathBuf| {
            let config = SwarmConfig {
                engine: EngineAddress::parse("tcp://10.77.0.11", Some(&certificates)).unwrap(),
                state_dir: state.path().to_owned(),
                network: None,
                docker_config: None,
            };
            Swarm::open(config, SystemClock::new()).await.unwrap()
        };
        let swarm = open(folder.clone()).await;
        assert_eq!(swarm.services().await.unwrap(), [service()]);
        let stranger = open(folder.join("strange")).await;
        let error = stranger.services().await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    });
    // Not for other tests: it listens for all.
    drop(world.into_lab());
}

/// An sshd in a node's network for this account, and how to come in: the folder of a program `ssh` that is the real one
/// with settings of the test's own.
fn ssh_daemon(lab: &Lab, folder: &Path) -> Child {
    let path = |name: &str| folder.join(name).display().to_string();
    for key in ["host", "user"] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)])
            .status()
            .unwrap();
        assert!(made.success());
    }
    fs::copy(path("user.pub"), path("authorized")).unwrap();
    let engine = lab.socket(1).display().to_string();
    let daemon = format!(
        "ListenAddress 127.0.0.1:2222\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin yes\n\
         UsePAM no\nPidFile none\nSetEnv DOCKER_HOST=unix://{engine}\n",
        path("host"),
        path("authorized"),
    );
    fs::write(path("sshd_config"), daemon).unwrap();
    let client = format!(
        "IdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nStrictHostKeyChecking accept-new\n",
        path("user"),
        path("known"),
    );
    fs::write(path("ssh_config"), client).unwrap();
    let ssh = folder.join("bin/ssh");
    fs::create_dir(folder.join("bin")).unwrap();
    let text = format!(
        "#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n",
        path("ssh_config")
    );
    fs::write(&ssh, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&ssh, mode).unwrap();
    // It refuses to start without its own folder.
    fs::create_dir_all("/run/sshd").unwrap();
    let mut command = Command::new("/usr/sbin/sshd");
    command
        .args(["-D", "-e", "-f", &path("sshd_config")])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    lab.spawn_in_node(1, command)
}

#[test]
fn an_engine_behind_ssh_is_commanded_through_it() {
    let world = World::new();
    world.create(&[]);
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = ssh_daemon(world.lab(), folder.path());
    let path = folder.path().to_owned();
    world.lab().within_node(1, move || async move {
        controller_testing::eventually(
            "sshd listens",
            LIMIT,
            async || {
                tokio::net::TcpStream::connect("127.0.0.1:2222")
                    .await
                    .is_ok()
            },
            |listens| *listens,
        )
        .await;
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        let variable = format!(
            "PATH={}:{}",
            path.join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let program = friday().display().to_string();
        let engine = format!("ssh://{user}@127.0.0.1:2222");
        let state = path.join("state").display().to_string();
        let file = path.join("friday.yml");
        fs::write(&file, "service: worker\nport: 9000\n").unwrap();
        let file = file.display().to_string();
        let args = [
            &variable,
            &program,
            "serve",
            "--orchestrator",
            "swarm",
            "--engine",
            &engine,
            "--state-dir",
            &state,
            "--listen",
            "127.0.0.1:0",
            "--service",
            &file,
        ];
        let controller = Part::start("controller", Path::new("/usr/bin/env"), &args, &path).await;
        let url = format!("http://{}/ready", controller.address("listen"));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        controller_testing::eventually(
            "the controller has seen the service",
            LIMIT,
            async || match client.get(&url).send().await {
                Ok(answer) => answer.status().is_success(),
                Err(_) => false,
            },
            |seen| *seen,
        )
        .await;
        drop(controller);
    });
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
