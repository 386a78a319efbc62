use rollout::{Admission, Phase};

use super::*;
use crate::words::samples;

fn release(image: &str) -> Release {
    Release::new(image, format!("sha256:{image}"), None)
}

/// The promoted rollouts of a story such as `v1>v2 v2<v1`: `>` goes up, `<` goes back. Newest first.
fn promoted(story: &str) -> Vec<Saved> {
    let mut all: Vec<Saved> = story
        .split_whitespace()
        .zip(1..)
        .map(|(text, number)| {
            let (from, to) = text.split_once(['>', '<']).unwrap();
            let rollout = Rollout {
                stable: release(from),
                canary: release(to),
                admission: Admission {
                    goes_back: text.contains('<'),
                    ..Admission::default()
                },
                ..samples::rollout(Phase::Promoted)
            };
            Saved {
                number,
                rollout,
                judge: None,
                verdict: None,
                origin: None,
                lease: None,
            }
        })
        .collect();
    all.reverse();
    all
}

#[test]
fn an_undo_takes_off_what_it_undid() {
    // What is stable after the story's last word, and what an undo makes of it.
    let table = [
        ("v1>v2", Some("v1")),
        ("v1>v2 v2<v1", None),
        ("v1>v2 v2>v3", Some("v2")),
        ("v1>v2 v2>v3 v3<v2", Some("v1")),
        ("v1>v2 v2>v3 v3<v2 v2<v1", None),
        ("v1>v2 v2>v3 v3<v1", None),
        // The same release goes up again.
        ("v1>v2 v2<v1 v1>v2", Some("v1")),
        ("v1>v2 v2>v1", Some("v2")),
        ("v1>v2 v2>v1 v1<v2", Some("v1")),
        ("v1>v2 v2>v1 v1<v2 v2<v1", None),
        ("v1>v2 v2>v1 v1>v3 v3<v1", Some("v2")),
        // A controller before this one let an undo put it up.
        ("v1>v2 v2<v1 v1<v2", Some("v1")),
        // Further back than anything that is known.
        ("v1>v2 v2<v0", None),
        ("", None),
    ];
    for (story, expected) in table {
        let promoted = promoted(story);
        let standing = Standing::of(&promoted);
        let target = standing
            .last()
            .map(|saved| saved.rollout.stable.image.as_str());
        assert_eq!(target, expected, "{story}");
    }
}

#[test]
fn only_what_stood_before_is_back() {
    let story = "v1>v2 v2>v3 v3<v2 v2>v4 v4>v5 v5<v4";
    let promoted = promoted(story);
    let standing = Standing::of(&promoted);
    let back: Vec<u64> = promoted
        .iter()
        .filter(|saved| standing.is_back_to(saved))
        .map(|saved| saved.number)
        .collect();
    // Neither the third release, which was undone, nor the fifth, which is newer than what is stable.
    assert_eq!(back, [6, 4, 3, 1], "{story}");
}
