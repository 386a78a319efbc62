//! Any bytes from a client: no panic, and what an upstream gets is one request by the strictest rules, with the body
//! that the proxy read, or the beginning of one.

#![no_main]

#[path = "../../tests/it/abuse/strict.rs"]
mod strict;

use friday_proxy::fuzzing::pass;
use libfuzzer_sys::fuzz_target;

fn is_whole(bytes: &[u8]) -> bool {
    matches!(strict::parse(bytes), Ok(Some(_)))
}

fuzz_target!(|client: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("it needs no system resource");
    for passed in runtime.block_on(pass(client, is_whole)) {
        let text = passed.bytes.escape_ascii();
        match strict::parse(&passed.bytes) {
            Err(fault) => panic!("{fault} in {text}"),
            Ok(None) => {}
            Ok(Some((message, length))) => {
                assert_eq!(length, passed.bytes.len(), "more than one request: {text}");
                assert!(!passed.is_broken, "half a body looks whole: {text}");
                assert_eq!(message.body.len() as u64, passed.body_bytes, "{message}");
                let wishes = message.field("x-friday-release");
                assert!(wishes.is_empty(), "the tester's field went on: {wishes:?}");
                for (name, _) in &message.trailers {
                    assert!(
                        message.field(name).is_empty() || name != "host",
                        "{message}"
                    );
                }
            }
        }
    }
});
