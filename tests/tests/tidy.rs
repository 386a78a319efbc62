//! What a program can check of the rules of this repository: who depends on whom, what a source file may not contain,
//! which failures have a test, where links lead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Lines from which a source file is worth a look: perhaps it holds two ideas.
const LINES_WORTH_A_LOOK: usize = 800;

/// Lines above which it certainly does.
const LINES_MAX: usize = 1_500;

/// Failures that must have a test, by the numbers in their names (`f14_…`).
const FAILURES_TESTED: [u32; 32] = [
    14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 37, 38, 39,
    40, 41, 42, 43, 44, 45, 47, 48,
];

/// What each package of ours may depend on, of ours; tests have `controller-testing` beside.
const MAY_DEPEND_ON: [(&str, &[&str]); 9] = [
    ("friday-tls", &[]),
    ("friday-traces", &[]),
    ("rollout", &[]),
    ("proxy-api", &[]),
    ("friday", &["rollout", "proxy-api", "friday-tls"]),
    (
        "friday-proxy",
        &["proxy-api", "friday-tls", "friday-traces"],
    ),
    ("controller-testing", &["friday", "rollout", "proxy-api"]),
    // `cargo demo` starts itself as every program, so that one build is enough.
    (
        "pipeline-demo",
        &[
            "friday",
            "friday-proxy",
            "friday-traces",
            "rollout",
            "proxy-api",
        ],
    ),
    (
        "system-tests",
        &[
            "controller-testing",
            "friday",
            "friday-proxy",
            "friday-tls",
            "friday-traces",
            "pipeline-demo",
            "rollout",
            "proxy-api",
        ],
    ),
];

/// The only packages that may use these of others: what they bring along is big, or for one purpose.
const RESERVED: [(&str, &[&str]); 1] = [("rdkafka", &["pipeline-demo"])];

/// Folders of a developer's machine, in pieces so that this file does not contain them.
const PRIVATE_PATHS: [&[&str]; 5] = [
    &["/wo", "rk/"],
    &["/ro", "ot/"],
    &["/ho", "me/"],
    &["/Us", "ers/"],
    &["C:\\", "Users"],
];

/// A file of the repository.
struct File {
    /// From the root, with slashes.
    path: String,
    /// Empty where it is no text.
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Its lines with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(at, line)| (at + 1, line))
    }

    /// The lines of a Rust file that are no test of a module beside the code, and no comment.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self
            .lines()
            .find(|(_, line)| line.trim() == "#[cfg(test)]")
            .map_or(usize::MAX, |(at, _)| at);
        self.lines()
            .filter(move |(at, line)| *at < tests && !line.trim_start().starts_with("//"))
    }

    /// Whether the file is in a folder of tests.
    fn is_test(&self) -> bool {
        self.path
            .split('/')
            .any(|part| ["tests", "testing", "benches"].contains(&part))
    }

    /// The modules in files of their own that are compiled for tests alone: their paths without `.rs`.
    fn modules_for_tests(&self) -> Vec<String> {
        let folder = match self.path.strip_suffix(".rs").unwrap_or(&self.path) {
            root if root.ends_with("/lib") || root.ends_with("/main") => {
                root.rsplit_once('/').map_or("", |(folder, _)| folder)
            }
            module => module,
        };
        let lines: Vec<&str> = self.text.lines().map(str::trim).collect();
        let pairs = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
        let names = pairs.filter_map(|pair| pair[1].split("mod ").nth(1)?.strip_suffix(';'));
        names.map(|name| format!("{folder}/{name}")).collect()
    }
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("the package is in a folder of the repository")
        .to_owned()
}

/// Every file of the repository: those that git knows of or would take, or, without git, all but what is built.
fn files() -> Vec<File> {
    let root = root();
    let asked = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(&root)
        .output();
    let paths: Vec<String> = match asked {
        Ok(answer) if answer.status.success() => {
            let all = String::from_utf8(answer.stdout).expect("our file names are UTF-8");
            all.split_terminator('\0').map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => {
            let mut found = Vec::new();
            walk(&root, &root, &mut found);
            found
        }
    };
    let unique: BTreeSet<String> = paths.into_iter().collect();
    let existing = unique.into_iter().filter(|path| root.join(path).is_file());
    let files: Vec<File> = existing
        .map(|path| {
            let bytes =
                fs::read(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            File {
                path,
                text: String::from_utf8(bytes).unwrap_or_default(),
            }
        })
        .collect();
    assert!(
        files.iter().filter(|file| file.is_rust()).count() > 50,
        "these cannot be all files"
    );
    files
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .path();
        let name = path
            .strip_prefix(root)
            .expect("it is below the root")
            .display()
            .to_string();
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(name);
        }
    }
}

