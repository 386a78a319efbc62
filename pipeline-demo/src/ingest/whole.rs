//! Whole or not at all: all lines are checked before the first is appended.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::Slow;
use crate::backoff::Hush;
use crate::bus::{Bus, BusError};
use crate::intake::{BATCH_MAX, append_all};
use crate::source::lines::{Lines, LinesError, record_of};
use crate::tweet::Tweet;

/// Lines that are checked in one go: about 1 ms, so that others are served meanwhile.
const STRIDE: u64 = 128;

/// How long a batch may take before the bus counts as slow.
const SLOW: Duration = Duration::from_secs(5);

/// What is wrong, and in which line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(super) struct Fault {
    /// From 1.
    pub(super) line: u64,
    /// The stable word for it.
    pub(super) code: &'static str,
    pub(super) reason: String,
    /// Whether it is the size of the whole.
    pub(super) too_large: bool,
}

impl Fault {
    fn of(error: &LinesError, line: u64) -> Self {
        let code = match error {
            LinesError::Read(_) => "not_readable",
            LinesError::LineTooLong => "too_large",
            LinesError::TooLarge { .. } => "unpacked_too_large",
        };
        let reason = match error {
            LinesError::Read(source) => format!("it cannot be unpacked: {source}"),
            LinesError::LineTooLong | LinesError::TooLarge { .. } => error.to_string(),
        };
        Self {
            line,
            code,
            reason,
            too_large: matches!(error, LinesError::TooLarge { .. }),
        }
    }
}

/// Reads all lines and says how many records there are, or what is wrong with the first that is none.
pub(super) async fn check(mut lines: Lines, records_max: u64) -> Result<u64, Fault> {
    let mut records = 0;
    loop {
        let line = lines.next().await;
        let number = lines.number();
        let line = line.map_err(|error| Fault::of(&error, number))?;
        let fault = |code, reason: String, too_large| Fault {
            line: number.max(1),
            code,
            reason,
            too_large,
        };
        let Some(line) = line else {
            if records == 0 {
                return Err(fault("empty", "there is no record".to_owned(), false));
            }
            return Ok(records);
        };
        if let Err(reason) = Tweet::parse(&line) {
            return Err(fault(reason.code(), reason.to_string(), false));
        }
        records += 1;
        if records > records_max {
            let reason = format!("there are more than {records_max} records");
            return Err(fault("too_many_records", reason, true));
        }
        if records % STRIDE == 0 {
            yield_now().await;
        }
    }
}

/// Why lines that were checked are not appended.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// The bus failed for good.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// The bus did not take them in time.
    #[error("the bus did not take the records within {} s", waited.as_secs())]
    Slow { waited: Duration },
    /// They are not what was checked.
    #[error("the lines changed after they were checked")]
    Changed(#[from] LinesError),
}

/// Appends all lines and says how many records they were. A batch that takes longer than `wait_max` ends it; what was
/// appended until then stays, and is stored once however often it is sent.
pub(super) async fn append(
    mut lines: Lines,
    bus: &dyn Bus,
    slow: &Slow,
    wait_max: Option<Duration>,
) -> Result<u64, AppendError> {
    let hush = Hush::default();
    let mut appended = 0;
    loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX {
            match lines.next().await? {
                Some(line) => batch.push(record_of(line)),
                None => break,
            }
        }
        let records = batch.len() as u64;
        if records == 0 {
            return Ok(appended);
        }
        let appending = append_all(bus, batch, &hush);
        let late = async {
            sleep(SLOW).await;
            let _slow = slow.one_more();
            std::future::pending::<()>().await;
        };
        let appending = async {
            tokio::select! {
                done = appending => done,
                () = late => unreachable!("it never ends"),
            }
        };
        match wait_max {
            None => appending.await?,
            Some(waited) => match timeout(waited, appending).await {
                Ok(done) => done?,
                Err(_) => return Err(AppendError::Slow { waited }),
            },
        }
        appended += records;
    }
}
