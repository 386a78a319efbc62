//! Tweets that are made up: plausible, in several languages, and the same for the same seed.

use async_trait::async_trait;
use serde_json::json;

use super::{Source, SourceError, SourceRecord};
use crate::seeded::Seeded;

/// Authors to choose from; a few write much, as on the real stream. An author's tweets are done one after another, so the
/// busiest must not write more than that allows: one tweet in 450, which at 10,000 tweets/s is one every 45 ms.
const AUTHORS: usize = 200_000;

/// The first author's id.
const FIRST_AUTHOR: u64 = 20_000_000;

/// When the first tweet was written, in milliseconds: 2025-01-01T00:00:00Z. A fixed time, because tweets depend on the
/// seed alone.
const FIRST_TWEET_MS: u64 = 1_735_689_600_000;

/// Milliseconds between two tweets.
const TWEET_EVERY_MS: u64 = 5;

/// Where X's ids begin to count, in milliseconds: 2010-11-04T01:42:54.657Z. The upper bits of an id are the time.
const ID_EPOCH_MS: u64 = 1_288_834_974_657;

/// Sentences of one language. `{}` stands for a topic.
struct Phrases {
    lang: &'static str,
    /// How often the language is chosen, in percent.
    percent: usize,
    topics: &'static [&'static str],
    glad: &'static [&'static str],
    sad: &'static [&'static str],
    plain: &'static [&'static str],
}

static LANGUAGES: &[Phrases] = &[
    Phrases {
        lang: "en",
        percent: 55,
        topics: &[
            "the new release",
            "this phone",
            "our train",
            "the match",
            "my garden",
            "the coffee here",
            "that concert",
        ],
        glad: &[
            "I really love {}, it made my day!",
            "So happy with {} today, great work everybody",
            "{} is AMAZING, best thing this year",
            "Thanks for the help with {}, you are wonderful",
        ],
        sad: &[
            "I hate what happened to {}, what a terrible morning",
            "{} is broken again and nobody cares :(",
            "Worst experience ever with {}, so disappointed",
            "Feeling sad about {}, this is awful",
        ],
        plain: &[
            "Does anybody know when {} starts tomorrow?",
            "Just read a long article about {} on the way to work",
            "There is a meeting about {} on Tuesday",
            "Two hours left until {}, see you there",
        ],
    },
    Phrases {
        lang: "es",
        percent: 12,
        topics: &[
            "el partido",
            "la nueva versión",
            "el concierto",
            "este teléfono",
        ],
        glad: &[
            "Me encanta {}, qué día tan maravilloso",
            "Muchas gracias a todos por {}, fue increíble",
        ],
        sad: &[
            "Qué desastre con {}, estoy muy triste hoy",
            "Otra vez no funciona {}, qué vergüenza",
        ],
        plain: &[
            "¿Alguien sabe a qué hora empieza {} mañana?",
            "Estoy leyendo un artículo sobre {} en el tren",
        ],
    },
    Phrases {
        lang: "de",
        percent: 9,
        topics: &["das Spiel", "die neue Version", "der Zug", "mein Garten"],
        glad: &[
            "Ich freue mich so sehr über {}, was für ein schöner Tag",
            "Vielen Dank an alle für {}, das war wirklich großartig",
        ],
        sad: &[
            "Schon wieder Ärger wegen {}, das ist einfach schrecklich",
            "Ich bin so enttäuscht über {}, wie kann das sein",
        ],
        plain: &[
            "Weiß jemand, wann {} morgen anfängt?",
            "Gerade einen langen Artikel über {} gelesen",
        ],
    },
    Phrases {
        lang: "fr",
        percent: 8,
        topics: &[
            "le match",
            "la nouvelle version",
            "ce concert",
            "mon jardin",
        ],
        glad: &[
            "J'adore {}, quelle belle journée",
            "Merci beaucoup à tous pour {}, c'était magnifique",
        ],
        sad: &[
            "Encore un problème avec {}, je suis vraiment déçu",
            "Quelle horreur, {} ne marche plus depuis ce matin",
        ],
        plain: &[
            "Quelqu'un sait à quelle heure commence {} demain ?",
            "Je lis un long article sur {} dans le train",
        ],
    },
    Phrases {
        lang: "pt",
        percent: 8,
        topics: &["o jogo", "a nova versão", "este telefone", "o show"],
        glad: &[
            "Eu amo {}, que dia maravilhoso para todos nós",
            "Muito obrigado a vocês por {}, foi incrível",
        ],
        sad: &[
            "Que tristeza com {}, não funciona de novo",
            "Estou muito decepcionado com {}, que dia ruim",
        ],
        plain: &[
            "Alguém sabe que horas começa {} amanhã?",
            "Estou lendo um artigo sobre {} no ônibus",
        ],
    },
    Phrases {
        lang: "ja",
        percent: 8,
        topics: &[
            "新しいバージョン",
            "今日の試合",
            "このコーヒー",
            "コンサート",
        ],
        glad: &[
            "{}は本当に最高でした、ありがとうございます",
            "{}が大好きです、とても嬉しい一日",
        ],
        sad: &[
            "{}がまた壊れていて、とても悲しいです",
            "{}には本当にがっかりしました",
        ],
        plain: &[
            "{}は明日の何時に始まりますか",
            "電車の中で{}についての記事を読んでいます",
        ],
    },
];

