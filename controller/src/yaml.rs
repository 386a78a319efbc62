//! Reading YAML that people write: text in, values out, and everything that is wrong with it as [`Finding`]s with their
//! places. `friday.yml` is read with it, and so are its neighbours.
//!
//! The text becomes a [`Tree`] whose keys and values know their line; [`Value`] and [`Fields`] walk it, key by key, and note
//! what is wrong instead of stopping there. What a key means, and its default, is the reader's.

mod fields;
mod tree;
pub(crate) mod units;

use std::fmt;

use serde::Serialize;

pub use fields::{Fields, Findings, Place, Setting, Value, nearest};
pub use tree::Tree;
pub use units::{duration, long_duration, percent, show_duration};

/// One thing that is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, as its reader named it.
    pub file: String,
    /// From 1; 0 for what is in no file: a setting of a service that runs.
    pub line: u64,
    /// From 1, in characters; 0 where the line is.
    pub column: u64,
    /// The dotted path of the key, list places from 0: `plan[1].hold`. Empty for the file as a whole.
    pub key: String,
    /// The value that was found, as it would be written; `null` where none was.
    pub value: Option<String>,
    /// What was expected instead.
    pub expected: String,
    /// How to mend it, where that is not plain from what was expected.
    pub mend: Option<String>,
}

impl fmt::Display for Finding {
    /// `friday.yml:12:5: plan[1].hold: "10x": expected a duration such as 10s`, and the mend in a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => write!(f, "{}: ", self.file)?,
            (line, column) => write!(f, "{}:{line}:{column}: ", self.file)?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, "{value}: ")?;
        }
        f.write_str(&self.expected)?;
        self.mend
            .iter()
            .try_for_each(|mend| write!(f, "\n  {mend}"))
    }
}
