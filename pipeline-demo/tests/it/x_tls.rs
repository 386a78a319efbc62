//! The stream of X by TLS.

use std::path::Path;
use std::sync::Arc;

use pipeline_demo::bus::TWEETS;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::support::{local_bus, until};
use crate::x_server::XServer;
use crate::x_stream::{staying, token_file};

/// A certificate for `localhost` and the key to it, and the root that signed it.
fn certificates(directory: &Path) {
    let openssl = |args: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(args)
            .current_dir(directory)
            .output()
            .expect("openssl is there: tests/run installs it");
        assert!(output.status.success(), "{output:?}");
    };
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let root = [
        "req",
        "-x509",
        "-days",
        "2",
        "-subj",
        "/CN=test root",
        "-keyout",
        "root.key",
    ];
    openssl(&[&root[..], &["-out", "root.pem"], &curve].concat());
    let asked = [
        "req",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ];
    openssl(
        &[
            &asked[..],
            &["-keyout", "server.key", "-out", "server.csr"],
            &curve,
        ]
        .concat(),
    );
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "root.pem",
        "-CAkey",
        "root.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-copy_extensions",
        "copyall",
        "-out",
        "server.pem",
    ]);
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(directory.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn x_is_spoken_to_by_tls_and_only_if_this_machine_trusts_it() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let scripts = [staying(1..=20)];
    let server = XServer::start_with(scripts, Some(acceptor(directory.path()))).await;
    let url = format!("https://localhost:{}", server.address.port());
    let token = token_file();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let start = |bus: &str, trusted: &str, log: &str| {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
            .args([
                "subscribe",
                "--bus",
                &at(bus),
                "--x-url",
                &url,
                "--x-rule",
                "rust=rust",
            ])
            .arg("--x-token-file")
            .arg(token.path())
            .env("SSL_CERT_FILE", at(trusted))
            .env_remove("SSL_CERT_DIR")
            .stderr(std::fs::File::create(at(log)).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    // Another root, as good as the one that signed, and nothing is sent.
    std::fs::create_dir(at("other")).unwrap();
    certificates(&directory.path().join("other"));
    let mut wary = start("bus1", "other/root.pem", "log1");
    until("the certificate is refused", async || {
        let text = std::fs::read_to_string(at("log1")).unwrap();
        if text.contains("UnknownIssuer") || text.contains("BadSignature") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    wary.kill().await.unwrap();
    assert_eq!(server.seen().len(), 0);
    let mut trusting = start("bus2", "root.pem", "log2");
    let bus = local_bus(&directory.path().join("bus2")).await;
    until("the tweets are in the bus", async || {
        match bus.lag(TWEETS, "nobody").await.unwrap() {
            20 => Ok(()),
            other => Err((other, std::fs::read_to_string(at("log2")).unwrap())),
        }
    })
    .await;
    trusting.kill().await.unwrap();
}
