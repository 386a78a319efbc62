//! A lock that several processes on one machine take in turn.

use std::fs::{File, create_dir_all};
use std::path::Path;

/// Waits for the lock on the file at `path`, which is created with its directory when missing and stays.
///
/// The system frees the lock when the file is dropped or its process ends, however it ends.
pub(crate) async fn lock(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        create_dir_all(directory)?;
    }
    let file = File::create(path)?;
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
    locked.await.map_err(std::io::Error::other)?
}
