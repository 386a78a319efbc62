//! YAML as a tree in which every key and every value knows where it stands.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Location, Spanned};

use super::fields::Findings;
use crate::api::types::SPEC_BYTES_MAX;

/// Maps and lists inside each other. `friday.yml` needs five: `guard.checks[0].…` and a little air.
const DEPTH_MAX: usize = 16;

/// Keys and values. A file of the greatest length could hold 100,000; one that people wrote holds 200.
const NODES_MAX: usize = 20_000;

/// Uses of `*anchor`. People who repeat themselves use a handful.
const ALIASES_MAX: usize = 100;

/// A value, its kind, and what is in it.
#[derive(Debug)]
pub(super) enum Node {
    /// Nothing, or `null`.
    Null,
    /// A text, a number or a truth value, as text.
    Scalar {
        text: String,
        /// Whether YAML takes it for a text.
        is_text: bool,
    },
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// A file as a tree.
#[derive(Debug)]
pub struct Tree(pub(super) Spanned<Node>);

impl Tree {
    /// The tree of `text`; `None` after a finding that says why there is none.
    #[must_use]
    pub fn parse(text: &str, findings: &mut Findings) -> Option<Self> {
        parse(text, findings).map(Self)
    }
}

fn parse(text: &str, findings: &mut Findings) -> Option<Spanned<Node>> {
    if text.len() > SPEC_BYTES_MAX {
        let expected = format!("expected at most {SPEC_BYTES_MAX} bytes: is it the right file?");
        findings.at(
            Location::UNKNOWN,
            "",
            Some(format!("{} bytes", text.len())),
            expected,
        );
        return None;
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_aliases: ALIASES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: NODES_MAX },
        // `off` is a word of ours, and YAML 1.2 agrees.
        strict_booleans: true,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
        emit_comments: false,
    };
    let error = match serde_saphyr::from_str_with_options(text, options) {
        Ok(tree) => return Some(tree),
        Err(error) => error,
    };
    let (key, what) = explain(&error);
    findings.at(
        error.location().unwrap_or(Location::UNKNOWN),
        key,
        None,
        what,
    );
    None
}

/// The key that an error is about, and what is wrong, for somebody who wrote YAML and not Rust.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser's own words do for all the others"
)]
fn explain(error: &Error) -> (&str, String) {
    let what = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            return (
                key,
                "this key is already there above: remove one of the two".to_owned(),
            );
        }
        Error::MultipleDocuments { .. } => {
            "expected one document: remove this --- and what follows".to_owned()
        }
        Error::NullIntoString { .. }
        | Error::Unexpected {
            expected: "string scalar",
            ..
        } => "expected a key that is a text".to_owned(),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => format!(
            "nested or repeated too much: expected at most {DEPTH_MAX} levels, {NODES_MAX} values and {ALIASES_MAX} aliases"
        ),
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            "an anchor cannot contain itself".to_owned()
        }
        other => {
            // The parser names the place too; a finding does so already.
            let mut words = other.to_string();
            words.truncate(words.find(" at line ").unwrap_or(words.len()));
            format!("this is not YAML: {words}")
        }
    };
    ("", what)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl NodeVisitor {
    fn scalar<E>(text: impl ToString, is_text: bool) -> Result<Node, E> {
        Ok(Node::Scalar {
            text: text.to_string(),
            is_text,
        })
    }
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Self::scalar(text, true)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Self::scalar(value, false)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Self::scalar(value, false)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Self::scalar(value, false)
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Self::scalar(value, false)
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Self::scalar(value, false)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Self::scalar(value, false)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element()? {
            list.push(value);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = access.next_entry()? {
            map.push(entry);
        }
        Ok(Node::Map(map))
    }
}
