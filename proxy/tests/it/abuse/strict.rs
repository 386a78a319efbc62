//! A reader of HTTP/1.1 requests that takes nothing but what RFC 9112 lets a sender write, so that whatever two servers
//! could read in two ways is a fault. It shares no code with the proxy.

use std::fmt;

/// Fields that end at the proxy (RFC 9110, 7.6.1), and the one that came with `Upgrade: h2c`.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "upgrade",
];

/// A request, read to its end. It prints as `METHOD host target body`.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
}

impl Message {
    /// All values of a field, as text.
    pub(crate) fn field(&self, name: &str) -> Vec<String> {
        values(&self.fields, name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.field("host").concat();
        write!(f, "{} {host} {}", self.method, self.target)?;
        if !self.body.is_empty() {
            write!(f, " {}", self.body.escape_ascii())?;
        }
        Ok(())
    }
}

/// Reads the first request of `bytes`, and how long it is; `None` if it is not all there.
///
/// # Errors
/// What is wrong or ambiguous.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>, String> {
    let mut rest = Lines { bytes, at: 0 };
    let Some(line) = rest.next()? else {
        return Ok(None);
    };
    let parts: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = parts[..] else {
        return Err(format!("request line {:?}", line.escape_ascii()));
    };
    if !is_token(method) || target.is_empty() || target.iter().any(u8::is_ascii_control) {
        return Err(format!("request line {:?}", line.escape_ascii()));
    }
    let Some(fields) = read_fields(&mut rest)? else {
        return Ok(None);
    };
    if let Some((name, _)) = fields
        .iter()
        .find(|(name, _)| HOP_BY_HOP.contains(&name.as_str()))
    {
        return Err(format!("hop-by-hop field {name}"));
    }
    if values(&fields, "host").count() != 1 {
        return Err("not one Host".to_owned());
    }
    if values(&fields, "te").any(|value| value != b"trailers") {
        return Err("TE with more than trailers".to_owned());
    }
    let lengths: Vec<&[u8]> = values(&fields, "content-length").collect();
    let codings: Vec<&[u8]> = values(&fields, "transfer-encoding").collect();
    let mut trailers = Vec::new();
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let length = number(length, 10)?;
            match rest.take(length) {
                Some(body) => body.to_vec(),
                None => return Ok(None),
            }
        }
        ([], [b"chunked"]) => {
            let mut body = Vec::new();
            loop {
                let Some(size) = rest.next()? else {
                    return Ok(None);
                };
                let size = number(size, 16)?;
                if size == 0 {
                    break;
                }
                let Some(chunk) = rest.take(size) else {
                    return Ok(None);
                };
                body.extend_from_slice(chunk);
                match rest.take(2) {
                    Some(b"\r\n") => {}
                    Some(_) => return Err("no CRLF behind a chunk".to_owned()),
                    None => return Ok(None),
                }
            }
            let Some(read) = read_fields(&mut rest)? else {
                return Ok(None);
            };
            trailers = read;
            body
        }
        (_, _) => {
            return Err(format!(
                "{} Content-Length, {} Transfer-Encoding",
                lengths.len(),
                codings.len()
            ));
        }
    };
    let message = Message {
        method: String::from_utf8_lossy(method).into_owned(),
        target: String::from_utf8_lossy(target).into_owned(),
        fields,
        body,
        trailers,
    };
    Ok(Some((message, rest.at)))
}

fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |(known, _)| known == name)
        .map(|(_, value)| value.as_slice())
}

/// Fields up to the empty line.
type Fields = Option<Vec<(String, Vec<u8>)>>;

fn read_fields(rest: &mut Lines<'_>) -> Result<Fields, String> {
    let mut fields = Vec::new();
    loop {
        let Some(line) = rest.next()? else {
            return Ok(None);
        };
        if line.is_empty() {
            return Ok(Some(fields));
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.ok_or("a field without a colon")?);
        let value = value[1..].trim_ascii();
        if !is_token(name) {
            return Err(format!("field name {:?}", name.escape_ascii()));
        }
        if value
            .iter()
            .any(|&byte| byte != b'\t' && byte.is_ascii_control())
        {
            return Err(format!("field value {:?}", value.escape_ascii()));
        }
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        fields.push((name, value.to_vec()));
    }
}

fn number(digits: &[u8], radix: u32) -> Result<usize, String> {
    let text = str::from_utf8(digits).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("length {:?}", digits.escape_ascii()));
    }
    usize::from_str_radix(text, radix).map_err(|error| format!("length {text:?}: {error}"))
}

fn is_token(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    /// A line that ends in CRLF and holds neither of the two.
    fn next(&mut self) -> Result<Option<&'a [u8]>, String> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Ok(None);
        };
        match rest[..end].split_last() {
            Some((b'\r', line)) if !line.contains(&b'\r') => {
                self.at += end + 1;
                Ok(Some(line))
            }
            Some(_) | None => Err(format!("line end {:?}", rest[..=end].escape_ascii())),
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes[self.at..].get(..length)?;
        self.at += length;
        Some(taken)
    }
}