static TAGS: &[&str] = &[
    "friday",
    "NowPlaying",
    "monday",
    "rustlang",
    "worldcup",
    "coffee",
    "travel",
    "photo",
    "music",
    "fail",
    "winning",
    "旅行",
];

static NAMES: &[&str] = &[
    "ferris",
    "ada_l",
    "grace",
    "linus42",
    "newsroom",
    "trains_now",
    "coffee_bot",
    "m_curie",
];

static EMOJI: &[&str] = &["😀", "😍", "😢", "😡", "🎉", "🔥"];

/// An endless stream of made-up tweets. As on the real stream the glad and the sad are not equally many; were they, a release
/// that takes one for the other would give as many of each.
#[derive(Debug)]
pub struct Synthetic {
    seeded: Seeded,
    made: u64,
}

impl Synthetic {
    /// The stream of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            seeded: Seeded::new(seed),
            made: 0,
        }
    }

    fn language(&mut self) -> &'static Phrases {
        let mut left = self.seeded.below(100);
        for language in LANGUAGES {
            if left < language.percent {
                return language;
            }
            left -= language.percent;
        }
        &LANGUAGES[0]
    }

    fn text(&mut self, language: &'static Phrases) -> String {
        let seeded = &mut self.seeded;
        let mut text = String::new();
        if seeded.chance(0.25) {
            text.push_str(&format!("@{} ", seeded.pick(NAMES)));
        }
        for sentence in 0..1 + seeded.below(2) {
            let phrases = match seeded.below(10) {
                0..5 => language.glad,
                5..8 => language.plain,
                _ => language.sad,
            };
            let phrase = seeded
                .pick(phrases)
                .replace("{}", seeded.pick(language.topics));
            if sentence > 0 {
                text.push_str(if language.lang == "ja" { "。" } else { ". " });
            }
            text.push_str(&phrase);
        }
        if seeded.chance(0.2) {
            text.push_str(&format!(" {}", seeded.pick(EMOJI)));
        }
        for _ in 0..seeded.below(3) {
            text.push_str(&format!(" #{}", seeded.pick(TAGS)));
        }
        if seeded.chance(0.1) {
            text.push_str(&format!(" https://t.co/{:010x}", seeded.next() >> 24));
        }
        text
    }
}

#[async_trait]
impl Source for Synthetic {
    async fn next(&mut self) -> Result<Option<SourceRecord>, SourceError> {
        let language = self.language();
        let text = self.text(language);
        let at_ms = FIRST_TWEET_MS + self.made * TWEET_EVERY_MS;
        let id = ((at_ms - ID_EPOCH_MS) << 22) | (self.seeded.next() & 0xfff);
        // The square prefers small numbers: one author in ten writes a third of all.
        let author = (self.seeded.unit().powi(2) * AUTHORS as f64) as u64 + FIRST_AUTHOR;
        self.made += 1;
        let record = json!({
            "data": {
                "id": id.to_string(),
                "author_id": author.to_string(),
                "created_at": rfc3339(at_ms),
                "lang": language.lang,
                "text": text,
            },
            "matching_rules": [{"id": "1", "tag": "demo"}],
        });
        Ok(Some(SourceRecord {
            key: Some(author.to_string().into()),
            value: record.to_string().into(),
            malformed_on_purpose: false,
        }))
    }
}

/// The time as X writes it, with milliseconds.
fn rfc3339(ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms.cast_signed());
    time.map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::source::take;
    use crate::tweet::Tweet;

    #[tokio::test]
    async fn one_seed_gives_one_stream() {
        let first = take(&mut Synthetic::new(42), 500).await;
        assert_eq!(first, take(&mut Synthetic::new(42), 500).await);
        assert_ne!(first, take(&mut Synthetic::new(43), 500).await);
    }

    #[tokio::test]
    async fn tweets_are_plausible() {
        let tweets: Vec<Tweet> = take(&mut Synthetic::new(1), 2_000)
            .await
            .iter()
            .map(|record| Tweet::parse(&record.value).unwrap())
            .collect();
        let ids: BTreeSet<_> = tweets.iter().map(|tweet| &tweet.id).collect();
        assert_eq!(ids.len(), tweets.len(), "each has an id of its own");
        assert_eq!(
            tweets[0].created_at.as_deref(),
            Some("2025-01-01T00:00:00.000Z")
        );
        let features: Vec<_> = tweets.iter().map(crate::features::all_of).collect();
        let share = |wanted: &dyn Fn(&serde_json::Map<String, serde_json::Value>) -> bool| {
            features.iter().filter(|f| wanted(f)).count() as f64 / features.len() as f64
        };
        assert!(share(&|f| f["hashtags"] != json!([])) > 0.3);
        assert!(share(&|f| f["mentions"] != json!([])) > 0.1);
        assert!(share(&|f| f["sentiment"]["label"] == "positive") > 0.15);
        assert!(share(&|f| f["sentiment"]["label"] == "negative") > 0.1);
        let languages: BTreeSet<_> = features
            .iter()
            .filter(|f| f["language"]["reliable"] == true)
            .map(|f| f["language"]["code"].as_str().unwrap())
            .collect();
        for code in ["eng", "spa", "deu", "fra", "por", "jpn"] {
            assert!(languages.contains(code), "{code}: {languages:?}");
        }
    }

    #[test]
    fn the_languages_are_a_whole() {
        let percent: usize = LANGUAGES.iter().map(|language| language.percent).sum();
        assert_eq!(percent, 100);
    }
}
