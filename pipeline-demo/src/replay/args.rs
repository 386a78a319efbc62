//! The options of `pipeline-demo replay`.

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::{ReplayConfig, ReplayPart, ReplayTime};
use crate::bus::{BusArgs, Span, TWEETS};
use crate::cli::seconds;
use crate::feeder::{IN_FLIGHT_DEFAULT, Pin};

/// Which records to send again, and how.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    bus: BusArgs,
    /// The proxy; tasks go to its /tasks
    #[arg(long, value_name = "URL")]
    proxy: String,
    /// The topic to read
    #[arg(long, default_value = TWEETS)]
    topic: String,
    /// Records produced from then on: 2026-11-20T14:00:00Z, or a time ago such as 2h or 15m
    #[arg(long, value_name = "TIME", value_parser = time, required_unless_present = "offsets", conflicts_with = "offsets")]
    from: Option<ReplayTime>,
    /// Records produced before then
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0s", conflicts_with = "offsets")]
    to: ReplayTime,
    /// Records by place: partition, first offset, and one more than the last
    #[arg(
        long,
        value_name = "P:FROM..TO,…",
        value_parser = span,
        value_delimiter = ','
    )]
    offsets: Vec<Span>,
    /// Send every task to one release, whatever the weights; what is for the canary is answered by the canary or not at all
    #[arg(long, value_enum)]
    pin: Option<Pin>,
    /// Most tasks in flight
    #[arg(long, value_name = "N", default_value_t = IN_FLIGHT_DEFAULT as u32,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: u32,
    /// How long one attempt may take
    #[arg(long, value_name = "N", default_value = "10", value_parser = seconds)]
    attempt_seconds: Duration,
    /// Attempts for each record, then it is counted as failed
    #[arg(long, value_name = "N", default_value = "5",
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    attempts: u32,
    /// Count the answers and keep none: to try a release on records of the past
    #[arg(long)]
    discard_results: bool,
}

impl TryFrom<ReplayArgs> for ReplayConfig {
    type Error = String;

    fn try_from(args: ReplayArgs) -> Result<Self, Self::Error> {
        let part = match args.from {
            Some(from) => ReplayPart::Times(from, args.to),
            None => {
                let mut partitions: Vec<u32> = args.offsets.iter().map(|s| s.partition).collect();
                partitions.sort_unstable();
                if let Some(twice) = partitions.windows(2).find(|pair| pair[0] == pair[1]) {
                    let partition = twice[0];
                    return Err(format!(
                        "--offsets names partition {partition} twice; give one span for each, or replay twice"
                    ));
                }
                ReplayPart::Offsets(args.offsets)
            }
        };
        Ok(Self {
            bus: args.bus.into(),
            proxy: args.proxy,
            topic: args.topic,
            part,
            pin: args.pin,
            in_flight_max: args.in_flight as usize,
            attempt_wait_max: args.attempt_seconds,
            attempts_max: args.attempts,
            discard_results: args.discard_results,
        })
    }
}

fn time(text: &str) -> Result<ReplayTime, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(ReplayTime::At(time));
    }
    text.parse::<SignedDuration>()
        .map(|ago| ReplayTime::Ago(ago.unsigned_abs()))
        .map_err(|_| {
            "expected a time such as 2026-11-20T14:00:00Z, or a time ago such as 2h or 15m"
                .to_owned()
        })
}

fn span(text: &str) -> Result<Span, String> {
    let read = || {
        let (partition, offsets) = text.split_once(':')?;
        let (from, to) = offsets.split_once("..")?;
        let span = Span {
            partition: partition.trim().parse().ok()?,
            from: from.parse().ok()?,
            to: to.parse().ok()?,
        };
        (0 <= span.from && span.from < span.to).then_some(span)
    };
    read().ok_or_else(|| {
        "expected PARTITION:FROM..TO with FROM below TO, such as 0:1000..2000".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn parsed(args: &[&str]) -> Result<ReplayConfig, String> {
        let fixed = ["replay", "--bus", "b", "--proxy", "http://127.0.0.1:1"];
        let command = Command::try_parse_from([&fixed, args].concat());
        command.map_err(|error| error.to_string())?.args.try_into()
    }

    #[test]
    fn times_and_places_are_understood() {
        let config = parsed(&["--from", "2026-11-20T14:00:00Z", "--to", "15m"]).unwrap();
        let from = ReplayTime::At("2026-11-20T14:00:00Z".parse().unwrap());
        let to = ReplayTime::Ago(Duration::from_secs(900));
        assert_eq!(config.part, ReplayPart::Times(from, to));
        let config = parsed(&["--offsets", "0:10..20,3:0..5", "--pin", "canary"]).unwrap();
        let spans = [(0, 10, 20), (3, 0, 5)].map(|(partition, from, to)| Span {
            partition,
            from,
            to,
        });
        assert_eq!(config.part, ReplayPart::Offsets(spans.to_vec()));
        assert_eq!(config.pin, Some(Pin::Canary));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_was_expected() {
        for (args, word) in [
            (&[] as &[&str], "--from"),
            (&["--from", "yesterday"], "2h or 15m"),
            (&["--offsets", "0:20..10"], "FROM below TO"),
            (&["--offsets", "0"], "0:1000..2000"),
            (&["--offsets", "0:1..2,0:5..6"], "partition 0 twice"),
            (
                &["--from", "2h", "--offsets", "0:1..2"],
                "cannot be used with",
            ),
        ] {
            let text = parsed(args).unwrap_err();
            assert!(text.contains(word), "{args:?}: {text}");
        }
    }
}
