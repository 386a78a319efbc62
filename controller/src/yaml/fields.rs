//! Walking the tree: each value by the path of its key, each fault noted where it stands, and no key left unread.

use rollout::Duration;
use serde_saphyr::{Location, Spanned};

use super::tree::{Node, Tree};
use super::{Finding, show_duration, units};

/// Findings that are reported. Whoever has more has the wrong file.
const FINDINGS_MAX: usize = 50;

/// Longest piece of a value that a finding repeats, in characters.
const SHOWN_MAX: usize = 60;

/// What was found wrong so far.
#[derive(Debug)]
pub struct Findings {
    file: String,
    list: Vec<Finding>,
}

/// A place in the file; the first line where none is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    line: u64,
    column: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self { line: 1, column: 1 }
    }
}

impl From<Location> for Place {
    fn from(at: Location) -> Self {
        Self {
            line: at.line().max(1),
            column: at.column().max(1),
        }
    }
}

impl Findings {
    /// None so far in this file, as its reader names it.
    #[must_use]
    pub fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            list: Vec::new(),
        }
    }

    /// Notes a fault at a place.
    pub fn at(&mut self, at: impl Into<Place>, key: &str, value: Option<String>, expected: String) {
        self.note(at.into(), key, value, expected, None);
    }

    /// Notes a fault at a place, and how to mend it.
    pub fn note(
        &mut self,
        at: Place,
        key: &str,
        value: Option<String>,
        expected: String,
        mend: Option<String>,
    ) {
        let Place { line, column } = at;
        self.list.push(Finding {
            file: self.file.clone(),
            line,
            column,
            key: shorten(key),
            value,
            expected,
            mend,
        });
    }

    /// All of them by line, the first of very many.
    #[must_use]
    pub fn in_order(mut self) -> Vec<Finding> {
        self.list
            .sort_by_key(|finding| (finding.line, finding.column));
        self.list.truncate(FINDINGS_MAX);
        self.list
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value that was given, or the default in its place.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// The path of its key.
    pub key: String,
    /// Where it stands; `None` for a default.
    pub at: Option<Place>,
    /// The value as a finding shows it.
    pub shown: String,
}

impl<T> Setting<T> {
    /// What the file does not say.
    pub fn default_of(key: &str, value: T) -> Self {
        Self {
            value,
            key: key.to_owned(),
            at: None,
            shown: "by default".to_owned(),
        }
    }
}

impl Setting<Duration> {
    /// Notes it if this time is not shorter than `other`: at the one of the two that the file has.
    pub fn below(&self, other: &Self, findings: &mut Findings) {
        if self.value < other.value {
            return;
        }
        let describe = |setting: &Self| {
            let by_default = if setting.at.is_none() {
                " by default"
            } else {
                ""
            };
            format!(
                "{} ({}{by_default})",
                setting.key,
                show_duration(setting.value)
            )
        };
        let (faulty, expected) = if self.at.is_some() {
            (self, format!("expected less than {}", describe(other)))
        } else {
            (other, format!("expected more than {}", describe(self)))
        };
        findings.at(
            faulty.at.unwrap_or_default(),
            &faulty.key,
            Some(faulty.shown.clone()),
            expected,
        );
    }
}

/// A value and the path of its key.
#[derive(Debug, Clone)]
pub struct Value<'a> {
    key: String,
    key_at: Place,
    at: Place,
    node: &'a Node,
}

impl<'a> Value<'a> {
    /// The whole file.
    #[must_use]
    pub fn root(Tree(tree): &'a Tree) -> Self {
        Self {
            key: String::new(),
            key_at: tree.referenced.into(),
            at: tree.referenced.into(),
            node: &tree.value,
        }
    }

    /// The dotted path of its key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where its key stands; for an entry of a list, where it stands itself.
    #[must_use]
    pub fn key_at(&self) -> Place {
        self.key_at
    }

    /// Where it stands.
    #[must_use]
    pub fn at(&self) -> Place {
        self.at
    }

