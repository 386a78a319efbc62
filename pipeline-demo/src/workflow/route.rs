//! Routes: which stages a tweet takes, by what it is before any stage has looked at it. Pure.

use crate::features::finds_any;
use crate::seeded::stable_hash;
use crate::tweet::{Kind, Tweet};

/// A share of all authors, in hundredths of a percent.
pub(super) const AUTHORS_ALL: u16 = 10_000;

/// A way through the stages, for some of the tweets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub(super) name: String,
    /// Which tweets.
    pub(super) when: Traits,
    /// Places of its stages in the workflow.
    pub(super) stages: Vec<usize>,
}

impl Route {
    /// Its name in `pipeline.yml`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this tweet may take it.
    pub(super) fn takes(&self, tweet: &Tweet) -> bool {
        self.when.are_of(tweet)
    }
}

/// What a tweet has to be; all that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// In one of these languages, as X says.
    pub(super) lang: Option<Vec<String>>,
    /// Of one of these kinds.
    pub(super) kind: Option<Vec<Kind>>,
    /// With all of these.
    pub(super) has: Vec<Has>,
    /// By one of so many authors, of [`AUTHORS_ALL`].
    pub(super) authors: Option<u16>,
}

/// What a tweet may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Has {
    Hashtags,
    Mentions,
    Links,
}

impl Has {
    pub(super) const ALL: [Self; 3] = [Self::Hashtags, Self::Mentions, Self::Links];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hashtags => "hashtags",
            Self::Mentions => "mentions",
            Self::Links => "links",
        }
    }

    fn is_in(self, tweet: &Tweet) -> bool {
        match self {
            // As the features of these names have them.
            Self::Hashtags | Self::Mentions => finds_any(self.name(), tweet),
            Self::Links => ["https://", "http://"]
                .iter()
                .any(|it| tweet.text.contains(it)),
        }
    }
}

impl Traits {
    fn are_of(&self, tweet: &Tweet) -> bool {
        let lang_is = |langs: &Vec<String>| tweet.lang.as_ref().is_some_and(|l| langs.contains(l));
        let kind_is = |kinds: &Vec<Kind>| tweet.kinds.iter().any(|kind| kinds.contains(kind));
        self.lang.as_ref().is_none_or(lang_is)
            && self.kind.as_ref().is_none_or(kind_is)
            && (self.authors).is_none_or(|authors| place_of_author(tweet) < authors)
            && self.has.iter().all(|has| has.is_in(tweet))
    }

    /// Whether every tweet of `other` is one of these as well.
    pub(super) fn cover(&self, other: &Self) -> bool {
        fn among<T: PartialEq>(given: Option<&Vec<T>>, other: Option<&Vec<T>>) -> bool {
            given.is_none_or(|all| other.is_some_and(|some| some.iter().all(|it| all.contains(it))))
        }
        let leaves_one_out =
            |kinds: &&Vec<Kind>| Kind::ALL.iter().any(|kind| !kinds.contains(kind));
        among(self.lang.as_ref(), other.lang.as_ref())
            && among(
                self.kind.as_ref().filter(leaves_one_out),
                other.kind.as_ref(),
            )
            && self.has.iter().all(|has| other.has.contains(has))
            && self.authors.unwrap_or(AUTHORS_ALL) >= other.authors.unwrap_or(AUTHORS_ALL)
    }
}

/// Where the author stands in an order of all, from 0 to 9 999: the same in every process, so that a larger share has the
/// authors of a smaller one. A tweet of nobody goes by its own id.
fn place_of_author(tweet: &Tweet) -> u16 {
    let author = tweet.author_id.as_ref().unwrap_or(&tweet.id);
    let hash = stable_hash(author.as_bytes());
    // Below 10 000, so it fits.
    ((u128::from(hash) * u128::from(AUTHORS_ALL)) >> 64) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tweet(author: &str, text: &str) -> Tweet {
        Tweet {
            id: "1".into(),
            author_id: Some(author.into()),
            created_at: None,
            lang: Some("en".into()),
            kinds: vec![Kind::Original],
            text: text.into(),
        }
    }

    fn of_authors(authors: u16) -> Traits {
        Traits {
            authors: Some(authors),
            ..Traits::default()
        }
    }

    #[test]
    fn an_author_stands_at_the_same_place_in_every_version() {
        let places = ["1", "2", "10000940"].map(|author| place_of_author(&tweet(author, "a")));
        assert_eq!(
            places,
            [2755, 3181, 4899],
            "a changed hash moves every author"
        );
    }

    #[test]
    fn a_share_of_the_authors_is_taken_and_a_larger_one_has_them_too() {
        let taken = |authors: u16| -> Vec<u32> {
            let traits = of_authors(authors);
            let is_taken = |author: &u32| traits.are_of(&tweet(&author.to_string(), "a"));
            (0..20_000).filter(is_taken).collect()
        };
        let (tenth, third) = (taken(1_000), taken(3_300));
        assert!((1_800..2_200).contains(&tenth.len()), "{}", tenth.len());
        assert!((6_300..6_900).contains(&third.len()), "{}", third.len());
        assert!(tenth.iter().all(|author| third.contains(author)));
        assert_eq!(taken(AUTHORS_ALL).len(), 20_000);
    }

    #[test]
    fn a_tweet_has_what_its_features_find() {
        for (text, found) in [
            ("#rust by @ferris: https://t.co/a", [true, true, true]),
            (
                "a#b me@example.org #1 @ @averyveryverylongname # http:/",
                [false, false, false],
            ),
            ("(#大好き", [true, false, false]),
        ] {
            let has = Has::ALL.map(|has| has.is_in(&tweet("1", text)));
            assert_eq!(has, found, "{text}");
        }
    }

    fn traits() -> impl Strategy<Value = Traits> {
        let lang = prop::sample::subsequence(vec!["en", "de", "ja"], 1..=3);
        let lang = lang.prop_map(|l| l.into_iter().map(str::to_owned).collect());
        let kind = prop::sample::subsequence(Kind::ALL.to_vec(), 1..=4);
        let has = prop::sample::subsequence(Has::ALL.to_vec(), 0..=3);
        let authors = prop::option::of(1..=AUTHORS_ALL);
        (prop::option::of(lang), prop::option::of(kind), has, authors).prop_map(
            |(lang, kind, has, authors)| Traits {
                lang,
                kind,
                has,
                authors,
            },
        )
    }

    proptest! {
        #[test]
        fn what_covers_another_takes_every_tweet_of_it(
            one in traits(),
            other in traits(),
            author in 0_u32..100,
            lang in prop::option::of(prop::sample::select(vec!["en", "de", "ja", "fr"])),
            kinds in prop::sample::subsequence(Kind::ALL.to_vec(), 1..=2),
            text in prop::sample::select(vec!["a", "#b @c", "@c http://d", "#b @c http://d"]),
        ) {
            let mut tweet = tweet(&author.to_string(), text);
            tweet.lang = lang.map(str::to_owned);
            tweet.kinds = kinds;
            prop_assert!(one.cover(&one));
            if one.cover(&other) && other.are_of(&tweet) {
                prop_assert!(one.are_of(&tweet));
            }
        }
    }
}
