//! Root file systems for images: programs of this machine with the libraries that they are linked with, and nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Puts a program into a root file system at `to`, which begins with a slash, and its libraries where it looks for them.
///
/// # Panics
/// Something of it cannot be read, or the folder not be written to.
pub(crate) fn add_program(root: &Path, program: &Path, to: &str) {
    let linked = Command::new("ldd")
        .arg(program)
        .output()
        .expect("ldd can be run");
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for library in libraries {
        add_file(root, Path::new(library), library);
    }
    add_file(root, program, to);
}

/// Puts a file into a root file system at `to`, which begins with a slash.
///
/// # Panics
/// It cannot be read, or the folder not be written to.
pub(crate) fn add_file(root: &Path, file: &Path, to: &str) {
    let to = root.join(to.trim_start_matches('/'));
    let folder = to.parent().expect("a file is in a folder");
    fs::create_dir_all(folder).expect("a folder of ours can be written to");
    fs::copy(file, &to).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Puts a folder into a root file system at `to`, with all that is below it but for the names that are left out.
///
/// # Panics
/// As [`add_program`].
pub(crate) fn add_folder(root: &Path, folder: &Path, to: &str, left_out: &[&str]) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a folder can be read").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.expect("names of programs are UTF-8");
        if left_out.contains(&name) {
            continue;
        }
        let to = format!("{to}/{name}");
        if path.is_dir() {
            add_folder(root, &path, &to, left_out);
        } else {
            add_file(root, &path, &to);
        }
    }
}
