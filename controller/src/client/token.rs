//! What a caller signs in with.

use std::fmt;
use std::str::FromStr;

use http::HeaderValue;

/// A bearer token, or none where it is empty. Nothing prints it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What goes into `Authorization`, if there is one.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        if self.is_empty() {
            return None;
        }
        let mut header = HeaderValue::try_from(format!("Bearer {}", self.0))
            .expect("a token is of visible ASCII characters");
        header.set_sensitive(true);
        Some(header)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        // An empty variable is what a CI system makes of one that is not set: no token.
        let fits = text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned())).ok_or(TokenError)
    }
}

/// Why a text is no token. The text is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token: expected visible ASCII characters without blanks")]
pub struct TokenError;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