/// Fails with everything that is wrong, not only the first of it.
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The places where a line of these files is as `is_wrong` says.
fn places<'a>(
    files: impl Iterator<Item = &'a File>,
    is_wrong: impl Fn(&str) -> bool,
) -> Vec<String> {
    let wrong = |file: &'a File| {
        let lines = file.lines().filter(|(_, line)| is_wrong(line));
        lines
            .map(|(at, line)| format!("{}:{at}: {}", file.path, line.trim()))
            .collect::<Vec<_>>()
    };
    files.flat_map(wrong).collect()
}

/// The packages as cargo understands their manifests.
fn packages() -> Vec<Value> {
    let answer = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs this test, so it can be run");
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let document: Value =
        serde_json::from_slice(&answer.stdout).expect("cargo metadata prints JSON");
    document["packages"]
        .as_array()
        .expect("a list of packages")
        .clone()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn crates_depend_one_way() {
    let packages = packages();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = text(package, "name");
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!(
                "{name}: unknown to this test: say in MAY_DEPEND_ON whom it may depend on"
            ));
            continue;
        };
        for dependency in package["dependencies"]
            .as_array()
            .expect("a list of dependencies")
        {
            let (on, kind) = (text(dependency, "name"), text(dependency, "kind"));
            let is_ours = packages.iter().any(|package| text(package, "name") == on);
            let for_tests = kind == "dev" && on == "controller-testing";
            if is_ours && !for_tests && !allowed.contains(&on) {
                wrong.push(format!(
                    "{name} depends on {on}; allowed: {}",
                    allowed.join(", ")
                ));
            }
            if let Some((_, users)) = RESERVED.iter().find(|(reserved, _)| *reserved == on)
                && !users.contains(&name)
            {
                wrong.push(format!(
                    "{name} depends on {on}; only {} may",
                    users.join(", ")
                ));
            }
        }
    }
    assert_none("dependencies that the picture does not have", &wrong);
    let there: BTreeSet<&str> = packages
        .iter()
        .map(|package| text(package, "name"))
        .collect();
    let known: BTreeSet<&str> = MAY_DEPEND_ON.iter().map(|(name, _)| *name).collect();
    assert_eq!(there, known, "packages, and those of MAY_DEPEND_ON");
}

#[test]
fn every_crate_inherits_what_all_share() {
    let mut wrong = Vec::new();
    for package in packages() {
        let manifest = text(&package, "manifest_path").to_owned();
        let text = fs::read_to_string(&manifest).expect("cargo has just read it");
        for line in [
            "[lints]\nworkspace = true",
            "version.workspace = true",
            "edition.workspace = true",
            "license.workspace = true",
        ] {
            if !text.contains(line) {
                wrong.push(format!("{manifest}: lacks {line:?}"));
            }
        }
        let own = text.lines().filter(|line| {
            line.starts_with(|first: char| first.is_ascii_lowercase()) && line.contains("= \"")
        });
        let of_package = ["name", "description", "path", "readme"];
        wrong.extend(
            own.filter(|line| !of_package.iter().any(|key| line.starts_with(key)))
                .map(|line| {
                    format!("{manifest}: {line}: versions are those of [workspace.dependencies]")
                }),
        );
    }
    assert_none("manifests", &wrong);
}

