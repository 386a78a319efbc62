//! Any bytes as a route table: reading never panics, and what is taken says the same when it is written and read again.

#![no_main]

use friday_proxy::fuzzing::read_table;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|text: &[u8]| -> Corpus {
    let Ok(table) = read_table(text) else {
        return Corpus::Keep;
    };
    let written = serde_json::to_vec(&table).expect("a table is JSON");
    let again = read_table(&written).expect("what we wrote we can read");
    assert_eq!(table, again);
    assert_eq!(
        serde_json::to_vec(&again).expect("a table is JSON"),
        written
    );
    Corpus::Keep
});
