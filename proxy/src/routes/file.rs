//! A table as text: read, and refused with the place where it is wrong.

use std::io;
use std::path::{Path, PathBuf};

use proxy_api::{RouteTable, TableError};

/// Why a text is no table, with the place.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not a table.
    #[error("{path}:{line}:{column}: {problem}", path = .path.display())]
    Malformed {
        /// The file, or where else the text came from.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// Reads the table at `path`. Blocks on the disk.
///
/// # Errors
/// See [`LoadError`].
pub(crate) fn load(path: &Path) -> Result<RouteTable, LoadError> {
    let text = std::fs::read(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Reads a table from text that came from `path`.
///
/// # Errors
/// See [`LoadError::Malformed`].
pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<RouteTable, LoadError> {
    let malformed = |(line, column), problem| LoadError::Malformed {
        path: path.to_owned(),
        line,
        column,
        problem,
    };
    let table: RouteTable = serde_json::from_slice(text).map_err(|error| {
        let place = (error.line(), error.column());
        let problem = error.to_string();
        // The place is in front already.
        let suffix = format!(" at line {} column {}", place.0, place.1);
        let problem = problem.strip_suffix(&suffix).unwrap_or(&problem);
        malformed(place, problem.to_owned())
    })?;
    table.check().map_err(|error| {
        let place = place_of(&String::from_utf8_lossy(text), &error);
        malformed(place, error.to_string())
    })?;
    Ok(table)
}

/// Line and column of the name of the route that `error` is about; for a name that stands there twice, the second.
fn place_of(text: &str, error: &TableError) -> (usize, usize) {
    let (name, nth) = match error {
        TableError::DuplicateName(name) => (name, 1),
        TableError::DuplicateMatch { route, .. }
        | TableError::Path { route, .. }
        | TableError::NoCanary { route, .. } => (route, 0),
        TableError::Generation(_) | TableError::BasisPoints(_) | TableError::Endpoint(_) => {
            return (1, 1);
        }
    };
    let named = |key: usize| {
        let rest = text[key + "\"name\"".len()..].trim_start();
        let rest = rest.strip_prefix(':')?.trim_start();
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        (values.next()?.ok()? == *name).then_some(key)
    };
    let place = text
        .match_indices("\"name\"")
        .filter_map(|(key, _)| named(key))
        .nth(nth)
        .unwrap_or(0);
    let before = &text[..place];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}