#[test]
fn modules_are_files_beside_their_folders() {
    let files = files();
    let wrong: Vec<String> = files
        .iter()
        .filter(|file| file.path.ends_with("/mod.rs"))
        .map(|file| file.path.clone())
        .collect();
    assert_none("foo.rs stands beside foo/, not mod.rs in it", &wrong);
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do_unsaid() {
    let files = files();
    let rust = || files.iter().filter(|file| file.is_rust());
    // In pieces, so that this file does not contain what it looks for.
    let ignore = ["#[ign", "ore"].concat();
    let unwritten = [["to", "do!("].concat(), ["unimplem", "ented!("].concat()];
    assert_none(
        "a missing component fails its test",
        &places(rust(), |line| line.contains(&ignore)),
    );
    assert_none(
        "say what is missing, and where",
        &places(rust(), |line| {
            unwritten.iter().any(|word| line.contains(word))
        }),
    );
    let (mark, fix) = (["TO", "DO"].concat(), ["FIX", "ME"].concat());
    let numbered = |line: &str| {
        let rest = line.split(&mark).nth(1).unwrap_or_default();
        rest.strip_prefix("(#")
            .and_then(|rest| rest.split_once(')'))
            .is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    let is_wrong = |line: &str| {
        line.contains(&fix) || (line.contains(&format!("// {mark}")) && !numbered(line))
    };
    assert_none(
        "what is to be done has an issue's number",
        &places(rust(), is_wrong),
    );
}

#[test]
fn a_panic_says_why_it_cannot_happen() {
    let unwrap = [".unw", "rap()"].concat();
    let files = files();
    let for_tests: Vec<String> = files.iter().flat_map(File::modules_for_tests).collect();
    let is_for_tests = |file: &File| {
        let module = file.path.strip_suffix(".rs").unwrap_or(&file.path);
        for_tests
            .iter()
            .any(|test| module == test || module.starts_with(&format!("{test}/")))
    };
    let mut wrong = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.is_rust() && !file.is_test() && !is_for_tests(file))
    {
        wrong.extend(
            file.code()
                .filter(|(_, line)| line.contains(&unwrap))
                .map(|(at, line)| format!("{}:{at}: {}", file.path, line.trim())),
        );
    }
    assert_none("expect(\"why this holds\") outside tests", &wrong);
}

#[test]
fn lints_are_excused_by_expect_with_a_reason() {
    let files = files();
    let allow = ["allow", "("].concat();
    let is_wrong = |line: &str| {
        let line = line.trim_start();
        line.starts_with(&format!("#[{allow}")) || line.starts_with(&format!("#![{allow}"))
    };
    assert_none(
        "#[expect(…, reason = …)]",
        &places(files.iter().filter(|file| file.is_rust()), is_wrong),
    );
}

#[test]
fn no_file_is_too_long_to_be_one_idea() {
    let files = files();
    let mut long: Vec<(usize, &str)> = files
        .iter()
        .filter(|file| file.is_rust())
        .map(|file| (file.text.lines().count(), file.path.as_str()))
        .filter(|(lines, _)| *lines >= LINES_WORTH_A_LOOK)
        .collect();
    long.sort_unstable_by(|a, b| b.cmp(a));
    for (lines, path) in &long {
        println!("worth a look: {path} has {lines} lines");
    }
    let wrong: Vec<String> = long
        .iter()
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{path}: {lines}"))
        .collect();
    assert_none(&format!("more than {LINES_MAX} lines"), &wrong);
}

/// The number of a test `fNN_…`, if the line is the head of one.
fn failure_number(line: &str) -> Option<u32> {
    let name = line
        .trim_start()
        .trim_start_matches("pub ")
        .trim_start_matches("pub(crate) ")
        .trim_start_matches("async ");
    let name = name.strip_prefix("fn f")?;
    let (number, _) = name.split_once('_')?;
    number.parse().ok()
}

#[test]
fn failures_that_must_not_happen_are_tests_that_carry_their_number() {
    let mut tests: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for file in files().iter().filter(|file| file.is_rust()) {
        for (at, line) in file.lines() {
            if let Some(number) = failure_number(line) {
                tests
                    .entry(number)
                    .or_default()
                    .push(format!("{}:{at}", file.path));
            }
        }
    }
    for (number, places) in &tests {
        println!("F{number}: {}", places.join(" "));
    }
    let wrong: Vec<String> = FAILURES_TESTED
        .iter()
        .filter(|number| !tests.contains_key(number))
        .map(|number| format!("F{number}"))
        .collect();
    assert_none("failures without a test of their number", &wrong);
}

#[test]
fn no_path_of_a_developers_machine_is_in_the_repository() {
    let private: Vec<String> = PRIVATE_PATHS.iter().map(|pieces| pieces.concat()).collect();
    let begins = |line: &str, path: &String| {
        // Not the middle of a longer path or of a web address: `example.org/home/` names no machine.
        line.match_indices(path.as_str()).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|before| before.is_alphanumeric() || "./_-}*".contains(before))
        })
    };
    let files = files();
    let wrong = places(files.iter(), |line| {
        private.iter().any(|path| begins(line, path))
    });
    assert_none("paths of one machine", &wrong);
}

/// The targets of the links of a Markdown line: `[text](target)` and `[name]: target`.
fn links(line: &str) -> Vec<&str> {
    let inline = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let defined = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]: "))
        .map(|(_, target)| target);
    inline
        .chain(defined)
        .map(|target| target.split_whitespace().next().unwrap_or_default())
        .collect()
}

/// A path without `.` and `..`; `None` when it leaves the repository.
fn within(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[test]
fn links_in_documents_lead_somewhere() {
    let files = files();
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = Path::new(&file.path)
            .parent()
            .expect("a file is in a folder");
        let mut is_code = false;
        for (at, line) in file.lines() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            let outside = |target: &str| {
                target.is_empty() || target.contains("://") || target.starts_with("mailto:")
            };
            for target in links(line)
                .into_iter()
                .filter(|target| !is_code && !outside(target))
            {
                let (path, heading) = target.split_once('#').unwrap_or((target, ""));
                let path = if path.is_empty() {
                    PathBuf::from(&file.path)
                } else {
                    folder.join(path)
                };
                let found = within(&path)
                    .map(|path| root().join(path))
                    .filter(|path| path.exists());
                let leads =
                    found.is_some_and(|path| heading.is_empty() || has_heading(&path, heading));
                if !leads {
                    wrong.push(format!("{}:{at}: {target}", file.path));
                }
            }
        }
    }
    assert_none("links that lead nowhere", &wrong);
}

/// Whether a document has a heading with this anchor, as GitLab and GitHub make them.
fn has_heading(document: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(document).unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c })
                .collect::<String>()
                == anchor
        })
}
