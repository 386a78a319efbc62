//! Files that are whole or not there: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces the file at `path` with `content`. After a crash at any moment the old or the new content is there, whole.
/// Blocks on the disk.
///
/// # Errors
/// The directory cannot be written to; the file is as it was.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"))?;
    let mut beside = name.to_owned();
    // The process id keeps two writers of one directory from sharing a temporary file.
    beside.push(format!(".{}.new", std::process::id()));
    let beside = directory.join(beside);
    let written = (|| {
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The rename itself is durable only once the directory is.
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // It may not be there; what matters is the error above.
        drop(fs::remove_file(&beside));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_content_and_leaves_nothing_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn leaves_the_old_file_when_the_new_one_cannot_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone").join("table.json");
        assert!(write(&path, b"one").is_err());
    }
}
