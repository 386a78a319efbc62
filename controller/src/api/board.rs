//! The board: one page, no other host needed. It reads the API like anyone else.

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};

/// What the page may do: its own script and style, and talk to this address. Nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'";

/// The page.
pub async fn page() -> Response {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(include_str!("board/page.html"))).into_response()
}
