//! The field `traceparent`: which trace a request belongs to, and which span sent it.

use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

/// Which trace, and which span of it. There is one of it in a request, or none.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// What tracing systems add for themselves. It means nothing without the other.
pub(crate) const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// The field's length in version 00: two digits, 32, 16 and two, with a hyphen between each. Later versions may be longer.
const LENGTH: usize = 55;

/// Where a request comes from: its trace, the span that sent it, and whether that trace is recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: TraceId,
    span: SpanId,
    is_sampled: bool,
}

impl TraceParent {
    /// That place in a trace.
    pub(crate) fn new(trace: TraceId, span: SpanId, is_sampled: bool) -> Self {
        Self {
            trace,
            span,
            is_sampled,
        }
    }

    /// Where a request with this head comes from. `None` if it does not say so, or not as the specification has it, or twice:
    /// that is as if it said nothing.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(TRACE_PARENT).iter();
        match (fields.next(), fields.next()) {
            (Some(field), None) => Self::parse(field.as_bytes()),
            (_, _) => None,
        }
    }

    /// Reads a field: <https://www.w3.org/TR/trace-context/#traceparent-header-field-values>. Version 00 to the letter; of a
    /// later one what its first 55 bytes say, if they end there or a hyphen follows; version ff never.
    #[must_use]
    pub fn parse(field: &[u8]) -> Option<Self> {
        let (head, rest) = field.split_at_checked(LENGTH)?;
        let version = number(&head[..2])?;
        let is_whole = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let is_parted = [2, 35, 52].into_iter().all(|at| head[at] == b'-');
        let trace = TraceId::from_bytes(number(&head[3..35])?.to_be_bytes());
        let span = u64::try_from(number(&head[36..52])?).ok()?;
        let span = SpanId::from_bytes(span.to_be_bytes());
        let flags = number(&head[53..])?;
        let is_valid =
            is_whole && is_parted && trace != TraceId::INVALID && span != SpanId::INVALID;
        // Of the flags only the last has a meaning in version 00; the others are not passed on.
        is_valid.then(|| Self::new(trace, span, flags & 1 == 1))
    }

    /// Whether the trace is recorded. Whoever takes part goes by that.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.is_sampled
    }

    /// The trace.
    #[must_use]
    pub fn trace(self) -> TraceId {
        self.trace
    }

    /// The span that sends the request.
    #[must_use]
    pub fn span(self) -> SpanId {
        self.span
    }

    /// Writes the field, in version 00, in place of what was there.
    pub fn insert_into(self, headers: &mut HeaderMap) {
        let field = HeaderValue::try_from(self.to_string())
            .expect("hexadecimal digits and hyphens are visible ASCII");
        headers.insert(TRACE_PARENT, field);
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.is_sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace, self.span)
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of at most 32 hexadecimal digits. Capitals are no digits here.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn reads_what_the_specification_allows() {
        for (version, flags, rest, is_sampled) in [
            ("00", "01", "", true),
            ("00", "00", "", false),
            // The other flags mean nothing yet.
            ("00", "ff", "", true),
            ("00", "fe", "", false),
            ("00", "03", "", true),
            // Later versions.
            ("01", "01", "", true),
            ("cc", "01", "-", true),
            ("cc", "01", "-what-the-future-will-be-like", true),
            ("fe", "00", "-.", false),
        ] {
            let field = format!("{version}-{TRACE}-{SPAN}-{flags}{rest}");
            let read = TraceParent::parse(field.as_bytes());
            let read = read.unwrap_or_else(|| panic!("{field} is refused"));
            assert_eq!(read.trace().to_string(), TRACE);
            assert_eq!(read.span().to_string(), SPAN);
            assert_eq!(read.is_sampled(), is_sampled, "{field}");
        }
    }

    #[test]
    fn refuses_all_else() {
        let right = format!("00-{TRACE}-{SPAN}-01");
        let zero_trace = format!("00-{}-{SPAN}-01", "0".repeat(32));
        let zero_span = format!("00-{TRACE}-{}-01", "0".repeat(16));
        for wrong in [
            "",
            "-",
            "00",
            "---",
            &"-".repeat(55),
            &"0".repeat(55),
            &right[1..],
            &right[..54],
            &format!("{right}-"),
            &format!("{right}-x"),
            &format!("{right}."),
            &format!(" {right}"),
            &format!("{right} "),
            &format!("{right},{right}"),
            &right.to_uppercase(),
            &right.replace("00-", "0-0"),
            &right.replace("00-", "ff-"),
            &right.replace("00-", ".0-"),
            &right.replace("00-", "+0-"),
            &right.replace("00-", "cc-").replace("-01", "-01."),
            &right.replace('-', "_"),
            &right.replace("0af", "0Af"),
            &right.replace("0af", "0gf"),
            &right.replace("0af", "+af"),
            &right.replace("b7a", "b7A"),
            &right.replace("b7a", "b7."),
            &right.replace("-01", "-0x"),
            &right.replace("-01", "-.0"),
            &right.replace("-01", "-1-"),
            &right.replace(TRACE, &TRACE[1..]),
            &right.replace(SPAN, &format!("{SPAN}0")),
            &right.replace("0af", "\u{e4}f"),
            &zero_trace,
            &zero_span,
        ] {
            assert_eq!(TraceParent::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn is_written_as_it_was_read_and_twice_is_not_at_all() {
        let field = format!("00-{TRACE}-{SPAN}-01");
        let read = TraceParent::parse(field.as_bytes()).unwrap();
        assert_eq!(read.to_string(), field);
        let mut headers = HeaderMap::new();
        assert_eq!(TraceParent::of(&headers), None);
        read.insert_into(&mut headers);
        assert_eq!(TraceParent::of(&headers), Some(read));
        headers.append(TRACE_PARENT, headers[TRACE_PARENT].clone());
        assert_eq!(TraceParent::of(&headers), None);
        read.insert_into(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
