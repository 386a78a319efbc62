//! Certificates for tests: an authority of the test's own, by the command line of OpenSSL.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::certificate::CertificateFiles;

/// What is needed to sign for days that are over or to come, which the short way cannot.
const CONFIGURATION: &str = "\
[ca]
default_ca = test
[test]
database = index.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copyall
[any]
commonName = supplied
";

/// How keys are made: quickly.
const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

/// An authority in a folder of its own, and what it has signed there: NAME.pem and NAME.key, its own certificate being
/// `root.pem`.
#[derive(Debug)]
pub struct Pki(TempDir);

impl Pki {
    /// A new authority. All that are made here bear the same name.
    ///
    /// # Panics
    /// OpenSSL is missing.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::write(folder.path().join("ca.cnf"), CONFIGURATION)
            .and_then(|()| std::fs::write(folder.path().join("index.txt"), ""))
            .expect("a folder of ours can be written to");
        let pki = Self(folder);
        let subject = ["-subj", "/CN=test root", "-days", "2"];
        let into = ["-keyout", "root.key", "-out", "root.pem"];
        pki.openssl(&[&["req", "-x509"], &KEY[..], &subject, &into].concat());
        pki
    }

    /// A certificate for these names or addresses, in place of the one of that file if there is one: first the key
    /// changes, then the certificate, and each file is whole at any time.
    ///
    /// # Panics
    /// OpenSSL fails.
    pub fn sign(&self, file: &str, names: &[&str]) {
        self.sign_for(file, names, &["-days", "2"]);
    }

    /// The same for a time that begins and ends as given: `20200101000000Z`.
    ///
    /// # Panics
    /// OpenSSL fails.
    pub fn sign_between(&self, file: &str, names: &[&str], from: &str, to: &str) {
        self.sign_for(file, names, &["-startdate", from, "-enddate", to]);
    }

    fn sign_for(&self, file: &str, names: &[&str], time: &[&str]) {
        let [key, request, certificate] =
            ["key.new", "csr", "pem.new"].map(|kind| format!("{file}.{kind}"));
        let subject = format!("/CN={}", names[0]);
        let names: Vec<String> = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(_) => format!("IP:{name}"),
                Err(_) => format!("DNS:{name}"),
            })
            .collect();
        let names = format!("subjectAltName={}", names.join(","));
        let asked = ["-subj", &subject, "-addext", &names];
        let into = ["-keyout", &key, "-out", &request];
        self.openssl(&[&["req"], &KEY[..], &asked, &into].concat());
        let by = [
            "-config", "ca.cnf", "-cert", "root.pem", "-keyfile", "root.key",
        ];
        let how = ["-batch", "-notext", "-in", &request];
        let out = ["-out", &certificate];
        self.openssl(&[&["ca"], &by[..], &how, time, &out].concat());
        for kind in ["key", "pem"] {
            let new = self.path(&format!("{file}.{kind}.new"));
            std::fs::rename(new, self.path(&format!("{file}.{kind}")))
                .expect("a file of ours can be renamed");
        }
    }

    /// A file of the folder.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// The same as an argument.
    #[must_use]
    pub fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    /// What was signed as `file`, for a server.
    #[must_use]
    pub fn files(&self, file: &str) -> CertificateFiles {
        CertificateFiles {
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        }
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl")
            .args(args)
            .current_dir(self.0.path())
            .output()
            .expect("openssl is there: apt-get install openssl");
        assert!(
            output.status.success(),
            "openssl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}
