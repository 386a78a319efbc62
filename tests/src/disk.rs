//! A disk that a test can fill.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::part::run;

/// The size of the disk: the state of one rollout takes about 1 MiB, its reserve another.
const SIZE: &str = "size=8m";

/// Longest time of mounting.
const MOUNT_MAX: Duration = Duration::from_secs(10);

/// A small disk. Gone when it is dropped, which is to be after those who use it.
#[derive(Debug)]
pub struct SmallDisk {
    at: tempfile::TempDir,
    mounted: bool,
}

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Panics
    /// It may not be mounted.
    pub async fn mount() -> Self {
        let at = tempfile::Builder::new()
            .prefix("friday-disk-")
            .tempdir()
            .expect("a temporary folder can be made");
        let mut disk = Self { at, mounted: false };
        let path = disk.path().display().to_string();
        let ended = run(
            Path::new("mount"),
            &["-t", "tmpfs", "-o", SIZE, "friday-test", &path],
            MOUNT_MAX,
        )
        .await;
        assert_eq!(
            ended.code,
            0,
            "no small disk can be mounted ({}); run as root: mount -t tmpfs -o {SIZE} friday-test {path}",
            ended.err.trim()
        );
        disk.mounted = true;
        disk
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.at.path()
    }

    /// Takes all the space that is left, by a file that holds it until it is removed.
    ///
    /// # Panics
    /// The file cannot be opened.
    #[expect(
        clippy::must_use_candidate,
        reason = "most want the space gone, and no more"
    )]
    pub fn fill(&self) -> PathBuf {
        let file = self.path().join("ballast");
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(&file)
            .expect("a file needs no space before it is written to");
        let mut piece = vec![1_u8; 64 << 10];
        while !piece.is_empty() {
            if ballast.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
        file
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.mounted {
            let ended = std::process::Command::new("umount")
                .arg(self.at.path())
                .status();
            if !ended.is_ok_and(|status| status.success()) {
                eprintln!("{} is still mounted", self.at.path().display());
            }
        }
    }
}
