//! What the boards and rules ask, with a choice in place of their variables.

use std::collections::BTreeMap;
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

/// What a person chose, by variable.
pub(crate) type Choice = BTreeMap<String, Vec<String>>;

/// A variable whose values come from the metrics.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    /// As queries name it; and the label that it stands for.
    pub(crate) name: String,
    /// Whose label's values it has.
    pub(crate) metric: String,
}

/// `expr` as Grafana sends it to the data source. A variable that `choice` does not have stands there as it is, as it does with
/// Grafana on a board without it.
pub(crate) fn replaced(expr: &str, choice: &Choice) -> String {
    let mut expr = expr.replace("$__rate_interval", RATE_INTERVAL);
    for (variable, values) in choice {
        expr = expr.replace(&format!("${variable}"), &format!("({})", values.join("|")));
    }
    expr
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The boards with their names.
fn boards() -> Vec<(String, Value)> {
    let folder = repository().join("grafana/dashboards");
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let board = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        all.push((name, board));
    }
    all
}

/// The variables of a board that are asked for, in its order: a later one may use those before it.
fn variables_of(board: &Value) -> Vec<Variable> {
    let of = |variable: &Value| {
        let query = text(&variable["query"]["query"]);
        let (metric, label) = query.strip_prefix("label_values(")?.rsplit_once(", ")?;
        let name = text(&variable["name"]);
        assert_eq!(label.trim_end_matches(')'), name, "{query}");
        let metric = metric.to_owned();
        Some(Variable { name, metric })
    };
    list(&board["templating"]["list"])
        .iter()
        .filter_map(of)
        .collect()
}

/// Those of the board that has all of them.
pub(crate) fn variables() -> Vec<Variable> {
    let all = boards();
    let all = all.iter().map(|(_, board)| variables_of(board));
    all.max_by_key(Vec::len).expect("there are boards")
}

/// All of them, where a person has made this choice.
pub(crate) fn questions(choice: &Choice) -> Vec<Question> {
    let mut all = Vec::new();
    for (name, board) in boards() {
        // What another board knows helps none.
        let own = variables_of(&board);
        let mut choice = choice.clone();
        choice.retain(|name, _| own.iter().any(|variable| variable.name == *name));
        all.extend(of_board(&name, &board, &choice));
    }
    for file in ["recording", "alerts"] {
        let path = repository().join(format!("grafana/rules/{file}.yml"));
        all.extend(of_rules(&fs::read_to_string(path).unwrap()));
    }
    all
}

fn of_board(name: &str, board: &Value, choice: &Choice) -> Vec<Question> {
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
                expr: replaced(&text(&target["expr"]), choice),
            });
        }
    }
    for annotation in list(&board["annotations"]["list"]) {
        all.push(Question {
            place: format!("{name} / annotation {}", text(&annotation["name"])),
            expr: replaced(&text(&annotation["target"]["expr"]), choice),
        });
    }
    for Variable {
        name: label,
        metric,
    } in variables_of(board)
    {
        all.push(Question {
            place: format!("{name} / variable {label}"),
            expr: format!("count by ({label}) ({})", replaced(&metric, choice)),
        });
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
