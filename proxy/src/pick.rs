//! Which release a request goes to, and which endpoint of it. Pure: randomness comes in as numbers.
//!
//! All hashes are XXH3 (64 bits, <https://github.com/Cyan4973/xxHash>): stable across versions, machines and replicas.

use proxy_api::{Arm, BasisPoints, Chosen};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Into how many groups clients are divided in reports.
const GROUPS: u64 = 8;

/// What a request itself says about its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'a> {
    /// Nothing.
    None,
    /// Stay with the release that this key was given.
    Key(&'a [u8]),
    /// This side, please: a tester's header.
    Arm(Arm),
}

/// The side that a request is routed to, and who chose it.
///
/// `canary` is the canary's share, or `None` where there is no canary; `seed` comes from [`route_seed`]; `random` is
/// uniform over all of `u32`.
#[must_use]
pub fn arm(canary: Option<BasisPoints>, wish: Wish<'_>, seed: u64, random: u32) -> (Arm, Chosen) {
    let by_weight = |place: u16| {
        let arm = match canary {
            Some(share) if place < share.get() => Arm::Canary,
            Some(_) | None => Arm::Stable,
        };
        (arm, Chosen::Weight)
    };
    match wish {
        Wish::Arm(Arm::Canary) if canary.is_some() => (Arm::Canary, Chosen::Request),
        Wish::Arm(_) => (Arm::Stable, Chosen::Request),
        Wish::Key(key) => by_weight(key_place(seed, key)),
        Wish::None => by_weight(scale(u64::from(random) << 32)),
    }
}

/// The seed of a route's sticky hash: a key has different places on different routes.
#[must_use]
pub fn route_seed(route: &str) -> u64 {
    xxh3_64(route.as_bytes())
}

/// Where a key stands between 0 and 9 999. It goes to the canary while its place is below the weight: so a growing
/// weight takes keys to the canary and moves none back.
#[must_use]
pub fn key_place(seed: u64, key: &[u8]) -> u16 {
    scale(xxh3_64_with_seed(key, seed))
}

/// The client's group in reports, 0 to 7, from its address or its sticky key.
#[must_use]
pub fn group(client: &[u8]) -> u8 {
    // Below 8, so it fits.
    (xxh3_64(client) % GROUPS) as u8
}

/// A number uniform over `u64` as one uniform over 0..10 000, by multiplication: off by at most 2^-50 for a hash, and
/// by 2^-18 of a basis point for a random number of 32 bits.
fn scale(uniform: u64) -> u16 {
    ((u128::from(uniform) * 10_000) >> 64) as u16
}

/// One of `count` endpoints: the less loaded of two taken at random among the healthy ones.
///
/// `avoid` is not taken: it was tried already. When no other endpoint is healthy, one of the others is tried all the
/// same: a wrong opinion about all of them must not end the service. `None` only if there is no other at all.
/// `random` is uniform over all of `u64`.
#[must_use]
pub fn endpoint(
    count: usize,
    healthy: impl Fn(usize) -> bool,
    load: impl Fn(usize) -> u32,
    avoid: Option<usize>,
    random: u64,
) -> Option<usize> {
    let (first, second) = (random as u32, (random >> 32) as u32);
    let among = |usable: &dyn Fn(usize) -> bool| -> Option<usize> {
        let size = (0..count).filter(|&index| usable(index)).count();
        let nth = |place: usize| (0..count).filter(|&index| usable(index)).nth(place);
        if size < 2 {
            return nth(0);
        }
        let one = below(first, size);
        // The second is drawn from those left, so that the two differ.
        let two = (one + 1 + below(second, size - 1)) % size;
        let (one, two) = (nth(one)?, nth(two)?);
        Some(if load(two) < load(one) { two } else { one })
    };
    among(&|index| Some(index) != avoid && healthy(index))
        .or_else(|| among(&|index| Some(index) != avoid))
}

