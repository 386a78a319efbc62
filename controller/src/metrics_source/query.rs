//! A check's question in PromQL, with placeholders.
//!
//! This is no parser of PromQL, and need not be: Prometheus itself has the last word (`friday lint --prometheus`). It is a
//! reader of its tokens (strings, names, durations, brackets), enough to fill in placeholders so that no value can break
//! out of its string, to tell how far a question looks back, to refuse one that would look ahead, and to list the metrics
//! it names.

use rollout::Duration;

use crate::spec::read_duration;

/// Longest question in bytes. It travels in a URL, and servers and proxies take URLs of 8 KiB.
pub const QUERY_BYTES_MAX: usize = 2048;

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Release,
    Service,
    Environment,
    Arm,
}

impl Placeholder {
    fn of(word: &str) -> Option<Self> {
        match word {
            "release" => Some(Self::Release),
            "service" => Some(Self::Service),
            "environment" => Some(Self::Environment),
            "arm" => Some(Self::Arm),
            _ => None,
        }
    }
}

/// Whom a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The release's id.
    pub release: String,
    /// The service.
    pub service: String,
    /// Where it is released.
    pub environment: String,
    /// `canary` or `stable`.
    pub arm: &'static str,
}

/// Why a text is no question that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Nothing, or too much.
    #[error("expected a query of 1 to {QUERY_BYTES_MAX} bytes")]
    Length,
    /// A placeholder that nothing sets: it would match no series, for ever (F6).
    #[error("${0}: nothing sets it, expected one of $release, $service, $environment, $arm")]
    Unknown(String),
    /// A placeholder where a value would be read as PromQL.
    #[error(
        "${0} stands outside of double or single quotes: write it as the value of a label, such as release=\"$release\""
    )]
    Unquoted(String),
    /// A string, bracket or parenthesis without its end.
    #[error("{0} is not closed")]
    Open(&'static str),
    /// Looks ahead, or at a time of its own: at what is not there yet (F8).
    #[error(
        "{0} asks for another time than Friday does, which never looks later than `lag` ago: remove it"
    )]
    OtherTime(&'static str),
    /// A range that cannot be read.
    #[error(
        "[{0}]: expected a range such as [1m] or [5m:30s]; only fixed ones, since it must be known how far it looks back"
    )]
    Range(String),
}

/// A piece of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value {
        placeholder: Placeholder,
        /// What encloses the string.
        quote: char,
        /// Whether the string is a regular expression, in which the value shall stand for nothing but itself.
        in_regex: bool,
    },
}

/// A question, ready to be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pieces: Vec<Piece>,
    window: Duration,
    metrics: Vec<String>,
}

/// What PromQL reads as a word of its own where a metric could stand.
const KEYWORDS: [&str; 16] = [
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "inf",
    "nan",
    "start",
    "end",
    "atan2",
];

/// After these words comes a list of labels in parentheses.
const LABEL_LISTS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// Reads a question from left to right.
struct Reader<'a> {
    rest: &'a str,
    pieces: Vec<Piece>,
    metrics: Vec<String>,
    /// How far each open parenthesis looks back so far; the first is the whole question.
    reach: Vec<Duration>,
    /// How far the operand looks back that was read last.
    last: Duration,
    /// The last word, and the last sign, before here.
    word: &'a str,
    sign: &'a str,
    /// Parentheses that hold labels and no expression, counted.
    label_lists: usize,
}

impl Query {
    /// Reads a question.
    ///
    /// # Errors
    /// It cannot be asked; the reason says what to write instead.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        if text.trim().is_empty() || text.len() > QUERY_BYTES_MAX {
            return Err(QueryError::Length);
        }
        let mut reader = Reader {
            rest: text,
            pieces: Vec::new(),
            metrics: Vec::new(),
            reach: vec![Duration::ZERO],
            last: Duration::ZERO,
            word: "",
            sign: "",
            label_lists: 0,
        };
        while !reader.rest.is_empty() {
            reader.token()?;
        }
        match reader.reach[..] {
            [window] => Ok(Self {
                pieces: reader.pieces,
                window,
                metrics: reader.metrics,
            }),
            _ => Err(QueryError::Open("a parenthesis")),
        }
    }

    /// The question about a subject. Values are escaped as strings and, in matchers with `=~` and `!~`, as regular
    /// expressions: whatever they hold, they match themselves.
    #[must_use]
    pub fn about(&self, subject: &Subject) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Value {
                placeholder,
                quote,
                in_regex,
            } => {
                let value = match placeholder {
                    Placeholder::Release => &subject.release,
                    Placeholder::Service => &subject.service,
                    Placeholder::Environment => &subject.environment,
                    Placeholder::Arm => &subject.arm.to_owned(),
                };
                let value = if *in_regex {
                    &in_regular_expression(value)
                } else {
                    value
                };
                in_string(value, *quote)
            }
        };
        self.pieces.iter().map(piece).collect()
    }

    /// Whether it says something else of the canary than of stable.
    #[must_use]
    pub fn tells_arms_apart(&self) -> bool {
        let tells = [Placeholder::Release, Placeholder::Arm];
        self.pieces.iter().any(|piece| matches!(piece, Piece::Value { placeholder, .. } if tells.contains(placeholder)))
    }

    /// How far it looks back from the time it asks for.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The metrics that it names, each once, in order. A metric that is named by a matcher on `__name__` is not among them.
    #[must_use]
    pub fn metrics(&self) -> &[String] {
        &self.metrics
    }
}

