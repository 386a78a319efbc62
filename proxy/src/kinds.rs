//! Of what kinds a route's answers are: the few that are told apart, the same for both arms and all workers.
//!
//! What an upstream writes into the header is its own affair, so it is bounded here, before anything is counted: words of up
//! to 64 characters, the first [`KINDS_MAX`] of them, all others together. Were each cell to keep its own first sixteen, the
//! arm with fewer requests would have fewer "others" and look as if it answered differently. A list lives as long as the
//! table that its route is of.

use std::sync::OnceLock;

use http::HeaderValue;
use proxy_api::{KIND_BYTES_MAX, KIND_NONE, KIND_OTHER, KINDS_MAX};

/// The kinds of one route's answers that are told apart, in the order in which they showed up. Only ever grows, from the
/// first free place on, so that readers need no lock.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    names: [OnceLock<Box<str>>; KINDS_MAX],
}

/// One of [`Kinds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Named(u8),
    Other,
    None,
}

impl Kinds {
    /// The kind of an answer with this in its header.
    pub(crate) fn of(&self, header: Option<&HeaderValue>) -> Kind {
        let Some(word) = header.and_then(word) else {
            return Kind::None;
        };
        for (index, name) in (0..).zip(&self.names) {
            // Of two that come at once one is told here what the other has written.
            if **name.get_or_init(|| word.into()) == *word {
                return Kind::Named(index);
            }
        }
        Kind::Other
    }

    /// As reports call it.
    pub(crate) fn name(&self, kind: Kind) -> &str {
        match kind {
            Kind::Named(index) => {
                let name = self.names.get(usize::from(index)).and_then(OnceLock::get);
                name.map_or(KIND_OTHER, |name| name)
            }
            Kind::Other => KIND_OTHER,
            Kind::None => KIND_NONE,
        }
    }
}

/// The word in a header, if it is one.
fn word(value: &HeaderValue) -> Option<&str> {
    let is_word = |text: &&str| {
        (1..=KIND_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    value.to_str().ok().filter(is_word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(kinds: &Kinds, text: &[u8]) -> Kind {
        kinds.of(Some(&HeaderValue::from_bytes(text).unwrap()))
    }

    #[test]
    fn tells_kinds_apart_and_knows_them_again() {
        let kinds = Kinds::default();
        assert_eq!(of(&kinds, b"glad"), Kind::Named(0));
        assert_eq!(of(&kinds, b"sad"), Kind::Named(1));
        assert_eq!(of(&kinds, b"glad"), Kind::Named(0));
        assert_eq!(kinds.name(Kind::Named(1)), "sad");
    }

    #[test]
    fn what_is_no_short_word_names_no_kind() {
        let kinds = Kinds::default();
        let long = [b'x'; KIND_BYTES_MAX + 1];
        for text in [
            &b""[..],
            b"two words",
            b"tab\there",
            b"na\xc3\xafve",
            b"\xff",
            &long,
        ] {
            assert_eq!(of(&kinds, text), Kind::None, "{text:?}");
        }
        assert_eq!(kinds.of(None), Kind::None);
        assert_eq!(of(&kinds, &long[1..]), Kind::Named(0));
    }

    #[test]
    fn an_identifier_takes_no_more_than_its_sixteen_places() {
        let kinds = Kinds::default();
        for number in 0..10_000 {
            let kind = of(&kinds, format!("id-{number}").as_bytes());
            assert_eq!(kind == Kind::Other, number >= KINDS_MAX, "{number}");
        }
        assert_eq!(of(&kinds, b"id-15"), Kind::Named(15));
        assert_eq!(kinds.name(Kind::Other), KIND_OTHER);
    }

    #[test]
    fn workers_that_come_at_once_agree() {
        let kinds = Kinds::default();
        let seen: Vec<Vec<Kind>> = std::thread::scope(|scope| {
            let worker = |offset: usize| {
                let kinds = &kinds;
                scope.spawn(move || {
                    let mut found = vec![Kind::None; 32];
                    for step in 0..32 {
                        let number = (step + offset) % 32;
                        found[number] = of(kinds, format!("k{number}").as_bytes());
                    }
                    found
                })
            };
            let workers: Vec<_> = [0, 3, 8, 21].map(worker).into_iter().collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .collect()
        });
        assert!(seen.iter().all(|found| *found == seen[0]), "{seen:?}");
        assert_eq!(
            seen[0].iter().filter(|kind| **kind == Kind::Other).count(),
            16
        );
    }

    proptest! {
        #[test]
        fn whatever_upstreams_write_names_are_few_and_short(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..60),
        ) {
            let kinds = Kinds::default();
            let mut names = std::collections::BTreeSet::new();
            for value in &values {
                let Ok(value) = HeaderValue::from_bytes(value) else {
                    continue;
                };
                let name = kinds.name(kinds.of(Some(&value)));
                prop_assert!(name.as_bytes() == value.as_bytes() || name == KIND_OTHER || name == KIND_NONE);
                names.insert(name.to_owned());
            }
            prop_assert!(names.len() <= KINDS_MAX + 2);
            prop_assert!(names.iter().all(|name| name.len() <= KIND_BYTES_MAX));
        }
    }
}
