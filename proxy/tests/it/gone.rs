//! Clients that break off while both sides still talk: the release did nothing wrong.

use http::{Request, Response};
use hyper::body::Incoming;
use proxy_api::Cell;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::abuse::frames::{DATA, END_HEADERS, HEADERS, RST_STREAM, Raw, frame, request};
use crate::controller::Controller;
use crate::world::{Backend, PATIENCE, Proxy, table};

/// How a client ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It closes its connection in order.
    Closed,
    /// Its connection breaks.
    Broken,
    /// It says no more, and would listen still.
    HalfClosed,
}

#[tokio::test]
async fn a_client_that_breaks_off_its_upload_within_the_answer_is_not_held_against_the_release() {
    // Says back what it hears as it comes.
    let echo =
        Backend::new(
            |request: Request<Incoming>| async move { Response::new(request.into_body()) },
        )
        .await;
    let controller = Controller::new(Some(table(1, &[echo.address], json!({})))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let mut requests = 0;
    for end in [End::Closed, End::Broken, End::HalfClosed] {
        for lines in [
            "content-length: 100\r\n\r\nfirst",
            "transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        ] {
            let mut client = TcpStream::connect(proxy.listen).await.unwrap();
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}");
            client.write_all(head.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            while !heard.windows(5).any(|window| window == b"first") {
                let read = timeout(PATIENCE, client.read_buf(&mut heard)).await;
                assert!(read.expect("the first half").unwrap() > 0);
            }
            match end {
                End::Closed => {}
                End::Broken => client.set_zero_linger().unwrap(),
                End::HalfClosed => {
                    client.shutdown().await.unwrap();
                    // It must not take what it has for all of it.
                    let rest = timeout(PATIENCE, client.read_to_end(&mut heard)).await;
                    drop(rest.expect("it ends"));
                    let heard = String::from_utf8_lossy(&heard).to_lowercase();
                    let is_short = heard.contains("content-length: 100\r\n");
                    let is_whole = heard.ends_with("\r\n0\r\n\r\n");
                    assert!(is_short || !is_whole, "{heard:?}");
                }
            }
            drop(client);
            requests += 1;
            controller.all_ended(requests).await;
            controller.look(|ledger| {
                let bad: u32 = ledger.cells().map(Cell::bad).sum();
                let to_user: u32 = ledger.cells().map(|cell| cell.failed_to_user).sum();
                assert_eq!((bad, to_user), (0, 0), "{end:?} after {lines:?}");
            });
        }
    }
    // HTTP/2: the stream is taken back, and the connection goes on.
    let mut raw = Raw::new(proxy.listen, &[]).await;
    let head = frame(HEADERS, END_HEADERS, 1, &request("POST", "/"));
    let begun = [head, frame(DATA, 0, 1, b"first")].concat();
    assert!(raw.send(&begun).await);
    raw.from.event().await;
    assert!(
        raw.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()))
            .await
    );
    requests += 1;
    controller.all_ended(requests).await;
    controller.look(|ledger| {
        let bad: u32 = ledger.cells().map(Cell::bad).sum();
        let to_user: u32 = ledger.cells().map(|cell| cell.failed_to_user).sum();
        assert_eq!((bad, to_user), (0, 0), "taken back");
    });
    drop(raw);
    proxy.stop().await;
}
