//! Where the programs are.

use std::path::PathBuf;

/// The controller and its command line.
#[must_use]
pub fn friday() -> PathBuf {
    find("friday")
}

/// The proxy.
#[must_use]
pub fn proxy() -> PathBuf {
    find("friday-proxy")
}

/// The pipeline and the demo.
#[must_use]
pub fn pipeline_demo() -> PathBuf {
    find("pipeline-demo")
}

/// The service that does as its arguments say.
#[must_use]
pub fn tiny_service() -> PathBuf {
    find("tiny-service")
}

/// The program in `FRIDAY_BIN_DIR`, or beside the folder of this test's own program.
fn find(name: &str) -> PathBuf {
    let folder = std::env::var_os("FRIDAY_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let test = std::env::current_exe().expect("a program knows where it is");
            let deps = test.parent().expect("a program is in a folder");
            deps.parent().unwrap_or(deps).to_owned()
        });
    let program = folder.join(name);
    assert!(
        program.is_file(),
        "{} is missing; build it with: cargo build --workspace --profile quick --all-targets",
        program.display()
    );
    program
}