/// A number uniform over `u32` as one below `size`.
fn below(uniform: u32, size: usize) -> usize {
    ((u64::from(uniform) * size as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn share(points: u16) -> Option<BasisPoints> {
        Some(BasisPoints::new(points).unwrap())
    }

    /// Whether `hits` of `n` is where a share of `p` puts it but once in a million runs: 4.9 standard deviations.
    fn in_band(hits: u32, n: u32, p: f64) -> bool {
        let mean = f64::from(n) * p;
        let deviation = (mean * (1.0 - p)).sqrt();
        (f64::from(hits) - mean).abs() <= 4.9 * deviation + 1.0
    }

    #[test]
    fn gives_the_canary_its_share_by_chance_and_by_key() {
        let n = 200_000;
        let mut random = SmallRng::seed_from_u64(7);
        for points in [0, 1, 100, 3_700, 9_999, 10_000] {
            let p = f64::from(points) / 10_000.0;
            let (mut by_chance, mut by_key) = (0, 0);
            for key in 0..n {
                let draw = random.random();
                by_chance += u32::from(arm(share(points), Wish::None, 1, draw).0 == Arm::Canary);
                let key = format!("user-{key}");
                let wish = Wish::Key(key.as_bytes());
                by_key += u32::from(arm(share(points), wish, 1, 0).0 == Arm::Canary);
            }
            assert!(
                in_band(by_chance, n, p),
                "{points} bp by chance: {by_chance}"
            );
            assert!(in_band(by_key, n, p), "{points} bp by key: {by_key}");
        }
    }

    #[test]
    fn knows_these_places_on_every_version_and_machine() {
        // The test vector of XXH3 itself, then ours.
        assert_eq!(route_seed(""), 0x2D06_8005_38D3_94C2);
        let seed = route_seed("web");
        let places = ["a", "b", "user-17"].map(|key| key_place(seed, key.as_bytes()));
        let moved = "a changed hash moves every client";
        assert_eq!(places, [4_424, 3_663, 2_765], "{moved}");
    }

    #[test]
    fn obeys_a_tester_and_sends_him_to_stable_without_a_canary() {
        let wish = Wish::Arm(Arm::Canary);
        assert_eq!(arm(share(0), wish, 0, 0), (Arm::Canary, Chosen::Request));
        assert_eq!(arm(None, wish, 0, 0), (Arm::Stable, Chosen::Request));
        let wish = Wish::Arm(Arm::Stable);
        assert_eq!(
            arm(share(10_000), wish, 0, 0),
            (Arm::Stable, Chosen::Request)
        );
    }

    #[test]
    fn takes_the_less_loaded_and_leaves_the_sick_and_the_tried() {
        let load = [5, 1, 9];
        let mut taken = [0; 3];
        let mut random = SmallRng::seed_from_u64(7);
        for _ in 0..3_000 {
            let index = endpoint(3, |_| true, |i| load[i], None, random.random()).unwrap();
            taken[index] += 1;
        }
        // Of three pairs, the one with load 1 wins two, the one with load 5 one, the one with load 9 none.
        assert!(
            taken[2] == 0 && in_band(taken[1], 3_000, 2.0 / 3.0),
            "{taken:?}"
        );
        for _ in 0..100 {
            let healthy = |i| i != 1;
            let index = endpoint(3, healthy, |i| load[i], Some(0), random.random());
            assert_eq!(index, Some(2));
            let index = endpoint(2, |_| false, |_| 0, Some(0), random.random());
            assert_eq!(index, Some(1), "all sick: one is tried all the same");
        }
        assert_eq!(endpoint(1, |_| true, |_| 0, Some(0), 3), None);
        assert_eq!(endpoint(0, |_| true, |_| 0, None, 3), None);
    }

    proptest! {
        #[test]
        fn growing_the_weight_moves_nobody_back(key: Vec<u8>, route: String, low in 0u16..=10_000, high in 0u16..=10_000) {
            let (low, high) = (low.min(high), low.max(high));
            let seed = route_seed(&route);
            let replica = route_seed(&route.clone());
            let wish = Wish::Key(&key);
            let before = arm(share(low), wish, seed, 1);
            prop_assert_eq!(before, arm(share(low), wish, replica, 2), "every replica says the same");
            if before.0 == Arm::Canary {
                prop_assert_eq!(arm(share(high), wish, seed, 3).0, Arm::Canary);
            }
        }

        #[test]
        fn takes_an_endpoint_whenever_there_is_one(
            healthy in proptest::collection::vec(any::<bool>(), 0..20), avoid in proptest::option::of(0usize..20), random: u64,
        ) {
            let count = healthy.len();
            let taken = endpoint(count, |i| healthy[i], |i| i as u32, avoid, random);
            let others = (0..count).filter(|&i| Some(i) != avoid).count();
            prop_assert_eq!(taken.is_some(), others > 0);
            if let Some(index) = taken {
                prop_assert!(Some(index) != avoid && index < count);
                let any_healthy = (0..count).any(|i| Some(i) != avoid && healthy[i]);
                prop_assert!(healthy[index] || !any_healthy);
            }
        }

        #[test]
        fn groups_are_eight(client: Vec<u8>) {
            prop_assert!(group(&client) < 8);
        }
    }
}
