//! The JSON Schema of `friday.yml`, by which editors complete and explain keys. It is written by hand, for people to
//! read; tests hold its keys and defaults against what [`read`](super::read) does.

/// The schema, as JSON Schema 2020-12.
///
/// # Panics
/// Never: the document is part of the program, and a test parses it.
#[must_use]
pub fn schema() -> serde_json::Value {
    serde_json::from_str(include_str!("friday.schema.json")).expect("a test parses it")
}