    /// Whether there is nothing after its key.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        matches!(self.node, Node::Null)
    }

    /// Whether it is a list.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self.node, Node::List(_))
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        matches!(self.node, Node::Map(_))
    }

    /// What was read of it, with its place.
    pub fn setting<T>(&self, value: T) -> Setting<T> {
        Setting {
            value,
            key: self.key.clone(),
            at: Some(self.at),
            shown: self.shown(),
        }
    }

    /// The value as a finding shows it.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.node {
            Node::Null => "nothing".to_owned(),
            Node::Scalar {
                text,
                is_text: true,
            } => format!("{:?}", shorten(text)),
            Node::Scalar {
                text,
                is_text: false,
            } => shorten(text),
            Node::List(_) => "a list".to_owned(),
            Node::Map(_) => "a map".to_owned(),
        }
    }

    fn unexpected(&self, expected: &str, findings: &mut Findings) {
        findings.at(
            self.at,
            &self.key,
            Some(self.shown()),
            format!("expected {expected}"),
        );
    }

    /// A text or number that `read` understands.
    pub fn scalar<T>(
        &self,
        expected: &str,
        findings: &mut Findings,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        let value = match self.node {
            Node::Scalar { text, .. } => read(text),
            Node::Null | Node::List(_) | Node::Map(_) => None,
        };
        if value.is_none() {
            self.unexpected(expected, findings);
        }
        value
    }

    /// A text that `read` understands. A bare number is none: `007` would come back as `7`.
    pub fn text<T>(
        &self,
        expected: &str,
        findings: &mut Findings,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        if let Node::Scalar { is_text: false, .. } = self.node {
            self.unexpected(&format!("a text: put it in quotes ({expected})"), findings);
            return None;
        }
        self.scalar(expected, findings, read)
    }

    /// The values of a list; anything else is noted.
    pub fn list(self, expected: &str, findings: &mut Findings) -> Option<Vec<Self>> {
        if let Node::List(list) = self.node {
            let value = |(index, entry): (usize, &'a Spanned<Node>)| Self {
                key: format!("{}[{index}]", self.key),
                key_at: entry.referenced.into(),
                at: entry.referenced.into(),
                node: &entry.value,
            };
            Some(list.iter().enumerate().map(value).collect())
        } else {
            self.unexpected(expected, findings);
            None
        }
    }

    /// The keys of a map; anything else is noted.
    pub fn map(self, expected: &str, findings: &mut Findings) -> Option<Fields<'a>> {
        if let Node::Map(entries) = self.node {
            Some(Fields {
                key: self.key,
                at: self.at,
                entries,
                known: Vec::new(),
                refused: Vec::new(),
            })
        } else {
            self.unexpected(expected, findings);
            None
        }
    }
}

/// The keys of a map. Each that is asked for is known; [`Fields::finish`] refuses the others.
#[derive(Debug)]
pub struct Fields<'a> {
    key: String,
    at: Place,
    entries: &'a [(Spanned<String>, Spanned<Node>)],
    known: Vec<&'static str>,
    refused: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn path(&self, key: &str) -> String {
        if self.key.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.key)
        }
    }

    fn value(&self, entry: &'a (Spanned<String>, Spanned<Node>)) -> Value<'a> {
        let (key, value) = entry;
        // A value that is not there stands where its key does.
        let at = if matches!(value.value, Node::Null) {
            key.referenced
        } else {
            value.referenced
        };
        Value {
            key: self.path(&key.value),
            key_at: key.referenced.into(),
            at: at.into(),
            node: &value.value,
        }
    }

    /// Where the map stands.
    #[must_use]
    pub fn at(&self) -> Place {
        self.at
    }

    /// The value of a key, if it is there.
    pub fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|(name, _)| name.value == key)?;
        Some(self.value(entry))
    }

    /// The value of a key that must be there.
    pub fn required(
        &mut self,
        key: &'static str,
        expected: &str,
        findings: &mut Findings,
    ) -> Option<Value<'a>> {
        let value = self.take(key);
        if value.is_none() {
            findings.at(
                self.at,
                &self.path(key),
                None,
                format!("missing: expected {expected}"),
            );
        }
        value
    }

    /// A map inside, if it is there.
    pub fn sub(
        &mut self,
        key: &'static str,
        expected: &str,
        findings: &mut Findings,
    ) -> Option<Self> {
        self.take(key)?.map(expected, findings)
    }

    /// A duration, or its default; the default also in place of a faulty one, which is noted.
    pub fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        findings: &mut Findings,
    ) -> Setting<Duration> {
        let path = self.path(key);
        let Some(value) = self.take(key) else {
            return Setting::default_of(&path, default);
        };
        let expected = "a duration such as 500ms, 10s, 5m or 1h30m, at most 30d";
        match value.scalar(expected, findings, units::duration) {
            Some(duration) => value.setting(duration),
            None => Setting::default_of(&path, default),
        }
    }

    /// A key that means something, but that nothing here acts on yet.
    pub fn refuse(&mut self, key: &'static str, why: &str, mend: &str, findings: &mut Findings) {
        // Not among the known: a misspelt key must not be told to become one that is refused.
        self.refused.push(key);
        if let Some((name, _)) = self.entries.iter().find(|(name, _)| name.value == key) {
            findings.note(
                name.referenced.into(),
                &self.path(key),
                None,
                why.to_owned(),
                Some(mend.to_owned()),
            );
        }
    }

    /// Every key and its value, whatever the key is.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.entries
            .iter()
            .map(|entry| (entry.0.value.as_str(), self.value(entry)))
    }

    /// Refuses every key that nobody asked for.
    pub fn finish(mut self, findings: &mut Findings) {
        self.known.sort_unstable();
        for (name, _) in self.entries {
            let name_known = |known: &[&str]| known.contains(&name.value.as_str());
            if name_known(&self.known) || name_known(&self.refused) {
                continue;
            }
            let nearest =
                nearest(&name.value, &self.known).map(|key| format!("did you mean {key}?"));
            let expected = format!("unknown key: expected one of {}", self.known.join(", "));
            findings.note(
                name.referenced.into(),
                &self.path(&name.value),
                None,
                expected,
                nearest,
            );
        }
    }
}

/// The name that was probably meant: at most a third of its letters differ, are missing, too many, or swapped with their
/// neighbour.
#[must_use]
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = shorten(name).to_lowercase();
    let edits = |key: &str| strsim::osa_distance(&name, key);
    let best = known.iter().copied().min_by_key(|key| edits(key))?;
    (edits(best) <= (best.len() / 3).max(1)).then_some(best)
}
