//! Both sides as they are, with certificates as OpenSSL makes them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::testing::Pki;
use crate::{Authorities, Certificate, CertificateFiles, TlsError, Trouble};
use crate::{server_name, unverified_client};

/// More than a flight of either side.
const BUFFER_BYTES: usize = 64 << 10;

/// A client's side of a connection to a server that shows this certificate, and says back what it hears.
fn server(certificate: &Arc<Certificate>) -> DuplexStream {
    let (near, far) = duplex(BUFFER_BYTES);
    let certificate = Arc::clone(certificate);
    tokio::spawn(async move {
        if let Ok(stream) = certificate.accept(far).await {
            let (mut read, mut write) = tokio::io::split(stream);
            drop(tokio::io::copy(&mut read, &mut write).await);
        }
    });
    near
}

async fn connect(
    stream: DuplexStream,
    ca: &Path,
    host: &str,
) -> io::Result<TlsStream<DuplexStream>> {
    let config = Authorities::from_file(ca)
        .unwrap()
        .client(None, &["h2"])
        .unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(server_name(host).unwrap(), stream)
        .await
}

fn loaded(files: CertificateFiles) -> Arc<Certificate> {
    Arc::new(Certificate::load(files).unwrap())
}

#[tokio::test]
async fn a_server_is_taken_by_each_of_its_names_and_by_no_other() {
    let pki = Pki::new();
    pki.sign("server", &["c.test", "127.0.0.1", "::1"]);
    let certificate = loaded(pki.files("server"));
    let root = pki.path("root.pem");
    for name in ["c.test", "127.0.0.1", "::1", "[::1]"] {
        let stream = connect(server(&certificate), &root, name).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    }
    for name in ["d.test", "127.0.0.2"] {
        let error = connect(server(&certificate), &root, name)
            .await
            .unwrap_err();
        assert_eq!(
            Trouble::of(&error).unwrap().to_string(),
            "its certificate is not for this name but for c.test, 127.0.0.1, 0::1; use one of these, or have one made for it"
        );
    }
    let anybody = TlsConnector::from(Arc::new(unverified_client(&["http/1.1"])));
    let name = server_name("d.test").unwrap();
    anybody.connect(name, server(&certificate)).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_apart() {
    let (pki, other) = (Pki::new(), Pki::new());
    let root = pki.path("root.pem");
    let names = ["c.test"];
    other.sign("stranger", &names);
    pki.sign_between("old", &names, "20200101000000Z", "20200201000000Z");
    pki.sign_between("new", &names, "20980101000000Z", "20980201000000Z");
    for (files, expected) in [
        (other.files("stranger"), Trouble::Authority),
        (pki.files("old"), Trouble::Expired),
        (pki.files("new"), Trouble::NotYet),
        (pki.files("root"), Trouble::AuthoritysOwn),
    ] {
        let shown = server(&loaded(files));
        let error = connect(shown, &root, "c.test").await.unwrap_err();
        assert_eq!(Trouble::of(&error), Some(expected));
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_apart_from_who_says_nothing() {
    let pki = Pki::new();
    let root = pki.path("root.pem");
    let (near, mut far) = duplex(BUFFER_BYTES);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .unwrap();
    let error = connect(near, &root, "c.test").await.unwrap_err();
    assert_eq!(Trouble::of(&error), Some(Trouble::Plain));
    let (near, mut far) = duplex(BUFFER_BYTES);
    far.shutdown().await.unwrap();
    let error = connect(near, &root, "c.test").await.unwrap_err();
    assert_eq!(Trouble::of(&error), Some(Trouble::BrokenOff));
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    assert_eq!(Trouble::of(&refused), None);
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let pki = Pki::new();
    pki.sign("server", &["c.test"]);
    pki.sign("other", &["c.test"]);
    std::fs::write(pki.path("empty.pem"), "nothing").unwrap();
    let load = |certificate: &str, key: &str| {
        let (certificate, key) = (pki.path(certificate), pki.path(key));
        Certificate::load(CertificateFiles { certificate, key }).unwrap_err()
    };
    assert!(matches!(
        load("server.pem", "other.key"),
        TlsError::Unfit { .. }
    ));
    assert!(matches!(
        load("empty.pem", "server.key"),
        TlsError::Empty(_)
    ));
    let missing = load("nowhere.pem", "server.key").to_string();
    assert!(missing.contains("nowhere.pem"), "{missing}");
    let keyless = load("server.pem", "server.pem").to_string();
    assert!(keyless.contains("a private key from"), "{keyless}");
    let long = std::fs::File::create(pki.path("long.pem")).unwrap();
    long.set_len(5 << 20).unwrap();
    let long = Authorities::from_file(&pki.path("long.pem")).unwrap_err();
    assert!(matches!(long, TlsError::TooLong(_)), "{long}");
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_taken_while_connections_go_on_with_the_old_one() {
    let pki = Pki::new();
    pki.sign("server", &["old.test"]);
    let root = pki.path("root.pem");
    let certificate = loaded(pki.files("server"));
    let stop = CancellationToken::new();
    let watching = tokio::spawn(Arc::clone(&certificate).keep_watch(stop.clone()));
    let mut before = connect(server(&certificate), &root, "old.test")
        .await
        .unwrap();
    // What cannot be used changes nothing.
    std::fs::write(pki.path("server.pem"), "nothing").unwrap();
    sleep(Duration::from_secs(20)).await;
    connect(server(&certificate), &root, "old.test")
        .await
        .unwrap();
    pki.sign("server", &["new.test"]);
    let mut tries = 0;
    while connect(server(&certificate), &root, "new.test")
        .await
        .is_err()
    {
        tries += 1;
        assert!(tries < 20, "the new certificate is not shown");
        sleep(Duration::from_secs(1)).await;
    }
    before.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    before.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    stop.cancel();
    watching.await.unwrap();
}
