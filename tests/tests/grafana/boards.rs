//! What the boards and rules ask, with their variables replaced.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Four times the interval at which the test's Prometheus scrapes is the least that Grafana would take; this is more, so that a
/// busy machine may miss some.
const RATE_INTERVAL: &str = "20s";

/// A query, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// For people.
    pub(crate) place: String,
    /// As it is asked.
    pub(crate) expr: String,
}

pub(crate) fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_owned()
}

/// "All" for every variable.
fn replaced(expr: &str) -> String {
    let mut expr = expr.replace("$__rate_interval", RATE_INTERVAL);
    for variable in ["environment", "service", "release", "node"] {
        expr = expr.replace(&format!("${variable}"), ".*");
    }
    assert!(!expr.contains('$'), "a variable is left in {expr}");
    expr
}

/// All of them.
pub(crate) fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    let folder = repository().join("grafana/dashboards");
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let board: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        all.extend(of_board(&name, &board));
    }
    for file in ["recording", "alerts"] {
        let path = repository().join(format!("grafana/rules/{file}.yml"));
        all.extend(of_rules(&fs::read_to_string(path).unwrap()));
    }
    all
}

fn of_board(name: &str, board: &Value) -> Vec<Question> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    let mut row = String::new();
    for panel in list(&board["panels"]) {
        if panel["type"] == "row" {
            row = text(&panel["title"]);
        }
        for target in list(&panel["targets"]) {
            all.push(Question {
                place: format!(
                    "{name} / {row} / {} {}",
                    text(&panel["title"]),
                    text(&target["refId"])
                ),
                expr: replaced(&text(&target["expr"])),
            });
        }
    }
    for annotation in list(&board["annotations"]["list"]) {
        all.push(Question {
            place: format!("{name} / annotation {}", text(&annotation["name"])),
            expr: replaced(&text(&annotation["target"]["expr"])),
        });
    }
    for variable in list(&board["templating"]["list"]) {
        let query = text(&variable["query"]["query"]);
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.rsplit_once(", "));
        if let Some((metric, label)) = inner {
            let label = label.trim_end_matches(')');
            all.push(Question {
                place: format!("{name} / variable {label}"),
                expr: format!("count by ({label}) ({})", replaced(metric)),
            });
        }
    }
    all
}

/// The rules of a file of ours: `- record: NAME` or `- alert: NAME`, then `expr: …` on one line, or folded over several.
fn of_rules(text: &str) -> Vec<Question> {
    let mut all = Vec::new();
    let mut place = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let line = line.trim();
        for kind in ["record", "alert"] {
            if let Some(name) = line.strip_prefix(&format!("- {kind}: ")) {
                place = format!("{kind} {name}");
            }
        }
        let Some(expr) = line.strip_prefix("expr: ") else {
            continue;
        };
        let mut expr = expr.to_owned();
        if expr == ">-" {
            expr.clear();
            while let Some(more) = lines.next_if(|line| line.starts_with("          ")) {
                expr.push(' ');
                expr.push_str(more.trim());
            }
        }
        all.push(Question {
            place: place.clone(),
            expr,
        });
    }
    all
}
