//! Ways into a lab's nodes by ssh: a daemon in each node's network, with keys of the test's own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::lab::{Lab, START_TRIES, pause};

/// Where the daemons listen, on every address of their node.
const PORT: u16 = 2222;

/// A daemon in the network of each of some nodes, who speaks for that node's engine. They end with it.
#[derive(Debug)]
pub struct SshDaemons {
    folder: TempDir,
    daemons: Vec<Child>,
}

impl SshDaemons {
    /// Starts them for the account that runs the test, which is root as [`Lab`] asks for, and waits until they listen.
    ///
    /// # Panics
    /// One cannot be started.
    #[must_use]
    pub fn start(lab: &Lab, nodes: &[u32]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("friday-ssh-")
            .tempdir()
            .expect("a temporary folder can be made");
        let mut daemons = Self {
            folder,
            daemons: Vec::new(),
        };
        daemons.make_key("user");
        fs::copy(daemons.path("user.pub"), daemons.path("authorized"))
            .expect("ssh-keygen has just made it");
        // It refuses to start without its own folder.
        fs::create_dir_all("/run/sshd").expect("root can make a folder in /run");
        let mut known = String::new();
        for node in nodes {
            daemons.start_one(lab, *node, &mut known);
        }
        fs::write(daemons.path("known"), known).expect("a folder of ours can be written to");
        daemons.make_client();
        for node in nodes {
            daemons.until_listening(lab, *node);
        }
        daemons
    }

    /// How a node's engine is reached.
    #[must_use]
    pub fn docker_host(&self, node: u32) -> String {
        format!("ssh://root@10.77.0.{}:{PORT}", 10 + node)
    }

    /// A `PATH` that begins with a program `ssh` that is the real one with settings of the test's own: it knows these
    /// daemons' keys and trusts no others.
    ///
    /// # Panics
    /// There is no `PATH`.
    #[must_use]
    pub fn search_path(&self) -> String {
        let rest = std::env::var("PATH").expect("a test has a PATH");
        format!("{}:{rest}", self.path("bin").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make_key(&self, name: &str) {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.path(name))
            .status()
            .expect("ssh-keygen can be run; tests/run installs it: apt-get install openssh-client");
        assert!(made.success(), "no key can be made");
    }

    fn start_one(&mut self, lab: &Lab, node: u32, known: &mut String) {
        let name = format!("host{node}");
        self.make_key(&name);
        let key = fs::read_to_string(self.path(&format!("{name}.pub")))
            .expect("ssh-keygen has just made it");
        known.push_str(&format!("[10.77.0.{}]:{PORT} {key}", 10 + node));
        let config = self.path(&format!("sshd{node}_config"));
        let text = format!(
            "ListenAddress 0.0.0.0:{PORT}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin yes\n\
             UsePAM no\nPidFile none\nMaxStartups 100\nSetEnv DOCKER_HOST=unix://{}\n",
            self.path(&name).display(),
            self.path("authorized").display(),
            lab.socket(node).display(),
        );
        fs::write(&config, text).expect("a folder of ours can be written to");
        let mut command = Command::new("/usr/sbin/sshd");
        command
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.daemons.push(lab.spawn_in_node(node, command));
    }

    fn make_client(&self) {
        let config = self.path("ssh_config");
        let text = format!(
            "IdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nGlobalKnownHostsFile none\n\
             StrictHostKeyChecking yes\nBatchMode yes\n",
            self.path("user").display(),
            self.path("known").display(),
        );
        fs::write(&config, text).expect("a folder of ours can be written to");
        fs::create_dir(self.path("bin")).expect("a folder of ours can be written to");
        let program = self.path("bin/ssh");
        let text = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n",
            config.display()
        );
        fs::write(&program, text).expect("a folder of ours can be written to");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .expect("the file was just written");
    }

    fn until_listening(&self, lab: &Lab, node: u32) {
        let address = format!("10.77.0.{}:{PORT}", 10 + node);
        lab.within_node(node, move || async move {
            let listens = (0..START_TRIES).any(|_| {
                let connected = TcpStream::connect(&address).is_ok();
                if !connected {
                    pause();
                }
                connected
            });
            assert!(listens, "no sshd listens at {address}");
        });
    }
}

impl Drop for SshDaemons {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}