impl<'a> Reader<'a> {
    /// Takes so many bytes as text.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        self.put(taken);
        taken
    }

    fn put(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some(Piece::Text(before)) => before.push_str(text),
            Some(Piece::Value { .. }) | None => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    /// How long the run is of characters like this, in bytes.
    fn run(&self, like: impl Fn(char) -> bool) -> usize {
        self.rest.find(|c| !like(c)).unwrap_or(self.rest.len())
    }

    fn looks_back(&mut self, time: Duration) {
        self.last += time;
        if let Some(reach) = self.reach.last_mut() {
            *reach = (*reach).max(self.last);
        }
    }

    fn token(&mut self) -> Result<(), QueryError> {
        let Some(first) = self.rest.chars().next() else {
            return Ok(());
        };
        match first {
            c if c.is_whitespace() => {
                self.take(self.run(char::is_whitespace));
            }
            '#' => {
                self.take(self.run(|c| c != '\n'));
            }
            '"' | '\'' | '`' => self.string(first)?,
            '$' => {
                let word = self.placeholder_word().unwrap_or_default();
                Err(match Placeholder::of(word) {
                    Some(_) => QueryError::Unquoted(word.to_owned()),
                    None => QueryError::Unknown(word.to_owned()),
                })?;
            }
            '@' => Err(QueryError::OtherTime("@"))?,
            '{' => self.matchers()?,
            '[' => self.range()?,
            '(' => {
                self.take(1);
                let is_list = self.label_lists > 0 || LABEL_LISTS.contains(&self.word);
                self.label_lists += usize::from(is_list);
                self.reach.push(Duration::ZERO);
                (self.word, self.sign) = ("", "(");
            }
            ')' => {
                self.take(1);
                self.label_lists = self.label_lists.saturating_sub(1);
                let inner = self.reach.pop().unwrap_or_default();
                if self.reach.is_empty() {
                    return Err(QueryError::Open("the parenthesis before a )"));
                }
                self.last = Duration::ZERO;
                self.looks_back(inner);
                (self.word, self.sign) = ("", ")");
            }
            c if c.is_ascii_digit() => self.number()?,
            c if c.is_ascii_alphabetic() || c == '_' || c == ':' => self.name(),
            c => {
                self.sign = self.take(c.len_utf8());
                if self.word == "offset" && self.sign == "-" {
                    return Err(QueryError::OtherTime("offset -"));
                }
            }
        }
        Ok(())
    }

    /// The word after a `$`, with or without braces; none where a digit or nothing follows, as in `"$1"`.
    fn placeholder_word(&self) -> Option<&'a str> {
        let after = self.rest.strip_prefix('$')?;
        let after = after.strip_prefix('{').unwrap_or(after);
        let end = after
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        let word = &after[..end];
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            .then_some(word)
    }

    /// A string, with its placeholders.
    fn string(&mut self, quote: char) -> Result<(), QueryError> {
        let in_regex = self.sign.ends_with('~');
        self.take(1);
        loop {
            let Some(c) = self.rest.chars().next() else {
                return Err(QueryError::Open("a string"));
            };
            match c {
                c if c == quote => {
                    self.take(1);
                    break;
                }
                '\\' if quote != '`' => {
                    let next = self.rest.chars().nth(1).map_or(0, char::len_utf8);
                    self.take(1 + next);
                }
                '$' => match self.placeholder_word() {
                    None => {
                        self.take(1);
                    }
                    Some(word) => {
                        let in_braces = self.rest.starts_with("${");
                        let placeholder = Placeholder::of(word).filter(|_| !in_braces);
                        let placeholder = placeholder.ok_or_else(|| {
                            QueryError::Unknown(if in_braces {
                                format!("{{{word}}}")
                            } else {
                                word.to_owned()
                            })
                        })?;
                        // Between backticks nothing can be escaped.
                        if quote == '`' {
                            return Err(QueryError::Unquoted(word.to_owned()));
                        }
                        self.rest = &self.rest[1 + word.len()..];
                        self.pieces.push(Piece::Value {
                            placeholder,
                            quote,
                            in_regex,
                        });
                    }
                },
                c => {
                    self.take(c.len_utf8());
                }
            }
        }
        (self.word, self.sign) = ("", "");
        Ok(())
    }

    /// `{…}`: names in it are labels.
    fn matchers(&mut self) -> Result<(), QueryError> {
        self.take(1);
        loop {
            let Some(c) = self.rest.chars().next() else {
                return Err(QueryError::Open("a {"));
            };
            match c {
                '}' => {
                    self.take(1);
                    (self.word, self.sign) = ("", "");
                    return Ok(());
                }
                '"' | '\'' | '`' => self.string(c)?,
                '$' => {
                    let word = self.placeholder_word().unwrap_or_default();
                    return Err(QueryError::Unquoted(word.to_owned()));
                }
                '=' | '!' | '~' => {
                    self.sign = self.take(self.run(|c| "=!~".contains(c)));
                }
                c => {
                    self.take(c.len_utf8());
                }
            }
        }
    }

    /// `[1m]` or `[1m:10s]`.
    fn range(&mut self) -> Result<(), QueryError> {
        let end = self.rest.find(']').ok_or(QueryError::Open("a ["))?;
        let inside = &self.rest[1..end];
        if let Some((_, word)) = inside.split_once('$') {
            return Err(QueryError::Unknown(word.to_owned()));
        }
        let range = inside.split(':').next().unwrap_or_default();
        let range = duration(range.trim()).ok_or_else(|| QueryError::Range(inside.to_owned()))?;
        self.take(end + 1);
        self.looks_back(range);
        (self.word, self.sign) = ("", "]");
        Ok(())
    }

    /// A number, or the duration after `offset`.
    fn number(&mut self) -> Result<(), QueryError> {
        let number = self.take(self.run(|c| c.is_ascii_alphanumeric() || c == '.'));
        if self.word == "offset" {
            let offset =
                duration(number).ok_or_else(|| QueryError::Range(format!("offset {number}")))?;
            self.looks_back(offset);
        } else {
            self.last = Duration::ZERO;
        }
        (self.word, self.sign) = ("", "");
        Ok(())
    }

    /// A keyword, a function, a label or a metric.
    fn name(&mut self) {
        let name = self.take(self.run(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let lower = name.to_ascii_lowercase();
        let is_call = self.rest.trim_start().starts_with('(');
        let is_keyword = KEYWORDS.contains(&lower.as_str());
        // An aggregation may have its labels before its parenthesis: `sum by (a) (x)`.
        let next = self
            .rest
            .trim_start()
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default();
        let is_aggregation = ["by", "without"]
            .iter()
            .any(|word| next.eq_ignore_ascii_case(word));
        if lower != "offset" && !LABEL_LISTS.contains(&lower.as_str()) {
            self.last = Duration::ZERO;
        }
        let is_metric = !is_keyword && !is_call && !is_aggregation && self.label_lists == 0;
        if is_metric && !self.metrics.iter().any(|metric| metric == name) {
            self.metrics.push(name.to_owned());
        }
        // Keywords may be written in any case; what follows them is decided by their lower-case form.
        self.word = KEYWORDS
            .iter()
            .copied()
            .find(|word| *word == lower)
            .unwrap_or(name);
        self.sign = "";
    }
}

/// A duration as PromQL has it: days and longer count too, `1h30m`, `2w`.
fn duration(text: &str) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    if let Some((weeks, rest)) = text.split_once('w') {
        let weeks = DAY.checked_mul(weeks.parse::<u32>().ok()?.checked_mul(7)?)?;
        return if rest.is_empty() {
            Some(weeks)
        } else {
            weeks.checked_add(duration(rest)?)
        };
    }
    read_duration(text).filter(|duration| *duration > Duration::ZERO)
}

/// A value as it stands in a PromQL string: what would end it, or begin an escape, is escaped. PromQL's escapes are Go's,
/// where the other quote may not be escaped.
fn in_string(value: &str, quote: char) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            c if c == '\\' || c == quote => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A value as it stands in a regular expression (RE2), where it shall match itself.
fn in_regular_expression(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests;
